"""Train a classifier on long-tailed images with Remix (or any method by flags), on Ray.

    python jobs/inat_remix.py                                  the built-in demo (digits, 2 CPU workers)
    python jobs/inat_remix.py --data.url /data/shards          your shards (jobs/make_shards.py writes them)
    ray job submit --working-dir . -- python jobs/inat_remix.py --data.url s3://bucket/inat2018 \\
        --config jobs/presets/inat2018-remix-drw.yaml --storage s3://bucket/runs --ray.workers 8

The same command again continues the run; --dry_run shows the plan and its cost; --print_config the whole recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from remix_dist.config.parse import guarded, parse_run
from remix_dist.config.prepare import prepare
from remix_dist.launch.train import train
from remix_dist.types import UserError


def main(words: Sequence[str] | None = None) -> None:
    """Parse, check, train, report."""
    run, speed, given = parse_run(words, __doc__ or "")
    if run.data.url == "demo" and speed is not None:
        raise UserError("dry_run: the demo's recipes are fixed; give --data.url with your shards")
    if run.data.url == "demo":
        from remix_dist.launch.demo import run_demo  # scikit-learn and the report are extras

        run_demo(run, given)
    elif speed is not None:
        from remix_dist.launch.dry_run import describe

        print(describe(prepare(run), speed))
    else:
        from remix_dist.launch.finish import finish

        run = prepare(run)
        finish(train([run]), f"{run.storage}/{run.name}", run.export)


if __name__ == "__main__":
    sys.exit(guarded(main, "inat_remix"))
