"""Write a shard set: plan the shards of a split, write one, and close the set with index and manifest.

The manifest is written last, so that a set is complete or visibly not. Each finished shard leaves a part file,
so that a restart writes only what is missing. The same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from remix_dist.data.encode import BadImage, Store
from remix_dist.data.longtail import LongTail
from remix_dist.data.manifest import FORMAT, INDEX, VERSION
from remix_dist.data.sources import Listing, Source
from remix_dist.data.store import filesystem
from remix_dist.types import UserError, generator

ROW_GROUP = 256
"""Rows: what other readers (DuckDB, Ray Data) take at once; ours takes single images."""
SAMPLE = 64
"""Images encoded to guess the mean stored size, hence the number of shards."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: small enough to travel to another process."""

    url: str
    key: str
    settings: str
    source: Source
    store: Store
    listing: Listing
    """The shard's rows in their final order."""
    metadata: dict[bytes, bytes]


@dataclass(frozen=True, eq=False)
class SplitPlan:
    """How one split becomes shards."""

    url: str
    """<url>/<split>"""
    split: str
    source: Source
    store: str
    longtail: LongTail | None
    source_digest: str
    settings: str
    """sha256 of all that decides the bytes: parts and sets of other settings are not ours."""
    listing: Listing
    rows: tuple[np.ndarray, ...]
    """Row numbers of the listing, one array per shard."""

    def task(self, shard: int) -> ShardTask:
        """What `write_shard` needs for this shard."""
        label = {"names": list(self.listing.classes), "_type": "ClassLabel"}
        features = {"image": {"_type": "Image"}, "label": label, "id": {"dtype": "int64", "_type": "Value"}}
        hub = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        rows = replace(self.listing, taxonomy=None).take(self.rows[shard])
        return ShardTask(self.url, self.key(shard), self.settings, self.source, Store.parse(self.store), rows, hub)

    def key(self, shard: int) -> str:
        """The shard's file name below the split's URL."""
        return f"shards/{shard:05d}-of-{len(self.rows):05d}.parquet"


def plan_split(
    source: Source,
    url: str,
    split: str,
    *,
    store: str = "original",
    shard_bytes: int = 64 << 20,
    longtail: LongTail | None = None,
    seed: int = 0,
) -> SplitPlan:
    """Scan a split, cut its long tail (train only), and deal its rows to shards by a seeded permutation."""
    listing = source.scan(split)
    source_digest = listing.digest()
    if longtail := longtail if split == "train" else None:
        if listing.rank_N is not None and listing.lt_counts is not None:
            chosen = longtail.ranked_rows(listing.label_N, listing.rank_N, listing.lt_counts)
        else:
            chosen = longtail.rows(listing.label_N, len(listing.classes))
        listing = listing.take(chosen)
    wanted = [FORMAT, VERSION, split, source.kind, source_digest, store, shard_bytes, seed, ROW_GROUP]
    cut = [longtail.kind, longtail.ratio] if longtail else None
    settings = hashlib.sha256(json.dumps([*wanted, cut]).encode()).hexdigest()
    mean = _mean_bytes(source, listing, Store.parse(store))
    shards = min(len(listing), max(1, round(mean * len(listing) / shard_bytes)))
    order = generator(seed, f"shards of {split}").permutation(len(listing))
    rows = tuple(np.array_split(order, shards))
    where = f"{url.rstrip('/')}/{split}"
    return SplitPlan(where, split, source, store, longtail, source_digest, settings, listing, rows)


