"""Cross-entropy."""

from dataclasses import dataclass

import torch
from torch import Tensor

from remix_dist.types import ClassTable, Loss, UserError


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """-log softmax(z)_y; smoothed, the label's share is 1 - s + s/C and every other class' s/C."""

    label_smoothing: float = 0.0
    """The share s of the target that is spread over all classes (Szegedy et al., CVPR 2016, section 7)."""

    def __post_init__(self) -> None:
        if not isinstance(self.label_smoothing, int | float) or not 0 <= self.label_smoothing < 1:
            raise UserError(f"loss.label_smoothing = {self.label_smoothing!r}: must be in [0, 1); 0 smooths nothing")

    def __call__(self, logits_BC: Tensor, labels_BK: Tensor, table: ClassTable) -> Tensor:
        """loss_BK, float32: one log-softmax and K gathers."""
        log_p_BC = logits_BC.log_softmax(1, dtype=torch.float32)
        own_BK = log_p_BC.gather(1, labels_BK)
        if self.label_smoothing == 0:
            return -own_BK
        return -torch.lerp(own_BK, log_p_BC.mean(1, keepdim=True), self.label_smoothing)
