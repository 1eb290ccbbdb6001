"""The step: the same gradient at any world size, the exact reduction, keyed randomness, no sync."""

import functools
import random

import numpy as np
import pytest
import torch
from ranks import on_ranks
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from remix_dist.config.parse import METHODS
from remix_dist.config.run import Data, Model, Optim, Run, Train
from remix_dist.data.augment import Augment
from remix_dist.data.cache import ShardCache
from remix_dist.data.manifest import open_shard_set
from remix_dist.data.plan import Plan
from remix_dist.data.stream import Stream
from remix_dist.labels.remix import Remix
from remix_dist.labels.same import Same
from remix_dist.mix.none import NoMix
from remix_dist.model import build_model
from remix_dist.rebalance.drs import DRS
from remix_dist.rebalance.drw import DRW
from remix_dist.rebalance.none import NoRebalance
from remix_dist.rebalance.resample import Resample
from remix_dist.rebalance.reweight import Reweight
from remix_dist.train import engine as engine_module
from remix_dist.train.collective import all_reduce, rank_world
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


# The key claim: the world size changes nothing but rounding.


@functools.cache
def first_batches(rebalance, micro_batches, url):
    """This rank's micro-batches of the first global batch, by the real stream, and the class table."""
    rank, world = rank_world()
    stream, table = a_stream(a_run(rebalance=rebalance, micro_batches=micro_batches), url)
    batches = list(stream.batches(0, 1, rank, world))
    assert len(batches) == len(stream.share(rank, world))
    return batches, table


def gradients(url, mix, loss, rebalance, micro_batches=4, **knobs):
    """The gradient of the first global batch on this rank."""
    batches, table = first_batches(rebalance, micro_batches, url)
    engine = an_engine(a_run(mix, loss, rebalance, micro_batches, **knobs), table)
    engine.accumulate(iter(batches), len(batches), rebalanced=True)
    return gradient(engine)


def combinations():
    return [(m, x, r) for m in METHODS["mix"] for x in METHODS["loss"] for r in METHODS["rebalance"]]


def local_denominator(tensor):
    own = tensor[:1] * rank_world()[1]
    return torch.cat([own, all_reduce(tensor)[1:]])


def ranked_keys(seed, purpose, *counters):
    return generator(seed + rank_world()[0], purpose, *counters)


def everything(url):
    """All that one spawn of ranks can answer."""
    out = {name: gradients(url, *name) for name in combinations()}
    for mutant, change in (("all_reduce", local_denominator), ("generator", ranked_keys)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine_module, mutant, change)
            out[f"mutant {mutant}"] = gradients(url, "Mixup", "CrossEntropy", "Reweight")
    out["count"] = gradients(url, "Mixup", "CrossEntropy", "Reweight", train={"normalize": "count"})
    out["six"] = gradients(url, "CutMix", "LDAM", "DRW", micro_batches=6)

    run = a_run("Mixup", "CrossEntropy", "DRW", optim=Optim(lr=0.02, ema=0.8))
    stream, table = a_stream(run, url)
    rank, world = rank_world()
    engine, batches = an_engine(run, table), stream.batches(0, 4, rank, world)
    for _ in range(4):
        engine.step(batches, len(stream.share(rank, world)), 0.02, rebalanced=True)
    out |= {"weights": flat(engine.params), "ema": flat(engine.ema), "norms": flat(engine.norms.running)}
    out["counters"] = flat(b for n, b in engine.state(4)["model"].items() if n.endswith("num_batches_tracked"))
    return out


@pytest.fixture(scope="module")
def worlds(digits_url):
    """What `everything` gives, by world size and rank; world 1 is this process, without a process group."""
    return {1: [everything(digits_url)], 2: on_ranks(2, everything, digits_url), 3: on_ranks(3, everything, digits_url)}


@pytest.mark.parametrize("world", [2, 3])
def test_the_gradient_is_the_same_at_every_world_size_for_every_mixer_loss_and_rebalancer(worlds, world):
    """4 micro-batches over 3 ranks are uneven: 1, 1 and 2. With BatchNorm, and with mixing on."""
    alone = worlds[1][0]
    assert len(combinations()) >= 4 * 3 * 5
    for rank in worlds[world]:
        for name in [*combinations(), "count", "six"]:
            assert np.linalg.norm(alone[name]) > 1e-4
            assert distance(rank[name], alone[name]) < 1e-5, (name, distance(rank[name], alone[name]))


