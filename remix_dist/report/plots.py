"""The figures of the report: each function gives one SVG that follows the reader's light or dark page.

Text and frames carry stand-in colours that `svg` turns into CSS variables; methods keep one Okabe-Ito
colour throughout. Matplotlib is imported inside the functions and no global state of it is touched.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from remix_dist.report import series
from remix_dist.report.summary import GROUPS, metric
from remix_dist.types import generator

Methods = Mapping[str, Sequence[dict]]
# Okabe-Ito without black and yellow, which vanish on a dark and on a white page.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c8c8c")
DASHES = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2))
MARKERS = "osD^vPX"
INK, GRID, AREA = "#1f2329", "#d8dce2", "#e4e7eb"
THEME = (
    "<style>svg{--ink:#1f2329;--grid:#d8dce2;--area:#e4e7eb}"
    "@media screen and (prefers-color-scheme:dark){svg{--ink:#dfe3e8;--grid:#3a414a;--area:#2c333b}}</style>"
)
WIDE, NARROW = 9.4, 4.5
"""Inches: a narrow figure fills a phone or half of a page at the size its letters were drawn for."""

CROWDED, SHIFT = 1000, 4.0
"""From this many classes on, dots are spread by up to SHIFT points of accuracy, a lane for each method."""


@dataclass(frozen=True)
class Look:
    """How one method is drawn everywhere: colours come first, dashes tell the eighth method from the first."""

    colour: str
    dash: tuple[float, ...]
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """Keyword arguments for a matplotlib line."""
        return {"color": self.colour, "linestyle": (0, self.dash) if self.dash else "-"}


def looks(methods: Methods) -> dict[str, Look]:
    """The Look of each method, by its place."""
    size = len(COLOURS)
    return {
        name: Look(COLOURS[i % size], DASHES[i // size % len(DASHES)], MARKERS[i % size])
        for i, name in enumerate(methods)
    }


def style() -> AbstractContextManager[None]:
    """The matplotlib settings that every figure is drawn and saved under."""
    import matplotlib

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings: Any = {
        **dict.fromkeys(ink, INK),
        "grid.color": GRID,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.6,
        "lines.markersize": 3.5,
        "svg.hashsalt": "remix_dist",  # the same results give the same bytes
        "svg.fonttype": "path",
        "savefig.dpi": 120,
    }
    return matplotlib.rc_context(settings)


def svg(draw: Callable[[Any], object], width: float, height: float) -> bytes:
    """The figure that `draw(figure)` fills, as SVG whose text and frames follow the page's colour scheme."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    draw(figure)
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, name in ((INK, "ink"), (GRID, "grid"), (AREA, "area")):
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r"(<svg[^>]*>)", lambda m: m[1] + THEME, text, count=1).encode()


def _percent(axes: Any, label: str, top: float | None = 103) -> None:
    axes.set_ylabel(label)
    axes.set_ylim(0, top)


