"""Focal loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from remix_dist.types import ClassTable, Loss, UserError


@dataclass(frozen=True)
class Focal(Loss):
    """(1 - p_y)^gamma * -log p_y (Lin et al., ICCV 2017, Eq. 4, without alpha), p from the softmax."""

    gamma: float = 1.0
    """Focus on hard rows. LDAM's and class-balanced focal code use 1; 0.5 to 2 is usual; 0 is cross-entropy."""

    def __post_init__(self) -> None:
        if not isinstance(self.gamma, int | float) or not 0 <= self.gamma < float("inf"):
            raise UserError(f"loss.gamma = {self.gamma!r}: must be a finite number >= 0; 0 is cross-entropy")

    def __call__(self, logits_BC: Tensor, labels_BK: Tensor, table: ClassTable) -> Tensor:
        """loss_BK, float32."""
        log_p_BK = logits_BC.log_softmax(1, dtype=torch.float32).gather(1, labels_BK)
        # 1 - p without cancellation; where it rounds to 0 the slope of (1 - p)^gamma would be infinite for
        # gamma < 1 and 0 * inf = NaN, though the loss there is 0 and flat: the clamp cuts that slope off.
        rest_BK = (-torch.expm1(log_p_BK)).clamp_min(torch.finfo(torch.float32).tiny)
        return rest_BK**self.gamma * -log_p_BK
