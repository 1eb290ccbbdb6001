"""Decoding and augmentation against literal oracles: pixels, boxes, statistics, damaged bytes."""

import io
import math
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from remix_dist.data import decode as module
from remix_dist.data.augment import Augment
from remix_dist.data.decode import CorruptImage, decode
from remix_dist.types import NOISE, PHOTOMETRIC

LAST = np.float32(1 - 2**-24)  # the largest number that a generator gives
CROPS = ("random", "random_resized", "shift", "center")


def encoded(image, form, **options):
    image.save(out := io.BytesIO(), form, **options)
    return out.getvalue()


def noise(**given):
    """All 0.5 except e.g. n20=0.9."""
    numbers = np.full(NOISE, 0.5, np.float32)
    for name, value in given.items():
        numbers[int(name[1:])] = value
    return numbers


def picture(h, w):
    return torch.from_numpy(np.random.default_rng(h * 10_007 + w).integers(0, 256, (3, h, w), dtype=np.uint8))


def placed(augment, image, numbers):
    slot = torch.full((3, augment.size, augment.size), 7, dtype=torch.uint8)
    assert augment.place(image, slot, numbers) is None
    return slot


@pytest.mark.parametrize("y, x, at", [(0, 0, (0, 0)), (LAST, LAST, (12, 24)), (0.1, 0.97, (1, 24))])
def test_random_crop_is_a_literal_slice_where_nothing_is_resized(y, x, at):
    image = picture(20, 32)
    slot = placed(Augment(size=8, resize=20), image, noise(n20=y, n21=x))
    assert torch.equal(slot, image[:, at[0] : at[0] + 8, at[1] : at[1] + 8])


@pytest.mark.parametrize("h, w, small", [(40, 64, (20, 32)), (10, 14, (20, 28)), (61, 47, (26, 20))])
def test_random_crop_resizes_the_short_side_as_torchvision_does(h, w, small):
    image, augment = picture(h, w), Augment(size=16, resize=20)
    whole = tv.resize(image, list(small), antialias=True)
    y, x = int(0.3 * (small[0] - 15)), int(0.8 * (small[1] - 15))
    assert torch.equal(placed(augment, image, noise(n20=0.3, n21=0.8)), whole[:, y : y + 16, x : x + 16])


@pytest.mark.parametrize("y, x, at", [(0, 0, (0, 0)), (LAST, LAST, (32, 16)), (0.5, 0.25, (16, 4))])
def test_random_resized_crop_takes_the_box_that_its_noise_names(y, x, at):
    image = picture(64, 48)  # a third of its area as a square is 32 x 32
    augment = Augment(size=32, crop="random_resized", min_area=1 / 3)
    slot = placed(augment, image, noise(n0=0, n20=y, n21=x))
    assert torch.equal(slot, image[:, at[0] : at[0] + 32, at[1] : at[1] + 32])
    half = placed(Augment(size=16, crop="random_resized", min_area=1 / 3), image, noise(n0=0, n20=y, n21=x))
    assert torch.equal(half, tv.resize(image[:, at[0] : at[0] + 32, at[1] : at[1] + 32], [16, 16], antialias=True))


def test_random_resized_crop_tries_again_and_ends_in_the_central_square():
    augment = Augment(size=8, crop="random_resized", min_area=0.5)
    image = picture(8, 80)  # a box of half the area never fits
    assert torch.equal(placed(augment, image, noise()), image[:, :, 36:44])
    square = picture(32, 32)  # first try: all the area at 4:3 does not fit; second: half of it at 1:1, 23 x 23
    numbers = noise(n0=LAST, n1=LAST, n2=0, n20=0, n21=0)
    assert torch.equal(placed(augment, square, numbers), tv.resize(square[:, :23, :23], [8, 8], antialias=True))


def test_random_resized_boxes_are_spread_as_documented():
    rng, augment = np.random.default_rng(0), Augment(crop="random_resized", min_area=0.2)
    boxes = np.array([augment._random_box(600, 600, n) for n in rng.random((4000, NOISE), np.float32)])
    area, ratio = boxes[:, 2] * boxes[:, 3] / 600**2, boxes[:, 3] / boxes[:, 2]
    assert 0.199 < area.min() < 0.21 and area.max() > 0.97
    assert abs(np.mean(area[area < 0.7]) - 0.45) < 0.01  # uniform where every box fits
    assert 0.745 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.34 and abs(np.log(ratio).mean()) < 0.01
    assert abs(np.mean(boxes[:, 0] / (601 - boxes[:, 2])) - 0.5) < 0.02


