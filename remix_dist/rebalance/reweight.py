"""Re-weighting (RW)."""

from dataclasses import dataclass

from torch import Tensor

from remix_dist.rebalance.weights import By, check_weights, class_weight
from remix_dist.types import ClassTable, Rebalance


@dataclass(frozen=True)
class Reweight(Rebalance):
    """Each label's loss times its class weight, from the first step (Cui et al., CVPR 2019, section 4)."""

    by: By = "effective"
    """What a row weighs: 1 / effective number of its class, 1 / count (inverse), or count^(power - 1)."""
    beta: float | None = None
    """With `effective` only. Default: (N - 1) / N, N training images, as in Remix; LDAM's code takes 0.9999."""
    power: float | None = None
    """With `power` only, and needed there: classes appear as count^power; 0 uniform, 0.5 sqrt, -1 reverse."""

    def __post_init__(self) -> None:
        check_weights(self.by, self.beta, self.power)

    def row_weight(self, table: ClassTable) -> Tensor:
        """float32 (C,), summing to C, so that a uniform weight would be 1."""
        return class_weight(table, self.by, self.beta, self.power)
