"""The long-tailed subsets have the published counts and the published draw."""

import numpy as np
import pytest

from remix_dist.data.longtail import LongTail
from remix_dist.types import UserError


@pytest.mark.parametrize(
    ("kind", "ratio", "images", "classes", "total"),
    [
        ("exp", 100, 50_000, 10, 12_406),
        ("exp", 10, 50_000, 10, 20_431),
        ("step", 100, 50_000, 10, 25_250),
        ("step", 10, 50_000, 10, 27_500),
        ("exp", 100, 50_000, 100, 10_847),
        ("exp", 10, 50_000, 100, 19_573),
        ("step", 100, 50_000, 100, 25_250),
        ("step", 10, 50_000, 100, 27_500),
        ("exp", 100, 90_000, 10, 22_332),
        ("exp", 200, 90_000, 10, 20_168),
    ],
)
def test_totals_are_the_published_ones(kind, ratio, images, classes, total):
    assert sum(LongTail(kind, ratio).counts(images // classes, classes)) == total


def test_cifar10_ratio_100_counts():
    assert LongTail("exp", 100).counts(5_000, 10) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_the_draw_is_the_seeded_shuffle_of_each_class_in_turn():
    label_N = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 30))
    rng, expected = np.random.RandomState(0), []
    for k, n in enumerate([30, 13, 6, 3]):
        rows = np.where(label_N == k)[0]
        rng.shuffle(rows)
        expected += rows[:n].tolist()
    assert LongTail("exp", 10).rows(label_N, 4).tolist() == expected


def test_a_larger_ratio_is_a_subset():
    label_N = np.tile(np.arange(10), 200)
    small, large = (set(LongTail("exp", ratio).rows(label_N, 10).tolist()) for ratio in (100, 10))
    assert small < large


def test_a_carried_draw_is_read_as_is():
    label_N, rank_N = np.array([0, 1, 0, 1, 0]), np.array([0, 0, 1, 1, 2])
    assert LongTail("exp", 50).ranked_rows(label_N, rank_N, {"50": [2, 1]}).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="ratio 50 only"):
        LongTail("exp", 20).ranked_rows(label_N, rank_N, {"50": [2, 1]})
    with pytest.raises(UserError, match="full training set"):
        LongTail("step", 50).ranked_rows(label_N, rank_N, {"50": [2, 1]})


def test_a_ratio_that_empties_a_class_is_refused():
    with pytest.raises(UserError, match="class 4 would have no image"):
        LongTail("exp", 1000).rows(np.tile(np.arange(10), 20), 10)
    with pytest.raises(UserError, match="above 1"):
        LongTail("exp", 1)
