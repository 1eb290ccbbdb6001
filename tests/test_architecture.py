"""The picture of the project, kept true: who may import whom, how long things are, where state may hide."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "remix_dist"
SOURCES = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "jobs").glob("*.py"))
TREES = {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text()) for file in SOURCES}

PARTS = {"data", "mix", "labels", "loss", "rebalance", "model"}
MAY_IMPORT = {  # layer: layers below it
    "types": set(),
    **{part: {"types"} for part in PARTS},
    "config": PARTS | {"types"},
    "train": PARTS | {"types", "config"},
    "report": {"types", "config"},
    "launch": PARTS | {"types", "config", "train", "report"},
    "jobs": PARTS | {"types", "config", "train", "report", "launch"},
}
ONLY_IN = {  # what may be imported where: folders, or single files with the reason
    "ray": ("remix_dist/launch/", "jobs/"),
    "torch.distributed": ("remix_dist/train/",),
    "fsspec": (
        "remix_dist/data/",
        "remix_dist/train/checkpoint.py",
        "remix_dist/model/weights.py",  # pretrained weights by URL
        "remix_dist/report/page.py",  # writes one file beside the run
    ),
}
PATH_OF_A_BATCH = [
    "jobs/inat_remix.py",
    "remix_dist/launch/train.py",
    "remix_dist/train/engine.py",
    "remix_dist/data/stream.py",
    "remix_dist/mix/mixup.py",
    "remix_dist/labels/remix.py",
    "remix_dist/loss/cross_entropy.py",
]


def imports(tree, whole=True):
    """Dotted names that a module imports; whole=False: only when it is itself imported."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif whole or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            todo += node.orelse if typing_only and not whole else ast.iter_child_nodes(node)


def lines(file):
    return len((ROOT / file).read_text().splitlines())


def layer(name):
    """ "data" for remix_dist/data/plan.py and for remix_dist.data.plan."""
    parts = name.removesuffix(".py").replace("/", ".").split(".")
    return parts[0] if parts[0] != "remix_dist" else (parts[1:] or [""])[0]


@pytest.mark.parametrize("file", TREES)
def test_imports_point_down(file):
    own = layer(file)
    for name in imports(TREES[file]):
        if name.startswith("remix_dist.") and layer(name) not in ("__version__", own):
            assert layer(name) in MAY_IMPORT.get(own, set()), f"{file} imports {name}"
        assert own == "jobs" or not name.startswith("jobs"), f"{file} imports {name}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_place(library):
    for file, tree in TREES.items():
        if any(name == library or name.startswith(f"{library}.") for name in imports(tree)):
            assert file.startswith(ONLY_IN[library]), f"{file} imports {library}"


def test_files_and_functions_are_short_and_modules_say_what_they_are():
    for file in [*SOURCES, *(ROOT / "tests").rglob("*.py")]:
        name, tree = file.relative_to(ROOT).as_posix(), ast.parse(file.read_text())
        limit = 60 if file.parent.name == "jobs" and file in SOURCES and not file.name.startswith("bench_") else 300
        if lines(name) > limit:
            pytest.fail(f"{name} has {lines(name)} lines, {limit} are allowed")
        assert ast.get_docstring(tree), f"{name} has no docstring"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 59, f"{name}: {node.name} has 60 lines or more"


def function_bodies(*packages):
    """(place, function) for the maths of these packages: all but argument checks."""
    for file, tree in TREES.items():
        if layer(file) in packages:
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and not node.name.startswith(("__post_init__", "check_")):
                    yield f"{file}:{node.name}", node


AXES = ("mix", "labels", "loss", "rebalance")


def loops(function, fixed):
    """What walks over rows: any loop statement, any comprehension over something that is no fixed-length tuple
    (a literal, or what a function annotated `-> tuple[...]` returned), and the calls that hide a loop."""
    short = {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name) and ast.unparse(node.value.func) in fixed
    }
    for node in ast.walk(function):
        if isinstance(node, ast.For | ast.While):
            yield node
        elif isinstance(node, ast.comprehension):
            over = node.iter
            if not (isinstance(over, ast.Tuple | ast.List) or (isinstance(over, ast.Name) and over.id in short)):
                yield node
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("map", "vectorize", "apply_along_axis", "unbind", "item", "nonzero_static"):
                yield node


def test_the_maths_has_no_loop_over_rows():
    bodies = dict(function_bodies(*AXES))
    fixed = {f.name for f in bodies.values() if f.returns is not None and ast.unparse(f.returns).startswith("tuple[")}
    assert len(bodies) > 15
    for place, function in bodies.items():
        assert not [ast.unparse(node) for node in loops(function, fixed)], place


