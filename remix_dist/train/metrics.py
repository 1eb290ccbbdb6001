"""What a run measures: exact counters on the device, without a sync per step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from remix_dist.train.collective import all_reduce
from remix_dist.types import UserError

BINS = 20


class Meter:
    """Counts what reaches the loss, on the device: sums since the last fetch, and totals of the run."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # numerator, denominator of the loss
        self.rows = torch.zeros(3, dtype=torch.int64, device=device)  # rows, mixed, relabelled
        self.delivered_C = torch.zeros(classes, dtype=torch.int64, device=device)
        self.hist = torch.zeros(2, BINS + 1, dtype=torch.int64, device=device)  # lambda_x, lambda_y; last: exactly 1
        self.seen = torch.zeros_like(self.rows)

    def add(self, labels_B: Tensor, lam_x_B: Tensor, lam_y_B: Tensor, mixed: bool) -> None:
        """Count one micro-batch."""
        n, one = len(labels_B), torch.ones_like(labels_B)
        self.delivered_C.index_add_(0, labels_B, one)
        self.rows[0] += n
        if mixed:
            self.rows[1] += n
            self.rows[2] += (lam_x_B != lam_y_B).sum()
            for hist, lam_B in zip(self.hist, (lam_x_B, lam_y_B), strict=True):
                hist.index_add_(0, (lam_B * BINS).long().clamp(0, BINS), one)

    def fetch(self, weights: list[Tensor]) -> dict[str, float]:
        """Global loss, rows and relabelled share since the last fetch. UserError if the loss, or one of the weights
        that the last update left, is not finite: so no checkpoint after a fetch holds such weights."""
        sums, rows = all_reduce(self.sums.clone()).tolist(), all_reduce(self.rows - self.seen).tolist()
        self.sums.zero_()
        self.seen.copy_(self.rows)
        loss = sums[0] / max(sums[1], 1e-30)
        largest = float(torch.stack(torch._foreach_norm([w.detach() for w in weights], math.inf)).max())
        if not math.isfinite(loss + largest):
            raise UserError(
                f"the loss is {loss:.3g}, the largest weight {largest:.3g}: lower optim.lr or add schedule.warmup; the "
                "last checkpoint is from before it, so the same command with a new --name and other knobs starts clean"
            )
        return {"loss": loss, "rows": rows[0], "relabelled": rows[2] / max(rows[1], 1)}

    def state(self) -> dict[str, Tensor]:
        """Totals of this rank, for the checkpoint (summed over ranks by the caller)."""
        return {"rows": self.rows, "delivered_C": self.delivered_C, "hist": self.hist}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from saved totals."""
        for key, own in self.state().items():
            own.copy_(state[key])
        self.seen.copy_(self.rows)
