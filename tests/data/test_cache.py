"""Verified bytes: local mmap, remote fetch, repair, eviction, faults of the store, races."""

import hashlib
import threading
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from remix_dist.data import cache as module
from remix_dist.data.cache import ShardCache
from remix_dist.data.decode import CorruptImage
from remix_dist.data.manifest import open_shard_set

BIG = 1 << 30


class Store:
    """A remote file system that counts what is opened and does `fault(path, nth open)` first; bytes replace data."""

    def __init__(self, fs, fault=lambda path, nth: None):
        self.fs, self.fault, self.opened = fs, fault, []

    def open(self, path, mode):
        self.opened.append(path.rsplit("/", 1)[1])
        wrong = self.fault(path, len(self.opened))
        return self.fs.open(path, mode) if wrong is None else fsspec.filesystem("memory").open(wrong, mode)


@pytest.fixture(scope="module")
def local(pictures_url):
    return open_shard_set(pictures_url, "train")


@pytest.fixture(scope="module")
def remote(local):
    """The same set in a store: memory://pictures/train."""
    fs = fsspec.filesystem("memory")
    fs.put(local.url, "/pictures/train", recursive=True)
    yield open_shard_set("memory://pictures", "train")
    fs.rm("/pictures", recursive=True)


@pytest.fixture(scope="module")
def truth(local):
    """The bytes of every row, read by pyarrow."""
    tables = [pq.read_table(f"{local.url}/{shard.key}") for shard in local.shards]
    return [image["bytes"] for table in tables for image in table["image"].to_pylist()]


@pytest.fixture
def naps(monkeypatch):
    """Seconds slept between tries, without sleeping."""
    slept = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    return slept


def make(shards, folder, fault=lambda path, nth: None, max_bytes=BIG, **options):
    cache = ShardCache(shards, str(folder), max_bytes, **options)
    cache.fs = Store(cache.fs, fault) if not cache.local else cache.fs
    return cache


def names(folder, pattern="*.parquet"):
    return {path.name for path in Path(folder).glob(pattern)}


def size(folder):
    return sum(path.stat().st_size for path in Path(folder).glob("*.parquet"))


def put_wrong(name, data):
    fsspec.filesystem("memory").pipe_file(f"/wrong/{name}", data)
    return f"/wrong/{name}"


def flip(path, offset):
    data = bytearray(Path(path).read_bytes())
    data[offset] ^= 1
    Path(path).write_bytes(data)


def test_local_rows_come_straight_from_the_mapped_shards(local, truth, tmp_path):
    cache = make(local, tmp_path / "cache")
    assert len(local.shards) >= 4
    assert [bytes(cache.read(row)) for row in range(len(local))] == truth
    assert type(cache.read(0).obj).__name__ == "mmap" and cache.read(0).readonly
    assert not (tmp_path / "cache").exists()


def test_local_damage_is_a_corrupt_image_that_names_its_shard(local, truth, tmp_path):
    copy = tmp_path / "train"
    fsspec.filesystem("file").put(local.url, str(copy), recursive=True)
    shards = open_shard_set(str(tmp_path), "train")
    first_of = [int(np.flatnonzero(shards.shard_N == n)[0]) for n in (1, 2)]
    flip(copy / shards.shards[1].key, int(shards.offset_N[first_of[0]]) + 5)
    whole = (copy / shards.shards[2].key).read_bytes()
    (copy / shards.shards[2].key).write_bytes(whole[: int(shards.offset_N[first_of[1]]) + 9])  # cut in its first row
    cache = make(shards, tmp_path / "cache")
    for n, row in zip((1, 2), first_of, strict=True):
        with pytest.raises(CorruptImage, match=shards.shards[n].key):
            cache.read(row)
    assert bytes(cache.read(first_of[0] + 1)) == truth[first_of[0] + 1]
    assert (copy / shards.shards[1].key).exists()  # what is not ours is never removed


def test_a_local_shard_that_is_gone_names_its_path(local, tmp_path):
    gone = replace(local, shards=(replace(local.shards[0], key="shards/gone.parquet"), *local.shards[1:]))
    with pytest.raises(FileNotFoundError, match=r"gone\.parquet"):
        make(gone, tmp_path).read(0)


