"""The report page: gathers tables and figures from result records and writes one HTML file that loads nothing."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from remix_dist.report import plots, series
from remix_dist.report.summary import GROUPS, METRICS, by_method, difference, metric, stat
from remix_dist.types import UserError

FAULTS = 200
CLASS_ROWS = 100
"""Longest tables of faults and of classes; what is left out is counted on the page."""


def write_report(
    url: str,
    results: Sequence[dict],
    *,
    title: str,
    intro: str = "",
    caption: str = "",
    next_steps: Sequence[str] = (),
) -> str:
    """Write the self-contained HTML report of result.json records to a path or fsspec URL and return that url.

    Runs with the same `method` are averaged. `caption` stands under the headline table; `intro`, `caption`
    and `next_steps` are plain text in which `backticks` mark code. A local file is replaced atomically.
    UserError without results, for unlike class counts, and where matplotlib or jinja2 is missing.
    """
    methods = by_method(results)
    try:
        import jinja2
        import matplotlib  # noqa: F401  (asked for here, so that the way out is named before any work)
        from markupsafe import Markup, escape
    except ImportError as error:
        raise UserError(f'the report needs {error.name}: pip install "remix_dist[report]"') from error
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = lambda text: Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
    environment.filters["number"] = lambda value, digits=0: "-" if value is None else f"{value:,.{digits}f}"
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text("utf-8"))
    with plots.style():
        figures = _figures(methods)
    words = {"title": title, "intro": intro, "caption": caption, "next_steps": list(next_steps)}
    page = template.render(**words, **_tables(methods), figures=figures, looks=plots.looks(methods))
    _write(url, page.encode("utf-8"))
    return url


def _write(url: str, data: bytes) -> None:
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"report url {url!r} cannot be written: {error}") from error
    fs.makedirs(path.rsplit("/", 1)[0] or "/", exist_ok=True)
    if isinstance(fs, LocalFileSystem):
        part = Path(f"{path}.{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(path)
    else:
        fs.pipe_file(path, data)


def _figures(methods: dict[str, list[dict]]) -> dict[str, dict[str, str]]:
    """Data URIs by figure name and width; figures whose data no run has are absent."""

    def has(kind: str, *keys: str) -> bool:
        records = (r for runs in methods.values() for run in runs for r in run.get("history") or ())
        return any(r.get("kind") == kind and any(r.get(k) is not None for k in keys) for r in records)

    runs = [run for group in methods.values() for run in group]
    mixed = any(series.histogram([r], "lam_x_hist") is not None for r in runs)
    classes = any((r.get("eval") or {}).get("per_class") for r in runs)
    groups = any(metric(runs, g) is not None for g in GROUPS)
    both, narrow = {"wide": plots.WIDE, "narrow": plots.NARROW}, {"narrow": plots.NARROW}
    wanted: dict[str, tuple[bool, Callable[..., None], dict[str, float], float]] = {
        "long_tail": (classes, plots.long_tail, both, 3.6),
        "loss": (has("train", "loss"), plots.loss_curve, narrow, 3.9),
        "accuracy": (has("eval", "top1", "balanced"), plots.accuracy_curves, narrow, 3.9),
        "groups": (groups, plots.group_bars, both, 3.1),
        "lam_x": (mixed, partial(plots.lambda_histograms, key="lam_x_hist"), narrow, 2.7),
        "lam_y": (mixed, partial(plots.lambda_histograms, key="lam_y_hist"), narrow, 2.7),
        "reliability": (any(series.reliability([r]) is not None for r in runs), plots.reliability_diagram, narrow, 4.2),
        "images_per_s": (has("train", "images_per_s"), partial(plots.speed_curve, key="images_per_s"), narrow, 2.5),
        "data_wait": (has("train", "data_wait"), partial(plots.speed_curve, key="data_wait"), narrow, 2.5),
    }
    found = {}
    for name, (there, draw, widths, height) in wanted.items():
        if there:
            images = {kind: plots.svg(partial(draw, methods=methods), w, height) for kind, w in widths.items()}
            found[name] = {k: "data:image/svg+xml;base64," + base64.b64encode(v).decode() for k, v in images.items()}
    return found


def _tables(methods: dict[str, list[dict]]) -> dict[str, Any]:
    runs = [run for group in methods.values() for run in group]
    counts = runs[0].get("class_counts") or []
    base = {key: metric(next(iter(methods.values())), key) for key in METRICS}
    headline = []
    for name, group in methods.items():
        cells = {key: metric(group, key) for key in METRICS}
        texts = {k: (("-",) if s is None else s.text().split(" +- "), difference(s, base[k])) for k, s in cells.items()}
        headline.append({"name": name, "n": len(group), "cells": texts})
    calibration = {}
    for name, group in methods.items():
        shown = (("ece", 100.0), ("top5", 100.0), ("loss", 1.0))
        stats = [(metric(group, key), scale) for key, scale in shown]
        calibration[name] = ["-" if s is None else s.text(scale, "\u00b1") for s, scale in stats]
    faults = [{"run": _label(run), **fault} for run in runs for fault in run.get("faults") or ()]
    curves = [series.curve(g, k, "loss") for g in methods.values() for k in ("train", "eval")]
    starts = {name: start for name, group in methods.items() if (start := series.deferral(group)) is not None}
    return {
        "metrics": METRICS,
        "headline": headline,
        "first": next(iter(methods)),
        "repeated": any(len(group) > 1 for group in methods.values()),
        "runs": [{**run, "label": _label(run), "took": _duration(run.get("seconds"))} for run in runs],
        "counts": counts,
        "window": plots.window(len(counts)),
        "shift": plots.SHIFT if len(counts) >= plots.CROWDED else 0,
        "class_rows": _class_rows(methods),
        "not_finite": sum(c.dropped for c in curves if c is not None),
        "starts": starts,
        "mix": {name: series.relabelled(group) for name, group in methods.items()},
        "calibration": calibration,
        "speed": {n: [stat(r.get(k) for r in g) for k in ("images_per_s", "data_wait")] for n, g in methods.items()},
        "faults": faults[:FAULTS],
        "faults_all": len(faults),
        "restarts": sum(run.get("restarts") or 0 for run in runs),
        "versions": _versions(runs),
        **_configs(methods),
    }


def _label(run: dict) -> str:
    return str(run.get("name") or f"{run.get('method')}, seed {run.get('seed')}")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _class_rows(methods: dict[str, list[dict]]) -> dict[str, Any]:
    """Classes by falling count with each method's accuracy; of a long list only both ends."""
    first = next(iter(methods.values()))[0]
    count_C = np.asarray(first.get("class_counts") or [], dtype=np.int64)
    names = first.get("classes") or [str(c) for c in range(len(count_C))]
    acc_MC = [100 * series.per_class(group, len(count_C)) for group in methods.values()]
    order = np.argsort(-count_C, kind="stable")
    half = CLASS_ROWS // 2
    kept = order if len(order) <= CLASS_ROWS else np.concatenate([order[:half], order[-half:]])
    cells = [["-" if np.isnan(acc_C[c]) else f"{acc_C[c]:.1f}" for acc_C in acc_MC] for c in kept]
    rows = [{"name": names[c], "count": int(count_C[c]), "cells": row} for c, row in zip(kept, cells, strict=True)]
    return {"rows": rows, "left_out": len(order) - len(kept), "half": half}


