"""A run from data to result: what is stopped anywhere and started again is, bit for bit, what was never stopped."""

import dataclasses
import json
import math
import shutil
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import on_ranks

from remix_dist.config.parse import run_from_dict
from remix_dist.config.run import Checkpoints, Data, Model, Optim, Run, Schedule, Train
from remix_dist.data.augment import Augment
from remix_dist.data.cache import ShardCache
from remix_dist.data.manifest import open_shard_set
from remix_dist.data.plan import Plan
from remix_dist.data.sources import SourceOptions
from remix_dist.data.stream import Stream
from remix_dist.launch.local import train_local
from remix_dist.launch.shards import MakeShards, make_shards
from remix_dist.model import build_model
from remix_dist.rebalance.drs import DRS
from remix_dist.rebalance.drw import DRW
from remix_dist.train import session as session_module
from remix_dist.train.checkpoint import CheckpointStore
from remix_dist.train.collective import rank_world
from remix_dist.train.engine import Engine
from remix_dist.train.evaluate import evaluate, shot_groups
from remix_dist.train.session import Hooks, Session
from remix_dist.types import UserError

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


@pytest.fixture(scope="module")
def whole(digits_url, tmp_path_factory):
    """The run that nobody disturbs, and its result."""
    run = a_run(digits_url, tmp_path_factory.mktemp("whole"))
    return run, train_local(run)


# Bitwise in one process.


