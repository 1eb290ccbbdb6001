"""Settings that cannot be what they say are refused in one line that names key, value and way out."""

import dataclasses
import types

import numpy as np
import pytest
import torch

from remix_dist.config.check import check_data, check_run, recipe_difference
from remix_dist.config.run import Checkpoints, Data, Model, Optim, Ray, Run, Schedule, Train
from remix_dist.data.augment import Augment
from remix_dist.labels.same import Same
from remix_dist.loss.ldam import LDAM
from remix_dist.mix.manifold_mixup import ManifoldMixup
from remix_dist.mix.mixup import Mixup
from remix_dist.mix.none import NoMix
from remix_dist.model import nets_timm
from remix_dist.rebalance.reweight import Reweight
from remix_dist.types import UserError

NAN = float("nan")
REFUSED = [
    (Run(mix=NoMix()), ["labels = Remix", "mix = NoMix", "--mix Mixup", "--labels Same"]),
    (Run(train=Train(global_batch=100)), ["train.global_batch = 100", "train.micro_batch = 32", "96"]),
    (Run(train=Train(global_batch=120)), ["train.global_batch = 120", "128 would be"]),
    (Run(train=Train(global_batch=8)), ["train.global_batch = 8", "32 would be"]),
    (Run(train=Train(global_batch=0)), ["train.global_batch = 0", "32 would be"]),
    (Run(train=Train(micro_batch=1)), ["train.micro_batch = 1", "2 rows"]),
    (Run(train=Train(micro_batch=0)), ["train.micro_batch = 0", "2 rows"]),
    (Run(ray=Ray(workers=9)), ["ray.workers = 9", "8 micro-batches", "train.micro_batch"]),
    (Run(ray=Ray(workers=0)), ["ray.workers = 0"]),
    (Run(schedule=Schedule(epochs=50)), ["schedule.decays = [30.0, 60.0]", "50 epochs", "[17, 33]"]),
    (Run(schedule=Schedule(epochs=1)), ["schedule.decays = [30.0, 60.0]", "1 epochs", "[]"]),
    (Run(schedule=Schedule(decays=(0, 60))), ["schedule.decays = [0, 60]"]),
    (Run(schedule=Schedule(kind="cosine", decays=(10,))), ["schedule.decays = [10]", "cosine"]),
    (Run(schedule=Schedule(warmup=90)), ["schedule.warmup = 90", "[0, schedule.epochs)"]),
    (Run(schedule=Schedule(epochs=float("inf"))), ["schedule.epochs = inf"]),
    (Run(schedule=Schedule(factor=0)), ["schedule.factor = 0"]),
    (Run(optim=Optim(ema=1.0)), ["optim.ema = 1.0", "(0, 1)", "0.9999"]),
    (Run(optim=Optim(ema=0.0)), ["optim.ema = 0.0"]),
    (Run(optim=Optim(nesterov=True, momentum=0)), ["optim.nesterov", "optim.momentum = 0"]),
    (Run(optim=Optim(lr=NAN)), ["optim.lr = nan", "greater than 0"]),
    (Run(optim=Optim(weight_decay=-1e-4)), ["optim.weight_decay = -0.0001", "[0, 1]"]),
    (Run(optim=Optim(momentum=1.5)), ["optim.momentum = 1.5", "[0, 1]"]),
    (Run(data=Data(threads=0)), ["data.threads = 0"]),
    (Run(data=Data(augment=Augment(jitter=4))), ["data.augment.jitter = 4", "[0, 1]"]),
    (Run(train=Train(seed=-1)), ["train.seed = -1"]),
    (Run(train=Train(many_above=10)), ["train.few_below = 20", "train.many_above = 10", "11"]),
    (Run(checkpoint=Checkpoints(keep=0)), ["checkpoint.keep = 0"]),
    (Run(mix=ManifoldMixup(), model=Model(name="vit_b_16")), ["mix.layers", "vit_b_16", "resnet50", "--mix Mixup"]),
    (Run(mix=ManifoldMixup(layers=(0, 4)), model=Model(name="resnet32")), ["mix.layers = [0, 4]", "0 to 3"]),
]


@pytest.mark.parametrize("run, parts", REFUSED, ids=[" ".join(parts) for _, parts in REFUSED])
def test_refused(run, parts):
    with pytest.raises(UserError) as error:
        check_run(run)
    line = str(error.value)
    assert "\n" not in line and all(part in line for part in parts), line


