"""NoRebalance asks for nothing."""

import torch

from remix_dist.rebalance.none import NoRebalance
from remix_dist.types import ClassTable


def test_nothing():
    table = ClassTable(torch.tensor([9, 1]))
    method = NoRebalance()
    assert method.row_weight(table) is None and method.class_share(table) is None and method.deferral == 0
