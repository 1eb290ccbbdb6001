"""No mixing: the clean batch (ERM)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from remix_dist.types import MixedBatch, Mixer


@dataclass(frozen=True)
class NoMix(Mixer):
    """The images as they come: no partner, lambda_x = 1, nothing drawn."""

    mixes: ClassVar[bool] = False

    def __call__(self, images_BCHW: Tensor, rng: np.random.Generator, mix_points: int = 1) -> MixedBatch:
        """The very same tensor, partner None and float32 ones."""
        return MixedBatch(images_BCHW, None, images_BCHW.new_ones(len(images_BCHW), dtype=torch.float32))
