"""What every method of every axis must keep. Methods are found here by themselves: nothing to register."""

import ast
import dataclasses
import importlib
import inspect
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from remix_dist import labels, loss, mix, rebalance
from remix_dist.types import ClassTable, LabelRule, Loss, Mixer, Rebalance, UserError, generator

AXES = {Mixer: mix, LabelRule: labels, Loss: loss, Rebalance: rebalance}
TESTS = Path(__file__).parent
TABLE = ClassTable(torch.tensor([500, 120, 40, 10, 3]))
ROWS, CLASSES = 8, 5
CPU = torch.device("cpu")


def descendants(axis):
    """Every subclass, direct or not, that the package defines (tests may define their own)."""
    for method in axis.__subclasses__():
        yield from [method, *descendants(method)]


def methods(*axes):
    """One pytest parameter per concrete method."""
    found = [m for axis in axes for m in descendants(axis) if m.__module__.startswith("remix_dist.")]
    return pytest.mark.parametrize("method", [pytest.param(m, id=m.__name__) for m in found])


def axis_of(method):
    return next(axis for axis in AXES if issubclass(method, axis))


def images(device=CPU):
    return torch.from_numpy(generator(1, "images").integers(0, 256, (ROWS, 3, 6, 7))).float().to(device)


def logits_and_labels(device=CPU):
    rng = generator(2, "logits")
    z, y = rng.normal(0, 4, (ROWS, CLASSES)), rng.integers(0, CLASSES, (ROWS, 2))
    return torch.from_numpy(z).float().to(device), torch.from_numpy(y).to(device)


def lam_and_counts(device=CPU):
    rng = generator(3, "lam")
    lam, counts = rng.random(ROWS, dtype="f4"), rng.choice(TABLE.count_C.numpy(), (2, ROWS))
    return tuple(torch.from_numpy(x).to(device) for x in (lam, *counts))


def call(method, device=CPU):
    """Every tensor that one call gives, whatever the axis."""
    axis, made = axis_of(method), method()
    if axis is Mixer:
        out = made(images(device), generator(0, "mix", 4), mix_points=3)
        return [x for x in (out.images_BCHW, out.partner_B, out.lam_x_B) if x is not None]
    if axis is LabelRule:
        return [made(*lam_and_counts(device))]
    if axis is Loss:
        return [made(*logits_and_labels(device), TABLE.to(device))]
    given = (made.row_weight(TABLE.to(device)), made.class_share(TABLE.to(device)))
    return [x for x in given if x is not None]


def test_every_file_of_an_axis_is_imported_and_every_axis_has_methods():
    for axis, package in AXES.items():
        found = {m.__module__ for m in descendants(axis)}
        assert len(found) >= 2
        for file in Path(package.__file__).parent.glob("*.py"):
            source = file.read_text()
            if f"({axis.__name__})" in source:
                assert f"{package.__name__}.{file.stem}" in found, file


@methods(*AXES)
def test_is_a_frozen_dataclass_directly_below_its_axis(method):
    assert method.__bases__ == (axis_of(method),)
    assert dataclasses.is_dataclass(method) and method.__dataclass_params__.frozen
    assert not list(descendants(method)), "methods are final"
    with pytest.raises(dataclasses.FrozenInstanceError):
        method().anything = 1


@methods(*AXES)
def test_one_file_one_method_one_test(method):
    tree = ast.parse(inspect.getsource(importlib.import_module(method.__module__)))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes] == [method.__name__]
    axis = method.__module__.split(".")[1]
    tests = "".join(file.read_text() for file in (TESTS / axis).glob("test_*.py"))
    assert re.search(rf"from {re.escape(method.__module__)} import .*\b{method.__name__}\b", tests)


@methods(*AXES)
def test_every_knob_has_a_default_and_a_text_below_it(method):
    (node,) = [n for n in ast.parse(inspect.getsource(method)).body if isinstance(n, ast.ClassDef)]
    below = dict(zip(node.body, node.body[1:] + [None], strict=True))
    texts = {
        statement.target.id: following.value.value
        for statement, following in below.items()
        if isinstance(statement, ast.AnnAssign)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
    }
    for field in dataclasses.fields(method):
        assert field.default is not dataclasses.MISSING, field.name
        assert len(texts.get(field.name, "")) >= 10, f"{field.name}: no text under the field"
    assert ast.get_docstring(node), "what it is, with its paper"


@methods(*AXES)
def test_a_knob_that_is_not_a_number_is_refused_by_name(method):
    axis = method.__module__.split(".")[1]
    for field in dataclasses.fields(method):
        if "float" in str(field.type):
            with pytest.raises(UserError, match=rf"^{axis}\.{field.name} = nan: [^\n]+$"):
                method(**{field.name: float("nan")})


@methods(*AXES)
def test_pickles_compares_and_hashes_by_value(method):
    made = method()
    assert pickle.loads(pickle.dumps(made)) == made == method() and hash(made) == hash(method())


