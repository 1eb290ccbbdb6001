"""The report file: parses, says the right numbers, loads nothing, and bears what real results bring along."""

import base64
import builtins
import re
import statistics
import time
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from remix_dist.report import write_report
from remix_dist.types import UserError

VOID = {"meta", "img", "source", "line", "br"}


class Page(HTMLParser):
    """Checks nesting, keeps addresses, visible text and table rows."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.rows, self.words, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "xlink:href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def images(self):
        return [base64.b64decode(a.split(",", 1)[1]) for a in self.addresses if a.startswith("data:image/svg+xml")]


def result(method="Remix-DRW", seed=0, classes=10, mixed=True, **changes):
    rng = np.random.default_rng([seed, classes, len(method)])
    counts = np.maximum(500 * 0.01 ** (np.arange(classes) / (classes - 1)), 2).astype(int).tolist()
    acc = rng.integers(0, 4, classes) / 3
    groups = {
        "many": [c for c, n in enumerate(counts) if n > 100],
        "medium": [c for c, n in enumerate(counts) if 20 <= n <= 100],
        "few": [c for c, n in enumerate(counts) if n < 20],
    }
    evaluation = {"top1": float(rng.random()), "top5": 0.9, "ece": 0.1, "loss": 1.5, "balanced": float(acc.mean())}
    evaluation |= {g: float(acc[ids].mean()) for g, ids in groups.items()}
    history = []
    for i in range(30):
        speed = {"images_per_s": 900.0 + i, "data_wait": 0.1, "relabelled": 0.2, "corrupt": 0}
        curve = {"loss": 2.0 / (i + 1), "lr": 0.1, "rebalanced": i >= 20}
        history.append({"kind": "train", "step": i, "epoch": i / 2, **speed, **curve})
        history.append({"kind": "eval", "step": i, "epoch": i / 2, **evaluation})
    bins = [{"count": b, "confidence": (b + 0.5) / 15, "accuracy": b / 15} for b in range(15)]
    mix = {"lam_x_hist": [50] * 20, "lam_y_hist": [40] * 20 + [200], "relabelled": 0.375, "mixed_rows": 1000}
    nothing = {"lam_x_hist": [0] * 20, "lam_y_hist": [0] * 21, "relabelled": 0.0, "mixed_rows": 0}
    return {
        "name": f"{method}-s{seed}",
        "method": method,
        "seed": seed,
        "steps": 1234,
        "epochs": 15.0,
        "seconds": 7384.0,
        "world": 2,
        "rows": sum(counts),
        "commit": "0123456789abcdef",
        "versions": {"torch": "2.15.0"},
        "device": "cpu",
        "classes": [f"class {c}" for c in range(classes)],
        "class_counts": counts,
        "groups": groups,
        "eval": {**evaluation, "per_class": acc.tolist(), "support": [3] * classes, "ece_bins": bins},
        "mix": mix if mixed else nothing,
        "images_per_s": 912.5,
        "data_wait": 0.1,
        "faults": [],
        "restarts": 0,
        "config": {"seed": seed, "labels": {"name": "remix" if mixed else "same", "kappa": 3.0}, "lr": 0.1},
        "history": history,
        **changes,
    }


def report(tmp_path, results, **words):
    path = str(tmp_path / "deep" / "report.html")
    assert write_report(path, results, **{"title": "Demo", **words}) == path
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.html"]
    page = Page((tmp_path / "deep" / "report.html").read_text("utf-8"))
    assert page.addresses and all(a.startswith(("data:image/svg+xml;base64,", "#")) for a in page.addresses)
    for image in page.images:
        ElementTree.fromstring(image)
        links = re.findall(rb'(?:href|src)="([^"]*)"|url\(([^)]*)\)', image)
        assert all(a.startswith((b"#", b"data:image/png")) for pair in links for a in pair if a)
    return page


def test_one_run(tmp_path):
    one = result()
    page = report(tmp_path, [one], intro="run `make demo`", caption="below", next_steps=["add seeds"])
    row = next(r for r in page.rows if r[0].strip() == "Remix-DRW")
    assert row[1:] == [f"{100 * one['eval'][k]:.2f}" for k in ("top1", "balanced", "many", "medium", "few")] + ["1"]
    for words in (
        "Eq. 10 fired on 37.5 % of mixed rows",
        "Unreadable images: none.",
        "2 h 03 min",
        "Remix-DRW: epoch 10",
        "below",
        "add seeds",
        "single run per method",
        "torch 2.15.0",
        "make demo",
    ):
        assert words in page.text, words
    assert len(page.images) == 11  # nine figures, two of them also in a width for phones


def test_nine_runs_show_mean_spread_and_what_differs(tmp_path):
    methods = {"ERM": False, "Mixup": True, "Remix": True}
    runs = [result(m, s, mixed=x) for s in range(3) for m, x in methods.items()]
    for r in runs:
        r["eval"]["top1"] = {"ERM": 0.5, "Mixup": 0.505, "Remix": 0.6}[r["method"]] + 0.01 * r["seed"]
    page = report(tmp_path, runs)
    assert "\u00b1 1.00" in page.text
    headline = {r[0].strip(): r for r in page.rows if len(r) == 7 and r[6] == "3"}
    assert list(headline) == ["ERM", "Mixup", "Remix"]
    for method, row in headline.items():
        values = [100 * r["eval"]["balanced"] for r in runs if r["method"] == method]
        assert row[2].startswith(f"{statistics.mean(values):.2f} \u00b1 {statistics.stdev(values):.2f}")
    text = (tmp_path / "deep" / "report.html").read_text("utf-8")
    top1 = {m: re.search(rf"{v} <span.*?</td>", text)[0] for m, v in (("Mixup", "51.50"), ("Remix", "61.00"))}
    assert "higher than ERM by more than 2" in top1["Remix"] and "higher than" not in top1["Mixup"]
    assert "ERM: nothing was mixed." in page.text
    assert ["labels.name", "same", "remix", "remix"] in page.rows
    assert not any(r[0] in ("labels.kappa", "seed") for r in page.rows if r)


def test_the_same_results_give_the_same_bytes_and_replace_the_old_file(tmp_path):
    (tmp_path / "a.html").write_text("old")
    for name in ("a.html", "b.html"):
        write_report(str(tmp_path / name), [result()], title="Demo")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_inat_size_is_fast_and_small(tmp_path):
    runs = [result(m, classes=8142) for m in ("ERM", "Remix", "Remix-DRW")]
    start = time.monotonic()
    page = report(tmp_path, runs)
    assert time.monotonic() - start < 10
    assert (tmp_path / "deep" / "report.html").stat().st_size < 5e6
    assert "8,042 between them left out" in page.text and "running means over 407" in page.text


def test_text_of_others_is_escaped(tmp_path):
    evil = "<script>alert('$x')</script>"
    fault = {"row": 7, "shard": "s.parquet", "id": 9, "reason": evil, "replaced_by": 8}
    run = result(method=evil, classes=3, faults=[fault], restarts=2, commit=evil, device=evil, config={evil: evil})
    run["classes"][1:] = [evil, "$\\bad{$"]  # the second would be a TeX error if it were read as a formula
    page = report(tmp_path, [run], title=evil, intro=f"`{evil}`", caption=evil, next_steps=[evil])
    assert "script" not in page.tags and page.text.count(evil) >= 10
    assert [r for r in page.rows if r[1:] == ["7", "s.parquet", "9", evil, "8"]]
    assert "Restarts: 2." in page.text


@pytest.mark.parametrize("gone", ["everything", "values"])
def test_missing_fields_are_borne(tmp_path, gone):
    run = result(mixed=False)
    if gone == "everything":
        kept = ("name", "method", "classes", "class_counts")
        run = {k: run[k] for k in kept} | {"eval": {"top1": 0.5}}
    else:
        nulls = (
            "commit",
            "versions",
            "device",
            "seconds",
            "images_per_s",
            "data_wait",
            "faults",
            "config",
            "mix",
            "seed",
        )
        run |= dict.fromkeys(nulls)
        run["eval"] |= dict.fromkeys(("many", "medium", "few", "per_class", "ece_bins", "ece", "top5"))
        run["history"] = [{**r, "loss": float("nan"), "lr": None} for r in run["history"]]
        run["groups"] = dict.fromkeys(("many", "medium", "few"))
    page = report(tmp_path, [run])
    assert "Nothing was mixed in this run." in page.text and "No config was recorded." in page.text
    assert next(r for r in page.rows if r[0].strip() == "Remix-DRW")[3:6] == ["-", "-", "-"]


def test_urls_of_fsspec(tmp_path):
    import fsspec

    bare = {"name": "a", "method": "ERM", "classes": ["x"], "class_counts": [1], "eval": {"top1": 0.5}}
    assert write_report("memory://runs/r.html", [bare], title="T") == "memory://runs/r.html"
    assert fsspec.filesystem("memory").cat("/runs/r.html").startswith(b"<!DOCTYPE html>")
    with pytest.raises(UserError, match="nosuch"):
        write_report("nosuch://x/r.html", [bare], title="T")


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_missing_extra_is_named(tmp_path, monkeypatch, package):
    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}", name=name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=rf'{package}: pip install "remix_dist\[report\]"'):
        write_report(str(tmp_path / "r.html"), [result()], title="T")
