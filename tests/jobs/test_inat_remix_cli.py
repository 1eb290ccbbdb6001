"""The training job's words: help, --print_config, --dry_run, and mistakes that only the data shows."""

import dataclasses
import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from fsspec.registry import known_implementations

from remix_dist.config.parse import AXES, guarded
from remix_dist.config.run import Run
from remix_dist.model import build_model

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--model.name", "resnet8-w16", "--data.augment.size", "8", "--data.augment.crop", "shift",
         "--train.global_batch", "64")  # fmt: skip


@pytest.fixture(scope="module")
def job():
    return runpy.run_path(str(ROOT / "jobs" / "inat_remix.py"))


@pytest.fixture
def run_job(job, capsys):
    """(exit code, stdout, stderr) of the job with these words."""

    def call(*words):
        try:
            code = guarded(lambda: job["main"](list(words)), "inat_remix")
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


def test_help_names_every_group_and_explains(run_job):
    code, out, err = run_job("--help")
    assert code == 0 and err == ""
    for group in dataclasses.fields(Run):
        assert f"--{group.name}" in out
    words = " ".join(out.split())
    for text in (
        "Learning rate after warm-up.",
        "Eq. 10",
        "--dry_run",
        "CPU processes",
    ):
        assert text in words
    assert "\n    python jobs/inat_remix.py --data.url" in out, "commands stay on lines of their own"


@pytest.mark.parametrize("axis", AXES)
def test_help_of_a_method_explains_its_knobs(run_job, axis):
    name = {"mix": "CutMix", "labels": "Remix", "loss": "LDAM", "rebalance": "DRW"}[axis]
    code, out, _ = run_job(f"--{axis}.help", name)
    assert code == 0 and {"mix": "alpha", "labels": "kappa", "loss": "max_margin", "rebalance": "start"}[axis] in out


def test_print_config_is_a_config(run_job, tmp_path):
    code, first, _ = run_job("--optim.lr", "0.07", "--rebalance", "DRS", "--rebalance.start", "0.5", "--print_config")
    (tmp_path / "run.yaml").write_text(first)
    again = run_job("--config", str(tmp_path / "run.yaml"), "--print_config")
    assert code == 0 and again == (0, first, "")
    tree = yaml.safe_load(first)
    assert tree["optim"]["lr"] == 0.07 and tree["rebalance"]["init_args"]["start"] == 0.5


def test_dry_run_says_what_it_costs_and_writes_nothing(run_job, digits_url, tmp_path):
    manifest = json.loads((Path(digits_url) / "train" / "manifest.json").read_text())
    rows, parameters = manifest["rows"], sum(p.numel() for p in build_model("resnet8-w16", 10).parameters())
    steps, later = math.ceil(10 * rows / 64), math.ceil(8 * rows / 64)
    code, out, err = run_job(
        "--dry_run", "--dry_run_speed", "1", "--data.url", digits_url, "--storage", str(tmp_path / "runs"),
        "--schedule.epochs", "10", "--schedule.decays", "[4,8]", "--ray.workers", "2", *SMALL,
    )  # fmt: skip
    assert (code, err) == (0, "")
    top, low = max(manifest["class_counts"]), min(manifest["class_counts"])
    for text in (
        f"Remix-DRW (resnet8-w16, {parameters:,} parameters)",
        f"{tmp_path}/runs/remix-drw-s0-",
        f"{rows:,} rows, 10 classes of {top} .. {low}",
        "400 rows",
        "64 = 2 x 32, on 2 workers (1, 1 micro-batches a step)",
        f"{steps:,} (10 epochs of {rows / 64:.1f} steps)",
        f"times 0.1 at step {math.ceil(4 * rows / 64)} (epoch 4), step {later} (epoch 8)",
        f"DRW from step {later} (epoch 8)",
        f"{sum(s['bytes'] for s in manifest['shards']) / 1e9:.3f} GB a cold epoch in {len(manifest['shards'])} shards",
        f"{parameters * 8 / 1e6:.1f} MB, 2 kept",  # weights and momentum, float32
        f"{steps * 64 / 3600:.1f} GPU-hours, {steps * 64 / 7200:.1f} h wall",
    ):
        assert text in out, f"{text}\nnot in\n{out}"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("tau, share", [(0.5, "half"), (0.0, "0.0%")])
