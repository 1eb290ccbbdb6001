"""Labels mix as images do."""

from dataclasses import dataclass

from torch import Tensor

from remix_dist.types import LabelRule


@dataclass(frozen=True)
class Same(LabelRule):
    """lambda_y = lambda_x: plain Mixup, CutMix or Manifold Mixup (Zhang et al., ICLR 2018)."""

    def __call__(self, lam_x_B: Tensor, count_a_B: Tensor, count_b_B: Tensor) -> Tensor:
        """lam_x_B itself."""
        return lam_x_B
