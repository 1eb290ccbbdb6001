"""Turn a data set into shard sets in object storage: one Ray task per shard, or all in this process."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from remix_dist.data.longtail import LongTail
from remix_dist.data.sources import SourceOptions, open_source
from remix_dist.data.write import SplitPlan, finish, plan_split, resume, write_shard
from remix_dist.types import UserError

SPLITS = ("train", "val")
EVERY = 10.0
"""Seconds between progress lines where there is no terminal."""


@dataclass(frozen=True)
class MakeShards:
    """Write `<url>/train` and `<url>/val`; run again to go on after a failure."""

    source: SourceOptions
    """The images."""
    url: str
    """Where the shards go: a folder, or s3://bucket/prefix, gs://..., az://..."""
    store: str = "original"
    """`original` keeps the files' bytes; e.g. short288q90 shrinks the short side to 288 px as JPEG quality 90."""
    shard_mib: int = 64
    """Target size of a shard, MiB."""
    longtail: Literal["source", "none", "exp", "step"] = "source"
    """Cut a balanced training set to a long tail. source: as it comes, only `digits` is cut (exp, ratio 20)."""
    ratio: float | None = None
    """Imbalance ratio of the long tail: images of the largest class / of the smallest."""
    seed: int = 0
    """Of the permutation that deals rows to shards."""
    workers: int | None = None
    """Shards in flight as Ray tasks; unset: one per CPU of the cluster; 0: in this process, without Ray."""
    overwrite: bool = False
    """Replace shards of other settings at the same URL."""

    def __post_init__(self) -> None:
        if not 1 <= self.shard_mib <= 1024:
            raise UserError(f"shard_mib={self.shard_mib}: must be 1..1024")
        if (self.ratio is None) != (self.longtail in ("source", "none")):
            raise UserError(f"longtail={self.longtail} ratio={self.ratio}: --longtail exp|step needs --ratio, "
                            "and the other way round")  # fmt: skip
        if self.url.startswith("memory://") and self.workers != 0:
            raise UserError(f"url={self.url}: lives in one process only; add --workers 0")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers={self.workers}: must be 0 (no Ray) or more")


def make_shards(job: MakeShards, say: Callable[[str], None] = print) -> dict[str, dict]:
    """Write what is missing of both splits; gives the manifests by split. Says progress and a summary."""
    source = open_source(job.source)
    longtail = source.longtail if job.longtail == "source" else None
    if job.longtail in ("exp", "step") and job.ratio:
        longtail = LongTail(job.longtail, job.ratio)
    plans = [
        plan_split(source, job.url, split, store=job.store, shard_bytes=job.shard_mib << 20,
                   longtail=longtail, seed=job.seed)
        for split in SPLITS
    ]  # fmt: skip
    train, val = (set(plan.listing.classes) for plan in plans)
    if plans[0].listing.classes != plans[1].listing.classes:
        odd = ", ".join(sorted(train ^ val)[:5]) or "their order"
        raise UserError(f"source.path={job.source.path}: train and val differ in their classes: {odd}")
    state = {plan.split: resume(plan, job.overwrite) for plan in plans}
    manifests = {split: manifest for split, (manifest, _) in state.items() if manifest}
    open_plans = [plan for plan in plans if plan.split not in manifests]
    if not open_plans:
        say(f"{job.url}: complete already, with the same source and settings; nothing to do")
    tasks = [(plan, n) for plan in open_plans for n in range(len(plan.rows)) if plan.key(n) not in state[plan.split][1]]
    if kept := sum(len(plan.rows) for plan in open_plans) - len(tasks):
        say(f"{kept} finished shards found, {len(tasks)} to write")
    began = time.monotonic()
    written = _write(tasks, job.workers, {p.split: state[p.split][1] for p in open_plans}, say)
    for plan in open_plans:
        manifests[plan.split] = finish(plan, state[plan.split][1])
    _summary(job, {split: manifests[split] for split in SPLITS}, written, time.monotonic() - began, say)
    return manifests


