"""What a run must not be: settings that cannot take effect, contradict each other, or do not fit the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from remix_dist.config.run import Run
from remix_dist.labels.same import Same
from remix_dist.loss.ldam import LDAM
from remix_dist.model import build_model, families
from remix_dist.types import UserError

if TYPE_CHECKING:
    from remix_dist.data.manifest import ShardSet


def check_run(run: Run) -> list[str]:
    """Refuse a run that cannot be what it says (UserError); return the warnings worth printing."""
    train, schedule, optim = run.train, run.schedule, run.optim
    if not run.mix.mixes and not isinstance(run.labels, Same):
        raise UserError(
            f"labels = {type(run.labels).__name__}: cannot take effect with mix = {type(run.mix).__name__}, which "
            "mixes nothing; take --mix Mixup (or CutMix, ManifoldMixup), or --labels Same"
        )
    if train.micro_batch < 2:
        raise UserError(f"train.micro_batch = {train.micro_batch}: at least 2 rows are mixed and normalised together")
    if train.global_batch < 1 or train.global_batch % train.micro_batch:
        near = max(1, round(train.global_batch / train.micro_batch)) * train.micro_batch
        raise UserError(
            f"train.global_batch = {train.global_batch}: no whole number of micro-batches of train.micro_batch = "
            f"{train.micro_batch}; {near} would be"
        )
    if run.ray.workers < 1 or run.ray.workers > train.global_batch // train.micro_batch:
        raise UserError(
            f"ray.workers = {run.ray.workers}: a global batch of {train.global_batch} has "
            f"{train.global_batch // train.micro_batch} micro-batches of {train.micro_batch}, one per worker at least; "
            "lower train.micro_batch, or give 1 to that many workers"
        )
    _positive(run)
    _idle(run)
    if schedule.kind == "cosine" and schedule.decays != type(schedule).decays and schedule.decays:
        raise UserError(f"schedule.decays = {list(schedule.decays)}: cannot take effect with schedule.kind = cosine")
    if schedule.kind == "step" and not all(0 < d < schedule.epochs for d in schedule.decays):
        thirds = [round(schedule.epochs / 3), round(schedule.epochs * 2 / 3)] if schedule.epochs >= 2 else []
        raise UserError(
            f"schedule.decays = {list(schedule.decays)}: each must lie inside the {schedule.epochs:g} epochs, "
            f"as {thirds}"
        )
    if optim.ema is not None and not 0 < optim.ema < 1:
        raise UserError(f"optim.ema = {optim.ema}: a decay per step in (0, 1) such as 0.9999; leave it out for none")
    if optim.nesterov and optim.momentum == 0:
        raise UserError("optim.nesterov = true: cannot take effect with optim.momentum = 0")
    families.find(run.model.name)
    if run.mix.needs_mix_points:
        with torch.device("meta"):  # shapes only
            points = build_model(run.model.name, 2).mix_points
        if points <= max(layers := getattr(run.mix, "layers", (1,))):
            raise UserError(
                f"mix.layers = {list(layers)}: model.name = {run.model.name} has mix points 0 to {points - 1}; leave "
                "out the others, take a backbone with more (resnet32, resnet50, ...), or --mix Mixup"
            )
    if run.train.trace and "://" in run.storage:
        raise UserError(f"train.trace = true: appends to files, which storage = {run.storage} cannot; use a folder")
    return _warnings(run)


def _positive(run: Run) -> None:
    values = {
        "schedule.epochs": run.schedule.epochs,
        "schedule.factor": run.schedule.factor,
        "optim.lr": run.optim.lr,
        "data.threads": run.data.threads,
        "data.prefetch": run.data.prefetch,
        "data.cache_gb": run.data.cache_gb,
        "data.augment.size": run.data.augment.size,
        "data.lanes": run.data.lanes,
        "data.window": run.data.window,
        "train.eval_every": run.train.eval_every,
        "train.log_every": run.train.log_every,
        "train.eval_batch": run.train.eval_batch,
        "checkpoint.keep": run.checkpoint.keep,
        "checkpoint.every_seconds": run.checkpoint.every_seconds,
        "ray.cpus_per_worker": run.ray.cpus_per_worker,
    }
    for key, value in values.items():
        if not 0 < value < np.inf:
            raise UserError(f"{key} = {value}: must be greater than 0 and finite")
    shares = {
        "optim.momentum": run.optim.momentum,
        "optim.weight_decay": run.optim.weight_decay,
        "data.max_corrupt": run.data.max_corrupt,
        "data.augment.jitter": run.data.augment.jitter,
        "data.augment.lighting": run.data.augment.lighting,
    }
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{key} = {value}: must be in [0, 1]")
    if run.train.few_below > run.train.many_above + 1:
        raise UserError(
            f"train.few_below = {run.train.few_below}: a class would be few-shot and, above train.many_above = "
            f"{run.train.many_above}, many-shot; give {run.train.many_above + 1} at most"
        )
    if not 0 <= run.schedule.warmup < run.schedule.epochs:
        raise UserError(f"schedule.warmup = {run.schedule.warmup}: must be in [0, schedule.epochs)")
    if not 0 <= run.train.seed < 2**63:
        raise UserError(f"train.seed = {run.train.seed}: must be in [0, 2^63)")


def _idle(run: Run) -> None:
    augment, schedule = run.data.augment, run.schedule
    knobs = [  # knob, value, default, whether it acts, what it needs
        ("data.augment.min_area", augment.min_area, type(augment).min_area, augment.crop == "random_resized",
         "data.augment.crop = random_resized"),
        ("data.augment.shift", augment.shift, type(augment).shift, augment.crop == "shift",
         "data.augment.crop = shift"),
        ("schedule.factor", schedule.factor, type(schedule).factor, schedule.kind == "step" and bool(schedule.decays),
         "schedule.kind = step and schedule.decays"),
    ]  # fmt: skip
    for key, value, default, acts, needs in knobs:
        if value != default and not acts:
            raise UserError(f"{key} = {value}: cannot take effect without {needs}; leave it out, or set that")
    if run.checkpoint.every_steps is not None and run.checkpoint.every_steps < 1:
        raise UserError(f"checkpoint.every_steps = {run.checkpoint.every_steps}: must be at least 1, or null for none")


def _warnings(run: Run) -> list[str]:
    out = []
    if run.mix.mixes and run.schedule.epochs < 100 and run.data.augment.size >= 160:
        out.append("mixing needs long training: the paper's iNaturalist results took 200 epochs, 90 fell short")
    if isinstance(run.loss, LDAM) and run.mix.mixes:
        out.append("LDAM with mixing: the paper's authors report that the two compete on small sets")
    return out


def check_data(run: Run, train_set: ShardSet, val_set: ShardSet) -> list[str]:
    """Refuse data that the run cannot be trained on; return warnings."""
    classes, count_C, val_classes, val_rows = train_set.classes, train_set.count_C, val_set.classes, len(val_set)
    empty = np.flatnonzero(count_C == 0)
    if len(empty):
        names = ", ".join(repr(classes[c]) for c in empty[:5])
        raise UserError(
            f"data.url = {run.data.url}: {len(empty)} class(es) without a training image ({names}); counts drive "
            "Remix, LDAM and every rebalancer, so add images or write the shards without these classes"
        )
    if not val_rows:
        raise UserError(f"data.val_split = {run.data.val_split}: has no image, so nothing could be evaluated")
    if classes != val_classes:
        raise UserError(f"data.url = {run.data.url}: train and {run.data.val_split} name different classes; write both "
                        "with one jobs/make_shards.py call")  # fmt: skip
    if type(run.rebalance).__name__ == "Reweight" and run.mix.mixes and len(classes) >= 100:
        return ["re-weighting from the first step with >= 100 classes hurt in the paper (33.5 against 41.9): try DRW"]
    return []


def recipe_difference(old: dict, new: dict) -> list[str]:
    """Lines "knob: old -> new" for every knob of the recipe that differs."""
    return [f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
