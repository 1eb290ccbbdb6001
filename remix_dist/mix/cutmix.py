"""CutMix."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from remix_dist.mix.mixup import check_alpha, draw, upload
from remix_dist.types import MixedBatch, Mixer


@dataclass(frozen=True)
class CutMix(Mixer):
    """A box of the partner's pixels replaces the row's own (Yun et al., ICCV 2019).

    The box has sides sqrt(1 - lambda) and a uniform centre and is clipped at the border; lambda_x is then
    the share of own pixels that are left, and it is this lambda that the label rule sees.
    """

    alpha: float = 1.0
    """lambda ~ Beta(alpha, alpha)."""
    per_row: bool = False
    """Draw a lambda and a box for every row. Default: one of each for the micro-batch."""

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    def __call__(self, images_BCHW: Tensor, rng: np.random.Generator, mix_points: int = 1) -> MixedBatch:
        """Cut images, partners and corrected float32 lambdas; drawn: lambda, partners, centre y, centre x."""
        rows, (height, width), device = len(images_BCHW), images_BCHW.shape[2:], images_BCHW.device
        lam_B, partner_B = draw(self.alpha, rows, self.per_row, rng)
        side_B = np.sqrt(1 - lam_B.astype(np.float64))
        inside_BH = self._span(side_B, height, rng)
        inside_BW = self._span(side_B, width, rng)
        own_B = height * width - inside_BH.sum(1) * inside_BW.sum(1)
        box_B1HW = upload(inside_BH, device)[:, None, :, None] & upload(inside_BW, device)[:, None, None, :]
        partner_on_device_B = upload(partner_B, device)
        mixed_BCHW = torch.where(box_B1HW, images_BCHW[partner_on_device_B], images_BCHW)
        lam_x_B = upload((own_B / (height * width)).astype(np.float32), device)
        return MixedBatch(mixed_BCHW, partner_on_device_B, lam_x_B)

    def _span(self, side_B: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        """bool (B, size): the pixels of one axis inside a span of share side_B around a drawn centre."""
        centre_B = np.full(len(side_B), rng.integers(size, size=len(side_B) if self.per_row else None))
        half_B = (size * side_B / 2).astype(np.int64)
        pixel_S = np.arange(size)
        return (pixel_S >= (centre_B - half_B)[:, None]) & (pixel_S < (centre_B + half_B)[:, None])
