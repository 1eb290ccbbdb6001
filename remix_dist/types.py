"""The contracts of the axes, and what travels between them.

Shapes are in the names: B rows of a micro-batch, K labels per row (1 clean, 2 mixed), C classes,
N rows of a data set, H and W pixels, D features. `labels_BK` is (B, K); `count_C` is (C,).
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

NOISE, PHOTOMETRIC = 32, 9
"""Uniform numbers per row: 20 for crop tries, 2 positions, 1 flip; the last PHOTOMETRIC go to the device."""


class UserError(ValueError):
    """A mistake of the caller's that one line explains: the key, the value and the way out."""


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A fresh counter-based generator: the same (seed, purpose, counters) gives the same numbers anywhere.

    Up to three counters (step, micro-batch, slot ...). They fill the upper words of Philox' counter, so
    streams never overlap; making one costs microseconds, and no global random state is touched.
    """
    if len(counters) > 3:
        raise ValueError(f"at most 3 counters, got {counters}")
    high = [int(c) for c in counters] + [0] * (3 - len(counters))
    key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, zlib.crc32(purpose.encode())], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, *high], dtype=np.uint64)))


def import_siblings(package: str, path: Iterable[str]) -> None:
    """Import every module of an axis package, so that a method is found as soon as its file exists."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


@dataclass(frozen=True)
class ClassTable:
    """Training images per class, of the whole training set: the table that every rank holds."""

    count_C: Tensor
    """int64 (C,), every entry >= 1; on the device that uses it."""

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self.count_C.numel()

    def digest(self) -> str:
        """sha256 (hex) of the counts: equal on all ranks or the run stops."""
        return hashlib.sha256(self.count_C.cpu().numpy().tobytes()).hexdigest()

    def to(self, device: torch.device | str) -> ClassTable:
        """The same table on another device."""
        return ClassTable(self.count_C.to(device))


@dataclass
class Batch:
    """One micro-batch as the stream delivers it: clean rows, uint8 pixels."""

    images_BCHW: Tensor
    """uint8 RGB, cropped, resized and flipped; not normalised."""
    labels_B: Tensor
    """int64."""
    noise_BK: Tensor
    """float32 uniform [0, 1) numbers per row, for the photometric augmentation on the device."""
    rows_B: np.ndarray
    """int64 row ids in the shard set's index (host): what the trace and the fault report name."""
    step: int
    """Global step that this micro-batch belongs to."""
    micro_batch: int
    """Its place in the global batch, 0 .. global_batch / micro_batch - 1: names random keys, not the rank."""


@dataclass
class MixedBatch:
    """What a Mixer gives: images, who is mixed with whom, and how much."""

    images_BCHW: Tensor
    """float; already mixed unless `layer` says where the backbone shall mix."""
    partner_B: Tensor | None
    """int64: row b is mixed with row partner_B[b]; None for a clean batch."""
    lam_x_B: Tensor
    """float32: the share of the row's own image (Eq. 8); all ones for a clean batch."""
    layer: int | None = None
    """Mix point of the backbone (Manifold Mixup); None: nothing left to mix."""


class Mixer(ABC):
    """How images mix (lambda_x). Subclasses are frozen dataclasses; their fields are their knobs."""

    mixes: ClassVar[bool] = True
    """False only where the batch stays clean, so that label rules which could not act are refused."""
    needs_mix_points: ClassVar[bool] = False
    """True if the backbone must declare mix points (Manifold Mixup)."""

    @abstractmethod
    def __call__(self, images_BCHW: Tensor, rng: np.random.Generator, mix_points: int = 1) -> MixedBatch:
        """Mix one micro-batch of float images; every draw comes from `rng` (host), nothing syncs the device."""


class LabelRule(ABC):
    """How labels mix (lambda_y)."""

    @abstractmethod
    def __call__(self, lam_x_B: Tensor, count_a_B: Tensor, count_b_B: Tensor) -> Tensor:
        """lam_y_B, float32: the share of the row's own label, from lambda_x and both classes' counts."""


class Loss(ABC):
    """Value per row and label. No reduction, no class weights: the engine owns both."""

    @property
    def head_scale(self) -> float | None:
        """None: the model gets a linear head. A number s: a cosine head whose logits are s * cos."""
        return None

    @abstractmethod
    def __call__(self, logits_BC: Tensor, labels_BK: Tensor, table: ClassTable) -> Tensor:
        """loss_BK, float32."""


class Rebalance(ABC):
    """Class weights and class draws from the deferral point on; before it nothing is rebalanced."""

    acts: ClassVar[bool] = True
    """False only where nothing is ever rebalanced."""

    @property
    def deferral(self) -> str | float:
        """When it begins: a fraction of the run in [0, 1), or "decay:2" for the second LR decay."""
        return 0.0

    def row_weight(self, table: ClassTable) -> Tensor | None:
        """float32 (C,), summing to C: the factor on each label's loss. None: no weights."""
        return None

    def class_share(self, table: ClassTable) -> Tensor | None:
        """float64 (C,), summing to 1: the share of each class among the rows drawn. None: each row once."""
        return None
