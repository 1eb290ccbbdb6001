"""A run from data to result: what is stopped anywhere and started again is, bit for bit, what was never stopped."""

import dataclasses
import json
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from session_parts import (
    BATCH,
    ROWS,
    STEPS,
    Killed,
    a_run,
    assert_every_row_once_an_epoch,
    assert_same_run,
    final,
    killed,
    lineage,
    url_of,
)

from remix_dist.config.parse import run_from_dict
from remix_dist.config.run import Train
from remix_dist.data.cache import ShardCache
from remix_dist.data.manifest import open_shard_set
from remix_dist.data.plan import Plan
from remix_dist.data.stream import Stream
from remix_dist.launch.local import train_local
from remix_dist.model import build_model
from remix_dist.rebalance.drs import DRS
from remix_dist.rebalance.drw import DRW
from remix_dist.train.checkpoint import CheckpointStore
from remix_dist.train.engine import Engine
from remix_dist.train.evaluate import evaluate, shot_groups
from remix_dist.train.session import Hooks

torch.set_num_threads(1)


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
        patch.setattr("remix_dist.train.result.write_result", lambda session: (_ for _ in ()).throw(Killed))
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
