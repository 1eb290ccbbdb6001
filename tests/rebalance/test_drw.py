"""DRW: weights from the deferral point on."""

import pytest
import torch

from remix_dist.rebalance.drw import DRW
from remix_dist.rebalance.weights import class_weight
from remix_dist.types import ClassTable, UserError

TABLE = ClassTable(torch.tensor([900, 90, 9]))


@pytest.mark.parametrize(
    "knobs", [("effective", None, None), ("effective", 0.99, None), ("inverse", None, None), ("power", None, 0.5)]
)
def test_what_it_gives(knobs):
    by, beta, power = knobs
    method = DRW(by=by, beta=beta, power=power)
    assert torch.equal(method.row_weight(TABLE), class_weight(TABLE, *knobs))
    assert method.class_share(TABLE) is None


@pytest.mark.parametrize("start", ["decay:2", 0.6])
def test_it_begins_where_told(start):
    assert DRW(start=start).deferral == start


def test_the_default_is_the_second_decay_and_knobs_are_checked():
    assert DRW().deferral == "decay:2"
    with pytest.raises(UserError, match=r"rebalance\.beta = 0\.9"):
        DRW(by="inverse", beta=0.9)
