"""Which documents replay takes of its corpus: a fair sample of all of it, however large it is.

Every document has a level: uniform in [0, 1), drawn for its place in the corpus. Replay takes the
documents of the lowest levels, as many as it needs. So each file gives in proportion to what it
holds, from its start to its end, and no document comes twice.

What is taken may be a thousandth of a corpus, of which little more should be read. So documents are
sampled in two stages, as clusters: a cluster is a unit of about a megabyte. Over the bytes of the
corpus a hundred points lie at equal distances, the first of them at a draw. A cluster of s bytes,
of S in all, has a point in it with the probability F = min(1, 100 s / S):

    with a point    each of its documents has the level F x a draw of its own: it is thinned
    without one     all of them have one level, uniform in [F, 1): it is taken as a whole

Either way the level of a document is uniform. Documents of levels below p are in about a hundred
clusters that give a part (all, where there are fewer), so that none gives more than about a
hundredth, and in those of levels below p that are taken whole.

Clusters are not drawn each by itself, which leaves small sources out by chance. They come source by
source and file by file: 1 % of the bytes has a point in it. The level of a whole one is
F + (1 - F) x, where x begins at a draw and goes up by the golden section, modulo 1, from one to the
next: of n in a row p n have an x below p, to within a few, for every p.

What that costs: a cluster is read to its end, and twice: to count what is drawn of it and to take
that; a thinned one also each time that more has to be counted. Plain JSONL is cut anywhere, Parquet
between row groups, and small files are put together. A .gz, .zst or Arrow file is a cluster
whatever its size: where they are equal all of up to a hundred are read, and about a hundred of
more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrdata.corpus import SourceFile, Unit, plan_units
from lrdata.draws import Draws
from lrdata.records import Documents

_UNIT_BYTES = 1024**2
_CLUSTERS_OF_A_LARGE_CORPUS = 50_000
"""About so many: larger ones of a larger corpus, as all are held in memory. The ends of files and
sources make more of them."""
_POINTS = 100
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Cluster:
    """A unit, and the levels of its documents: of all of them `level`, or below `threshold` one by
    one, where that is None."""

    unit: Unit
    threshold: float
    level: float | None

    @property
    def text_bytes(self) -> int:
        """About how much text it holds, see `lrdata.corpus.Piece`."""
        return sum(piece.text_bytes for piece in self.unit.pieces)

    def reaches(self, low: float, high: float) -> bool:
        """Whether documents of it may have levels in [low, high)."""
        return low < self.threshold if self.level is None else low <= self.level < high

    def levels(self, documents: Documents, seed: int) -> np.ndarray:
        """float64 [n], of documents of this unit."""
        if self.level is not None:
            return np.full(len(documents), self.level)
        places = zip(documents.files, documents.records, strict=True)
        own = [Draws(seed, file, record).share("replay") for file, record in places]
        return self.threshold * np.array(own, np.float64)


def clusters_of(files: Sequence[SourceFile], seed: int) -> tuple[list[Cluster], list[Cluster]]:
    """The clusters of a corpus: those that are thinned, and those that are taken as a whole, these
    by their levels."""
    aim = max(_UNIT_BYTES, sum(file.size for file in files) // _CLUSTERS_OF_A_LARGE_CORPUS)
    units = plan_units(files, aim)
    sizes = np.array([sum(piece.text_bytes for piece in unit.pieces) for unit in units], np.int64)
    thresholds = np.minimum(_POINTS * sizes / max(sizes.sum(), 1), 1.0)
    draws = Draws(seed)
    # Where rounding puts a point beside a cluster that is sure to have one, it is thinned too.
    pointed = _with_points(sizes, draws.share("replay points")) | (thresholds == 1)
    alone = np.flatnonzero(~pointed)
    levels = _levels(thresholds[alone], draws.share("replay levels"))
    thinned = [Cluster(units[at], float(thresholds[at]), None) for at in np.flatnonzero(pointed)]
    whole = [
        Cluster(units[at], float(thresholds[at]), level)
        for level, at in sorted(zip(levels.tolist(), alone.tolist(), strict=True))
    ]
    return thinned, whole


def _with_points(sizes: np.ndarray, first: float) -> np.ndarray:
    """Which of clusters that lie one after another have a point in them: bool [n].

    sizes: int64 [n], in bytes. first: of the distance of points, in [0, 1).
    """
    ends = np.cumsum(sizes)
    points = (np.arange(_POINTS) + first) / _POINTS * sizes.sum()
    inside = points[points < sizes.sum()]  # all, unless rounded up, or there are no bytes
    pointed = np.zeros(len(sizes), bool)
    pointed[np.searchsorted(ends, inside, side="right")] = True
    return pointed


def _levels(thresholds: np.ndarray, first: float) -> np.ndarray:
    """Those of clusters that are taken as a whole, one after another: float64 [n], each in
    [threshold, 1). first: of the first one, in [0, 1)."""
    steps = (first + _GOLDEN * np.arange(len(thresholds))) % 1.0
    return np.minimum(thresholds + (1 - thresholds) * steps, np.nextafter(1.0, 0.0))
