"""What the plots draw, as arrays: curves and histograms of a method, averaged or pooled over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from remix_dist.report.summary import GROUPS

POINTS = 300
"""Longest curve drawn: more records than this are averaged in runs of equal length, never skipped."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A metric against the epoch; sd_P is None for a single seed; `dropped` values were not finite."""

    epoch_P: np.ndarray
    mean_P: np.ndarray
    sd_P: np.ndarray | None
    dropped: int


def _track(run: dict, kind: str, key: str) -> tuple[np.ndarray, int]:
    records = [r for r in run.get("history") or () if r.get("kind") == kind and r.get(key) is not None]
    pairs = np.array([(r["epoch"], r[key]) for r in records], dtype=np.float64).reshape(-1, 2)
    finite = pairs[np.isfinite(pairs).all(axis=1)]
    finite = finite[np.argsort(finite[:, 0], kind="stable")]
    dropped = len(pairs) - len(finite)
    if len(finite) > POINTS:
        starts = np.linspace(0, len(finite), POINTS, endpoint=False).astype(int)
        finite = np.add.reduceat(finite, starts) / np.diff([*starts, len(finite)])[:, None]
    return finite, dropped


def curve(runs: Sequence[dict], kind: str, key: str) -> Curve | None:
    """Mean and sd over the seeds, at the first seed's epochs as far as all seeds reach; None without records."""
    found = [_track(run, kind, key) for run in runs]
    tracks, dropped = [t for t, _ in found if len(t)], sum(d for _, d in found)
    if not tracks:
        return None
    if len(tracks) == 1:
        return Curve(tracks[0][:, 0], tracks[0][:, 1], None, dropped)
    epoch_P = tracks[0][:, 0]
    epoch_P = epoch_P[(epoch_P >= max(t[0, 0] for t in tracks)) & (epoch_P <= min(t[-1, 0] for t in tracks))]
    value_SP = np.stack([np.interp(epoch_P, t[:, 0], t[:, 1]) for t in tracks])
    return Curve(epoch_P, value_SP.mean(0), value_SP.std(0, ddof=1), dropped) if len(epoch_P) else None


def deferral(runs: Sequence[dict]) -> float | None:
    """Epoch from which the runs are rebalanced, as they say, or else by their first rebalanced record after one
    that was not; None if that is from the start on, or never."""
    found = []
    for run in runs:
        if "rebalanced_from" in run:
            found += [float(run["rebalanced_from"])] if run["rebalanced_from"] else []
            continue
        train = [r for r in run.get("history") or () if r.get("kind") == "train"]
        first = next((r for r in train if r.get("rebalanced")), None)
        if first is not None and first is not train[0]:
            found.append(float(first["epoch"]))
    return min(found, default=None)


def per_class(runs: Sequence[dict], classes: int) -> np.ndarray:
    """float64 (C,): accuracy of each class, averaged over the seeds that measured it; NaN where none did."""
    rows = [(run.get("eval") or {}).get("per_class") or [None] * classes for run in runs]
    acc_SC = np.array(rows, dtype=np.float64)
    seen_C = np.isfinite(acc_SC).sum(0)
    return np.where(seen_C > 0, np.nansum(acc_SC, axis=0) / np.maximum(seen_C, 1), np.nan)


def running_mean(value_C: np.ndarray, window: int) -> np.ndarray:
    """Mean over `window` (odd) neighbours, fewer at the ends; NaNs are left out."""
    finite_C, ones = np.isfinite(value_C), np.ones(min(window, len(value_C)))
    weight_C = np.convolve(finite_C, ones, "same")
    total_C = np.convolve(np.where(finite_C, value_C, 0.0), ones, "same")
    return np.where(weight_C > 0.5, total_C / np.maximum(weight_C, 1.0), np.nan)


def histogram(runs: Sequence[dict], key: str) -> np.ndarray | None:
    """Shares of the mixed rows per bin, all seeds together; None if nothing was mixed."""
    rows = [(run.get("mix") or {}).get(key) for run in runs if (run.get("mix") or {}).get("mixed_rows")]
    total = np.sum([r for r in rows if r], axis=0, dtype=np.float64)
    return total / total.sum() if np.size(total) > 1 and total.sum() > 0 else None


def relabelled(runs: Sequence[dict]) -> tuple[float, int]:
    """The share of mixed rows on which Eq. 10 fired, weighted by rows, and the number of mixed rows."""
    mixes = [m for run in runs if (m := run.get("mix") or {}).get("mixed_rows")]
    rows = sum(int(m["mixed_rows"]) for m in mixes)
    return sum((m.get("relabelled") or 0.0) * m["mixed_rows"] for m in mixes) / max(rows, 1), rows


def reliability(runs: Sequence[dict]) -> np.ndarray | None:
    """float64 (bins, 3): share of rows, mean confidence, accuracy per confidence bin, all seeds pooled."""
    tables = [
        [(b["count"], b.get("confidence") or 0.0, b.get("accuracy") or 0.0) for b in bins]
        for run in runs
        if (bins := (run.get("eval") or {}).get("ece_bins"))
    ]
    if not tables:
        return None
    count_SB, rest_SB2 = np.array(tables, dtype=np.float64)[..., 0], np.array(tables, dtype=np.float64)[..., 1:]
    count_B = count_SB.sum(0)
    mean_B2 = (count_SB[..., None] * rest_SB2).sum(0) / np.maximum(count_B, 1)[:, None]
    mean_B2[count_B == 0] = np.nan
    return np.column_stack([count_B / max(count_B.sum(), 1), mean_B2])


def spans(result: dict, order_C: np.ndarray) -> dict[str, tuple[int, int]]:
    """First and last place of each group among the classes in `order_C`, where the group is one stretch of it."""
    place_C = np.argsort(order_C)
    found = {}
    for group in GROUPS:
        ids = (result.get("groups") or {}).get(group) or []
        if ids and np.ptp(place_C[ids]) + 1 == len(ids):
            found[group] = (int(place_C[ids].min()), int(place_C[ids].max()))
    return found
