"""What a shard stores of an image: the same bytes, or an upright RGB picture, or a reason."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from remix_dist.data.encode import BadImage, Store
from remix_dist.types import UserError

NATURE = Path(__file__).resolve().parents[3] / "shared" / "data" / "nature" / "nature28.tar"
ORIGINAL = Store()


def picture(width=90, height=70, channels=3):
    ramp = np.linspace(0, 255, width * height * channels).reshape(height, width, channels).astype(np.uint8)
    return Image.fromarray(ramp.squeeze())


def packed(image, form, **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def opened(data):
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("form", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {"quality": 80})],
)
def test_what_every_decoder_reads_keeps_its_bytes(form, options):
    data = packed(picture(), form, **options)
    assert ORIGINAL.encode(data) == data


def test_gray_jpeg_keeps_its_bytes():
    data = packed(picture(channels=1), "JPEG")
    assert ORIGINAL.encode(data) == data


def test_cmyk_becomes_an_rgb_jpeg():
    image = opened(ORIGINAL.encode(packed(picture().convert("CMYK"), "JPEG", quality=95)))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (90, 70))
    assert np.abs(np.asarray(image, float) - np.asarray(picture(), float)).mean() < 4


def test_exif_orientation_is_applied_and_gone():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = opened(ORIGINAL.encode(packed(picture(), "JPEG", exif=exif, quality=95)))
    assert image.size == (70, 90) and image.getexif().get(0x0112, 1) == 1
    upright = np.asarray(picture().rotate(-90, expand=True), float)
    assert np.abs(np.asarray(image, float) - upright).mean() < 4


@pytest.mark.parametrize("size", [(90, 70), (8, 8)])
def test_lossless_webp_becomes_png_with_the_same_pixels(size):
    image = opened(ORIGINAL.encode(packed(picture(*size), "WEBP", lossless=True)))
    assert image.format == "PNG" and (np.asarray(image) == np.asarray(picture(*size))).all()


@pytest.mark.parametrize("form", ["BMP", "GIF", "TIFF"])
def test_other_formats_become_jpeg_or_lossless_when_small(form):
    assert opened(ORIGINAL.encode(packed(picture(), form))).format == "JPEG"
    small = picture(32, 32).convert("P").convert("RGB")
    image = opened(ORIGINAL.encode(packed(small, form)))
    assert image.format == "PNG" and (np.asarray(image) == np.asarray(small)).all()


def test_sixteen_bit_and_transparent_png_become_eight_bit_rgb():
    deep = Image.fromarray(np.full((70, 70), 0x8001, np.uint16))
    assert np.unique(np.asarray(opened(ORIGINAL.encode(packed(deep, "PNG"))))).tolist() == [0x80]
    clear = opened(ORIGINAL.encode(packed(picture().convert("RGBA"), "PNG")))
    assert (clear.format, clear.mode) == ("PNG", "RGB")


def test_short_side_shrinks_and_never_grows():
    store = Store.parse("short32q90")
    large = opened(store.encode(packed(picture(90, 70), "PNG")))
    assert (large.format, large.size) == ("JPEG", (41, 32))
    assert opened(store.encode(packed(picture(20, 30), "PNG"))).size == (20, 30)


@pytest.mark.parametrize("text", ["short288", "shortq90", "short8q90", "short288q0", "short288q101", "png"])
def test_unknown_stores_are_refused(text):
    with pytest.raises(UserError, match="short288q90"):
        Store.parse(text)


def test_bad_images_say_why(monkeypatch):
    whole = packed(picture(), "JPEG")
    with pytest.raises(BadImage, match="truncated"):
        ORIGINAL.encode(whole[:-60])
    for data in (b"", b"not an image"):
        with pytest.raises(BadImage, match=r"^not an image that Pillow knows$"):
            ORIGINAL.encode(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # 90 x 70 = 6300 is above, but below twice as much
    with pytest.raises(BadImage, match="DecompressionBombWarning"):
        ORIGINAL.encode(whole)


def test_real_photos_with_odd_headers():
    if not NATURE.exists():
        pytest.skip("../shared/data/nature is absent")
    turned = 0
    with tarfile.open(NATURE) as tar:
        for member in (m for m in tar if m.name.endswith(".jpg")):
            data = tar.extractfile(member).read()
            stored, image = ORIGINAL.encode(data), opened(data)
            if image.getexif().get(0x0112, 1) in (0, 1):  # 14 of the 27 say 0, unknown
                assert stored == data, member.name
                continue
            turned += 1
            upright = ImageOps.exif_transpose(image)
            assert opened(stored).size == upright.size
            assert np.abs(np.asarray(opened(stored), float) - np.asarray(upright, float)).mean() < 3
    assert turned == 1
