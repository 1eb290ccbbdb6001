"""Words to a Run: command line and YAML by jsonargparse, and errors that are one line with the way out."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from remix_dist import labels, loss, mix, rebalance  # noqa: F401  (finds every method file)
from remix_dist.config.run import Run, flatten
from remix_dist.types import LabelRule, Loss, Mixer, Rebalance, UserError

AXES: dict[str, type] = {"mix": Mixer, "labels": LabelRule, "loss": Loss, "rebalance": Rebalance}
KINDS = {"tuple": "a list, as [30,60]", "NoneType": "null", "bool": "true or false", "int": "a whole number",
         "float": "a number", "str": "a word"}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {}
for _axis, _base in AXES.items():
    METHODS[_axis] = {str(m.__name__): m for m in list[Any](_base.__subclasses__())}


class Help(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the commands of a job's docstring on lines of their own."""


def parser(description: str) -> jsonargparse.ArgumentParser:
    """The parser of a Run: --config FILE, --print_config, --dry_run and a flag per knob, each explained."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    usage = "%(prog)s [--config FILE] [--dry_run] [--print_config] [--KNOB VALUE ...]"
    out = jsonargparse.ArgumentParser(
        prog="inat_remix.py", usage=usage, description=description, exit_on_error=False, allow_abbrev=False,
        formatter_class=Help,
    )  # fmt: skip
    out.add_argument(
        "--config", action="config", help="YAML file with any of the knobs below, e.g. jobs/presets/*.yaml"
    )
    out.add_argument("--dry_run", action="store_true", help="Print the resolved plan and what it costs, then stop.")
    out.add_argument("--dry_run_speed", type=float, default=2500.0, help="Images/s per worker that --dry_run assumes.")
    out.add_class_arguments(Run, None)
    return out


def parse_run(words: Sequence[str] | None, description: str) -> tuple[Run, float | None, set[str]]:
    """(run, images/s of a --dry_run or None, knobs that differ from the defaults); UserError on a mistake."""
    words = list(sys.argv[1:] if words is None else words)
    arguments = parser(description)
    _check_files(words)
    try:
        values = arguments.parse_args(words)
        run = build(values, arguments)
    except (jsonargparse.ArgumentError, ValueError) as error:
        raise error if isinstance(error, UserError) else UserError(explain(str(error))) from error
    defaults, found = flatten(Run().to_dict()), flatten(run.to_dict())
    return run, values.dry_run_speed if values.dry_run else None, {k for k in found if found[k] != defaults.get(k, ...)}


def build(values: Any, arguments: jsonargparse.ArgumentParser) -> Run:
    """The Run of parsed values."""
    made = arguments.instantiate(values) if hasattr(arguments, "instantiate") else arguments.instantiate_classes(values)
    for axis, base in AXES.items():
        if type(made[axis]) is base:
            raise UserError(_unknown_method(axis, base.__name__))
    return Run(**{k: v for k, v in vars(made).items() if k in Run.__dataclass_fields__})


def run_from_dict(tree: dict[str, Any]) -> Run:
    """The Run of a nested dict as Run.to_dict() gives it: what run.yaml and a preset hold."""
    arguments = parser("")
    return build(arguments.parse_object(tree), arguments)


def knobs() -> list[str]:
    """Every dotted name, for did-you-mean and the documentation."""
    names = set(flatten(Run().to_dict())) | {"config", "dry_run", "dry_run_speed", "print_config", "help"}
    names = {n.replace(".init_args", "").replace(".class_path", "") for n in names}
    for axis, methods in METHODS.items():
        names |= {f"{axis}.{field}" for method in methods.values() for field in method.__dataclass_fields__}
    return sorted(names | {n.rpartition(".")[0] for n in names if "." in n})


def explain(message: str) -> str:
    """jsonargparse's words as one line that names the key, the value and the nearest right name."""
    line = " ".join(re.sub(r"Problem with given class_path '[\w.]*?(\w+)':", r"\1:", message).split())
    if found := re.search(r'Parser key "(\w+)": Expected a dot import path string: (.*)', line):
        return _unknown_method(found[1], found[2])
    if found := re.search(r'Parser key "([\w.]+)":? Unable to load config \'(.*?)\'', line):
        return f"{found[1]} = {found[2]}: a group of knobs, not one; give its knobs, as --{found[1]}.KNOB VALUE"
    if found := re.search(r'Parser key "(\w+)".*Option \'(\w+)\' is not accepted', line):
        axis, word = found[1], found[2]
        own = next((n for n in METHODS.get(axis, {}) if f"{n}:" in line), "")
        fields = sorted(METHODS[axis][own].__dataclass_fields__) if own else []
        has = ", ".join(fields) or "no knobs"
        return f"unknown knob '{axis}.{word}': {own} has {has}{did_you_mean(word, fields)}"
    for pattern in (r"unrecognized arguments: -*([^\s=]+)", r"Option '([\w.]+)' is not accepted",
                    r"Group '([\w.]+)' does not accept option '(\w+)'"):  # fmt: skip
        if found := re.search(pattern, line):
            word = ".".join(found.groups())
            return f"unknown knob {word!r}{did_you_mean(word, knobs())}; --help lists all"
    for pattern in (r"Expected an? (.*?)\.? Got value: (.*)", r"Subtypes: \[(.*?)\] Errors: .* Given value: (.*)"):
        if found := re.search(pattern, line):
            key = ".".join(re.findall(r'Parser key "([\w.]+)"', line))
            kind = re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", found[1])
            kind = re.sub(r"<class '(\w+)'>", lambda m: KINDS.get(m[1], m[1]), kind).replace(", null", " or null")
            return f"{key} = {found[2]}: must be {kind.replace('tuple with 3', 'a list of 3')}"
    return line


def did_you_mean(word: str, names: Sequence[str]) -> str:
    """ "; did you mean 'x'?" for the nearest name, or nothing."""
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    for part in (word.rpartition(".")[2], word.partition(".")[0]):
        near = near or difflib.get_close_matches(part, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _unknown_method(axis: str, name: str) -> str:
    known = list(METHODS.get(axis, {}))
    return f"{axis} = {name}: unknown; it is one of {', '.join(sorted(known))}{did_you_mean(name, known)}"


def _check_files(words: Sequence[str]) -> None:
    """Refuse a --config file that is none, by name: jsonargparse does not say which file it could not parse."""
    for flag, after in zip(words, [*words, ""][1:], strict=True):
        key, _, inline = flag.partition("=")
        if key != "--config" or not (file := inline or after):
            continue
        try:
            tree = yaml.safe_load(Path(file).read_bytes())
        except OSError as error:
            why, way = error.strerror, "give a YAML file of knobs, such as those in jobs/presets/"
        except yaml.MarkedYAMLError as error:
            why, way = f"line {error.problem_mark.line + 1 if error.problem_mark else '?'}: {error.problem}", "mend it"
        except yaml.YAMLError:
            why, way = "no text file", "give a YAML file of knobs, such as those in jobs/presets/"
        else:
            if isinstance(tree, dict):
                continue
            why, way = "holds no `knob: value` lines", "--print_config shows the form"
        raise UserError(f"config = {file}: {why}; {way}")


def guarded(main: Callable[[], int | None], name: str) -> int:
    """Exit code of a job: UserErrors become one line on stderr and code 2, Ctrl-C 130; no traceback for either."""
    try:
        return main() or 0
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command continues", file=sys.stderr)
        return 130
