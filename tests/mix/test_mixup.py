"""Mixup against a loop over pixels; the draws that all mixers share."""

import numpy as np
import pytest
import torch

from remix_dist.mix.cutmix import CutMix
from remix_dist.mix.manifold_mixup import ManifoldMixup
from remix_dist.mix.mixup import Mixup, draw
from remix_dist.types import UserError, generator

IMAGES = torch.from_numpy(generator(3, "test").integers(0, 256, (6, 3, 5, 4))).float()


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("alpha", [0.05, 0.4, 1.0])
def test_every_pixel_is_eq_8(alpha, per_row):
    batch = Mixup(alpha, per_row)(IMAGES, generator(0, "mix", 1))
    assert batch.layer is None
    for b, c, y, x in np.ndindex(*IMAGES.shape):
        lam, other = float(batch.lam_x_B[b]), IMAGES[batch.partner_B[b], c, y, x].item()
        expected = lam * IMAGES[b, c, y, x].item() + (1 - lam) * other
        assert batch.images_BCHW[b, c, y, x].item() == pytest.approx(expected, abs=1e-4)


def test_one_lambda_per_micro_batch_unless_per_row():
    assert all(len(Mixup()(IMAGES, generator(0, "mix", i)).lam_x_B.unique()) == 1 for i in range(20))
    assert len(Mixup(per_row=True)(IMAGES, generator(0, "mix")).lam_x_B.unique()) == len(IMAGES)


@pytest.mark.parametrize("alpha", [0.4, 1.0, 5.0])
def test_lambda_follows_beta(alpha):
    for lam in (
        draw(alpha, 20_000, True, generator(1, "mix"))[0],
        [draw(alpha, 1, False, generator(1, "mix", i))[0][0] for i in range(3_000)],
    ):
        assert np.mean(lam) == pytest.approx(0.5, abs=0.02)
        assert np.var(lam) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_partners_are_permutations_with_one_fixed_point_on_average():
    partners = [draw(1.0, 32, False, generator(0, "mix", i))[1] for i in range(3_000)]
    assert all((np.sort(p) == np.arange(32)).all() for p in partners[:50])
    assert np.mean([(p == np.arange(32)).sum() for p in partners]) == pytest.approx(1, abs=0.1)


def test_lambda_of_exactly_0_and_1_and_a_row_paired_with_itself_change_no_bit():
    rng = generator(0, "mix")
    rows = []
    for i in range(300):  # Beta(1e-3, 1e-3) rounds to exactly 0 or 1 nearly always
        batch = Mixup(1e-3)(IMAGES, generator(0, "mix", i))
        lam = batch.lam_x_B[0].item()
        if lam in (0.0, 1.0):
            rows.append(lam)
            assert torch.equal(batch.images_BCHW, IMAGES if lam == 1 else IMAGES[batch.partner_B])
    assert {0.0, 1.0} == set(rows)
    alone = Mixup()(IMAGES[:1], rng)
    assert torch.equal(alone.images_BCHW, IMAGES[:1])


def test_mixers_share_lambda_and_partners():
    one = Mixup(0.4)(IMAGES, generator(5, "mix", 9))
    deep = ManifoldMixup(0.4, (2,))(IMAGES, generator(5, "mix", 9), mix_points=3)
    cut = CutMix(0.4)(IMAGES, generator(5, "mix", 9))
    assert torch.equal(one.lam_x_B, deep.lam_x_B)
    assert torch.equal(one.partner_B, deep.partner_B) and torch.equal(one.partner_B, cut.partner_B)


@pytest.mark.parametrize("alpha", [0, -1.0, float("inf"), float("nan"), "1"])
@pytest.mark.parametrize("mixer", [Mixup, CutMix, ManifoldMixup])
def test_alpha_is_checked(mixer, alpha):
    with pytest.raises(UserError, match=r"mix\.alpha = .*> 0"):
        mixer(alpha=alpha)
