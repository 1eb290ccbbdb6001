"""Checkpoints: safetensors and JSON files, then a manifest with their sha256, written last.

A checkpoint without a right manifest does not exist: the newest valid one wins, a damaged one is named and
skipped. They are ours and not Ray's on purpose: a report that Ray loses, or a torn snapshot of its own, cannot
lose or brick a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from typing import Any

import safetensors.torch
from torch import Tensor

from remix_dist.data.store import filesystem

Tensors = dict[str, dict[str, Tensor]]


class CheckpointStore:
    """The checkpoints of one run, under <run>/checkpoints/step-0000000123/."""

    def __init__(self, run_url: str, keep: int) -> None:
        self.fs, self.root = filesystem(f"{run_url}/checkpoints")
        self.local, self.keep = "file" in self.fs.protocol, keep

    def save(self, step: int, tensors: Tensors, meta: dict[str, Any]) -> str:
        """Write one checkpoint (one file per group of tensors) and drop the oldest beyond `keep`."""
        folder, files = f"{self.root}/step-{step:010d}", {}
        self._remove(folder)  # an unfinished or damaged one of the same step
        self.fs.makedirs(folder, exist_ok=True)
        for name, group in tensors.items():
            data = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in group.items()})
            files[f"{name}.safetensors"] = data
        files["meta.json"] = json.dumps(meta).encode()
        for name, data in files.items():
            self._write(f"{folder}/{name}", data)
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        retry(lambda: write_text(self.fs, f"{folder}/manifest.json", json.dumps({"step": step, "sha256": sums})))
        for old in [s for s in self.steps() if s <= step][: -self.keep]:  # a damaged later one may lie there
            self._remove(f"{self.root}/step-{old:010d}")
        return folder

    def steps(self) -> list[int]:
        """Steps that have a folder, oldest first; valid or not."""
        if not self.fs.exists(self.root):
            return []
        self.fs.invalidate_cache(self.root)
        names = (path.rstrip("/").rpartition("/")[2] for path in self.fs.ls(self.root, detail=False))
        return sorted(int(n.removeprefix("step-")) for n in names if n.startswith("step-"))

    def newest(self) -> int | None:
        """The newest step whose every file has the right sha256; damaged ones are named and skipped."""
        for step in reversed(self.steps()):
            try:
                self._read(step)
                return step
            except (OSError, ValueError, KeyError) as error:
                print(f"checkpoint of step {step} is unusable and skipped: {error}", flush=True)
        return None

    def load(self, step: int) -> tuple[Tensors, dict[str, Any]]:
        """Tensors by group, and the meta data, of a valid checkpoint."""
        files = self._read(step)
        meta = json.loads(files.pop("meta.json"))
        return {n.removesuffix(".safetensors"): safetensors.torch.load(d) for n, d in files.items()}, meta

    def _read(self, step: int) -> dict[str, bytes]:
        folder = f"{self.root}/step-{step:010d}"
        manifest = json.loads(self.fs.cat_file(f"{folder}/manifest.json"))
        files = {name: self.fs.cat_file(f"{folder}/{name}") for name in manifest["sha256"]}
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != manifest["sha256"][name]:
                raise ValueError(f"{name} does not match its sha256")
        return files

    def _write(self, path: str, data: bytes) -> None:
        retry(lambda: self.fs.pipe_file(path, data))
        if self.local:
            with open(path, "rb") as file:
                os.fsync(file.fileno())

    def _remove(self, folder: str) -> None:
        if self.fs.exists(folder):
            if self.fs.exists(f"{folder}/manifest.json"):
                self.fs.rm(f"{folder}/manifest.json")  # first: a half-removed checkpoint must not look valid
            self.fs.rm(folder, recursive=True)


def retry(action: Callable[[], Any], tries: int = 5) -> Any:
    """Run a store operation again after OSErrors, with growing pauses."""
    for attempt in range(tries):
        try:
            return action()
        except OSError:
            if attempt == tries - 1:
                raise
            time.sleep(0.2 * 3**attempt)


def write_text(fs: Any, path: str, text: str) -> None:
    """Write a small file so that a reader sees the old one or the new one, never half (object stores do by nature)."""
    if "file" in fs.protocol:
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(f"{path}.tmp", text.encode())
        fs.mv(f"{path}.tmp", path)
    else:
        fs.pipe_file(path, text.encode())


def read_result(url: str) -> dict[str, Any] | None:
    """The result of a finished run, or None."""
    fs, path = filesystem(f"{url}/result.json")
    return json.loads(fs.cat_file(path)) if fs.exists(path) else None
