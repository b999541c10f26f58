"""The table of a dataset, `manifest.parquet`: one row an image, in the order of the input.

It holds no times of day and no durations: the same images and settings give the same bytes, whatever happened on the
way there. Everything about a finished pair is in the pair's own file, too, so that a lost table is made again from
them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..extras import require
from . import pairs, settings

FILE = "manifest.parquet"
FORMAT, VERSION = "dvt_fast.manifest", 1

# Columns and their Arrow types, beside those that are the same in every row.
COLUMNS = {
    "folder": "string", "image": "string", "state": "string", "error": "string", "bytes": "int64", "stamp": "string",
    "hash": "string", "width": "int32", "height": "int32", "file": "string", "file_bytes": "int64",
    "file_sha256": "string", "residual": "float64", "cosine": "float64", "raw_norm": "float64",
    "semantics_norm": "float64",
}  # fmt: skip


class Damaged(InputError):
    """A manifest that cannot be read, as its file is not whole or not of this kind."""


@dataclass(slots=True)
class Record:
    """One image.

    folder, image: where it was: the folder (absolute) or URL that was given, and the path in there.
    state: "done"; "duplicate", of an image above with the same content and so the same pair; or "failed", with the
    reason in `error`.
    bytes, stamp: the image's size, and when it was written or what its storage calls the version.
    hash: sha256 of its content; of a failed image, of what it held when its pair was made, if it has one. width,
    height: in pixels, upright.
    file_bytes, file_sha256: of the pair's file, `file`.
    residual: |raw - F - G| / |raw|. cosine: of raw to F, mean over the tokens. raw_norm, semantics_norm: the median
    token's.
    """

    folder: str
    image: str
    state: str = "failed"
    error: str | None = None
    bytes: int = -1
    stamp: str = ""
    hash: str | None = None
    width: int | None = None
    height: int | None = None
    file_bytes: int | None = None
    file_sha256: str | None = None
    residual: float | None = None
    cosine: float | None = None
    raw_norm: float | None = None
    semantics_norm: float | None = None

    @property
    def file(self) -> str:
        """The name of the pair's file in the dataset; "" where there is none."""
        return pairs.file_of(self.hash) if self.hash else ""

    @property
    def place(self) -> str:
        """The image's path or URL."""
        return f"{self.folder.rstrip('/')}/{self.image}"


def printable(text: str) -> str:
    r"""A path as a table or a terminal can hold it: bytes of its name that are not UTF-8 as \xff."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def facts_of(data: bytes, pair: pairs.Pair) -> dict[str, Any]:
    """What a record says of a finished pair, from the bytes of its file."""
    names = ("hash", "width", "height", "residual", "cosine", "raw_norm", "semantics_norm")
    facts = {name: pair.header.get(name) for name in names}
    return facts | {"file_bytes": len(data), "file_sha256": hashlib.sha256(data).hexdigest()}


def to_bytes(rows: Iterable[Record], made_with: Mapping[str, Any]) -> bytes:
    """The content of the file. made_with: the settings."""
    pa, parquet = require("pyarrow", "train"), require("pyarrow.parquet", "train")
    rows = list(rows)
    same = {
        "vit": made_with["vit"]["name"],
        "layer": made_with["vit"]["layer"],
        "solver": made_with["solver"],
        "seed": made_with["seed"],
        "settings": settings.digest(made_with),
    }
    columns = {
        name: pa.array([getattr(row, name) or None if name == "file" else getattr(row, name) for row in rows], kind)
        for name, kind in COLUMNS.items()
    }
    columns |= {name: pa.repeat(value, len(rows)) for name, value in same.items()}
    header = {"format": FORMAT, "version": VERSION, "settings": made_with}
    table = pa.table(columns).replace_schema_metadata({"dvt_fast": json.dumps(header)})
    out = io.BytesIO()
    parquet.write_table(table, out, compression="zstd")
    return out.getvalue()


def parse(data: bytes, where: str, expected: Mapping[str, Any]) -> list[Record]:
    """The rows in the content of the file `where`.

    Raises `Damaged`, and `InputError` for a newer version and for other settings than `expected`, naming them.
    """
    pa, parquet = require("pyarrow", "train"), require("pyarrow.parquet", "train")
    try:
        # Without Arrow's threads: where they hold a Python object when the interpreter ends, the process may crash
        # or hang after its work was done (apache/arrow issues 39862 and 50482).
        table = parquet.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
        header = json.loads(table.schema.metadata[b"dvt_fast"])
        made, version, made_with = header["format"], header["version"], header["settings"]
    except Exception as error:  # a cut or foreign file fails in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Damaged(
            f"{where}: not a readable manifest: {reason}; dvt-fast dataset makes it again from the pairs"
        ) from None
    settings.check_version(where, made, version, FORMAT, VERSION)
    settings.refuse_others(where, made_with, expected)
    names = [field.name for field in dataclasses.fields(Record)]
    columns = [table.column(name).to_pylist() for name in names]
    columns[0] = map(sys.intern, columns[0])  # a folder once, not once an image
    return [Record(*values) for values in zip(*columns)]