def test_remote_shards_are_fetched_once_and_verified(remote, truth, tmp_path):
    def not_yet(path, nth):
        assert hashlib.sha256(fsspec.filesystem("memory").cat_file(path)).hexdigest() + ".parquet" not in names(
            tmp_path
        )

    cache = make(remote, tmp_path, not_yet)
    for _ in range(2):
        assert [bytes(cache.read(row)) for row in range(len(remote))] == truth
    assert cache.fs.opened == [Path(shard.key).name for shard in remote.shards]
    for shard in remote.shards:
        assert hashlib.sha256((tmp_path / f"{shard.sha256}.parquet").read_bytes()).hexdigest() == shard.sha256
    again = make(remote, tmp_path)  # another process on this node, or the next run
    assert bytes(again.read(3)) == truth[3] and again.fs.opened == []
    assert not names(tmp_path, "*.part*")


@pytest.mark.parametrize("kind", ["flipped", "short", "long", "empty"])
def test_wrong_bytes_are_never_visible(kind, remote, tmp_path, naps):
    key = remote.shards[0].key
    data = fsspec.filesystem("memory").cat_file(f"/pictures/train/{key}")
    wrong = {"flipped": bytes([data[0] ^ 1]) + data[1:], "short": data[:-1], "long": data + b"x", "empty": b""}[kind]
    path = put_wrong(kind, wrong)

    def look(_, nth):
        assert names(tmp_path) == set()
        return path

    cache = make(remote, tmp_path, look, tries=3)
    with pytest.raises(OSError, match=rf"memory://pictures/train/{key}: not readable after 3 tries.*sha256"):
        cache.read(0)
    assert len(cache.fs.opened) == 3 and names(tmp_path) == names(tmp_path, "*.part*") == set()
    assert len(naps) == 3 and naps[0] == 0 and 0 < naps[1] < naps[2] <= 10  # no wait after the last try


@pytest.mark.parametrize(
    "error", [OSError("reset"), FileNotFoundError("listing lags"), RuntimeError("driver's own")], ids=repr
)
def test_a_store_that_recovers_costs_only_time(error, remote, truth, tmp_path, naps):
    def twice(path, nth):
        if nth < 3:
            raise error

    cache = make(remote, tmp_path, twice)
    assert bytes(cache.read(0)) == truth[0] and len(cache.fs.opened) == 3


def test_a_store_that_stays_down_is_an_error_with_its_reason(remote, tmp_path, naps):
    def down(path, nth):
        raise PermissionError("no key")

    cache = make(remote, tmp_path, down)
    with pytest.raises(OSError, match=r"00000-of.*after 4 tries \(PermissionError\('no key'\)\)"):
        cache.read(0)
    assert len(cache.fs.opened) == 4 and sum(naps) < 30


@pytest.mark.parametrize("mapped", [True, False])
def test_a_damaged_cached_shard_is_fetched_again_and_never_served(mapped, remote, truth, tmp_path):
    cache = make(remote, tmp_path)
    cache.read(0)
    path = tmp_path / f"{remote.shards[0].sha256}.parquet"
    flip(path, int(remote.offset_N[0]) + 11)  # in place: a live mapping sees it too
    cache = cache if mapped else make(remote, tmp_path)
    cache.fs.opened.clear()
    assert bytes(cache.read(0)) == truth[0] and len(cache.fs.opened) == 1
    assert hashlib.sha256(path.read_bytes()).hexdigest() == remote.shards[0].sha256
    assert bytes(cache.read(1)) == truth[1] and len(cache.fs.opened) == 1


def test_an_index_that_is_wrong_is_a_corrupt_image_after_one_more_fetch(remote, tmp_path):
    crc_N = remote.crc_N.copy()
    crc_N[0] ^= 1
    cache = make(replace(remote, crc_N=crc_N), tmp_path)
    with pytest.raises(CorruptImage, match=remote.shards[0].key):
        cache.read(0)
    assert len(cache.fs.opened) == 2


