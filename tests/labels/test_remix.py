"""Remix against Eq. 10 written out in plain Python."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from remix_dist.labels.remix import Remix
from remix_dist.labels.same import Same
from remix_dist.types import UserError, generator

KAPPAS, TAUS = [1.1, 1.2, 3.0, 5.0], [0.0, 0.5, 0.7, 1.0]


def literal(lam, n_a, n_b, kappa, tau):
    """Eq. 10 for one pair."""
    if n_a >= kappa * n_b and lam < tau:
        return 0.0
    if n_b >= kappa * n_a and 1 - lam < tau:
        return 1.0
    return lam


def pairs(kappa, tau, rows=6_000):
    """Random pairs, rich in ties of ratio and lambda."""
    rng = generator(11, "pairs", int(kappa * 1000), int(tau * 1000))
    a, b = rng.integers(1, 1001, (2, rows))
    near = rng.random(rows) < 0.4
    b[near] = np.maximum(1, (a[near] / kappa).round()).astype(int)
    swap = rng.random(rows) < 0.5
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    special = np.array([0, 1, tau, 1 - tau, 0.5, np.nextafter(np.float32(tau), np.float32(0))])
    lam = np.where(rng.random(rows) < 0.3, rng.choice(special, rows), rng.random(rows)).astype(np.float32)
    return torch.from_numpy(lam), torch.from_numpy(a), torch.from_numpy(b)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("tau", TAUS)
def test_equals_the_literal_loop(kappa, tau):
    lam, a, b = pairs(kappa, tau)
    got = Remix(kappa, tau)(lam, a, b)
    assert got.dtype == torch.float32
    expected = [literal(*row, kappa, tau) for row in zip(lam.tolist(), a.tolist(), b.tolist(), strict=True)]
    assert got.tolist() == expected
    assert tau == 0 or (got != lam).any()


@pytest.mark.parametrize("kappa", [1.5, 2, 3, 5])
def test_a_ratio_of_exactly_kappa_counts_and_one_image_less_does_not(kappa):
    b = torch.arange(2, 300, 2)
    a = (b * kappa).long()
    assert all(Fraction(x) == Fraction(kappa) * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    low, high = torch.full(a.shape, 0.25), torch.full(a.shape, 0.75)
    rule = Remix(kappa)
    assert (rule(low, a, b) == 0).all() and (rule(high, b, a) == 1).all()
    assert (rule(low, a - 1, b) == 0.25).all() and (rule(high, b, a - 1) == 0.75).all()


@pytest.mark.parametrize("tau", TAUS)
def test_lambda_of_0_1_and_tau(tau):
    many, few = torch.full((3,), 900), torch.full((3,), 3)
    lam = torch.tensor([0.0, 1.0, tau])
    assert Remix(3, tau)(lam, many, few).tolist()[:2] == [0, 1]
    assert Remix(3, tau)(lam, few, many).tolist()[:2] == [0, 1]
    half = torch.tensor([0.5])
    assert Remix(3, 0.5)(half, many[:1], few[:1]) == 0.5 and Remix(3, 0.5)(half, few[:1], many[:1]) == 0.5


def test_tau_0_and_an_endless_kappa_are_mixup_bit_for_bit():
    lam, a, b = pairs(3.0, 0.5)
    assert torch.equal(Remix(tau=0.0)(lam, a, b), Same()(lam, a, b))
    assert torch.equal(Remix(kappa=1e18, tau=1.0)(lam, a, b), lam)


def test_tau_1_and_kappa_above_1_label_every_mixed_pair_as_the_rarer_class():
    lam, a, b = pairs(3.0, 0.5)
    lam, a, b = (x[(lam > 0) & (lam < 1) & (a != b)] for x in (lam, a, b))
    assert torch.equal(Remix(kappa=1 + 1e-9, tau=1.0)(lam, a, b), (a < b).float())


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("tau", TAUS)
def test_swapping_the_pair_swaps_the_shares(kappa, tau):
    _, a, b = pairs(kappa, tau)
    lam = torch.from_numpy(generator(0, "lam").integers(0, 257, len(a)) / 256).float()  # 1 - lam is exact
    rule = Remix(kappa, tau)
    assert torch.equal(rule(lam, a, b), 1 - rule(1 - lam, b, a))


def test_counts_beyond_float32_are_told_apart():
    b = torch.tensor([2**24 + 1])
    a = 2 * b
    lam = torch.tensor([0.1])
    assert Remix(kappa=2.0)(lam, a, b) == 0 and Remix(kappa=2.0)(lam, a - 1, b) == lam


@pytest.mark.parametrize("kappa", [1, 1.0, 0.5, float("inf"), float("nan"), "3"])
def test_kappa_is_checked(kappa):
    with pytest.raises(UserError, match=r"labels\.kappa = .*must be a number > 1.*the paper uses 3"):
        Remix(kappa=kappa)


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan"), None])
def test_tau_is_checked(tau):
    with pytest.raises(UserError, match=r"labels\.tau = .*\[0, 1\]"):
        Remix(tau=tau)
