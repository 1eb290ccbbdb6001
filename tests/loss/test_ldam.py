"""LDAM against cross-entropy of explicitly shifted logits, label by label, in float64."""

import pytest
import torch
import torch.nn.functional as F

from remix_dist.loss.cross_entropy import CrossEntropy
from remix_dist.loss.ldam import LDAM
from remix_dist.types import ClassTable, UserError

COUNTS = [1000, 300, 81, 16, 2]
TABLE = ClassTable(torch.tensor(COUNTS))
SEED = torch.Generator().manual_seed(0)
COSINES = torch.rand((12, 5), generator=SEED) * 2 - 1
LABELS = torch.randint(5, (12, 2), generator=SEED)


def literal(z, labels, max_margin, scale):
    """(B, K) in z's dtype: the margin leaves the label's logit, then plain cross-entropy."""
    margin = [max_margin * (min(COUNTS) / n) ** 0.25 for n in COUNTS]
    rows = []
    for b in range(len(z)):
        for y in labels[b].tolist():
            shift = torch.tensor([scale * margin[c] if c == y else 0.0 for c in range(5)], dtype=z.dtype)
            rows.append(F.cross_entropy(z[b] - shift, torch.tensor(y)))
    return torch.stack(rows).view(labels.shape)


@pytest.mark.parametrize("max_margin, scale", [(0.5, 30.0), (0.3, 10), (1.0, 64.0), (0.0, 30.0)])
def test_values_and_gradients_of_a_loop(max_margin, scale):
    z = (scale * COSINES).requires_grad_()
    z_loop = z.detach().double().requires_grad_()
    got, loop = LDAM(max_margin, scale)(z, LABELS, TABLE), literal(z_loop, LABELS, max_margin, scale)
    torch.testing.assert_close(got.double(), loop, rtol=1e-5, atol=1e-6)
    factor = torch.rand((12, 2), generator=torch.Generator().manual_seed(1))
    (got * factor).sum().backward()
    (loop * factor).sum().backward()
    torch.testing.assert_close(z.grad.double(), z_loop.grad, rtol=1e-4, atol=1e-6)


def test_sure_and_tied_rows_keep_their_digits():
    # the largest logit is the label's: log(1 - p) from p alone would have lost every digit
    z = torch.tensor(
        [[30.0, 0, 0, 0, 0], [25.0, 12, 0, 0, -30], [0.0, 0, 0, 0, 0], [7.0, 7, 0, 0, 0], [-30.0, 30, 0, 0, 0]]
    )
    z_leaf = z.clone().requires_grad_()
    labels = torch.tensor([[0, 1]] * 5)
    got, expected = LDAM(1.0, 30.0)(z_leaf, labels, TABLE), literal(z.double(), labels, 1.0, 30.0)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)
    got.sum().backward()
    assert z_leaf.grad.isfinite().all()


def test_without_margin_it_is_cross_entropy_of_the_scaled_logits():
    z = 30 * COSINES
    torch.testing.assert_close(LDAM(0.0)(z, LABELS, TABLE), CrossEntropy()(z, LABELS, TABLE), rtol=1e-5, atol=1e-6)


def test_the_rarest_class_has_the_full_margin_and_the_head_gets_the_scale():
    assert LDAM(scale=16.0).head_scale == 16.0
    z = torch.full((1, 5), 0.0)
    z[0, 4] = 30 * 0.5  # exactly the margin above the rest
    assert LDAM(0.5, 30.0)(z, torch.tensor([[4]]), TABLE).item() == pytest.approx(torch.tensor(5.0).log().item())


@pytest.mark.parametrize(
    "knob, value", [("max_margin", -0.1), ("max_margin", "1"), ("scale", 0), ("scale", float("inf"))]
)
def test_knobs_are_checked(knob, value):
    with pytest.raises(UserError, match=rf"loss\.{knob} = "):
        LDAM(**{knob: value})
