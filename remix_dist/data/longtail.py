"""Long-tailed subsets of a training set, by the recipe that the long-tailed CIFAR literature shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from remix_dist.types import UserError


@dataclass(frozen=True)
class LongTail:
    """A recipe: `exp` decays n_k = n_max * ratio^(-k/(C-1)); `step` cuts the second half to n_max / ratio."""

    kind: Literal["exp", "step"]
    ratio: float
    """Images of the largest class / of the smallest."""

    def __post_init__(self) -> None:
        if self.kind not in ("exp", "step"):
            raise UserError(f"longtail={self.kind}: one of exp, step, none")
        if not self.ratio > 1:
            raise UserError(f"ratio={self.ratio}: must be above 1, e.g. 100")

    def counts(self, n_max: int, classes: int) -> list[int]:
        """Images per class, of n_max in the largest; int() cuts, as the published recipe does."""
        factor = 1 / self.ratio
        if self.kind == "exp":
            return [int(n_max * factor ** (k / max(classes - 1.0, 1.0))) for k in range(classes)]
        return [int(n_max if k < classes // 2 else n_max * factor) for k in range(classes)]

    def rows(self, label_N: np.ndarray, classes: int) -> np.ndarray:
        """int64 row numbers kept, class by class. n_max is what the smallest class of the full set has, so that
        every class can give its share (the same in all, for the balanced sets of the literature)."""
        count_C = self.counts(int(np.bincount(label_N, minlength=classes).min()), classes)
        if 0 in count_C:
            raise UserError(f"ratio={self.ratio}: class {count_C.index(0)} would have no image; lower the ratio")
        # The legacy generator with seed 0, shuffling class by class, is what makes it the literature's subset.
        rng = np.random.RandomState(0)
        chosen = []
        for k, n in enumerate(count_C):
            row_N = np.flatnonzero(label_N == k)
            rng.shuffle(row_N)
            chosen.append(row_N[:n])
        return np.concatenate(chosen)

    def ranked_rows(self, label_N: np.ndarray, rank_N: np.ndarray, lt_counts: dict[str, list[int]]) -> np.ndarray:
        """int64 row numbers of a source that carries the draw itself: rank below the ratio's class count."""
        key = f"{self.ratio:g}"
        if self.kind != "exp" or key not in lt_counts:
            known = ", ".join(lt_counts)
            raise UserError(
                f"longtail={self.kind} ratio={key}: this source is already cut and holds exp subsets of "
                f"ratio {known} only; choose one, or start from the full training set"
            )
        return np.flatnonzero(rank_N < np.array(lt_counts[key])[label_N])
