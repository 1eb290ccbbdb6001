"""The arrays behind the plots against slow literal oracles."""

import numpy as np
import pytest

from remix_dist.report import series


def train(epochs, losses, rebalanced_from=None):
    late = [rebalanced_from is not None and e >= rebalanced_from for e in epochs]
    records = zip(epochs, losses, late, strict=True)
    return {"history": [{"kind": "train", "epoch": e, "loss": x, "rebalanced": r} for e, x, r in records]}


def test_curve_averages_seeds_where_all_of_them_are():
    found = series.curve([train([1, 2, 3], [3.0, 2.0, 1.0]), train([0, 2], [7.0, 4.0])], "train", "loss")
    # The second run has no record at epoch 1 (half way from 7 to 4 is 5.5) and none after epoch 2.
    assert found.epoch_P.tolist() == [1, 2]
    assert found.mean_P.tolist() == [4.25, 3.0]
    assert found.sd_P == pytest.approx([np.std([3, 5.5], ddof=1), np.std([2, 4], ddof=1)])


def test_curve_counts_what_is_not_finite_and_averages_long_histories():
    found = series.curve([train([1, 2, 3], [3.0, float("nan"), 1.0])], "train", "loss")
    assert found.dropped == 1 and found.mean_P.tolist() == [3.0, 1.0] and found.sd_P is None
    losses = np.random.default_rng(0).random(4 * series.POINTS)
    long = series.curve([train(list(range(len(losses))), losses.tolist())], "train", "loss")
    assert long.mean_P == pytest.approx([losses[i : i + 4].mean() for i in range(0, len(losses), 4)])
    assert series.curve([{}], "train", "loss") is None
    assert series.curve([train([1], [1.0]), train([2], [1.0])], "train", "loss") is None


def test_deferral_is_a_change_within_the_run():
    assert series.deferral([train([1, 2, 3], [1, 1, 1], rebalanced_from=2)]) == 2
    assert series.deferral([train([1, 2, 3], [1, 1, 1], rebalanced_from=0)]) is None
    assert series.deferral([train([1, 2], [1, 1]), {}]) is None


def test_per_class_and_running_mean_leave_gaps_out():
    runs = [{"eval": {"per_class": [1.0, None, None]}}, {"eval": {"per_class": [0.5, 0.25, None]}}, {}]
    assert series.per_class(runs, 3).tolist()[:2] == [0.75, 0.25] and np.isnan(series.per_class(runs, 3)[2])
    value = np.random.default_rng(1).random(23)
    value[[3, 11]] = np.nan
    literal = [np.nanmean(value[max(0, i - 3) : i + 4]) for i in range(23)]
    assert series.running_mean(value, 7) == pytest.approx(literal)
    assert np.isnan(series.running_mean(np.array([np.nan]), 1))


def test_mixed_rows_are_pooled():
    runs = [
        {"mix": {"lam_x_hist": [1] + [0] * 19, "relabelled": 0.5, "mixed_rows": 1}},
        {"mix": {"lam_x_hist": [0, 3] + [0] * 18, "relabelled": 0.1, "mixed_rows": 3}},
        {"mix": {"lam_x_hist": [0] * 20, "relabelled": 0.0, "mixed_rows": 0}},
        {"mix": None},
    ]
    assert series.histogram(runs, "lam_x_hist").tolist()[:3] == [0.25, 0.75, 0]
    share, rows = series.relabelled(runs)
    assert rows == 4 and share == pytest.approx((0.5 + 0.3) / 4)
    assert series.histogram(runs[2:], "lam_x_hist") is None and series.relabelled(runs[2:]) == (0.0, 0)


def test_reliability_weighs_bins_by_rows():
    def bins(*triples):
        keys = ("count", "confidence", "accuracy")
        return {"eval": {"ece_bins": [dict(zip(keys, t, strict=True)) for t in triples]}}

    found = series.reliability([bins((1, 0.2, 0.0), (0, 0.0, 0.0)), bins((3, 0.4, 1.0), (0, 0.0, 0.0)), {}])
    assert found[0] == pytest.approx([1.0, 0.35, 0.75])
    assert found[1, 0] == 0 and np.isnan(found[1, 1:]).all()


def test_spans_only_where_a_group_is_one_stretch():
    result = {"groups": {"many": [2, 0], "medium": [1], "few": []}}
    assert series.spans(result, np.array([2, 0, 1])) == {"many": (0, 1), "medium": (2, 2)}
    assert series.spans(result, np.array([2, 1, 0])) == {"medium": (1, 1)}
