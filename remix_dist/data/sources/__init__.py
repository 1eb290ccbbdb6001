"""Where images come from: one file per kind of source, each a `Source` that lists and reads them."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from remix_dist.data.longtail import LongTail
from remix_dist.types import UserError

KINDS = {  # the order of detection: the most particular first
    "inat2018": ("Inat2018", "a folder or .tar with train2018.json, val2018.json and train_val2018/..."),
    "cifar": ("Cifar", "the folder that holds cifar-10-batches-py/ or cifar-100-python/ as downloaded"),
    "image_parquet": ("ImageParquet", "a folder of train*.parquet and test*|val*.parquet, image: {bytes, path}"),
    "image_folder": ("ImageFolder", "<path>/train/<class>/*.jpg and <path>/val/<class>/..., or <path>/<class>/*"),
    "digits": ("Digits", "the word `digits`: scikit-learn's bundled 8x8 digits, the demo"),
}


@dataclass(frozen=True, eq=False)
class Listing:
    """The N images of one split, in an order that only the source's content decides."""

    classes: tuple[str, ...]
    label_N: np.ndarray
    """int64, 0 .. C-1."""
    id_N: np.ndarray
    """int64: the source's own image ids."""
    path_N: np.ndarray
    """str objects: what a person would call the image; relative, so that moving the source changes nothing."""
    where_N: np.ndarray
    """int64: where `read` finds it (byte offset, row number, ...)."""
    size_N: np.ndarray
    """int64: bytes, 0 where unknown without reading, -1 for an image that is listed but not there."""
    taxonomy: tuple[dict, ...] | None = None
    rank_N: np.ndarray | None = None
    """int32: place in the draw of a long-tailed subset that the source itself carries."""
    lt_counts: dict[str, list[int]] | None = None
    """Imbalance ratio -> images per class: keep the rows whose rank is below."""
    stamp: str = ""
    """What else tells this content from another (file sizes, say)."""

    def __len__(self) -> int:
        return len(self.label_N)

    def take(self, rows: np.ndarray) -> Listing:
        """The listing of these rows, in their order."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith("_N")}
        chosen: dict[str, Any] = {name: None if v is None else v[rows] for name, v in given.items()}
        return replace(self, **chosen)

    def digest(self) -> str:
        """sha256 (hex) of classes, names, labels, ids and sizes: another digest is another data set."""
        head = json.dumps([self.classes, self.taxonomy, self.stamp, self.path_N.tolist()])
        arrays = (self.label_N, self.id_N, self.size_N)
        return hashlib.sha256(b"".join([head.encode(), *(a.astype("<i8").tobytes() for a in arrays)])).hexdigest()


@dataclass(frozen=True)
class Source(ABC):
    """A data set as people have it on disk. Small and picklable: files are opened where `read` runs."""

    path: str
    """What --source.path says."""

    kind: ClassVar[str]
    longtail: ClassVar[LongTail | None] = None
    """The subset that is drawn where the user names none."""

    @staticmethod
    @abstractmethod
    def found(path: Path) -> bool:
        """True if `path` looks like this kind."""

    @abstractmethod
    def scan(self, split: str) -> Listing:
        """List "train" or "val" without reading pixels; UserError if the layout is not what it should be."""

    @abstractmethod
    def read(self, path: str, where: int, size: int) -> bytes:
        """An image's file from a row of the listing; cheap when called in ascending `where`.

        FileNotFoundError if the image is listed but not there.
        """


@dataclass(frozen=True)
class SourceOptions:
    """Which images, as the command line names them."""

    path: str
    """Folder or .tar on a disk that every node mounts, or `digits` for the demo."""
    kind: Literal["auto", "inat2018", "cifar", "image_parquet", "image_folder", "digits"] = "auto"
    """How to read it; auto looks at what is there."""
    annotations: str | None = None
    """inat2018: folder of train2018.json and val2018.json where they are not in or beside the tar."""
    val_fraction: float | None = None
    """image_folder without train/ and val/: share of each class held out (0.1 unless told)."""
    val_per_class: int | None = None
    """image_folder without train/ and val/: images of each class held out, instead of a share."""


def open_source(options: SourceOptions) -> Source:
    """The source that the options name; UserError if nothing there is known or an option has no effect."""
    if "://" in options.path:
        raise UserError(f"source.path={options.path}: sources are read from disk; copy or mount it first")
    path = Path(options.path).expanduser()
    known = {kind: _class(kind) for kind in KINDS}
    kinds = [options.kind] if options.kind != "auto" else [k for k, cls in known.items() if cls.found(path)]
    if "digits" not in kinds and not path.exists():
        raise UserError(f"source.path={options.path}: no such file or folder; {_kinds()}")
    if not kinds:
        raise UserError(f"source.path={options.path}: no known kind of source; {_kinds()}")
    cls = known[kinds[0]]
    knobs = {f.name for f in fields(cls)} - {"path"}
    given = {k: v for k, v in vars(options).items() if k not in ("path", "kind") and v is not None}
    if idle := sorted(set(given) - knobs):
        raise UserError(f"source.{idle[0]}={given[idle[0]]}: has no effect on a {kinds[0]} source; leave it out")
    return cls(str(path), **given)


def _class(kind: str) -> type[Source]:
    return getattr(import_module(f"{__name__}.{kind}"), KINDS[kind][0])


def _kinds() -> str:
    return "known kinds: " + "; ".join(f"{kind} ({what})" for kind, (_, what) in KINDS.items())