def test_dry_run_foretells_the_relabelled_share(run_job, digits_url, tmp_path, tau, share):
    counts = json.loads((Path(digits_url) / "train" / "manifest.json").read_text())["class_counts"]
    pairs = sum(a * b for a in counts for b in counts if a >= 3 * b or b >= 3 * a) / sum(counts) ** 2
    words = ("--schedule.epochs", "90", "--storage", str(tmp_path), "--labels.tau", str(tau), *SMALL)
    out = run_job("--dry_run", "--data.url", digits_url, *words)[1]
    assert f"{pairs:.1%} of pairs are 3-fold" in out
    assert f"{pairs / 2:.1%} of rows" if share == "half" else f"{share} of rows" in out


def said(result):
    code, _, err = result
    assert code == 2 and err.startswith("inat_remix: error: ") and err.count("\n") == 1 and "Traceback" not in err, err
    return err


def test_a_preset_runs_by_the_documented_flag(run_job, digits_url, tmp_path):
    file = str(ROOT / "jobs" / "presets" / "inat2018-remix-drw.yaml")
    code, out, _ = run_job("--config", file, "--data.url", digits_url, "--storage", str(tmp_path), "--dry_run")
    assert code == 0 and "Remix-DRW (resnet50" in out and "(epoch 150)" in out


@pytest.mark.parametrize(
    "words, parts",
    [
        ("--schedule.kind cosine", ["rebalance.start = 'decay:2'", "cosine", "0.8"]),
        ("--schedule.decays [30]", ["rebalance.start = 'decay:2'", "1 decays", "0.8"]),
        ("--rebalance.start 0.999", ["rebalance.start = 0.999", "never acts"]),
        ("--mix NoMix", ["labels = Remix", "mix = NoMix"]),
        ("--checkpoint.resume must", ["checkpoint.resume = must", "--name"]),
        ("--data.val_split test", ["/test: no shard set there", "jobs/make_shards.py"]),
        ("--dry_run --model.weights /nowhere.pt", ["/nowhere.pt cannot be read"]),
    ],
)
def test_what_does_not_fit_the_data_is_one_line(run_job, digits_url, tmp_path, words, parts):
    line = said(run_job(*SMALL, "--data.url", digits_url, "--storage", str(tmp_path / "runs"), *words.split()))
    assert all(part in line for part in parts), line
    assert not (tmp_path / "runs").exists()


def damage(url, tmp_path, change):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for file in ("manifest.json", "index.parquet"):
            (tmp_path / split / file).write_bytes((Path(url) / split / file).read_bytes())
    change(tmp_path / "train" / "manifest.json")
    return str(tmp_path)


def halve(manifest):
    manifest.unlink()
    (manifest.parent / "shards").mkdir()


def newer(manifest):
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 99}))


@pytest.mark.parametrize(
    "change, parts", [(halve, ["half-written", "again"]), (newer, ["version 99", "write the shards"])]
)
def test_shards_that_are_not_whole_are_one_line(run_job, digits_url, tmp_path, change, parts):
    line = said(
        run_job("--data.url", damage(digits_url, tmp_path, change), "--storage", str(tmp_path / "runs"), *SMALL)
    )
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("scheme, extra", [("s3", "s3"), ("gs", "gcs"), ("az", "azure"), ("abfs", "azure")])
def test_a_store_without_its_driver_names_the_extra(run_job, monkeypatch, scheme, extra):
    monkeypatch.setitem(known_implementations, scheme, {"class": "no_driver.Fs", "err": "install it"})
    line = said(run_job("--data.url", f"{scheme}://bucket/set"))
    assert f"{scheme}://bucket/set" in line and f"pip install 'remix_dist[{extra}]'" in line


def test_no_data_there(run_job, tmp_path):
    assert "no shard set there" in said(run_job("--data.url", str(tmp_path)))


def test_the_demo_refuses_a_knob_that_it_would_not_use(run_job):
    assert "optim.lr" in (line := said(run_job("--optim.lr", "3"))) and "--data.url" in line


def test_the_script_ends_with_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["inat_remix.py", "--optim.lrr", "3"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "jobs" / "inat_remix.py"), run_name="__main__")
    assert stop.value.code == 2 and "did you mean 'optim.lr'" in capsys.readouterr().err
