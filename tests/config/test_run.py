"""Run: the method's name in the literature, the identity of a run, what the recipe is."""

import dataclasses

import pytest

from remix_dist.config.run import Data, Model, Optim, Ray, Run, Train, flatten
from remix_dist.labels.remix import Remix
from remix_dist.labels.same import Same
from remix_dist.loss.cross_entropy import CrossEntropy
from remix_dist.loss.focal import Focal
from remix_dist.loss.ldam import LDAM
from remix_dist.mix.cutmix import CutMix
from remix_dist.mix.manifold_mixup import ManifoldMixup
from remix_dist.mix.mixup import Mixup
from remix_dist.mix.none import NoMix
from remix_dist.rebalance.drs import DRS
from remix_dist.rebalance.drw import DRW
from remix_dist.rebalance.none import NoRebalance
from remix_dist.rebalance.resample import Resample
from remix_dist.rebalance.reweight import Reweight


@pytest.mark.parametrize(
    "mix, labels, loss, rebalance, name",
    [
        (NoMix, Same, CrossEntropy, NoRebalance, "ERM"),
        (NoMix, Same, CrossEntropy, Resample, "RS"),
        (NoMix, Same, CrossEntropy, Reweight, "RW"),
        (NoMix, Same, CrossEntropy, DRS, "DRS"),
        (NoMix, Same, CrossEntropy, DRW, "DRW"),
        (NoMix, Same, Focal, NoRebalance, "Focal"),
        (NoMix, Same, Focal, Reweight, "CB-Focal"),
        (NoMix, Same, LDAM, NoRebalance, "LDAM"),
        (NoMix, Same, LDAM, DRW, "LDAM-DRW"),
        (Mixup, Same, CrossEntropy, NoRebalance, "Mixup"),
        (Mixup, Same, CrossEntropy, DRW, "Mixup-DRW"),
        (CutMix, Same, CrossEntropy, NoRebalance, "CutMix"),
        (ManifoldMixup, Same, CrossEntropy, NoRebalance, "Manifold-Mixup"),
        (Mixup, Remix, CrossEntropy, NoRebalance, "Remix"),
        (CutMix, Remix, CrossEntropy, NoRebalance, "Remix-CM"),
        (ManifoldMixup, Remix, CrossEntropy, NoRebalance, "Remix-MM"),
        (Mixup, Remix, CrossEntropy, Resample, "Remix-RS"),
        (Mixup, Remix, CrossEntropy, Reweight, "Remix-RW"),
        (Mixup, Remix, CrossEntropy, DRS, "Remix-DRS"),
        (Mixup, Remix, CrossEntropy, DRW, "Remix-DRW"),
        (CutMix, Remix, CrossEntropy, DRW, "Remix-CM-DRW"),
        (Mixup, Remix, LDAM, DRW, "Remix-LDAM-DRW"),
        (Mixup, Remix, LDAM, DRS, "Remix-LDAM-DRS"),
    ],
)
def test_method_has_its_name_in_the_literature(mix, labels, loss, rebalance, name):
    run = Run(mix=mix(), labels=labels(), loss=loss(), rebalance=rebalance())
    assert run.method() == name
    assert run.identity("d").startswith(f"{name.lower()}-s0-")


def test_class_balanced_focal_needs_the_effective_number():
    run = Run(mix=NoMix(), labels=Same(), loss=Focal(), rebalance=Reweight(by="inverse"))
    assert run.method() == "RW-Focal"


BASE = Run()


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(BASE, mix=Mixup(alpha=0.4)),
        dataclasses.replace(BASE, labels=Remix(tau=0.4)),
        dataclasses.replace(BASE, optim=Optim(lr=0.2)),
        dataclasses.replace(BASE, train=Train(seed=1)),
        dataclasses.replace(BASE, train=Train(micro_batch=64)),
        dataclasses.replace(BASE, model=Model(name="resnet18")),
        dataclasses.replace(BASE, data=Data(augment=dataclasses.replace(BASE.data.augment, size=160))),
    ],
)
def test_identity_changes_with_the_recipe(other):
    assert other.identity("data") != BASE.identity("data") and other.recipe() != BASE.recipe()


def test_identity_changes_with_the_data_and_is_otherwise_the_same():
    assert BASE.identity("data") == Run().identity("data") != BASE.identity("other data")


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(BASE, ray=Ray(workers=4)),
        dataclasses.replace(BASE, data=Data(url="s3://moved", threads=8, prefetch=9, cache_gb=1)),
        dataclasses.replace(BASE, train=Train(eval_every=5, log_every=7, trace=True)),
        dataclasses.replace(BASE, storage="elsewhere", export="x"),
    ],
)
def test_identity_is_blind_to_where_and_how_fast(other):
    assert other.identity("data") == BASE.identity("data") and other.recipe() == BASE.recipe()


def test_a_given_name_is_the_identity():
    assert dataclasses.replace(BASE, name="mine").identity("data") == "mine"


def test_to_dict_is_plain_and_flatten_names_every_leaf():
    flat = flatten(BASE.to_dict())
    assert flat["data.augment.mean"] == [0.485, 0.456, 0.406] and flat["labels.class_path"] == "Remix"
    assert flat["labels.init_args.kappa"] == 3.0 and flat["schedule.decays"] == [30.0, 60.0]
    assert all(isinstance(v, str | int | float | bool | list | None) for v in flat.values())
