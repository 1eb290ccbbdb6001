"""Weights from a file, folder or URL into a backbone: all of it or a clear error, never half."""

from __future__ import annotations

import io
import pickle

import fsspec
import safetensors.torch
import torch
from torch import Tensor, nn

from remix_dist.model.heads import head_name
from remix_dist.types import UserError

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.")
"""What DataParallel, torch.compile, common training codes and our Classifier put before a backbone's keys."""
NESTED = ("state_dict", "model_state_dict", "model", "net")
"""Where training codes keep the state dict inside a checkpoint."""


def read_bytes(url: str, leaf: str = "") -> bytes:
    """A local file or fsspec URL; of a folder, the file `leaf` in it. UserError where that fails."""
    try:
        fs, path = fsspec.core.url_to_fs(url)
        if leaf and not url.startswith("http") and fs.isdir(path):
            path = f"{path}/{leaf}"
        return fs.cat_file(path)
    except ImportError as error:
        raise UserError(f"{url}: {error}; install remix_dist[s3], [gcs] or [azure]") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{url} cannot be read ({type(error).__name__}); check path and access") from error


def read_state(source: str) -> dict[str, Tensor]:
    """The state dict of a torch or .safetensors file, or of a folder with model.safetensors (an export)."""
    data = read_bytes(source, "model.safetensors")
    try:
        if data.startswith((b"PK", b"\x80")):  # torch.save: a zip, or a pickle before torch 1.6
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        else:
            found = safetensors.torch.load(data)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"weights {source}: no readable state dict ({reason}); save state_dict()") from error
    for key in NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict):
        raise UserError(f"weights {source} hold a {type(found).__name__}, no state dict; save state_dict()")
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


def rename(state: dict[str, Tensor], known: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with keys that are not in `known` freed of the common prefixes."""
    renamed = {}
    for key, value in state.items():
        while key not in known and (prefix := next((p for p in PREFIXES if key.startswith(p)), None)):
            key = key.removeprefix(prefix)
        renamed[key] = value
    return renamed


def load_weights(net: nn.Module, classes: int, source: str) -> str:
    """Loads `source` into `net` in place; returns one line that says what was loaded and what was not.

    The head may have another shape or be absent: it then stays fresh. Every tensor of the backbone must be
    there and fit, else UserError.
    """
    own = net.state_dict()
    state = rename(read_state(source), own)
    head = head_name(net, classes) + "."
    fit = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    if all(key.startswith(head) for key in fit):
        theirs, ours = ", ".join(list(state)[:2]) or "nothing", ", ".join(list(own)[:2])
        raise UserError(f"weights {source} match no tensor of this model: it has {ours}, the file {theirs}")
    lost = [key for key in own if key not in fit and not key.endswith("num_batches_tracked")]
    if bad := [key for key in lost if not key.startswith(head)]:
        key, shape = bad[0], tuple(own[bad[0]].shape)
        there = f"has shape {tuple(state[key].shape)} there, {shape} here" if key in state else "is not there"
        raise UserError(
            f"weights {source} lack {len(bad)} of this backbone's {len(own)} tensors: {key} {there}; "
            "choose the model name that they were made with"
        )
    net.load_state_dict(fit, strict=False)
    unused = [key for key in state if key not in fit]
    line = f"weights {source}: loaded {len(fit)} of {len(own)} tensors"
    line += f"; left fresh: {', '.join(lost)}" if lost else ""
    return line + (f"; not used from the file: {', '.join(unused[:8])} ({len(unused)})" if unused else "")
