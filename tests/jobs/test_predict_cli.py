"""The words of jobs/predict.py; what it computes is tested in tests/train/test_predict.py."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "jobs" / "predict.py"


@pytest.fixture
def run_job(monkeypatch, capsys):
    """(exit code or message, stdout, stderr) of the job with these words."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
        try:
            code = runpy.run_path(str(SCRIPT))["main"]()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


def test_help_names_every_knob_and_explains(run_job):
    code, out, err = run_job("--help")
    assert code in (0, None) and err == ""
    for word in ("--model", "--input", "--topk", "--output", "--batch", "--device", "classes per image", "shard set"):
        assert word in out


@pytest.mark.parametrize(
    "words, part",
    [
        ("--model m --input nowhere.jpg", "nowhere.jpg does not exist"),
        ("--model /nowhere --input x.jpg", "/nowhere"),
        ("--model m --input x.jpg --output out.txt", "output out.txt must end in .csv or .parquet"),
    ],
)
def test_a_mistake_is_one_line(run_job, tmp_path, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jpg").touch()
    code, _, err = run_job(*words.split())
    line = f"{code}" + err
    assert code not in (0, None) and part in line and "Traceback" not in line and "\n" not in line.rstrip("\n"), line


@pytest.mark.parametrize("words, part", [("--input x.jpg", "--model"), ("--model m", "--input")])
def test_what_is_missing_is_named(run_job, words, part):
    code, _, err = run_job(*words.split())
    assert code == 2 and part in err and "Traceback" not in err
