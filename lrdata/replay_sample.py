"""Which documents replay takes of its corpus: a fair sample of all of it, however large it is.

Every document has a level: uniform in [0, 1), drawn by its place. Replay takes the documents of the
lowest levels, as many as it needs. So each file gives in proportion to what it holds, from its
start to its end, and no document comes twice.

What is taken may be a thousandth of a corpus, of which little more should be read. So documents are
sampled in two stages, as clusters: a cluster is a unit of about a megabyte, with a draw of its own,
uniform in [0, 1). One of s bytes in a corpus of S has the threshold F = min(1, 100 s / S):

    draw >= F    all its documents have its draw for a level: it is taken as a whole
    draw <  F    each of its documents has the level F x a draw of its own: it is thinned

Either way the level of a document is uniform. Documents of levels below p are in clusters with
draws below max(p, F): the p of the corpus that are taken whole, and about a hundred clusters (all,
where there are fewer) that give a part, so that none gives more than about a hundredth.

What that costs: a cluster is read to its end, and one that is thinned is read again to take what
was counted. Plain JSONL is cut anywhere, Parquet between row groups, and small files are put
together. A .gz, .zst or Arrow file is a cluster whatever its size: where they are equal all of up
to a hundred are read, and about a hundred of more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrdata.corpus import SourceFile, Unit, plan_units
from lrdata.draws import Draws
from lrdata.records import Documents

_UNIT_BYTES = 1024**2
_MOST_UNITS = 50_000  # of a larger corpus clusters are larger: all of them are held in memory
_SPREAD = 100


@dataclass(frozen=True)
class Cluster:
    """A unit, its draw, and the threshold below which its documents are drawn one by one."""

    unit: Unit
    draw: float
    threshold: float

    @property
    def whole(self) -> bool:
        """Whether all its documents have one level."""
        return self.draw >= self.threshold

    def reaches(self, low: float, high: float) -> bool:
        """Whether documents of it may have levels in [low, high)."""
        return low <= self.draw < high if self.whole else low < self.threshold

    def levels(self, documents: Documents, seed: int) -> np.ndarray:
        """float64 [n], of documents of this unit."""
        if self.whole:
            return np.full(len(documents), self.draw)
        places = zip(documents.files, documents.records, strict=True)
        own = [Draws(seed, file, record).share("replay") for file, record in places]
        return self.threshold * np.array(own, np.float64)


def clusters_of(files: Sequence[SourceFile], seed: int) -> tuple[list[Cluster], list[Cluster]]:
    """The clusters of a corpus: those that are thinned, and those that are taken as a whole, these
    by their levels."""
    units = plan_units(files, max(_UNIT_BYTES, sum(file.size for file in files) // _MOST_UNITS))
    sizes = [sum(piece.text_bytes for piece in unit.pieces) for unit in units]
    total = max(sum(sizes), 1)
    made = [
        Cluster(unit, _draw(unit, seed), min(1.0, _SPREAD * size / total))
        for unit, size in zip(units, sizes, strict=True)
    ]
    made.sort(key=lambda cluster: cluster.draw)
    return [one for one in made if not one.whole], [one for one in made if one.whole]


def _draw(unit: Unit, seed: int) -> float:
    first = unit.pieces[0]
    return Draws(seed, first.file.name, first.start).share("replay unit")