def write_shard(task: ShardTask) -> dict:
    """Read, encode, write, verify and upload one shard; gives its part: manifest entry, index, rejects."""
    if task.source.path != "digits" and not os.path.exists(task.source.path):
        raise UserError(f"source.path={task.source.path}: not visible on node {os.uname().nodename}; "
                        "mount it at the same path on every node")  # fmt: skip
    rows, stored, rejected = task.listing, {}, {}
    for n in np.argsort(rows.where_N, kind="stable").tolist():  # sources are fast in their own order
        path = rows.path_N[n]
        try:
            stored[n] = task.store.encode(_read(task.source, path, int(rows.where_N[n]), int(rows.size_N[n])))
        except BadImage as bad:
            rejected[n] = {"path": path, "reason": str(bad)}
    kept = np.array(sorted(stored), np.int64)
    images = [stored[n] for n in kept.tolist()]
    data = _parquet(images, rows.take(kept), task.metadata)
    label = rows.label_N[kept]
    part = {
        "settings": task.settings,
        "shard": {
            "key": task.key,
            "rows": len(images),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "histogram": {str(k): n for k, n in sorted(Counter(label.tolist()).items())},
        },
        "index": {
            "label": label.tolist(),
            "offset": _offsets(data, images),
            "length": [len(image) for image in images],
            "crc32": [zlib.crc32(image) for image in images],
            "id": rows.id_N[kept].tolist(),
        },
        "rejected": [rejected[n] for n in sorted(rejected)],
    }
    _put(f"{task.url}/{task.key}", data)
    _put(f"{task.url}/{_part_key(task.key)}", json.dumps(part).encode())
    return part


def resume(plan: SplitPlan, overwrite: bool = False) -> tuple[dict | None, dict[str, dict]]:
    """What is there already: the manifest if the set is complete, and the parts of finished shards by key.

    A set of other settings is a UserError, or is deleted if `overwrite` says so.
    """
    fs, root = filesystem(plan.url)
    manifest, parts = None, {}
    try:
        fs.invalidate_cache()
        if fs.exists(f"{root}/manifest.json"):
            manifest = json.loads(fs.cat_file(f"{root}/manifest.json"))
        sizes = {os.path.basename(f["name"]): f["size"] for f in _list(fs, f"{root}/shards")}
        names = [f["name"] for f in _list(fs, f"{root}/_parts") if f["name"].endswith(".json")]
        parts = {p["shard"]["key"]: p for p in (json.loads(fs.cat_file(name)) for name in names)}
    except ValueError:
        manifest = manifest or {"settings": "damaged"}
    except Exception as error:  # a store's driver raises its own types
        raise UserError(f"{plan.url}: cannot be read, {type(error).__name__}: {error}") from error
    found = {p.get("settings") for p in [*parts.values(), *([manifest] if manifest else [])]}
    if found - {plan.settings}:
        if not overwrite:
            raise UserError(f"{plan.url}: holds shards of another source or other settings; "
                            "choose another --url, or replace them with --overwrite true")  # fmt: skip
        for name in ("manifest.json", "index.parquet", "_parts", "shards"):  # the manifest first: never half
            if fs.exists(f"{root}/{name}"):
                fs.rm(f"{root}/{name}", recursive=True)
        return None, {}
    whole = {k: p for k, p in parts.items() if sizes.get(os.path.basename(k)) == p["shard"]["bytes"]}
    if manifest and any(sizes.get(os.path.basename(s["key"])) != s["bytes"] for s in manifest["shards"]):
        manifest = None  # somebody removed shards: write the set again
    return manifest, whole


def finish(plan: SplitPlan, parts: dict[str, dict]) -> dict:
    """Write index.parquet, then manifest.json, then remove the parts; gives the manifest."""
    done = [p for p in (parts[plan.key(n)] for n in range(len(plan.rows))) if p["shard"]["rows"]]
    rejected = [r for n in range(len(plan.rows)) for r in parts[plan.key(n)]["rejected"]]
    if not done:
        raise UserError(f"{plan.url}: not one usable image; {rejected[0]['path']}: {rejected[0]['reason']}")
    columns = {name: [v for p in done for v in p["index"][name]] for name in INDEX if name not in ("shard", "row")}
    columns["shard"] = [n for n, p in enumerate(done) for _ in range(p["shard"]["rows"])]
    columns["row"] = [row for p in done for row in range(p["shard"]["rows"])]
    table = pa.table({name: np.array(columns[name], dtype) for name, dtype in INDEX.items()})
    index = pa.BufferOutputStream()
    pq.write_table(table, index, compression="zstd")
    raw = index.getvalue().to_pybytes()
    classes, cut = plan.listing.classes, plan.longtail
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "split": plan.split,
        "classes": classes,
        "taxonomy": plan.listing.taxonomy,
        "class_counts": np.bincount(columns["label"], minlength=len(classes)).tolist(),
        "rows": len(table),
        "encoder": {"store": plan.store, "pillow": PIL.__version__, "pyarrow": pa.__version__},
        "source": {"kind": plan.source.kind, "digest": plan.source_digest},
        "longtail": {"kind": cut.kind, "ratio": cut.ratio} if cut else None,
        "settings": plan.settings,
        "index": {"key": "index.parquet", "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()},
        "shards": [p["shard"] for p in done],
        "rejected": rejected,
    }
    _put(f"{plan.url}/index.parquet", raw)
    _put(f"{plan.url}/manifest.json", json.dumps(manifest).encode())
    fs, root = filesystem(plan.url)
    fs.rm(f"{root}/_parts", recursive=True)
    return manifest