@pytest.mark.parametrize("h, w", [(1, 1), (1, 700), (700, 1), (3, 2), (2, 999), (64, 64), (37, 500), (16, 15)])
@pytest.mark.parametrize("crop", CROPS)
def test_boxes_stay_in_range_for_every_shape_and_noise(crop, h, w):
    augment = Augment(size=16, resize=20, crop=crop)
    image = torch.full((3, h, w), 200, dtype=torch.uint8)
    rng = np.random.default_rng(h + w)
    for numbers in [np.zeros(NOISE, np.float32), np.full(NOISE, LAST), *rng.random((20, NOISE), np.float32), None]:
        slot = placed(augment, image, numbers)
        assert set(slot.unique().tolist()) <= ({0, 200} if crop == "shift" else {200})
        if numbers is not None:
            y, x, bh, bw = augment._random_box(h, w, numbers)
            assert 0 <= y <= y + bh <= h and 0 <= x <= x + bw <= w and bh > 0 and bw > 0


def test_a_thread_of_pixels_is_not_blown_up_to_gigabytes(monkeypatch):
    augment_module = sys.modules[Augment.__module__]
    sizes, resize = [], augment_module._resize
    monkeypatch.setattr(augment_module, "_resize", lambda image, h, w: sizes.append((h, w)) or resize(image, h, w))
    assert placed(Augment(size=16, resize=20), picture(1, 50_000), noise()).shape == (3, 16, 16)
    assert sizes == [(20, 640)]  # not (20, 1_000_000)


@pytest.mark.parametrize("u, moved", [(0, -4), (0.5, 0), (LAST, 4), (0.2, -3)])
def test_shift_pads_with_zeros_and_crops_back(u, moved):
    image = picture(12, 12)
    padded = np.zeros((3, 20, 20), np.uint8)
    padded[:, 4:16, 4:16] = image.numpy()
    slot = placed(Augment(size=12, crop="shift", shift=4), image, noise(n20=u, n21=0.5))
    assert np.array_equal(slot.numpy(), padded[:, 4 + moved : 16 + moved, 4:16])
    slot = placed(Augment(size=12, crop="shift", shift=4), image, noise(n20=0.5, n21=u))
    assert np.array_equal(slot.numpy(), padded[:, 4:16, 4 + moved : 16 + moved])
    assert torch.equal(placed(Augment(size=12, crop="shift", shift=0), image, noise(n20=u)), image)


@pytest.mark.parametrize("crop", CROPS)
def test_flip_mirrors_the_crop_below_one_half(crop):
    image, augment = picture(20, 30), Augment(size=8, resize=20, crop=crop)
    straight, flipped = placed(augment, image, noise(n22=0.5)), placed(augment, image, noise(n22=0.49))
    assert torch.equal(flipped, straight.flip(2)) and not torch.equal(flipped, straight)
    assert torch.equal(placed(Augment(size=8, resize=20, crop=crop, flip=False), image, noise(n22=0.1)), straight)


@pytest.mark.parametrize("crop", ["random", "random_resized", "center"])
def test_evaluation_is_the_centre_crop_without_a_flip(crop):
    augment = Augment(size=8, resize=20, crop=crop)
    image = picture(20, 31)
    assert torch.equal(placed(augment, image, None), image[:, 6:14, 12:20])
    assert torch.equal(placed(augment, image, None), placed(augment, image, None))
    assert torch.equal(placed(Augment(size=20, crop="shift"), picture(20, 20), None), picture(20, 20))
    if crop == "center":
        assert torch.equal(placed(augment, image, noise(n20=0.9, n21=0.1)), image[:, 6:14, 12:20])


