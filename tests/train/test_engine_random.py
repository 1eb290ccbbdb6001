"""Keyed randomness, precision, and no sync of the device."""

import random

import numpy as np
import pytest
import torch
from engine_parts import TABLE, a_run, a_stream, an_engine, distance, gradient, synthetic
from ranks import on_ranks
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from remix_dist.config.parse import METHODS
from remix_dist.config.run import Optim
from remix_dist.types import generator

torch.set_num_threads(1)


class Dropping(nn.Module):
    """A net with two kinds of dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 64, 16), nn.AlphaDropout(0.3))
        self.head = nn.Linear(16, 4)
        rng = generator(9, "dropping")
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.from_numpy(rng.normal(0, 0.1, p.shape)))

    def forward(self, images_BCHW):
        return self.head(self.body(images_BCHW))


def dropped(net, seed=3, step=0):
    engine = an_engine(a_run("Mixup", train={"seed": seed}), TABLE, net)
    engine.optimizer.zero_grad()
    engine.accumulate(iter([synthetic(step, m) for m in range(4)]), 4, rebalanced=False)
    return gradient(engine)


class OnlyAlpha(Dropping):
    """As above with the one whose name does not begin with Dropout."""

    def __init__(self):
        super().__init__()
        self.body[1] = nn.Identity()


@pytest.mark.parametrize("kind", [Dropping, OnlyAlpha])
def test_dropout_is_keyed_and_leaves_the_global_generator_alone(kind):
    net = kind()
    torch.manual_seed(1)
    first = dropped(net)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    np.testing.assert_array_equal(dropped(net), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert distance(dropped(net, seed=4), first) > 0.01


def test_dropout_differs_between_micro_batches_and_steps():
    seen = []

    class Watched(Dropping):
        def forward(self, images_BCHW):
            seen.append((self.body[1](torch.ones(8)) > 0).tolist())
            return super().forward(images_BCHW)

    for step in range(2):
        dropped(Watched(), step=step)
    assert len(seen) == 8 and len({tuple(mask) for mask in seen}) >= 7


def test_a_discarded_pass_on_ranks_draws_nothing_either(digits_url):
    assert on_ranks(2, wrapped_with_dropout) == [True, True]


def wrapped_with_dropout():
    net, state = Dropping(), torch.get_rng_state()
    an_engine(a_run("Mixup"), TABLE, net)
    return torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mix", list(METHODS["mix"]))
def test_a_step_uses_no_global_random_state(mix, digits_url):
    run = a_run(mix, rebalance="DRW")
    stream, table = a_stream(run, digits_url)
    engine, batches = an_engine(run, table), stream.batches(0, 1)
    random.seed(4)
    state = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002
    engine.step(batches, 4, 0.1, rebalanced=True)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), repr(np.random.get_state())) == state[1:]  # noqa: NPY002


def test_bf16_runs_the_convolutions_in_bf16_and_keeps_weights_and_loss_in_float32(digits_url):
    run = a_run("Mixup", rebalance="DRW")
    stream, table = a_stream(run, digits_url)
    found, kinds = [], set()
    for bf16 in (False, True):
        engine = an_engine(run, table, bf16=bf16)
        engine.model.net.conv1.register_forward_hook(lambda module, given, out: kinds.add(out.dtype))
        engine.accumulate(stream.batches(0, 1), 4, rebalanced=True)
        found.append(gradient(engine))
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in engine.params)
    assert kinds == {torch.float32, torch.bfloat16}
    assert 1e-5 < distance(found[1], found[0]) < 0.2


class Reads(TorchDispatchMode):
    """Names the operations that would make the host wait for a device."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __init__(self):
        super().__init__()
        self.found, self.calls = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        name = function.overloadpacket.__name__
        if name in self.WAIT or name.startswith("unique"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mix", list(METHODS["mix"]))
@pytest.mark.parametrize("loss", list(METHODS["loss"]))
def test_no_operation_of_a_step_reads_a_value_back(mix, loss, monkeypatch):
    run = a_run(mix, loss, "DRW", optim=Optim(ema=0.9))
    engine = an_engine(run, TABLE)
    with Reads() as reads, monkeypatch.context() as patch:
        for name in ("tolist", "numpy", "cpu", "item", "__bool__", "__float__", "__int__", "__index__"):
            patch.setattr(torch.Tensor, name, lambda tensor, name=name: pytest.fail(f"{name} waits for a device"))
        engine.step(iter([synthetic(0, m) for m in range(4)]), 4, 0.1, rebalanced=True)
    assert reads.calls > 100 and not reads.found, reads.found
    with Reads() as reads:
        assert engine.meter.rows[0] == 16
    assert reads.found  # the watch works


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device to watch for host syncs")
@pytest.mark.parametrize("mix", list(METHODS["mix"]))
def test_a_step_on_a_gpu_never_waits_for_it(mix):
    device = torch.device("cuda")
    run = a_run(mix, "LDAM", "DRW", optim=Optim(ema=0.9))
    engine = an_engine(run, TABLE.to(device), bf16=True, device=device)
    steps = [[synthetic(step, m) for m in range(4)] for step in range(4)]
    for batch in [b for batches in steps for b in batches]:
        batch.images_BCHW, batch.labels_B, batch.noise_BK = (
            t.pin_memory() for t in (batch.images_BCHW, batch.labels_B, batch.noise_BK)
        )
    for batches in steps[:3]:
        engine.step(iter(batches), 4, 0.1, rebalanced=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.step(iter(steps[3]), 4, 0.1, rebalanced=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert engine.meter.fetch(engine.params)["rows"] == 64
