"""Exact distributed evaluation: every row once, integer counts per class, no padding duplicates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from remix_dist.config.run import Train
from remix_dist.data.stream import Stream
from remix_dist.train.collective import all_reduce, rank_world

ECE_BINS = 15


def shot_groups(count_C: np.ndarray, train: Train) -> dict[str, np.ndarray]:
    """Class indices of many-, medium- and few-shot classes by their training images."""
    many, few = count_C > train.many_above, count_C < train.few_below
    return {k: np.flatnonzero(v) for k, v in (("many", many), ("medium", ~many & ~few), ("few", few))}


@torch.no_grad()
def evaluate(
    model: nn.Module, stream: Stream, groups: dict[str, np.ndarray], device: torch.device, bf16: bool
) -> dict[str, Any]:
    """Top-1, top-5, balanced accuracy, many/medium/few (means over classes), ECE and loss of the whole split.

    Every rank calls it with its own stream; all get the same numbers. A group without rows is None.
    """
    classes = len(stream.shards.classes)
    correct_C, top5_C, support_C = (torch.zeros(classes, dtype=torch.int64, device=device) for _ in range(3))
    bins = torch.zeros(3, ECE_BINS, dtype=torch.float64, device=device)  # count, confidence, correct
    loss = torch.zeros(1, dtype=torch.float64, device=device)
    model.eval()
    for batch in stream.evaluation(*rank_world()):
        images_BCHW = stream.augment.normalize(batch.images_BCHW.to(device, non_blocking=True).float())
        labels_B = batch.labels_B.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits_BC = model(images_BCHW)
        log_p_BC = logits_BC.float().log_softmax(1)
        top_BK = log_p_BC.topk(min(5, classes), dim=1).indices
        hit_B = (top_BK[:, 0] == labels_B).long()
        support_C.index_add_(0, labels_B, torch.ones_like(labels_B))
        correct_C.index_add_(0, labels_B, hit_B)
        top5_C.index_add_(0, labels_B, (top_BK == labels_B[:, None]).any(1).long())
        confidence_B = log_p_BC.gather(1, top_BK[:, :1])[:, 0].double().exp()
        bin_B = (confidence_B * ECE_BINS).ceil().long().sub(1).clamp(0, ECE_BINS - 1)
        for row, value_B in zip(bins, (torch.ones_like(confidence_B), confidence_B, hit_B.double()), strict=True):
            row.index_add_(0, bin_B, value_B)
        loss -= log_p_BC.gather(1, labels_B[:, None]).double().sum()
    model.train()
    correct, top5, support, tally, total = (
        all_reduce(t).cpu().numpy() for t in (correct_C, top5_C, support_C, bins, loss)
    )
    return _summary(correct, top5, support, tally, total, groups)


def _summary(
    correct_C: np.ndarray,
    top5_C: np.ndarray,
    support_C: np.ndarray,
    bins: np.ndarray,
    loss: np.ndarray,
    groups: dict[str, np.ndarray],
) -> dict[str, Any]:
    rows, seen_C = int(support_C.sum()), support_C > 0
    acc_C = np.where(seen_C, correct_C / np.maximum(support_C, 1), np.nan)
    _, confidence, correct = bins / np.maximum(bins[0], 1)
    group = {k: float(acc_C[c][seen_C[c]].mean()) if seen_C[c].any() else None for k, c in groups.items()}
    return {
        "top1": int(correct_C.sum()) / rows,
        "top5": int(top5_C.sum()) / rows,
        "balanced": float(acc_C[seen_C].mean()),
        **group,
        "ece": float((np.abs(confidence - correct) * bins[0]).sum() / rows),
        "loss": float(loss[0]) / rows,
        "per_class": [float(a) if s else None for a, s in zip(acc_C, seen_C, strict=True)],
        "support": support_C.tolist(),
        "ece_bins": [
            {"count": int(n), "confidence": float(c), "accuracy": float(a)}
            for n, c, a in zip(bins[0], confidence, correct, strict=True)
        ],
    }
