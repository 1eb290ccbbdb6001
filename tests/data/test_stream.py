"""The stream: pixels at any world size and thread count, resume, corrupt images, evaluation, clean ends."""

import threading
import time

import fsspec
import numpy as np
import pytest
import torch

from remix_dist.data.augment import Augment
from remix_dist.data.cache import ShardCache
from remix_dist.data.decode import decode
from remix_dist.data.manifest import open_shard_set
from remix_dist.data.plan import Plan
from remix_dist.data.stream import Stream
from remix_dist.types import PHOTOMETRIC, UserError

STEPS = 12  # of 12 rows: more than two epochs of 61
RANDOM = Augment(size=16, crop="random_resized")
FIXED = Augment(size=16, resize=18, crop="center", flip=False)


def make(url, split="train", augment=RANDOM, seed=3, power=None, **options):
    shards = open_shard_set(url, split)
    share_C = None if power is None else shards.count_C.astype(float) ** power
    plan = Plan(shards.label_N, shards.shard_N, seed=seed, global_batch=12, share_C=share_C, lanes=2, window=2)
    return Stream(shards, ShardCache(shards, "unused", 1), plan, augment, micro_batch=4, **options)


def collect(url, start=0, stop=STEPS, world=1, **options):
    """Every rank's batches by (step, micro-batch), and the faults of all ranks."""
    found, faults = {}, {}
    for rank in range(world):
        stream = make(url, **options)
        for batch in stream.batches(start, stop, rank, world):
            found[batch.step, batch.micro_batch] = batch
        faults |= stream.faults
    return found, faults


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, batch in one.items():
        assert torch.equal(batch.images_BCHW, other[key].images_BCHW)
        assert torch.equal(batch.labels_B, other[key].labels_B)
        assert torch.equal(batch.noise_BK, other[key].noise_BK)
        assert np.array_equal(batch.rows_B, other[key].rows_B)


def decoders():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.fixture(scope="module")
def straight(pictures_url):
    """The batches of one rank with one thread."""
    return collect(pictures_url, threads=1, prefetch=1)[0]


