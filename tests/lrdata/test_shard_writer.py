"""A shard is written whole or not at all, and the same rows are the same bytes in any of them."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lrdata import shard_writer
from lrdata.parquet import Column, ParquetFile
from lrdata.shard_writer import writing_shard
from lrdata.shards import LSD_FIELD, SCHEMA, Row, table_to_rows
from tests.lrdata.made_dataset import extend_row, rows_to_table


def _write(path: Path, rows: list[Row]) -> bytes:
    with writing_shard(path) as shard:
        for row in rows:
            shard.write(row)
    return path.read_bytes()


def test_rows_come_back(tmp_path: Path) -> None:
    rows = [extend_row(number) for number in range(9)]
    _write(tmp_path / "a.parquet", rows)
    table = pq.read_table(tmp_path / "a.parquet", page_checksum_verification=True)
    assert table.equals(rows_to_table(rows))
    for row, back in zip(rows, table_to_rows(table), strict=True):
        for field in dataclasses.fields(Row):
            assert np.array_equal(getattr(row, field.name), getattr(back, field.name))


def test_scores_are_a_column_more(tmp_path: Path) -> None:
    gains = np.linspace(-3, 3, 32).astype(np.float16)
    path = tmp_path / "a.parquet"
    with writing_shard(path, SCHEMA.append(LSD_FIELD)) as shard:
        shard.write(extend_row(lsd=gains))
    (row,) = table_to_rows(pq.read_table(path))
    assert row.lsd is not None
    assert row.lsd.dtype == np.float16
    assert np.array_equal(row.lsd, gains)


def _long_rows(count: int) -> list[Row]:
    draw = np.random.default_rng(0)
    return [extend_row(input_ids=draw.integers(0, 50_000, 4_000, np.int32)) for _ in range(count)]


def test_a_row_more_leaves_most_bytes_of_a_shard_as_they_were(tmp_path: Path) -> None:
    """What content-defined chunking is for: storage that deduplicates keeps the rest."""
    one, *rows = _long_rows(2_001)
    before = _write(tmp_path / "a", rows)
    after = _write(tmp_path / "b", [*rows[:2], one, *rows[2:]])
    places = range(len(before) // 4, len(before) - 4096, len(before) // 100)
    found = [before[place : place + 64] in after for place in places]
    assert np.mean(found) > 0.95


@pytest.mark.parametrize("page_tokens", [shard_writer.PAGE_TOKENS, (40_000, 60_000)])
def test_pages_and_row_groups_have_the_sizes_that_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_tokens: tuple[int, int]
) -> None:
    monkeypatch.setattr(shard_writer, "PAGE_TOKENS", page_tokens)
    monkeypatch.setattr(shard_writer, "GROUP_TOKENS", 3 * page_tokens[0])
    pages = list[int]()
    add_page = ParquetFile.add_page

    def counted(file: ParquetFile, columns: list[Column]) -> None:
        pages.append(len(columns[0].values))
        add_page(file, columns)

    monkeypatch.setattr(ParquetFile, "add_page", counted)
    rows = _long_rows(1_000)
    _write(tmp_path / "a.parquet", rows)
    least, most = page_tokens
    assert sum(pages) == 4_000 * len(rows)
    assert all(least <= tokens <= most for tokens in pages[:-1])
    assert len(set(pages)) > 2, "they end as the content says, not after a number of rows"
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    groups = [4_000 * metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert all(3 * least <= tokens <= 3 * least + most for tokens in groups[:-1])


def test_a_shard_that_was_not_finished_does_not_exist(tmp_path: Path) -> None:
    def stop_half_way() -> None:
        with writing_shard(tmp_path / "a.parquet") as shard:
            shard.write(extend_row())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert not list(tmp_path.iterdir())
