"""The levels of documents: uniform, however they are drawn; and what has to be read for them."""

from pathlib import Path

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


@pytest.mark.parametrize(("name", "record"), [("plain", 0), ("plain", 5 * MB), ("packed", 7)])
def test_the_level_of_a_document_is_uniform(
    name: str, record: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one in a cluster that is sometimes taken as a whole, and in one that is always thinned."""
    monkeypatch.setattr("lrdata.replay_sample._SPREAD", 4)
    files = [file("packed", 2 * MB, "gzip"), file("plain", 10 * MB)]
    document = Documents(texts=["x"], files=[name], records=[record])
    levels, whole = [], 0
    for seed in range(3000):
        (cluster,) = (
            cluster
            for clusters in clusters_of(files, seed)
            for cluster in clusters
            for piece in cluster.unit.pieces
            if piece.file.name == name and piece.start <= record < piece.stop
        )
        whole += cluster.whole
        levels.append(float(cluster.levels(document, seed)[0]))
        at = levels[-1]
        assert cluster.reaches(at, at + 1e-9)
        assert not (cluster.whole and cluster.reaches(at + 1e-9, 1))
    assert_follows((int(20 * level) for level in levels), evenly(range(20)))
    assert (0.7 < whole / 3000 < 0.8) if name == "plain" else not whole


def test_documents_of_a_cluster_are_drawn_one_by_one_unless_it_is_whole() -> None:
    small, large = file("small", 90 * MB), file("large", 9000 * MB)
    for files, all_thinned in (([small], True), ([large], False)):
        thinned, whole = clusters_of(files, 0)
        assert (not whole) == all_thinned
        assert [one.draw for one in whole] == sorted(one.draw for one in whole)
        for cluster in (*thinned[:3], *whole[:3]):
            names = [piece.file.name for piece in cluster.unit.pieces] * 50
            documents = Documents(texts=[*"x" * 50], files=names, records=list(range(50)))
            levels = set(cluster.levels(documents, 0).tolist())
            assert len(levels) == (1 if cluster.whole else 50)


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