def long_tail(figure: Any, methods: Methods) -> None:
    """Accuracy of each class (left axis) over the classes sorted by training count (area, right log axis)."""
    from matplotlib.ticker import FuncFormatter

    result = next(iter(methods.values()))[0]
    count_C = np.asarray(result["class_counts"], dtype=np.float64)
    order_C, place_C = np.argsort(-count_C, kind="stable"), np.arange(1, len(count_C) + 1)
    counts = figure.add_subplot()
    axes = counts.twinx()
    edges = np.arange(len(count_C) + 1) + 0.5
    counts.stairs(count_C[order_C], edges, baseline=0.8, fill=True, color=AREA, linewidth=0)
    counts.set(yscale="log", ylim=(0.8, count_C.max() * 1.3), ylabel="training images")
    counts.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else ""))
    counts.grid(False)
    counts.minorticks_off()
    for near, far, side in ((axes, "right", "left"), (counts, "left", "right")):
        near.yaxis.set_label_position(side)
        near.yaxis.set_ticks_position(side)
        near.spines[side].set_visible(True)
        near.spines[far].set_visible(False)
    many, crowded = len(count_C) > 60, len(count_C) >= CROWDED
    # A few test images per class give a few possible accuracies: unshifted, the dots would be three solid lines.
    lanes_M = (2 * np.arange(len(methods)) + 1) / len(methods) - 1
    noise_MC = generator(0, "report jitter").uniform(-0.8, 0.8, (len(methods), len(count_C))) / len(methods)
    shift_MC = SHIFT * (lanes_M[:, None] + noise_MC)
    for i, (name, look) in enumerate(looks(methods).items()):
        acc_C = 100 * series.per_class(methods[name], len(count_C))[order_C]
        if many:
            # Drawn as pixels: thousands of vector dots would weigh megabytes.
            size, faint = (2, 0.12) if crowded else (9, 0.35)
            dot_C = acc_C + shift_MC[i] if crowded else acc_C
            axes.scatter(place_C, dot_C, s=size, color=look.colour, alpha=faint, linewidths=0, rasterized=True)
            axes.plot(place_C, series.running_mean(acc_C, window(len(count_C))), **look.line, linewidth=2)
        else:
            axes.plot(place_C, acc_C, marker=look.marker, **look.line)
    _percent(axes, "accuracy of the class, %")
    if crowded:
        axes.set_ylim(-SHIFT - 1, 100 + SHIFT + 1)
    axes.set_xlim(0.5, len(count_C) + 0.5)
    for group, (first, last) in series.spans(result, order_C).items():
        if last + 1 < len(count_C):
            axes.axvline(last + 1.5, color=INK, linewidth=0.8, linestyle=":")
        if (last + 1 - first) / len(count_C) > 0.09:
            at = ((first + last) / 2 + 1, 1.01)
            axes.text(*at, group, transform=axes.get_xaxis_transform(), ha="center", va="bottom")
    names = [str(c) for c in result.get("classes") or ()]
    if 0 < len(names) <= 20 and all(ord(ch) < 0x250 for name in names for ch in name):
        short = [names[c] if len(names[c]) <= 14 else names[c][:13] + "..." for c in order_C]
        counts.set_xticks(place_C, short, rotation=40, ha="right", rotation_mode="anchor", parse_math=False)
    else:
        counts.set_xlabel("classes, from most to fewest training images")
        counts.xaxis.set_major_formatter("{x:,.0f}")


def window(classes: int) -> int:
    """Classes that the running mean of the long-tail plot covers: about a twentieth of them, odd."""
    return 2 * (classes // 40) + 1


def _curves(axes: Any, methods: Methods, kind: str, key: str, scale: float = 1.0) -> None:
    for name, look in looks(methods).items():
        found = series.curve(methods[name], kind, key)
        if found is None:
            continue
        mean_P = scale * found.mean_P
        dots = {"marker": look.marker, "markersize": 3} if len(mean_P) <= 25 else {}
        axes.plot(found.epoch_P, mean_P, **look.line, **dots)
        if found.sd_P is not None:
            low_P, high_P = mean_P - scale * found.sd_P, mean_P + scale * found.sd_P
            axes.fill_between(found.epoch_P, low_P, high_P, color=look.colour, alpha=0.2, linewidth=0)
    axes.margins(x=0.02)


def _deferral(panels: Sequence[Any], methods: Methods) -> None:
    starts: dict[float, list[str]] = {}
    for name, runs in methods.items():
        if (epoch := series.deferral(runs)) is not None:
            starts.setdefault(round(epoch, 2), []).append(name)
    low, high = panels[0].get_xlim()
    colours = looks(methods)
    for row, (epoch, names) in enumerate(sorted(starts.items())):
        colour = colours[names[0]].colour if len(starts) > 1 else INK
        for axes in panels:
            axes.axvline(epoch, color=colour, linestyle="--", linewidth=1)
        if row < 4:
            place = (epoch - low) / (high - low)
            side = "left" if place < 0.35 else "right" if place > 0.65 else "center"
            at = {"xycoords": panels[0].get_xaxis_transform(), "textcoords": "offset points"}
            label = f"rebalanced from epoch {epoch:g}"
            panels[0].annotate(label, (epoch, 1), (0, 2 + 11 * row), ha=side, va="bottom", fontsize=8, **at)


def loss_curve(figure: Any, methods: Methods) -> None:
    """Training loss over the epochs, the learning rate in a thin panel below."""
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 1))
    _curves(loss, methods, "train", "loss")
    _curves(rate, methods, "train", "lr")
    _deferral((loss, rate), methods)
    loss.set_ylabel("training loss")
    rate.set(ylabel="LR", xlabel="epoch")
    rate.set_ylim(bottom=0)


