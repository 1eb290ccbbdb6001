"""The numbers of the report against literal arithmetic."""

import math

import pytest

from remix_dist.report import summary_table
from remix_dist.report.summary import Stat, by_method, difference, stat
from remix_dist.types import UserError


def run(method, top1, **evaluation):
    return {"name": f"{method}-{top1}", "method": method, "class_counts": [5, 2], "eval": {"top1": top1, **evaluation}}


def test_a_row_per_method_in_order_of_first_appearance():
    runs = [run("Remix", 0.8, few=None, balanced=0.5), run("ERM", 0.7, few=0.25), run("Remix", 0.6, balanced=0.52)]
    # mean 0.7, sd sqrt((0.1^2 + 0.1^2) / 1) = 0.141421; balanced mean 0.51, sd sqrt(2 * 0.01^2) = 0.0141421
    assert summary_table(runs).splitlines() == [
        "method           top-1       balanced  many  medium    few  n",
        "-------------------------------------------------------------",
        "Remix   70.00 +- 14.14  51.00 +- 1.41     -       -      -  2",
        "ERM              70.00              -     -       -  25.00  1",
    ]


def test_stat_skips_what_is_missing_and_has_no_spread_for_one():
    assert stat([None, 0.5]) == Stat(0.5, None, 1)
    assert stat([None]) is None
    three = stat([0.1, 0.2, 0.6])
    assert three.mean == pytest.approx(0.3) and three.n == 3
    assert three.sd == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))


def test_a_difference_needs_more_than_two_standard_errors():
    base = Stat(0.50, 0.03, 9)  # the error of the difference to an equal spread: sqrt(2 * 0.0009 / 9) = 0.014142
    assert difference(Stat(0.529, 0.03, 9), base) == "higher"
    assert difference(Stat(0.528, 0.03, 9), base) == ""
    assert difference(Stat(0.471, 0.03, 9), base) == "lower"
    assert difference(Stat(0.9, None, 1), base) == "" and difference(None, base) == ""
    assert difference(base, base) == ""


def test_nothing_and_unlike_data_are_refused():
    with pytest.raises(UserError, match="empty"):
        summary_table([])
    with pytest.raises(UserError, match=r"'other'.*different class counts"):
        by_method([run("ERM", 0.5), {"name": "other", "method": "ERM", "class_counts": [9, 9]}])
