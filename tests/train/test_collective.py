"""The collectives on real gloo ranks, and without a process group."""

import pytest
import torch
from ranks import on_ranks

from remix_dist.train.collective import all_reduce, broadcast_table, from_rank_zero, gather, rank_world
from remix_dist.types import ClassTable

CPU = torch.device("cpu")


def table(*counts):
    return ClassTable(torch.tensor(counts))


def failure(counts):
    try:
        broadcast_table(table(*counts), CPU)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def answers():
    rank, world = rank_world()
    shared = broadcast_table(table(5, 3, 1), CPU)
    return {
        "place": (rank, world),
        "sum": all_reduce(torch.tensor([1.0 + rank, 10.0])).tolist(),
        "zero": from_rank_zero({"rank": rank}),
        "gathered": gather([f"{rank}{k}" for k in range(rank)]),
        "counts": shared.count_C.tolist(),
        "other counts": failure([5, 3, 1 + rank]),
        "other classes": failure([5, 3, 1][: 3 - rank]),
        "alive": all_reduce(torch.ones(2)).tolist(),
    }


def test_alone_they_are_the_identity():
    tensor, items = torch.arange(3), [1]
    assert rank_world() == (0, 1)
    assert all_reduce(tensor) is tensor and tensor.tolist() == [0, 1, 2]
    assert from_rank_zero(items) is items and gather(items) == [1]
    assert broadcast_table(table(4, 2), CPU).count_C.tolist() == [4, 2]


@pytest.fixture(scope="module")
def found():
    return on_ranks(2, answers)


def test_ranks_agree(found):
    for rank, one in enumerate(found):
        assert one["place"] == (rank, 2)
        assert one["sum"] == [3.0, 20.0]
        assert one["zero"] == {"rank": 0}
        assert one["gathered"] == ["10"]
        assert one["counts"] == [5, 3, 1]


def test_other_class_counts_on_a_rank_stop_all_ranks_with_a_reason(found):
    for one in found:
        for kind in ("other counts", "other classes"):
            assert "class counts differ between ranks" in one[kind] and "data.url" in one[kind]
        assert one["alive"] == [2.0, 2.0]  # nobody is left waiting in a half-done broadcast