@pytest.mark.parametrize("left", [b"", b"half a shard"], ids=len)
def test_a_cached_shard_of_the_wrong_length_is_fetched_again(left, remote, truth, tmp_path):
    (tmp_path / f"{remote.shards[0].sha256}.parquet").write_bytes(left)
    cache = make(remote, tmp_path)
    assert bytes(cache.read(0)) == truth[0] and len(cache.fs.opened) == 1


def test_leftovers_of_killed_processes_are_harmless_and_do_not_add_up(remote, truth, tmp_path, naps):
    def killed(path, nth):
        if nth == 1:
            raise KeyboardInterrupt  # leaves at once, as a kill would

    (tmp_path / f"{remote.shards[0].sha256}.part").write_bytes(b"half" * 50_000)
    cache = make(remote, tmp_path, killed)
    with pytest.raises(KeyboardInterrupt):
        cache.read(0)
    assert names(tmp_path) == set() and len(names(tmp_path, "*.part*")) == 1
    assert bytes(make(remote, tmp_path).read(0)) == truth[0]
    assert names(tmp_path, "*.part*") == set()


def test_eviction_keeps_the_limit_and_the_shards_used_last(remote, truth, tmp_path):
    limit = 2 * max(shard.bytes for shard in remote.shards)
    cache, held = make(remote, tmp_path, max_bytes=limit), []
    for row in range(len(remote)):
        view = cache.read(row)
        assert bytes(view) == truth[row] and size(tmp_path) <= limit
        if row == 0:
            held.append(view)
        time.sleep(0.001)  # file times must differ
    fetched = len(cache.fs.opened)
    assert names(tmp_path) == {f"{shard.sha256}.parquet" for shard in remote.shards[-2:]}
    assert bytes(cache.read(len(remote) - 1)) == truth[-1] and len(cache.fs.opened) == fetched
    assert bytes(held[0]) == truth[0]  # who still reads an evicted shard is not disturbed
    assert bytes(cache.read(1)) == truth[1] and len(cache.fs.opened) == fetched + 1
    assert f"{remote.shards[0].sha256}.parquet" in names(tmp_path) and size(tmp_path) <= limit


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the mappings of a process are seen in Linux' /proc")
def test_eviction_lets_go_of_the_disk_space(remote, tmp_path):
    cache = make(remote, tmp_path, max_bytes=2 * max(shard.bytes for shard in remote.shards))
    for row in range(len(remote)):
        cache.read(row)
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert maps and not any(line.endswith("(deleted)") for line in maps)


def test_a_shard_larger_than_the_limit_is_still_read(remote, truth, tmp_path):
    cache = make(remote, tmp_path, max_bytes=1)
    assert [bytes(cache.read(row)) for row in range(len(remote))] == truth
    assert len(names(tmp_path)) == 1


@pytest.mark.parametrize("caches", [1, 2])  # 2: as two workers of a node
def test_threads_that_want_one_shard_fetch_it_once(caches, remote, truth, tmp_path):
    made = [make(remote, tmp_path, lambda path, nth: time.sleep(0.1)) for _ in range(caches)]
    barrier, got = threading.Barrier(4), {}

    def work(n):
        barrier.wait()
        got[n] = bytes(made[n % caches].read(n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == dict(enumerate(truth[:4])) and len(set(remote.shard_N[:4].tolist())) == 1
    assert sum(len(cache.fs.opened) for cache in made) == 1


def test_a_shard_evicted_between_fetch_and_mapping_is_fetched_again(remote, truth, tmp_path, monkeypatch):
    cache, whole = make(remote, tmp_path), ShardCache._path
    path_of = iter([True])

    def evicted_by_a_neighbour(self, shard):
        path = whole(self, shard)
        if next(path_of, False):
            path.unlink()
        return path

    monkeypatch.setattr(ShardCache, "_path", evicted_by_a_neighbour)
    assert bytes(cache.read(0)) == truth[0] and len(cache.fs.opened) == 2


def test_workers_that_evict_each_other_read_right_bytes(remote, truth, tmp_path):
    made = [make(remote, tmp_path, max_bytes=1) for _ in range(3)]
    failed = []

    def work(n):
        for row in np.random.default_rng(n).permutation(len(remote)).tolist():
            try:
                assert bytes(made[n].read(row)) == truth[row]
            except BaseException as error:
                failed.append(repr(error))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
