"""Resample: draws from the first step on."""

import pytest
import torch

from remix_dist.rebalance.resample import Resample
from remix_dist.rebalance.weights import class_share
from remix_dist.types import ClassTable, UserError

TABLE = ClassTable(torch.tensor([900, 90, 9]))


@pytest.mark.parametrize(
    "knobs", [("effective", None, None), ("effective", 0.99, None), ("inverse", None, None), ("power", None, 0.5)]
)
def test_what_it_gives(knobs):
    by, beta, power = knobs
    method = Resample(by=by, beta=beta, power=power)
    assert torch.equal(method.class_share(TABLE), class_share(TABLE, *knobs))
    assert method.row_weight(TABLE) is None


def test_it_begins_at_once_and_checks_its_knobs():
    assert Resample().deferral == 0
    with pytest.raises(UserError, match=r"rebalance\.beta = 0\.9"):
        Resample(by="inverse", beta=0.9)
