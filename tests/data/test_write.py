"""Shards hold exactly the images that went in, for us and for every other Parquet reader."""

import io
import json
import mmap
import tarfile
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from remix_dist.data import write
from remix_dist.data.manifest import open_shard_set
from remix_dist.data.sources import SourceOptions, open_source
from remix_dist.types import UserError

CLOTHING = Path(__file__).resolve().parents[3] / "shared" / "data" / "clothing" / "clothing_inat_layout.tar"


def jpeg(n, size=(40, 30), **options):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(n).integers(0, 256, (*size, 3), dtype=np.uint8)).save(out, "JPEG", **options)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Three classes of 9, 5 and 2 images, each split with one truncated file."""
    root = tmp_path / "images"
    for split in ("train", "val"):
        for name, count in {"a": 9, "b": 5, "c": 2}.items():
            (root / split / name).mkdir(parents=True)
            for n in range(count):
                (root / split / name / f"{n}.jpg").write_bytes(jpeg(n))
        (root / split / "a" / "broken.jpg").write_bytes(jpeg(99)[:-200])
    return root


def plan_of(folder, url, **options):
    return write.plan_split(open_source(SourceOptions(str(folder))), str(url), "train", **options)


def write_all(plan):
    parts = [write.write_shard(plan.task(n)) for n in range(len(plan.rows))]
    return write.finish(plan, {part["shard"]["key"]: part for part in parts})


def slices(opened, root):
    """Every image of a local set by mmap, offset and length: what our reader does."""
    for n in range(len(opened)):
        with (root / opened.shards[opened.shard_N[n]].key).open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            yield view[opened.offset_N[n] : opened.offset_N[n] + opened.length_N[n]]


def test_all_good_images_arrive_and_the_bad_one_is_named(folder, tmp_path):
    manifest = write_all(plan_of(folder, tmp_path / "set", shard_bytes=10_000))
    opened = open_shard_set(str(tmp_path / "set"), "train")
    assert len(opened.shards) > 1 and opened.count_C.tolist() == [9, 5, 2]
    assert [r["path"] for r in manifest["rejected"]] == ["train/a/broken.jpg"]
    assert "truncated" in manifest["rejected"][0]["reason"]
    assert not (tmp_path / "set/train/_parts").exists()
    listing = open_source(SourceOptions(str(folder))).scan("train")
    path = dict(zip(listing.id_N.tolist(), listing.path_N, strict=True))
    for n, data in enumerate(slices(opened, tmp_path / "set/train")):
        assert data == (folder / path[int(opened.id_N[n])]).read_bytes()
        assert zlib.crc32(data) == opened.crc_N[n]


def test_the_same_input_gives_the_same_bytes_and_another_seed_does_not(folder, tmp_path):
    for name, seed in {"one": 0, "two": 0, "three": 1}.items():
        write_all(plan_of(folder, tmp_path / name, shard_bytes=10_000, seed=seed))
    digest = {name: open_shard_set(str(tmp_path / name), "train").digest for name in ("one", "two", "three")}
    assert digest["one"] == digest["two"] != digest["three"]


def test_row_groups_and_repeated_images_keep_their_offsets(tmp_path):
    for name in ("a", "b"):
        for split in ("train", "val"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for n in range(300):
                (tmp_path / "images" / split / name / f"{n}.jpg").write_bytes(jpeg(n % 3, (8, 8)))
    write_all(plan_of(tmp_path / "images", tmp_path / "set"))
    opened = open_shard_set(str(tmp_path / "set"), "train")
    assert pq.ParquetFile(tmp_path / "set/train" / opened.shards[0].key).num_row_groups == 3
    assert len(set(opened.offset_N.tolist())) == 600
    for n, data in enumerate(slices(opened, tmp_path / "set/train")):
        assert zlib.crc32(data) == opened.crc_N[n]


def test_other_readers_see_the_same_rows(folder, tmp_path):
    duckdb, pandas = pytest.importorskip("duckdb"), pytest.importorskip("pandas")
    write_all(plan_of(folder, tmp_path / "set", shard_bytes=10_000))
    opened = open_shard_set(str(tmp_path / "set"), "train")
    ours = [(int(i), int(k), d) for i, k, d in
            zip(opened.id_N, opened.label_N, slices(opened, tmp_path / "set/train"), strict=True)]  # fmt: skip
    files = [str(tmp_path / "set/train" / shard.key) for shard in opened.shards]
    seen = duckdb.sql(f"select id, label, image.bytes from read_parquet({files})").fetchall()
    assert sorted(seen) == sorted(ours)
    frame = pandas.concat(pandas.read_parquet(f) for f in files)
    images = [cell["bytes"] for cell in frame["image"]]
    assert list(zip(frame["id"], frame["label"], images, strict=True)) == ours
    # What the hub's reader needs to show the file as a labelled image data set.
    schema = pq.read_schema(files[0])
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and features["label"]["names"] == ["a", "b", "c"]
    assert str(schema.field("image").type) == "struct<bytes: binary, path: string>"
    # A flipped byte is found by readers that ask for it.
    raw = bytearray(Path(files[0]).read_bytes())
    raw[int(opened.offset_N[0]) + 9] ^= 1
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(io.BytesIO(raw), page_checksum_verification=True).read()


def test_resume_keeps_whole_parts_of_the_same_settings_only(folder, tmp_path):
    plan = plan_of(folder, tmp_path / "set", shard_bytes=10_000)
    for n in (0, 1):
        write.write_shard(plan.task(n))
    (tmp_path / "set/train" / plan.key(1)).write_bytes(b"cut off")
    manifest, parts = write.resume(plan)
    assert manifest is None and list(parts) == [plan.key(0)]
    other = plan_of(folder, tmp_path / "set", shard_bytes=10_000, store="short16q90")
    with pytest.raises(UserError, match=r"other settings.*--overwrite true"):
        write.resume(other)
    assert write.resume(other, overwrite=True) == (None, {})
    assert not list((tmp_path / "set/train").iterdir())


def test_a_set_that_lost_a_shard_is_not_complete(folder, tmp_path):
    plan = plan_of(folder, tmp_path / "set", shard_bytes=10_000)
    manifest = write_all(plan)
    assert write.resume(plan)[0] == json.loads(json.dumps(manifest))
    (tmp_path / "set/train" / plan.key(1)).unlink()
    assert write.resume(plan) == (None, {})


def test_the_store_changes_the_images(folder, tmp_path):
    write_all(plan_of(folder, tmp_path / "set", store="short16q90"))
    opened = open_shard_set(str(tmp_path / "set"), "train")
    sizes = {Image.open(io.BytesIO(data)).size for data in slices(opened, tmp_path / "set/train")}
    assert sizes == {(16, 21)} and opened.encoder["store"] == "short16q90"


def test_memory_urls_work(folder):
    write_all(plan_of(folder, "memory://write-test/set"))
    opened = open_shard_set("memory://write-test/set", "train")
    data = fsspec.filesystem("memory").cat_file(f"/write-test/set/train/{opened.shards[0].key}")
    image = data[opened.offset_N[3] : opened.offset_N[3] + opened.length_N[3]]
    assert len(opened) == 16 and zlib.crc32(image) == opened.crc_N[3]


def test_a_source_that_this_node_does_not_see(folder, tmp_path):
    plan = plan_of(folder, tmp_path / "set")
    folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="not visible on node"):
        write.write_shard(plan.task(0))


def test_no_usable_image_at_all(tmp_path):
    (tmp_path / "images/train/a").mkdir(parents=True)
    (tmp_path / "images/train/a/1.jpg").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"not one usable image; train/a/1\.jpg: not an image"):
        write_all(plan_of(tmp_path / "images", tmp_path / "set"))


@pytest.fixture(scope="module")
def clothing(tmp_path_factory):
    """The real photos, written once."""
    if not CLOTHING.exists():
        pytest.skip("../shared/data/clothing is absent")
    root = tmp_path_factory.mktemp("clothing")
    for split in ("train", "val"):
        source = open_source(SourceOptions(str(CLOTHING)))
        write_all(write.plan_split(source, str(root), split, shard_bytes=8 << 20))
    return root


def test_real_photos_in_the_layout_of_inaturalist(clothing):
    with tarfile.open(CLOTHING) as tar:
        for split, rows in {"train": 1160, "val": 167}.items():
            doc = json.load(tar.extractfile(f"{split}2018.json"))
            opened = open_shard_set(str(clothing), split)
            category = {a["image_id"]: a["category_id"] for a in doc["annotations"]}
            assert len(opened) == rows == len(doc["images"])
            assert opened.classes == tuple(c["name"] for c in doc["categories"])
            assert opened.count_C.tolist() == np.bincount(list(category.values())).tolist()
            assert [category[i] for i in opened.id_N.tolist()] == opened.label_N.tolist()
            name = {i["id"]: i["file_name"] for i in doc["images"]}
            for n, data in enumerate(slices(opened, clothing / split)):
                original = tar.extractfile(name[int(opened.id_N[n])]).read()
                turned = Image.open(io.BytesIO(original)).getexif().get(0x0112, 1) in range(2, 9)
                assert (data == original) != turned
                assert zlib.crc32(data) == opened.crc_N[n]
    assert open_shard_set(str(clothing), "train").count_C[:1].tolist() == [238]
