"""What stops a run, what must not, and what the launcher hears."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from session_parts import BATCH, MICRO, STEPS, Killed, a_run, assert_same_run, final, killed, url_of

from remix_dist.config.run import Checkpoints, Data, Optim, Schedule, Train
from remix_dist.data.manifest import open_shard_set
from remix_dist.launch.local import train_local
from remix_dist.rebalance.drw import DRW
from remix_dist.train import session as session_module
from remix_dist.train.checkpoint import CheckpointStore
from remix_dist.train.session import Hooks, Session
from remix_dist.types import UserError

torch.set_num_threads(1)


def test_the_launcher_hears_of_the_end(digits_url, tmp_path):
    heard = []
    result = train_local(a_run(digits_url, tmp_path), Hooks(report=heard.append))
    assert heard[-1]["step"] == STEPS and heard[-1]["eval_top1"] == result["eval"]["top1"]
    assert all(isinstance(v, int | float | str | None) for v in heard[-1].values())


def test_a_notice_of_pre_emption_saves_at_once(digits_url, tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 6))  # six seconds pass at every look
    monkeypatch.setattr(session_module.time, "monotonic", lambda: next(clock))
    saved = []
    save = CheckpointStore.save
    monkeypatch.setattr(
        CheckpointStore, "save", lambda self, step, *rest: (saved.append(step), save(self, step, *rest))[1]
    )
    asked = iter([False, True, False, False])
    options = Checkpoints(every_seconds=1e9)
    train_local(a_run(digits_url, tmp_path, checkpoint=options), Hooks(preempted=lambda: next(asked)))
    assert saved == [14, 28]  # asked at steps 7, 14, 21 and 28


def test_a_changed_recipe_is_refused_by_name_and_accepted_on_demand(digits_url, tmp_path):
    run = a_run(digits_url, tmp_path)
    killed(train_local, run, 12)
    changed = dataclasses.replace(run, optim=Optim(lr=0.02, ema=0.9), rebalance=DRW(start="decay:1"))
    with pytest.raises(UserError) as error:
        train_local(changed)
    message = str(error.value)
    assert "optim.lr: 0.05 -> 0.02" in message and "rebalance.class_path: 'DRS' -> 'DRW'" in message
    assert "checkpoint.on_change accept" in message and "train.seed" not in message
    assert CheckpointStore(url_of(run), 2).newest() == 10
    free = dataclasses.replace(run, train=dataclasses.replace(run.train, log_every=3), checkpoint=Checkpoints(keep=1))
    killed(train_local, free, 13)  # no part of the recipe
    accepted = dataclasses.replace(changed, checkpoint=Checkpoints(on_change="accept"))
    result = train_local(accepted)
    assert result["method"] == "Remix-DRW" and result["history"][-2]["lr"] == pytest.approx(0.002)
    killed_again = dataclasses.replace(changed, schedule=Schedule(epochs=1, decays=(0.5,)))
    with pytest.raises(UserError, match=r"schedule.epochs: 2 -> 1"):
        train_local(killed_again)
    with pytest.raises(UserError, match=r"schedule.epochs = 1: .*is past that, at step 28"):
        train_local(dataclasses.replace(killed_again, checkpoint=Checkpoints(on_change="accept")))


def test_an_average_may_begin_and_more_epochs_may_follow_on_demand(digits_url, tmp_path):
    run = a_run(
        digits_url, tmp_path, optim=Optim(lr=0.05), schedule=Schedule(epochs=1, decays=()), rebalance=DRW(start=0)
    )
    first = train_local(run)
    longer = dataclasses.replace(
        run, optim=Optim(lr=0.05, ema=0.9), schedule=Schedule(epochs=2, decays=()),
        checkpoint=Checkpoints(on_change="accept"),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:  # killed where the old result still lies beside the new checkpoint
        patch.setattr("remix_dist.train.result.write_result", lambda session: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train_local(longer)
    second = train_local(longer)
    assert (first["steps"], second["steps"]) == (14, 28)
    assert any(name.startswith("ema.") for name in final(longer))
    assert [r["step"] for r in second["history"] if r["kind"] == "eval"] == [14, 28]


def test_other_data_under_the_same_name_is_refused(digits_url, other_url, tmp_path):
    run = a_run(digits_url, tmp_path)
    killed(train_local, run, 6)
    with pytest.raises(UserError, match="data: '"):
        train_local(dataclasses.replace(run, data=dataclasses.replace(run.data, url=other_url)))


def test_without_any_valid_checkpoint_it_begins_anew(digits_url, tmp_path, capsys, whole):
    run = a_run(digits_url, tmp_path)
    killed(train_local, run, 6)
    for file in Path(url_of(run), "checkpoints").glob("*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-9])
    result = train_local(run)
    assert "checkpoint of step 5 is unusable and skipped" in capsys.readouterr().out
    assert_same_run(run, whole[0], result, whole[1])


@pytest.mark.parametrize("rate, last", [(math.inf, 8), (1e30, 9)])
def test_a_loss_that_is_not_finite_stops_with_a_reason_and_the_newest_checkpoint_is_finite(
    digits_url, tmp_path, whole, rate, last
):
    """An infinite rate ruins the weights of step 8 while that step's loss is finite; 1e30 shows in the next loss."""
    run = a_run(digits_url, tmp_path, checkpoint=Checkpoints(every_steps=1))
    original = session_module.learning_rate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "learning_rate", lambda step, *rest: rate if step == 8 else original(step, *rest))
        with pytest.raises(UserError, match=r"the loss is .*lower optim.lr or add schedule.warmup"):
            train_local(run)
    store = CheckpointStore(url_of(run), keep=2)
    assert store.newest() == last
    groups, _ = store.load(last)
    assert all(bool(t.isfinite().all()) for group in groups.values() for t in group.values())
    text = Path(url_of(run), "metrics.jsonl").read_text()
    assert all(json.loads(line, parse_constant=pytest.fail) for line in text.splitlines())
    if last == 8:
        train_local(run)  # nothing was lost
        assert_same_run(run, whole[0])


def test_corrupt_images_are_named_once_whatever_a_restart_forgets(digits_url, tmp_path):
    url = str(tmp_path / "damaged")
    shutil.copytree(digits_url, url)
    session = Session(a_run(url, tmp_path, "probe"), torch.device("cpu"), Hooks())
    first, late = int(session.plan.batch(0)[0]), int(session.plan.batch(11)[0])
    shards = open_shard_set(url, "train")
    for row in (first, late):
        path = Path(url, "train", shards.shards[int(shards.shard_N[row])].key)
        data = bytearray(path.read_bytes())
        data[int(shards.offset_N[row]) + 60] ^= 255
        path.write_bytes(data)
    data = Data(url=url, augment=session.run.data.augment, threads=1, max_corrupt=0.02)
    run = a_run(url, tmp_path, data=data, schedule=Schedule(epochs=1, decays=()), rebalance=DRW(start=0))
    killed(train_local, run, 8)
    result = train_local(run)
    assert [fault["row"] for fault in result["faults"]] == [first, late]
    labels = {fault["row"]: shards.label_N[fault["replaced_by"]] for fault in result["faults"]}
    assert labels == {row: shards.label_N[row] for row in (first, late)}
    assert result["history"][-2]["corrupt"] >= 1


def test_deterministic_runs_do(digits_url, tmp_path):
    short = {"schedule": Schedule(epochs=0.2, decays=()), "rebalance": DRW(start=0)}
    train = Train(global_batch=BATCH, micro_batch=MICRO, deterministic=True)
    try:
        train_local(a_run(digits_url, tmp_path, train=train, **short))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
