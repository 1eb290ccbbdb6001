"""Predictions for files, folders, URLs and shard sets, and the job around them."""

import csv
import functools
import hashlib
import http.server
import io
import json
import runpy
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from remix_dist.model import build_model
from remix_dist.train.export import export_model, load_exported
from remix_dist.train.predict import eval_image, evaluation, find_images, predict
from remix_dist.types import UserError

torch.set_num_threads(1)
REPO = Path(__file__).resolve().parents[2]
CLASSES = ["ant", "bee", "cat", "dog"]
PRE = {"resize": 20, "crop": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear"}


def picture(seed, size=(24, 20), form="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    where = tmp_path_factory.mktemp("export") / "model"
    model = build_model("resnet8", len(CLASSES), seed=2)
    export_model(model.state_dict(), {"model": "resnet8", "classes": CLASSES, "preprocess": PRE}, str(where))
    return str(where)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "below").mkdir(parents=True)
    for i in range(4):
        (root / f"{i}.png").write_bytes(picture(i))
    (root / "below/5.JPG").write_bytes(picture(5, form="JPEG"))
    (root / "2b.png").write_bytes(picture(2)[:200])
    (root / "notes.txt").write_text("no image")
    return root


def shard_set(root, images):
    """A split with two shards, by hand from the format's description."""
    (root / "shards").mkdir(parents=True)
    index, shards = [], []
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for s, part in enumerate((images[:2], images[2:])):
        key = f"shards/{s:05d}-of-00002.parquet"
        cells = [{"bytes": data, "path": name} for name, data in part]
        table = pa.table(
            {"image": pa.array(cells, kind), "label": pa.array([0] * len(part), pa.int64()),
             "id": pa.array(range(len(part)), pa.int64())}
        )  # fmt: skip
        pq.write_table(table, root / key, compression="none", use_dictionary=False, write_page_checksum=True)
        raw = (root / key).read_bytes()
        shards.append(
            {"key": key, "rows": len(part), "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(),
             "histogram": {"0": len(part)}}
        )  # fmt: skip
        index += [(s, r, 0, raw.index(data), len(data), zlib.crc32(data), r) for r, (_, data) in enumerate(part)]
    types = dict(shard="i4", row="i4", label="i4", offset="i8", length="i4", crc32="u4", id="i8")
    columns = {
        name: np.array(col, kind) for (name, kind), col in zip(types.items(), zip(*index, strict=True), strict=True)
    }
    pq.write_table(pa.table(columns), root / "index.parquet")
    raw = (root / "index.parquet").read_bytes()
    doc = {
        "format": "remix_dist.shards", "version": 1, "split": root.name, "classes": CLASSES, "taxonomy": None,
        "class_counts": [len(images), 0, 0, 0], "rows": len(images), "encoder": {"store": "original"},
        "source": {"kind": "test", "digest": "0"}, "longtail": None, "shards": shards, "rejected": [],
        "index": {"key": "index.parquet", "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()},
    }  # fmt: skip
    (root / "manifest.json").write_text(json.dumps(doc))


def by_hand(exported, data):
    """Probabilities by torchvision's resize, a sliced centre and the plain formula."""
    from torchvision.transforms.v2 import functional as tv

    model, _ = load_exported(exported)
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    pixels = tv.center_crop(tv.resize(pixels, [20], antialias=True), [16, 16])
    mean, std = (torch.tensor(PRE[k])[:, None, None] for k in ("mean", "std"))
    return torch.softmax(model(((pixels / 255 - mean) / std)[None]), 1)[0]


def test_a_folder_with_a_broken_image(exported, folder):
    rows = list(predict(exported, str(folder), topk=3, batch=2, device="cpu"))
    assert [Path(row["path"]).name for row in rows] == ["0.png", "1.png", "2.png", "2b.png", "3.png", "5.JPG"]
    assert list(rows[0]) == ["path", "error", "top1", "prob1", "top2", "prob2", "top3", "prob3"]
    for seed, row in zip((0, 1, 2, None, 3), rows[:5], strict=True):
        if seed is None:
            assert row["error"] and row["top1"] is None and row["prob3"] is None
        else:
            expected = by_hand(exported, picture(seed))
            best = expected.argsort(descending=True)[:3]
            assert [row[f"top{k}"] for k in (1, 2, 3)] == [CLASSES[i] for i in best]
            assert [row[f"prob{k}"] for k in (1, 2, 3)] == pytest.approx(expected[best].tolist(), abs=1e-5)


def test_the_batch_size_changes_nothing_and_few_classes_are_all_given(exported, folder):
    one = list(predict(exported, str(folder), topk=9, batch=1, device="cpu"))
    model = load_exported(exported)
    all_at_once = list(predict(model, [str(folder)], topk=4, batch=64, device="cpu"))
    assert [r["path"] for r in one] == [r["path"] for r in all_at_once]
    assert [r["top4"] for r in one] == [r["top4"] for r in all_at_once]
    assert sum(one[0][f"prob{k}"] for k in range(1, 5)) == pytest.approx(1, abs=1e-6)


def test_pixels_are_the_centre_of_the_resized_image():
    image = Image.new("RGB", (48, 24))
    image.paste((255, 0, 0), (16, 0, 32, 24))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    square = eval_image(buffer.getvalue(), evaluation(PRE | {"resize": 24, "crop": 16}))
    assert square.dtype == torch.uint8 and square.shape == (3, 16, 16)
    assert square.float().mean((1, 2)).tolist() == [255, 0, 0]


def test_single_files_and_urls_in_the_order_given(exported, folder, tmp_path):
    pytest.importorskip("aiohttp")
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *a: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        inputs = [f"{base}/3.png", str(folder / "1.png"), f"{base}/missing.png"]
        rows = list(predict(exported, inputs, topk=1, device="cpu"))
    finally:
        server.shutdown()
        server.server_close()
    assert [row["path"] for row in rows] == inputs
    assert [row["top1"] for row in rows[:2]] == [CLASSES[by_hand(exported, picture(i)).argmax()] for i in (3, 1)]
    assert rows[2]["error"].startswith("FileNotFoundError")


def test_a_shard_set_with_a_flipped_byte(exported, tmp_path):
    images = [(f"birds/{i}.png", picture(i)) for i in range(5)]
    shard_set(tmp_path / "set/val", images)
    rows = list(predict(exported, str(tmp_path / "set/val"), topk=1, batch=2, device="cpu"))
    assert [row["path"] for row in rows] == [name for name, _ in images]
    assert [row["top1"] for row in rows] == [CLASSES[by_hand(exported, data).argmax()] for _, data in images]
    shard = tmp_path / "set/val/shards/00001-of-00002.parquet"
    raw = bytearray(shard.read_bytes())
    raw[raw.index(images[3][1]) + 300] ^= 4
    shard.write_bytes(raw)
    errors = [row["error"] for row in predict(exported, str(tmp_path / "set/val"), device="cpu")]
    assert [e is not None for e in errors] == [False, False, False, True, False] and "crc32" in errors[3]
    with pytest.raises(UserError, match=r"say which: .*set/val"):
        predict(exported, str(tmp_path / "set"))


def test_wrong_arguments_fail_at_the_call(exported, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, reason in [
        (dict(inputs=str(tmp_path / "absent")), "does not exist"),
        (dict(inputs=str(tmp_path / "empty")), "holds no image"),
        (dict(inputs=str(folder), topk=0), "topk must be at least 1, got 0"),
        (dict(inputs=str(folder), device="warp"), "device 'warp'"),
    ]:
        with pytest.raises(UserError, match=reason):
            predict(exported, **arguments)
    with pytest.raises(UserError, match="interpolation 'bicubic'"):
        evaluation(PRE | {"interpolation": "bicubic"})
    assert len(list(find_images(str(folder)))) == 6


@pytest.fixture
def job(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
        runpy.run_path(str(REPO / "jobs/predict.py"), run_name="__main__")

    return run


def test_the_job_writes_csv_and_parquet(exported, folder, tmp_path, job, capsys):
    for name in ("p.csv", "p.parquet"):
        job("--model", exported, "--input", str(folder), "--topk", "2", "--output", str(tmp_path / name))
        assert "6 images, 1 unreadable, first: " in capsys.readouterr().err
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert [row["path"] for row in rows] == [row["path"] for row in table] and len(rows) == 6
    assert rows[0]["top1"] == table[0]["top1"] in CLASSES and rows[3]["top1"] == "" and table[3]["top1"] is None


def test_the_job_names_its_errors_in_one_line(exported, folder, tmp_path, job):
    for model, output in [(str(tmp_path / "absent"), "p.csv"), (exported, "p.xls"), (exported, "no/such/dir/p.csv")]:
        with pytest.raises(SystemExit) as caught:
            job("--model", model, "--input", str(folder), "--output", str(tmp_path / output))
        assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)
