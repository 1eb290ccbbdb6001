"""Learning rate and deferral point as pure functions of the recipe: what a step does never depends on history."""

from __future__ import annotations

import math

from remix_dist.config.run import Optim, Schedule
from remix_dist.types import Rebalance, UserError


def learning_rate(step: int, steps_per_epoch: float, optim: Optim, schedule: Schedule) -> float:
    """Learning rate of a global step: linear warm-up, then step decays or a cosine to zero."""
    epoch = step / steps_per_epoch
    if epoch < schedule.warmup:
        return optim.lr * min(1.0, (step + 1) / (steps_per_epoch * schedule.warmup))
    if schedule.kind == "cosine":
        done = (epoch - schedule.warmup) / max(schedule.epochs - schedule.warmup, 1e-9)
        return optim.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return optim.lr * schedule.factor ** sum(epoch >= d - 1e-9 for d in schedule.decays)


def deferral_epoch(rebalance: Rebalance, schedule: Schedule) -> int:
    """The whole epoch from which `rebalance` acts; UserError where it never would."""
    start = rebalance.deferral
    if isinstance(start, str) and start.startswith("decay:"):
        nth = int(start.removeprefix("decay:"))
        if schedule.kind != "step" or nth > len(schedule.decays):
            raise UserError(
                f"rebalance.start = {start!r}: the {schedule.kind} schedule has "
                f"{len(schedule.decays) if schedule.kind == 'step' else 'no'} decays; give a fraction such as 0.8"
            )
        epoch = round(sorted(schedule.decays)[nth - 1])
    else:
        epoch = round(float(start) * schedule.epochs)
    if epoch >= schedule.epochs:
        raise UserError(
            f"rebalance.start = {start!r}: begins at epoch {epoch} of {schedule.epochs:g}, so it never acts"
        )
    return epoch
