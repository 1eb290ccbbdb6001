"""The few collectives that training needs; without a process group they are the identity."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from remix_dist.types import ClassTable


def rank_world() -> tuple[int, int]:
    """(rank, world size); (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place; the tensor itself is returned."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def from_rank_zero(value: Any) -> Any:
    """A small picklable value of rank 0, on every rank."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_table(table: ClassTable, device: torch.device) -> ClassTable:
    """Rank 0's class counts on every rank's device; an error on all ranks if any rank's own manifest differs."""
    if len(set(digests := gather([table.digest()]))) != 1:  # first: a broadcast needs tables of one length
        raise RuntimeError(f"class counts differ between ranks (digests {digests}): do all read the same data.url?")
    table = table.to(device)
    if dist.is_initialized():
        dist.broadcast(table.count_C, src=0)
    return table


def gather(items: list[Any]) -> list[Any]:
    """The items of all ranks, in rank order, on every rank."""
    if not dist.is_initialized():
        return items
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]
