"""Write a data set as shards that training streams.

    python jobs/make_shards.py --source.path /data/inat2018.tar --url s3://bucket/inat2018 --store short288q90
    python jobs/make_shards.py --source.path digits --url /tmp/digits --workers 0

Run the same command again after a failure: finished shards stay. Ray starts on this machine alone; with
RAY_ADDRESS=auto (and under `ray job submit`) the tasks run on the cluster, which must see source.path.
"""

from __future__ import annotations

import sys

import jsonargparse

from remix_dist.config.parse import Help
from remix_dist.launch.shards import MakeShards, make_shards
from remix_dist.types import UserError


def main(args: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 a mistake that one line on stderr explains."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    try:
        job = jsonargparse.auto_cli(
            MakeShards, as_positional=False, args=args, exit_on_error=False,
            prog="make_shards.py", description=__doc__, formatter_class=Help,
        )  # fmt: skip
        make_shards(job)
    except (UserError, jsonargparse.ArgumentError) as error:
        print(f"make_shards: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
