"""The demo: scikit-learn's bundled handwritten digits, so that a first run needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from remix_dist.data.longtail import LongTail
from remix_dist.data.sources import Listing, Source
from remix_dist.data.sources.cifar import png
from remix_dist.types import UserError

HELD_OUT = 40


@dataclass(frozen=True)
class Digits(Source):
    """1,797 gray 8x8 digits as RGB: 40 a class for `val`, the rest long-tailed unless told otherwise."""

    kind: ClassVar[str] = "digits"
    longtail: ClassVar[LongTail | None] = LongTail("exp", 100)

    @staticmethod
    def found(path: Path) -> bool:
        """True for the bare word."""
        return str(path) == "digits"

    def scan(self, split: str) -> Listing:
        """The first 40 of each class, in the bundled order, are `val`."""
        label_N = _load()[1]
        row_N = np.arange(len(label_N))
        place_N = np.array([(label_N[:n] == label_N[n]).sum() for n in row_N])
        row_N = row_N[(place_N < HELD_OUT) == (split == "val")]
        path_N = np.array([f"digits/{n:04d}.png" for n in row_N], dtype=object)
        classes = tuple(str(k) for k in range(10))
        return Listing(classes, label_N[row_N], row_N, path_N, row_N, np.zeros(len(row_N), np.int64))

    def read(self, path: str, where: int, size: int) -> bytes:
        """The digit as RGB PNG, ink 0..16 stretched to 0..255."""
        gray_HW = np.rint(_load()[0][where] * (255 / 16)).astype(np.uint8)
        return png(np.repeat(gray_HW[:, :, None], 3, axis=2))


@lru_cache(maxsize=1)
def _load() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("source.path=digits: needs scikit-learn; pip install 'remix_dist[report]'") from error
    bunch = load_digits()
    return bunch.images, bunch.target.astype(np.int64)
