"""build_model and Classifier: names, sizes, mixing inside the net, determinism."""

import copy
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from remix_dist.model import build_model, families
from remix_dist.types import UserError

torch.set_num_threads(1)
LAM = torch.tensor([0.3, 1.0, 0.0, 0.65])
PARTNER = torch.tensor([2, 0, 3, 1])


def images(side=32, rows=4):
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(1))


def parameters(name, classes=10):
    return sum(p.numel() for p in build_model(name, classes).parameters())


def test_parameter_counts_are_the_papers():
    assert parameters("resnet32") == 464_154
    assert parameters("resnet20") == 269_722  # He et al. 2016, Table 6: 0.27 M
    assert parameters("resnet110") == 1_727_962  # 1.7 M
    assert parameters("resnet50", 1000) == 25_557_032  # torchvision's


def test_the_small_net_is_what_its_name_says():
    model = build_model("resnet8-w32", 10)
    assert [len(stage) for stage in (model.net.layer1, model.net.layer2, model.net.layer3)] == [1, 1, 1]
    hidden, shapes = images(8), []
    for stage in model._stages(model.net)[:-1]:
        hidden = stage(hidden)
        shapes.append(tuple(hidden.shape[1:]))
    assert shapes == [(32, 8, 8), (64, 4, 4), (128, 2, 2)]


def test_option_a_shortcut_by_hand():
    block = build_model("resnet8", 10).net.layer2[0].eval()
    x = torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(3))
    branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    shortcut = torch.zeros(2, 32, 3, 3)
    shortcut[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), F.relu(branch + shortcut))


def test_convolutions_and_head_are_kaiming_normal():
    weight = build_model("resnet32", 10).net.layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert build_model("resnet32", 4000).net.linear.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    "name, points",
    [("resnet8", 4), ("resnet32", 4), ("resnet18", 5), ("resnet50-w16", 4), ("squeezenet1_1", 1), ("alexnet", 1)],
)
def test_mix_points(name, points):
    assert build_model(name, 7).mix_points == points


@pytest.mark.parametrize("name", ["resnet8", "resnet18"])
def test_mixing_at_every_point_is_two_passes_by_hand(name):
    model = build_model(name, 7).eval()
    net, x = model.net, images(48)
    if name == "resnet18":
        before = torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
        parts = [before, net.layer2, net.layer3, net.layer4, lambda h: net.fc(h.mean((2, 3)))]
    else:
        before = torch.nn.Sequential(net.conv1, net.bn1, torch.nn.ReLU(), net.layer1)
        parts = [before, net.layer2, net.layer3, lambda h: net.linear(h.mean((2, 3)))]

    def through(hidden, some):
        for part in some:
            hidden = part(hidden)
        return hidden

    lam = LAM[:, None, None, None]
    for point in range(model.mix_points):
        own, other = through(x, parts[:point]), through(x[PARTNER], parts[:point])
        expected = through(lam * own + (1 - lam) * other, parts[point:])
        torch.testing.assert_close(model(x, PARTNER, LAM, point), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(x), net(x), atol=1e-6, rtol=1e-6)
    assert torch.equal(model(x), through(x, parts)) or torch.allclose(model(x), through(x, parts), atol=1e-5)


def test_lambda_one_is_the_plain_pass_and_one_call_leaves_no_trace():
    model, x = build_model("resnet8", 7).eval(), images()
    plain = model(x)
    for point in range(4):
        assert torch.equal(model(x, PARTNER, torch.ones(4), point), plain)
        assert not torch.allclose(model(x, PARTNER, LAM, point), plain)
    assert torch.equal(model(x, PARTNER, LAM), plain)  # no layer: the images came mixed


def test_the_gradient_reaches_both_rows_of_a_pair():
    model, x = build_model("resnet8", 7, head_scale=30.0).eval(), images().requires_grad_()
    model(x, PARTNER, LAM, 2)[0].square().sum().backward()
    assert [bool(g.abs().sum() > 0) for g in x.grad] == [True, False, True, False]  # rows 0 and its partner 2
    assert all(p.grad is not None for p in model.parameters())


def test_wrong_layers_are_refused():
    model, x = build_model("resnet8", 7), images()
    for call in [(PARTNER, LAM, 4), (PARTNER, LAM, -1), (None, LAM, 1), (PARTNER, None, 1)]:
        with pytest.raises(ValueError, match="0 <= layer < 4"):
            model(x, *call)


def test_the_same_seed_gives_the_same_net_and_the_global_stream_is_untouched():
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    first = build_model("resnet18", 7, head_scale=2.0, seed=3).state_dict()
    assert torch.equal(torch.rand(4), expected)
    second, other = (build_model("resnet18", 7, head_scale=2.0, seed=s).state_dict() for s in (3, 4))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["net.fc.weight"], other["net.fc.weight"])


def test_unknown_names_get_suggestions():
    for wrong, right in [
        ("resnet33", "resnet34"),
        ("convnet_tiny", "convnext_tiny"),
        ("resnet8w32", "resnet8-w32"),
        ("inception_v4", "timm/inception_v4"),
    ]:
        if right.startswith("timm/"):
            pytest.importorskip("timm")
        with pytest.raises(UserError, match=f"{wrong}' is unknown; did you mean .*{right}"):
            build_model(wrong, 7)
    for bad in ("resnet2", "resnet32-w0", "resnet031", "", "nets_cifar"):
        with pytest.raises(UserError, match="is unknown"):
            build_model(bad, 7)


def test_every_known_name_belongs_to_one_family():
    groups = {module.__name__.rsplit(".", 1)[-1]: module for module in families.modules()}
    assert set(groups) == {"nets_cifar", "nets_torchvision", "nets_timm"}
    for module in groups.values():
        for name in module.names()[:400]:
            assert [m for m in groups.values() if m.accepts(name)] == [module], name


def test_timm_nets_and_what_to_do_without_timm(monkeypatch):
    pytest.importorskip("timm")
    model = build_model("timm/resnet10t", 7, head_scale=4.0).eval()
    logits = model(images(64))
    assert logits.shape == (4, 7) and logits.abs().max() <= 4.0 + 1e-5
    assert model.mix_points == 1
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        build_model("timm/resnet10t", 7)


def test_a_copy_mixes_by_its_own_weights():
    model = build_model("resnet8", 7).eval()
    twin, x = copy.deepcopy(model), images()
    for p in twin.parameters():
        p.data.zero_()
    assert twin(x, PARTNER, LAM, 1).abs().sum() == 0 < model(x, PARTNER, LAM, 1).abs().sum()


def test_a_small_net_costs_neither_torchvision_nor_timm():
    code = "import sys; from remix_dist.model import build_model; before = set(sys.modules); build_model('resnet8', 3)"
    code += "; print([m for m in ('torchvision', 'timm') if m in sys.modules], 'fsspec' in before)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[] False"


def test_ddp_takes_a_layer_that_changes_from_step_to_step():
    import torch.distributed as dist

    alone, x = build_model("resnet8", 7).eval(), images(16)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(alone))
        for layer in (None, 2, 1, 3):
            gradients = []
            for model in (alone, wrapped):
                model.zero_grad()
                model(x, PARTNER, LAM, layer).square().mean().backward()
                gradients.append([p.grad.clone() for p in model.parameters()])
            torch.testing.assert_close(*gradients)
    finally:
        dist.destroy_process_group()