def test_no_two_combinations_share_a_gradient_unless_they_must(worlds):
    """Else the comparison over world sizes would compare less than it names."""
    found = {name: worlds[1][0][name] for name in combinations()}
    for mix in METHODS["mix"]:
        for loss in METHODS["loss"]:
            plain = found[mix, loss, "NoRebalance"]
            for rebalance in ("Reweight", "DRW", "Resample", "DRS"):
                assert distance(found[mix, loss, rebalance], plain) > 0.01, (mix, loss, rebalance)
            assert np.array_equal(found[mix, loss, "Reweight"], found[mix, loss, "DRW"])  # which starts at once here
    for one, other in (("NoMix", "Mixup"), ("Mixup", "CutMix"), ("Mixup", "ManifoldMixup")):
        assert distance(found[one, "Focal", "NoRebalance"], found[other, "Focal", "NoRebalance"]) > 0.01


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("mutant", ["all_reduce", "generator"])
def test_a_local_denominator_or_the_rank_in_the_random_key_breaks_it(worlds, world, mutant):
    name = f"mutant {mutant}"
    assert max(distance(rank[name], worlds[1][0][name]) for rank in worlds[world]) > 1e-3


@pytest.mark.parametrize("world", [2, 3])
def test_weights_average_and_batchnorm_statistics_after_steps_are_the_same_at_every_world_size(worlds, world):
    alone = worlds[1][0]
    for rank in worlds[world]:
        for name in ("weights", "ema", "norms"):
            assert distance(rank[name], alone[name]) < 1e-5, (name, distance(rank[name], alone[name]))
            assert np.array_equal(rank[name], worlds[world][0][name])  # and the very same on all ranks
        assert (rank["counters"] == 4).all()


def test_batchnorm_moves_by_the_mean_of_the_micro_batches_statistics():
    norm = nn.BatchNorm2d(3, momentum=0.3)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(3 * 64, 4))
    run = a_run("NoMix", train={"seed": 0})
    engine = an_engine(run, TABLE, model)
    batches = [synthetic(0, m) for m in range(4)]
    engine.step(iter(batches), 4, 0.1, rebalanced=False)
    inputs = [AUGMENT.normalize(AUGMENT.photometric(b.images_BCHW.float(), b.noise_BK)) for b in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    var = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs]).mean(0)
    engine.norms.publish(1)
    torch.testing.assert_close(norm.running_mean, 0.3 * mean)
    torch.testing.assert_close(norm.running_var, 0.7 + 0.3 * var)


# The one reduction, against a literal loop.


def linear_model(classes=4):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, classes))
    rng = generator(9, "linear")
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.from_numpy(rng.normal(0, 0.1, p.shape)))
    return net


def literal(run, batches, weight_C):
    """(gradient, relabelled rows, rows): Eq. 8-10 and weighted cross-entropy, one row and one label at a time."""
    net, count = linear_model(), TABLE.count_C.tolist()
    num, den, rows, relabelled = 0.0, 0.0, 0, 0
    for batch in batches:
        images, labels = batch.images_BCHW.float(), batch.labels_B.tolist()
        images = AUGMENT.photometric(images, batch.noise_BK)
        rng = generator(run.train.seed, "mix", batch.step, batch.micro_batch)
        lam = float(np.float32(rng.beta(1.0, 1.0)))
        partner = rng.permutation(len(labels))
        for i, j in enumerate(partner):
            a, b, lam_y = labels[i], labels[j], lam
            if count[a] / count[b] >= 3 and lam < 0.5:
                lam_y = 0.0
            elif count[b] / count[a] >= 3 and 1 - lam < 0.5:
                lam_y = 1.0
            relabelled, rows = relabelled + (lam_y != lam), rows + 1
            logits = net(AUGMENT.normalize((lam * images[i] + (1 - lam) * images[j])[None]))
            for label, share in ((a, lam_y), (b, 1 - lam_y)):
                weight = share * float(weight_C[label])
                num = num + weight * F.cross_entropy(logits, torch.tensor([label]))
                den += weight
    loss = num / (den if run.train.normalize == "weight_sum" else rows)
    return flat(torch.autograd.grad(loss, list(net.parameters()))), relabelled, rows


@pytest.mark.parametrize("normalize", ["weight_sum", "count"])
@pytest.mark.parametrize("rebalanced", [True, False])
def test_drw_changes_the_gradient_by_exactly_the_weights(normalize, rebalanced):
    run = a_run("Mixup", "CrossEntropy", "DRW", rows=8, train={"normalize": normalize})
    engine, batches = an_engine(run, TABLE, linear_model()), [synthetic(2, m, 8) for m in range(4)]
    engine.accumulate(iter(batches), 4, rebalanced)
    weight_C = run.rebalance.row_weight(TABLE) if rebalanced else torch.ones(4)
    expected, relabelled, rows = literal(run, batches, weight_C)
    assert distance(gradient(engine), expected) < 1e-5
    assert 0 < relabelled < rows
    fetched = engine.meter.fetch(engine.params)
    assert fetched["relabelled"] == relabelled / rows and fetched["rows"] == rows


