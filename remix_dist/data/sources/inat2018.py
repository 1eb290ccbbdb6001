"""iNaturalist 2018 as released: JSON annotations and train_val2018/, in a folder or an uncompressed tar."""

from __future__ import annotations

import json
import os
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from remix_dist.data.sources import Listing, Source
from remix_dist.types import UserError

COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}


@dataclass(frozen=True)
class Inat2018(Source):
    """Images by category id; `categories.json` beside the annotations, if there, gives names and taxonomy."""

    annotations: str | None = None

    kind: ClassVar[str] = "inat2018"

    @staticmethod
    def found(path: Path) -> bool:
        """True for a folder with train2018.json, and for any file whose name says tar."""
        if path.is_file():
            return ".tar" in path.name or path.suffix in (".tgz", ".tbz2", ".txz")
        return (path / "train2018.json").is_file() or (path / "val2018.json").is_file()

    def scan(self, split: str) -> Listing:
        """Images in the JSON's order; category ids become 0 .. C-1 in ascending order."""
        doc = self._json(f"{split}2018.json")
        if doc is None:
            where = self.annotations or (self.path if os.path.isdir(self.path) else "the tar or beside it")
            raise UserError(f"source.path={self.path}: {split}2018.json is not in {where}; "
                            "say where it is with --source.annotations FOLDER")  # fmt: skip
        try:
            named = self._json("categories.json") or doc["categories"]
            category = {c["id"]: c for c in sorted(named, key=lambda c: c["id"])}
            label = {c: k for k, c in enumerate(sorted(c["id"] for c in doc["categories"]))}
            class_of = {a["image_id"]: label[a["category_id"]] for a in doc["annotations"]}
            ids = [i["id"] for i in doc["images"]]
            paths = [i["file_name"] for i in doc["images"]]
            labels = [class_of[i] for i in ids]
            taxonomy = tuple(category[c] for c in label)
        except (KeyError, TypeError) as error:
            raise UserError(f"{split}2018.json: not iNaturalist's layout, {error} is missing") from error
        where_N, size_N = self._places(paths)
        if 2 * (size_N < 0).sum() > len(size_N):
            gone = paths[int(np.argmax(size_N < 0))]
            raise UserError(f"source.path={self.path}: most images of {split}2018.json are not there, {gone} say; "
                            "give the folder or tar that holds train_val2018/")  # fmt: skip
        names = tuple(str(c.get("name", c["id"])) for c in taxonomy)
        path_N = np.array(paths, dtype=object)
        return Listing(names, np.array(labels, np.int64), np.array(ids, np.int64), path_N, where_N, size_N, taxonomy)

    def read(self, path: str, where: int, size: int) -> bytes:
        """The file's bytes: one pread in the tar, or the file in the folder."""
        if size < 0:
            raise FileNotFoundError("listed in the JSON but not there")
        if os.path.isdir(self.path):
            return Path(self.path, path).read_bytes()
        return os.pread(_descriptor(self.path), size, where)

    def _places(self, paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if os.path.isdir(self.path):
            sizes = [_size(os.path.join(self.path, p)) for p in paths]
            return np.zeros(len(paths), np.int64), np.array(sizes, np.int64)
        members = _members(self.path, os.stat(self.path).st_mtime_ns)
        prefix = next((n.removesuffix("train_val2018/") for n in members if n.endswith("train_val2018/")), "")
        place = np.array([members.get(prefix + p, (0, -1)) for p in paths], np.int64).reshape(-1, 2)
        return place[:, 0], place[:, 1]

    def _json(self, name: str) -> dict | None:
        root = Path(self.path)
        folder = Path(self.annotations) if self.annotations else root if root.is_dir() else root.parent
        members = _members(self.path, root.stat().st_mtime_ns) if root.is_file() and not self.annotations else {}
        inside = next((place for member, place in members.items() if os.path.basename(member) == name), None)
        try:
            if inside:
                return json.loads(os.pread(_descriptor(self.path), inside[1], inside[0]))
            return json.loads((folder / name).read_bytes()) if (folder / name).is_file() else None
        except ValueError as error:
            raise UserError(f"source.path={self.path}: {name} is damaged, {error}") from error


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return -1


@lru_cache(maxsize=1)
def _descriptor(path: str) -> int:
    return os.open(path, os.O_RDONLY)


@lru_cache(maxsize=1)
def _members(path: str, mtime: int) -> dict[str, tuple[int, int]]:
    """Name -> (offset, size) of a tar's files; folders carry a trailing slash. One pass over the headers."""
    with open(path, "rb") as file:
        magic = file.read(2)
    if magic in COMPRESSED:
        raise UserError(f"source.path={path}: is compressed, so its images cannot be read one by one; "
                        f"{COMPRESSED[magic]} it or extract it first and give the .tar or the folder")  # fmt: skip
    places: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                name = member.name.removeprefix("./")
                if member.isreg():
                    places[name] = (member.offset_data, member.size)
                    head, found, _ = name.partition("train_val2018/")
                    if found:
                        places.setdefault(head + found, (0, -1))
                tar.members = []  # type: ignore[attr-defined]  # half a million headers would stay in memory
    except tarfile.TarError as error:
        raise UserError(f"source.path={path}: not a tar file, {error}") from error
    return places
