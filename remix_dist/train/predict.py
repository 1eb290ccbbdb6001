"""Classes and probabilities for image files, folders, URLs and shard sets, with an exported model.

Decoding, resizing and normalising are the functions that evaluation uses, so a prediction is what the run's
accuracy was measured on.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from remix_dist.data.augment import Augment
from remix_dist.data.decode import decode
from remix_dist.data.manifest import open_shard_set
from remix_dist.data.store import filesystem
from remix_dist.model import Classifier
from remix_dist.train.export import load_exported
from remix_dist.types import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")

Item = tuple[str, Callable[[], bytes]]
"""What an image is called, and what reads its bytes (on a thread; it may raise)."""


def evaluation(preprocess: dict[str, Any]) -> Augment:
    """The Augment of a preprocess.json: its `place` with noise None, then its `normalize`."""
    if preprocess.get("interpolation", "bilinear") != "bilinear":
        raise UserError(f"preprocess: interpolation {preprocess['interpolation']!r} is not known; only bilinear")
    return Augment(
        size=preprocess["crop"], resize=preprocess["resize"], crop="center",
        mean=tuple(preprocess["mean"]), std=tuple(preprocess["std"]),
    )  # fmt: skip


def eval_image(data: bytes, augment: Augment) -> Tensor:
    """uint8 (3, size, size) of an encoded image: short side to `resize`, centre crop. Raises CorruptImage."""
    slot = torch.empty(3, augment.size, augment.size, dtype=torch.uint8)
    augment.place(decode(data), slot, None)
    return slot


def find_images(source: str) -> Iterator[Item]:
    """The images of a file, a folder (recursively, by name), an fsspec URL or one split of a shard set.

    UserError if there are none; whether an image can be read or decoded is not looked at.
    """
    fs, path = filesystem(source)
    if source.startswith(("http://", "https://")):  # a web server has no folders to ask for
        return iter([(source, lambda: fs.cat_file(path))])
    if fs.isdir(path):
        if fs.exists(f"{path}/manifest.json"):
            return _shard_images(source)
        if fs.exists(f"{path}/val/manifest.json"):
            raise UserError(f"input {source} is a shard set of several splits; say which: {source.rstrip('/')}/val")
        found = [name for name in sorted(fs.find(path)) if name.lower().endswith(SUFFIXES)]
        if not found:
            raise UserError(f"input {source} holds no image ({' '.join(SUFFIXES)}) and is no shard set")
        return iter([(name, lambda name=name: fs.cat_file(name)) for name in found])
    if not fs.exists(path):
        raise UserError(f"input {source} does not exist; give an image, a folder, a URL or a split of a shard set")
    return iter([(source, lambda: fs.cat_file(path))])


def _shard_images(source: str) -> Iterator[Item]:
    url, _, split = source.rstrip("/").rpartition("/")
    shards = open_shard_set(url or ".", split)
    fs, root = filesystem(shards.url)
    for place, shard in enumerate(shards.shards):
        rows = np.flatnonzero(shards.shard_N == place)
        with fs.open(f"{root}/{shard.key}", "rb") as file:
            names = pq.ParquetFile(file).read(columns=["image.path"])["image"].combine_chunks().field("path")
            for row, name in zip(rows, names.to_pylist(), strict=True):
                file.seek(int(shards.offset_N[row]))
                data = file.read(int(shards.length_N[row]))
                yield name, lambda data=data, crc=shards.crc_N[row]: _checked(data, crc)  # type: ignore[misc]


def _checked(data: bytes, crc: int) -> bytes:
    if zlib.crc32(data) != crc:
        raise ValueError("the bytes are not what the index says (crc32)")
    return data


def _decoded(items: Iterable[Item], augment: Augment, ahead: int) -> Iterator[tuple[str, Tensor | str]]:
    """Each image's name with its pixels, or with the reason why there are none; in order, `ahead` in flight."""

    def work(read: Callable[[], bytes]) -> Tensor | str:
        try:
            return eval_image(read(), augment)
        except Exception as error:  # store clients raise what they like; one image must not end the others
            return f"{type(error).__name__}: {error}".splitlines()[0][:200]

    waiting: deque[tuple[str, Future[Tensor | str]]] = deque()
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for name, read in items:
            waiting.append((name, pool.submit(work, read)))
            if len(waiting) > ahead:
                name, future = waiting.popleft()
                yield name, future.result()
        for name, future in waiting:
            yield name, future.result()


@torch.inference_mode()
def _rows(
    group: Sequence[tuple[str, Tensor | str]], model: Classifier, augment: Augment, classes: list[str], topk: int
) -> list[dict[str, Any]]:
    device = next(model.parameters()).device
    rows: list[dict[str, Any]] = [
        {"path": name, "error": pixels if isinstance(pixels, str) else None} for name, pixels in group
    ]
    if good := [pixels for _, pixels in group if isinstance(pixels, Tensor)]:
        images_BCHW = augment.normalize(torch.stack(good).to(device).float())
        share_BK, class_BK = (t.tolist() for t in model(images_BCHW).float().softmax(1).topk(topk))
        answers = zip(share_BK, class_BK, strict=True)
    for row in rows:
        share_K, class_K = next(answers) if row["error"] is None else ([None] * topk, [None] * topk)
        for k, (share, index) in enumerate(zip(share_K, class_K, strict=True), 1):
            row |= {f"top{k}": None if index is None else classes[index], f"prob{k}": share}
    return rows


def predict(
    model: str | tuple[Classifier, dict[str, Any]],
    inputs: str | Sequence[str],
    *,
    topk: int = 5,
    batch: int = 64,
    device: str = "auto",
) -> Iterator[dict[str, Any]]:
    """One row per image, in order: path, error (None if all is well), top1, prob1, top2, prob2 ...

    model: an export's folder or URL, or what load_exported gave. inputs: see find_images. An image that cannot
    be read is a row with its error and no classes. With fewer than `topk` classes all are given. Wrong
    arguments are a UserError at the call; the work happens while the rows are read.
    """
    for key, number in (("topk", topk), ("batch", batch)):
        if number < 1:
            raise UserError(f"{key} must be at least 1, got {number}")
    sources = [inputs] if isinstance(inputs, str) else list(inputs)
    items = (item for found in [find_images(source) for source in sources] for item in found)
    net, meta = load_exported(model) if isinstance(model, str) else model
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        net = net.to(place).eval()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]}); try cpu") from error
    return _predict(net, meta, items, min(topk, len(meta["classes"])), batch)


def _predict(
    net: Classifier, meta: dict[str, Any], items: Iterable[Item], topk: int, batch: int
) -> Iterator[dict[str, Any]]:
    augment, group = evaluation(meta["preprocess"]), []
    for pair in _decoded(items, augment, 2 * batch):
        group.append(pair)
        if len(group) == batch:
            yield from _rows(group, net, augment, meta["classes"], topk)
            group = []
    yield from _rows(group, net, augment, meta["classes"], topk)