def test_the_relabelled_share_is_that_of_a_literal_recount_over_steps():
    run = a_run("Mixup", rows=8)
    engine, total, seen = an_engine(run, TABLE, linear_model()), 0, 0
    for step in range(6):
        batches = [synthetic(step, m, 8) for m in range(4)]
        engine.accumulate(iter(batches), 4, rebalanced=False)
        _, relabelled, rows = literal(run, batches, torch.ones(4))
        total, seen = total + relabelled, seen + rows
    assert 20 < total < 150
    assert engine.meter.fetch(engine.params)["relabelled"] == total / seen


def clean(labels, rebalance="NoRebalance", normalize="count"):
    """The gradient of a clean global batch with these labels in both micro-batches."""
    run = a_run("NoMix", rebalance=rebalance, micro_batches=2, train={"normalize": normalize})
    engine = an_engine(run, TABLE, linear_model())
    engine.accumulate(iter([synthetic(0, m, labels=labels) for m in range(2)]), 2, rebalanced=True)
    return gradient(engine)


def test_weights_do_not_cancel():
    """Dividing each row's weighted loss by its own weight made re-weighting a no-op in a public reproduction."""
    weight_C = Reweight().row_weight(TABLE).numpy()
    for c in range(4):
        plain = clean([c] * 4)
        np.testing.assert_allclose(clean([c] * 4, "Reweight"), weight_C[c] * plain, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(clean([c] * 4, "Reweight", "weight_sum"), plain, rtol=2e-5, atol=1e-6)
    labels, parts = [0, 1, 1, 3], []
    for c in range(4):  # each class' part of the gradient: the loss of its rows alone
        run = a_run("NoMix", micro_batches=2)
        net, total = linear_model(), 0.0
        for m in range(2):
            batch = synthetic(0, m, labels=labels)
            x = AUGMENT.normalize(AUGMENT.photometric(batch.images_BCHW.float(), batch.noise_BK))
            total = total + (F.cross_entropy(net(x), batch.labels_B, reduction="none") * (batch.labels_B == c)).sum()
        parts.append(flat(torch.autograd.grad(total, list(net.parameters()))))
    assert run.train.global_batch == 8
    weighted = sum(w * p for w, p in zip(weight_C, parts, strict=True))
    np.testing.assert_allclose(clean(labels, "Reweight"), weighted / 8, rtol=2e-4, atol=1e-5)
    den = 2 * (weight_C[0] + 2 * weight_C[1] + weight_C[3])
    np.testing.assert_allclose(clean(labels, "Reweight", "weight_sum"), weighted / den, rtol=2e-4, atol=1e-5)


# What reaches the loss.


@pytest.mark.parametrize("rebalance", [Resample(), DRS(start=0.5), NoRebalance()])
def test_the_class_histogram_that_reaches_the_loss_is_the_quota_epoch_by_epoch(digits_url, rebalance):
    """329 rows are 7 global batches of 47, so epochs end with steps. Resampling acts from epoch 2 of 4 for DRS."""
    run = Run(
        data=Data(augment=AUGMENT), mix=NoMix(), labels=Same(), rebalance=rebalance, model=Model("linear"),
        train=Train(global_batch=47, micro_batch=47),
    )  # fmt: skip
    first = 2 if isinstance(rebalance, DRS) else 0
    stream, table = a_stream(run, digits_url, balanced_from=first)
    assert len(stream.shards) == 329
    engine, batches, before = an_engine(run, table, linear_model(10)), stream.batches(0, 28), torch.zeros(10)
    share_C = rebalance.class_share(table)
    for epoch in range(4):
        for _ in range(7):
            engine.accumulate(batches, 1, rebalanced=epoch >= first)
        delivered_C = (engine.meter.delivered_C - before).numpy()
        before = engine.meter.delivered_C.clone()
        if share_C is None or epoch < first:
            assert delivered_C.tolist() == table.count_C.tolist()
        else:
            assert np.abs(delivered_C - 329 * share_C.numpy()).max() < 1
            assert delivered_C[-1] > 5 * int(table.count_C[-1])  # the rarest class has one image
            assert delivered_C.tolist() == stream.plan.quotas(epoch)[0].tolist()


def test_only_the_deferred_phase_is_weighted():
    run = a_run("NoMix", rebalance="DRW", train={"normalize": "count"})
    engine = an_engine(run, TABLE, linear_model())
    for rebalanced in (False, True):
        engine.optimizer.zero_grad()
        engine.accumulate(iter([synthetic(0, m, labels=[3] * 4) for m in range(4)]), 4, rebalanced)
        if not rebalanced:
            plain = gradient(engine)
    np.testing.assert_allclose(gradient(engine), float(DRW().row_weight(TABLE)[3]) * plain, rtol=1e-4, atol=1e-6)


# The optimizer, the average and the state.


def test_a_step_is_sgd_with_momentum_and_weight_decay_and_the_average_follows():
    optim = Optim(lr=9.0, momentum=0.9, weight_decay=0.01, ema=0.75)
    run = a_run("NoMix", optim=optim)
    engine, net = an_engine(run, TABLE, linear_model()), linear_model()
    weights = [p.detach().clone() for p in net.parameters()]
    momentum, average = [torch.zeros_like(w) for w in weights], [w.clone() for w in weights]
    for step, lr in enumerate((0.1, 0.1, 0.01)):
        batches = [synthetic(step, m) for m in range(4)]
        x = torch.cat([AUGMENT.normalize(AUGMENT.photometric(b.images_BCHW.float(), b.noise_BK)) for b in batches])
        with torch.no_grad():
            for p, w in zip(net.parameters(), weights, strict=True):
                p.copy_(w)
        loss = F.cross_entropy(net(x), torch.cat([b.labels_B for b in batches]))
        for i, grad in enumerate(torch.autograd.grad(loss, list(net.parameters()))):
            momentum[i] = 0.9 * momentum[i] + grad + 0.01 * weights[i]
            weights[i] = weights[i] - lr * momentum[i]
            average[i] = 0.75 * average[i] + 0.25 * weights[i]
        engine.step(iter(batches), 4, lr, rebalanced=False)
    assert distance(flat(engine.params), flat(weights)) < 1e-5
    assert distance(flat(engine.ema), flat(average)) < 1e-5
    live = flat(engine.params)
    with engine.averaged(3) as model:
        np.testing.assert_array_equal(flat(model.parameters()), flat(engine.ema))
    np.testing.assert_array_equal(flat(engine.params), live)


def test_weight_decay_leaves_out_biases_and_norms_where_it_is_told_to():
    for decay_norm in (True, False):
        engine = an_engine(a_run("NoMix", optim=Optim(weight_decay=0.5, momentum=0.0, decay_norm=decay_norm)), TABLE)
        before = {n: p.detach().clone() for n, p in engine.model.named_parameters()}
        for p in engine.params:
            p.grad = torch.zeros_like(p)
            with torch.no_grad():
                p += 1.0
        for group in engine.optimizer.param_groups:
            group["lr"] = 1.0
        engine.optimizer.step()
        for name, p in engine.model.named_parameters():
            factor = 0.5 if decay_norm or p.ndim > 1 else 1.0
            torch.testing.assert_close(p.detach(), factor * (before[name] + 1.0))


def test_the_state_continues_in_a_new_engine_bit_for_bit(digits_url):
    run = a_run("ManifoldMixup", "LDAM", "DRW", optim=Optim(lr=0.05, ema=0.9))
    stream, table = a_stream(run, digits_url)
    one = an_engine(run, table)
    whole = stream.batches(0, 5)
    for _ in range(5):
        one.step(whole, 4, 0.05, rebalanced=True)
    two, head = an_engine(run, table), stream.batches(0, 2)
    for _ in range(2):
        two.step(head, 4, 0.05, rebalanced=True)
    saved = {k: {n: t.clone() for n, t in group.items()} for k, group in two.state(2).items()}
    three, tail = an_engine(run, table, build_model(run.model.name, 10, 30.0, seed=77)), stream.batches(2, 5)
    three.load(saved)
    for _ in range(3):
        three.step(tail, 4, 0.05, rebalanced=True)
    first, second = one.state(5), three.state(5)
    assert first.keys() == second.keys() == {"model", "optim", "ema"}
    for group in first:
        assert first[group].keys() == second[group].keys() and first[group]
        assert all(torch.equal(first[group][k], second[group][k]) for k in first[group])


def test_an_average_that_begins_with_a_resume_begins_at_the_weights(digits_url):
    run = a_run("NoMix")
    stream, table = a_stream(run, digits_url)
    plain = an_engine(run, table)
    plain.step(stream.batches(0, 1), 4, 0.1, rebalanced=False)
    late = an_engine(a_run("NoMix", optim=Optim(ema=0.9)), table)
    late.load(plain.state(1))
    np.testing.assert_array_equal(flat(late.ema), flat(plain.params))


# Randomness, precision, syncs.


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