def test_the_loop_rule_sees_loops():
    bad = ["for x in y: pass", "while x: pass", "z = [f(x) for x in lam_B]", "a = lam_B; z = [x for x in a]",
           "z = [x for x in range(len(y))]", "z = list(map(f, lam_B))", "h = g(); z = [x for x in h]"]  # fmt: skip
    good = ["z = [f(x) for x in (a, b)]", "host = draw(); z = [x for x in host]", "z = lam_B * 2"]
    for text in bad + good:
        (function,) = ast.parse(f"def f():\n  {text}").body
        assert bool(list(loops(function, {"draw"}))) == (text in bad), text


GLOBAL_DRAWS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli",
                "multinomial", "normal", "poisson", "dropout", "seed", "manual_seed", "manual_seed_all"}  # fmt: skip
NUMPY_OBJECTS = {"Generator", "Philox", "RandomState"}
INITIALISERS = {"uniform_", "normal_", "random_", "bernoulli_", "exponential_", "kaiming_normal_", "trunc_normal_"}


def global_draws(tree, initialisers=INITIALISERS):
    """Calls that draw from, or seed, a generator that the whole process shares, outside of fork_rng."""
    forked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and any("fork_rng" in ast.unparse(item.context_expr) for item in node.items)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or id(node) in forked:
            continue
        owner, _, called = ast.unparse(node.func).rpartition(".")
        passed = any(keyword.arg == "generator" for keyword in node.keywords)
        from_numpy = owner in ("np.random", "numpy.random") and (
            called not in NUMPY_OBJECTS or not (node.args or node.keywords)
        )
        from_torch = owner.startswith("torch") and owner != "torch.Generator()" and called in GLOBAL_DRAWS
        if from_numpy or ((from_torch or called in initialisers) and not passed):
            yield node


def test_no_global_random_state():
    for file, tree in TREES.items():
        assert not {"random", "numpy.random"} & set(imports(tree)), f"{file} imports a module with global state"
        # build_model runs the initialisers of backbones and heads inside its fork_rng
        found = global_draws(tree, initialisers=set() if layer(file) == "model" else INITIALISERS)
        assert not [ast.unparse(call) for call in found], file


def test_the_random_rule_sees_draws():
    bad = ["np.random.rand(3)", "np.random.seed(0)", "torch.manual_seed(0)", "torch.randperm(4)", "x.normal_()",
           "torch.random.manual_seed(1)", "torch.cuda.manual_seed_all(1)", "np.random.RandomState()"]  # fmt: skip
    good = ["torch.rand(2, generator=g)", "np.random.Generator(np.random.Philox(key=k))", "rng.beta(1, 1)",
            "torch.Generator().manual_seed(0)", "rng.permutation(4)"]  # fmt: skip
    for text in bad + good:
        assert bool(list(global_draws(ast.parse(text)))) == (text in bad), text
    assert not list(global_draws(ast.parse("with torch.random.fork_rng():\n  torch.manual_seed(0)")))


def closure():
    """The batch's path and every file of ours that importing it imports, less config and types."""
    found, todo = set(), list(PATH_OF_A_BATCH)
    while todo:
        file = todo.pop()
        if file in found or layer(file) in ("config", "types", ""):
            continue
        found.add(file)
        for name in imports(TREES[file], whole=False):
            path = name.replace(".", "/")
            todo += [f for f in (f"{path}.py", f"{path}/__init__.py") if f in TREES]
    return found


def test_the_seven_files_of_a_batch_are_short():
    assert sum(map(lines, PATH_OF_A_BATCH)) <= 900


def test_a_newcomer_reads_little():
    files = sorted(closure(), key=lines)
    total = sum(map(lines, files))
    assert total <= 1500, f"{total} lines: " + ", ".join(f"{file} {lines(file)}" for file in files)


LIGHT = (
    "import sys, {}; print(*sorted({{m.split('.')[0] for m in sys.modules}} & {{'torch', 'ray', 'pyarrow', 'fsspec'}}))"
)


@pytest.mark.parametrize(
    "modules, there",
    [
        ("remix_dist", ""),
        ("remix_dist.mix, remix_dist.labels, remix_dist.loss, remix_dist.rebalance, remix_dist.model", "torch"),
    ],
)
def test_light_imports(modules, there):
    code = LIGHT.format(modules)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == there


def test_the_package_list_is_what_is_there():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {file.parent.relative_to(ROOT).as_posix().replace("/", ".") for file in PACKAGE.rglob("__init__.py")}
    assert set(listed) == there and len(listed) == len(there)
    assert {file.parent / "__init__.py" for file in PACKAGE.rglob("*.py")} == set(PACKAGE.rglob("__init__.py"))
