"""Corpus arguments become files, each once, under names that hold no folder of ours; units cover
every byte or row group of them exactly once, whatever the unit size."""

import gzip
import hashlib
import itertools
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata.corpus import SourceFile, find_files, plan_units, source_hash
from lrdata.errors import LongRecipeError


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a"}\n')
    return folder


def test_a_folder_gives_its_visible_files_with_known_suffixes(tmp_path: Path) -> None:
    _touch(
        tmp_path / "web",
        *("b.jsonl", "a/deep/x.JSONL.ZST", "n.txt.gz", "t.parquet", "r.md", "i.arrow"),
        *(".hidden.jsonl", ".git/x.txt", "code.py", "dataset_info.json", "state.json"),
    )
    files = find_files([str(tmp_path / "web")])
    assert [(file.name, file.format, file.compression) for file in files] == [
        ("web/a/deep/x.JSONL.ZST", "jsonl", "zstd"),
        ("web/b.jsonl", "jsonl", None),
        ("web/i.arrow", "arrow", None),
        ("web/n.txt.gz", "text", "gzip"),
        ("web/r.md", "text", None),
        ("web/t.parquet", "parquet", None),
    ]
    assert {file.source for file in files} == {"web"}


def test_a_file_is_its_own_source_and_any_suffix_is_text_when_it_is_named(tmp_path: Path) -> None:
    _touch(tmp_path, "books.jsonl.gz", "lib/a.py", "lib/sub/b.py", "lib/c.txt")
    files = find_files([str(tmp_path / "books.jsonl.gz"), str(tmp_path / "lib/**/*.py")])
    assert [(file.name, file.source, file.format) for file in files] == [
        ("books.jsonl.gz", "books", "jsonl"),
        ("lib/a.py", "lib", "text"),
        ("lib/sub/b.py", "lib", "text"),
    ]


def test_a_file_that_several_arguments_name_is_read_once(tmp_path: Path) -> None:
    _touch(tmp_path / "web", "a.txt", "b.txt")
    folder = str(tmp_path / "web")
    assert find_files([folder, f"{folder}/*.txt"]) == find_files([folder])


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    _touch(tmp_path / "elsewhere", "a.txt")
    _touch(tmp_path / "web", "b.txt")
    (tmp_path / "web" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "web" / "circle").symlink_to(tmp_path / "web")
    files = find_files([str(tmp_path / "web")])
    assert [file.name for file in files] == ["web/b.txt", "web/link/a.txt"]


@pytest.mark.parametrize("link_first", [True, False])
@pytest.mark.parametrize("corpus", ["web", "web/**/*.txt"])
def test_a_folder_with_several_names_has_the_same_one_wherever_it_is_copied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: str, link_first: bool
) -> None:
    """Some file systems list the entries of a folder in the order in which they were made."""
    monkeypatch.chdir(tmp_path)
    links = {"web/latest": "v2", "web/yy/deeper": "../../elsewhere", "web/zz": "../elsewhere"}
    (tmp_path / "web" / "yy").mkdir(parents=True)
    for made in (0, 1) if link_first else (1, 0):
        if made:
            for name in ("web/v2", "elsewhere", "web/yy"):
                _touch(tmp_path / name, "a.txt")
        else:
            for link, to in links.items():
                (tmp_path / link).symlink_to(to)
    names = [file.name for file in find_files([corpus])]
    assert names == ["web/v2/a.txt", "web/yy/a.txt", "web/zz/a.txt"]


def test_of_two_links_the_one_of_fewer_folders_names_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _touch(tmp_path / "elsewhere", "t.txt")
    for folder in ("web/a/b", "web/z"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "link").symlink_to(tmp_path / "elsewhere")
    for corpus in ("web", "web/**/*.txt"):
        assert [file.name for file in find_files([corpus])] == ["web/z/link/t.txt"]


def test_a_glob_may_climb_and_end_in_a_slash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path / "x", "c.jsonl")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    for corpus in ("../x/*", "../x/*/", "*/../../x/*.jsonl"):
        assert [file.name for file in find_files([corpus])] == ["x/c.jsonl"]


