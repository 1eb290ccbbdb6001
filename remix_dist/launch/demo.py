"""The embedded default: real digits made long-tailed, three methods, three seeds, one table, one report."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import statistics
from typing import Any

from remix_dist.config.prepare import prepare
from remix_dist.config.run import Model, Optim, Run, Schedule
from remix_dist.data.augment import Augment
from remix_dist.data.sources import SourceOptions
from remix_dist.labels.remix import Remix
from remix_dist.labels.same import Same
from remix_dist.launch.shards import MakeShards, make_shards
from remix_dist.launch.train import train
from remix_dist.mix.mixup import Mixup
from remix_dist.mix.none import NoMix
from remix_dist.rebalance.drw import DRW
from remix_dist.rebalance.none import NoRebalance
from remix_dist.report import summary_table, write_report
from remix_dist.types import UserError

SEEDS = 3
FREE = ("storage", "data.threads", "data.prefetch", "ray.", "checkpoint.", "train.log_every", "train.trace")
"""Knobs that the demo honours; its recipes are fixed, so any other would silently do nothing."""

INTRO = (
    "scikit-learn's bundled handwritten digits (8 x 8 pixels), cut to a long tail of 134 ... 1 training images a class "
    "and tested on 40 images of each. This is the built-in demonstration, not a benchmark."
)
CAPTION = (
    "ERM, Mixup-DRW and Remix-DRW. Most of the gain over ERM comes from deferred re-weighting (DRW), which both mixing "
    "rows share; compare Remix-DRW with its control, Mixup-DRW, before crediting Remix."
)
NEXT = (
    "Write your own photos as shards: `python jobs/make_shards.py --source.path FOLDER_OR_TAR --url /data/shards`",
    "Train on them: `python jobs/inat_remix.py --data.url /data/shards --model.name resnet18 --ray.workers 2`",
    "The paper's recipes: `--config jobs/presets/inat2018-remix-drw.yaml`; every knob: `--help`; the plan: `--dry_run`",
)


def recipes(base: Run) -> list[Run]:
    """The demo's runs: three methods by three seeds, as measured to work on two CPU cores."""
    augment = Augment(size=8, crop="shift", shift=2, flip=False, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    base = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, url=f"{base.storage}/demo-digits", augment=augment),
        model=Model(name="resnet8-w16"),
        optim=Optim(lr=0.2, weight_decay=5e-4),
        schedule=Schedule(epochs=150, decays=(90, 120)),
        train=dataclasses.replace(base.train, global_batch=128, micro_batch=64, eval_every=50),
    )
    drw = DRW(start=0.6)
    methods: list[dict[str, Any]] = [
        {"mix": NoMix(), "labels": Same(), "rebalance": NoRebalance()},
        {"mix": Mixup(), "labels": Same(), "rebalance": drw},
        {"mix": Mixup(), "labels": Remix(), "rebalance": drw},
    ]
    return [
        dataclasses.replace(base, **method, train=dataclasses.replace(base.train, seed=seed))
        for method in methods
        for seed in range(SEEDS)
    ]


def run_demo(run: Run, given: set[str]) -> list[dict[str, Any]]:
    """Write the shards, train the nine runs in one worker group, print the table and the report's place."""
    idle = sorted(k for k in given if not k.startswith(FREE))
    if idle:
        raise UserError(
            f"{idle[0].replace('.init_args', '')}: cannot take effect in the demo, whose recipes are fixed; give "
            "--data.url with your own shards (jobs/make_shards.py writes them)"
        )
    print("demo: " + INTRO + " Your own data: --data.url URL (see the end).", flush=True)
    run = dataclasses.replace(run, ray=dataclasses.replace(run.ray, workers=max(2, run.ray.workers)))
    with contextlib.redirect_stdout(io.StringIO()):  # its summary would tell to train on the demo's own shards
        make_shards(MakeShards(SourceOptions("digits"), f"{run.storage}/demo-digits", workers=0))
    results = train([prepare(r) for r in recipes(run)])
    report = write_report(f"{run.storage}/demo-report.html", results, title="remix_dist demo: long-tailed digits",
                          intro=INTRO, caption=CAPTION, next_steps=NEXT)  # fmt: skip
    print("\n" + summary_table(results) + "\n" + CAPTION + "\n" + verdict(results))
    print(f"\nreport: {report}\n\nnext:")
    print("\n".join(f"  {line.replace('`', '')}" for line in NEXT), flush=True)
    return results


def verdict(results: list[dict[str, Any]]) -> str:
    """One sentence: the few-shot difference of Remix-DRW and ERM in standard errors of the seeds."""
    few = {m: [100 * r["eval"]["few"] for r in results if r["method"] == m] for m in ("ERM", "Remix-DRW")}
    gain = statistics.mean(few["Remix-DRW"]) - statistics.mean(few["ERM"])
    error = math.sqrt(sum(statistics.variance(v) / len(v) for v in few.values()))
    return f"few-shot accuracy, Remix-DRW minus ERM: {gain:+.1f} points, standard error {error:.1f} (n = {SEEDS} seeds)"
