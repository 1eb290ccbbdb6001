"""Which row stands where: a pure function of (labels, shards, seed, draws, global batch).

The order is endless: epochs of N rows are concatenated and cut into exact global batches, so no batch is
ragged, no row is dropped or repeated, and resume is one integer (the global step). The world size never
enters; a rank takes its slots of each global batch.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from remix_dist.types import generator

_MIX1, _MIX2, _STEP = (np.uint64(x) for x in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15))


def rank_share(n: int, rank: int, world: int) -> range:
    """Which of n things are this rank's: contiguous, as even as whole things allow, all covered."""
    return range(rank * n // world, (rank + 1) * n // world)


class Plan:
    """The row ids of every global batch. Epochs from `balanced_from` on draw classes by `share_C`."""

    def __init__(
        self,
        label_N: np.ndarray,
        shard_N: np.ndarray,
        *,
        seed: int,
        global_batch: int,
        share_C: np.ndarray | None = None,
        balanced_from: int = 0,
        lanes: int = 16,
        window: int = 8,
    ) -> None:
        self.rows_per_epoch = len(label_N)
        self.global_batch, self.seed, self.balanced_from = global_batch, seed, balanced_from
        self.shard_N, self.lanes, self.window = shard_N, lanes, window
        self.share_C = None if share_C is None else np.asarray(share_C, np.float64)
        self.count_C = np.bincount(label_N, minlength=0 if share_C is None else len(share_C)).astype(np.int64)
        self.by_class_N = np.argsort(label_N, kind="stable")  # rows grouped by class
        self.first_C = np.cumsum(self.count_C) - self.count_C
        self._epoch = lru_cache(maxsize=3)(self._order)

    def steps(self, epochs: float) -> int:
        """Global steps until `epochs` epochs are complete: also the first step that starts in a later one."""
        return math.ceil(epochs * self.rows_per_epoch / self.global_batch - 1e-9)

    def balanced(self, epoch: int) -> bool:
        """Whether this epoch draws classes by share instead of visiting every row once."""
        return self.share_C is not None and epoch >= self.balanced_from

    def epoch(self, epoch: int) -> np.ndarray:
        """int64 (N,): the row ids of one epoch, in order."""
        return self._epoch(epoch)

    def batch(self, step: int) -> np.ndarray:
        """int64 (G,): the row ids of one global batch; it may reach over an epoch's end."""
        low, high, n = step * self.global_batch, (step + 1) * self.global_batch, self.rows_per_epoch
        parts = [self.epoch(e)[max(low - e * n, 0) : high - e * n] for e in range(low // n, (high - 1) // n + 1)]
        return np.concatenate(parts)

    def _order(self, epoch: int) -> np.ndarray:
        return self._balanced(epoch) if self.balanced(epoch) else self._instance(epoch)

    def _instance(self, epoch: int) -> np.ndarray:
        """Every row once. Shards are visited in random order, a sliding window of them is shuffled, and slot
        s of a batch reads lane s * lanes // G, so that ranks read different shards of a cold store."""
        n, rng = self.rows_per_epoch, generator(self.seed, "instance", epoch)
        shards = int(self.shard_N[-1]) + 1
        lanes = min(self.lanes, shards)
        place = rng.permutation(shards)[self.shard_N] + rng.random(n)
        if shards > lanes * self.window:  # else the whole set fits the windows: shuffle it all
            queue_N = np.argsort(place + self.window * rng.random(n), kind="stable")
        else:
            return rng.permutation(n)
        slot_N = (np.arange(n) + epoch * n) % self.global_batch
        lane_N = slot_N * lanes // self.global_batch
        order_N = np.empty(n, np.int64)
        order_N[np.argsort(lane_N, kind="stable")] = queue_N
        return order_N

    def quotas(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 (C,) twice: draws of each class in this balanced epoch, and in all balanced ones before it.

        Each is floor or ceil of N * share, and they sum to N. Who gets the ceil: the classes with the largest
        deficit so far, so fractions are carried from epoch to epoch.
        """
        assert self.share_C is not None
        rate_C = self.share_C / self.share_C.sum() * self.rows_per_epoch
        floor_C = np.floor(rate_C + 1e-9).astype(np.int64)
        extra = self.rows_per_epoch - int(floor_C.sum())
        tie_C = generator(self.seed, "quota").random(len(rate_C)) * 1e-6
        before_C = np.zeros_like(floor_C)
        for past in range(epoch - self.balanced_from + 1):
            deficit_C = (past + 1) * rate_C - before_C - floor_C + tie_C
            deficit_C[rate_C - floor_C < 1e-9] = -np.inf  # whole rates never need the ceil
            now_C = floor_C.copy()
            now_C[np.argsort(-deficit_C, kind="stable")[:extra]] += 1
            if past < epoch - self.balanced_from:
                before_C += now_C
        return now_C, before_C

    def _balanced(self, epoch: int) -> np.ndarray:
        """N draws by quota: class c's j-th draw falls at a random point of the j-th of its equal intervals (no
        bursts); within a class rows come in cyclic passes without replacement that carry over from epoch to
        epoch, each pass in an order of its own."""
        quota_C, before_C = self.quotas(epoch)
        class_N = np.repeat(np.arange(len(quota_C)), quota_C)  # the draws, grouped by class
        nth_N = np.arange(len(class_N)) - np.repeat(np.cumsum(quota_C) - quota_C, quota_C)
        time_N = (nth_N + generator(self.seed, "balanced", epoch).random(len(class_N))) / quota_C[class_N]
        drawn_N = before_C[class_N] + nth_N
        size_N = self.count_C[class_N]
        # the passes that this epoch touches, whole: (class, pass) groups of count_C rows, hashed and sorted
        n_C = np.maximum(self.count_C, 1)
        first_pass_C = before_C // n_C
        passes_C = np.where(quota_C > 0, (before_C + quota_C - 1) // n_C - first_pass_C + 1, 0)
        members_C = passes_C * self.count_C
        class_M = np.repeat(np.arange(len(quota_C)), members_C)
        nth_M = np.arange(len(class_M)) - np.repeat(np.cumsum(members_C) - members_C, members_C)
        pass_M = nth_M // n_C[class_M]
        row_M = self.by_class_N[self.first_C[class_M] + nth_M % n_C[class_M]]
        key_M = _hash(row_M, pass_M + first_pass_C[class_M], self.seed)
        group_M = (np.cumsum(passes_C) - passes_C)[class_M] + pass_M
        row_M = row_M[np.lexsort((key_M, group_M))]
        start_C = np.cumsum(members_C) - members_C
        offset_N = drawn_N - first_pass_C[class_N] * size_N
        return row_M[start_C[class_N] + offset_N][np.argsort(time_N, kind="stable")]


def _hash(row_M: np.ndarray, pass_M: np.ndarray, seed: int) -> np.ndarray:
    """uint64 (M,): splitmix64 of (seed, pass, row), so that any pass of any class can be had without the rest."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed & 0xFFFF_FFFF_FFFF_FFFF) * _STEP + row_M.astype(np.uint64)
        for salt in (pass_M.astype(np.uint64), np.uint64(0)):
            z = (z ^ (z >> np.uint64(30))) * _MIX1 + salt * _STEP
            z = (z ^ (z >> np.uint64(27))) * _MIX2
            z = z ^ (z >> np.uint64(31))
    return z
