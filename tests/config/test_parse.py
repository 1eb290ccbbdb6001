"""Words to a Run and back; and what a person reads after a mistake: one line, exit code 2."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from remix_dist.config.check import check_run
from remix_dist.config.document import document
from remix_dist.config.parse import guarded, knobs, parse_run, run_from_dict
from remix_dist.config.run import Data, Optim, Run
from remix_dist.labels.remix import Remix
from remix_dist.labels.same import Same
from remix_dist.loss.focal import Focal
from remix_dist.loss.ldam import LDAM
from remix_dist.mix.cutmix import CutMix
from remix_dist.mix.manifold_mixup import ManifoldMixup
from remix_dist.mix.none import NoMix
from remix_dist.rebalance.drs import DRS
from remix_dist.rebalance.resample import Resample
from remix_dist.rebalance.reweight import Reweight


def parsed(*words):
    return parse_run(list(words), "")[0]


def said(capsys, *words):
    """The line on stderr of a job with these words; everything that must hold for any mistake."""
    code = guarded(lambda: check_run(parsed(*words)) and None, "job")
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.startswith("job: error: ") and err.count("\n") == 1, err
    assert "Traceback" not in err and "<class" not in err and "Parser key" not in err, err
    return err.removeprefix("job: error: ").rstrip("\n")


WORDS = {
    "--schedule.epoch 3": ["schedule.epoch'", "did you mean 'schedule.epochs'", "--help"],
    "--optim.lrr=3": ["optim.lrr", "did you mean 'optim.lr'"],
    "--foo": ["foo", "--help"],
    "--mix Mixxup": ["mix = Mixxup", "did you mean 'Mixup'", "CutMix, ManifoldMixup, Mixup, NoMix"],
    "--labels=remix": ["labels = remix", "did you mean 'Remix'"],
    "--rebalance Rebalance": ["rebalance = Rebalance", "DRS, DRW, NoRebalance"],
    "--rebalance remix_dist.types.Rebalance": ["rebalance = Rebalance", "DRS, DRW, NoRebalance"],
    "--mix.alph 0.4": ["mix.alph", "Mixup has alpha, per_row", "did you mean 'alpha'"],
    "--loss Focal --loss.gama 2": ["loss.gama", "Focal has gamma"],
    "--schedule.epochs x": ["schedule.epochs = x", "a number"],
    "--train.global_batch 2.5": ["train.global_batch = 2.5", "a whole number"],
    "--optim.nesterov maybe": ["optim.nesterov = maybe", "true or false"],
    "--checkpoint.every_steps x": ["checkpoint.every_steps = x", "a whole number or null"],
    "--rebalance.beta x": ["rebalance.beta = x", "a number or null"],
    "--schedule.decays 30,60": ["schedule.decays = 30,60", "a list, as [30,60]"],
    "--data.augment.mean [1,2]": ["data.augment.mean = [1, 2]", "a list of 3"],
    "--schedule.kind linear": ["schedule.kind = linear", "one of 'step', 'cosine'"],
    "--rebalance.by size": ["rebalance.by = size", "one of 'effective', 'inverse', 'power'"],
    "--data x.yaml": ["data = x.yaml", "--data.KNOB"],
    "--labels.kappa 1": ["labels.kappa = 1.0", "> 1", "paper uses 3"],
    "--labels.kappa 0.5": ["labels.kappa = 0.5", "> 1"],
    "--labels.tau 1.5": ["labels.tau = 1.5", "[0, 1]"],
    "--labels.tau=-0.1": ["labels.tau = -0.1", "[0, 1]"],
    "--mix.alpha 0": ["mix.alpha = 0", "NoMix"],
    "--rebalance.start decay:0": ["rebalance.start = 'decay:0'", "fraction"],
    "--config nowhere.yaml": ["config = nowhere.yaml", "No such file", "jobs/presets/"],
    "--config .": ["config = .", "directory"],
    "--config": ["--config", "expected one argument"],
}


@pytest.mark.parametrize("words", WORDS)
def test_a_mistake_on_the_command_line_is_one_line(words, capsys):
    line = said(capsys, *words.split())
    assert all(part in line for part in WORDS[words]), line


FILES = {
    "data: {urll: x}": ["data.urll", "did you mean 'data.url'"],
    "trainn: {seed: 1}": ["trainn.seed", "did you mean 'train.seed'"],
    "mix: {class_path: Mixupp}": ["mix = Mixupp", "did you mean 'Mixup'"],
    "rebalance: DRX": ["rebalance = DRX", "did you mean 'DRW'"],
    "labels: {class_path: Remix, init_args: {kapa: 4}}": ["labels.kapa", "Remix has kappa, tau", "'kappa'"],
    "labels: {class_path: Remix, init_args: {kappa: 1}}": ["labels.kappa = 1", "> 1"],
    "schedule: {epochs: many}": ["schedule.epochs = many", "a number"],
    "data: [\n": ["config = ", "bad.yaml", "line 2"],
    "data: {url: x\nmix: {": ["config = ", "bad.yaml", "line "],
    "\x00\x01": ["config = ", "bad.yaml", "no text file"],
    "only words": ["config = ", "bad.yaml", "--print_config"],
    "": ["config = ", "bad.yaml", "--print_config"],
}


@pytest.mark.parametrize("text", FILES)
def test_a_mistake_in_a_file_is_one_line(text, capsys, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    line = said(capsys, "--config", str(tmp_path / "bad.yaml"))
    assert all(part in line for part in FILES[text]), line


def test_guarded_leaves_other_exits_alone(capsys):
    def stop():
        raise KeyboardInterrupt

    assert guarded(stop, "job") == 130 and "the same command continues" in capsys.readouterr().err
    assert guarded(lambda: None, "job") == 0 and guarded(lambda: 3, "job") == 3


def test_later_words_win_and_files_and_flags_are_one_grammar(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("optim: {lr: 0.3}\nlabels: {class_path: Remix, init_args: {tau: 0.2}}\nschedule: {epochs: 120}\n")
    run = parsed("--config", str(file), "--optim.lr", "0.4", "--mix", "CutMix", "--mix.alpha", "0.7")
    assert (run.optim.lr, run.labels, run.schedule.epochs, run.mix) == (0.4, Remix(tau=0.2), 120, CutMix(alpha=0.7))
    assert run.rebalance == Run().rebalance


def test_what_differs_from_the_defaults_is_reported(tmp_path):
    _, speed, given = parse_run(["--optim.lr", "0.3", "--labels", "Same", "--dry_run", "--dry_run_speed", "9"], "")
    assert speed == 9.0 and "optim.lr" in given and "labels.class_path" in given and "schedule.epochs" not in given
    assert parse_run([], "")[1:] == (None, set())


@pytest.mark.parametrize(
    "run",
    [
        Run(),
        Run(mix=NoMix(), labels=Same(), loss=LDAM(max_margin=0.3), rebalance=DRS(start=0.8, by="power", power=0.5)),
        Run(mix=CutMix(alpha=0.3, per_row=True), loss=Focal(gamma=2.0), rebalance=Reweight(beta=0.9999)),
        Run(mix=ManifoldMixup(layers=(0, 2)), labels=Remix(kappa=2.5), rebalance=Resample(by="inverse"), name="x"),
        Run(data=Data(url="s3://b/k"), optim=Optim(ema=0.99, nesterov=True, lr=1e-4, weight_decay=1e-5)),
    ],
    ids=lambda run: run.method(),
)
def test_a_saved_run_reads_back_equal(run, tmp_path):
    (tmp_path / "run.yaml").write_text(run.to_yaml())
    assert parsed("--config", str(tmp_path / "run.yaml")) == run == run_from_dict(run.to_dict())
    assert yaml.safe_load(run.to_yaml()) == run.to_dict()


def test_knobs_know_every_method_and_group():
    known = knobs()
    for name in ("mix.alpha", "loss.gamma", "loss.max_margin", "rebalance.start", "data.augment", "data.augment.size"):
        assert name in known
    assert not [name for name in known if "init_args" in name or "class_path" in name]


def test_the_documentation_of_the_knobs_is_current():
    root = Path(__file__).resolve().parents[2]
    text = (root / "docs" / "knobs.md").read_text()
    assert text == document(), "run: python -m remix_dist.config.document > docs/knobs.md"
    for field in dataclasses.fields(Optim):
        assert f"| `optim.{field.name}` |" in text
    assert "| `labels.kappa` | `3.0` |" in text and "## `rebalance`: DRW" in text
