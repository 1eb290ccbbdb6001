"""What a finished run leaves for people: a table, a report, the exported model."""

from __future__ import annotations

from typing import Any

from remix_dist.config.parse import run_from_dict
from remix_dist.config.run import Run
from remix_dist.report import summary_table, write_report
from remix_dist.train.checkpoint import CheckpointStore
from remix_dist.train.export import export_model
from remix_dist.types import UserError


def finish(results: list[dict[str, Any]], url: str, export: str | None) -> None:
    """Print the table, write <run>/report.html, and export the model if asked."""
    print("\n" + summary_table(results))
    majority = max(results[0]["class_counts"])
    chance = 1 / sum(s > 0 for s in results[0]["eval"]["support"])
    share = majority / sum(results[0]["class_counts"])
    print(f"always the largest class ({share:.1%} of the training images) would give {chance:.1%} balanced accuracy")
    try:
        print(f"report: {write_report(f'{url}/report.html', results, title=results[0]['name'])}")
    except UserError as error:
        print(f"report: not written, {error}")
    if export:
        export_run(url, results[0], export)
        print(f"export: {export}\nuse it: python jobs/predict.py --model {export} --input PHOTO_OR_FOLDER", flush=True)


def export_run(url: str, result: dict[str, Any], directory: str) -> None:
    """Export the newest checkpoint of a run (EMA weights where kept) with everything needed to use it."""
    store = CheckpointStore(url, keep=1)
    step = store.newest()
    if step is None:
        raise UserError(f"export = {directory}: {url} has no valid checkpoint")
    tensors, _ = store.load(step)
    run: Run = run_from_dict(result["config"])
    augment, scores = run.data.augment, result["eval"]
    resize = augment.size if augment.crop == "shift" else max(augment.resize, augment.size)
    meta = {
        "model": run.model.name, "classes": result["classes"], "head_scale": run.loss.head_scale,
        "preprocess": {
            "resize": resize, "crop": augment.size, "mean": list(augment.mean), "std": list(augment.std),
            "interpolation": "bilinear",
        },
        "class_counts": result["class_counts"], "data": f"shards {result['data_digest'][:12]}, {result['rows']} images",
        "method": result["method"], "epochs": result["epochs"], "seed": result["seed"], "commit": result["commit"],
        "name": result["name"], "metrics": {k: v for k, v in scores.items() if not isinstance(v, list)},
        "limits": ["Accuracy on few-shot classes is estimated from few validation images; see the report."],
    }  # fmt: skip
    export_model({**tensors["model"], **tensors.get("ema", {})}, meta, directory)
