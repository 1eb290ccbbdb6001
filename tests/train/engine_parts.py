"""What the tests of the step share."""

import numpy as np
import torch

from remix_dist.config.parse import METHODS
from remix_dist.config.run import Data, Model, Run, Train
from remix_dist.data.augment import Augment
from remix_dist.data.cache import ShardCache
from remix_dist.data.manifest import open_shard_set
from remix_dist.data.plan import Plan
from remix_dist.data.stream import Stream
from remix_dist.labels.remix import Remix
from remix_dist.labels.same import Same
from remix_dist.model import build_model
from remix_dist.train.engine import Engine
from remix_dist.types import Batch, ClassTable, generator

torch.set_num_threads(1)


CPU = torch.device("cpu")


AUGMENT = Augment(size=8, crop="shift", shift=2, flip=True, jitter=0.2, lighting=0.1)


TABLE = ClassTable(torch.tensor([40, 12, 3, 1]))


ROWS = 4
"""Of a micro-batch."""


def made(axis, name):
    """A method with default knobs that acts from the first step."""
    method = METHODS[axis][name]
    return method(start=0.0) if "start" in method.__dataclass_fields__ else method()


def a_run(mix="Mixup", loss="CrossEntropy", rebalance="NoRebalance", micro_batches=4, rows=ROWS, **knobs):
    mixer = made("mix", mix)
    train = {"global_batch": micro_batches * rows, "micro_batch": rows, "seed": 3, **knobs.pop("train", {})}
    return Run(
        data=Data(augment=AUGMENT), mix=mixer, labels=Remix() if mixer.mixes else Same(), loss=made("loss", loss),
        rebalance=made("rebalance", rebalance), model=Model("resnet8-w4"), train=Train(**train), **knobs,
    )  # fmt: skip


def a_stream(run, url, balanced_from=0):
    shards = open_shard_set(url, "train")
    table = ClassTable(torch.from_numpy(shards.count_C))
    share_C = run.rebalance.class_share(table)
    plan = Plan(
        shards.label_N, shards.shard_N, seed=run.train.seed, global_batch=run.train.global_batch,
        share_C=None if share_C is None else share_C.numpy(), balanced_from=balanced_from,
    )  # fmt: skip
    cache = ShardCache(shards, "unused", 0)
    return Stream(shards, cache, plan, run.data.augment, micro_batch=run.train.micro_batch, threads=1), table


def an_engine(run, table, model=None, bf16=False, device=CPU):
    model = model or build_model(run.model.name, table.classes, run.loss.head_scale, seed=1)
    return Engine(run, model, table, device, bf16)


def flat(tensors):
    return torch.cat([t.detach().flatten().float() for t in tensors]).numpy().copy()


def gradient(engine):
    return flat(p.grad for p in engine.params)


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def synthetic(step, micro_batch, rows=ROWS, classes=4, labels=None, size=8):
    """A micro-batch without a data set."""
    rng = generator(5, "synthetic", step, micro_batch)
    images = torch.from_numpy(rng.integers(0, 256, (rows, 3, size, size), dtype=np.uint8))
    drawn = torch.from_numpy(rng.integers(0, classes, rows)) if labels is None else torch.tensor(labels)
    noise = torch.from_numpy(rng.random((rows, 9), dtype=np.float32))
    return Batch(images, drawn, noise, np.arange(rows), step, micro_batch)
