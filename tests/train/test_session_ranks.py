"""Runs on two and three ranks: killed, continued, and moved to another world size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import on_ranks
from session_parts import a_run, assert_every_row_once_an_epoch, assert_same_run, final, killed, url_of

from remix_dist.train.collective import rank_world
from remix_dist.train.session import Hooks, Session

torch.set_num_threads(1)


def start_rank(run):
    return Session(run, torch.device("cpu"), Hooks()).train()


def two_ranks(url, other, storage):
    """What a world of two can answer: undisturbed, killed within epoch 1 and 2 and continued, left, and misled."""
    whole, broken, moved = (a_run(url, storage, name) for name in ("whole2", "broken2", "moved"))
    results = [start_rank(whole)]
    for step in (9, 18):
        killed(start_rank, broken, step)
    results.append(start_rank(broken))
    killed(start_rank, moved, 17)
    again = start_rank(whole)
    misled = a_run(other if rank_world()[0] else url, storage, "misled")
    try:
        start_rank(misled)
        error = ""
    except RuntimeError as found:
        error = str(found)
    return (
        [r and {k: r[k] for k in ("eval", "mix", "history", "world", "restarts")} for r in results],
        bool(again),
        error,
    )


def three_ranks(url, storage):
    """A world of three continues what two began, and is killed itself."""
    whole, broken, moved = (a_run(url, storage, name) for name in ("whole3", "broken3", "moved"))
    results = [start_rank(moved), start_rank(whole)]
    killed(start_rank, broken, 13)
    results.append(start_rank(broken))
    return [r and {k: r[k] for k in ("eval", "mix", "history", "world", "restarts")} for r in results]


@pytest.fixture(scope="module")
def worlds(digits_url, other_url, tmp_path_factory):
    """The storage of all runs on ranks, and what each rank gave."""
    storage = str(tmp_path_factory.mktemp("worlds"))
    return (
        storage,
        on_ranks(2, two_ranks, digits_url, other_url, storage),
        on_ranks(3, three_ranks, digits_url, storage),
    )


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_that_are_killed_and_continue_give_the_same_run_bit_for_bit(worlds, digits_url, world):
    one, other = (a_run(digits_url, worlds[0], f"{name}{world}") for name in ("broken", "whole"))
    found = worlds[1][0][0] if world == 2 else worlds[2][0][1:]
    assert found[0]["world"] == found[1]["world"] == world and found[1]["restarts"] == (2 if world == 2 else 1)
    assert_same_run(one, other, found[1], found[0])
    assert_every_row_once_an_epoch(one, epochs=1)
    assert len(list(Path(url_of(one), "trace").iterdir())) >= 2 * world


def test_only_rank_zero_has_the_result_and_a_finished_run_stays(worlds):
    (zero, again, _), (one, _, _) = worlds[1]
    assert all(zero) and not any(one) and again


@pytest.mark.parametrize("name", ["moved", "whole2", "whole3"])
def test_a_run_at_another_world_size_is_the_same_to_rounding(worlds, whole, digits_url, name):
    """`moved` began on two ranks and went on, within an epoch, on three."""
    run = a_run(digits_url, worlds[0], name)
    found, expected = final(run), final(whole[0])
    assert found.keys() == expected.keys()
    for key in expected:
        if key.startswith("meter"):
            assert np.array_equal(found[key], expected[key]), key
        else:
            scale = np.abs(expected[key]).max() + 1e-6
            np.testing.assert_allclose(found[key] / scale, expected[key] / scale, atol=1e-3, err_msg=key)
    order = assert_every_row_once_an_epoch(run, epochs=1)
    assert order == assert_every_row_once_an_epoch(whole[0], epochs=1)


def test_ranks_that_read_other_class_counts_stop(worlds):
    for _, _, error in worlds[1]:
        assert "class counts differ between ranks" in error and "data.url" in error
    assert not Path(worlds[0], "misled").exists()
