"""Deferred re-weighting (DRW)."""

from dataclasses import dataclass

from torch import Tensor

from remix_dist.rebalance.weights import By, check_start, check_weights, class_weight
from remix_dist.types import ClassTable, Rebalance


@dataclass(frozen=True)
class DRW(Rebalance):
    """Plain training, then class weights from `start` on (Cao et al., NeurIPS 2019, Algorithm 1)."""

    start: float | str = "decay:2"
    """Where it begins: at the K-th LR decay ("decay:K"; Remix: the second) or at a fraction of the run."""
    by: By = "effective"
    """What a row weighs: 1 / effective number of its class, 1 / count (inverse), or count^(power - 1)."""
    beta: float | None = None
    """With `effective` only. Default: (N - 1) / N, N training images, as in Remix; LDAM's code takes 0.9999."""
    power: float | None = None
    """With `power` only, and needed there: classes appear as count^power; 0 uniform, 0.5 sqrt, -1 reverse."""

    def __post_init__(self) -> None:
        check_start(self.start)
        check_weights(self.by, self.beta, self.power)

    @property
    def deferral(self) -> str | float:
        """`start`."""
        return self.start

    def row_weight(self, table: ClassTable) -> Tensor:
        """float32 (C,), summing to C, so that a uniform weight would be 1."""
        return class_weight(table, self.by, self.beta, self.power)
