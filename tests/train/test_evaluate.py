"""Evaluation against scikit-learn and literal loops, the same at any number of ranks."""

import types

import numpy as np
import pytest
import torch
from ranks import on_ranks
from sklearn import metrics as oracle
from torch import nn

from remix_dist.config.run import Train
from remix_dist.data.augment import Augment
from remix_dist.data.cache import ShardCache
from remix_dist.data.manifest import open_shard_set
from remix_dist.data.plan import Plan
from remix_dist.data.stream import Stream
from remix_dist.model import build_model
from remix_dist.train.collective import rank_world
from remix_dist.train.evaluate import evaluate, shot_groups
from remix_dist.types import Batch, generator

torch.set_num_threads(1)
CPU = torch.device("cpu")


class Rows:
    """A stand-in for a Stream: its images name their row."""

    augment = types.SimpleNamespace(normalize=lambda images: images)

    def __init__(self, label_N, classes):
        self.label_N, self.shards = label_N, types.SimpleNamespace(classes=[str(c) for c in range(classes)])

    def evaluation(self, rank, world):
        n = len(self.label_N)
        rows = np.arange(rank * n // world, (rank + 1) * n // world)
        for part in (rows[i : i + 8] for i in range(0, len(rows), 8)):
            images = torch.from_numpy(np.stack([part // 256, part % 256], 1).astype(np.uint8))[:, :, None, None]
            yield Batch(images, torch.from_numpy(self.label_N[part]), torch.empty(0), part, 0, 0)


class Table(nn.Module):
    """Logits by row."""

    def __init__(self, logits_NC):
        super().__init__()
        self.logits_NC, self.modes = torch.from_numpy(logits_NC), []

    def forward(self, images):
        self.modes.append(self.training)
        return self.logits_NC[(images[:, 0, 0, 0] * 256 + images[:, 1, 0, 0]).long()]


def example(classes, rows=301, empty=(), sharp=2.0):
    rng = generator(7, "evaluate", classes)
    label_N = rng.choice([c for c in range(classes) if c not in empty], rows)
    logits_NC = rng.normal(0, sharp, (rows, classes)).astype(np.float32)
    logits_NC[np.arange(rows), label_N] += rng.choice([0, 2], rows)
    return label_N, logits_NC


def groups(classes):
    return {"many": np.arange(2), "medium": np.arange(2, classes - 1), "few": np.array([classes - 1])}


def scores(label_N, logits_NC, parts=None):
    classes = logits_NC.shape[1]
    return evaluate(Table(logits_NC), Rows(label_N, classes), parts or groups(classes), CPU, bf16=False)


def softmax(logits_NC):
    e = np.exp(logits_NC.astype(np.float64) - logits_NC.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_scores_are_scikit_learns():
    label_N, logits_NC = example(9)
    found, p_NC = scores(label_N, logits_NC), softmax(logits_NC)
    guess_N = p_NC.argmax(1)
    assert found["top1"] == pytest.approx(oracle.accuracy_score(label_N, guess_N))
    assert found["top5"] == pytest.approx(oracle.top_k_accuracy_score(label_N, p_NC, k=5))
    assert found["balanced"] == pytest.approx(oracle.balanced_accuracy_score(label_N, guess_N))
    assert found["loss"] == pytest.approx(oracle.log_loss(label_N, p_NC), rel=1e-6)
    recall_C = oracle.recall_score(label_N, guess_N, average=None)
    assert found["per_class"] == pytest.approx(recall_C.tolist())
    assert found["support"] == np.bincount(label_N, minlength=9).tolist()
    assert [found[k] for k in ("many", "medium", "few")] == pytest.approx(
        [recall_C[:2].mean(), recall_C[2:8].mean(), recall_C[8]]
    )
    assert 0.1 < found["top1"] < found["top5"] < 1


def test_calibration_error_over_fifteen_equal_bins_is_a_literal_loops():
    label_N, logits_NC = example(6, rows=700)
    logits_NC[:5] = 0.0
    logits_NC[:5, 2] = 1000.0  # a confidence of exactly one
    p_NC = softmax(logits_NC)
    bins, total = [], 0.0
    for k in range(15):
        inside = [n for n in range(700) if k / 15 < p_NC[n].max() <= (k + 1) / 15]
        confidence = sum(p_NC[n].max() for n in inside) / max(len(inside), 1)
        accuracy = sum(p_NC[n].argmax() == label_N[n] for n in inside) / max(len(inside), 1)
        bins.append({"count": len(inside), "confidence": confidence, "accuracy": accuracy})
        total += len(inside) / 700 * abs(confidence - accuracy)
    found = scores(label_N, logits_NC)
    assert [b["count"] for b in found["ece_bins"]] == [b["count"] for b in bins]
    for one, other in zip(found["ece_bins"], bins, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert found["ece"] == pytest.approx(total, rel=1e-5) and total > 0.02
    assert bins[0]["count"] == bins[1]["count"] == 0 < bins[14]["count"]


def test_a_class_without_rows_is_none_and_not_averaged():
    label_N, logits_NC = example(7, empty=(2, 6))
    logits_NC[:40, 2] += 50  # it is predicted all the same
    found = scores(label_N, logits_NC)
    guess_N = logits_NC.argmax(1)
    recall = {c: float((guess_N[label_N == c] == c).mean()) for c in (0, 1, 3, 4, 5)}
    assert [c for c, a in enumerate(found["per_class"]) if a is None] == [2, 6]
    assert found["support"][2] == found["support"][6] == 0
    assert found["balanced"] == pytest.approx(np.mean(list(recall.values())))
    assert found["few"] is None and found["many"] == pytest.approx((recall[0] + recall[1]) / 2)
    assert found["medium"] == pytest.approx((recall[3] + recall[4] + recall[5]) / 3)
    assert scores(label_N, logits_NC, {"many": np.array([], int)})["many"] is None


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_with_five_classes_or_fewer_top5_is_everything(classes):
    found = scores(*example(classes))
    assert found["top5"] == 1.0 and 0.3 < found["top1"] < 1


def test_the_model_is_in_evaluation_mode_meanwhile_and_in_training_mode_after():
    label_N, logits_NC = example(6)
    model = Table(logits_NC)
    evaluate(model, Rows(label_N, 6), groups(6), CPU, bf16=False)
    assert not any(model.modes) and model.training


def test_groups_are_by_training_images_and_their_bounds_are_knobs():
    count_C = np.array([500, 101, 100, 21, 20, 19, 1])
    found = {k: v.tolist() for k, v in shot_groups(count_C, Train()).items()}
    assert found == {"many": [0, 1], "medium": [2, 3, 4], "few": [5, 6]}
    found = {k: v.tolist() for k, v in shot_groups(count_C, Train(many_above=20, few_below=20)).items()}
    assert found == {"many": [0, 1, 2, 3], "medium": [4], "few": [5, 6]}


def both(url):
    """A made-up set of 301 rows, and the digits through the real stream (400 rows over uneven ranks)."""
    label_N, logits_NC = example(7, empty=(2,))
    shards = open_shard_set(url, "val")
    plan = Plan(shards.label_N, shards.shard_N, seed=0, global_batch=48)
    stream = Stream(shards, ShardCache(shards, "unused", 0), plan, Augment(size=8, resize=8), micro_batch=48)
    model = build_model("resnet8-w4", 10, seed=1)
    rows = sum(len(b.labels_B) for b in stream.evaluation(*rank_world()))
    real = evaluate(model, stream, shot_groups(shards.count_C, Train()), CPU, bf16=False)
    tiny = evaluate(Table(logits_NC[:2]), Rows(label_N[:2], 7), groups(7), CPU, bf16=False)  # ranks without a row
    return scores(label_N, logits_NC), real, tiny, rows


@pytest.fixture(scope="module")
def worlds(digits_url):
    return {1: [both(digits_url)], 2: on_ranks(2, both, digits_url), 3: on_ranks(3, both, digits_url)}


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_gets_the_numbers_of_one_process(worlds, world):
    def close(one, other):
        if isinstance(one, dict):
            assert one.keys() == other.keys()
            for key in one:
                close(one[key], other[key])
        elif isinstance(one, list):
            assert len(one) == len(other)
            for a, b in zip(one, other, strict=True):
                close(a, b)
        else:
            assert one == (pytest.approx(other, rel=1e-6) if isinstance(other, float) else other)

    assert sum(rank[3] for rank in worlds[world]) == worlds[1][0][3] == 400
    for rank in worlds[world]:
        for one, other in zip(rank[:3], worlds[1][0][:3], strict=True):
            close(one, other)
            for key in ("top1", "top5", "balanced", "per_class", "support"):  # integer counts: no rounding at all
                assert one[key] == other[key]
            assert [b["count"] for b in one["ece_bins"]] == [b["count"] for b in other["ece_bins"]]
