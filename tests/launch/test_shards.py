"""make_shards end to end: both splits, restart after a failure, refusals, summary, command line, Ray."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from remix_dist.data import write
from remix_dist.data.manifest import open_shard_set
from remix_dist.data.sources import SourceOptions
from remix_dist.data.sources.cifar import png
from remix_dist.launch import shards
from remix_dist.launch.shards import MakeShards, make_shards
from remix_dist.types import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "jobs" / "make_shards.py"


@pytest.fixture
def images(tmp_path):
    """Two balanced classes of 40 images (noise, 12 KiB each), and 5 of each for val."""
    rng = np.random.default_rng(0)
    for split, count in {"train": 40, "val": 5}.items():
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for n in range(count):
                data = png(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
                (tmp_path / "images" / split / name / f"{n}.png").write_bytes(data)
    return tmp_path / "images"


def job(images, tmp_path, **options):
    options = {"workers": 0, "shard_mib": 1, **options}
    return MakeShards(SourceOptions(str(images)), str(tmp_path / "set"), **options)


def small_shards(monkeypatch):
    """Many shards from little data: 100 KiB instead of 1 MiB."""
    whole = shards.plan_split
    monkeypatch.setattr(shards, "plan_split", lambda *a, **k: whole(*a, **{**k, "shard_bytes": 100 << 10}))


def test_both_splits_and_a_summary_that_says_what_is_next(images, tmp_path):
    (images / "train/a/bad.png").write_bytes(b"nonsense")
    (images / "train/c").mkdir()
    (images / "val/c").mkdir()
    (images / "train/c/bad.png").write_bytes(b"")
    (images / "val/c/0.png").write_bytes((images / "val/a/0.png").read_bytes())
    lines = []
    make_shards(job(images, tmp_path), lines.append)
    assert open_shard_set(str(tmp_path / "set"), "train").count_C.tolist() == [40, 40, 0]
    assert open_shard_set(str(tmp_path / "set"), "val").count_C.tolist() == [5, 5, 1]
    text = "\n".join(lines)
    assert "train: 80 images, 3 classes, 1 shards" in text and "max 40, median 40, min 0" in text
    assert "0 many-shot (> 100), 2 medium-shot, 1 few-shot (< 20)" in text
    assert "train: REJECTED 2 images" in text and "  train/a/bad.png: not an image that Pillow knows" in text
    assert "WARNING: 1 classes have NO image (c)" in text
    assert re.search(r"93 images in .* images/s", text)
    assert lines[-1] == f"next: python jobs/inat_remix.py --data.url {tmp_path / 'set'}"


def test_a_restart_after_a_failure_keeps_finished_shards(images, tmp_path, monkeypatch):
    small_shards(monkeypatch)
    put, calls = write._put, []

    def failing(url, data):
        calls.append(url)
        if len(calls) > 6:
            raise UserError("injected")
        put(url, data)

    monkeypatch.setattr(write, "_put", failing)
    with pytest.raises(UserError, match="injected"):
        make_shards(job(images, tmp_path), lambda _: None)
    with pytest.raises(UserError, match="half-written"):
        open_shard_set(str(tmp_path / "set"), "train")
    finished = {f: f.stat().st_mtime_ns for f in (tmp_path / "set/train/shards").iterdir()}
    assert len(finished) == 3
    monkeypatch.setattr(write, "_put", put)
    lines = []
    make_shards(job(images, tmp_path), lines.append)
    assert any(line.startswith("3 finished shards found") for line in lines)
    assert {f: f.stat().st_mtime_ns for f in finished} == finished
    restarted = open_shard_set(str(tmp_path / "set"), "train")
    whole = MakeShards(SourceOptions(str(images)), str(tmp_path / "whole"), shard_mib=1, workers=0)
    make_shards(whole, lambda _: None)
    assert restarted.digest == open_shard_set(str(tmp_path / "whole"), "train").digest


def test_a_complete_set_is_left_alone_and_another_one_needs_overwrite(images, tmp_path):
    make_shards(job(images, tmp_path), lambda _: None)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "set").rglob("*")}
    lines = []
    make_shards(job(images, tmp_path), lines.append)
    assert "nothing to do" in lines[0]
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "set").rglob("*")} == before
    cut = {"longtail": "exp", "ratio": 10}
    with pytest.raises(UserError, match="--overwrite true"):
        make_shards(job(images, tmp_path, **cut), lambda _: None)
    make_shards(job(images, tmp_path, **cut, overwrite=True), lambda _: None)
    assert open_shard_set(str(tmp_path / "set"), "train").count_C.tolist() == [40, 4]
    assert open_shard_set(str(tmp_path / "set"), "val").count_C.tolist() == [5, 5]
    doc = json.loads((tmp_path / "set/train/manifest.json").read_text())
    assert doc["longtail"] == {"kind": "exp", "ratio": 10}


def test_splits_with_other_classes_are_refused(images, tmp_path):
    (images / "val/b").rename(images / "val/z")
    with pytest.raises(UserError, match="differ in their classes: b, z"):
        make_shards(job(images, tmp_path), lambda _: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_mib": 0}, "shard_mib=0"),
        ({"ratio": 100.0}, "needs --ratio"),
        ({"longtail": "step"}, "needs --ratio"),
        ({"workers": -1}, "workers=-1"),
        ({"store": "png"}, "store=png"),
    ],
)
def test_settings_that_cannot_work_are_refused(images, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make_shards(job(images, tmp_path, **options), lambda _: None)
    with pytest.raises(UserError, match="--workers 0"):
        MakeShards(SourceOptions("digits"), "memory://x")


def test_the_command_line(images, tmp_path, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    good = ["--source.path", str(images), "--url", str(tmp_path / "set"), "--workers", "0"]
    assert main(good) == 0
    assert "next: python jobs/inat_remix.py" in capsys.readouterr().out
    for wrong, said in [
        (["--store", "png"], "store=png"),
        (["--stroe", "png"], "--stroe"),
        (["--longtail", "exq"], "longtail"),
        (["--workers", "many"], "workers"),
    ]:
        assert main(good + wrong) == 2
        error = capsys.readouterr().err
        assert error.startswith("make_shards: ") and said in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "short288q90" in capsys.readouterr().out


@pytest.mark.system
def test_ray_tasks_write_the_same_bytes(images, tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    small_shards(monkeypatch)
    ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
    try:
        make_shards(job(images, tmp_path, workers=2), lambda _: None)
        (images / "train").rename(images / "gone")
        with pytest.raises(UserError):
            make_shards(job(images, tmp_path, workers=2, seed=1, overwrite=True), lambda _: None)
    finally:
        ray.shutdown()
    (images / "gone").rename(images / "train")
    make_shards(MakeShards(SourceOptions(str(images)), str(tmp_path / "here"), shard_mib=1, workers=0), lambda _: None)
    for split in ("train", "val"):
        there, here = (open_shard_set(str(tmp_path / name), split) for name in ("set", "here"))
        assert there.digest == here.digest and len(there.shards) == (10 if split == "train" else 1)
