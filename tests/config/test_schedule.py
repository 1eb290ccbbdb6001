"""Learning rates and deferral points against literal tables."""

import math

import numpy as np
import pytest

from remix_dist.config.run import Optim, Schedule
from remix_dist.config.schedule import deferral_epoch, learning_rate
from remix_dist.data.plan import Plan
from remix_dist.rebalance.drs import DRS
from remix_dist.rebalance.drw import DRW
from remix_dist.rebalance.none import NoRebalance
from remix_dist.rebalance.resample import Resample
from remix_dist.rebalance.reweight import Reweight
from remix_dist.types import UserError

STEP = Schedule(epochs=9, decays=(3, 6), factor=0.1)


def rates(schedule, steps, per_epoch=10, lr=0.2):
    return [learning_rate(s, per_epoch, Optim(lr=lr), schedule) for s in steps]


def test_step_decays_epoch_by_epoch():
    table = [0.2] * 3 + [0.02] * 3 + [0.002] * 3
    assert rates(STEP, range(0, 90, 10)) == pytest.approx(table, rel=1e-12)
    assert rates(STEP, range(9, 90, 10)) == pytest.approx(table, rel=1e-12)  # and at each epoch's last step
    assert rates(Schedule(epochs=9, decays=(6, 3), factor=0.5), [29, 30, 60]) == pytest.approx([0.2, 0.1, 0.05])
    assert rates(Schedule(epochs=9, decays=()), [0, 89]) == [0.2, 0.2]


@pytest.mark.parametrize("rows, batch", [(329, 24), (437_513, 256), (10_847, 128), (470, 47), (101, 7)])
def test_a_decay_acts_at_the_first_step_that_begins_in_its_epoch(rows, batch):
    """That step is where the plan's later epoch begins too, so LR decay and deferral agree."""
    plan = Plan(np.zeros(rows, np.int64), np.zeros(rows, np.int64), seed=0, global_batch=batch)
    for decay in (1, 3, 7):
        first = plan.steps(decay)
        assert (first - 1) * batch < decay * rows <= first * batch
        schedule = Schedule(epochs=9, decays=(decay,))
        before, after = rates(schedule, [first - 1, first], per_epoch=rows / batch)
        assert before == 0.2 and after == pytest.approx(0.02)


def test_cosine_goes_to_zero_at_the_end():
    table = [0.2, 0.17071067811865, 0.1, 0.02928932188134, 0.0]
    assert rates(Schedule(epochs=4, kind="cosine"), range(0, 50, 10)) == pytest.approx(table, abs=1e-12)
    late = rates(Schedule(epochs=4, kind="cosine"), [39, 40, 60])
    assert 0 < late[0] < 1e-3 and late[1] == late[2] == 0.0


def test_warm_up_rises_step_by_step_and_then_hands_over():
    table = [0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2]
    warm = Schedule(epochs=9, decays=(3, 6), warmup=1)
    assert rates(warm, range(10)) == pytest.approx(table)
    assert rates(warm, [10, 29, 30]) == pytest.approx([0.2, 0.2, 0.02])
    cosine = Schedule(epochs=5, kind="cosine", warmup=1)
    assert rates(cosine, [4, 9, 10, 30, 50]) == pytest.approx([0.1, 0.2, 0.2, 0.1, 0.0])
    assert rates(Schedule(epochs=9, decays=(), warmup=0.25), [0, 1, 2, 3]) == pytest.approx([0.08, 0.16, 0.2, 0.2])
    assert all(math.isfinite(r) and r > 0 for r in rates(warm, range(90), per_epoch=10.7))


@pytest.mark.parametrize("method", [DRW, DRS])
@pytest.mark.parametrize("start, epoch", [("decay:1", 3), ("decay:2", 6), (0.5, 4), (0.8, 7), (0, 0), (1 / 3, 3)])
def test_the_deferral_point_is_a_decay_or_a_fraction(method, start, epoch):
    assert deferral_epoch(method(start=start), STEP) == epoch


def test_decays_count_in_time_whatever_their_order():
    assert deferral_epoch(DRW(start="decay:2"), Schedule(epochs=200, decays=(180, 160))) == 180


def test_methods_without_deferral_act_from_the_start():
    for method in (NoRebalance(), Reweight(), Resample()):
        assert deferral_epoch(method, STEP) == 0
        assert deferral_epoch(method, Schedule(epochs=0.5, decays=())) == 0


@pytest.mark.parametrize(
    "start, schedule, words",
    [
        ("decay:3", STEP, "rebalance.start = 'decay:3'.* 2 decays; give a fraction"),
        ("decay:1", Schedule(epochs=9, kind="cosine"), "rebalance.start = 'decay:1'.*cosine schedule has no decays"),
        (0.99, STEP, r"rebalance.start = 0.99: begins at epoch 9 of 9, so it never acts"),
        (0.6, Schedule(epochs=0.9, decays=()), "begins at epoch 1 of 0.9, so it never acts"),
    ],
)
def test_a_start_that_never_comes_is_an_error(start, schedule, words):
    with pytest.raises(UserError, match=words):
        deferral_epoch(DRW(start=start), schedule)
