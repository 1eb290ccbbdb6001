"""result.json: what a finished run is judged by, with everything needed to say where it came from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torchvision

from remix_dist import __version__
from remix_dist.data.decode import jpeg_decoder
from remix_dist.data.store import filesystem
from remix_dist.train.checkpoint import write_text
from remix_dist.train.evaluate import shot_groups

if TYPE_CHECKING:
    from remix_dist.train.session import Session


def write_result(session: Session) -> dict[str, Any]:
    """Write result.json and run.yaml (and the export, if asked for) from rank 0; the result is returned."""
    run, data = session.run, session.train_set
    (_, mixed, relabelled), (hist_x, hist_y) = (session.totals[k].tolist() for k in ("rows", "hist"))
    groups = {k: v.tolist() for k, v in shot_groups(data.count_C, run.train).items()}
    result = {
        "name": session.url.rpartition("/")[2], "method": run.method(), "seed": run.train.seed,
        "steps": session.total, "epochs": run.schedule.epochs, "world": session.world, "rows": len(data),
        "rebalanced_from": session.deferral if run.rebalance.acts else None,
        "seconds": session.seconds(), "commit": _commit(), "device": _device(session.device),
        "versions": {"remix_dist": __version__, "torch": torch.__version__, "torchvision": torchvision.__version__},
        "decoder": jpeg_decoder()[0], "data_digest": data.digest, "classes": list(data.classes),
        "class_counts": data.count_C.tolist(), "groups": groups,
        "eval": session.scores,
        "mix": {
            "lam_x_hist": [*hist_x[:-2], sum(hist_x[-2:])], "lam_y_hist": hist_y,
            "relabelled": relabelled / max(mixed, 1), "mixed_rows": mixed,
        },
        "images_per_s": session.record.get("images_per_s"), "data_wait": session.record.get("data_wait"),
        "faults": session.faults, "restarts": session.meta["starts"] - 1, "config": run.to_dict(),
        "history": session.journal.history if session.journal else [],
    }  # fmt: skip
    fs, path = filesystem(session.url)
    write_text(fs, f"{path}/run.yaml", run.to_yaml())
    write_text(fs, f"{path}/result.json", json.dumps(result))
    if session.journal is not None:
        session.journal.close()
    return result


def _commit() -> str | None:
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    found = subprocess.run(["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or None


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
