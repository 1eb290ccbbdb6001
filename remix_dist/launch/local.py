"""The same run without Ray: one process, one device. For debugging, profiling and small data."""

from __future__ import annotations

from typing import Any

import torch

from remix_dist.config.check import check_run
from remix_dist.config.run import Run
from remix_dist.train.session import Hooks, Session


def train_local(run: Run, hooks: Hooks | None = None) -> dict[str, Any]:
    """Train in this process and return the result; the numbers equal a Ray run's with one worker, bit for bit on
    the same device."""
    for warning in check_run(run):
        print(f"note: {warning}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Session(run, device, hooks or Hooks()).train()
