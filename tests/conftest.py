"""Fixtures that several test files share."""

from __future__ import annotations

import numpy as np
import pytest

from remix_dist.data.sources import SourceOptions, open_source
from remix_dist.data.sources.cifar import png
from remix_dist.data.write import finish, plan_split, write_shard
from remix_dist.launch.shards import MakeShards, make_shards


@pytest.fixture(scope="session")
def digits_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A local folder with the shard sets `train` (long-tailed) and `val` of scikit-learn's digits."""
    url = str(tmp_path_factory.mktemp("digits"))
    make_shards(MakeShards(SourceOptions("digits"), url, workers=0), say=lambda line: None)
    return url


@pytest.fixture(scope="session")
def pictures_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A local folder: `train` (61 PNGs of 5 classes in several shards) and `val` (23). Copy it to damage it."""
    images, url = tmp_path_factory.mktemp("images"), str(tmp_path_factory.mktemp("pictures"))
    rng = np.random.default_rng(0)
    for split, counts in {"train": (20, 15, 11, 8, 7), "val": (5, 5, 5, 4, 4)}.items():
        for label, count in enumerate(counts):
            folder = images / split / f"class{label}"
            folder.mkdir(parents=True)
            for n in range(count):
                (folder / f"{n:02d}.png").write_bytes(png(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)))
    for split in ("train", "val"):
        plan = plan_split(open_source(SourceOptions(str(images))), url, split, shard_bytes=12 << 10)
        finish(plan, {plan.key(n): write_shard(plan.task(n)) for n in range(len(plan.rows))})
    return url
