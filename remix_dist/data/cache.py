"""Verified bytes of single images: local shards by mmap, remote ones through one directory per node.

A remote shard becomes visible only after its length and sha256 are right (temporary file, fsync, rename); every
image is checked by crc32 at every read, because a flipped bit in a JPEG often decodes without any error.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import threading
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from remix_dist.data.decode import CorruptImage
from remix_dist.data.store import filesystem

if TYPE_CHECKING:
    from remix_dist.data.manifest import ShardSet


class ShardCache:
    """Reads rows of a shard set; keeps at most `max_bytes` of remote shards in `directory` (least recent out)."""

    def __init__(self, shards: ShardSet, directory: str, max_bytes: int, tries: int = 4) -> None:
        self.set, self.max_bytes, self.tries = shards, max_bytes, tries
        self.fs, self.root = filesystem(shards.url)
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self.directory = Path(directory).expanduser()
        self._maps: dict[int, mmap.mmap] = {}
        self._locks = [threading.Lock() for _ in shards.shards]

    def read(self, row: int) -> memoryview:
        """The image bytes of a row; a bad cached shard is dropped and fetched once more before CorruptImage."""
        shard, offset, length = (int(a[row]) for a in (self.set.shard_N, self.set.offset_N, self.set.length_N))
        for attempt in (0, 1):
            data = memoryview(self._map(shard))[offset : offset + length]
            if zlib.crc32(data) == int(self.set.crc_N[row]):
                return data
            if self.local or attempt:
                break
            self._drop(shard)
        raise CorruptImage(f"crc32 differs from the index (shard {self.set.shards[shard].key}, offset {offset})")

    def _map(self, shard: int) -> mmap.mmap:
        found = self._maps.get(shard)
        while found is None:
            with self._locks[shard]:
                try:
                    found = self._maps[shard] = self._maps.get(shard) or _mmap(self._path(shard))
                except FileNotFoundError:  # another process or thread evicts at the same time: look again
                    if self.local:
                        raise
        return found

    def _drop(self, shard: int) -> None:
        with self._locks[shard]:
            self._maps.pop(shard, None)
            self._cached(shard).unlink(missing_ok=True)

    def _cached(self, shard: int) -> Path:
        return self.directory / f"{self.set.shards[shard].sha256}.parquet"

    def _path(self, shard: int) -> Path:
        info = self.set.shards[shard]
        if self.local:
            return Path(self.root) / info.key
        path = self._cached(shard)
        if path.exists() and path.stat().st_size == info.bytes:
            os.utime(path)
            return path
        self.directory.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not (path.exists() and path.stat().st_size == info.bytes):
                self._evict(info.bytes)
                self._fetch(shard, path)
        return path

    def _fetch(self, shard: int, path: Path) -> None:
        info, part, reason = self.set.shards[shard], path.with_suffix(".part"), ""  # one: a killed process' is reused
        for attempt in range(self.tries):
            time.sleep(attempt and min(0.1 * 4**attempt, 10))
            try:
                with self.fs.open(f"{self.root}/{info.key}", "rb") as source, open(part, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                    sink.flush()
                    os.fsync(sink.fileno())
                with open(part, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                if part.stat().st_size == info.bytes and digest == info.sha256:
                    part.rename(path)
                    return
                reason = f"got {part.stat().st_size} of {info.bytes} bytes, sha256 {digest[:12]}"
            except Exception as error:  # a store's driver raises its own types
                reason = repr(error)
            part.unlink(missing_ok=True)
        raise OSError(
            f"{self.set.url}/{info.key}: not readable after {self.tries} tries ({reason}); check the store, or write "
            "the shard again with jobs/make_shards.py"
        )

    def _evict(self, need: int) -> None:
        files = sorted(self.directory.glob("*.parquet"), key=lambda f: f.stat().st_mtime)
        used = sum(f.stat().st_size for f in files)
        for file in files:
            if used + need <= self.max_bytes:
                return
            used -= file.stat().st_size
            file.unlink()
            self._maps.clear()  # the space of a mapped file returns only when all let go of it


def _mmap(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
