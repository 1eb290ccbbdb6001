"""Images in Parquet as the Hugging Face hub stores them: a struct of bytes and path, and a label."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from remix_dist.data.sources import Listing, Source
from remix_dist.types import UserError

IMAGES = ("image", "img")
LABELS = ("label", "labels", "fine_label")
SPLITS = {"train": ("train",), "val": ("val", "test")}


@dataclass(frozen=True)
class ImageParquet(Source):
    """Splits by file name (train*, val* or else test*); class names from the schema's metadata, if there."""

    kind: ClassVar[str] = "image_parquet"

    @staticmethod
    def found(path: Path) -> bool:
        """True for a folder with a Parquet file at any depth."""
        return path.is_dir() and any(path.rglob("*.parquet"))

    def scan(self, split: str) -> Listing:
        """Rows in file and row order; ids are row numbers."""
        files = _files(self.path, split)
        schema = pq.read_schema(files[0])
        image, label = _column(schema, IMAGES, files[0]), _column(schema, LABELS, files[0])
        rank = "rank_in_class" if "rank_in_class" in schema.names else None
        columns = [f"{image}.path", label, *([rank] if rank else [])]
        table = pa.concat_tables([pq.ParquetFile(f).read(columns=columns).replace_schema_metadata() for f in files])
        names, lt_counts = _metadata(schema, label)
        label_N = np.array(table[label].to_pylist(), np.int64)
        if label_N.min() < 0 or (names and label_N.max() >= len(names)):
            raise UserError(f"{files[0]}: labels {label_N.min()}..{label_N.max()}, but {len(names or ())} class names")
        classes = names or tuple(str(k) for k in range(int(label_N.max()) + 1))
        row_N = np.arange(len(label_N))
        paths = [p["path"] or f"row {n}" for n, p in enumerate(table[image].to_pylist())]
        stamp = json.dumps([[Path(f).name, Path(f).stat().st_size] for f in files])
        return Listing(
            classes, label_N, row_N, np.array([f"{split}/{p}" for p in paths], dtype=object), row_N,
            np.zeros(len(label_N), np.int64), None, np.array(table[rank].to_pylist(), np.int32) if rank else None,
            lt_counts, stamp,
        )  # fmt: skip

    def read(self, path: str, where: int, size: int) -> bytes:
        """The image's bytes; the row group it lies in stays in memory for the rows that follow."""
        files, first_N, groups = _groups(self.path, path.split("/", 1)[0])
        g = int(np.searchsorted(first_N, where, side="right")) - 1
        data = _row_group(files[g], groups[g])[where - int(first_N[g])].as_py()
        if data is None:
            raise FileNotFoundError("the row holds no image bytes")
        return data


def _files(path: str, split: str) -> list[str]:
    every = sorted(p for p in Path(path).rglob("*.parquet"))
    for prefix in SPLITS[split]:
        if chosen := [str(p) for p in every if p.name.startswith(prefix)]:
            return chosen
    raise UserError(f"source.path={path}: no {'*.parquet or '.join(SPLITS[split])}*.parquet; rename the files so")


def _column(schema: pa.Schema, names: tuple[str, ...], file: str) -> str:
    if not (found := [n for n in names if n in schema.names]):
        raise UserError(f"{file}: no column {' or '.join(names)}, only {', '.join(schema.names)}; rename it")
    return found[0]


def _metadata(schema: pa.Schema, label: str) -> tuple[tuple[str, ...] | None, dict[str, list[int]] | None]:
    meta = {k.decode(): v for k, v in (schema.metadata or {}).items()}
    hub = json.loads(meta.get("huggingface", b"{}")).get("info", {}).get("features", {}).get(label, {})
    names = hub.get("names") or json.loads(meta.get("class_names", b"null"))
    return tuple(names) if names else None, json.loads(meta.get("lt_counts", b"null"))


@lru_cache(maxsize=2)
def _groups(path: str, split: str) -> tuple[list[str], np.ndarray, list[int]]:
    """For each row group of the split: its file, its first row and its number in the file."""
    files: list[str] = []
    rows: list[int] = []
    groups: list[int] = []
    for file in _files(path, split):
        meta = pq.read_metadata(file)
        files += [file] * meta.num_row_groups
        groups += range(meta.num_row_groups)
        rows += [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
    return files, np.cumsum([0, *rows])[:-1], groups


@lru_cache(maxsize=1)
def _row_group(file: str, group: int) -> pa.ChunkedArray:
    with pq.ParquetFile(file) as parquet:
        image = _column(parquet.schema_arrow, IMAGES, file)
        table = parquet.read_row_group(group, columns=[f"{image}.bytes"])
    return table[image].combine_chunks().field("bytes")
