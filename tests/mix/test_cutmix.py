"""CutMix against a loop over pixels."""

import numpy as np
import pytest
import torch

from remix_dist.mix.cutmix import CutMix
from remix_dist.mix.mixup import draw
from remix_dist.types import generator

ROWS, HEIGHT, WIDTH = 5, 9, 14
# every value names its row, so that the origin of a pixel can be read from the mixed image
IMAGES = torch.arange(ROWS).float()[:, None, None, None].expand(-1, 3, HEIGHT, WIDTH).contiguous()


def literal_box(lam, rng_y, rng_x):
    """The clipped box, from lambda and the centre."""
    half_y, half_x = int(HEIGHT * np.sqrt(1 - lam)) // 2, int(WIDTH * np.sqrt(1 - lam)) // 2
    return (
        max(rng_y - half_y, 0),
        min(rng_y + half_y, HEIGHT),
        max(rng_x - half_x, 0),
        min(rng_x + half_x, WIDTH),
    )


@pytest.mark.parametrize("per_row", [False, True])
def test_pixels_and_lambda(per_row):
    seen = set()
    for step in range(25):
        batch = CutMix(1.0, per_row)(IMAGES, generator(0, "mix", step))
        rng = generator(0, "mix", step)
        lam_B, partner_B = draw(1.0, ROWS, per_row, rng)
        size = ROWS if per_row else None
        y_B, x_B = np.full(ROWS, rng.integers(HEIGHT, size=size)), np.full(ROWS, rng.integers(WIDTH, size=size))
        assert batch.partner_B.tolist() == partner_B.tolist()
        for b in range(ROWS):
            top, bottom, left, right = literal_box(np.float64(lam_B[b]), y_B[b], x_B[b])
            own = 0
            for c, y, x in np.ndindex(3, HEIGHT, WIDTH):
                inside = top <= y < bottom and left <= x < right
                assert batch.images_BCHW[b, c, y, x] == (partner_B[b] if inside else b)
                own += not inside
            assert batch.lam_x_B[b].item() == np.float32(own / (3 * HEIGHT * WIDTH))  # exactly
            seen.add(own)
        assert per_row or len(batch.lam_x_B.unique()) == 1
    assert len(seen) > 10


def test_the_whole_image_may_stay_or_go():
    lams = torch.cat([CutMix(0.05, True)(IMAGES, generator(1, "mix", i)).lam_x_B for i in range(60)])
    assert lams.max() == 1 and lams.min() < 0.3
    batch = CutMix(0.05, True)(IMAGES, generator(1, "mix", 0))
    keep = batch.lam_x_B == 1
    assert torch.equal(batch.images_BCHW[keep], IMAGES[keep])
