"""The launcher: what it refuses before a worker starts, and one real Ray fit."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from remix_dist.config.prepare import prepare
from remix_dist.config.run import Checkpoints, Data, Model, Optim, Ray, Run, Schedule, Train
from remix_dist.data.augment import Augment
from remix_dist.launch.train import train
from remix_dist.rebalance.drw import DRW
from remix_dist.train.checkpoint import CheckpointStore
from remix_dist.types import UserError


@pytest.fixture
def small(digits_url: str, tmp_path: Path) -> Run:
    """A run of seconds on the digits, with mixing, BatchNorm and DRW."""
    return Run(
        storage=str(tmp_path / "runs"),
        data=Data(url=digits_url, threads=1, augment=Augment(size=8, crop="shift", shift=2, flip=False)),
        model=Model(name="resnet8-w8"),
        optim=Optim(lr=0.1),
        rebalance=DRW(start=0.5),
        schedule=Schedule(epochs=2, decays=(1,)),
        train=Train(global_batch=32, micro_batch=8, deterministic=True, log_every=5),
        ray=Ray(address="local", workers=2, gpu="no"),
    )


@pytest.fixture
def ray_local(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small private cluster; its workers find this tree whether or not it is installed."""
    ray = pytest.importorskip("ray")
    root = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # one process less to start
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))
    ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
    yield
    ray.shutdown()


def test_prepare_settles_name_and_places(small: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    run = prepare(dataclasses.replace(small, storage="here"))
    assert run.storage == str(tmp_path / "here")
    assert run.name is not None and run.name.startswith("remix-drw-s0-")
    assert not (tmp_path / "here").exists()


def test_resume_must_and_never(small: Run) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.resume = must.*no checkpoint"):
        prepare(dataclasses.replace(small, name="a", checkpoint=Checkpoints(resume="must")))
    Path(small.storage, "a").mkdir(parents=True)
    Path(small.storage, "a-2").mkdir()
    assert prepare(dataclasses.replace(small, name="a", checkpoint=Checkpoints(resume="never"))).name == "a-3"
    assert prepare(dataclasses.replace(small, name="a")).name == "a"


def test_missing_shards_are_named_before_any_worker(small: Run, tmp_path: Path) -> None:
    run = dataclasses.replace(small, data=dataclasses.replace(small.data, url=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"nowhere/train: no shard set"):
        prepare(run)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_fit_on_two_workers(small: Run, ray_local: None, capfd: pytest.CaptureFixture[str]) -> None:
    """One fit of two runs in one worker group; the second time nothing is trained again."""
    runs = [prepare(dataclasses.replace(small, train=dataclasses.replace(small.train, seed=s))) for s in (0, 1)]
    results = train(runs)
    assert [r["seed"] for r in results] == [0, 1]
    assert all(r["world"] == 2 and r["restarts"] == 0 and r["method"] == "Remix-DRW" for r in results)
    assert all(0 < r["mix"]["relabelled"] < 1 for r in results)
    url = f"{runs[0].storage}/{runs[0].name}"
    stored = json.loads(Path(url, "result.json").read_text())
    assert stored["eval"] == results[0]["eval"]
    assert CheckpointStore(url, keep=1).newest() == results[0]["steps"]
    assert not list(Path(runs[0].storage, ".ray").glob("fit-*"))  # Ray's own state has served

    before = Path(url, "metrics.jsonl").read_text()
    assert train(runs) == results
    assert Path(url, "metrics.jsonl").read_text() == before
    assert "already finished" in capfd.readouterr().out


@pytest.mark.system
@pytest.mark.ray
def test_a_users_mistake_is_not_retried(small: Run, ray_local: None) -> None:
    """A loss that explodes ends in the message of the worker, after one clean restart and not three."""
    run = dataclasses.replace(small, optim=Optim(lr=1e30), name="explodes")
    with pytest.raises(UserError, match=r"loss is (nan|inf)"):
        train([prepare(run)])
