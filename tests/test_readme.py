"""The README's promises: its example method works as printed, and its commands name real things."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text()


def test_add_a_method_example(tmp_path: Path) -> None:
    """The printed file, put where it says, is a value of --labels with a knob that acts."""
    code = re.search(r"```python\n# (remix_dist/labels/\w+\.py)\n(.*?)```", README, re.DOTALL)
    assert code
    target = tmp_path / code[1]
    for source in (REPO / "remix_dist").rglob("*.py"):
        copy = tmp_path / source.relative_to(REPO)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(source.read_text())
    target.write_text(code[2])
    words = """
import torch
from remix_dist.config.parse import parse_run
run, _, _ = parse_run(["--labels", "Rarer", "--labels.least", "0.3"], "")
lam, a, b = torch.tensor([0.25, 0.5, 0.5, 0.5]), torch.tensor([1, 1, 9, 5]), torch.tensor([9, 9, 1, 5])
print(run.labels, run.method(), run.labels(lam, a, b).tolist())
"""
    done = subprocess.run([sys.executable, "-c", words], cwd=tmp_path, capture_output=True, text=True,
                          env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "Rarer(least=0.3) Rarer-DRW [0.25, 1.0, 0.0, 0.5]"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w/.-]+)\)", README))))
def test_links_lead_somewhere(path: str) -> None:
    assert (REPO / path).exists()


def test_presets_and_jobs_that_are_named_exist() -> None:
    for path in re.findall(r"\bjobs/[\w/.-]+\.(?:py|yaml)", README):
        assert (REPO / path).exists(), path


def test_flags_that_are_shown_are_knobs() -> None:
    from remix_dist.config.parse import knobs

    shown = re.findall(r"inat_remix\.py[^`]*?(?=```|python jobs|ray job submit|\n\n)", README)
    flags = {flag for block in shown for flag in re.findall(r"--([a-z][\w.]*)", block)}
    assert flags and flags <= set(knobs()) | {"working"}
