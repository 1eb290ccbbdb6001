"""Manifold Mixup's plans."""

from collections import Counter

import pytest
import torch

from remix_dist.mix.manifold_mixup import ManifoldMixup
from remix_dist.mix.mixup import Mixup
from remix_dist.types import UserError, generator

IMAGES = torch.from_numpy(generator(3, "test").random((6, 3, 4, 4), dtype="f4"))


def test_layers_are_drawn_evenly_and_say_where_to_mix():
    plans = Counter()
    for i in range(1_200):
        batch = ManifoldMixup()(IMAGES, generator(0, "mix", i), mix_points=4)
        plans[batch.layer] += 1
        assert batch.layer is None or torch.equal(batch.images_BCHW, IMAGES)
    assert set(plans) == {None, 1, 2} and min(plans.values()) > 330


def test_layer_0_is_mixup_bit_for_bit():
    deep = ManifoldMixup(0.4, (0,))(IMAGES, generator(0, "mix", 7))
    flat = Mixup(0.4)(IMAGES, generator(0, "mix", 7))
    assert deep.layer is None and torch.equal(deep.images_BCHW, flat.images_BCHW)


def test_a_layer_that_the_backbone_lacks_is_named():
    with pytest.raises(UserError, match=r"mix\.layers = \(0, 3\).*0 to 2"):
        ManifoldMixup(layers=(0, 3))(IMAGES, generator(0, "mix"), mix_points=3)


@pytest.mark.parametrize("layers", [(), (0, 0), (-1,), (1.0,), [0, 1], "01"])
def test_layers_are_checked(layers):
    with pytest.raises(UserError, match=r"mix\.layers"):
        ManifoldMixup(layers=layers)
