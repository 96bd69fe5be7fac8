"""Columns of numbers, texts and lists of them -> Parquet, page by page.

    with open(path, "wb") as stream:
        file = ParquetFile(stream, schema, delta={"position_ids"})
        file.add_page([Column(ids, lengths), ...])    # some rows: a page of each column
        file.end_group()                              # some pages: a row group
        file.finish()                                 # page indexes and footer

pyarrow would write the same, but it makes and packs two levels for every value of a list, and for
content-defined pages it hashes every value. In rows of thousands of tokens the levels are one long
run, and a page can only end between rows; so here both cost next to nothing, and half of the time
is zstd's (bench/README.md: 2.7 times as fast). Only what a shard needs is here: required columns,
lists of required elements, PLAIN and DELTA_BINARY_PACKED values, zstd, page checksums and page
indexes. The numbers are those of parquet.thrift and the format's documentation:
https://github.com/apache/parquet-format
"""

from lrdata.parquet.writer import Column, ParquetFile

__all__ = ["Column", "ParquetFile"]
