"""A rank's micro-batches, in plan order, decoded ahead by threads into uint8 batch slots."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from remix_dist.data.cache import ShardCache
from remix_dist.data.decode import CorruptImage, decode
from remix_dist.data.plan import Plan, rank_share
from remix_dist.types import NOISE, PHOTOMETRIC, Batch, UserError, generator

if TYPE_CHECKING:  # a value that it is handed, like the mixers
    from remix_dist.data.augment import Augment
    from remix_dist.data.manifest import ShardSet

SMALL, SMALL_ROWS = 3 * 32 * 32, 100_000
"""Values of an image up to which it is kept decoded, and how many are: CIFAR whole in 0.3 GB, photos never."""


class Stream:
    """Micro-batches of one rank. A corrupt image is replaced by another of its class, counted and named."""

    def __init__(
        self,
        shards: ShardSet,
        cache: ShardCache,
        plan: Plan,
        augment: Augment,
        *,
        micro_batch: int,
        threads: int = 2,
        prefetch: int = 4,
        max_corrupt: float = 1e-4,
        pin: bool = False,
    ) -> None:
        self.shards, self.cache, self.plan, self.augment = shards, cache, plan, augment
        self.micro_batch, self.prefetch, self.pin = micro_batch, prefetch, pin
        self.threads, self.max_corrupt = threads, max_corrupt
        self.faults: dict[int, dict] = {}
        self.small: dict[int, torch.Tensor] = {}
        self.waited = 0.0

    def share(self, rank: int, world: int) -> range:
        """The places in the global batch of this rank's micro-batches: whole ones."""
        return rank_share(self.plan.global_batch // self.micro_batch, rank, world)

    def batches(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """This rank's micro-batches of the global steps start .. stop - 1. Resume is `start`, in O(1)."""
        jobs = (self._job(step, m) for step in range(start, stop) for m in self.share(rank, world))
        return self._run(jobs)

    def evaluation(self, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Every row once over all ranks, in order, without augmentation or padding; corrupt rows are left out."""
        size, mine = self.micro_batch, rank_share(len(self.shards), rank, world)
        rows = (np.array(mine[i : i + size]) for i in range(0, len(mine), size))
        for batch in self._run((self._batch(part, 0, 0), None) for part in rows):
            good = batch.labels_B >= 0
            yield (
                batch
                if good.all()
                else replace(
                    batch, images_BCHW=batch.images_BCHW[good], labels_B=batch.labels_B[good], rows_B=batch.rows_B[good]
                )
            )

    def _run(self, jobs: Iterator[tuple[Batch, np.ndarray | None]]) -> Iterator[Batch]:
        queue: deque[tuple[Batch, list[Future]]] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
            try:
                while True:
                    while len(queue) < self.prefetch and (job := next(jobs, None)) is not None:
                        n = len(job[0].rows_B)
                        step = max(1, -(-n // (2 * self.threads)))
                        parts = [range(i, min(i + step, n)) for i in range(0, n, step)]
                        queue.append((job[0], [pool.submit(self._fill, *job, part) for part in parts]))
                    if not queue:
                        return
                    batch, futures = queue.popleft()
                    before = time.perf_counter()
                    for future in futures:
                        future.result()
                    self.waited += time.perf_counter() - before
                    yield batch
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _job(self, step: int, m: int) -> tuple[Batch, np.ndarray]:
        slots = slice(m * self.micro_batch, (m + 1) * self.micro_batch)
        # one draw for the global batch, then the slots of this micro-batch: pixels depend on (seed, step, slot)
        rng = generator(self.plan.seed, "augment", step)
        noise_BK = rng.random((self.plan.global_batch, NOISE), np.float32)[slots]
        batch = self._batch(self.plan.batch(step)[slots], step, m)
        return replace(batch, noise_BK=torch.from_numpy(noise_BK[:, -PHOTOMETRIC:].copy())), noise_BK

    def _batch(self, rows_B: np.ndarray, step: int, m: int) -> Batch:
        size = self.augment.size
        images = torch.empty((len(rows_B), 3, size, size), dtype=torch.uint8, pin_memory=self.pin)
        return Batch(images, torch.from_numpy(self.shards.label_N[rows_B]), torch.empty(0), rows_B, step, m)

    def _fill(self, batch: Batch, noise_BK: np.ndarray | None, part: range) -> None:
        for b in part:
            row, slot = int(batch.rows_B[b]), batch.images_BCHW[b]
            reason = self._place(row, slot, None if noise_BK is None else noise_BK[b])
            if reason is None:
                continue
            if noise_BK is None:
                batch.labels_B[b] = -1
                self._report(row, reason, None)
            else:
                self._report(row, reason, self._stand_in(row, reason, slot, noise_BK[b]))

    def _stand_in(self, row: int, reason: str, slot: torch.Tensor, noise: np.ndarray) -> int:
        same = np.flatnonzero(self.shards.label_N == self.shards.label_N[row])
        for other in generator(self.plan.seed, "substitute", row).permutation(same[same != row]):
            if self._place(int(other), slot, noise) is None:
                return int(other)
        name = self.shards.classes[int(self.shards.label_N[row])]
        raise UserError(f"class {name!r} has no readable image left (row {row}: {reason}); write its shards again")

    def _place(self, row: int, slot: torch.Tensor, noise: np.ndarray | None) -> str | None:
        try:
            image = self.small.get(row)
            if image is None:
                image = decode(self.cache.read(row))
                if image.numel() <= SMALL and len(self.small) < SMALL_ROWS:
                    self.small[row] = image.contiguous()
            self.augment.place(image, slot, noise)
        except CorruptImage as error:
            return str(error)
        return None

    def _report(self, row: int, reason: str, other: int | None) -> None:
        key, image_id = self.shards.shards[int(self.shards.shard_N[row])].key, int(self.shards.id_N[row])
        fault = {"row": row, "shard": key, "id": image_id, "reason": reason, "replaced_by": other}
        if self.faults.setdefault(row, fault) is not fault:  # atomic: other threads may meet the same row
            return
        instead = "left out" if other is None else f"row {other} stands in"
        print(f"corrupt image: row {row} (id {image_id}) of {key}: {reason}; {instead}", flush=True)
        rows = sorted(self.faults)
        if len(rows) > max(1, int(self.max_corrupt * len(self.shards))):
            raise UserError(
                f"data.max_corrupt = {self.max_corrupt}: {len(rows)} corrupt images of {len(self.shards)} in "
                f"{self.shards.url} (rows {rows[:10]}); write these shards again, or raise the knob"
            )
