"""torchvision's classification nets by their own names; also the place that says what a family defines."""

from __future__ import annotations

from collections.abc import Callable

import torchvision
from torch import Tensor, nn

AUXILIARY = ("googlenet", "inception_v3")
"""Left out: while training they return a tuple with auxiliary logits, which the one reduction cannot read."""


def names() -> list[str]:
    """The names that `build` takes (the usual ones where that is endless): what a typo is compared with."""
    return [n for n in torchvision.models.list_models(module=torchvision.models) if n not in AUXILIARY]


def accepts(name: str) -> bool:
    """Whether this family builds `name`. No name may belong to two families."""
    return name in names()


def build(name: str, classes: int) -> nn.Module:
    """The net with a linear head for `classes`, random weights from torch's generator, nothing downloaded."""
    return torchvision.models.get_model(name, weights=None, num_classes=classes)


def stages(net: nn.Module) -> list[Callable[[Tensor], Tensor]]:
    """Functions whose composition is net.forward; a mix point lies before each. One entry: input only."""
    if not isinstance(net, torchvision.models.ResNet):
        return [net]

    def first(x: Tensor) -> Tensor:
        return net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))

    def last(x: Tensor) -> Tensor:
        return net.fc(net.avgpool(x).flatten(1))

    return [first, net.layer2, net.layer3, net.layer4, last]


def plain(name: str, classes: int) -> tuple[str, str] | None:
    """Package to import and expression that build the same net without remix_dist; None if none can."""
    return "torchvision", f"torchvision.models.get_model({name!r}, weights=None, num_classes={classes})"
