"""What a shard stores of an image: its own bytes where every decoder reads them, or a smaller JPEG."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from remix_dist.types import UserError

ORIENTATION = 0x0112
SMALL = 64
"""Pixels: an image no larger than this is kept lossless, JPEG would eat it."""


class BadImage(Exception):
    """The image cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Store:
    """How images are stored: `side` None keeps them, else it is the short side that larger ones shrink to."""

    side: int | None = None
    quality: int = 95

    @staticmethod
    def parse(text: str) -> Store:
        """`original` or e.g. `short288q90`; UserError otherwise."""
        if text == "original":
            return Store()
        match = re.fullmatch(r"short(\d+)q(\d+)", text)
        if not match or not (16 <= int(match[1]) <= 4096 and 1 <= int(match[2]) <= 100):
            raise UserError(f"store={text}: `original`, or short<16..4096 px>q<1..100> such as short288q90")
        return Store(int(match[1]), int(match[2]))

    def encode(self, data: bytes) -> bytes:
        """Bytes to store: upright, 8 bit, RGB or gray, JPEG, PNG or lossy WebP. BadImage with the reason."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = Image.open(io.BytesIO(data))
                image.load()
                return self._encode(data, image)
        except UnidentifiedImageError as error:  # its own text holds a memory address
            raise BadImage("not an image that Pillow knows") from error
        except Exception as error:  # damaged files reach every corner of the decoders
            raise BadImage(f"{type(error).__name__}: {error}") from error

    def _encode(self, data: bytes, image: Image.Image) -> bytes:
        lossless = image.format == "PNG" or (image.format == "WEBP" and data[12:16] == b"VP8L")
        usable = _usable(image, lossless)
        if self.side is None:
            if usable:
                return data
            small = max(image.size) <= SMALL
            return _save(_rgb(image), "PNG") if lossless or small else _save(_rgb(image), "JPEG", self.quality, 0)
        rgb = _rgb(image)
        scale = self.side / min(rgb.size)
        if scale < 1:
            width, height = (max(1, round(n * scale)) for n in rgb.size)
            return _save(rgb.resize((width, height), Image.Resampling.BICUBIC), "JPEG", self.quality)
        # Nothing to shrink: a second JPEG generation is worth it only if it saves bytes.
        smaller = _save(rgb, "JPEG", self.quality)
        return data if usable and len(data) <= len(smaller) else smaller


def _usable(image: Image.Image, lossless: bool) -> bool:
    """True if torchcodec, torchvision and Pillow all decode the bytes to the same upright picture."""
    plain = image.mode in ("RGB", "L") and "transparency" not in image.info
    upright = image.getexif().get(ORIENTATION, 1) not in range(2, 9)  # 0 is common and means unknown
    known = image.format in ("JPEG", "MPO", "PNG") or (image.format == "WEBP" and not lossless)
    moving = image.format != "MPO" and getattr(image, "n_frames", 1) > 1
    return plain and upright and known and not moving


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bit: Pillow would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return ImageOps.exif_transpose(image).convert("RGB")


def _save(image: Image.Image, form: str, quality: int = 0, subsampling: int = 2) -> bytes:
    out = io.BytesIO()
    image.info.clear()  # no EXIF, no colour profile: the stored picture is upright RGB
    image.save(out, form, **({} if form == "PNG" else {"quality": quality, "subsampling": subsampling}))
    return out.getvalue()
