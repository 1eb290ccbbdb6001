"""DRS: draws from the deferral point on."""

import pytest
import torch

from remix_dist.rebalance.drs import DRS
from remix_dist.rebalance.weights import class_share
from remix_dist.types import ClassTable, UserError

TABLE = ClassTable(torch.tensor([900, 90, 9]))


@pytest.mark.parametrize(
    "knobs", [("effective", None, None), ("effective", 0.99, None), ("inverse", None, None), ("power", None, 0.5)]
)
def test_what_it_gives(knobs):
    by, beta, power = knobs
    method = DRS(by=by, beta=beta, power=power)
    assert torch.equal(method.class_share(TABLE), class_share(TABLE, *knobs))
    assert method.row_weight(TABLE) is None


@pytest.mark.parametrize("start", ["decay:2", 0.6])
def test_it_begins_where_told(start):
    assert DRS(start=start).deferral == start


def test_the_default_is_the_second_decay_and_knobs_are_checked():
    assert DRS().deferral == "decay:2"
    with pytest.raises(UserError, match=r"rebalance\.beta = 0\.9"):
        DRS(by="inverse", beta=0.9)
