"""The classifier's last layer: where it is in any backbone, and the cosine head of LDAM."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from remix_dist.types import UserError


class CosineHead(nn.Module):
    """logits_BC = scale * cos(feature_BD, weight_CD); no bias. LDAM's classifier."""

    def __init__(self, features: int, classes: int, scale: float):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(functional.normalize(torch.empty(classes, features).uniform_(-1, 1)))

    def forward(self, features_BD: Tensor) -> Tensor:
        # Half precision would blur logits of size `scale` by a tenth; this product is small, so keep float32.
        with torch.autocast(features_BD.device.type, enabled=False):
            return self.scale * functional.linear(
                functional.normalize(features_BD.float()), functional.normalize(self.weight.float())
            )


def head_name(net: nn.Module, classes: int) -> str:
    """Dotted name of the layer that gives the logits: the last one whose weight has `classes` rows."""
    names = [
        name
        for name, module in net.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and len(module.weight) == classes
    ]
    if not names:
        raise UserError(f"model {type(net).__name__} has no layer with {classes} outputs; pick another")
    return names[-1]


def use_cosine(net: nn.Module, classes: int, scale: float) -> None:
    """Replaces the linear head of `net` by a cosine head of the same input width, in place."""
    if not scale > 0:
        raise UserError(f"head_scale must be positive, got {scale}; LDAM uses 30")
    name = head_name(net, classes)
    head = net.get_submodule(name)
    if not isinstance(head, nn.Linear):
        raise UserError(f"a cosine head cannot replace {name} ({type(head).__name__}); choose another model")
    net.set_submodule(name, CosineHead(head.in_features, classes, scale))
