"""One run from data to result on the ranks that exist: compose, resume, loop, agree on checkpoints."""

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
from remix_dist.config.schedule import deferral_epoch, learning_rate
from remix_dist.data.cache import ShardCache
from remix_dist.data.plan import Plan
from remix_dist.data.stream import Stream
from remix_dist.train.checkpoint import CheckpointStore, read_result
from remix_dist.train.collective import all_reduce, broadcast_table, from_rank_zero, gather, rank_world
from remix_dist.train.engine import Engine
from remix_dist.types import Batch, ClassTable, UserError


@dataclass(frozen=True)
class Hooks:
    """What the launcher adds: where records go besides the files, and whether the node is about to go away."""

    report: Callable[[dict[str, Any]], None] = lambda record: None
    preempted: Callable[[], bool] = lambda: False


class Session:
    """One run on this rank."""

    def __init__(self, run: Run, device: torch.device, hooks: Hooks) -> None:
        self.run, self.device, self.hooks, self.began = run, device, hooks, time.monotonic()
        self.rank, self.world = rank_world()
        if run.train.deterministic:
            torch.use_deterministic_algorithms(True)
        train, data = run.train, run.data
        self.train_set, val_set = data.open()
        check_data(run, self.train_set, val_set)
        self.url = f"{run.storage.rstrip('/')}/{run.identity(self.train_set.digest)}"
        self.table = broadcast_table(ClassTable(torch.from_numpy(self.train_set.count_C.copy())), device)

        share_C = run.rebalance.class_share(self.table)
        self.deferral = deferral_epoch(run.rebalance, run.schedule)
        self.plan = Plan(
            self.train_set.label_N, self.train_set.shard_N, seed=train.seed, global_batch=train.global_batch,
            share_C=None if share_C is None else share_C.cpu().numpy(), balanced_from=self.deferral,
            lanes=data.lanes, window=data.window,
        )  # fmt: skip
        self.stream, self.val = (
            Stream(
                shards, ShardCache(shards, data.cache_dir, int(data.cache_gb * 1e9)), self.plan, data.augment,
                micro_batch=rows, threads=data.threads, prefetch=data.prefetch, max_corrupt=data.max_corrupt,
                pin=device.type == "cuda",
            )
            for shards, rows in ((self.train_set, train.micro_batch), (val_set, train.eval_batch))
        )  # fmt: skip
        bf16 = train.precision == "bf16" or (train.precision == "auto" and device.type == "cuda")
        model = run.model.build(len(val_set.classes), run.loss.head_scale, train.seed)
        self.engine = Engine(run, model, self.table, device, bf16)
        self.store = CheckpointStore(self.url, run.checkpoint.keep)
        self.total = self.plan.steps(run.schedule.epochs)
        self.start, self.meta = self._resume()
        self.record: dict[str, Any] = {}
        self.scores: dict[str, Any] = {}
        self.journal = None
        if self.rank == 0:
            from remix_dist.train.journal import Journal  # the other ranks keep none

            if model.loaded:
                print(model.loaded, flush=True)
            self.journal = Journal(run, self.url, self.total, self.meta["history"])

    def train(self) -> dict[str, Any]:
        """Train to the end; rank 0 gets the result (the contents of result.json), other ranks an empty dict."""
        run, plan, every = self.run, self.plan, self.run.train.eval_every
        if self.start == self.total and (found := read_result(self.url)) and found["steps"] == self.total:
            self._say(f"{self.url}: already finished ({self.total} steps); --checkpoint.resume never starts a new run")
            return found
        ends = range(1, math.ceil(run.schedule.epochs / every) + 1)
        evals = {plan.steps(min(k * every, run.schedule.epochs)) for k in ends}
        count, weighted_from = len(self.stream.share(self.rank, self.world)), plan.steps(self.deferral)
        batches = self._traced(self.stream.batches(self.start, self.total, self.rank, self.world))
        per_epoch = plan.rows_per_epoch / run.train.global_batch
        self.clock = self.saved = self.told = time.monotonic()
        for step in range(self.start, self.total):
            lr, done = learning_rate(step, per_epoch, run.optim, run.schedule), step + 1
            self.engine.step(batches, count, lr, rebalanced=step >= weighted_from)
            save = run.checkpoint.every_steps and done % run.checkpoint.every_steps == 0
            if save or done % run.train.log_every == 0 or done in evals or done == self.total:
                self._control(done, lr, done in evals, bool(save))
        if self.start == self.total:  # stopped between the last checkpoint and the result
            self._evaluate(self.total)
            self._tally()
        if self.rank:
            return {}
        from remix_dist.train.result import write_result  # once a run, on one rank

        return write_result(self)

    def seconds(self) -> float:
        """Wall time of the run over all its starts."""
        return self.meta["seconds"] + time.monotonic() - self.began

    def _control(self, done: int, lr: float, evaluation: bool, save: bool) -> None:
        """Fetch the metrics, evaluate if due, and agree on a checkpoint. The only place that syncs the device."""
        fetched, now = self.engine.meter.fetch(self.engine.params), time.monotonic()
        spent, waited, self.stream.waited = now - self.clock, self.stream.waited, 0.0
        corrupt = int(all_reduce(torch.tensor(len(self.stream.faults), device=self.device)))
        self.record = {
            "kind": "train", "step": done, "epoch": self._epoch(done), "loss": fetched["loss"], "lr": lr,
            "images_per_s": fetched["rows"] / spent, "data_wait": min(waited / spent, 1.0),
            "relabelled": fetched["relabelled"], "corrupt": corrupt,
            "rebalanced": self.run.rebalance.acts and done > self.plan.steps(self.deferral),
        }  # fmt: skip
        if self.journal is not None:
            self.journal.add(self.record)
            self.journal.progress(self.record)
        if evaluation:
            self._evaluate(done)
        leaving, end = self.hooks.preempted(), done == self.total
        due = end or now - self.saved > (5.0 if leaving else self.run.checkpoint.every_seconds)
        due, tell = from_rank_zero((due, end or now - self.told > 30.0))  # clocks differ: rank 0's decides for all
        if due or save:
            self._save(done)
        if tell:  # the launcher's report may block for seconds
            self.hooks.report(self.record | {f"eval_{k}": v for k, v in _numbers(self.scores).items()})
            self.told = time.monotonic()
        self.clock = time.monotonic()

    def _evaluate(self, done: int) -> None:
        from remix_dist.train.evaluate import evaluate, shot_groups

        groups = shot_groups(self.train_set.count_C, self.run.train)
        with self.engine.averaged(done) as model:
            self.scores = evaluate(model, self.val, groups, self.device, self.engine.bf16)
        if self.journal is not None:
            record = {"kind": "eval", "step": done, "epoch": self._epoch(done), **_numbers(self.scores)}
            self.journal.add(record)
            self.journal.progress(self.record, record)

    def _save(self, done: int) -> None:
        self._tally()
        if self.journal is not None:
            meta = self.meta | {"history": self.journal.history, "faults": self.faults, "seconds": self.seconds()}
            self.store.save(done, {**self.engine.state(done), "meter": self.totals}, meta)
            self.journal.flush()
        self.saved = time.monotonic()

    def _tally(self) -> None:
        self.totals = {k: all_reduce(v.clone()) for k, v in self.engine.meter.state().items()}
        found = self.meta["faults"] + gather([*self.stream.faults.values(), *self.val.faults.values()])
        self.faults = list({json.dumps(fault, sort_keys=True): fault for fault in found}.values())

    def _resume(self) -> tuple[int, dict[str, Any]]:
        """Load the newest valid checkpoint; (0, fresh meta data) without one."""
        run = self.run
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
        self._say(f"{self.url}: continues from the checkpoint of step {step}/{self.total}")
        return step, {**meta, "recipe": now, "starts": meta["starts"] + 1}

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

    def _epoch(self, done: int) -> float:
        return round(done * self.run.train.global_batch / self.plan.rows_per_epoch, 4)

    def _say(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)


def _numbers(scores: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in scores.items() if not isinstance(v, list)}
