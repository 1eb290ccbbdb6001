"""Class weights and shares against published values and plain Python."""

import csv
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from remix_dist.rebalance.drw import DRW
from remix_dist.rebalance.weights import check_start, check_weights, class_share, class_weight, per_row_weight
from remix_dist.types import ClassTable, UserError

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def long_tail(classes, head, ratio):
    """The usual exponential profile."""
    return ClassTable(torch.tensor([int(head * (1 / ratio) ** (k / (classes - 1.0))) for k in range(classes)]))


C10, C100 = long_tail(10, 5000, 100), long_tail(100, 500, 100)
STEP100 = ClassTable(torch.tensor([500] * 50 + [5] * 50))


def spread(weight):
    return (weight.max() / weight.min()).item()


def mean_over_rows(table, beta):
    """E[w] when rows are drawn naturally."""
    return ((table.count_C * class_weight(table, "effective", beta, None)).sum() / table.count_C.sum()).item()


def test_the_tables_are_the_usual_ones():
    assert C10.count_C.tolist()[:5] == [5000, 2997, 1796, 1077, 645] and C10.count_C.sum() == 12_406
    assert C100.count_C.sum() == 10_847 and C100.count_C.max() == 500 and C100.count_C.min() == 5


def test_published_values_of_cifar():
    assert spread(class_weight(C100, "effective", 0.9999, None)) == pytest.approx(97.6, abs=0.05)
    assert spread(class_weight(C100, "effective", None, None)) == pytest.approx(97.8, abs=0.05)
    assert mean_over_rows(C100, 0.9999) == pytest.approx(0.203, abs=5e-4)
    assert mean_over_rows(STEP100, 0.9999) == pytest.approx(0.040, abs=5e-4)


def test_published_values_of_inat():
    path = SHARED / "inat2018" / "class_counts.csv"
    if not path.exists():
        pytest.skip("needs shared/data/inat2018/class_counts.csv beside the repository")
    with path.open() as file:
        table = ClassTable(torch.tensor([int(row["train_count"]) for row in csv.DictReader(file)]))
    for beta, expected in [(0.9999, 476), (None, 499), (0.999, 316)]:
        assert spread(class_weight(table, "effective", beta, None)) == pytest.approx(expected, abs=0.5)
    assert mean_over_rows(table, 0.9999) == pytest.approx(0.388, abs=5e-4)


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999, 1 - 3 * 2**-40])
def test_effective_numbers_are_exact_where_floats_would_cancel(beta):
    exact = Fraction(beta)
    got = per_row_weight(C10, "effective", beta, None).tolist()
    for n, weight in list(zip(C10.count_C.tolist(), got, strict=True))[-4:]:  # big powers of fractions are slow
        assert weight == pytest.approx(float((1 - exact) / (1 - exact**n)), rel=1e-12, abs=0)


def test_beta_by_default_is_that_of_the_data_and_its_limit_is_the_inverse_count():
    n = int(C10.count_C.sum())
    default = per_row_weight(C10, "effective", None, None)
    torch.testing.assert_close(default, per_row_weight(C10, "effective", (n - 1) / n, None), rtol=1e-9, atol=0)
    limit = class_weight(C10, "effective", float(np.nextafter(1.0, 0.0)), None)
    torch.testing.assert_close(limit, class_weight(C10, "inverse", None, None), rtol=1e-6, atol=0)


@pytest.mark.parametrize("q", [-1.0, 0.0, 0.5, 2])
def test_power_makes_classes_appear_as_counts_to_q(q):
    n = C10.count_C.double()
    share = class_share(C10, "power", None, q)
    assert share.dtype == torch.float64 and share.sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(share / share[0], (n / n[0]) ** q)


def test_uniform_shares():
    for by, power in [("inverse", None), ("power", 0)]:
        torch.testing.assert_close(class_share(C10, by, None, power), torch.full((10,), 0.1, dtype=torch.float64))


@pytest.mark.parametrize("by, power", [("effective", None), ("inverse", None), ("power", 0.5)])
def test_weights_sum_to_the_number_of_classes_and_shares_are_counts_times_weights(by, power):
    weight, share = class_weight(C100, by, None, power), class_share(C100, by, None, power)
    assert weight.dtype == torch.float32 and weight.sum().item() == pytest.approx(100, rel=1e-6)
    drawn = C100.count_C * weight.double()
    torch.testing.assert_close(share, drawn / drawn.sum(), rtol=1e-6, atol=0)


def test_balanced_counts_weigh_one():
    assert (class_weight(ClassTable(torch.full((7,), 40)), "effective", None, None) == 1).all()


def test_an_empty_class_is_named():
    with pytest.raises(UserError, match="class 2 has no training image"):
        per_row_weight(ClassTable(torch.tensor([5, 3, 0, 1])), "effective", None, None)


@pytest.mark.parametrize(
    "by, beta, power, key",
    [
        ("effektive", None, None, "by"),
        ("effective", 0.0, None, "beta"),
        ("effective", 1.0, None, "beta"),
        ("effective", float("nan"), None, "beta"),
        ("effective", "0.9", None, "beta"),
        ("inverse", 0.99, None, "beta"),
        ("power", 0.99, 0.5, "beta"),
        ("power", None, None, "power"),
        ("power", None, 1, "power"),
        ("power", None, 99, "power"),
        ("power", None, float("nan"), "power"),
        ("effective", None, 0.5, "power"),
        ("inverse", None, 0.5, "power"),
    ],
)
def test_values_that_cannot_take_effect_are_refused(by, beta, power, key):
    with pytest.raises(UserError, match=rf"rebalance\.{key} = "):
        check_weights(by, beta, power)


@pytest.mark.parametrize(
    "start", ["decay:0", "decay:", "decay:-1", "decay:1.5", "0.6", "", 1, 1.0, -0.1, float("nan"), None]
)
def test_starts_are_checked(start):
    with pytest.raises(UserError, match=r"rebalance\.start = "):
        check_start(start)
    with pytest.raises(UserError):
        DRW(start=start)


@pytest.mark.parametrize("start", ["decay:1", "decay:12", 0, 0.0, 0.999])
def test_good_starts_pass(start):
    check_start(start)