@pytest.mark.parametrize("crop", CROPS)
def test_same_noise_gives_same_pixels_and_other_noise_others(crop):
    augment, image = Augment(size=16, resize=20, crop=crop), picture(50, 70)
    one, two = np.random.default_rng(0).random((2, NOISE), np.float32)
    one[22], two[22] = 0.9, 0.1
    assert torch.equal(placed(augment, image, one), placed(augment, image, one.copy()))
    assert not torch.equal(placed(augment, image, one), placed(augment, image, two))


COLOURS = np.zeros((16, 24, 3), np.uint8)
COLOURS[:, :12], COLOURS[:, 12:] = (200, 40, 90), (30, 160, 220)
RGB = Image.fromarray(COLOURS)
EXACT = {
    "png": encoded(RGB, "PNG"),
    "palette": encoded(RGB.quantize(4), "PNG"),
    "rgba": encoded(RGB.convert("RGBA"), "PNG"),
    "bmp": encoded(RGB, "BMP"),
}
JPEGS = {
    "jpeg": encoded(RGB, "JPEG", quality=98, subsampling=0),
    "progressive": encoded(RGB, "JPEG", quality=98, subsampling=0, progressive=True),
    "cmyk": encoded(RGB.convert("CMYK"), "JPEG", quality=98, subsampling=0),
    "tail": encoded(RGB, "JPEG", quality=98, subsampling=0) + b"tail",
}
GRAYS = {"jpeg": encoded(RGB.convert("L"), "JPEG", quality=98), "png": encoded(RGB.convert("L"), "PNG")}


@pytest.fixture(params=["torchcodec", "torchvision", "pillow"])
def decoder(request, monkeypatch):
    """Each decoder of the chain, as if those before it were not installed."""
    module.jpeg_decoder.cache_clear()
    hidden = {"torchcodec": [], "torchvision": ["torchcodec.decoders"]}
    for name in hidden.get(request.param, ["torchcodec.decoders", "torchvision.io"]):
        monkeypatch.setitem(sys.modules, name, None)
    if module.jpeg_decoder()[0] != request.param:
        pytest.skip(f"{request.param} is not installed")
    yield request.param
    module.jpeg_decoder.cache_clear()


@pytest.mark.parametrize("kind", EXACT)
def test_lossless_kinds_decode_to_the_exact_pixels(kind):
    image = decode(EXACT[kind])
    assert image.dtype == torch.uint8 and np.array_equal(image.permute(1, 2, 0).numpy(), COLOURS)


@pytest.mark.parametrize("kind", JPEGS)
def test_jpegs_decode_to_rgb_with_every_decoder(kind, decoder):
    image = decode(memoryview(JPEGS[kind]))
    assert image.dtype == torch.uint8 and image.shape == (3, 16, 24)
    wrong = np.abs(image.permute(1, 2, 0).numpy().astype(int) - COLOURS)
    assert wrong.max() <= 6


@pytest.mark.parametrize("kind", GRAYS)
def test_gray_becomes_three_equal_channels(kind, decoder):
    image = decode(GRAYS[kind])
    assert image.shape == (3, 16, 24) and torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    assert np.abs(image[0].numpy().astype(int) - np.asarray(RGB.convert("L"))).max() <= 3


def test_every_decoder_turns_the_picture_upright(decoder):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    image = decode(encoded(RGB, "JPEG", quality=98, subsampling=0, exif=exif.tobytes()))
    assert image.shape == (3, 24, 16)
    assert np.abs(image[:, 3, 8].numpy().astype(int) - (200, 40, 90)).max() <= 6


PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 80, 3), dtype=np.uint8))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.97])
def test_truncated_images_are_corrupt(form, share, decoder):
    data = encoded(PHOTO, form)
    with pytest.raises(CorruptImage):
        decode(data[: int(share * len(data))])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"not an image", b"\xff\xd8" + bytes(5000), bytes(100)], ids=len)
def test_garbage_is_corrupt_in_one_short_line(data):
    with pytest.raises(CorruptImage) as caught:
        decode(data)
    assert len(str(caught.value)) <= 200 and "\n" not in str(caught.value).strip()


