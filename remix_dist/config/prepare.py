"""The last look on the driver: a run against its data, before any worker is started or GPU taken."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from remix_dist.config.check import check_data, check_run
from remix_dist.config.run import Run
from remix_dist.config.schedule import deferral_epoch
from remix_dist.data.store import filesystem
from remix_dist.types import UserError


def prepare(run: Run) -> Run:
    """Check a run against its data on the driver, before any GPU is taken, and settle its name and places."""
    data = dataclasses.replace(run.data, url=_absolute(run.data.url))
    run = dataclasses.replace(run, storage=_absolute(run.storage), data=data)
    train_set, val_set = data.open()
    deferral_epoch(run.rebalance, run.schedule)
    for note in check_run(run) + check_data(run, train_set, val_set):
        print(f"note: {note}", flush=True)
    name, (fs, root) = run.identity(train_set.digest), filesystem(run.storage)
    if run.checkpoint.resume == "must" and not fs.exists(f"{root}/{name}/checkpoints"):
        raise UserError(f"checkpoint.resume = must: {run.storage}/{name} has no checkpoint; take auto, or check --name")
    if run.checkpoint.resume == "never" and fs.exists(f"{root}/{name}"):
        name = next(f"{name}-{k}" for k in range(2, 1 << 30) if not fs.exists(f"{root}/{name}-{k}"))
    print(f"run {run.storage}/{name}", flush=True)
    return dataclasses.replace(run, name=name, checkpoint=dataclasses.replace(run.checkpoint, resume="auto"))


def _absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).expanduser().absolute())  # workers run in another directory
