"""Runs and data that several test files of the training loop share."""

import pytest
from session_parts import a_run

from remix_dist.data.sources import SourceOptions
from remix_dist.launch.local import train_local
from remix_dist.launch.shards import MakeShards, make_shards


@pytest.fixture(scope="module")
def whole(digits_url, tmp_path_factory):
    """The run that nobody disturbs, and its result."""
    run = a_run(digits_url, tmp_path_factory.mktemp("whole"))
    return run, train_local(run)


@pytest.fixture(scope="module")
def other_url(tmp_path_factory):
    """The digits with another long tail, so other class counts."""
    url = str(tmp_path_factory.mktemp("other"))
    make_shards(MakeShards(SourceOptions("digits"), url, workers=0, longtail="exp", ratio=10.0), say=lambda line: None)
    return url
