"""A decoded image to its batch slot: crop geometry, flip, and the photometric part on the device.

Every random decision comes from uniform numbers that the caller keys by (seed, step, slot), so the pixels of a
slot are the same at any world size and thread count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
PCA_VALUES = (0.2175, 0.0188, 0.0045)
"""Eigenvectors (as columns) and deviations of ImageNet's RGB values, for the lighting noise."""


@dataclass(frozen=True)
class Augment:
    """What happens to a training image; evaluation resizes to `resize` and cuts the centre."""

    size: int = 224
    """Side of the square that the model sees, pixels."""
    crop: Literal["random", "random_resized", "shift", "center"] = "random"
    """random: short side to `resize`, random `size` crop (the paper's iNaturalist recipe); random_resized:
    random area and aspect ratio; shift: pad by `shift` and crop back (CIFAR); center: no randomness."""
    resize: int = 256
    """Short side before the crop (random, center and evaluation), pixels."""
    min_area: float = 0.08
    """Smallest share of the image that random_resized takes."""
    shift: int = 4
    """Padding of the shift crop, pixels."""
    flip: bool = True
    """Mirror half of the images."""
    jitter: float = 0.0
    """Colour jitter: strength of brightness, contrast and saturation, 0 .. 1; 0 is off."""
    lighting: float = 0.0
    """Standard deviation of the PCA colour noise; 0.1 is usual, 0 is off."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted per channel, on the 0 .. 1 scale."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divided by per channel, on the 0 .. 1 scale."""

    def place(self, image: Tensor, slot: Tensor, noise: np.ndarray | None) -> None:
        """Crop and resize a uint8 CHW image into a (3, size, size) slot; `noise` None means evaluation."""
        _, h, w = image.shape
        if noise is not None and self.crop == "random_resized":
            y, x, bh, bw = self._random_box(h, w, noise)
            cut = _resize(image[:, y : y + bh, x : x + bw], self.size, self.size)
        elif self.crop == "shift":
            cut = image if (h, w) == (self.size, self.size) else _resize(image, self.size, self.size)
            if noise is not None and self.shift:
                dy, dx = (int(u * (2 * self.shift + 1)) for u in noise[20:22])
                cut = F.pad(cut, (self.shift,) * 4)[:, dy : dy + self.size, dx : dx + self.size]
        else:
            side = max(self.resize, self.size)  # the short side; the long one is bounded, or 1 x N takes gigabytes
            h, w = (min(max(round(n * side / min(h, w)), self.size), 32 * side) for n in (h, w))
            u_y, u_x = (0.5, 0.5) if noise is None or self.crop == "center" else noise[20:22]
            y, x = int(u_y * (h - self.size + 1)), int(u_x * (w - self.size + 1))
            cut = _resize(image, h, w)[:, y : y + self.size, x : x + self.size]
        slot.copy_(cut.flip(-1) if noise is not None and self.flip and noise[22] < 0.5 else cut)

    def _random_box(self, h: int, w: int, noise: np.ndarray) -> tuple[int, int, int, int]:
        for t in range(10):  # tries as usual: area and log-uniform ratio, until the box fits
            area = h * w * (self.min_area + noise[2 * t] * (1 - self.min_area))
            ratio = math.exp((2 * noise[2 * t + 1] - 1) * math.log(4 / 3))
            bw, bh = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < bw <= w and 0 < bh <= h:
                return int(noise[20] * (h - bh + 1)), int(noise[21] * (w - bw + 1)), bh, bw
        side = min(h, w)
        return (h - side) // 2, (w - side) // 2, side, side

    def photometric(self, images_BCHW: Tensor, noise_BK: Tensor) -> Tensor:
        """Jitter and lighting on float images (0 .. 255), batched on their device."""
        if self.jitter:
            gain = (1 + self.jitter * (2 * noise_BK[:, :3] - 1))[:, :, None, None, None]
            x = images_BCHW * gain[:, 0]
            x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, gain[:, 1])
            images_BCHW = torch.lerp(x.mean(1, keepdim=True), x, gain[:, 2]).clamp(0, 255)
        if self.lighting:
            # normal draws by Box-Muller from the row's uniform numbers; ImageNet's RGB eigenvectors and values
            normal_B3 = (-2 * torch.log1p(-noise_BK[:, 3:6])).sqrt() * (2 * math.pi * noise_BK[:, 6:9]).cos()
            vectors, values = _constant(PCA_VECTORS, noise_BK.device), _constant(PCA_VALUES, noise_BK.device)
            images_BCHW = images_BCHW + 255 * self.lighting * ((normal_B3 * values) @ vectors.T)[:, :, None, None]
        return images_BCHW

    def normalize(self, images_BCHW: Tensor) -> Tensor:
        """(x / 255 - mean) / std; affine, so it commutes with mixing and comes after it."""
        mean, std = (_constant(v, images_BCHW.device)[:, None, None] * 255 for v in (self.mean, self.std))
        return (images_BCHW - mean) / std


@cache
def _constant(values: tuple, device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)  # once: every copy from the host's memory would stop the device


def _resize(image: Tensor, h: int, w: int) -> Tensor:
    if image.shape[1:] == (h, w):
        return image
    return F.interpolate(image[None], size=(h, w), mode="bilinear", antialias=True, align_corners=False)[0]
