"""The cosine head against its formula, and where the head is found."""

import math

import pytest
import torch
from torch import nn

from remix_dist.model import build_model
from remix_dist.model.heads import CosineHead, head_name
from remix_dist.types import UserError

torch.set_num_threads(1)


def test_cosine_logits_by_hand():
    head = CosineHead(2, 3, 30.0)
    head.weight.data = torch.tensor([[2.0, 0.0], [0.0, 0.5], [-1.0, -1.0]])
    logits = head(torch.tensor([[3.0, 4.0]]))
    expected = [30 * 0.6, 30 * 0.8, 30 * -1.4 / math.sqrt(2)]
    assert logits[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert [name for name, _ in head.named_parameters()] == ["weight"]  # no bias


def test_cosine_head_starts_on_the_unit_sphere_and_ignores_lengths():
    head = CosineHead(16, 5, 10.0)
    assert torch.allclose(head.weight.norm(dim=1), torch.ones(5))
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(7 * x), head(x))


def test_half_precision_does_not_blur_the_cosine():
    head, x = CosineHead(64, 5, 30.0), torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(x)
    assert logits.dtype == torch.float32 and torch.equal(logits, head(x.float()))


@pytest.mark.parametrize(
    "name, where",
    [("resnet8", "linear"), ("resnet18", "fc"), ("convnext_tiny", "classifier.2"), ("vit_b_32", "heads.head")],
)
def test_the_head_is_found_and_replaced(name, where):
    model = build_model(name, 7, head_scale=3.0)
    assert head_name(model.net, 7) == where
    assert isinstance(model.net.get_submodule(where), CosineHead)
    model.eval()
    logits = model(torch.rand(2, 3, 224, 224) if name == "vit_b_32" else torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 7) and logits.abs().max() <= 3.0 + 1e-5


def test_what_cannot_be_a_cosine_head_is_refused():
    with pytest.raises(UserError, match=r"classifier.1 \(Conv2d\)"):
        build_model("squeezenet1_1", 7, head_scale=30.0)
    with pytest.raises(UserError, match="head_scale must be positive, got -1"):
        build_model("resnet8", 7, head_scale=-1)
    with pytest.raises(UserError, match="no layer with 9 outputs"):
        head_name(nn.Sequential(nn.Linear(3, 4)), 9)