@pytest.fixture
def damage(pictures_url, tmp_path):
    """damage(rows, split): the URL of a copy in which one bit of each of these images is flipped."""

    def copy(rows, split="train"):
        fsspec.filesystem("file").put(pictures_url, str(tmp_path / "set"), recursive=True)
        shards = open_shard_set(str(tmp_path / "set"), split)
        for row in rows:
            path = tmp_path / "set" / split / shards.shards[shards.shard_N[row]].key
            data = bytearray(path.read_bytes())
            data[shards.offset_N[row] + shards.length_N[row] // 2] ^= 4
            path.write_bytes(data)
        return str(tmp_path / "set")

    return copy


def centre(shards, row):
    """The evaluation pixels of a row, by hand: 24 x 20 becomes 22 x 18, then its centre."""
    slot = torch.empty(3, 16, 16, dtype=torch.uint8)
    FIXED.place(decode(ShardCache(shards, "unused", 1).read(int(row))), slot, None)
    return slot


def test_batches_follow_the_plan_and_labels_follow_the_rows(pictures_url, straight):
    stream = make(pictures_url)
    assert list(straight) == [(step, m) for step in range(STEPS) for m in range(3)]
    for (step, m), batch in straight.items():
        assert np.array_equal(batch.rows_B, stream.plan.batch(step)[4 * m : 4 * m + 4])
        assert torch.equal(batch.labels_B, torch.from_numpy(stream.shards.label_N[batch.rows_B]))
        assert (batch.images_BCHW.shape, batch.images_BCHW.dtype) == ((4, 3, 16, 16), torch.uint8)
        assert (batch.noise_BK.shape, batch.noise_BK.dtype) == ((4, PHOTOMETRIC), torch.float32)
    rows = np.concatenate([batch.rows_B for batch in straight.values()])
    assert sorted(rows[:61]) == sorted(rows[61:122]) == list(range(61))


def test_pixels_are_those_of_the_row(pictures_url):
    found, _ = collect(pictures_url, 0, 3, augment=FIXED)
    shards = open_shard_set(pictures_url, "train")
    for batch in found.values():
        for row, pixels in zip(batch.rows_B, batch.images_BCHW, strict=True):
            assert torch.equal(pixels, centre(shards, row))


@pytest.mark.parametrize("world, threads, prefetch", [(1, 5, 6), (2, 1, 1), (2, 3, 4), (3, 2, 2), (3, 7, 30)])
def test_pixels_are_the_same_at_any_world_size_and_thread_count(world, threads, prefetch, pictures_url, straight):
    assert_same(collect(pictures_url, world=world, threads=threads, prefetch=prefetch)[0], straight)


def test_pixels_depend_on_seed_step_and_slot(pictures_url, straight):
    other, _ = collect(pictures_url, 0, 1, seed=4)
    assert not torch.equal(other[0, 0].noise_BK, straight[0, 0].noise_BK)
    numbers = torch.cat([batch.noise_BK for batch in straight.values()])
    assert len(numbers.flatten().unique()) > 0.999 * numbers.numel()  # no two slots share their noise
    assert numbers.min() >= 0 and numbers.max() < 1


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("power", [None, 0.0])
def test_resume_is_the_tail_of_the_straight_run(world, power, pictures_url, straight):
    whole = straight if power is None else collect(pictures_url, power=power)[0]
    tail = collect(pictures_url, 7, STEPS, world=world, power=power)[0]
    assert_same(tail, {key: batch for key, batch in whole.items() if key[0] >= 7})


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_corrupt_image_is_replaced_by_one_of_its_class_at_any_world_size(world, pictures_url, damage, capsys):
    clean, _ = collect(pictures_url, augment=FIXED)
    bad = [5, 40]
    url = damage(bad)
    shards = open_shard_set(url, "train")
    found, faults = collect(url, world=world, augment=FIXED, max_corrupt=0.05)
    one, once = collect(url, augment=FIXED, max_corrupt=0.05)
    assert_same(found, one)
    assert sorted(faults) == sorted(once) == bad
    for row, fault in faults.items():
        other = fault["replaced_by"]
        assert other not in bad and shards.label_N[other] == shards.label_N[row] and other == once[row]["replaced_by"]
        assert fault["row"] == row and fault["id"] == shards.id_N[row]
        assert fault["shard"] == shards.shards[shards.shard_N[row]].key and "crc32" in fault["reason"]
    met = 0
    for key, batch in found.items():
        assert torch.equal(batch.labels_B, clean[key].labels_B) and np.array_equal(batch.rows_B, clean[key].rows_B)
        for b, row in enumerate(batch.rows_B.tolist()):
            met += row in bad
            shown = faults[row]["replaced_by"] if row in bad else row
            assert torch.equal(batch.images_BCHW[b], centre(shards, shown))
    assert met >= 4  # each in two epochs


def test_a_corrupt_image_is_named_and_counted_once_on_stdout(damage, capsys):
    stream = make(damage([5]), threads=6, prefetch=40)
    assert len(list(stream.batches(0, 60))) == 180 and list(stream.faults) == [5]
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    fault = stream.faults[5]
    assert len(lines) == 1 and f"row 5 (id {fault['id']}) of {fault['shard']}" in lines[0]
    assert f"row {fault['replaced_by']} stands in" in lines[0]


def test_threads_that_meet_one_corrupt_row_at_once_count_it_once(damage, capsys):
    class Slow(dict):
        def __contains__(self, row):
            found = super().__contains__(row)
            time.sleep(0.02)
            return found

    stream = make(damage([5]))
    stream.faults, barrier = Slow(), threading.Barrier(8)
    threads = [threading.Thread(target=lambda: (barrier.wait(), stream._report(5, "crc32", 6))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().out.count("corrupt image") == 1 and len(stream.faults) == 1


def test_too_many_corrupt_images_stop_the_run_and_name_the_knob(damage):
    url = damage([5, 40])
    with pytest.raises(UserError, match=r"data\.max_corrupt = 0\.0001: 2 corrupt images of 61 .*rows \[5, 40\]"):
        collect(url)
    assert decoders() == []
    assert len(collect(url, max_corrupt=2 / 61)[1]) == 2  # above it, not at it


def test_a_class_without_a_readable_image_is_an_error_that_names_it(pictures_url, damage):
    label_N = open_shard_set(pictures_url, "train").label_N
    with pytest.raises(UserError, match="class 'class4' has no readable image left"):
        collect(damage(np.flatnonzero(label_N == 4).tolist()), max_corrupt=1.0)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_gives_every_row_once_in_order(world, pictures_url):
    shards = open_shard_set(pictures_url, "val")
    stream = make(pictures_url, "val", FIXED)
    batches = [batch for rank in range(world) for batch in stream.evaluation(rank, world)]
    rows = np.concatenate([batch.rows_B for batch in batches])
    assert rows.tolist() == list(range(23)) and max(len(batch.rows_B) for batch in batches) == 4
    assert torch.cat([batch.labels_B for batch in batches]).tolist() == shards.label_N.tolist()
    images = torch.cat([batch.images_BCHW for batch in batches])
    assert len(images) == 23 and all(torch.equal(images[row], centre(shards, row)) for row in range(23))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_leaves_corrupt_rows_out_and_says_so(world, damage, capsys):
    url = damage([3, 22], "val")
    shards, faults, batches = open_shard_set(url, "val"), {}, []
    for rank in range(world):
        stream = make(url, "val", FIXED, max_corrupt=0.1)
        batches += list(stream.evaluation(rank, world))
        faults |= stream.faults
    rows = np.concatenate([batch.rows_B for batch in batches])
    assert rows.tolist() == [row for row in range(23) if row not in (3, 22)]
    assert torch.cat([batch.labels_B for batch in batches]).tolist() == shards.label_N[rows].tolist()
    images = torch.cat([batch.images_BCHW for batch in batches])
    assert all(torch.equal(pixels, centre(shards, row)) for row, pixels in zip(rows, images, strict=True))
    assert sorted(faults) == [3, 22] and {fault["replaced_by"] for fault in faults.values()} == {None}
    out = capsys.readouterr().out
    assert out.count("left out") == 2 and "row 3 (id" in out and "None" not in out


def test_evaluation_with_more_ranks_than_rows(pictures_url):
    stream = make(pictures_url, "val")
    rows = [batch.rows_B.tolist() for rank in range(30) for batch in stream.evaluation(rank, 30)]
    assert rows == [[row] for row in range(23)]


@pytest.mark.parametrize("ready", [0, 1, 5])
def test_closing_early_leaves_no_threads(ready, pictures_url):
    batches = make(pictures_url, threads=3, prefetch=8).batches(0, 1000)
    for _ in range(ready):
        next(batches)
    assert len(decoders()) == (3 if ready else 0)
    batches.close()
    assert decoders() == []


def test_closing_early_does_not_decode_the_rest(pictures_url, monkeypatch):
    read, rows = ShardCache.read, []
    slow = lambda cache, row: time.sleep(0.005) or rows.append(row) or read(cache, row)  # noqa: E731
    monkeypatch.setattr(ShardCache, "read", slow)
    batches = make(pictures_url, threads=1, prefetch=50).batches(0, 1000)
    assert next(batches).step == 0
    batches.close()
    assert 4 <= len(rows) < 100  # of 200 that were asked for


def test_an_error_in_the_consumer_leaves_no_threads(pictures_url):
    def consume():
        for batch in make(pictures_url, threads=3).batches(0, 1000):
            assert batch.step < 2

    with pytest.raises(AssertionError):
        consume()
    assert decoders() == []


@pytest.mark.parametrize("run", ["batches", "evaluation"])
def test_errors_of_the_store_reach_the_consumer(run, pictures_url, monkeypatch):
    stream, read = make(pictures_url, threads=3, prefetch=3), ShardCache.read
    bad = int(stream.plan.batch(3)[5]) if run == "batches" else 17

    def down(cache, row):
        if row == bad:
            raise OSError("memory://x/shards/00003: not readable after 4 tries")
        return read(cache, row)

    monkeypatch.setattr(ShardCache, "read", down)
    got = []
    with pytest.raises(OSError, match="00003: not readable"):
        got.extend(stream.batches(0, 9) if run == "batches" else stream.evaluation())
    rows = np.concatenate([batch.rows_B for batch in got]).tolist()  # what comes before the failing micro-batch
    assert rows == (stream.plan.epoch(0)[:40].tolist() if run == "batches" else list(range(16)))
    assert decoders() == [] and stream.faults == {}


def test_batches_are_decoded_ahead_and_waiting_is_measured(pictures_url, monkeypatch):
    read, rows = ShardCache.read, []

    def slow(cache, row):
        time.sleep(0.01)
        rows.append(row)
        return read(cache, row)

    monkeypatch.setattr(ShardCache, "read", slow)
    stream = make(pictures_url, threads=2, prefetch=3)
    batches = stream.batches(0, 3)
    next(batches)
    assert stream.waited > 0.01
    waited, deadline = stream.waited, time.monotonic() + 10
    while len(rows) < 12 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(rows) == 12  # this one and no more than the two after it, without being asked
    next(batches)
    assert stream.waited - waited < 0.01 + waited
    batches.close()
