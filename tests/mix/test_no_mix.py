"""NoMix leaves everything alone."""

import torch

from remix_dist.mix.none import NoMix
from remix_dist.types import generator


def test_images_pass_and_nothing_is_drawn():
    images, rng = torch.rand((4, 3, 2, 2), generator=torch.Generator().manual_seed(0)), generator(0, "mix")
    batch = NoMix()(images, rng)
    assert batch.images_BCHW is images and batch.partner_B is None and batch.layer is None
    assert batch.lam_x_B.tolist() == [1.0] * 4
    assert not NoMix.mixes
    assert rng.random() == generator(0, "mix").random()
