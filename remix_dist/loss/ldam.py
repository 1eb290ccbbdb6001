"""LDAM: a margin that grows as the class gets rarer."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from remix_dist.types import ClassTable, Loss, UserError


@dataclass(frozen=True)
class LDAM(Loss):
    """Cross-entropy of s * (cos - m_y on the label y), m_c = max_margin * (n_min / n_c)^(1/4) (Cao et al.,
    NeurIPS 2019, section 3.2). The cosine head gives the logits s * cos; each label column is its own margin problem.
    """

    max_margin: float = 0.5
    """Margin of the rarest class, as a cosine. LDAM's code uses 0.5; others took 0.3 for iNaturalist."""
    scale: float = 30.0
    """s, the factor on the cosines."""

    def __post_init__(self) -> None:
        if not isinstance(self.max_margin, int | float) or not 0 <= self.max_margin < float("inf"):
            raise UserError(f"loss.max_margin = {self.max_margin!r}: must be a finite number >= 0; LDAM uses 0.5")
        if not isinstance(self.scale, int | float) or not 0 < self.scale < float("inf"):
            raise UserError(f"loss.scale = {self.scale!r}: must be a finite number > 0; LDAM uses 30")

    @property
    def head_scale(self) -> float:
        """s: the model gets a cosine head of this scale."""
        return self.scale

    def __call__(self, logits_BC: Tensor, labels_BK: Tensor, table: ClassTable) -> Tensor:
        """loss_BK, float32, from logits that are s * cos."""
        z_BC = logits_BC.float()
        margin_C = self.max_margin * (table.count_C.min() / table.count_C) ** 0.25
        # loss = softplus(log sum_{c != y} exp z_c - z_y + s m_y), exact for any margin. The sum without y is
        # sum * (1 - p_y), which cancels only if p_y > 1/2, so only for the largest logit: that one case has
        # its own sum. So two (B,) sums serve all K columns, and no (B, K, C) tensor is built.
        top_B1 = z_BC.argmax(1, keepdim=True)
        without_top_B1 = z_BC.scatter(1, top_B1, float("-inf")).logsumexp(1, keepdim=True)
        all_B1 = z_BC.logsumexp(1, keepdim=True)
        own_BK = z_BC.gather(1, labels_BK)
        is_top_BK = labels_BK == top_B1
        log_p_BK = (own_BK - all_B1).masked_fill(is_top_BK, -1.0)  # any p < 1: unused, and free of NaN slopes
        others_BK = torch.where(is_top_BK, without_top_B1, all_B1 + torch.log1p(-log_p_BK.exp()))
        return softplus(others_BK - own_BK + self.scale * margin_C[labels_BK])
