"""Names what is in images: python jobs/predict.py --model EXPORT_DIR --input PATH_OR_URL ... [--output FILE]."""

import csv
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
from jsonargparse import ArgumentParser
from tqdm import tqdm

from remix_dist.train.predict import predict
from remix_dist.types import UserError


def counted(rows):
    """The same rows, with a progress bar on a terminal and a line every ten seconds elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(rows, unit=" images")
        return
    done, last = 0, time.monotonic()
    for done, row in enumerate(rows, 1):
        if time.monotonic() - last > 10:
            print(f"{done} images", file=sys.stderr, flush=True)
            last = time.monotonic()
        yield row


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or URL of an exported model")
    images = "images, folders (with all below), URLs, or one split of a shard set such as s3://bucket/set/val"
    parser.add_argument("--input", required=True, nargs="+", metavar="PATH_OR_URL", help=images)
    parser.add_argument("--topk", type=int, default=5, help="classes per image")
    parser.add_argument("--output", help="a .csv or .parquet file; without it the rows go to stdout as CSV")
    parser.add_argument("--batch", type=int, default=64, help="images per forward pass")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ...")
    args = parser.parse_args()
    if args.output and not args.output.endswith((".csv", ".parquet")):
        sys.exit(f"error: output {args.output} must end in .csv or .parquet")
    try:
        rows = list(counted(predict(args.model, args.input, topk=args.topk, batch=args.batch, device=args.device)))
        if (args.output or "").endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows), args.output)
        else:
            with open(args.output, "w", newline="", encoding="utf-8") if args.output else sys.stdout as file:
                writer = csv.DictWriter(file, rows[0].keys() if rows else ["path"])
                writer.writeheader()
                writer.writerows(rows)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    bad = [row for row in rows if row["error"]]
    print(f"{len(rows)} images, {len(bad)} unreadable" + (f", first: {bad[0]['path']}" if bad else ""), file=sys.stderr)


if __name__ == "__main__":
    main()
