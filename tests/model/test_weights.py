"""Weights from files: all of the backbone or an error, the head as it fits."""

import fsspec
import pytest
import safetensors.torch
import torch

from remix_dist.model import build_model
from remix_dist.types import UserError

torch.set_num_threads(1)


def source(classes=5, name="resnet8", seed=9):
    return build_model(name, classes, seed=seed).net.state_dict()


def same(model, state, but="linear"):
    return all(torch.equal(v, state[k]) for k, v in model.net.state_dict().items() if not k.startswith(but))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone.", "net.", "module.model.backbone."])
def test_prefixes_are_stripped_and_the_other_head_stays_fresh(tmp_path, prefix):
    state = source(5)
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "w.pt")
    model = build_model("resnet8", 7, weights=str(tmp_path / "w.pt"))
    assert same(model, state)
    assert torch.equal(model.net.linear.weight, build_model("resnet8", 7).net.linear.weight)
    tensors = len(state)
    assert f"loaded {tensors - 2} of {tensors} tensors; left fresh: linear.weight, linear.bias" in model.loaded
    assert model.loaded.endswith("not used from the file: linear.weight, linear.bias (2)")


def test_a_head_that_fits_is_loaded_too(tmp_path):
    state = source(7)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    for where in (tmp_path / "model.safetensors", tmp_path):  # a file, or the folder of an export
        model = build_model("resnet8", 7, weights=str(where))
        assert same(model, state, but="-") and model.loaded.endswith(f"loaded {len(state)} of {len(state)} tensors")


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_training_checkpoints_and_urls(key):
    state = source(7)
    with fsspec.open("memory://w/ckpt.pth", "wb") as file:
        torch.save({key: state, "epoch": 3}, file)
    assert same(build_model("resnet8", 7, weights="memory://w/ckpt.pth"), state, but="-")


def test_a_linear_file_serves_a_cosine_model(tmp_path):
    torch.save(source(5), tmp_path / "w.pt")
    model = build_model("resnet8", 7, head_scale=30.0, weights=str(tmp_path / "w.pt"))
    assert same(model, source(5)) and "left fresh: linear.weight" in model.loaded


def test_nothing_matches_names_keys_of_both_sides(tmp_path):
    torch.save({"encoder.w": torch.ones(2), "encoder.b": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"it has conv1.weight, bn1.weight, the file encoder.w, encoder.b"):
        build_model("resnet8", 7, weights=str(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    "model, reason",
    [
        ("resnet14", r"layer1.1.conv1.weight is not there"),
        ("resnet8-w32", r"conv1.weight has shape \(16, 3, 3, 3\) there"),
    ],
)
def test_half_a_backbone_is_refused(tmp_path, model, reason):
    torch.save(source(7), tmp_path / "w.pt")
    with pytest.raises(UserError, match=reason):
        build_model(model, 7, weights=str(tmp_path / "w.pt"))


def test_one_tensor_of_another_shape_is_named(tmp_path):
    state = source(7) | {"layer2.0.conv1.weight": torch.zeros(32, 16, 1, 1)}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"layer2.0.conv1.weight has shape \(32, 16, 1, 1\) there, \(32, 16, 3, 3\)"):
        build_model("resnet8", 7, weights=str(tmp_path / "w.pt"))


class Evil:
    def __reduce__(self):
        return print, ("code of the file ran",)


def test_bad_files_are_one_line_errors_and_run_no_code(tmp_path, capsys):
    (tmp_path / "junk.pt").write_bytes(b"not weights at all")
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("junk.pt", "evil.pt", "list.pt", "absent.pt"):
        with pytest.raises(UserError, match=name) as caught:
            build_model("resnet8", 7, weights=str(tmp_path / name))
        assert "\n" not in str(caught.value)
    assert "ran" not in capsys.readouterr().out
