"""Checkpoints: exact, atomic, and a damaged one is named and skipped."""

import uuid

import pytest
import torch

from remix_dist.train import checkpoint
from remix_dist.train.checkpoint import CheckpointStore, retry


def tensors(seed):
    rng = torch.Generator().manual_seed(seed)
    return {
        "model": {
            "w": torch.randn(4, 3, generator=rng), "half": torch.randn(5, generator=rng).bfloat16(),
            "turned": torch.randn(3, 4, generator=rng).T, "odd": torch.tensor([float("nan"), -0.0, 1e-45]),
            "scalar": torch.tensor(7),
        },
        "optim": {},
        "meter": {"rows": torch.arange(3)},
    }  # fmt: skip


META = {"history": [{"step": 1, "loss": 0.1}], "name": "x", "seconds": 1.5}


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "run") if request.param == "file" else f"memory://{uuid.uuid4().hex}/run"


def folder(store, step):
    return f"{store.root}/step-{step:010d}"


def assert_holds(store, step, seed):
    found, meta = store.load(step)
    expected = tensors(seed)
    assert meta == META and found.keys() == expected.keys()
    for group, items in expected.items():
        assert found[group].keys() == items.keys()
        for name, tensor in items.items():
            own = found[group][name]
            assert own.dtype == tensor.dtype and own.shape == tensor.shape
            assert (
                own.contiguous()
                .view(torch.uint8 if own.ndim else own.dtype)
                .equal(tensor.contiguous().view(torch.uint8 if own.ndim else own.dtype))
            )


def test_what_was_saved_is_loaded_bit_for_bit(url):
    store = CheckpointStore(url, keep=2)
    assert store.newest() is None and store.steps() == []
    assert store.save(12, tensors(1), META) == folder(store, 12)
    again = CheckpointStore(url, keep=2)
    assert again.newest() == 12
    assert_holds(again, 12, 1)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(url, keep):
    store = CheckpointStore(url, keep)
    for step in (9, 10, 100, 1000):
        store.save(step, tensors(step), META)
        assert store.newest() == step
    assert store.steps() == [9, 10, 100, 1000][-keep:]


def flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


DAMAGE = {
    "flipped": ("model.safetensors", flip),
    "cut": ("model.safetensors", lambda data: data[: len(data) // 2]),
    "empty": ("meter.safetensors", lambda data: b""),
    "meta flipped": ("meta.json", flip),
    "file missing": ("optim.safetensors", None),
    "manifest missing": ("manifest.json", None),
    "manifest torn": ("manifest.json", lambda data: data[: len(data) // 2]),
    "manifest empty": ("manifest.json", lambda data: b""),
    "manifest of zeros": ("manifest.json", lambda data: bytes(len(data))),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_wins(url, kind, capsys):
    store = CheckpointStore(url, keep=3)
    store.save(10, tensors(1), META)
    store.save(20, tensors(2), META)
    name, change = DAMAGE[kind]
    path = f"{folder(store, 20)}/{name}"
    if change is None:
        store.fs.rm(path)
    else:
        store.fs.pipe_file(path, change(store.fs.cat_file(path)))
    assert store.newest() == 10
    assert "checkpoint of step 20 is unusable and skipped" in capsys.readouterr().out
    assert_holds(store, 10, 1)
    store.save(20, tensors(3), META)  # the run comes to the same step again
    assert store.newest() == 20 and store.steps() == [10, 20]
    assert_holds(store, 20, 3)


def test_if_all_are_damaged_there_is_none(url, capsys):
    store = CheckpointStore(url, keep=2)
    for step in (1, 2):
        store.save(step, tensors(step), META)
        store.fs.rm(f"{folder(store, step)}/meta.json")
    assert store.newest() is None
    assert capsys.readouterr().out.count("skipped") == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_later_one_never_pushes_out_what_was_just_saved(url, keep):
    """Saved by time, a restarted run does not come to the same step as the half-written checkpoint of its death."""
    store = CheckpointStore(url, keep)
    store.save(10, tensors(1), META)
    store.fs.makedirs(folder(store, 30), exist_ok=True)
    store.fs.pipe_file(f"{folder(store, 30)}/model.safetensors", b"half")
    store.save(20, tensors(2), META)
    assert store.newest() == 20
    assert_holds(store, 20, 2)


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


def dying(monkeypatch, store, files):
    """The process dies within the write of file number `files`, half of which is there."""
    write, written = store._write, []

    def write_some(path, data):
        if len(written) == files:
            store.fs.pipe_file(path, data[: len(data) // 2])
            raise Killed
        written.append(path)
        write(path, data)

    monkeypatch.setattr(store, "_write", write_some)

    def torn(fs, path, text):
        fs.pipe_file(path, text[: len(text) // 2].encode())
        raise Killed

    monkeypatch.setattr(checkpoint, "write_text", torn)


@pytest.mark.parametrize("files", range(5))  # model, optim, meter, meta, manifest
@pytest.mark.parametrize("again", [False, True])
def test_a_save_that_dies_at_any_file_is_no_checkpoint(url, files, again, monkeypatch):
    """Also where a checkpoint of the same step is there already."""
    store = CheckpointStore(url, keep=2)
    store.save(10, tensors(1), META)
    if again:
        store.save(20, tensors(2), META)
    with monkeypatch.context() as patch:
        dying(patch, store, files)
        with pytest.raises(Killed):
            store.save(20, tensors(3), META)
    assert store.newest() == 10
    assert_holds(store, 10, 1)
    store.save(20, tensors(4), META)
    assert store.newest() == 20
    assert_holds(store, 20, 4)


def test_a_removal_that_dies_leaves_nothing_that_looks_valid(url, monkeypatch):
    store = CheckpointStore(url, keep=1)
    store.save(10, tensors(1), META)
    with monkeypatch.context() as patch:
        remove, removed = store.fs.rm, []

        def die(path, *args, **kwargs):
            if removed:
                raise Killed
            removed.append(path)
            remove(path, *args, **kwargs)

        patch.setattr(store.fs, "rm", die)
        with pytest.raises(Killed):
            store.save(20, tensors(2), META)
    assert removed == [f"{folder(store, 10)}/manifest.json"]
    assert store.steps() == [10, 20] and store.newest() == 20


def test_store_operations_are_tried_again(monkeypatch):
    pauses, answers = [], [OSError("slow down"), OSError("slow down"), 7]
    monkeypatch.setattr(checkpoint.time, "sleep", pauses.append)

    def action():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retry(action) == 7 and pauses == sorted(pauses) and len(pauses) == 2
    with pytest.raises(OSError, match="gone"):
        retry(lambda: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(KeyError):
        retry(lambda: {}["a mistake is no fault of the store"])


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_store_that_fails_now_and_then_does_not_stop_a_save(url, name, monkeypatch):
    store = CheckpointStore(url, keep=2)
    put, failures = store.fs.pipe_file, []

    def flaky(path, data, **more):
        if name in path and len(failures) < 2:
            failures.append(path)
            raise OSError("503")
        put(path, data, **more)

    monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(store.fs, "pipe_file", flaky)
    store.save(10, tensors(1), META)
    assert len(failures) == 2 and store.newest() == 10
