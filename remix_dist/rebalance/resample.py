"""Re-sampling (RS)."""

from dataclasses import dataclass

from torch import Tensor

from remix_dist.rebalance.weights import By, check_weights, class_share
from remix_dist.types import ClassTable, Rebalance


@dataclass(frozen=True)
class Resample(Rebalance):
    """Rows drawn by their class weight, from the first step (RS in Remix; class-aware: Shen et al., ECCV 2016)."""

    by: By = "effective"
    """What a row weighs: 1 / effective number of its class, 1 / count (inverse), or count^(power - 1)."""
    beta: float | None = None
    """With `effective` only. Default: (N - 1) / N, N training images, as in Remix; LDAM's code takes 0.9999."""
    power: float | None = None
    """With `power` only, and needed there: classes appear as count^power; 0 uniform, 0.5 sqrt, -1 reverse."""

    def __post_init__(self) -> None:
        check_weights(self.by, self.beta, self.power)

    def class_share(self, table: ClassTable) -> Tensor:
        """float64 (C,), summing to 1."""
        return class_share(table, self.by, self.beta, self.power)
