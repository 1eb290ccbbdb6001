"""Which file of this package builds a name. A family of backbones is a sibling file `nets_*.py`.

It defines `names`, `accepts`, `build`, `stages` and `plain` (nets_torchvision.py says what each gives) and is
found by its file name, so a new family needs no edit anywhere.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

from remix_dist import model
from remix_dist.types import UserError


def modules() -> Iterator[ModuleType]:
    """Every family's module, imported when its turn comes: a small net need not wait for torchvision."""
    for found in pkgutil.iter_modules(model.__path__):
        if found.name.startswith("nets_"):
            yield importlib.import_module(f"{model.__name__}.{found.name}")


def find(name: str) -> ModuleType:
    """The family that builds `name`; UserError with the nearest known names if there is none."""
    for family in modules():
        if family.accepts(name):
            return family
    known = [known for family in modules() for known in family.names()]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or ["resnet32", "resnet50"]
    raise UserError(f"model {name!r} is unknown; did you mean {' or '.join(near)}?")
