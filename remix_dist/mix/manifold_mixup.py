"""Manifold Mixup."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from remix_dist.mix.mixup import check_alpha, draw, upload
from remix_dist.types import MixedBatch, Mixer, UserError


@dataclass(frozen=True)
class ManifoldMixup(Mixer):
    """Mixup at a layer drawn per micro-batch (Verma et al., ICML 2019): 0 is the input, k the k-th mix point."""

    needs_mix_points: ClassVar[bool] = True

    alpha: float = 1.0
    """lambda ~ Beta(alpha, alpha); one lambda per micro-batch."""
    layers: tuple[int, ...] = (0, 1, 2)
    """Mix points to draw from, uniformly: 0 the input, 1 after the first stage of the backbone, and so on."""

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        valid = isinstance(self.layers, tuple) and all(isinstance(k, int) and k >= 0 for k in self.layers)
        if not valid or not self.layers or len(set(self.layers)) < len(self.layers):
            raise UserError(f"mix.layers = {self.layers!r}: must be a tuple of different mix points >= 0, as (0, 1, 2)")

    def __call__(self, images_BCHW: Tensor, rng: np.random.Generator, mix_points: int = 1) -> MixedBatch:
        """Layer 0: images mixed and `layer` None. Else: clean images, and the backbone mixes at `layer`.

        Drawn: lambda, partners, layer. UserError if the backbone has fewer than max(layers) + 1 mix points.
        """
        if max(self.layers) >= mix_points:
            raise UserError(
                f"mix.layers = {self.layers!r}: the backbone has mix points 0 to {mix_points - 1}; leave out the others"
            )
        lam, partner = draw(self.alpha, len(images_BCHW), per_row=False, rng=rng)
        layer = self.layers[rng.integers(len(self.layers))]
        lam_B, partner_B = upload(lam, images_BCHW.device), upload(partner, images_BCHW.device)
        if layer > 0:
            return MixedBatch(images_BCHW, partner_B, lam_B, layer)
        x_BCHW = torch.lerp(images_BCHW[partner_B], images_BCHW, lam_B[:, None, None, None])
        return MixedBatch(x_BCHW, partner_B, lam_B)