@methods(*AXES)
def test_a_call_repeats_itself_and_touches_no_global_random_state(method):
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    first, second = call(method), call(method)
    assert len(first) == len(second) and all(map(torch.equal, first, second))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert str(np.random.get_state()) == str(numpy_before)  # noqa: NPY002


@methods(Mixer)
def test_mixed_batch(method):
    clean = images()
    kept = clean.clone()
    out = method()(clean, generator(0, "mix", 4), mix_points=3)
    assert torch.equal(clean, kept), "the input stays as it was"
    assert out.images_BCHW.shape == clean.shape and out.images_BCHW.dtype == torch.float32
    assert out.images_BCHW.min() >= 0 and out.images_BCHW.max() <= 255
    assert out.lam_x_B.shape == (ROWS,) and out.lam_x_B.dtype == torch.float32
    assert out.lam_x_B.min() >= 0 and out.lam_x_B.max() <= 1
    if not method.mixes:
        assert out.partner_B is None and out.layer is None and (out.lam_x_B == 1).all()
        return
    assert out.partner_B.dtype == torch.int64 and out.partner_B.sort().values.tolist() == list(range(ROWS))
    alone = out.partner_B == torch.arange(ROWS)
    assert torch.equal(out.images_BCHW[alone], clean[alone]), "a row paired with itself does not change"
    assert out.layer is None or (method.needs_mix_points and 0 < out.layer < 3)


@methods(Mixer)
def test_another_step_gives_another_batch(method):
    made = [method()(images(), generator(0, "mix", step), mix_points=3) for step in range(8)]
    assert not method.mixes or len({batch.lam_x_B[0].item() for batch in made}) > 4


@methods(LabelRule)
def test_label_shares(method):
    lam, n_a, n_b = lam_and_counts()
    out = method()(lam, n_a, n_b)
    assert out.shape == (ROWS,) and out.dtype == torch.float32 and out.min() >= 0 and out.max() <= 1
    order = torch.arange(ROWS).flip(0)
    assert torch.equal(method()(lam[order], n_a[order], n_b[order]), out[order]), "a row is a row"


@methods(Loss)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_float32_rows_of_their_own(method, dtype):
    z, y = logits_and_labels()
    z = z.to(dtype).requires_grad_()
    out = method()(z, y, TABLE)
    assert out.shape == (ROWS, 2) and out.dtype == torch.float32
    torch.testing.assert_close(out, method()(z.float(), y, TABLE))
    torch.testing.assert_close(out[:, :1], method()(z, y[:, :1], TABLE))
    out[2].sum().backward()
    assert z.grad.dtype == dtype and z.grad[2].abs().sum() > 0
    assert z.grad[torch.arange(ROWS) != 2].abs().sum() == 0


@methods(Loss)
def test_extreme_logits_give_finite_values_and_gradients(method):
    z = torch.tensor([[1e4, -1e4, 0, 0, 0], [-1e4, 1e4, 0, 0, 0], [1e4] * 5, [-1e4] * 5, [1e4, 1e4, 0, 0, 0]])
    z.requires_grad_()
    out = method()(z, torch.tensor([[0, 1]] * 5), TABLE)
    out.sum().backward()
    assert out.isfinite().all() and z.grad.isfinite().all() and (out >= 0).all()


@methods(Loss)
def test_head_scale(method):
    assert method().head_scale is None or method().head_scale > 0


@methods(Rebalance)
def test_weights_and_shares(method):
    made = method()
    weight, share = made.row_weight(TABLE), made.class_share(TABLE)
    if weight is not None:
        assert weight.shape == (CLASSES,) and weight.dtype == torch.float32 and (weight > 0).all()
        assert weight.sum().item() == pytest.approx(CLASSES, rel=1e-6)
    if share is not None:
        assert share.shape == (CLASSES,) and share.dtype == torch.float64 and (share > 0).all()
        assert share.sum().item() == pytest.approx(1, abs=1e-12)
    if isinstance(made.deferral, str):
        assert re.fullmatch(r"decay:[1-9]\d*", made.deferral)
    else:
        assert 0 <= made.deferral < 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@methods(Mixer, LabelRule, Loss)
def test_on_cuda_it_equals_the_cpu_and_never_waits_for_the_device(method):
    call(method, torch.device("cuda"))  # allocates what it needs
    mixed, (z, y), pair, table = images("cuda"), logits_and_labels("cuda"), lam_and_counts("cuda"), TABLE.to("cuda")
    made, axis = method(), axis_of(method)
    torch.cuda.set_sync_debug_mode("error")
    try:
        if axis is Mixer:
            made(mixed, generator(0, "mix", 4), mix_points=3)
        elif axis is LabelRule:
            made(*pair)
        else:
            made(z.requires_grad_(), y, table).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for there, here in zip(call(method, torch.device("cuda")), call(method), strict=True):
        torch.testing.assert_close(there.cpu(), here)
