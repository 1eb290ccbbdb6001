"""Mixup, and the draws that every mixer makes first."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from remix_dist.types import MixedBatch, Mixer, UserError


def check_alpha(alpha: float) -> None:
    """UserError unless Beta(alpha, alpha) exists."""
    if not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
        raise UserError(f"mix.alpha = {alpha!r}: must be a finite number > 0; for clean batches take mix: NoMix")


def draw(alpha: float, rows: int, per_row: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """lam_B ~ Beta(alpha, alpha), float32, then partner_B, a permutation; a mixer's further draws follow."""
    return np.full(rows, rng.beta(alpha, alpha, rows if per_row else None), np.float32), rng.permutation(rows)


def upload(values: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on `device`; pinned before CUDA, since a pageable copy would stop the host."""
    return torch.tensor(values, pin_memory=device.type == "cuda").to(device, non_blocking=True)


@dataclass(frozen=True)
class Mixup(Mixer):
    """x = lam * x_a + (1 - lam) * x_b (Zhang et al., ICLR 2018; Eq. 8 of Remix)."""

    alpha: float = 1.0
    """lambda ~ Beta(alpha, alpha). Remix: 1 for CIFAR and CINIC, 0.4 for iNaturalist."""
    per_row: bool = False
    """Draw a lambda for every row. Default: one for the micro-batch (Algorithm 1 of Remix)."""

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    def __call__(self, images_BCHW: Tensor, rng: np.random.Generator, mix_points: int = 1) -> MixedBatch:
        """Mixed images, their partners and the float32 lambdas, all on the images' device."""
        host = draw(self.alpha, len(images_BCHW), self.per_row, rng)
        lam_B, partner_B = (upload(values, images_BCHW.device) for values in host)
        x_BCHW = torch.lerp(images_BCHW[partner_B], images_BCHW, lam_B[:, None, None, None])
        return MixedBatch(x_BCHW, partner_B, lam_B)
