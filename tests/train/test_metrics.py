"""Counts on the device against literal loops, and records that survive a resume without doubles."""

import json
import math
import uuid

import fsspec
import numpy as np
import pytest
import torch

from remix_dist.config.run import Run
from remix_dist.train import journal
from remix_dist.train.checkpoint import write_text
from remix_dist.train.metrics import BINS, Meter
from remix_dist.types import UserError, generator

CPU = torch.device("cpu")
WEIGHTS = [torch.ones(3), torch.zeros(2, 2)]


def fed(meter, batches):
    """Feed mixed batches drawn from a generator; the literal counts of the same rows."""
    seen = {"rows": 0, "mixed": 0, "relabelled": 0, "classes": [0] * 4, "x": [0] * 21, "y": [0] * 21}
    for k in batches:
        rng = generator(1, "meter", k)
        labels, lam_x = rng.integers(0, 4, 10), rng.random(10, np.float32)
        lam_x[0] = (0.0, 1.0, 0.05, 0.99999994)[k % 4]
        lam_y = np.where(rng.random(10) < 0.3, np.float32(rng.integers(0, 2)), lam_x)
        mixed = k % 3 != 2
        meter.add(*(torch.from_numpy(a) for a in (labels, lam_x, lam_y)), mixed)
        seen["rows"] += 10
        for c, x, y in zip(labels, lam_x, lam_y, strict=True):
            seen["classes"][c] += 1
            if mixed:
                seen["mixed"] += 1
                seen["relabelled"] += bool(x != y)
                for name, lam in (("x", x), ("y", y)):
                    place = 20 if lam == 1 else next(b for b in range(20) if float(lam) < (b + 1) / 20)
                    seen[name][place] += 1
    return seen


def test_counts_are_those_of_a_literal_loop():
    meter = Meter(4, CPU)
    seen = fed(meter, range(12))
    assert meter.rows.tolist() == [seen["rows"], seen["mixed"], seen["relabelled"]]
    assert meter.delivered_C.tolist() == seen["classes"]
    assert meter.hist.tolist() == [seen["x"], seen["y"]]
    assert seen["x"][20] == 2 and seen["y"][20] > 5 and seen["relabelled"] > 10 and BINS == 20


def test_a_fetch_gives_what_came_since_the_last_one_and_leaves_the_totals():
    meter = Meter(4, CPU)
    first = fed(meter, range(2))
    meter.sums += torch.tensor([6.0, 4.0])
    assert meter.fetch(WEIGHTS) == {"loss": 1.5, "rows": 20, "relabelled": first["relabelled"] / 20}
    assert meter.fetch(WEIGHTS) == {"loss": 0.0, "rows": 0, "relabelled": 0.0}
    second = fed(meter, range(3, 5))
    meter.sums += torch.tensor([1.0, 8.0])
    assert meter.fetch(WEIGHTS) == {"loss": 0.125, "rows": 20, "relabelled": second["relabelled"] / 20}
    assert meter.rows[0] == 40


def test_saved_totals_go_on_and_are_not_fetched_again():
    one, two = Meter(4, CPU), Meter(4, CPU)
    fed(one, range(5))
    two.load({k: v.clone() for k, v in one.state().items()})
    assert two.fetch(WEIGHTS)["rows"] == 0
    for meter in (one, two):
        fed(meter, range(5, 8))
    assert all(torch.equal(one.state()[k], two.state()[k]) for k in one.state())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_or_a_weight_that_is_not_finite_is_an_error_that_says_what_to_do(bad):
    meter = Meter(4, CPU)
    meter.sums += torch.tensor([bad, 4.0])
    with pytest.raises(UserError, match=r"the loss is -?(nan|inf).*lower optim.lr or add schedule.warmup.*--name"):
        meter.fetch(WEIGHTS)
    meter = Meter(4, CPU)
    meter.sums += torch.tensor([2.0, 4.0])
    with pytest.raises(UserError, match=r"the loss is 0.5, the largest weight (nan|inf): lower optim.lr"):
        meter.fetch([*WEIGHTS, torch.tensor([1.0, bad])])


def record(kind, step, **more):
    return {"kind": kind, "step": step, "loss": 0.5 + step, "few": None, **more}


def lines(text):
    def refuse(word):
        raise ValueError(word)

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def a_journal(url, history):
    return journal.Journal(Run(), url, 100, history)


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_resume_never_doubles_a_line(tmp_path, scheme):
    url = str(tmp_path / "run") if scheme == "file" else f"memory://{uuid.uuid4().hex}/run"
    first = a_journal(url, [])
    for step in (2, 4, 6):
        first.add(record("train", step))
    first.add(record("eval", 6))
    first.flush()
    fs, path = fsspec.core.url_to_fs(f"{url}/metrics.jsonl")
    assert [(r["kind"], r["step"]) for r in lines(fs.cat_file(path).decode())][-1] == ("eval", 6)
    second = a_journal(url, first.history[:2])  # the checkpoint was of step 4
    for step in (6, 8):
        second.add(record("train", step))
    second.flush()
    found = lines(fs.cat_file(path).decode())
    assert [(r["kind"], r["step"]) for r in found] == [("train", s) for s in (2, 4, 6, 8)]
    assert found == second.history


def test_an_evaluation_repeated_by_a_resume_is_one_record(tmp_path):
    recorder = a_journal(str(tmp_path), [record("train", 6), record("eval", 6)])
    recorder.add(record("eval", 6))
    recorder.add(record("train", 7))
    recorder.add(record("eval", 7))
    assert [(r["kind"], r["step"]) for r in recorder.history] == [("train", 6), ("eval", 6), ("train", 7), ("eval", 7)]


def test_numbers_reach_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    recorder = a_journal(str(tmp_path), [])
    recorder.add(record("train", 3))
    recorder.board.close()
    data = b"".join(p.read_bytes() for p in (tmp_path / "tb").iterdir())
    assert b"train/loss" in data and b"train/few" not in data and b"train/kind" not in data


def test_without_tensorboard_the_lines_are_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    recorder = a_journal(str(tmp_path), [])
    recorder.add(record("train", 3))
    assert lines((tmp_path / "metrics.jsonl").read_text()) == [record("train", 3)]


def test_files_are_not_rewritten_at_every_record(tmp_path, monkeypatch):
    recorder, written = a_journal(str(tmp_path), []), []
    monkeypatch.setattr(journal, "write_text", lambda fs, path, text: written.append(text))
    for step in range(50):
        recorder.add(record("train", step))
    assert len(written) == 1


def test_a_text_that_is_interrupted_leaves_the_old_one(tmp_path, monkeypatch):
    fs, path = fsspec.filesystem("file"), str(tmp_path / "deep" / "a.json")
    write_text(fs, path, "old")
    monkeypatch.setattr(fs, "mv", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_text(fs, path, "new")
    assert fs.cat_file(path) == b"old"
