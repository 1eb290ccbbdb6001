"""Real gloo ranks for tests: processes forked from one clean server that has imported torch once."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["pytest", "torch._dynamo", "torchvision", "remix_dist.launch.local", "tensorboardX", "sklearn.metrics"]
)


def on_ranks(world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(*args)`, a function of a test module, returns on each rank of a fresh process group. Give back
    NumPy arrays, no tensors. An error of any rank is raised here."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(world, mp_context=CONTEXT) as pool:
        store = Path(folder) / "store"
        jobs = [pool.submit(_rank, f"file://{store}", rank, world, work, args) for rank in range(world)]
        errors = [error for job in jobs if (error := job.exception()) is not None]
        # a rank that lost its peers fails too: show the error that came first in meaning
        for error in sorted(errors, key=lambda e: isinstance(e, dist.DistError) or "gloo" in str(e).lower()):
            raise error
        return [job.result() for job in jobs]


def _rank(store: str, rank: int, world: int, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store, rank=rank, world_size=world, timeout=timedelta(seconds=100))
    try:
        return work(*args)
    finally:
        dist.destroy_process_group()
