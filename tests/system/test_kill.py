"""kill -9 of a worker and of the driver: the final weights are bitwise those of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
EPOCHS, BATCH = 3, 24


def command(url: str, storage: Path, workers: int) -> list[str]:
    """A small run with mixing, BatchNorm and deferred resampling, checkpointed every 4 steps and traced."""
    knobs = {
        "name": "run", "storage": storage, "data.url": url, "data.augment.size": 8, "data.augment.crop": "shift",
        "data.augment.shift": 2, "model.name": "resnet8-w8", "schedule.epochs": EPOCHS, "schedule.decays": "[1,2]",
        "rebalance": "DRS", "rebalance.start": "decay:1", "train.global_batch": BATCH, "train.micro_batch": 4,
        "train.trace": "true", "train.deterministic": "true", "train.log_every": 4, "checkpoint.every_steps": 4,
        "ray.workers": workers, "ray.address": "local", "ray.gpu": "no",
    }  # fmt: skip
    words = [word for key, value in knobs.items() for word in (f"--{key}", str(value))]
    return [sys.executable, str(REPO / "jobs" / "inat_remix.py"), *words]


def start(words: list[str], log: Path) -> subprocess.Popen:
    """The job in a process of its own, its output in a file."""
    env = {**os.environ, "PYTHONPATH": str(REPO), "RAY_AUTH_MODE": "disabled"}
    with open(log, "ab") as sink:
        return subprocess.Popen(words, cwd=log.parent, env=env, stdout=sink, stderr=subprocess.STDOUT)


def traced(storage: Path, attempt: int, rank: int) -> tuple[int, int]:
    """(pid, micro-batches consumed) of a rank in an attempt, once it has begun; (0, 0) before."""
    for file in (storage / "run" / "trace").glob(f"start{attempt}-*-rank{rank}-of-*.jsonl"):
        return int(file.stem.rpartition("pid")[2]), file.read_bytes().count(b"\n")
    return 0, 0


def wait_for(storage: Path, attempt: int, rank: int, micro_batches: int, job: subprocess.Popen) -> int:
    """The rank's pid as soon as it consumed that many micro-batches in that attempt."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        pid, done = traced(storage, attempt, rank)
        if done >= micro_batches:
            return pid
        assert job.poll() is None, "the job ended before it could be killed"
        time.sleep(0.02)
    raise AssertionError("the job made no progress")


def weights(storage: Path) -> dict[str, bytes]:
    """Every tensor file of the last checkpoint."""
    last = max((storage / "run" / "checkpoints").iterdir())
    return {f.name: f.read_bytes() for f in last.glob("*.safetensors")}


def lineage(storage: Path) -> list[int]:
    """Row ids that made the final weights, in step order: of each attempt the steps before the next one's start."""
    attempts: dict[int, tuple[int, dict[tuple[int, int], list[int]]]] = {}
    for file in (storage / "run" / "trace").iterdir():
        head = file.name.split("-")
        number, first = int(head[0].removeprefix("start")), int(head[1].removeprefix("step"))
        places = attempts.setdefault(number, (first, {}))[1]
        for line in file.read_text().splitlines():
            if line.endswith("]]"):  # kill -9 may cut the last line
                step, micro_batch, rows = json.loads(line)
                places[step, micro_batch] = rows
    rows: dict[tuple[int, int], list[int]] = {}
    for number in sorted(attempts):
        first, places = attempts[number]
        rows = {k: v for k, v in rows.items() if k[0] < first} | places
    return [row for key in sorted(rows) for row in rows[key]]


@pytest.mark.system
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [2, 3])
def test_killed_run_equals_undisturbed(workers: int, digits_url: str, tmp_path: Path) -> None:
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    reference = start(command(digits_url, calm, workers), tmp_path / "calm.log")
    assert reference.wait(300) == 0, (tmp_path / "calm.log").read_text()[-3000:]

    rng = random.Random(workers)
    log = tmp_path / "stormy.log"
    job = start(command(digits_url, stormy, workers), log)
    per_step = BATCH // 4 // workers
    victim = wait_for(stormy, 1, rng.randrange(workers), rng.randint(8, 15) * per_step, job)
    os.kill(victim, signal.SIGKILL)  # Ray restarts the group from the last checkpoint
    wait_for(stormy, 2, 0, rng.randint(6, 9) * per_step, job)
    job.kill()
    job.wait(60)
    time.sleep(5)  # its cluster goes down with it
    again = start(command(digits_url, stormy, workers), log)
    assert again.wait(300) == 0, log.read_text()[-3000:]

    assert "continues from the checkpoint of step" in log.read_text()
    result = json.loads((stormy / "run" / "result.json").read_text())
    assert result["restarts"] == 2
    assert weights(stormy) == weights(calm)
    rows, seen = lineage(stormy), lineage(calm)
    assert rows == seen
    n = result["rows"]
    assert Counter(rows[:n]) == Counter(range(n))  # the instance epoch: every row exactly once
    assert len(rows) == result["steps"] * BATCH
