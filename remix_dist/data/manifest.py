"""Open a shard set: read its manifest and index, and refuse everything that does not add up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from remix_dist.data.store import filesystem
from remix_dist.types import UserError

FORMAT = "remix_dist.shards"
VERSION = 1
INDEX = dict(shard="i4", row="i4", label="i4", offset="i8", length="i4", crc32="u4", id="i8")


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a shard set; `key` is relative to the set's URL."""

    key: str
    rows: int
    bytes: int
    sha256: str
    histogram: dict[int, int]


@dataclass(frozen=True, eq=False)
class ShardSet:
    """One split: its shards, its class table and the index of its N images in (shard, row) order."""

    url: str
    classes: tuple[str, ...]
    count_C: np.ndarray
    """int64: images per class."""
    shards: tuple[Shard, ...]
    shard_N: np.ndarray
    """int32: place in `shards`."""
    label_N: np.ndarray
    """int64."""
    offset_N: np.ndarray
    """int64: absolute byte offset of the image in its shard file."""
    length_N: np.ndarray
    """int32: bytes of the image."""
    crc_N: np.ndarray
    """uint32: crc32 of these bytes."""
    id_N: np.ndarray
    """int64: the source's own image id."""
    digest: str
    """sha256 of manifest.json: the identity of the data."""
    encoder: dict

    def __len__(self) -> int:
        return len(self.label_N)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)


def open_shard_set(url: str, split: str) -> ShardSet:
    """The shard set `<url>/<split>`, checked; UserError if missing, half-written, damaged or foreign."""
    where = f"{url.rstrip('/')}/{split}"
    fs, root = filesystem(where)
    raw = _read(fs, root, "manifest.json", where)
    try:
        doc = json.loads(raw)
        if (found := (doc["format"], doc["version"])) != (FORMAT, VERSION):
            raise UserError(
                f"{where}: {found[0]} version {found[1]}, but this release reads {FORMAT} version {VERSION}; "
                "write the shards again, or install the release that wrote them"
            )
        shards = tuple(
            Shard(**{**s, "histogram": {int(k): n for k, n in s["histogram"].items()}}) for s in doc["shards"]
        )
        count_C, key = np.array(doc["class_counts"], np.int64), doc["index"]["key"]
        index = _read(fs, root, key, where)
        if hashlib.sha256(index).hexdigest() != doc["index"]["sha256"]:
            raise _damaged(where, f"{key} does not have the sha256 that manifest.json names")
        table = pq.read_table(pa.BufferReader(index))
        # Buffers, not to_numpy(): that imports pandas, a second in every process.
        column = {
            name: np.frombuffer(table[name].combine_chunks().buffers()[1], dtype)[: len(table)]
            for name, dtype in INDEX.items()
        }
        for problem in _problems(shards, count_C, len(doc["classes"]), column):
            raise _damaged(where, problem)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise _damaged(where, f"not a manifest ({type(error).__name__}: {error})") from error
    return ShardSet(
        where, tuple(doc["classes"]), count_C, shards, column["shard"], column["label"].astype(np.int64),
        column["offset"], column["length"], column["crc32"], column["id"],
        hashlib.sha256(raw).hexdigest(), doc["encoder"],
    )  # fmt: skip


def _read(fs: fsspec.AbstractFileSystem, root: str, key: str, where: str) -> bytes:
    try:
        return fs.cat_file(f"{root}/{key}")
    except FileNotFoundError as error:
        if key != "manifest.json":
            raise _damaged(where, f"{key} is missing") from error
        if fs.exists(f"{root}/_parts") or fs.exists(f"{root}/shards"):
            state, way = "half-written, no manifest.json yet", "run the same jobs/make_shards.py again"
        else:
            state, way = "no shard set there", "check URL and split, or write one with jobs/make_shards.py"
        raise UserError(f"{where}: {state}; {way}") from error
    except Exception as error:  # a store's driver raises its own types: credentials, network, permission
        raise UserError(f"{where}/{key}: cannot be read, {type(error).__name__}: {error}") from error


def _problems(
    shards: tuple[Shard, ...], count_C: np.ndarray, classes: int, column: dict[str, np.ndarray]
) -> Iterator[str]:
    label_N, shard_N, end_N = column["label"], column["shard"], column["offset"] + column["length"]
    labels = np.concatenate([label_N, *(np.array(list(s.histogram), label_N.dtype) for s in shards)])
    if len(count_C) != classes or (len(labels) and (labels.min() < 0 or labels.max() >= classes)):
        yield f"label out of range: {labels.min()}..{labels.max()}, with {classes} classes"
    table_C = np.zeros(classes, np.int64)
    for s in shards:
        table_C[list(s.histogram)] += list(s.histogram.values())
    if (table_C != count_C).any():
        yield "class_counts is not the sum of the shards' histograms"
    if not np.array_equal(np.bincount(label_N, minlength=classes), count_C):
        yield "class_counts does not match the labels of the index"
    if not np.array_equal(np.bincount(shard_N, minlength=len(shards)), [s.rows for s in shards]):
        yield "the shards' row counts do not match the index"
    if (column["offset"] < 4).any() or (end_N > np.array([s.bytes for s in shards])[shard_N]).any():
        yield "an image's byte range lies outside its shard"


def _damaged(where: str, what: str) -> UserError:
    return UserError(f"{where}: damaged, {what}; write it again: jobs/make_shards.py --overwrite true")
