"""Reweight: weights from the first step on."""

import pytest
import torch

from remix_dist.rebalance.reweight import Reweight
from remix_dist.rebalance.weights import class_weight
from remix_dist.types import ClassTable, UserError

TABLE = ClassTable(torch.tensor([900, 90, 9]))


@pytest.mark.parametrize(
    "knobs", [("effective", None, None), ("effective", 0.99, None), ("inverse", None, None), ("power", None, 0.5)]
)
def test_what_it_gives(knobs):
    by, beta, power = knobs
    method = Reweight(by=by, beta=beta, power=power)
    assert torch.equal(method.row_weight(TABLE), class_weight(TABLE, *knobs))
    assert method.class_share(TABLE) is None


def test_it_begins_at_once_and_checks_its_knobs():
    assert Reweight().deferral == 0
    with pytest.raises(UserError, match=r"rebalance\.beta = 0\.9"):
        Reweight(by="inverse", beta=0.9)
