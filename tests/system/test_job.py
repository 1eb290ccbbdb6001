"""The job through `ray job submit`, as a person with a cluster starts it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PORT, DASHBOARD = 26379, 28265


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head node of its own, started in a copy of the repository; the environment that reaches it."""
    copy = tmp_path / "clone"
    shutil.copytree(
        REPO, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "*.egg-info", "__pycache__", ".*_cache")
    )
    (copy / "remix_dist" / "__init__.py").write_text('"""The copy."""\n\n__version__ = "0.1.0+copy"\n')
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "HOME": str(tmp_path),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{DASHBOARD}",
    }
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"  # `python` is the one of this environment
    env.pop("RAY_ADDRESS", None)
    words = ["start", "--head", "--block", f"--port={PORT}", f"--dashboard-port={DASHBOARD}", "--num-cpus=2",
             "--object-store-memory=200000000", "--disable-usage-stats",
             f"--temp-dir=/tmp/rd{os.getpid()}"]  # fmt: skip
    head = subprocess.Popen([ray(), *words], cwd=copy, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        for _ in range(90):
            time.sleep(1)
            found = subprocess.run([ray(), "job", "list"], env=env, capture_output=True, text=True)
            if found.returncode == 0:
                break
        else:
            raise AssertionError(f"the head node did not come up: {found.stderr[-800:]}")
        yield env
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(f"/tmp/rd{os.getpid()}", ignore_errors=True)


def ray() -> str:
    return str(Path(sys.executable).parent / "ray")


def submit(env: dict[str, str], cwd: Path, *words: str) -> str:
    done = subprocess.run([ray(), "job", "submit", *words], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.system
@pytest.mark.timeout(900)
def test_demo_by_job_submit(cluster: dict[str, str], tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    out = submit(cluster, tmp_path / "clone", "--working-dir", ".", "--", "python", "jobs/inat_remix.py",
                 "--storage", str(storage))  # fmt: skip
    name = re.search(r"[Jj]ob '(\w+)'", out)
    assert name
    logs = subprocess.run([ray(), "job", "logs", name[1]], env=cluster, capture_output=True, text=True).stdout
    assert "\r" not in logs and "\x1b[" not in re.sub(r"(?m)^.*(INFO|WARNING|ERROR).*$", "", logs)
    assert "Remix-DRW" in logs and "demo-report.html" in logs and "next:" in logs
    assert (storage / "demo-report.html").stat().st_size > 100_000
    results = [json.loads(f.read_text()) for f in storage.glob("*/result.json")]
    assert len(results) == 9 and {r["world"] for r in results} == {2}
    # the submitted folder ran, not whatever is installed
    assert {r["versions"]["remix_dist"] for r in results} == {"0.1.0+copy"}


@pytest.mark.system
@pytest.mark.timeout(600)
def test_without_working_dir_where_installed(cluster: dict[str, str], digits_url: str, tmp_path: Path) -> None:
    if subprocess.run(
        [sys.executable, "-c", "import remix_dist"], cwd="/", env=_bare(), capture_output=True
    ).returncode:
        pytest.skip("remix_dist is not installed in this environment (make setup installs it)")
    out = submit(cluster, tmp_path, "--", sys.executable, "jobs/inat_remix.py", "--data.url", digits_url, "--storage",
                 str(tmp_path / "runs"), "--name", "one", "--data.augment.size", "8", "--data.augment.crop", "shift",
                 "--model.name", "resnet8-w4", "--schedule.epochs", "3", "--schedule.decays", "[1,2]")  # fmt: skip
    assert (tmp_path / "runs" / "one" / "result.json").exists()
    assert "balanced" in out


def _bare() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
