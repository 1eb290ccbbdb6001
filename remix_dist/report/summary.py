"""Numbers from result records: runs grouped by method, mean and spread, and what may be called a difference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from remix_dist.types import UserError

METRICS = {"top1": "top-1", "balanced": "balanced", "many": "many", "medium": "medium", "few": "few"}
"""Key in a result's `eval` and the heading that readers see."""
GROUPS = ("many", "medium", "few")


@dataclass(frozen=True)
class Stat:
    """Mean over n runs; sd is the sample deviation (n - 1 in the denominator), None for a single run."""

    mean: float
    sd: float | None
    n: int

    def text(self, scale: float = 100.0, sign: str = "+-", digits: int = 2) -> str:
        """'71.86 +- 0.31', or '71.86' for a single run."""
        mean = f"{self.mean * scale:.{digits}f}"
        return mean if self.sd is None else f"{mean} {sign} {self.sd * scale:.{digits}f}"


def stat(values: Iterable[float | None]) -> Stat | None:
    """Mean and spread of the values that are there; None where there is none."""
    there = [float(v) for v in values if v is not None]
    if not there:
        return None
    sd = float(np.std(there, ddof=1)) if len(there) > 1 else None
    return Stat(float(np.mean(there)), sd, len(there))


def metric(runs: Sequence[dict], key: str) -> Stat | None:
    """`stat` of one number of the evaluation over a method's runs."""
    return stat((run.get("eval") or {}).get(key) for run in runs)


def difference(value: Stat | None, base: Stat | None) -> str:
    """'higher' or 'lower' when value and base lie more than two standard errors apart, else ''.

    The error of the difference is sqrt(sd_1^2 / n_1 + sd_2^2 / n_2); a single run has no spread to judge by.
    """
    if value is None or base is None or value.sd is None or base.sd is None:
        return ""
    error = math.sqrt(value.sd**2 / value.n + base.sd**2 / base.n)
    gap = value.mean - base.mean
    return "" if not abs(gap) > 2 * error else "higher" if gap > 0 else "lower"


def by_method(results: Sequence[dict]) -> dict[str, list[dict]]:
    """Runs of each method, methods in order of first appearance; UserError for nothing or for unlike class tables."""
    if not results:
        raise UserError("results: the list is empty, so there is nothing to report; give at least one result.json")
    methods: dict[str, list[dict]] = {}
    for result in results:
        if result.get("class_counts") != results[0].get("class_counts"):
            raise UserError(
                f"results: {results[0].get('name')!r} and {result.get('name')!r} have different class counts, "
                "which no table should compare; write one report for each data set"
            )
        methods.setdefault(str(result.get("method") or result.get("name")), []).append(result)
    return methods


def summary_table(results: Sequence[dict]) -> str:
    """Aligned plain text, one line per method: accuracies in % as mean +- sd over n runs, '-' where there is none."""
    rows = [["method", *METRICS.values(), "n"]]
    for method, runs in by_method(results).items():
        stats = [metric(runs, key) for key in METRICS]
        rows.append([method, *("-" if s is None else s.text() for s in stats), str(len(runs))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Numbers are set flush right, so that the decimal points of one column stand below each other.
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