class Split(types.SimpleNamespace):
    """What check_data reads of a shard set."""

    def __len__(self):
        return self.rows


def checked(run, classes, count_C, val_classes, val_rows=1):
    train = Split(classes=classes, count_C=count_C, rows=int(count_C.sum()))
    return check_data(run, train, Split(classes=val_classes, rows=val_rows))


def test_a_model_that_nobody_builds_is_refused_before_a_worker_starts(monkeypatch):
    monkeypatch.setattr(nets_timm, "names", list)  # importing timm takes seconds
    with pytest.raises(UserError, match=r"'resnt50' is unknown; did you mean .*resnet50"):
        check_run(Run(model=Model(name="resnt50")))


@pytest.mark.parametrize("name", ["resnet32", "resnet50", "wide_resnet50_2", "resnext50_32x4d"])
def test_manifold_mixup_takes_every_backbone_with_mix_points(name):
    before = torch.get_rng_state()
    check_run(Run(mix=ManifoldMixup(), model=Model(name=name)))
    assert torch.equal(torch.get_rng_state(), before)


def test_accepted_edges():
    long = Schedule(epochs=200, decays=(75, 150))
    assert check_run(Run(schedule=long)) == []
    assert check_run(Run(schedule=Schedule(kind="cosine", epochs=200))) == []
    assert check_run(Run(schedule=long, ray=Ray(workers=8), train=Train(many_above=19))) == []
    assert check_run(Run(schedule=long, optim=Optim(momentum=0, ema=0.5))) == []


def test_warnings():
    assert "200 epochs" in check_run(Run())[0]
    small = Augment(size=32, crop="shift")
    assert check_run(Run(data=Data(augment=small))) == []
    assert check_run(Run(mix=NoMix(), labels=Same())) == []
    assert "compete" in check_run(Run(loss=LDAM(), data=Data(augment=small)))[0]


def test_data_without_an_image_of_a_class_is_refused_by_name():
    with pytest.raises(UserError, match=r"^data\.url = demo: 1 class\(es\) without a training image \('b'\); [^\n]+$"):
        checked(Run(), ("a", "b"), np.array([3, 0]), ("a", "b"))
    with pytest.raises(UserError, match=r"^data\.url = demo: train and val name different classes[^\n]+$"):
        checked(Run(), ("a", "b"), np.array([3, 1]), ("b", "a"))


def test_remix_rw_on_many_classes_is_a_warning():
    names, counts = tuple(map(str, range(100))), np.arange(1, 101)
    run = Run(mix=Mixup(), rebalance=Reweight())
    assert "try DRW" in checked(run, names, counts, names)[0]
    assert checked(run, names[:99], counts[:99], names[:99]) == []
    assert checked(dataclasses.replace(run, mix=NoMix(), labels=Same()), names, counts, names) == []


def test_recipe_difference_names_knobs():
    old, new = Run().recipe(), Run(optim=Optim(lr=0.2), rebalance=Reweight()).recipe()
    lines = recipe_difference(old, new)
    assert "optim.lr: 0.1 -> 0.2" in lines and "rebalance.class_path: 'DRW' -> 'Reweight'" in lines
    assert "rebalance.init_args.start: 'decay:2' -> None" in lines and len(lines) == 3


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(UserError, match=r"data\.val_split = val: has no image"):
        checked(Run(), ("a",), np.array([3]), ("a",), val_rows=0)


def test_a_trace_needs_files_that_can_be_appended_to():
    with pytest.raises(UserError, match=r"train\.trace = true"):
        check_run(Run(storage="s3://bucket/runs", train=Train(trace=True)))


@pytest.mark.parametrize(
    "key, run",
    [
        ("data.augment.min_area", Run(data=Data(augment=Augment(min_area=0.5)))),
        ("data.augment.shift", Run(data=Data(augment=Augment(crop="center", shift=2)))),
        ("schedule.factor", Run(schedule=Schedule(kind="cosine", factor=0.5), rebalance=Reweight())),
        ("schedule.factor", Run(schedule=Schedule(decays=(), factor=0.5), rebalance=Reweight())),
        ("checkpoint.every_steps", Run(checkpoint=Checkpoints(every_steps=0))),
    ],
)
def test_a_knob_that_would_silently_do_nothing_is_refused(key, run):
    with pytest.raises(UserError, match=f"^{key} = "):
        check_run(run)
