"""The words of jobs/make_shards.py; what it writes is tested in tests/launch/test_shards.py."""

import dataclasses
import runpy
from pathlib import Path

import pytest
import yaml

from remix_dist.data.sources import SourceOptions
from remix_dist.launch.shards import MakeShards

SCRIPT = Path(__file__).resolve().parents[2] / "jobs" / "make_shards.py"


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(SCRIPT))["main"]


def test_help_names_every_knob_and_explains(main, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code in (0, None)
    for field in dataclasses.fields(MakeShards):
        assert f"--{field.name}" in out
    for field in dataclasses.fields(SourceOptions):
        assert f"--source.{field.name}" in out
    assert "Target size of a shard, MiB." in out and "\n    python jobs/make_shards.py --source.path" in out


def test_print_config_is_a_config(main, capsys, tmp_path):
    words = [
        "--source.path",
        "digits",
        "--url",
        str(tmp_path / "set"),
        "--workers",
        "0",
        "--ratio",
        "10",
        "--longtail",
        "exp",
    ]
    with pytest.raises(SystemExit):
        main([*words, "--print_config"])
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["ratio"] == 10
    (tmp_path / "job.yaml").write_text(text)
    assert main(["--config", str(tmp_path / "job.yaml")]) == 0
    assert (tmp_path / "set" / "train" / "manifest.json").exists()
    assert "next: python jobs/inat_remix.py --data.url" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, part",
    [
        ("--source.path /nowhere --url x", "source.path=/nowhere: no such file"),
        ("--source.path digits --url x --shard_mib 0", "shard_mib=0: must be 1..1024"),
        ("--source.path digits --url x --longtail exp", "needs --ratio"),
        ("--source.path digits --url x --source.val_per_class 3", "source.val_per_class=3: has no effect"),
        ("--source.path digits --url memory://x", "--workers 0"),
        ("--source.path digits --url x --shard_mb 3", "shard_mb"),
        ("--source.path digits --url x --workers many", "workers"),
        ("--url x", "source"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(main, capsys, words, part):
    assert main(words.split()) == 2
    _, err = capsys.readouterr()
    assert err.startswith("make_shards: ") and err.count("\n") == 1 and part in err and "Traceback" not in err, err
