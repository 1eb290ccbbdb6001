"""Run: every knob of a training run, as frozen dataclasses; one dotted name per knob everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import yaml

from remix_dist.data.augment import Augment
from remix_dist.labels.remix import Remix
from remix_dist.loss.cross_entropy import CrossEntropy
from remix_dist.mix.mixup import Mixup
from remix_dist.rebalance.drw import DRW
from remix_dist.types import LabelRule, Loss, Mixer, Rebalance

if TYPE_CHECKING:
    from remix_dist.data.manifest import ShardSet
    from remix_dist.model import Classifier


@dataclass(frozen=True)
class Data:
    """Where the shards are and how they are read."""

    url: str = "demo"
    """Folder or URL that holds train/ and val/ shard sets (written by jobs/make_shards.py): a path, s3://, gs://,
    az://, http(s)://, memory://. "demo" is the embedded demonstration on scikit-learn's digits."""
    val_split: str = "val"
    """Name of the split that is evaluated."""
    augment: Augment = Augment()
    """What happens to a training image."""
    threads: int = 2
    """Decoding threads per worker; use the node's cores divided by its workers."""
    prefetch: int = 4
    """Micro-batches decoded ahead, per worker."""
    cache_dir: str = "~/.cache/remix_dist/shards"
    """Folder on each node for shards of a remote store, shared by its workers."""
    cache_gb: float = 200.0
    """Most GB of shards that the cache folder keeps."""
    max_corrupt: float = 1e-4
    """Share of corrupt images (at least one is tolerated) above which the run stops."""
    lanes: int = 16
    """Places of the data set that a cold epoch reads from at the same time."""
    window: int = 8
    """Shards per lane that are shuffled together."""

    def open(self) -> tuple[ShardSet, ShardSet]:
        """The training and the evaluation shard set, checked."""
        from remix_dist.data.manifest import open_shard_set  # pyarrow takes a second that a parser need not spend

        return open_shard_set(self.url, "train"), open_shard_set(self.url, self.val_split)


@dataclass(frozen=True)
class Model:
    """The backbone; the head follows from the loss (LDAM: cosine, else linear)."""

    name: str = "resnet50"
    """resnet32 and its kin (CIFAR), a torchvision name, or timm/<name>."""
    weights: str | None = None
    """State dict (.pt, .safetensors) or export folder to start the backbone from; a head of another shape is left
    out."""

    def build(self, classes: int, head_scale: float | None, seed: int) -> Classifier:
        """The model on the CPU, the same for the same seed; UserError if the name or the weights do not fit."""
        from remix_dist.model import build_model  # torchvision takes seconds that a parser need not spend

        return build_model(self.name, classes, head_scale, self.weights, seed)


