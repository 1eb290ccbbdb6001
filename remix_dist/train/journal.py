"""What people see of a run, on rank 0: progress lines, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from remix_dist.config.run import Run
from remix_dist.data.store import filesystem
from remix_dist.train.checkpoint import write_text


class Journal:
    """Metric records of a run: metrics.jsonl (rewritten whole, so a resume never doubles a line), TensorBoard
    events, and a progress line per evaluation, or per half minute between two."""

    def __init__(self, run: Run, url: str, total: int, history: list[dict[str, Any]]) -> None:
        self.run, self.total, self.said = run, total, time.monotonic()
        self.fs, self.path = filesystem(url)
        self.history, self.flushed = history, 0.0
        self.board = None
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            return  # the core runs without Ray's dependencies; the JSONL has the same numbers
        if "file" in self.fs.protocol:
            last = history[-1]["step"] + 1 if history else None
            self.board = SummaryWriter(str(Path(self.path) / "tb"), purge_step=last, flush_secs=10)

    def add(self, record: dict[str, Any]) -> None:
        """Keep one record; files are brought up to date at most every 5 seconds."""
        if any(old["kind"] == record["kind"] and old["step"] == record["step"] for old in self.history[-2:]):
            return  # a resume between the last checkpoint and the result evaluates again
        self.history.append(record)
        if self.board is not None:
            for key, value in record.items():
                if key not in ("kind", "step") and isinstance(value, int | float):
                    self.board.add_scalar(f"{record['kind']}/{key}", value, record["step"])
        if time.monotonic() - self.flushed > 5:
            self.flush()

    def progress(self, train: dict[str, Any], scores: dict[str, Any] | None = None) -> None:
        """Print a line: always with the scores of an evaluation, else if the last line is 30 seconds old."""
        if scores is None and time.monotonic() - self.said < 30:
            return
        run, self.said = self.run, time.monotonic()
        words = [f"{run.method()} seed {run.train.seed}"]
        if train:
            words += [
                f"epoch {train['epoch']:.4g}/{run.schedule.epochs:g}", f"step {train['step']}/{self.total}",
                f"loss {train['loss']:.3f}", f"lr {train['lr']:.2g}", f"relabelled {train['relabelled']:.0%}",
            ]  # fmt: skip
        shots = [k for k in ("top1", "balanced", "many", "medium", "few") if scores and scores[k] is not None]
        words += [f"{k} {100 * scores[k]:.1f}" for k in shots if scores]
        if train:
            left = (self.total - train["step"]) * run.train.global_batch / max(train["images_per_s"], 1e-9)
            words += [f"{train['images_per_s']:.0f} images/s", f"wait {train['data_wait']:.0%}"]
            words += [f"left {left / 60:.1f} min"] if left else []
        print("  ".join(words), flush=True)

    def close(self) -> None:
        """Write what is left."""
        self.flush()
        if self.board is not None:
            self.board.close()

    def flush(self) -> None:
        """Write metrics.jsonl now."""
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        write_text(self.fs, f"{self.path}/metrics.jsonl", lines)
        self.flushed = time.monotonic()