def test_decompression_bombs_are_corrupt(decoder):
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    with pytest.raises(CorruptImage, match=r"(?i)bomb"):
        decode(png + encoded(PHOTO, "PNG")[33:])
    data = bytearray(encoded(PHOTO.resize((400, 400)), "JPEG", quality=100))
    assert len(data) > module.JPEG_CHECK and decode(data).shape == (3, 400, 400)
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 65_000, 65_000)  # 13 GB of pixels, refused before any is made
    with pytest.raises(CorruptImage, match=r"(?i)bomb"):
        decode(bytes(data))


def rows(*numbers):
    return torch.tensor([[*n, *[0.5] * (PHOTOMETRIC - len(n))] for n in numbers], dtype=torch.float32)


def test_photometric_off_changes_nothing():
    images = torch.rand(2, 3, 4, 4) * 255
    assert torch.equal(Augment().photometric(images.clone(), torch.rand(2, PHOTOMETRIC)), images)


def test_jitter_is_brightness_then_contrast_then_saturation():
    x = picture(5, 6)[None].float()
    augment = Augment(jitter=0.4)
    same = augment.photometric(x, rows((0.5, 0.5, 0.5)))
    assert torch.allclose(same, x, atol=1e-3)
    for u, gain in ((0, 0.6), (1, 1.4), (0.75, 1.2)):
        brighter = augment.photometric(x, rows((u, 0.5, 0.5)))
        assert torch.allclose(brighter, (x * gain).clamp(0, 255), atol=1e-3)
        contrast = augment.photometric(x, rows((0.5, u, 0.5)))
        assert torch.allclose(contrast, ((x - x.mean()) * gain + x.mean()).clamp(0, 255), atol=1e-2)
        saturated, gray = augment.photometric(x, rows((0.5, 0.5, u))), x.mean(1, keepdim=True)
        assert torch.allclose(saturated, ((x - gray) * gain + gray).clamp(0, 255), atol=1e-3)


def test_jitter_is_per_row_and_stays_in_range():
    x = picture(5, 6)[None].float().expand(3, 3, 5, 6)
    numbers = torch.rand(3, PHOTOMETRIC, generator=torch.Generator().manual_seed(0))
    out = Augment(jitter=0.8).photometric(x, numbers)
    assert out.min() >= 0 and out.max() <= 255 and out.shape == x.shape
    for b in range(3):
        alone = Augment(jitter=0.8).photometric(x[b : b + 1], numbers[b : b + 1])
        assert torch.allclose(out[b : b + 1], alone, atol=1e-3)
    assert not torch.allclose(out[0], out[1], atol=1)


def test_lighting_adds_one_colour_per_row_with_the_documented_spread():
    numbers = torch.rand(40_000, PHOTOMETRIC, generator=torch.Generator().manual_seed(0))
    out = Augment(lighting=0.1).photometric(torch.full((40_000, 3, 1, 2), 100.0), numbers)
    assert torch.equal(out[..., 0], out[..., 1])
    shift = (out[..., 0, 0] - 100).double() / 255
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    covariance = 0.1**2 * vectors @ np.diag(np.square([0.2175, 0.0188, 0.0045])) @ vectors.T
    assert shift.mean(0).abs().max() < 4 * 0.0124 / 200
    assert np.allclose(np.cov(shift.numpy().T), covariance, rtol=0.04)
    assert math.isclose(float(shift[:, 0].std()), 0.1 * 0.12416, rel_tol=0.02)
    for u in (0.0, float(LAST)):  # finite at the ends of the noise
        assert Augment(lighting=0.1).photometric(torch.zeros(1, 3, 2, 2), torch.full((1, 9), u)).isfinite().all()


def test_normalize_by_hand_and_in_exchange_with_mixing():
    x = torch.tensor([0.0, 255.0, 127.5]).repeat(3, 1)[None, :, None]
    out = Augment(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0)).normalize(x)
    want = [[-1.0, 1.0, 0.0], [-1.0, 3.0, 1.0], [0.0, 0.5, 0.25]]
    assert torch.allclose(out[0, :, 0], torch.tensor(want), atol=1e-6)
    a, b = picture(6, 6)[None].float(), picture(6, 7)[None, :, :, :6].float()
    augment, lam = Augment(), 0.3
    late = augment.normalize(lam * a + (1 - lam) * b)
    assert torch.allclose(late, lam * augment.normalize(a) + (1 - lam) * augment.normalize(b), atol=1e-5)
