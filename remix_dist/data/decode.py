"""Bytes to a uint8 image, by the fastest decoder that is installed."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

JPEG_CHECK = 1 << 17
"""Bytes from which a JPEG's header is read first (60 us): at a bit per block, less than that is no bomb."""


@cache
def jpeg_decoder() -> tuple[str, Callable[[Tensor], Any]]:
    """Name and function of the fastest decoder installed: torchcodec, torchvision.io or Pillow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision deprecates its decoders in favour of torchcodec
        try:
            from torchcodec.decoders import decode_jpeg as torchcodec_jpeg

            return "torchcodec", lambda data: torchcodec_jpeg(data, mode="RGB")
        except (ImportError, RuntimeError, OSError):
            pass
        try:
            from torchvision.io import ImageReadMode, decode_jpeg

            return "torchvision", lambda d: decode_jpeg(d, mode=ImageReadMode.RGB, apply_exif_orientation=True)
        except (ImportError, RuntimeError):
            return "pillow", _pillow


def _pillow(data: Tensor) -> Tensor:
    image = _open(data)
    if image.getexif().get(0x0112, 1) != 1:  # turned: upright, as torchcodec does; the call copies, so only then
        image = ImageOps.exif_transpose(image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _open(data: Tensor) -> Image.Image:
    image = Image.open(io.BytesIO(data.numpy().tobytes()))
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(f"{image.width} x {image.height} pixels: a decompression bomb")
    return image


class CorruptImage(Exception):
    """The bytes of a row are not what the index says, or are no image."""


def decode(data: bytes | memoryview) -> Tensor:
    """uint8 (3, H, W) RGB; JPEG by the fastest decoder, the rest by Pillow. CorruptImage on damaged bytes."""
    try:
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if bytes(data[:2]) != b"\xff\xd8":
            return _pillow(tensor)
        if len(data) > JPEG_CHECK:
            _open(tensor)
        return jpeg_decoder()[1](tensor)
    except Exception as error:  # decoders raise RuntimeError, OSError, ValueError, SyntaxError, struct.error ...
        raise CorruptImage(f"{type(error).__name__}: {error}"[:200]) from error
