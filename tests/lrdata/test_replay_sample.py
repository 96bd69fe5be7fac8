"""The levels of documents: uniform, however they are drawn; and what has to be read for them."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, pstdev

import pytest

from lrdata.corpus import SourceFile
from lrdata.records import Documents
from lrdata.replay_sample import Cluster, clusters_of
from tests.chi_square import assert_follows, evenly

MB = 1024**2


def file(name: str, size: int, compression: str | None = None) -> SourceFile:
    return SourceFile(Path(name), name, name, size, "jsonl", compression)


def text_bytes(cluster: Cluster) -> int:
    return sum(piece.text_bytes for piece in cluster.unit.pieces)


@pytest.mark.parametrize(
    ("name", "record", "share_whole"),
    [
        *(("plain", 0, 0.75), ("plain", 5 * MB, 0.75), ("plain", 15 * MB, 0.75)),
        *(("large", 7, 0.5), ("small", 7, 0.875), ("larger", 7, 0.0)),
    ],
)
def test_the_level_of_a_document_is_uniform(
    name: str, record: int, share_whole: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is: of clusters of all sizes, of which larger ones are more often thinned."""
    monkeypatch.setattr("lrdata.replay_sample._POINTS", 8)
    files = [
        SourceFile(Path(name), name, name, size, "arrow")
        for name, size in (("large", 2 * MB), ("larger", 5 * MB), ("small", MB // 2))
    ]
    files += [file("plain", 16 * MB), file("rest", 8 * MB + MB // 2)]  # 32 MB in all
    document = Documents(texts=["x"], files=[name], records=[record])
    levels, whole = [], 0
    for seed in range(4000):
        (cluster,) = (
            cluster
            for clusters in clusters_of(files, seed)
            for cluster in clusters
            for piece in cluster.unit.pieces
            if piece.file.name == name and piece.start <= record < piece.stop
        )
        whole += cluster.level is not None
        levels.append(float(cluster.levels(document, seed)[0]))
        at = levels[-1]
        assert cluster.reaches(at, at + 1e-9)
        assert not (cluster.level is not None and cluster.reaches(at + 1e-9, 1))
    assert_follows((int(20 * level) for level in levels), evenly(range(20)))
    assert whole / 4000 == pytest.approx(share_whole, abs=0.03)


def test_documents_of_a_cluster_are_drawn_one_by_one_unless_it_is_whole() -> None:
    small, large = file("small", 90 * MB), file("large", 9000 * MB)
    for files, all_thinned in (([small], True), ([large], False)):
        thinned, whole = clusters_of(files, 0)
        assert (not whole) == all_thinned
        lowest = [one.level for one in whole]
        assert lowest == sorted(lowest)
        for cluster in (*thinned[:3], *whole[:3]):
            names = [piece.file.name for piece in cluster.unit.pieces] * 50
            documents = Documents(texts=[*"x" * 50], files=names, records=list(range(50)))
            levels = set(cluster.levels(documents, 0).tolist())
            assert len(levels) == (1 if cluster in whole else 50)


def taken(clusters: Iterable[Cluster], share: float) -> Counter[str]:
    """How many bytes of documents with levels below `share` each source gives, where clusters hold
    many documents."""
    found = Counter[str]()
    for cluster in clusters:
        if cluster.level is None:
            part = min(share / cluster.threshold, 1.0)
        else:
            part = float(cluster.level < share)
        found[cluster.unit.pieces[0].file.source] += round(part * text_bytes(cluster))
    return found


def drawn_each_by_itself(clusters: Iterable[Cluster], seed: int) -> Iterator[Cluster]:
    """The same clusters, thinned and with levels by draws that know nothing of each other."""
    draw = random.Random(seed)
    for cluster in clusters:
        at = draw.random()
        yield replace(cluster, level=None if at < cluster.threshold else at)


MIXED = [file("a", 200 * MB), file("b", 1000 * MB), file("c", 18800 * MB)]
"""Sources of 1, 5 and 94 % of a corpus, in pieces of a megabyte, and in files of any size."""
PACKED = [
    replace(file(f"{source}{number}", (1 + number % 7) * MB // 2, "gzip"), source=source)
    for source, count in (("a", 70), ("b", 350), ("c", 6580))
    for number in range(count)
]


@pytest.mark.parametrize(
    ("files", "shares"), [(MIXED, [0.002, 0.005, 0.02, 0.1, 0.5]), (PACKED, [0.002, 0.005])]
)
def test_a_small_source_is_in_every_sample_by_its_size(
    files: list[SourceFile], shares: list[float]
) -> None:
    """What one of 1 % gives, with what as many clusters give that are drawn each by itself."""
    found: dict[float, list[float]] = {share: [] for share in shares}
    independent: dict[float, list[float]] = {share: [] for share in shares}
    for seed in range(20):
        clusters = [one for both in clusters_of(files, seed) for one in both]
        others = list(drawn_each_by_itself(clusters, seed))
        for share in shares:
            for drawn, parts in ((clusters, found), (others, independent)):
                sizes = taken(drawn, share)
                parts[share].append(sizes["a"] / sizes.total())
    for share in shares:
        assert min(found[share]) > 0.005
        assert mean(found[share]) == pytest.approx(0.01, rel=0.1)
        assert pstdev(found[share]) < 0.5 * pstdev(independent[share])
    assert min(independent[0.005]) == 0


def test_every_part_of_a_file_is_in_every_sample() -> None:
    """Of each fiftieth of the bytes two clusters give a part; of each of twenty files a like part
    is taken."""
    parts = [file(f"{number:02}", 1000 * MB) for number in range(20)]
    for seed in range(10):
        thinned, whole = clusters_of([file("a", 20_000 * MB)], seed)
        halves = Counter(one.unit.pieces[0].start // (400 * MB) for one in thinned)
        assert set(halves.values()) == {2}
        assert len(halves) == 50
        sizes = taken([*thinned, *whole], 0.0125)
        assert sizes["a"] == pytest.approx(250 * MB, rel=0.03)
        every = taken([one for both in clusters_of(parts, seed) for one in both], 0.0125)
        assert all(abs(size - 12.5 * MB) < 4 * MB for size in every.values())
        assert len(every) == 20


@pytest.mark.parametrize("sizes", [[], [0, 0], [0, 3 * MB, 0], [MB] * 100, [3, 0, 5]])
def test_clusters_of_any_size_are_all_there_once(sizes: list[int]) -> None:
    files = [replace(file(f"{at:03}", size, "gzip"), source="a") for at, size in enumerate(sizes)]
    for seed in range(20):
        clusters = [one for both in clusters_of(files, seed) for one in both]
        units = [one.unit.index for one in clusters]
        assert sorted(units) == list(range(len(units)))
        assert sum(len(one.unit.pieces) for one in clusters) == len(sizes)
        assert all(one.reaches(0.0, 1.0) for one in clusters)
        assert all(one.level is None for one in clusters if text_bytes(one))


@pytest.mark.parametrize(
    "files",
    [
        [file("a", 10**12)],
        [file(f"{number:04}", 10 * MB, "zstd") for number in range(3000)],
        [file(f"{number:04}", 10**8 * (1 + number % 3)) for number in range(1000)],
    ],
)
def test_of_a_large_corpus_about_a_hundred_clusters_are_read(files: list[SourceFile]) -> None:
    """And never more of them than fit into memory."""
    clusters = [cluster for both in clusters_of(files, 0) for cluster in both]
    assert len(clusters) < 110_000
    read = [cluster for cluster in clusters if cluster.reaches(0.0, 1e-4)]
    assert 60 < len(read) < 150
    largest = max(map(text_bytes, clusters))
    assert sum(map(text_bytes, read)) < 150 * largest < 0.1 * sum(map(text_bytes, clusters))
