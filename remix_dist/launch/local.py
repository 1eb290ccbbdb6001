"""The same run without Ray: one process, one device. For debugging, profiling and small data."""

from __future__ import annotations

from typing import Any

import torch

from remix_dist.config.check import check_run
from remix_dist.config.run import Run
from remix_dist.train.session import Hooks, Session
from remix_dist.types import UserError


def train_local(run: Run, hooks: Hooks | None = None) -> dict[str, Any]:
    """Train in this process and return the result; the numbers equal a Ray run's with one worker, bit for bit on
    the same device. UserError for knobs that only the Ray launcher honours."""
    for key, value, only in (("checkpoint.resume", run.checkpoint.resume, "auto"), ("ray.workers", run.ray.workers, 1)):
        if value != only:
            raise UserError(f"{key} = {value}: cannot take effect in one process without Ray; leave it at {only}")
    for warning in check_run(run):
        print(f"note: {warning}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Session(run, device, hooks or Hooks()).train()