@pytest.mark.parametrize("step", [2, 6, 13, 17, 27])
def test_killed_before_any_step_and_continued_it_is_the_same_run(whole, digits_url, tmp_path, step):
    run = a_run(digits_url, tmp_path)
    killed(train_local, run, step)
    store = CheckpointStore(url_of(run), keep=2)
    assert store.newest() == (step // 5 * 5 or None) or step == 27
    result = train_local(run)
    assert_same_run(run, whole[0], result, whole[1])
    assert result["restarts"] == (1 if step >= 5 else 0)
    order = assert_every_row_once_an_epoch(run, epochs=1)
    assert order == [row for s in range(STEPS) for m in range(3) for row in lineage(whole[0])[s][m]]


def test_killed_again_and_again_by_whatever_calls_back_it_is_the_same_run(whole, digits_url, tmp_path):
    run, calls = a_run(digits_url, tmp_path), Counter()

    def preempted():
        calls["all"] += 1
        if calls["all"] in (3, 5, 6, 9):
            raise Killed
        return False

    for _ in range(4):
        with pytest.raises(Killed):
            train_local(run, Hooks(preempted=preempted))
    result = train_local(run, Hooks(preempted=preempted))
    assert_same_run(run, whole[0], result, whole[1])
    assert result["restarts"] == 2  # those that came to a checkpoint: of step 5 and of step 10


def test_killed_within_the_write_of_a_checkpoint_it_is_the_same_run(whole, digits_url, tmp_path, capsys):
    run = a_run(digits_url, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        write = CheckpointStore._write

        def die(self, path, data):
            if "0000000010/optim" in path:
                write(self, path, data[:100])
                raise Killed
            write(self, path, data)

        patch.setattr(CheckpointStore, "_write", die)
        with pytest.raises(Killed):
            train_local(run)
    result = train_local(run)
    said = capsys.readouterr().out
    assert "checkpoint of step 10 is unusable and skipped" in said and "continues from the checkpoint of step 5" in said
    assert_same_run(run, whole[0], result, whole[1])


def test_killed_between_the_last_checkpoint_and_the_result_it_only_finishes(whole, digits_url, tmp_path):
    run = a_run(digits_url, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "write_result", lambda session: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train_local(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", lambda *args, **kwargs: pytest.fail("it trained on"))
        result = train_local(run)
    assert_same_run(run, whole[0], result, whole[1])
    assert [r["step"] for r in result["history"] if r["kind"] == "eval"] == [14, 28]


def test_a_finished_run_is_not_trained_again(whole, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", lambda *args, **kwargs: pytest.fail("it trained again"))
        again = train_local(whole[0])
    assert again == json.loads(Path(url_of(whole[0]), "result.json").read_text())
    assert "already finished (28 steps)" in capsys.readouterr().out


def test_the_seed_names_the_run_and_nothing_else_does(whole, digits_url, tmp_path):
    train = dataclasses.replace(whole[0].train, trace=False)
    same = a_run(digits_url, tmp_path, "same", train=dataclasses.replace(train, eval_every=5.0, log_every=100))
    other = a_run(digits_url, tmp_path, "other", train=dataclasses.replace(train, seed=1))
    for run in (same, other):
        train_local(run)
    assert_same_run(same, whole[0])
    assert not np.array_equal(final(other)["model.net.conv1.weight"], final(same)["model.net.conv1.weight"])


def test_a_run_lives_in_any_store(digits_url):
    run = a_run(digits_url, f"memory://{uuid.uuid4().hex}", train=Train(global_batch=48, micro_batch=24))
    killed(train_local, run, 9)
    result = train_local(run)
    assert result["steps"] == 14 and result["restarts"] == 1
    final(run, step=14)


# What is written.


def test_the_result_says_everything(whole):
    run, result = whole
    folder = Path(url_of(run))
    shards = open_shard_set(run.data.url, "train")
    assert json.loads((folder / "result.json").read_text(), parse_constant=pytest.fail) == result
    assert result["name"] == "run" and result["method"] == "Remix-DRS" and result["seed"] == 0
    assert (result["steps"], result["epochs"], result["world"], result["rows"]) == (STEPS, 2, 1, ROWS)
    assert result["class_counts"] == shards.count_C.tolist() and result["classes"] == [str(k) for k in range(10)]
    assert result["data_digest"] == shards.digest and result["restarts"] == 0 and result["faults"] == []
    assert result["groups"] == {"many": [0], "medium": [1, 2, 3], "few": [4, 5, 6, 7, 8, 9]}
    assert result["versions"]["torch"] == torch.__version__ and result["seconds"] > 0 and result["images_per_s"] > 0
    assert 0 <= result["data_wait"] <= 1 and result["device"].startswith(("cpu", "NVIDIA"))
    assert run_from_dict(result["config"]) == run

    scores, mix = result["eval"], result["mix"]
    assert {"top1", "top5", "balanced", "many", "medium", "few", "ece", "loss"} <= scores.keys()
    assert len(scores["per_class"]) == 10 and scores["support"] == [40] * 10 and len(scores["ece_bins"]) == 15
    assert scores["balanced"] == pytest.approx(np.mean(scores["per_class"])) == pytest.approx(scores["top1"])
    assert scores["few"] == pytest.approx(np.mean(scores["per_class"][4:]))
    assert sum(b["count"] for b in scores["ece_bins"]) == 400
    assert len(mix["lam_x_hist"]) == 20 and len(mix["lam_y_hist"]) == 21
    assert sum(mix["lam_x_hist"]) == sum(mix["lam_y_hist"]) == mix["mixed_rows"] == STEPS * BATCH
    assert 0.05 < mix["relabelled"] < 0.5
    assert mix["lam_y_hist"][20] > 0 and mix["lam_y_hist"][0] > mix["lam_x_hist"][0]


def test_the_records_are_those_of_the_files_and_tell_the_schedule(whole):
    run, result = whole
    lines = [
        json.loads(s, parse_constant=pytest.fail) for s in Path(url_of(run), "metrics.jsonl").read_text().splitlines()
    ]
    assert lines == result["history"]
    train, scores = ([r for r in lines if r["kind"] == kind] for kind in ("train", "eval"))
    # every 7th step is recorded; so is each that is saved, and each that is evaluated
    assert [r["step"] for r in train] == [5, 7, 10, 14, 15, 20, 21, 25, 28]
    assert [r["step"] for r in scores] == [14, 28] and scores[1]["top1"] == result["eval"]["top1"]
    assert len({(r["kind"], r["step"]) for r in lines}) == len(lines)
    assert [r["lr"] for r in train] == pytest.approx([0.05] * 4 + [0.005] * 5)
    assert [r["rebalanced"] for r in train] == [False] * 4 + [True] * 5
    steps = np.diff([0, *(r["step"] for r in train)])
    relabelled = float(steps @ [r["relabelled"] for r in train])
    assert relabelled / STEPS == pytest.approx(result["mix"]["relabelled"])
    assert all(r["corrupt"] == 0 and 0 <= r["data_wait"] <= 1 and r["images_per_s"] > 0 for r in train)
    assert train[0]["loss"] > train[3]["loss"] > 0


@pytest.mark.parametrize("method", [DRW, DRS])
def test_the_deferred_phase_begins_with_the_first_step_of_its_epoch(digits_url, tmp_path, monkeypatch, method):
    """Step 14 is the first that begins in epoch 1: there the rate decays and the weights begin. The rows of epoch 1
    follow row 329, in the middle of step 13."""
    found, step = [], Engine.step

    def spy(self, batches, count, lr, rebalanced):
        found.append((count, lr, rebalanced))
        step(self, batches, count, lr, rebalanced)

    monkeypatch.setattr(Engine, "step", spy)
    run = a_run(digits_url, tmp_path, rebalance=method(start="decay:1", by="power", power=0.0))
    train_local(run)
    assert found == [(3, 0.05, False)] * 14 + [(3, pytest.approx(0.005), True)] * 14
    label_N = open_shard_set(digits_url, "train").label_N
    seen = lineage(run)
    order = [row for s in range(STEPS) for m in range(3) for row in seen[s][m]]
    count_C = np.bincount(label_N[order[ROWS : 2 * ROWS]], minlength=10)
    assert count_C.min() == (32 if method is DRS else 1)  # 329 rows over 10 classes, or each row once


def test_what_is_evaluated_is_the_average_with_the_running_statistics(whole):
    run, result = whole
    groups, _ = CheckpointStore(url_of(run), keep=1).load(STEPS)
    shards = open_shard_set(run.data.url, "val")
    plan = Plan(shards.label_N, shards.shard_N, seed=0, global_batch=8)
    stream = Stream(shards, ShardCache(shards, "unused", 0), plan, run.data.augment, micro_batch=100)
    found = {}
    for kind in ("model", "ema"):
        model = build_model("resnet8-w4", 10)
        model.load_state_dict({**groups["model"], **groups[kind]})
        parts = shot_groups(np.array(result["class_counts"]), run.train)
        found[kind] = evaluate(model, stream, parts, torch.device("cpu"), bf16=False)
    assert found["ema"]["loss"] == pytest.approx(result["eval"]["loss"], rel=1e-6) != found["model"]["loss"]
    assert found["ema"]["per_class"] == result["eval"]["per_class"]


def test_the_launcher_hears_of_the_end(digits_url, tmp_path):
    heard = []
    result = train_local(a_run(digits_url, tmp_path), Hooks(report=heard.append))
    assert heard[-1]["step"] == STEPS and heard[-1]["top1"] == result["eval"]["top1"]
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


# What stops a run, or must not.


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
        patch.setattr(session_module, "write_result", lambda session: (_ for _ in ()).throw(Killed))
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


# On ranks.


@pytest.fixture(scope="module")
def other_url(tmp_path_factory):
    """The digits with another long tail, so other class counts."""
    url = str(tmp_path_factory.mktemp("other"))
    make_shards(MakeShards(SourceOptions("digits"), url, workers=0, longtail="exp", ratio=10.0), say=lambda line: None)
    return url


def start_rank(run):
    return Session(run, torch.device("cpu"), Hooks()).train()


def two_ranks(url, other, storage):
    """What a world of two can answer: undisturbed, killed within epoch 1 and 2 and continued, left, and misled."""
    whole, broken, moved = (a_run(url, storage, name) for name in ("whole2", "broken2", "moved"))
    results = [start_rank(whole)]
    for step in (9, 18):
        killed(start_rank, broken, step)
    results.append(start_rank(broken))
    killed(start_rank, moved, 17)
    again = start_rank(whole)
    misled = a_run(other if rank_world()[0] else url, storage, "misled")
    try:
        start_rank(misled)
        error = ""
    except RuntimeError as found:
        error = str(found)
    return (
        [r and {k: r[k] for k in ("eval", "mix", "history", "world", "restarts")} for r in results],
        bool(again),
        error,
    )


def three_ranks(url, storage):
    """A world of three continues what two began, and is killed itself."""
    whole, broken, moved = (a_run(url, storage, name) for name in ("whole3", "broken3", "moved"))
    results = [start_rank(moved), start_rank(whole)]
    killed(start_rank, broken, 13)
    results.append(start_rank(broken))
    return [r and {k: r[k] for k in ("eval", "mix", "history", "world", "restarts")} for r in results]


@pytest.fixture(scope="module")
def worlds(digits_url, other_url, tmp_path_factory):
    """The storage of all runs on ranks, and what each rank gave."""
    storage = str(tmp_path_factory.mktemp("worlds"))
    return (
        storage,
        on_ranks(2, two_ranks, digits_url, other_url, storage),
        on_ranks(3, three_ranks, digits_url, storage),
    )


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_that_are_killed_and_continue_give_the_same_run_bit_for_bit(worlds, digits_url, world):
    one, other = (a_run(digits_url, worlds[0], f"{name}{world}") for name in ("broken", "whole"))
    found = worlds[1][0][0] if world == 2 else worlds[2][0][1:]
    assert found[0]["world"] == found[1]["world"] == world and found[1]["restarts"] == (2 if world == 2 else 1)
    assert_same_run(one, other, found[1], found[0])
    assert_every_row_once_an_epoch(one, epochs=1)
    assert len(list(Path(url_of(one), "trace").iterdir())) >= 2 * world


def test_only_rank_zero_has_the_result_and_a_finished_run_stays(worlds):
    (zero, again, _), (one, _, _) = worlds[1]
    assert all(zero) and not any(one) and again


@pytest.mark.parametrize("name", ["moved", "whole2", "whole3"])
def test_a_run_at_another_world_size_is_the_same_to_rounding(worlds, whole, digits_url, name):
    """`moved` began on two ranks and went on, within an epoch, on three."""
    run = a_run(digits_url, worlds[0], name)
    found, expected = final(run), final(whole[0])
    assert found.keys() == expected.keys()
    for key in expected:
        if key.startswith("meter"):
            assert np.array_equal(found[key], expected[key]), key
        else:
            scale = np.abs(expected[key]).max() + 1e-6
            np.testing.assert_allclose(found[key] / scale, expected[key] / scale, atol=1e-3, err_msg=key)
    order = assert_every_row_once_an_epoch(run, epochs=1)
    assert order == assert_every_row_once_an_epoch(whole[0], epochs=1)


def test_ranks_that_read_other_class_counts_stop(worlds):
    for _, _, error in worlds[1]:
        assert "class counts differ between ranks" in error and "data.url" in error
    assert not Path(worlds[0], "misled").exists()
