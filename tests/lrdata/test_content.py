"""The content hash is of what rows hold, not of how they are grouped or where they come from."""

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lrdata.content import ContentHash
from lrdata.shard_writer import columns_of
from lrdata.shards import SCHEMA, Row
from tests.lrdata.made_dataset import extend_row, rows_to_table

_ROWS = st.lists(
    st.tuples(
        st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=40),
        st.lists(st.text(max_size=5), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=8,
)


def _rows(values: list[tuple[list[int], list[str]]]) -> list[Row]:
    return [
        extend_row(
            input_ids=np.array(ids, np.int32),
            impact_mask=np.array(ids) % 2 == 0,
            doc_ids=names,
            doc_offsets=np.array([len(name) << 40 for name in names], np.int64),
        )
        for ids, names in values
    ]


def _of(*tables: pa.Table) -> str:
    content = ContentHash(SCHEMA)
    for table in tables:
        content.update(table)
    return content.hexdigest()


@given(_ROWS)
def test_grouping_and_form_do_not_matter(values: list[tuple[list[int], list[str]]]) -> None:
    rows = _rows(values)
    expected = _of(rows_to_table(rows))
    assert _of(*(rows_to_table([row]) for row in rows)) == expected
    assert _of(pa.concat_tables([rows_to_table([row]) for row in rows])) == expected
    content = ContentHash(SCHEMA)
    content.update_columns(columns_of(rows, SCHEMA))
    assert content.hexdigest() == expected


def test_every_value_matters() -> None:
    rows = [extend_row(0), extend_row(1)]
    changed = dataclasses.replace(rows[0], input_ids=rows[0].input_ids ^ 1)
    assert _of(rows_to_table([changed, rows[1]])) != _of(rows_to_table(rows))


def test_the_same_tokens_in_other_rows_are_something_else() -> None:
    def of(*lengths: int) -> str:
        parts = np.split(np.arange(5, dtype=np.int32), np.cumsum(lengths)[:-1])
        return _of(rows_to_table([extend_row(input_ids=part) for part in parts]))

    assert of(2, 3) == of(2, 3)
    assert of(2, 3) != of(3, 2)


def test_it_is_what_its_documentation_says() -> None:
    """Made again from Python values, for the columns of two rows."""
    table = rows_to_table([extend_row(0), extend_row(1)])
    parts = []
    for name in SCHEMA.names:
        rows, lengths, values = table[name].to_pylist(), b"", b""
        if isinstance(rows[0], list):
            lengths = b"".join(len(row).to_bytes(8, "little") for row in rows)
            rows = [value for row in rows for value in row]
        item = SCHEMA.field(name).type
        item = item.value_type if pa.types.is_list(item) else item
        for value in rows:
            if isinstance(value, str):
                coded = value.encode()
                values += len(coded).to_bytes(8, "little") + coded
            else:
                size = 1 if pa.types.is_boolean(item) else item.byte_width
                values += int(value).to_bytes(size, "little", signed=True)
        parts += [hashlib.sha256(lengths).digest(), hashlib.sha256(values).digest()]
    assert _of(table) == hashlib.sha256(b"".join(parts)).hexdigest()
