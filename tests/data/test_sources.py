"""Every kind of source lists and gives back the images that were put there, and says what it is not."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image

from remix_dist.data.sources import SourceOptions, open_source
from remix_dist.data.sources.cifar import png
from remix_dist.types import UserError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def image(n):
    return png(np.full((6, 5, 3), n, np.uint8))


def source(path, **options):
    return open_source(SourceOptions(str(path), **options))


def everything(src, split):
    listing = src.scan(split)
    src = pickle.loads(pickle.dumps(src))  # as it travels to another process
    rows = zip(listing.path_N, listing.where_N.tolist(), listing.size_N.tolist(), strict=True)
    return listing, [src.read(*row) for row in rows]


@pytest.fixture
def inat(tmp_path):
    """Category ids 7, 3, 5 (not in order, not from 0) and images 100.. in a folder."""
    root, number = tmp_path / "inat", 100
    categories = [{"id": c, "name": f"name {c}", "supercategory": "S"} for c in (7, 3, 5)]
    for split, labels in {"train": [7, 3, 3, 5], "val": [5, 7]}.items():
        doc = {"images": [], "annotations": [], "categories": categories}
        for c in labels:
            name = f"train_val2018/S/{c}/{number}.png"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(image(number))
            doc["images"].append({"id": number, "file_name": name})
            doc["annotations"].insert(0, {"image_id": number, "category_id": c})
            number += 1
        (root / f"{split}2018.json").write_text(json.dumps(doc))
    return root


def tar_of(folder, path, mode="w", prefix="", only=""):
    with tarfile.open(path, mode) as tar:
        for name in sorted(p for p in folder.iterdir() if p.name.startswith(only)):
            tar.add(name, f"{prefix}{name.name}")
    return path


@pytest.mark.parametrize("form", ["folder", "tar", "dotted tar", "prefixed tar", "json beside", "json elsewhere"])
def test_inat_in_every_packing_is_the_same(inat, tmp_path, form):
    options = {}
    if form == "folder":
        path = inat
    elif form.startswith("json"):
        path = tar_of(inat, (inat if form == "json beside" else tmp_path) / "images.tar", only="train_val")
        options = {"annotations": str(inat)} if form == "json elsewhere" else {}
    else:
        prefix = {"tar": "", "dotted tar": "./", "prefixed tar": "release/"}[form]
        path = tar_of(inat, tmp_path / "all.tar", prefix=prefix)
    listing, data = everything(source(path, **options), "train")
    assert listing.classes == ("name 3", "name 5", "name 7")
    assert listing.label_N.tolist() == [2, 0, 0, 1] and listing.id_N.tolist() == [100, 101, 102, 103]
    assert data == [image(n) for n in (100, 101, 102, 103)]
    assert listing.taxonomy[0]["supercategory"] == "S"
    assert listing.digest() == source(inat).scan("train").digest()
    assert source(path, **options).scan("val").label_N.tolist() == [1, 2]


def test_inat_takes_names_from_categories_json(inat):
    named = [{"id": c, "name": f"Genus {c}", "kingdom": "K"} for c in (3, 5, 7)]
    (inat / "categories.json").write_text(json.dumps(named))
    listing = source(inat).scan("train")
    assert listing.classes == ("Genus 3", "Genus 5", "Genus 7") and listing.taxonomy[0]["kingdom"] == "K"


def test_inat_mistakes_are_named(inat, tmp_path):
    packed = tar_of(inat, tmp_path / "a.tar.gz", "w:gz")
    with pytest.raises(UserError, match=r"a\.tar\.gz: is compressed.*gunzip it or extract"):
        source(packed).scan("train")
    with pytest.raises(UserError, match=r"train2018\.json is not in .*--source\.annotations"):
        source(tar_of(inat, tmp_path / "images.tar", only="train_val")).scan("train")
    (inat / "train_val2018/S/3/101.png").unlink()
    src = source(inat)
    listing = src.scan("train")
    with pytest.raises(FileNotFoundError):
        src.read(listing.path_N[1], 0, int(listing.size_N[1]))
    (inat / "train_val2018").rename(inat / "elsewhere")
    with pytest.raises(UserError, match="most images of train2018"):
        src.scan("train")


def test_image_folder_with_splits(tmp_path):
    for n, name in enumerate(["train/b/1.png", "train/a/x/2.PNG", "train/a/1.png", "val/a/9.png", "val/b/8.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image(n))
    (tmp_path / "train/a/notes.txt").write_text("no image")
    listing, data = everything(source(tmp_path), "train")
    assert listing.classes == ("a", "b") and listing.label_N.tolist() == [0, 0, 1]
    assert data == [image(2), image(1), image(0)]
    assert source(tmp_path).scan("val").label_N.tolist() == [0, 1]
    with pytest.raises(UserError, match="its own train/ and val/"):
        source(tmp_path, val_fraction=0.5).scan("val")
    with pytest.raises(UserError, match=r"source\.annotations=x: has no effect"):
        source(tmp_path, annotations="x")


@pytest.mark.parametrize(
    ("options", "held"), [({}, [2, 1, 0]), ({"val_fraction": 0.5}, [10, 2, 0]), ({"val_per_class": 3}, [3, 3, 0])]
)
def test_image_folder_without_splits_holds_out(tmp_path, options, held):
    for name, count in {"a": 20, "b": 4, "c": 1}.items():
        (tmp_path / name).mkdir()
        for n in range(count):
            (tmp_path / name / f"{n:02d}.png").write_bytes(image(n))
    train, val = (source(tmp_path, **options).scan(split) for split in ("train", "val"))
    assert np.bincount(val.label_N, minlength=3).tolist() == held
    assert np.bincount(train.label_N).tolist() == [20 - held[0], 4 - held[1], 1]
    assert sorted([*train.id_N, *val.id_N]) == list(range(25))
    assert source(tmp_path, **options).scan("val").digest() == val.digest()


@pytest.mark.parametrize("layout", ["hub", "class_names"])
def test_image_parquet(tmp_path, layout):
    names = ["zebra", "ant"]
    hub = {"info": {"features": {"fine_label": {"names": names, "_type": "ClassLabel"}}}}
    key, label, meta = ("image", "fine_label", {"huggingface": json.dumps(hub)})
    if layout == "class_names":
        key, label, meta = ("img", "label", {"class_names": json.dumps(names)})

    def file(name, numbers):
        cells = [{"bytes": None if n == 13 else image(n), "path": f"{n}.png"} for n in numbers]
        table = pa.table({key: cells, label: [n % 2 for n in numbers]}).replace_schema_metadata(meta)
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "data" / name, row_group_size=2)

    file("train-00000-of-00002.parquet", [1, 2, 3])
    file("train-00001-of-00002.parquet", [4, 5])
    file("test.parquet", [13, 14])
    listing, data = everything(source(tmp_path), "train")
    assert listing.classes == ("zebra", "ant") and listing.label_N.tolist() == [1, 0, 1, 0, 1]
    assert data == [image(n) for n in (1, 2, 3, 4, 5)] and listing.id_N.tolist() == [0, 1, 2, 3, 4]
    src, val = source(tmp_path), source(tmp_path).scan("val")
    assert src.read(val.path_N[1], 1, 0) == image(14)
    with pytest.raises(FileNotFoundError, match="no image bytes"):
        src.read(val.path_N[0], 0, 0)


def test_the_real_cifar10_parquet_carries_its_draw():
    if not (SHARED / "cifar10").exists():
        pytest.skip("../shared/data/cifar10 is absent")
    listing = source(SHARED / "cifar10").scan("train")
    assert len(listing) == 20_431 and listing.classes[0] == "airplane"
    assert sum(listing.lt_counts["100"]) == 12_406
    assert (np.bincount(listing.label_N) == listing.lt_counts["10"]).all()


def test_cifar_pickles(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    for n, name in enumerate(names):
        part = {"data": pixels[2 * n : 2 * n + 2], "labels": [n, 9 - n]}
        (folder / name).write_bytes(pickle.dumps(part))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with pytest.raises(UserError, match="incomplete or damaged"):
        source(tmp_path).scan("train")
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    listing, data = everything(source(tmp_path), "train")
    assert listing.label_N.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5] and listing.classes == tuple("abcdefghij")
    decoded = np.asarray(Image.open(io.BytesIO(data[3])))
    assert (decoded == pixels[3].reshape(3, 32, 32).transpose(1, 2, 0)).all()
    assert source(folder).scan("val").label_N.tolist() == [5, 4]


def test_digits():
    pytest.importorskip("sklearn")
    listing, data = everything(source("digits"), "val")
    assert np.bincount(listing.label_N).tolist() == [40] * 10
    pixels = np.asarray(Image.open(io.BytesIO(data[0])))
    assert pixels.shape == (8, 8, 3) and pixels.max() > 200
    train = source("digits").scan("train")
    assert len(train) == 1397 and not set(train.id_N) & set(listing.id_N)


def test_unknown_things_list_the_five_kinds(tmp_path):
    (tmp_path / "readme.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=r"inat2018 .*cifar .*image_parquet .*image_folder .*digits") as caught:
            source(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="read from disk"):
        source("s3://bucket/images")
