"""The same gradient, weights and statistics at any world size, and mutations that break it."""

import functools

import numpy as np
import pytest
import torch
from engine_parts import AUGMENT, TABLE, a_run, a_stream, an_engine, distance, flat, gradient, synthetic
from ranks import on_ranks
from torch import nn

from remix_dist.config.parse import METHODS
from remix_dist.config.run import Optim
from remix_dist.train import engine as engine_module
from remix_dist.train.collective import all_reduce, rank_world
from remix_dist.types import generator

torch.set_num_threads(1)


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
