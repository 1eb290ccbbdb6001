"""docs/knobs.md from the dataclasses: python -m remix_dist.config.document > docs/knobs.md"""

import ast
import dataclasses
import inspect
import itertools
import json
from typing import Any

from remix_dist.config.parse import AXES, METHODS
from remix_dist.config.run import Run

HEAD = """# Knobs

One dotted name per knob, on the command line (`--optim.lr 0.05`) and in YAML (`--config FILE`; `--print_config` writes
one). Made by `python -m remix_dist.config.document > docs/knobs.md`; the texts live in the code, so edit them there.
"""


def document() -> str:
    """The Markdown text: a table for the run, for each group of knobs and for each method of an axis."""
    groups = {"": Run(), **_groups("", Run())}
    parts = [HEAD, *(_table(f"`{key}`" if key else "The run", key, group) for key, group in groups.items())]
    for axis in AXES:
        ours = {name: m for name, m in sorted(METHODS[axis].items()) if m.__module__.startswith("remix_dist.")}
        parts += [_table(f"`{axis}`: {name}", axis, method()) for name, method in ours.items()]
    return "\n".join(parts)


def _groups(prefix: str, owner: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(owner):
        value, key = getattr(owner, field.name), prefix + field.name
        if dataclasses.is_dataclass(value) and key not in AXES:
            found |= {key: value, **_groups(f"{key}.", value)}
    return found


def _table(title: str, prefix: str, owner: Any) -> str:
    fields, texts = dataclasses.fields(owner), _texts(type(owner))
    own = [f for f in fields if f.name in AXES or not dataclasses.is_dataclass(getattr(owner, f.name))]
    intro = " ".join((inspect.getdoc(type(owner)) or "").split())
    lines = [f"## {title}", "", intro, *(["", "| knob | default | what it does |", "|---|---|---|"] if own else [])]
    for field in own:
        value = getattr(owner, field.name)
        shown = type(value).__name__ if field.name in AXES else json.dumps(value)
        lines.append(f"| `{f'{prefix}.{field.name}'.lstrip('.')}` | `{shown}` | {texts[field.name]} |")
    return "\n".join([*lines, ""])


def _texts(owner: type) -> dict[str, str]:
    """The string below each field."""
    body: list[Any] = ast.parse(inspect.getsource(owner)).body[0].body  # type: ignore[attr-defined]
    pairs: Any = (p for p in itertools.pairwise(body) if isinstance(p[0], ast.AnnAssign) and isinstance(p[1], ast.Expr))
    return {a.target.id: " ".join(b.value.value.split()).replace("|", "\\|").replace("<", "\\<") for a, b in pairs}


if __name__ == "__main__":
    print(document(), end="")
