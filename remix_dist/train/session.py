"""One run from data to result on the ranks that exist: compose, resume, loop, evaluate, checkpoint, report."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from remix_dist.config.check import check_data, recipe_difference
from remix_dist.config.run import Run
from remix_dist.data.cache import ShardCache
from remix_dist.data.manifest import open_shard_set
from remix_dist.data.plan import Plan
from remix_dist.data.stream import Stream
from remix_dist.model import build_model
from remix_dist.rebalance.none import NoRebalance
from remix_dist.train.checkpoint import CheckpointStore
from remix_dist.train.collective import all_reduce, broadcast_table, from_rank_zero, gather, rank_world
from remix_dist.train.engine import Engine
from remix_dist.train.evaluate import evaluate, shot_groups
from remix_dist.train.metrics import Recorder
from remix_dist.train.result import read_result, write_result
from remix_dist.train.schedule import deferral_epoch, learning_rate
from remix_dist.types import Batch, ClassTable, UserError


@dataclass(frozen=True)
class Hooks:
    """What the launcher adds: where records go besides the files, and whether the node is about to go away."""

    report: Callable[[dict[str, Any]], None] = lambda record: None
    preempted: Callable[[], bool] = lambda: False


class Session:
    """One run on this rank."""

    def __init__(self, run: Run, device: torch.device, hooks: Hooks) -> None:
        self.run, self.device, self.hooks = run, device, hooks
        self.rank, self.world = rank_world()
        if run.train.deterministic:
            torch.use_deterministic_algorithms(True)
        self.train_set = open_shard_set(run.data.url, "train")
        val_set = open_shard_set(run.data.url, run.data.val_split)
        check_data(run, self.train_set.classes, self.train_set.count_C, val_set.classes)
        self.url = f"{run.storage.rstrip('/')}/{run.identity(self.train_set.digest)}"
        self.table = broadcast_table(ClassTable(torch.from_numpy(self.train_set.count_C.copy())), device)
        self.groups = shot_groups(self.train_set.count_C, run.train)

        share_C = run.rebalance.class_share(self.table)
        train, data = run.train, run.data
        self.deferral = deferral_epoch(run.rebalance, run.schedule)
        self.plan = Plan(
            self.train_set.label_N,
            self.train_set.shard_N,
            seed=train.seed,
            global_batch=train.global_batch,
            share_C=None if share_C is None else share_C.cpu().numpy(),
            balanced_from=self.deferral,
            lanes=data.lanes,
            window=data.window,
        )
        self.stream, self.val = (
            Stream(
                shards,
                ShardCache(shards, data.cache_dir, int(data.cache_gb * 1e9)),
                self.plan,
                data.augment,
                micro_batch=rows,
                threads=data.threads,
                prefetch=data.prefetch,
                max_corrupt=data.max_corrupt,
                pin=device.type == "cuda",
            )
            for shards, rows in ((self.train_set, train.micro_batch), (val_set, train.eval_batch))
        )
        bf16 = train.precision == "bf16" or (train.precision == "auto" and device.type == "cuda")
        model = build_model(
            run.model.name, len(val_set.classes), run.loss.head_scale, run.model.weights, seed=train.seed
        )
        self.engine = Engine(run, model, self.table, device, bf16)
        self.store = CheckpointStore(self.url, run.checkpoint.keep)
        self.total = self.plan.steps(run.schedule.epochs)
        self.start, self.meta = self._resume()
        self.before, self.faults = self.meta["seconds"], self.meta["faults"]
        self.record: dict[str, Any] = {}
        self.scores: dict[str, Any] = {}
        self.recorder = Recorder(self.url, self.meta["history"]) if self.rank == 0 else None

    def say(self, text: str) -> None:
        """One line from rank 0."""
        if self.rank == 0:
            print(text, flush=True)

    def train(self) -> dict[str, Any]:
        """Train to the end; rank 0 gets the result (the contents of result.json), other ranks an empty dict."""
        run, plan, every = self.run, self.plan, self.run.train.eval_every
        if self.start == self.total and (found := read_result(self.url)) and found["steps"] == self.total:
            self.say(f"{self.url}: already finished ({self.total} steps); --checkpoint.resume never starts a new run")
            return found
        evals = {
            plan.steps(min(k * every, run.schedule.epochs))
            for k in range(1, math.ceil(run.schedule.epochs / every) + 1)
        }
        per_epoch = plan.rows_per_epoch / run.train.global_batch
        count, weighted_from = len(self.stream.share(self.rank, self.world)), plan.steps(self.deferral)
        batches = self._traced(self.stream.batches(self.start, self.total, self.rank, self.world))
        self.clock = self.saved = self.said = self.told = time.monotonic()
        for step in range(self.start, self.total):
            lr, done = learning_rate(step, per_epoch, run.optim, run.schedule), step + 1
            self.engine.step(batches, count, lr, rebalanced=step >= weighted_from)
            save = run.checkpoint.every_steps and done % run.checkpoint.every_steps == 0
            if save or done % run.train.log_every == 0 or done in evals or done == self.total:
                self._control(done, done / per_epoch, lr, done in evals)
        if self.start == self.total:  # stopped between the last checkpoint and the result
            self._evaluate(self.total, run.schedule.epochs)
            self._tally()
        return write_result(self) if self.rank == 0 else {}

    def _traced(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        if not self.run.train.trace:
            yield from batches
            return
        folder = Path(self.url) / "trace"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"start{self.meta['starts']}-step{self.start}-rank{self.rank}-of-{self.world}-pid{os.getpid()}.jsonl"
        with open(folder / name, "a", buffering=1) as file:
            for batch in batches:
                file.write(json.dumps([batch.step, batch.micro_batch, batch.rows_B.tolist()]) + "\n")
                yield batch

    def _control(self, done: int, epoch: float, lr: float, evaluation: bool) -> None:
        """Fetch the metrics, evaluate if due, and agree on a checkpoint. The only place that syncs the device."""
        fetched, now = self.engine.meter.fetch(self.engine.params), time.monotonic()
        spent, waited, self.stream.waited = now - self.clock, self.stream.waited, 0.0
        corrupt = int(all_reduce(torch.tensor(len(self.stream.faults), device=self.device)))
        self.record = {
            "kind": "train", "step": done, "epoch": round(epoch, 4), "loss": fetched["loss"], "lr": lr,
            "images_per_s": fetched["rows"] / spent, "data_wait": min(waited / spent, 1.0),
            "relabelled": fetched["relabelled"], "corrupt": corrupt,
            "rebalanced": type(self.run.rebalance) is not NoRebalance and done > self.plan.steps(self.deferral),
        }  # fmt: skip
        self._keep(self.record)
        if evaluation:
            self._evaluate(done, epoch)
        elif now - self.said > 30:
            self._progress(done, epoch, "")
        leaving, options, end = self.hooks.preempted(), self.run.checkpoint, done == self.total
        due = end or now - self.saved > (5.0 if leaving else options.every_seconds)
        due, tell = from_rank_zero((due, end or now - self.told > 5.0))  # clocks differ: rank 0's decides for all
        if due or (options.every_steps and done % options.every_steps == 0):
            self._save(done)
        if tell:  # the launcher's report may block for seconds
            self.hooks.report(self.record | {k: v for k, v in self.scores.items() if not isinstance(v, list)})
            self.told = time.monotonic()
        self.clock = time.monotonic()

    def _evaluate(self, done: int, epoch: float) -> None:
        with self.engine.averaged(done) as model:
            self.scores = evaluate(model, self.val, self.groups, self.device, self.engine.bf16)
        flat = {k: v for k, v in self.scores.items() if not isinstance(v, list)}
        self._keep({"kind": "eval", "step": done, "epoch": round(epoch, 4), **flat})
        names = ("balanced", "many", "medium", "few")
        shots = "  ".join(f"{k} {100 * flat[k]:.1f}" for k in names if flat[k] is not None)
        self._progress(done, epoch, f"  top-1 {100 * flat['top1']:.1f}  {shots}")

    def _progress(self, done: int, epoch: float, scores: str) -> None:
        run, r, self.said = self.run, self.record, time.monotonic()
        speed = f"{r['images_per_s']:.0f} images/s  wait {r['data_wait']:.0%}" if r else ""
        left = (self.total - done) * run.train.global_batch / max(r.get("images_per_s", 0.0), 1e-9) / 60
        learning = f"  loss {r['loss']:.3f}  lr {r['lr']:.2g}  relabelled {r['relabelled']:.0%}" if r else ""
        self.say(
            f"{run.method()} seed {run.train.seed}  epoch {epoch:.4g}/{run.schedule.epochs:g}  step {done}/{self.total}"
            f"{learning}{scores}  {speed}  left {left:.1f} min"
        )

    def _keep(self, record: dict[str, Any]) -> None:
        if self.recorder is not None:
            self.recorder.add(record)

    def _tally(self) -> None:
        self.totals = {k: all_reduce(v.clone()) for k, v in self.engine.meter.state().items()}
        found = self.meta["faults"] + gather(list(self.stream.faults.values()) + list(self.val.faults.values()))
        self.faults = list({json.dumps(fault, sort_keys=True): fault for fault in found}.values())

    def _save(self, done: int) -> None:
        self._tally()
        if self.recorder is not None:
            meta = self.meta | {"history": self.recorder.history, "faults": self.faults, "seconds": self.seconds()}
            self.store.save(done, {**self.engine.state(done), "meter": self.totals}, meta)
            self.recorder.flush()
        self.saved = time.monotonic()

    def seconds(self) -> float:
        """Wall time of the run over all its starts."""
        return self.before + time.monotonic() - self.began

    def _resume(self) -> tuple[int, dict[str, Any]]:
        """Load the newest valid checkpoint; (0, fresh meta data) without one."""
        run, self.began = self.run, time.monotonic()
        now = {**run.recipe(), "data": self.train_set.digest}
        step = from_rank_zero(self.store.newest() if self.rank == 0 else None)
        if step is None:
            return 0, {"recipe": now, "history": [], "faults": [], "seconds": 0.0, "starts": 1}
        tensors, meta = self.store.load(step)
        change = recipe_difference(meta["recipe"], now)
        if change and run.checkpoint.on_change == "stop":
            raise UserError(
                f"{self.url} was started with another recipe:\n  " + "\n  ".join(change) + "\ngive another --name, "
                "--checkpoint.resume never for a new run, or --checkpoint.on_change accept to go on regardless"
            )
        if step > self.total:
            raise UserError(f"schedule.epochs = {run.schedule.epochs:g}: {self.url} is past that, at step {step}")
        self.engine.load(tensors)
        if self.rank == 0:  # the totals were summed over ranks
            self.engine.meter.load(tensors["meter"])
        self.say(f"{self.url}: continues from the checkpoint of step {step}/{self.total}")
        return step, {**meta, "recipe": now, "starts": meta["starts"] + 1}
