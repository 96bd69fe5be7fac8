"""croissant.json: the facts of a dataset in JSON-LD, for catalogues.

Croissant 1.0 (mlcommons.org/croissant/1.0): every file with its sha256, a file set and a record
set for each kind. A file set without `containedIn` is one of the folder that croissant.json lies
in. Made from the manifest alone, without dates; what a manifest does not know (a publication, a
licence that nobody stated) is left out, not made up.
"""

from typing import Any

import pyarrow as pa

from lrdata.manifest import FileEntry, Manifest
from lrdata.report.about import (
    COLUMNS,
    TAGS,
    description,
    kinds_present,
    licences,
    name,
)
from lrdata.shards import schema_of

_PARQUET = "application/x-parquet"

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_TYPES = {
    pa.int32(): "cr:Int32",
    pa.int64(): "cr:Int64",
    pa.float16(): "cr:Float16",
    pa.bool_(): "sc:Boolean",
    pa.string(): "sc:Text",
}


def croissant(manifest: Manifest) -> dict[str, Any]:
    """The dataset as a Croissant 1.0 document; paths are relative to its folder.

    Its name is of the manifest, not of the folder it lies in: equal builds have equal files.
    """
    kinds = kinds_present(manifest)
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name(manifest),
        "description": description(manifest, manifest.tokenizer.name),
        "version": manifest.format_version,
        "keywords": list(TAGS),
        "isLiveDataset": False,
        "distribution": [
            *(_file_object(entry) for entry in manifest.files),
            *(_file_set(kind) for kind in kinds),
        ],
        "recordSet": [_record_set(manifest, kind) for kind in kinds],
    }
    if licences(manifest):
        document["license"] = licences(manifest)
    return document


def _file_object(entry: FileEntry) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": entry.path,
        "name": entry.path,
        "description": f"{entry.rows} {entry.kind} rows, {entry.tokens} tokens",
        "contentUrl": entry.path,
        "contentSize": f"{entry.bytes} B",
        "encodingFormat": _PARQUET,
        "sha256": entry.sha256,
    }


def _file_set(kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{kind}-files",
        "name": f"{kind}-files",
        "description": f"All files of {kind} rows",
        "encodingFormat": _PARQUET,
        "includes": f"{kind}/*.parquet",
    }


def _record_set(manifest: Manifest, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": kind,
        "name": kind,
        "description": f"{sum(entry.rows for entry in manifest.of_kind(kind))} rows",
        "key": {"@id": f"{kind}/sample_id"},
        "field": [_field(kind, column) for column in schema_of(manifest, kind)],
    }


def _field(kind: str, column: pa.Field) -> dict[str, Any]:
    repeated = pa.types.is_list(column.type)
    described: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{kind}/{column.name}",
        "name": column.name,
        "description": COLUMNS[column.name],
        "dataType": _TYPES[column.type.value_type if repeated else column.type],
        "source": {"fileSet": {"@id": f"{kind}-files"}, "extract": {"column": column.name}},
    }
    if repeated:
        described["repeated"] = True
    return described
