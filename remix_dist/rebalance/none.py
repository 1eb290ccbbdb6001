"""No rebalancing."""

from dataclasses import dataclass
from typing import ClassVar

from remix_dist.types import Rebalance


@dataclass(frozen=True)
class NoRebalance(Rebalance):
    """Every row once per epoch, every label's loss as it is."""

    acts: ClassVar[bool] = False
