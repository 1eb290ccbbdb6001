"""The export folder: round trip, parity, the card's own lines, refusals."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from remix_dist.model import build_model
from remix_dist.train import export
from remix_dist.train.export import export_model, load_exported
from remix_dist.types import UserError

torch.set_num_threads(1)


def meta(model="resnet8", classes=3, **more):
    pre = {"resize": 36, "crop": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear"}
    return {"model": model, "classes": [f"class {i}" for i in range(classes)], "preprocess": pre} | more


def live(model="resnet8", classes=3, head_scale=None):
    return build_model(model, classes, head_scale, seed=11).eval()


@pytest.mark.parametrize("model, scale", [("resnet8", None), ("resnet8", 30.0), ("resnet18", None)])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_round_trip(tmp_path, model, scale, prefix):
    trained, told = live(model, 3, scale), meta(model, head_scale=scale, seed=4, run={"lr": 0.1})
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    export_model(state, told, str(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "MODEL_CARD.md", "classes.json", "config.json", "model.safetensors", "preprocess.json",
    ]  # fmt: skip
    again, back = load_exported(str(tmp_path / "out"))
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(again(x), trained(x)) and not again.training
    assert back == told
    assert os.listdir(tmp_path) == ["out"]  # nothing left of the writing


def test_torchvisions_own_keys_and_the_cards_five_lines(tmp_path):
    trained = live("resnet18")
    export_model(trained.state_dict(), meta("resnet18"), str(tmp_path / "out"))
    code = re.search(r"```python\n(.*?)```", (tmp_path / "out/MODEL_CARD.md").read_text(), re.S)[1]
    assert len(code.splitlines()) == 5 and "remix_dist" not in code
    x = torch.rand(2, 3, 32, 32)
    torch.save(x, tmp_path / "x.pt")
    code += "import sys, torch; assert not [m for m in sys.modules if m.startswith('remix')]\n"
    code += "print(classes); torch.save(model(torch.load('../x.pt')).detach(), '../y.pt')"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True)
    assert run.stdout.strip() == "['class 0', 'class 1', 'class 2']", run.stderr
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), trained(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("model, scale, why", [("resnet8", None, "own"), ("resnet18", 30.0, "cosine of scale 30")])
def test_the_card_says_when_remix_dist_is_needed_and_its_lines_run(tmp_path, monkeypatch, model, scale, why):
    export_model(live(model, 3, scale).state_dict(), meta(model, head_scale=scale), str(tmp_path / "out"))
    text = (tmp_path / "out/MODEL_CARD.md").read_text()
    assert "remix_dist is needed" in text and why in text
    monkeypatch.chdir(tmp_path / "out")
    space = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], space)
    assert space["meta"]["classes"] == ["class 0", "class 1", "class 2"]


def test_the_card_tells_what_it_was_trained_on_and_how_well(tmp_path):
    told = meta(
        data="iNaturalist 2018", method="Remix-DRW", epochs=200, class_counts=[1000, 22, 2], limits=["No birds."],
        metrics={"top1": 0.7049, "many": 0.75, "few": None},
    )  # fmt: skip
    text = export.card(told)
    for line in (
        "- data: iNaturalist 2018",
        "- method: Remix-DRW",
        "- images: 1024 in 3 classes; per class at most 1000, median 22, at least 2 (ratio 500.0)",
        "| top1 | 70.49 % |",
        "| many | 75.00 % |",
        "| few | not measured |",
        "- No birds.",
    ):
        assert line in text.splitlines()


def test_the_same_folder_again_but_never_another_ones(tmp_path):
    out = tmp_path / "out"
    export_model(live().state_dict(), meta(), str(out))
    export_model(live().state_dict(), meta(seed=5), str(out))
    assert json.loads((out / "config.json").read_text())["seed"] == 5
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    with pytest.raises(UserError, match="is no export"):
        export_model(live().state_dict(), meta(), str(tmp_path / "mine"))
    assert (tmp_path / "mine/thesis.txt").read_text() == "years"


def test_a_gap_between_written_and_live_is_an_error_and_leaves_no_folder(tmp_path, monkeypatch):
    write = safetensors.torch.save_file

    def lossy(tensors, *args, **kwargs):
        write({k: v + 1e-3 * (k == "linear.bias") for k, v in tensors.items()}, *args, **kwargs)

    monkeypatch.setattr(export.safetensors.torch, "save_file", lossy)
    with pytest.raises(RuntimeError, match=r"differ by 0.001"):
        export_model(live().state_dict(), meta(), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_named(tmp_path):
    state, out = live().state_dict(), str(tmp_path / "out")
    incomplete = meta()
    del incomplete["preprocess"]["std"]
    for told, where, reason in [
        ({"model": "resnet8"}, out, "meta lacks classes, preprocess"),
        (incomplete, out, "preprocess lacks std"),
        (meta(classes=4), out, "does not fit"),
        (meta(head_scale=30.0), out, "does not fit"),
        (meta("resnet14"), out, "does not fit"),
        (meta(), "s3://bucket/out", "local folder"),
    ]:
        with pytest.raises(UserError, match=reason):
            export_model(state, told, where)
    assert not (tmp_path / "out").exists()


def test_damaged_and_foreign_exports_are_refused(tmp_path):
    export_model(live().state_dict(), meta(), str(tmp_path / "out"))
    config, weights = tmp_path / "out/config.json", tmp_path / "out/model.safetensors"
    good = config.read_text()
    config.write_text(good.replace('"version": 1', '"version": 2'))
    with pytest.raises(UserError, match="version 2; this release reads"):
        load_exported(str(tmp_path / "out"))
    config.write_text(good)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged export"):
        load_exported(str(tmp_path / "out"))
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(UserError, match="cannot be read"):
        load_exported(str(tmp_path / "out"))
