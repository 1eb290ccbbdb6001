"""A shard set opens to what was written, and every kind of damage is one line with the way out."""

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from fsspec.registry import known_implementations

from remix_dist.data.manifest import open_shard_set
from remix_dist.data.sources import Listing, Source
from remix_dist.data.sources.cifar import png
from remix_dist.data.store import filesystem
from remix_dist.data.write import finish, plan_split, write_shard
from remix_dist.types import UserError


class Dots(Source):
    """Twelve images of three classes, made on the spot."""

    kind = "dots"

    @staticmethod
    def found(path):
        return False

    def scan(self, split):
        row_N = np.arange(12)
        names = np.array([f"{n}.png" for n in row_N], dtype=object)
        return Listing(("a", "b", "c"), row_N % 3, row_N + 100, names, row_N, np.zeros(12, np.int64))

    def read(self, path, where, size):
        return png(np.full((4, 4, 3), where, np.uint8))


@pytest.fixture
def url(tmp_path):
    plan = plan_split(Dots(str(tmp_path)), str(tmp_path / "set"), "train", shard_bytes=300)
    parts = [write_shard(plan.task(n)) for n in range(len(plan.rows))]
    finish(plan, {part["shard"]["key"]: part for part in parts})
    return tmp_path / "set"


def edit(url, change, index=None):
    """Change the manifest (and the index, with a right sha256) on disk."""
    path = url / "train" / "manifest.json"
    doc = json.loads(path.read_text())
    if index:
        file = url / "train" / "index.parquet"
        pq.write_table(index(pq.read_table(file)), file)
        doc["index"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    change(doc)
    path.write_text(json.dumps(doc))


def with_column(name, change):
    def index(table):
        values = table[name].to_numpy().copy()
        change(values)
        return table.set_column(table.schema.get_field_index(name), name, [values])

    return index


def test_it_opens_to_what_was_written(url):
    opened = open_shard_set(str(url), "train")
    assert len(opened) == 12 and opened.classes == ("a", "b", "c") and opened.count_C.tolist() == [4, 4, 4]
    types = [a.dtype.str[1:] for a in (opened.shard_N, opened.label_N, opened.offset_N, opened.length_N)]
    assert types == ["i4", "i8", "i8", "i4"] and opened.crc_N.dtype == np.uint32 and opened.id_N.dtype == np.int64
    assert sorted(opened.id_N) == list(range(100, 112)) and (opened.id_N % 3 == (opened.label_N + 1) % 3).all()
    assert len(opened.shards) > 1 and opened.bytes == sum(f.stat().st_size for f in (url / "train/shards").iterdir())
    assert opened.digest == hashlib.sha256((url / "train/manifest.json").read_bytes()).hexdigest()
    assert opened.url == f"{url}/train" and opened.encoder["store"] == "original"


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no shard set there; check URL and split"):
        open_shard_set(str(tmp_path), "train")


def test_half_written(url):
    (url / "train/manifest.json").unlink()
    with pytest.raises(UserError, match=r"half-written.*run the same"):
        open_shard_set(str(url), "train")


def test_another_version_and_no_manifest_at_all(url):
    edit(url, lambda doc: doc.update(version=2))
    with pytest.raises(UserError, match=r"version 2, but this release reads remix_dist\.shards version 1"):
        open_shard_set(str(url), "train")
    for text in ("{}", "[]", "{not json"):
        (url / "train/manifest.json").write_text(text)
        with pytest.raises(UserError, match="not a manifest"):
            open_shard_set(str(url), "train")


def test_a_changed_or_missing_index(url):
    path = url / "train/index.parquet"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"index\.parquet does not have the sha256"):
        open_shard_set(str(url), "train")
    path.unlink()
    with pytest.raises(UserError, match=r"index\.parquet is missing"):
        open_shard_set(str(url), "train")


@pytest.mark.parametrize(
    ("column", "place", "value", "message"),
    [
        ("label", 0, 3, "label out of range: 0..3, with 3 classes"),
        ("label", 0, -1, "label out of range: -1"),
        ("label", slice(0, 12), 0, "does not match the labels of the index"),
        ("shard", 0, 5, "row counts do not match"),
        ("offset", 3, 10**9, "outside its shard"),
        ("offset", 3, 0, "outside its shard"),
    ],
)
def test_an_index_that_does_not_add_up(url, column, place, value, message):
    edit(url, lambda doc: None, with_column(column, lambda values: values.__setitem__(place, value)))
    with pytest.raises(UserError, match=message):
        open_shard_set(str(url), "train")


def test_class_counts_are_the_sum_of_the_histograms(url):
    edit(url, lambda doc: doc["class_counts"].__setitem__(0, 5))
    with pytest.raises(UserError, match="not the sum of the shards' histograms"):
        open_shard_set(str(url), "train")


def test_a_missing_driver_names_its_extra(monkeypatch):
    monkeypatch.setitem(known_implementations, "gs", {"class": "no_such_driver.X", "err": "no"})
    with pytest.raises(UserError, match=r"pip install 'remix_dist\[gcs\]'"):
        filesystem("gs://bucket/data")
    with pytest.raises(UserError, match="use a local path, s3://"):
        open_shard_set("s4://bucket/data", "train")