@dataclass(frozen=True)
class Optim:
    """SGD."""

    lr: float = 0.1
    """Learning rate after warm-up."""
    momentum: float = 0.9
    """Momentum."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: float = 1e-4
    """Weight decay, on every parameter (as the paper's code) unless decay_norm is off."""
    decay_norm: bool = True
    """Whether weight decay also acts on biases and normalisation parameters."""
    ema: float | None = None
    """Decay per step of an exponential moving average of the weights, e.g. 0.9999; evaluated in their place."""


@dataclass(frozen=True)
class Schedule:
    """Length of the run and learning rate over it."""

    epochs: float = 90.0
    """Passes over the training rows (also the unit when classes are drawn by share)."""
    kind: Literal["step", "cosine"] = "step"
    """step: times `factor` at each of `decays`; cosine: to zero at the end."""
    decays: tuple[float, ...] = (30.0, 60.0)
    """Epochs at which the step schedule decays."""
    factor: float = 0.1
    """What a decay multiplies the learning rate by."""
    warmup: float = 0.0
    """Epochs of linear warm-up."""


@dataclass(frozen=True)
class Train:
    """The step, and what is measured."""

    seed: int = 0
    """Names every random draw of the run."""
    global_batch: int = 256
    """Rows per optimizer step, over all workers; part of the recipe, whatever the number of workers."""
    micro_batch: int = 32
    """Rows that share one lambda, one pairing and one set of BatchNorm statistics. A worker runs whole
    micro-batches, so at most global_batch / micro_batch workers."""
    normalize: Literal["weight_sum", "count"] = "weight_sum"
    """The loss is divided by the class weights' sum over the global batch (LDAM-DRW's meaning) or by its rows."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 autocast; auto: bf16 on a GPU, fp32 on a CPU."""
    deterministic: bool = False
    """Refuse operations without a deterministic version (slower on a GPU)."""
    eval_every: float = 1.0
    """Epochs between evaluations; the end is always evaluated."""
    eval_batch: int = 64
    """Rows per evaluation batch and worker."""
    log_every: int = 50
    """Steps between metric records; also how often a pre-emption or a due checkpoint is noticed."""
    many_above: int = 100
    """Classes with more training images than this are many-shot."""
    few_below: int = 20
    """Classes with fewer training images than this are few-shot."""
    trace: bool = False
    """Write which row ids every step trained on, per worker, under <run>/trace/."""


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints and resume. Running the same command again continues the run."""

    every_seconds: float = 600.0
    """Time between checkpoints (noticed every train.log_every steps); the end always has one."""
    every_steps: int | None = None
    """Checkpoint every so many steps as well."""
    keep: int = 2
    """Newest checkpoints kept."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: continue if the run has a valid checkpoint; must: else stop; never: a new run under a new name."""
    on_change: Literal["stop", "accept"] = "stop"
    """What a resume does when a knob that changes the maths differs from the checkpoint's."""


@dataclass(frozen=True)
class Ray:
    """Where it runs."""

    address: str | None = None
    """Cluster to join. Default: RAY_ADDRESS, else a cluster running on this machine, else a fresh one; "local" is
    always a fresh one."""
    workers: int = 1
    """DDP workers: one GPU each, or CPU processes where there is no GPU."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """auto: a GPU per worker if the cluster has as many."""
    cpus_per_worker: float = 1.0
    """CPUs that Ray reserves for each worker."""
    max_failures: int = 3
    """Worker crashes survived by restarting from the last checkpoint."""
    start_timeout: float = 900.0
    """Seconds to wait for the workers' resources (an autoscaler needs minutes)."""
    collective_timeout: float = 600.0
    """Seconds after which a hanging collective is an error."""


@dataclass(frozen=True)
class Run:
    """One training run."""

    name: str | None = None
    """Identity of the run and its folder in `storage`: same name, same run. Default: method, seed and a digest of
    the recipe."""
    storage: str = "runs"
    """Folder or URL that all workers can write."""
    export: str | None = None
    """Folder to export the final model to (weights, classes, preprocessing, model card)."""
    data: Data = Data()
    mix: Mixer = Mixup()
    """How images mix: NoMix, Mixup, CutMix, ManifoldMixup."""
    labels: LabelRule = Remix()
    """How labels mix: Same (lambda_y = lambda_x) or Remix (Eq. 10)."""
    loss: Loss = CrossEntropy()
    """Value per row and label: CrossEntropy, Focal, LDAM."""
    rebalance: Rebalance = DRW()
    """Class weights or class draws, and from when: NoRebalance, Reweight, Resample, DRW, DRS."""
    model: Model = Model()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    train: Train = Train()
    checkpoint: Checkpoints = Checkpoints()
    ray: Ray = Ray()

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict of every knob."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def to_yaml(self) -> str:
        """The same as text: a valid --config file."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def recipe(self) -> dict[str, Any]:
        """The flat dotted knobs that change the maths: what a resume must agree on."""
        flat = flatten(self.to_dict())
        data = tuple(f"data.{k}" for k in ("augment.", "lanes", "window"))
        axes = ("mix", "labels", "loss", "rebalance", "model.", "optim.", "schedule.")
        train = tuple(f"train.{k}" for k in ("seed", "global_batch", "micro_batch", "normalize", "precision"))
        return {k: v for k, v in flat.items() if k.startswith(data + axes + train)}

    def method(self) -> str:
        """The field's name for this combination, e.g. Remix-DRW, Mixup, LDAM-DRW, Remix-CM-RS."""
        mix, labels, loss, rebalance = (type(x).__name__ for x in (self.mix, self.labels, self.loss, self.rebalance))
        if labels == "Same":
            mixing = {"NoMix": "", "ManifoldMixup": "Manifold-Mixup"}.get(mix, mix)
        else:
            mixing = labels + {"Mixup": "", "CutMix": "-CM", "ManifoldMixup": "-MM"}.get(mix, f"-{mix}")
        weights = {"NoRebalance": "", "Reweight": "RW", "Resample": "RS"}.get(rebalance, rebalance)
        parts = [mixing, "" if loss == "CrossEntropy" else loss, weights]
        if parts == ["", "Focal", "RW"]:
            return "CB-Focal" if getattr(self.rebalance, "by", "") == "effective" else "RW-Focal"
        return "-".join(p for p in parts if p) or "ERM"

    def identity(self, data_digest: str) -> str:
        """The run's name: given, or made of method, seed and a digest of recipe and data."""
        if self.name:
            return self.name
        words = json.dumps([self.recipe(), data_digest], sort_keys=True)
        return f"{self.method().lower()}-s{self.train.seed}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Mixer | LabelRule | Loss | Rebalance):
        return {"class_path": type(value).__name__, "init_args": _fields(value)}
    if dataclasses.is_dataclass(value):
        return _fields(value)
    return list(value) if isinstance(value, tuple) else value


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
