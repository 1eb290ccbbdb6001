"""A trained model as a folder that others can load: weights, classes, preprocessing, model card.

Such a folder is what `predict` takes and what `weights:` of another run may name. Where torchvision or timm
can build the net, the keys are theirs and the card's lines need no remix_dist.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from statistics import median
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from remix_dist.model import Classifier, build_model, families
from remix_dist.model.weights import read_bytes, rename
from remix_dist.types import UserError

FORMAT, VERSION = "remix_dist.export", 1
REQUIRED = ("model", "classes", "preprocess")
PREPROCESS = ("resize", "crop", "mean", "std", "interpolation")
TOLERANCE = 1e-5
SHARES = ("top1", "top5", "balanced", "many", "medium", "few", "ece")
"""Metrics in 0..1 that the card shows as percentages."""


def export_model(model_state: dict[str, Tensor], meta: dict[str, Any], directory: str) -> None:
    """Writes the export folder: all of it or nothing; an older export of the same name is replaced.

    model_state: state dict of a Classifier (any of the usual prefixes). meta needs `model` (a name of
    build_model), `classes` (names) and `preprocess` (resize, crop, mean, std, interpolation); `head_scale`,
    `class_counts`, `data`, `method`, `epochs`, `metrics` and whatever else is plain JSON is kept and, where
    known, told in the card. Raises UserError if something is missing or the folder holds something else,
    RuntimeError if the written model's logits differ from the live one's by more than 1e-5.
    """
    target = Path(directory)
    _check(meta, target, directory)
    live = build_model(meta["model"], len(meta["classes"]), meta.get("head_scale")).eval()
    state = rename(model_state, live.net.state_dict())
    _load(live, state, "the state dict to export")
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    safetensors.torch.save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    rest = {key: value for key, value in meta.items() if key not in ("classes", "preprocess")}
    config = {"format": FORMAT, "version": VERSION, "head_scale": None, **rest}
    for name, value in (("classes", meta["classes"]), ("preprocess", meta["preprocess"]), ("config", config)):
        (part / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    (part / "MODEL_CARD.md").write_text(card(meta), encoding="utf-8")
    _check_parity(live, str(part), meta["preprocess"]["crop"])
    if target.exists():
        shutil.rmtree(target)
    os.replace(part, target)


def load_exported(directory: str) -> tuple[Classifier, dict[str, Any]]:
    """The model of an export folder or URL on the CPU in eval mode, and its meta (see export_model)."""
    base = directory.rstrip("/")
    try:
        meta = json.loads(read_bytes(f"{base}/config.json"))
        if (found := (meta.pop("format", None), meta.pop("version", None))) != (FORMAT, VERSION):
            raise UserError(f"{base} is {found[0]} version {found[1]}; this release reads {FORMAT} {VERSION}")
        meta |= {name: json.loads(read_bytes(f"{base}/{name}.json")) for name in ("classes", "preprocess")}
        state = safetensors.torch.load(read_bytes(f"{base}/model.safetensors"))
    except (json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise UserError(f"{base} is a damaged export ({error}); export the run again") from error
    model = build_model(meta["model"], len(meta["classes"]), meta["head_scale"])
    _load(model, state, base)
    return model.eval(), meta


def _check(meta: dict[str, Any], target: Path, directory: str) -> None:
    for where, given, keys in (("meta", meta, REQUIRED), ("preprocess", meta.get("preprocess"), PREPROCESS)):
        if missing := [key for key in keys if key not in (given or {})]:
            raise UserError(f"export: {where} lacks {', '.join(missing)}; it needs {', '.join(keys)}")
    if "://" in directory:
        raise UserError(f"export: {directory} is a URL; export to a local folder and copy that")
    if target.exists() and not (target.is_dir() and ((target / "config.json").exists() or not any(target.iterdir()))):
        raise UserError(f"export: {directory} exists and is no export; choose a new folder")


def _load(model: Classifier, state: dict[str, Tensor], where: str) -> None:
    try:
        model.net.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{where} does not fit its model name, classes and head_scale: {reason}") from error


@torch.inference_mode()
def _check_parity(live: Classifier, directory: str, side: int) -> None:
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    gap = (live(images) - load_exported(directory)[0](images)).abs().max().item()
    if not gap <= TOLERANCE:  # NaN must fail too
        raise RuntimeError(f"export: logits of the written model differ by {gap:g} (> {TOLERANCE:g}); not exported")


def card(meta: dict[str, Any]) -> str:
    """The text of MODEL_CARD.md."""
    pre, metrics, counts = meta["preprocess"], meta.get("metrics") or {}, meta.get("class_counts")
    lines = [f"# {meta.get('name', meta['model'])}", ""]
    lines += [f"Image classifier: {meta['model']}, {len(meta['classes'])} classes, trained by remix_dist.", ""]
    lines += ["## Training", ""]
    lines += [
        f"- {key}: {meta[key]}" for key in ("data", "method", "epochs", "seed", "commit") if meta.get(key) is not None
    ]
    if counts:
        ratio = max(counts) / max(min(counts), 1)
        lines += [
            f"- images: {sum(counts)} in {len(counts)} classes; per class at most {max(counts)},"
            f" median {median(counts):g}, at least {min(counts)} (ratio {ratio:.1f})"
        ]
    lines += ["", "## Results", "", "| metric | value |", "|---|---|"]
    for key in SHARES:
        value = metrics.get(key)
        lines += [f"| {key} | {'not measured' if value is None else f'{100 * value:.2f} %'} |"]
    lines += [
        "",
        "many, medium and few are the accuracies over classes with many, medium and few training images (in the",
        "usual split more than 100, 20 to 100, fewer than 20). ece is the expected calibration error of top-1.",
        "",
        "## Load",
        "",
        *_loading(meta),
        "",
        f"Input: RGB; shorter side to {pre['resize']} pixels ({pre['interpolation']}, antialias), centre crop"
        f" {pre['crop']} x {pre['crop']}, divided by 255, minus {list(pre['mean'])}, divided by {list(pre['std'])}.",
        "Output: logits in the order of classes.json.",
        "",
        "## Limits",
        "",
        "- It knows the listed classes only and always names one of them.",
        "- Classes with few training images are recognised less often: compare many with few above.",
        "- Training with mixed images and labels shifts the probabilities; ece above says how far to trust them.",
        *[f"- {limit}" for limit in meta.get("limits", [])],
    ]
    return "\n".join(lines) + "\n"


def _loading(meta: dict[str, Any]) -> list[str]:
    name, classes, scale = meta["model"], len(meta["classes"]), meta.get("head_scale")
    plain = families.find(name).plain(name, classes) if scale is None else None
    if plain is None:
        why = "the net is remix_dist's own" if scale is None else f"the head is a cosine of scale {scale:g}"
        code = ["from remix_dist.train.export import load_exported", 'model, meta = load_exported(".")']
        return [f"In this folder; remix_dist is needed, because {why}:", "", "```python", *code, "```"]
    package, build = plain
    code = [
        f"import json, {package}",
        "from safetensors.torch import load_file",
        f"model = {build}",
        'model.load_state_dict(load_file("model.safetensors"))',
        'model.eval(); classes = json.load(open("classes.json", encoding="utf-8"))',
    ]
    return [f"In this folder; torch, {package} and safetensors suffice:", "", "```python", *code, "```"]