def _write(
    tasks: list[tuple[SplitPlan, int]], workers: int | None, parts: dict[str, dict], say: Callable[[str], None]
) -> int:
    """Write the shards, put their parts in `parts`, and give the number of images handled."""
    total = sum(len(plan.rows[n]) for plan, n in tasks)
    images, last, began = 0, time.monotonic(), time.monotonic()
    run = _here(tasks) if workers == 0 else _with_ray(tasks, workers)
    with tqdm(total=total, unit="img", disable=None if sys.stderr.isatty() else True) as bar:
        for plan, part in run:
            parts[plan.split][part["shard"]["key"]] = part
            done = part["shard"]["rows"] + len(part["rejected"])
            images += done
            bar.update(done)
            if bar.disable and time.monotonic() - last > EVERY:
                last = time.monotonic()
                rate = images / (last - began)
                left = (total - images) / rate
                say(f"{images:,} of {total:,} images ({images / total:.0%}), {rate:.0f}/s, {left:.0f} s left")
    return images


def _here(tasks: list[tuple[SplitPlan, int]]) -> Iterator[tuple[SplitPlan, dict]]:
    for plan, n in tasks:
        yield plan, write_shard(plan.task(n))


def _with_ray(tasks: list[tuple[SplitPlan, int]], workers: int | None) -> Iterator[tuple[SplitPlan, dict]]:
    if not tasks:
        return
    try:
        import ray
    except ImportError as error:
        raise UserError("workers: Ray is not installed; add --workers 0 to write in this process") from error
    ours = not ray.is_initialized()
    if ours:
        # Without an address Ray would join whatever cluster somebody runs on this machine.
        ray.init(address=os.environ.get("RAY_ADDRESS", "local"), logging_level=logging.WARNING, log_to_driver=False)
    try:
        remote = ray.remote(num_cpus=1, max_retries=3)(write_shard)
        at_once = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting, running = iter(tasks), {}
        while True:
            for plan, n in waiting:
                running[remote.remote(plan.task(n))] = plan
                if len(running) >= at_once:
                    break
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=1)
            try:
                yield running.pop(ready[0]), ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, UserError) else error) from error
    finally:
        if ours:
            ray.shutdown()


def _summary(
    job: MakeShards, manifests: dict[str, dict[str, Any]], images: int, seconds: float, say: Callable[[str], None]
) -> None:
    for split, doc in manifests.items():
        count_C, names = np.array(doc["class_counts"]), doc["classes"]
        size = sum(shard["bytes"] for shard in doc["shards"])
        top, middle, low = int(count_C.max()), int(np.median(count_C)), int(count_C.min())
        say(
            f"{split}: {doc['rows']:,} images, {len(names):,} classes, {len(doc['shards'])} shards, {size:,} bytes; "
            f"images a class: max {top:,}, median {middle:,}, min {low:,}"
        )
        if split == "train":
            many, few = int((count_C > 100).sum()), int((count_C < 20).sum())
            medium = len(names) - many - few
            say(f"train: {many:,} many-shot (> 100), {medium:,} medium-shot, {few:,} few-shot (< 20) classes")
        if doc["rejected"]:
            reasons = Counter(r["reason"].split(":")[0] for r in doc["rejected"]).most_common(3)
            listed = ", ".join(f"{n} x {reason}" for reason, n in reasons)
            say(f"{split}: REJECTED {len(doc['rejected']):,} images ({listed}); manifest.json lists them all")
            for bad in doc["rejected"][:10]:
                say(f"  {bad['path']}: {bad['reason']}")
        if (empty := np.flatnonzero(count_C == 0)).size:
            shown = ", ".join(names[k] for k in empty[:5])
            why = "training needs at least one image of every class" if split == "train" else "not measured"
            say(f"{split}: WARNING: {empty.size:,} classes have NO image ({shown}): {why}")
    if images:
        say(f"{images:,} images in {seconds:.1f} s, {images / seconds:.0f} images/s")
    say(f"next: python jobs/inat_remix.py --data.url {job.url}")
