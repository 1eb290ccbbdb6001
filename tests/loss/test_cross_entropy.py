"""Cross-entropy against torch's own, row by row; pairs against soft targets."""

import pytest
import torch
import torch.nn.functional as F

from remix_dist.loss.cross_entropy import CrossEntropy
from remix_dist.types import ClassTable, UserError

TABLE = ClassTable(torch.tensor([50, 20, 10, 5, 2, 1, 1]))
SEED = torch.Generator().manual_seed(0)
LOGITS = torch.randn((9, 7), generator=SEED) * 4
LABELS = torch.randint(7, (9, 2), generator=SEED)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_values_and_gradients_of_a_loop(smoothing):
    z, z_loop = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    got = CrossEntropy(smoothing)(z, LABELS, TABLE)
    loop = torch.stack(
        [
            torch.stack([F.cross_entropy(z_loop[b], LABELS[b, k], label_smoothing=smoothing) for k in range(2)])
            for b in range(9)
        ]
    )
    torch.testing.assert_close(got, loop)
    factor = torch.rand((9, 2), generator=torch.Generator().manual_seed(1))
    (got * factor).sum().backward()
    (loop * factor).sum().backward()
    torch.testing.assert_close(z.grad, z_loop.grad)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_pair_is_a_soft_target(smoothing):
    lam = torch.rand((9, 1), generator=torch.Generator().manual_seed(2))
    share = torch.cat([lam, 1 - lam], 1)
    soft = torch.zeros(9, 7).scatter_add(1, LABELS, share)
    got = (share * CrossEntropy(smoothing)(LOGITS, LABELS, TABLE)).sum(1)
    expected = F.cross_entropy(LOGITS, soft, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), "0"])
def test_smoothing_is_checked(value):
    with pytest.raises(UserError, match=r"loss\.label_smoothing = "):
        CrossEntropy(value)
