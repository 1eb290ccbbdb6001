"""The paper's recipes as files: each is a valid run, and says what the paper says."""

from pathlib import Path

import pytest

from remix_dist.config.check import check_run
from remix_dist.config.parse import parse_run
from remix_dist.config.schedule import deferral_epoch
from remix_dist.labels.remix import Remix

PRESETS = Path(__file__).resolve().parents[2] / "jobs" / "presets"
METHODS = ["ERM", "Mixup", "Remix", "LDAM-DRW", "Mixup-DRW", "Remix-DRW", "Remix-DRS"]
RECIPES = {  # of the paper: model, epochs, decays, factor, batch, weight decay, alpha; LDAM has its own on 32 px
    "inat2018": ("resnet50", 200, (75, 150), 0.1, 256, 1e-4, 0.4),
    "inat2018-90ep": ("resnet50", 90, (30, 60), 0.1, 256, 1e-4, 0.4),
    "cifar10": ("resnet32", 300, (150, 250), 0.1, 128, 2e-4, 1.0),
    "cifar100": ("resnet32", 300, (150, 250), 0.1, 128, 2e-4, 1.0),
    "cinic10": ("resnet18", 300, (150, 250), 0.1, 128, 2e-4, 1.0),
}
PUBLISHED = {  # top-1, Tables 1 (long-tailed, ratio 100), 2 (ratio 100) and 3 (100 - error)
    "inat2018": {"LDAM-DRW": "68.58", "Remix-DRW": "70.49", "Remix-DRS": "70.74"},
    "inat2018-90ep": {"ERM": "59.81", "Mixup": "60.31", "Remix": "61.31", "LDAM-DRW": "67.11"},
    "cifar10": {"ERM": "71.86", "Mixup": "73.09", "Remix": "75.36", "LDAM-DRW": "76.57", "Remix-DRW": "79.76",
                "Remix-DRS": "79.53"},
    "cifar100": {"ERM": "40.12", "Mixup": "40.83", "Remix": "41.94", "LDAM-DRW": "42.64", "Remix-DRW": "46.77",
                 "Remix-DRS": "46.53"},
    "cinic10": {"ERM": "61.82", "Mixup": "62.06", "Remix": "63.21", "LDAM-DRW": "65.51", "Remix-DRW": "67.76",
                "Remix-DRS": "65.95"},
}  # fmt: skip
CASES = [(data, method) for data in RECIPES for method in METHODS]


def test_there_is_a_file_for_every_recipe_and_method_and_no_other():
    assert sorted(f.stem for f in PRESETS.iterdir()) == sorted(f"{data}-{method.lower()}" for data, method in CASES)


@pytest.mark.parametrize("data, method", CASES)
def test_a_preset_is_the_recipe_of_its_name(data, method):
    run, _, _ = parse_run(["--config", str(PRESETS / f"{data}-{method.lower()}.yaml")], "")
    notes = check_run(run)
    assert run.method() == method and run.data.url == "demo", "the data is the user's to name"
    name, epochs, decays, factor, batch, decay, alpha = RECIPES[data]
    small = run.data.augment.size == 32
    if method == "LDAM-DRW" and small:
        decays, factor = (150, 225), 0.01
    schedule, augment = run.schedule, run.data.augment
    assert (run.model.name, schedule.epochs, schedule.decays, schedule.factor) == (name, epochs, decays, factor)
    assert (run.train.global_batch, run.optim.weight_decay, run.optim.lr, run.optim.momentum) == (
        batch,
        decay,
        0.1,
        0.9,
    )
    assert run.train.micro_batch == (128 if small else 32) and schedule.kind == "step" and augment.flip
    assert schedule.warmup == (5 if small else 0)
    assert (augment.size, augment.crop) == ((32, "shift") if data.startswith("c") else (224, "random"))
    assert augment.shift == 4 if small else (augment.resize, augment.jitter, augment.lighting) == (256, 0.4, 0.1)
    assert getattr(run.mix, "alpha", alpha) == alpha
    if method.startswith("Remix"):
        assert run.labels == Remix(kappa=3.0, tau=0.5)
    if method.endswith(("DRW", "DRS")):
        assert run.rebalance.beta is None and deferral_epoch(run.rebalance, schedule) == decays[1]
    if method == "LDAM-DRW":
        assert (run.loss.max_margin, run.loss.scale) == (0.5 if small else 0.3, 30)
    assert bool(notes) == (data == "inat2018-90ep" and method.startswith(("Mixup", "Remix")))


@pytest.mark.parametrize("data, method", CASES)
def test_the_header_says_what_was_published_and_what_is_our_choice(data, method):
    lines = (PRESETS / f"{data}-{method.lower()}.yaml").read_text().splitlines()
    head = " ".join(line[2:] for line in lines if line.startswith("# "))
    assert head.startswith(f"{method} on ") and "2007.03943" in head and "so our choice: " in head
    assert f"--config jobs/presets/{data}-{method.lower()}.yaml" in head
    number = PUBLISHED[data].get(method)
    assert (f"Published top-1: {number} " in head) if number else ("Not in " in head and "Published" not in head)
    assert max(map(len, lines)) <= 120
