"""Residual nets for small images (He et al. 2016, section 4.2), as LDAM and Remix train them.

The name is the recipe: `resnet{6n+2}` has three stages of n basic blocks, 16-32-64 channels wide, and
`-w{width}` sets the first stage's width: resnet32 is the paper's, resnet8-w32 has one block per stage and
32-64-128 channels. Depths 50 and 152 without `-w` are torchvision's nets; say resnet50-w16.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

NAME = re.compile(r"resnet([1-9]\d{0,3})(?:-w([1-9]\d{0,3}))?")
TORCHVISION = (50, 152)


class Block(nn.Module):
    """Two 3x3 convolutions; the shortcut has no parameters (option A: every second pixel, zero channels)."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.extra = stride, channels - channels_in

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branch = functional.relu(self.bn1(self.conv1(x_BCHW)))
        branch = self.bn2(self.conv2(branch))
        if self.extra:
            before = self.extra // 2
            x_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
            x_BCHW = functional.pad(x_BCHW, (0, 0, 0, 0, before, self.extra - before))
        return functional.relu(branch + x_BCHW)


class ResNetCifar(nn.Module):
    """Three stages, global average pooling, one linear layer (named as in LDAM's code, so its files load)."""

    def __init__(self, blocks: int, width: int, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(blocks, width, width, 1)
        self.layer2 = self._stage(blocks, width, 2 * width, 2)
        self.layer3 = self._stage(blocks, 2 * width, 4 * width, 2)
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(blocks: int, channels_in: int, channels: int, stride: int) -> nn.Sequential:
        rest = [Block(channels, channels, 1) for _ in range(blocks - 1)]
        return nn.Sequential(Block(channels_in, channels, stride), *rest)

    def first(self, images_BCHW: Tensor) -> Tensor:
        """Stem and first stage."""
        return self.layer1(functional.relu(self.bn1(self.conv1(images_BCHW))))

    def last(self, features_BCHW: Tensor) -> Tensor:
        """Pooling and head: logits_BC."""
        return self.linear(features_BCHW.mean((2, 3)))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.last(self.layer3(self.layer2(self.first(images_BCHW))))


def names() -> list[str]:
    """The depths in common use, for suggestions."""
    return ["resnet8", "resnet8-w32", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]


def accepts(name: str) -> bool:
    """True for resnet{6n+2} and resnet{6n+2}-w{width}, n >= 1."""
    match = NAME.fullmatch(name)
    if match is None or int(match[1]) < 8 or int(match[1]) % 6 != 2:
        return False
    return match[2] is not None or int(match[1]) not in TORCHVISION


def build(name: str, classes: int) -> ResNetCifar:
    """The net that `name` spells, freshly initialised from torch's generator."""
    match = NAME.fullmatch(name)
    assert match is not None
    return ResNetCifar((int(match[1]) - 2) // 6, int(match[2] or 16), classes)


def stages(net: nn.Module) -> list[Callable[[Tensor], Tensor]]:
    """Mix points 1, 2, 3: after each stage."""
    assert isinstance(net, ResNetCifar)
    return [net.first, net.layer2, net.layer3, net.last]


def plain(name: str, classes: int) -> None:
    """No other package builds these nets."""
    return None
