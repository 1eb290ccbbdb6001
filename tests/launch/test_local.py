"""Training in this process: the launcher's checks without the launcher."""

import dataclasses
import sys

import pytest
import torch

from remix_dist.config.run import Checkpoints, Data, Model, Ray, Run, Schedule, Train
from remix_dist.data.augment import Augment
from remix_dist.labels.same import Same
from remix_dist.launch.local import train_local
from remix_dist.loss.ldam import LDAM
from remix_dist.mix.none import NoMix
from remix_dist.rebalance.drw import DRW
from remix_dist.types import UserError

torch.set_num_threads(1)


def a_run(url, storage, **parts):
    given = {
        "data": Data(url=url, augment=Augment(size=8, crop="shift", shift=2), threads=1),
        "model": Model("resnet8-w4"), "rebalance": DRW(start=0), "schedule": Schedule(epochs=0.5, decays=()),
        "train": Train(global_batch=48, micro_batch=24),
    } | parts  # fmt: skip
    return Run(storage=str(storage), **given)


def test_it_trains_where_ray_is_not_installed_and_names_the_run_by_its_recipe(digits_url, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n == "ray" or n.startswith("ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    run = a_run(digits_url, tmp_path)
    result = train_local(run)
    assert result["steps"] == 4 and result["world"] == 1 and len(result["eval"]["per_class"]) == 10
    assert result["name"].startswith("remix-drw-s0-") and (tmp_path / result["name"] / "result.json").exists()
    assert train_local(run) == result
    other = train_local(dataclasses.replace(run, mix=NoMix(), labels=Same()))
    assert other["name"].startswith("drw-s0-") and len(list(tmp_path.iterdir())) == 2
    assert other["mix"]["mixed_rows"] == 0 == sum(other["mix"]["lam_x_hist"])


def test_what_cannot_be_is_refused_and_what_is_doubtful_is_noted(digits_url, tmp_path, capsys):
    with pytest.raises(UserError, match="labels = Remix: cannot take effect with mix = NoMix"):
        train_local(a_run(digits_url, tmp_path, mix=NoMix()))
    with pytest.raises(UserError, match="no shard set there"):
        train_local(a_run(str(tmp_path / "nothing"), tmp_path))
    with pytest.raises(UserError, match=r"rebalance.start = 0.9: .* never acts"):
        train_local(a_run(digits_url, tmp_path, rebalance=DRW(start=0.9), schedule=Schedule(epochs=1, decays=())))
    assert not list(tmp_path.iterdir())
    train_local(a_run(digits_url, tmp_path, loss=LDAM(), schedule=Schedule(epochs=0.2, decays=())))
    assert "note: LDAM with mixing" in capsys.readouterr().out


@pytest.mark.parametrize(
    "parts, words",
    [
        (
            {"checkpoint": Checkpoints(resume="never")},
            "checkpoint.resume = never: cannot take effect.*leave it at auto",
        ),
        ({"checkpoint": Checkpoints(resume="must")}, "checkpoint.resume = must"),
        ({"ray": Ray(workers=2)}, "ray.workers = 2: cannot take effect.*leave it at 1"),
    ],
)
def test_knobs_that_only_the_launcher_honours_are_refused(digits_url, tmp_path, parts, words):
    with pytest.raises(UserError, match=words):
        train_local(a_run(digits_url, tmp_path, **parts))
    assert not list(tmp_path.iterdir())