def _mean_bytes(source: Source, listing: Listing, store: Store) -> float:
    if store.side is None and len(listing) and listing.size_N.max() > 0:
        return float(np.maximum(listing.size_N, 0).mean())
    lengths = []
    for n in np.unique(np.linspace(0, len(listing) - 1, SAMPLE).astype(int)).tolist():
        try:
            row = listing.path_N[n], int(listing.where_N[n]), int(listing.size_N[n])
            lengths.append(len(store.encode(_read(source, *row))))
        except BadImage:
            continue
    return float(np.mean(lengths)) if lengths else 0.0


def _read(source: Source, path: str, where: int, size: int) -> bytes:
    try:
        return source.read(path, where, size)
    except (FileNotFoundError, PermissionError) as error:
        raise BadImage(f"cannot be read: {error.strerror or error}") from error
    except OSError as error:  # the disk's fault, not the image's: leaving it out would lose data silently
        raise UserError(f"source.path={source.path}: {path} cannot be read, {error}; run again") from error


def _parquet(images: list[bytes], rows: Listing, metadata: dict[bytes, bytes]) -> bytes:
    image = pa.StructArray.from_arrays(
        [pa.array(images, pa.binary()), pa.array(rows.path_N.tolist(), pa.string())], names=["bytes", "path"]
    )
    table = pa.table({"image": image, "label": rows.label_N, "id": rows.id_N}).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    # Plain and uncompressed, so that each image is one byte range of the file; statistics would copy images.
    pq.write_table(
        table, sink, row_group_size=ROW_GROUP, compression="none", use_dictionary=False,
        write_page_checksum=True, write_statistics=["label", "id"],
    )  # fmt: skip
    return sink.getvalue().to_pybytes()


def _offsets(data: bytes, images: list[bytes]) -> list[int]:
    """Absolute offset of every image, found by comparing all its bytes behind its length prefix."""
    offsets, at = [], 4
    for image in images:
        at = data.find(len(image).to_bytes(4, "little") + image, at)
        if at < 0:
            raise RuntimeError("an image is not contiguous in the Parquet file: this pyarrow cannot write shards")
        offsets.append(at + 4)
        at += 4 + len(image)
    return offsets


def _part_key(key: str) -> str:
    return f"_parts/{Path(key).stem}.json"


def _list(fs: fsspec.AbstractFileSystem, path: str) -> list[dict]:
    try:
        return fs.ls(path, detail=True)
    except FileNotFoundError:
        return []


def _put(url: str, data: bytes) -> None:
    """Write a whole file or none of it, and check its size."""
    fs, path = filesystem(url)
    try:
        if isinstance(fs, LocalFileSystem):
            temporary = Path(f"{path}.{uuid.uuid4().hex}.tmp")
            temporary.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            fs.pipe_file(path, data)
            fs.invalidate_cache(path)
        size = fs.info(path)["size"]
    except Exception as error:  # a store's driver raises its own types
        raise UserError(f"{url}: cannot be written, {type(error).__name__}: {error}") from error
    if size != len(data):
        raise UserError(f"{url}: {size} bytes arrived of {len(data)}; run again")
