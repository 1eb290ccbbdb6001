"""Focal loss against its formula in float64, and where that formula breaks."""

import pytest
import torch

from remix_dist.loss.cross_entropy import CrossEntropy
from remix_dist.loss.focal import Focal
from remix_dist.types import ClassTable, UserError

TABLE = ClassTable(torch.tensor([50, 20, 10, 5, 2]))
SEED = torch.Generator().manual_seed(0)
LOGITS = torch.randn((8, 5), generator=SEED) * 3
LABELS = torch.randint(5, (8, 2), generator=SEED)


@pytest.mark.parametrize("gamma", [0.2, 0.5, 1.0, 2.0, 3])
def test_values_and_gradients_of_a_loop(gamma):
    z, z_loop = LOGITS.clone().requires_grad_(), LOGITS.double().requires_grad_()
    got = Focal(gamma)(z, LABELS, TABLE)
    total = 0.0
    for b in range(8):
        for k in range(2):
            p = torch.exp(z_loop[b, LABELS[b, k]]) / torch.exp(z_loop[b]).sum()
            value = (1 - p) ** gamma * -torch.log(p)
            assert got[b, k].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6)
            total = total + (b + 1) * (k + 1) * value
    total.backward()
    (got * torch.arange(1, 9)[:, None] * torch.tensor([1, 2])).sum().backward()
    torch.testing.assert_close(z.grad.double(), z_loop.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 5.0])
def test_certain_rows_have_a_flat_zero_and_no_nan(gamma):
    # p rounds to 1, to just below 1, to 0
    z = torch.tensor([[200.0, 0, 0], [17.0, 0, 0], [16.0, 0, 0], [0.0, 300, 0], [-1e4, 1e4, 0]], requires_grad=True)
    loss = Focal(gamma)(z, torch.zeros((5, 1), dtype=torch.long), TABLE)
    loss.sum().backward()
    assert loss.isfinite().all() and z.grad.isfinite().all()
    assert loss[0] == 0 and z.grad[0].abs().max() == 0
    assert loss[4].item() == 2e4


def test_gamma_0_is_cross_entropy():
    torch.testing.assert_close(Focal(0.0)(LOGITS, LABELS, TABLE), CrossEntropy()(LOGITS, LABELS, TABLE))


@pytest.mark.parametrize("gamma", [-1, float("inf"), float("nan"), "1"])
def test_gamma_is_checked(gamma):
    with pytest.raises(UserError, match=r"loss\.gamma = "):
        Focal(gamma)