def _versions(runs: Sequence[dict]) -> dict[str, str]:
    keys = dict.fromkeys(key for run in runs for key in run.get("versions") or {})
    return {k: " / ".join(dict.fromkeys(str((r.get("versions") or {}).get(k, "-")) for r in runs)) for k in keys}


def _flat(config: dict, prefix: str = "") -> dict[str, str]:
    """Dotted names and YAML-like values of a nested config."""
    found: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{name}.")
        else:
            found[name] = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).strip()
            found[name] = found[name].removesuffix("\n...")
    return found


def _configs(methods: dict[str, list[dict]]) -> dict[str, Any]:
    """Knobs that differ between methods, knobs that only differ between a method's own runs, and the full YAML."""
    flat = {name: [_flat(run.get("config") or {}) for run in group] for name, group in methods.items()}
    keys = dict.fromkeys(key for group in flat.values() for config in group for key in config)
    values = {k: {name: list(dict.fromkeys(c.get(k, "-") for c in g)) for name, g in flat.items()} for k in keys}
    # A knob with one value per run (seed, name) tells runs apart, not methods.
    seeds = [k for k in keys if any(len(v) > 1 for v in values[k].values())]
    apart = [k for k in keys if k not in seeds and len({v[0] for v in values[k].values()}) > 1]
    dump = partial(yaml.safe_dump, sort_keys=False, allow_unicode=True)
    return {
        "apart": {k: {name: v[0] for name, v in values[k].items()} for k in apart},
        "seeds": seeds,
        "configs": {_label(g[0]): dump(g[0]["config"]) for g in methods.values() if g[0].get("config")},
    }
