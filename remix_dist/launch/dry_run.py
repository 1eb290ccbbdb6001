"""--dry_run: what a run would do and cost, from the manifest alone."""

from __future__ import annotations

import numpy as np

from remix_dist.config.run import Run
from remix_dist.config.schedule import deferral_epoch
from remix_dist.data.plan import Plan, rank_share
from remix_dist.labels.remix import Remix
from remix_dist.types import generator


def describe(run: Run, speed: float) -> str:
    """The resolved plan as text: rows, classes, steps, phases, bytes, checkpoint size, hours at `speed` images/s per
    worker. Call config.prepare first: it does the checks."""
    train, val = run.data.open()
    plan = Plan(train.label_N, train.shard_N, seed=run.train.seed, global_batch=run.train.global_batch)
    total, count_C = plan.steps(run.schedule.epochs), train.count_C
    model = run.model.build(len(train.classes), run.loss.head_scale, run.train.seed)
    parameters = sum(p.numel() for p in model.parameters())
    rows = total * run.train.global_batch
    hours = rows / (speed * run.ray.workers) / 3600
    many, few = (count_C > run.train.many_above).sum(), (count_C < run.train.few_below).sum()
    accumulation, world = run.train.global_batch // run.train.micro_batch, run.ray.workers
    shares = ", ".join(str(len(rank_share(accumulation, rank, world))) for rank in range(world))
    lines = [
        ("method", f"{run.method()} ({run.model.name}, {parameters:,} parameters)"),
        ("run", f"{run.storage}/{run.name}"),
        ("train", f"{len(train):,} rows, {len(train.classes):,} classes of {count_C.max():,} .. {count_C.min():,}"),
        ("shots", f"{many:,} many (> {run.train.many_above}), {len(count_C) - many - few:,} medium, {few:,} few "
                  f"(< {run.train.few_below})"),
        ("val", f"{len(val):,} rows"),
        ("global batch", f"{run.train.global_batch} = {accumulation} x {run.train.micro_batch}, on {world} workers "
                         f"({shares} micro-batches a step)"),
        ("steps", f"{total:,} ({run.schedule.epochs:g} epochs of {len(train) / run.train.global_batch:,.1f} steps)"),
        ("learning rate", _rates(run, plan)),
        ("rebalancing", _phase(run, plan)),
        ("label rule", _relabelled(run, count_C)),
        ("to stream", f"{train.bytes / 1e9:,.3f} GB a cold epoch in {len(train.shards)} shards; cache "
                      f"{run.data.cache_gb:g} GB a node"),
        ("checkpoint", f"{parameters * 4 * (2 + bool(run.optim.ema)) / 1e6:,.1f} MB, {run.checkpoint.keep} kept, every "
                       f"{run.checkpoint.every_seconds:g} s"),
        ("cost", f"{hours * run.ray.workers:,.1f} GPU-hours, {hours:,.1f} h wall, at {speed:,.0f} images/s a worker"),
    ]  # fmt: skip
    return "\n".join(f"{key:>14}  {value}" for key, value in lines)


def _rates(run: Run, plan: Plan) -> str:
    if run.schedule.kind == "cosine":
        body = "cosine to 0"
    else:
        at = ", ".join(f"step {plan.steps(d):,} (epoch {d:g})" for d in run.schedule.decays)
        body = f"{run.optim.lr:g}, times {run.schedule.factor:g} at {at}"
    warm = f"; warm-up {plan.steps(run.schedule.warmup):,} steps" if run.schedule.warmup else ""
    return body + warm


def _phase(run: Run, plan: Plan) -> str:
    name = type(run.rebalance).__name__
    if name == "NoRebalance":
        return "none"
    epoch = deferral_epoch(run.rebalance, run.schedule)
    return f"{name} from step {plan.steps(epoch):,} (epoch {epoch})"


def _relabelled(run: Run, count_C: np.ndarray) -> str:
    """Expected share of mixed rows that Eq. 10 relabels while every row is drawn once per epoch."""
    if not isinstance(run.labels, Remix):
        return "lambda_y = lambda_x"
    kappa, tau = run.labels.kappa, run.labels.tau
    order = np.sort(count_C).astype(float)
    weight = order / order.sum()
    below = np.concatenate([[0.0], np.cumsum(weight)])[np.searchsorted(order, order / kappa, side="right")]
    pairs = 2 * float((weight * below).sum())
    alpha = getattr(run.mix, "alpha", 1.0)
    lam = generator(0, "dry run").beta(alpha, alpha, 100_000)
    below_tau = ((lam < tau).mean() + (1 - lam < tau).mean()) / 2  # antithetic: exactly a half at tau 0.5
    return (
        f"Remix: {pairs:.1%} of pairs are {kappa:g}-fold imbalanced, {pairs * below_tau:.1%} of rows relabelled at "
        f"tau {tau:g} (rows drawn once per epoch)"
    )