def test_folders_that_link_to_each_other_are_walked_once(tmp_path: Path) -> None:
    """By every path there would be more than could ever be walked."""
    folders = [f"f{number}" for number in range(8)]
    for folder in folders:
        _touch(tmp_path / "web" / folder, "a.txt")
    for one, other in itertools.permutations(folders, 2):
        (tmp_path / "web" / one / f"to-{other}").symlink_to(f"../{other}")
    files = find_files([str(tmp_path / "web")])
    assert [file.name for file in files] == [f"web/{folder}/a.txt" for folder in folders]


def test_a_wildcard_in_the_name_of_the_working_directory_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path / "run[1]" / "books", "right.jsonl")
    _touch(tmp_path / "run1" / "books", "wrong.jsonl")
    monkeypatch.chdir(tmp_path / "run[1]")
    assert [file.name for file in find_files(["books/*.jsonl"])] == ["books/right.jsonl"]


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("", "name a file, folder or glob"),
        ("nowhere.jsonl", "does not exist"),
        ("empty", "holds no corpus file"),
        ("*.nothing", "holds no corpus file"),
        ("ftp://host/x.jsonl", "use https://"),
        ("x.jsonl.xz", "unpack it first"),
        ("x.parquet.gz", "unpack it first"),
        ("pipe.txt", "not a regular file"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    _touch(tmp_path, "x.jsonl.xz", "x.parquet.gz")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(LongRecipeError, match=line) as caught:
        find_files([argument])
    assert "\n" not in str(caught.value)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    _touch(tmp_path, "a/x.txt", "b/x.txt")
    with pytest.raises(LongRecipeError, match=r"would both be named x\.txt"):
        find_files([str(tmp_path / "a/x.txt"), str(tmp_path / "b/x.txt")])


def test_the_hash_is_of_the_bytes_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"text"))
    (file,) = find_files([str(path)])
    assert source_hash(file) == hashlib.sha256(path.read_bytes()).hexdigest()


_FILES = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.integers(0, 5_000),
        st.sampled_from([("jsonl", None), ("jsonl", "gzip"), ("text", None), ("arrow", None)]),
    ),
    max_size=8,
)


@given(_FILES, st.integers(1, 2_000))
def test_units_cover_every_byte_once_in_order(
    kinds: list[tuple[str, int, tuple[str, str | None]]], unit_bytes: int
) -> None:
    files = [
        SourceFile(Path("x"), f"{source}/{number}", source, size, format, compression)
        for number, (source, size, (format, compression)) in enumerate(kinds)
    ]
    units = plan_units(files, unit_bytes)
    assert [unit.index for unit in units] == list(range(len(units)))
    pieces = [piece for unit in units for piece in unit.pieces]
    for file in files:
        own = [piece for piece in pieces if piece.file is file]
        assert own[0].start == 0
        assert own[-1].stop == file.size
        assert sum(piece.text_bytes for piece in own) == file.size * (3 if file.compression else 1)
        assert all(left.stop == right.start for left, right in itertools.pairwise(own))
        if file.format != "jsonl" or file.compression:
            assert len(own) == 1
    assert [files.index(piece.file) for piece in pieces] == sorted(
        files.index(piece.file) for piece in pieces
    )
    for unit in units:
        assert len({piece.file.source for piece in unit.pieces}) == 1
        size = sum((p.stop - p.start) * (3 if p.file.compression else 1) for p in unit.pieces)
        assert size <= 1.5 * unit_bytes + 1 or len(unit.pieces) == 1


def test_parquet_is_cut_between_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"text": [f"{number:04d}" * 100 for number in range(100)]})
    pq.write_table(table, path, row_group_size=10, compression="none", use_dictionary=False)
    units = plan_units(find_files([str(path)]), unit_bytes=13_000)
    cuts = [(piece.start, piece.stop) for unit in units for piece in unit.pieces]
    assert cuts[0][0] == 0
    assert cuts[-1][1] == 10
    groups = pq.read_metadata(path)
    for piece in (piece for unit in units for piece in unit.pieces):
        sizes = [groups.row_group(at).total_byte_size for at in range(piece.start, piece.stop)]
        assert piece.text_bytes == sum(sizes)
    assert len(units) > 2
    assert all(left[1] == right[0] for left, right in itertools.pairwise(cuts))
