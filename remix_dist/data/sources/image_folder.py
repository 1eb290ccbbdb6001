"""One folder per class, with train/ and val/ above them or with a held-out share of each class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from remix_dist.data.sources import Listing, Source
from remix_dist.types import UserError, generator

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}


@dataclass(frozen=True)
class ImageFolder(Source):
    """Classes are the folder names in sorted order; images lie at any depth below."""

    val_fraction: float | None = None
    val_per_class: int | None = None

    kind: ClassVar[str] = "image_folder"

    def __post_init__(self) -> None:
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise UserError(f"source.val_fraction={self.val_fraction}: must lie between 0 and 1, e.g. 0.1")
        if self.val_per_class is not None and self.val_per_class < 1:
            raise UserError(f"source.val_per_class={self.val_per_class}: must be at least 1")
        if self.val_fraction is not None and self.val_per_class is not None:
            raise UserError("source.val_fraction and source.val_per_class: give one of them")

    @staticmethod
    def found(path: Path) -> bool:
        """True for a folder with an image in a subfolder."""
        if not path.is_dir():
            return False
        walk = (name for _, _, names in os.walk(path) for name in names)
        return any(name.lower().endswith(SUFFIXES) for name in walk)

    def scan(self, split: str) -> Listing:
        """Images in sorted order, with their sizes."""
        folder = self._split_folder(split)
        held_out = folder is None and not any(self._split_folder(s) for s in SPLITS)
        if folder is None and not held_out:
            raise UserError(f"source.path={self.path}: has {'train' if split == 'val' else 'val'}/ but no {split}/; "
                            "add it, or give a folder of class folders alone")  # fmt: skip
        if folder is not None and (self.val_fraction is not None or self.val_per_class is not None):
            raise UserError("source.val_fraction, val_per_class: no effect, the folder has its own train/ and val/")
        root = Path(self.path) if folder is None else folder
        classes = sorted(d.name for d in os.scandir(root) if d.is_dir() and not d.name.startswith("."))
        files = [(k, path) for k, name in enumerate(classes) for path in _images(root / name)]
        if not files:
            raise UserError(f"source.path={self.path}: no image in the class folders of {root}")
        label_N = np.array([k for k, _ in files], np.int64)
        path_N = np.array([os.path.relpath(p, self.path) for _, p in files], dtype=object)
        size_N = np.array([os.stat(p).st_size for _, p in files], np.int64)
        row_N = np.arange(len(files))
        listing = Listing(tuple(classes), label_N, row_N, path_N, row_N, size_N)
        return listing.take(row_N[self._held_out(label_N) == (split == "val")]) if held_out else listing

    def read(self, path: str, where: int, size: int) -> bytes:
        """The file's bytes."""
        return Path(self.path, path).read_bytes()

    def _split_folder(self, split: str) -> Path | None:
        named = (Path(self.path, name) for name in SPLITS[split])
        # `train/` with images right inside is a class that happens to be called so.
        return next((f for f in named if f.is_dir() and any(d.is_dir() for d in os.scandir(f))), None)

    def _held_out(self, label_N: np.ndarray) -> np.ndarray:
        held = np.zeros(len(label_N), bool)
        for k in range(int(label_N.max()) + 1):
            row_n = np.flatnonzero(label_N == k)
            want = self.val_per_class or max(1, round(len(row_n) * (self.val_fraction or 0.1)))
            if want >= len(row_n):
                want = max(len(row_n) - 1, 0)  # a class keeps one image to learn from
            held[generator(0, "held-out", k).permutation(row_n)[:want]] = True
        return held


def _images(folder: Path) -> list[str]:
    found = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
    return sorted(p for p in found if p.lower().endswith(SUFFIXES) and not os.path.basename(p).startswith("."))
