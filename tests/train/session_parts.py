"""What the tests of a session share."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from remix_dist.config.run import Checkpoints, Data, Model, Optim, Run, Schedule, Train
from remix_dist.data.augment import Augment
from remix_dist.rebalance.drs import DRS
from remix_dist.train import session as session_module
from remix_dist.train.checkpoint import CheckpointStore

torch.set_num_threads(1)


STEPS, ROWS, BATCH, MICRO = 28, 329, 24, 8
"""Two epochs of the digits: an epoch ends within step 13, and every 5th step is saved."""


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


def a_run(url, storage, name="run", **parts):
    """A small run with everything on: mixing, Remix, BatchNorm, a deferred rebalancer, an average, a trace."""
    given = {
        "rebalance": DRS(start="decay:1"), "schedule": Schedule(epochs=2, decays=(1,)),
        "optim": Optim(lr=0.05, ema=0.9), "checkpoint": Checkpoints(every_steps=5, keep=2),
        "train": Train(global_batch=BATCH, micro_batch=MICRO, log_every=7, trace=True),
        "data": Data(url=url, augment=Augment(size=8, crop="shift", shift=2), threads=1),
    } | parts  # fmt: skip
    return Run(name=name, storage=str(storage), model=Model("resnet8-w4"), **given)


def die_before(patch, step):
    """The process dies when global step `step` is about to begin."""
    original = session_module.learning_rate

    def rate(now, *rest):
        if now == step:
            raise Killed
        return original(now, *rest)

    patch.setattr(session_module, "learning_rate", rate)


def killed(start, run, step):
    with pytest.MonkeyPatch.context() as patch:
        die_before(patch, step)
        with pytest.raises(Killed):
            start(run)
    torch.manual_seed(step)  # a new process would have another global state too


def url_of(run):
    return f"{run.storage}/{run.name}"


def final(run, step=STEPS):
    """Every tensor of the last checkpoint, as flat {name: array}."""
    store = CheckpointStore(url_of(run), keep=1)
    assert store.newest() == step
    groups, _ = store.load(step)
    assert groups.keys() >= {"model", "optim", "meter"}
    return {f"{g}.{name}": t.numpy() for g, group in groups.items() for name, t in group.items()}


def measured(history):
    """The records without what a clock put in."""
    return [{k: v for k, v in r.items() if k not in ("images_per_s", "data_wait")} for r in history]


def assert_same_run(one, other, result=None, expected=None):
    first, second = final(one), final(other)
    assert first.keys() == second.keys() and len(first) > 40
    assert all(np.array_equal(first[k], second[k]) for k in first), [k for k in first if (first[k] != second[k]).any()]
    if result:
        assert result["eval"] == expected["eval"] and result["mix"] == expected["mix"]
        assert measured(result["history"]) == measured(expected["history"])


def lineage(run):
    """{step: {micro-batch: rows}} as the final weights saw them: a later start replaces the steps from its own on."""
    starts = {}
    for file in Path(url_of(run), "trace").iterdir():
        start, step = file.name.split("-")[:2]
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        starts.setdefault((int(start.removeprefix("start")), int(step.removeprefix("step"))), []).extend(lines)
    seen = {}
    for _, begin in sorted(starts):
        seen = {step: parts for step, parts in seen.items() if step < begin}
        for step, micro_batch, rows in starts[_, begin]:
            # two starts that found no checkpoint in between share a number: they saw the very same rows
            assert step >= begin and seen.setdefault(step, {}).setdefault(micro_batch, rows) == rows
    return seen


def assert_every_row_once_an_epoch(run, epochs):
    seen = lineage(run)
    assert sorted(seen) == list(range(STEPS)) and all(sorted(parts) == [0, 1, 2] for parts in seen.values())
    order = [row for step in range(STEPS) for m in range(3) for row in seen[step][m]]
    for epoch in range(epochs):
        assert sorted(order[epoch * ROWS : (epoch + 1) * ROWS]) == list(range(ROWS))
    return order