def accuracy_curves(figure: Any, methods: Methods) -> None:
    """Top-1 (upper panel) and balanced accuracy (lower panel) over the epochs."""
    panels = figure.subplots(2, 1, sharex=True)
    for axes, key, label in zip(panels, ("top1", "balanced"), ("top-1, %", "balanced, %"), strict=True):
        _curves(axes, methods, "eval", key, 100)
        axes.set_ylabel(label)
    _deferral(panels, methods)
    panels[1].set_xlabel("epoch")


def speed_curve(figure: Any, methods: Methods, key: str) -> None:
    """`images_per_s`, or `data_wait` in %, over the epochs."""
    axes = figure.add_subplot()
    _curves(axes, methods, "train", key, 100 if key == "data_wait" else 1)
    axes.set(xlabel="epoch", ylabel="waiting for data, %" if key == "data_wait" else "images per second")
    axes.set_ylim(bottom=0)


def group_bars(figure: Any, methods: Methods) -> None:
    """Accuracy of the many, medium and few groups, a bar per method, sd over the seeds as a whisker."""
    axes = figure.add_subplot()
    width = 0.84 / len(methods)
    for i, (name, look) in enumerate(looks(methods).items()):
        for g, group in enumerate(GROUPS):
            found = metric(methods[name], group)
            if found is None:
                continue
            x, y, sd = g + (i - (len(methods) - 1) / 2) * width, 100 * found.mean, 100 * (found.sd or 0)
            hatch = "////" if look.dash else None
            axes.bar(x, y, width * 0.9, color=look.colour, hatch=hatch, edgecolor="white", linewidth=0)
            if found.sd is not None:
                axes.errorbar(x, y, sd, color=INK, linewidth=1, capsize=2)
            if len(methods) <= 3:
                axes.text(x, y + sd + 1, f"{y:.1f}", ha="center", va="bottom", fontsize=8)
    _percent(axes, "accuracy, %", 108)
    ids = next(iter(methods.values()))[0].get("groups") or {}
    axes.set_xticks(range(3), [f"{g}\n({len(ids.get(g) or ())} classes)" for g in GROUPS])
    axes.grid(False, axis="x")


def lambda_histograms(figure: Any, methods: Methods, key: str) -> None:
    """Share of mixed rows per bin of lambda_x or lambda_y; lambda_y that is exactly 1 has a panel of its own."""
    both = key == "lam_y_hist"
    panels = (
        figure.subplots(1, 2, sharey=True, width_ratios=(4, 1), squeeze=False)[0] if both else [figure.add_subplot()]
    )
    mixed = {name: h for name, runs in methods.items() if (h := series.histogram(runs, key)) is not None}
    styles = looks(methods)
    for i, (name, share_B) in enumerate(mixed.items()):
        panels[0].stairs(100 * share_B[:20], np.linspace(0, 1, 21), **styles[name].line, linewidth=1.6)
        if both:
            hatch = "////" if styles[name].dash else None
            panels[1].bar(i, 100 * share_B[20], color=styles[name].colour, hatch=hatch, edgecolor="white", linewidth=0)
    panels[0].set(xlabel=r"$\lambda_y$" if both else r"$\lambda_x$", ylabel="mixed rows, %", xlim=(0, 1))
    panels[0].set_ylim(bottom=0)
    if both:
        panels[1].set_xticks([(len(mixed) - 1) / 2], ["= 1"])
        panels[1].set_xlim(-0.8, len(mixed) - 0.2)


def reliability_diagram(figure: Any, methods: Methods) -> None:
    """Accuracy against confidence per bin, and below the share of rows in each bin."""
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 1))
    upper.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
    for name, look in looks(methods).items():
        bins = series.reliability(methods[name])
        if bins is None:
            continue
        filled = bins[bins[:, 0] > 0]
        upper.plot(100 * filled[:, 1], 100 * filled[:, 2], marker=look.marker, **look.line)
        lower.stairs(100 * bins[:, 0], np.linspace(0, 100, len(bins) + 1), **look.line, linewidth=1.3)
    _percent(upper, "accuracy, %")
    lower.set(xlabel="confidence in the predicted class, %", ylabel="rows, %", xlim=(0, 100))
    lower.set_ylim(bottom=0)
