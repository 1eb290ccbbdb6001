"""Training on Ray Train: the driver that starts the workers, and what one DDP worker does.

Ray starts, watches and restarts the workers; runs, checkpoints and resume are ours (train/session.py). Ray's own
run name would silently resume its own state, so every fit gets a fresh one, and none of its snapshots matters.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import uuid
from typing import Any

import pyarrow.fs
import ray
import ray.train.torch
import torch

from remix_dist.config.run import Ray, Run
from remix_dist.data.store import filesystem
from remix_dist.train.checkpoint import read_result, write_text
from remix_dist.train.session import Hooks, Session
from remix_dist.types import UserError


def train(runs: list[Run]) -> list[dict[str, Any]]:
    """Train the runs one after the other in one group of Ray workers; the results, in order. A finished run is not
    trained again. Each must have been through config.prepare. UserError where training cannot go on."""
    options, fit = runs[0].ray, f"fit-{uuid.uuid4().hex[:12]}"
    fs, root = filesystem(runs[0].storage)
    ours = not ray.is_initialized()
    try:
        trainer, failure = _trainer(runs, fit, gpu=_connect(options)), None
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            failure = error
        if message := _fatal(runs, fit):
            raise UserError(message) from failure
        if failure:
            way = f"the same command continues from the newest checkpoint in {runs[0].storage}"
            raise RuntimeError(f"{failure}\ntraining failed; {way}") from failure
        return [read_result(f"{run.storage}/{run.name}") or {} for run in runs]
    finally:
        if ours:
            ray.shutdown()
        if fs.exists(f"{root}/.ray/{fit}"):
            fs.rm(f"{root}/.ray/{fit}", recursive=True)


def worker(config: dict[str, Any]) -> None:
    """One DDP worker: every run in turn. After a crash Ray calls it again, in new processes."""
    runs: list[Run] = config["runs"]
    torch.set_num_threads(max(1, int(runs[0].ray.cpus_per_worker)))
    for name in [n for n in logging.root.manager.loggerDict if "ray/train" in n]:  # Ray names them by file
        logging.getLogger(name).setLevel(logging.WARNING)  # they print every report of every rank
    device = ray.train.torch.get_device()
    hooks = Hooks(report=ray.train.report, preempted=lambda: ray.train.get_preemption_info() is not None)
    for run in runs:
        if _fatal(runs, config["fit"]):
            return  # a restart cannot mend it: end cleanly, the driver raises the message
        try:
            Session(run, device, hooks).train()
        except UserError as error:
            write_text(*_fatal_file(runs, config["fit"]), str(error))
            raise


def _trainer(runs: list[Run], fit: str, gpu: bool) -> ray.train.torch.TorchTrainer:
    options, (fs, root) = runs[0].ray, filesystem(runs[0].storage)
    # Ray's defaults wait for ever; workers inherit these from the driver's environment
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "1800")
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(options.start_timeout)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it shows every line twice
    local = "file" in fs.protocol
    return ray.train.torch.TorchTrainer(
        worker,
        train_loop_config={"runs": runs, "fit": fit},
        torch_config=ray.train.torch.TorchConfig(
            backend="nccl" if gpu else "gloo", timeout_s=int(options.collective_timeout)
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=options.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": options.cpus_per_worker, **({"GPU": 1} if gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=fit,
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]
            storage_path=f"{root}/.ray",
            storage_filesystem=None if local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                max_failures=options.max_failures, controller_failure_limit=options.max_failures
            ),
        ),
    )


def _connect(options: Ray) -> bool:
    """Join the cluster (or start one on this machine) and say whether workers take a GPU each."""
    need = options.workers * options.cpus_per_worker
    if not ray.is_initialized():
        if not sys.stdout.isatty():
            os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # no escape codes in job logs
        try:
            if options.address == "local":
                raise ConnectionError
            address = options.address or os.environ.get("RAY_ADDRESS") or "auto"
            ray.init(address=address, logging_level=logging.WARNING)
        except ConnectionError:
            if options.address not in (None, "local"):
                raise UserError(f"ray.address = {options.address}: no cluster answers there") from None
            cores = max(math.ceil(need), os.cpu_count() or 1)
            ray.init(address="local", num_cpus=cores, object_store_memory=256 << 20, logging_level=logging.WARNING)
    have = ray.cluster_resources()
    gpu = options.gpu == "yes" or (options.gpu == "auto" and have.get("GPU", 0) >= options.workers)
    for kind, wanted in (("CPU", need), ("GPU", options.workers if gpu else 0)):
        if have.get(kind, 0) < wanted:
            wait = f"waiting up to {options.start_timeout:g} s for an autoscaler (ray.start_timeout)"
            print(f"note: {wanted:g} {kind}s needed, the cluster has {have.get(kind, 0):g} now; {wait}", flush=True)
    return gpu


def _fatal_file(runs: list[Run], fit: str) -> tuple[Any, str]:
    return filesystem(f"{runs[0].storage}/.ray/{fit}/fatal.txt")  # beside Ray's state of the fit, and removed with it


def _fatal(runs: list[Run], fit: str) -> str | None:
    fs, path = _fatal_file(runs, fit)
    return fs.cat_file(path).decode() if fs.exists(path) else None
