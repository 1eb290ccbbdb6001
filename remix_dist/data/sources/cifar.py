"""CIFAR-10 and CIFAR-100 as torchvision downloads them (python pickles), as lossless PNG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from torchvision import datasets

from remix_dist.data.sources import Listing, Source
from remix_dist.types import UserError

FOLDERS = {"cifar-10-batches-py": "CIFAR10", "cifar-100-python": "CIFAR100"}


@dataclass(frozen=True)
class Cifar(Source):
    """`val` is the official test set; ids are places in the official order."""

    kind: ClassVar[str] = "cifar"

    @staticmethod
    def found(path: Path) -> bool:
        """True for the folder of the pickles or the one above it."""
        return path.name in FOLDERS or any((path / name).is_dir() for name in FOLDERS)

    def scan(self, split: str) -> Listing:
        """The official order and labels."""
        data = _load(self.path, split)
        row_N = np.arange(len(data.targets))
        path_N = np.array([f"{split}/{n:05d}.png" for n in row_N], dtype=object)
        label_N = np.array(data.targets, np.int64)
        return Listing(tuple(data.classes), label_N, row_N, path_N, row_N, np.zeros(len(row_N), np.int64))

    def read(self, path: str, where: int, size: int) -> bytes:
        """The pixels as PNG."""
        return png(_load(self.path, path.split("/", 1)[0]).data[where])


def png(pixels_HWC: np.ndarray) -> bytes:
    """uint8 (H, W, 3) or (H, W) as PNG bytes."""
    out = io.BytesIO()
    Image.fromarray(pixels_HWC).save(out, "PNG")
    return out.getvalue()


@lru_cache(maxsize=2)
def _load(path: str, split: str) -> datasets.CIFAR10:
    root = Path(path).parent if Path(path).name in FOLDERS else Path(path)
    present = [name for name in FOLDERS if (root / name).is_dir()]
    if Path(path).name in FOLDERS:
        present = [Path(path).name]
    if len(present) != 1:
        both = " and ".join(present) or "neither"
        raise UserError(f"source.path={path}: holds {both}; give {' or '.join(FOLDERS)} itself")
    try:
        return getattr(datasets, FOLDERS[present[0]])(str(root), train=split == "train", download=False)
    except RuntimeError as error:
        raise UserError(f"source.path={path}: {present[0]} is incomplete or damaged; download it again") from error
