"""The plan's promises: exact epochs at any world size, exact class quotas, locality, purity."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from remix_dist.data.plan import Plan
from remix_dist.data.stream import Stream

INAT = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "inat2018" / "class_counts.csv"
COUNT_C = np.array([301, 127, 64, 31, 17, 9, 5, 3, 2, 1])  # 560 rows


def make(count_C=COUNT_C, *, shards=4, seed=1, batch=24, power=None, **options):
    """A plan of a shuffled set; `power`: classes are drawn by count^power."""
    label_N = np.random.default_rng(0).permutation(np.repeat(np.arange(len(count_C)), count_C))
    shard_N = (np.arange(len(label_N)) * shards // len(label_N)).astype(np.int32)
    share_C = None if power is None else count_C.astype(float) ** power
    return Plan(label_N, shard_N, seed=seed, global_batch=batch, share_C=share_C, **options), label_N


def delivered(plan, start, stop, world, micro_batch=4):
    """The rows of the steps start .. stop - 1 by (step, slot), gathered from every rank's own slices."""
    stream = Stream(None, None, plan, None, micro_batch=micro_batch)
    parts = {}
    for rank in range(world):
        for step in range(start, stop):
            for m in stream.share(rank, world):
                assert (step, m) not in parts
                parts[step, m] = plan.batch(step)[m * micro_batch : (m + 1) * micro_batch]
    return np.concatenate([parts[key] for key in sorted(parts)])


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch, rows", [(24, 560), (20, 101), (24, 24), (24, 7)], ids=str)
def test_every_row_once_per_epoch_at_any_world_size(world, batch, rows):
    plan, _ = make(np.array([rows]), batch=batch, shards=min(rows, 4))
    epochs = 24
    order = delivered(plan, 0, plan.steps(epochs), world)
    for epoch in range(epochs):
        assert sorted(order[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert len(order) - epochs * rows == plan.steps(epochs) * batch - epochs * rows < batch


@pytest.mark.parametrize("power", [None, 0.0])
def test_a_change_of_world_size_in_mid_epoch_loses_and_repeats_nothing(power):
    plan, _ = make(power=power)
    whole = delivered(plan, 0, 40, world=1)
    assert np.array_equal(np.concatenate([delivered(plan, 0, 13, 2), delivered(plan, 13, 40, 3)]), whole)
    if power is None:
        assert sorted(whole[:560]) == list(range(560))


def test_ranks_get_equal_work_or_one_micro_batch_more():
    stream = Stream(None, None, make()[0], None, micro_batch=4)
    for world in (1, 2, 3, 4, 5, 6):
        shares = [len(stream.share(rank, world)) for rank in range(world)]
        assert sum(shares) == 6 and max(shares) - min(shares) <= 1 and min(shares) >= 1


@pytest.mark.parametrize("batch", [32, 24, 3])
def test_many_shards_are_read_in_lanes_and_every_row_is_there_once(batch):
    rows, shards, lanes, window = 6010, 300, 4, 8
    plan, _ = make(np.array([rows]), shards=shards, batch=batch, lanes=lanes, window=window)
    for epoch in (0, 1):
        order = plan.epoch(epoch)
        assert sorted(order) == list(range(rows))
        slot_N = (np.arange(rows) + epoch * rows) % batch
        visited = []
        for lane in np.unique(slot_N * lanes // batch):
            shard_L = plan.shard_N[order[slot_N * lanes // batch == lane]]
            visited.append(set(shard_L.tolist()))
            first, last = {}, {}
            for place, shard in enumerate(shard_L.tolist()):
                first.setdefault(shard, place)
                last[shard] = place
            live = [sum(first[s] <= place <= last[s] for s in first) for place in range(0, len(shard_L), 50)]
            assert max(live) <= 2 * window + 2  # of 300: what a node must hold for this lane
            assert np.mean(live) <= window + 2
        union = set().union(*visited)  # lanes share but the shards at their seams
        assert union == set(range(shards)) and sum(map(len, visited)) <= shards + 3 * (window + 1)
    assert not np.array_equal(plan.epoch(0), plan.epoch(1))


def test_few_shards_are_shuffled_as_a_whole():
    plan, _ = make(np.array([2000]), shards=20, lanes=4, window=8)
    assert len(np.unique(plan.shard_N[plan.epoch(0)[:200]])) == 20


@pytest.mark.parametrize("power", [0.0, 0.5, -1.0])
def test_class_quotas_are_exact_and_fractions_are_carried_on(power):
    plan, label_N = make(power=power)
    rate_C = 560 * COUNT_C**power / (COUNT_C**power).sum()
    total_C = np.zeros(10)
    for epoch in range(40):
        drawn_C = np.bincount(label_N[plan.epoch(epoch)], minlength=10)
        assert drawn_C.sum() == 560
        assert (np.abs(drawn_C - rate_C) < 1).all()
        total_C += drawn_C
        assert (np.abs(total_C - (epoch + 1) * rate_C) < 1.5).all()  # does not grow with the epochs


def test_many_classes_drawn_less_than_once_an_epoch_get_their_turn():
    plan, label_N = make(np.full(300, 1), power=0.0, batch=10)
    skewed = Plan(label_N, plan.shard_N, seed=1, global_batch=10, share_C=np.r_[np.full(299, 1.0), 299.0])
    total_C = sum(np.bincount(label_N[skewed.epoch(e)], minlength=300) for e in range(20))
    assert np.abs(total_C - 20 * np.r_[np.full(299, 300 / 598), 150]).max() < 1.5


@pytest.mark.parametrize("power", [0.0, 0.5, -1.0])
def test_rows_of_a_class_are_used_equally_often(power):
    plan, label_N = make(power=power)
    used_N = np.zeros(560, int)
    drawn = []  # of the class of 17 rows
    for epoch in range(7):
        used_N += np.bincount(plan.epoch(epoch), minlength=560)
        drawn += [r for r in plan.epoch(epoch) if label_N[r] == 4]
        for c in range(10):
            assert np.ptp(used_N[label_N == c]) <= 1
    if power == 0.0:  # 7 * 56 draws of each class
        assert used_N.min() == 1
        passes = [tuple(drawn[i : i + 17]) for i in range(0, 17 * 20, 17)]
        assert all(len(set(p)) == 17 for p in passes) and len(set(passes)) == 20


def test_class_draws_come_without_bursts():
    count_C = np.array([3000, 900, 400, 90, 10])
    plan, label_N = make(count_C, power=0.5)
    slack = len(count_C) + 1  # draws that other classes may be early or late by
    label_T = label_N[np.concatenate([plan.epoch(e) for e in range(3)])]
    for c, quota in enumerate(np.minimum(plan.quotas(0)[0], plan.quotas(1)[0])):
        interval, at = 4400 / quota, np.flatnonzero(label_T == c)
        assert np.diff(at).max() <= 2 * interval + 2 * slack
        for k in (1, 4):  # k intervals never hold more than k + 2 draws, give and take the slack
            assert (at[k + 2 :] - at[: -k - 2]).min() >= k * interval - 2 * slack


@pytest.mark.parametrize("start", [0, 2])
def test_deferral_visits_each_row_once_before_and_draws_by_share_after(start):
    plan, label_N = make(power=0.0, balanced_from=start)
    plain, _ = make()
    for epoch in range(4):
        assert plan.balanced(epoch) == (epoch >= start)
        drawn_C = np.bincount(label_N[plan.epoch(epoch)], minlength=10)
        assert drawn_C.tolist() == (COUNT_C.tolist() if epoch < start else [56] * 10)
        assert np.array_equal(plan.epoch(epoch), plain.epoch(epoch)) == (epoch < start)
    first = plan.steps(start)  # the batch that reaches over the border belongs to the old epoch
    assert first == math.ceil(start * 560 / 24)
    after = np.bincount(label_N[np.concatenate([plan.batch(s) for s in range(first, first + 23)])], minlength=10)
    assert np.abs(after - 23 * 2.4).max() <= 12


def test_steps_is_the_ceiling_and_survives_binary_fractions():
    plan, _ = make(np.array([100]), batch=30)
    assert [plan.steps(e) for e in (0, 0.25, 0.3, 1, 3, 0.1 + 0.2, 9)] == [0, 1, 1, 4, 10, 1, 30]
    assert make(np.array([7]), batch=24)[0].steps(1) == 1


@pytest.mark.parametrize("options", [{}, {"power": 0.0}, {"shards": 100, "lanes": 2, "window": 3}], ids=str)
def test_the_plan_is_a_pure_function_of_its_arguments(options):
    plan, other = make(**options)[0], make(seed=2, **options)[0]
    straight = [plan.epoch(e) for e in range(8)]
    assert np.array_equal(make(**options)[0].epoch(7), straight[7])
    assert np.array_equal(make(**options)[0].batch(150), np.concatenate(straight)[150 * 24 : 151 * 24])
    assert not any(np.array_equal(straight[7], e) for e in straight[:7])
    assert not np.array_equal(other.epoch(7), straight[7])
    assert plan.batch(3).dtype == np.int64 and plan.batch(3).shape == (24,)


@pytest.mark.skipif(not INAT.exists(), reason="no class counts of iNaturalist 2018 at ../shared/data")
def test_inaturalist_2018_in_full():
    with open(INAT, encoding="utf-8") as file:
        count_C = np.array([int(row["train_count"]) for row in csv.DictReader(file)])
    plan, label_N = make(count_C, shards=1700, batch=512, power=0.0, balanced_from=1)
    assert np.array_equal(np.sort(plan.epoch(0)), np.arange(437_513))
    orders = [plan.epoch(e) for e in (1, 2)]
    for order in orders:
        drawn_C = np.bincount(label_N[order], minlength=8142)
        assert (drawn_C.min(), drawn_C.max()) == (53, 54)
        assert order.dtype == np.int64 and order.nbytes == 8 * 437_513
    used_N = np.bincount(np.concatenate(orders), minlength=437_513)
    by_class = np.argsort(label_N, kind="stable")
    starts = np.cumsum(count_C) - count_C
    most, least = (f.reduceat(used_N[by_class], starts) for f in (np.maximum, np.minimum))
    assert (most - least).max() <= 1
