"""The step: one global batch, accumulated over whole micro-batches, reduced exactly once.

num = sum(share_BK * w[labels_BK] * loss_BK) and den = sum(share_BK * w[labels_BK]) run over the *global* batch;
backward runs on num, den is summed over ranks, and the gradient is divided by it once, before the optimizer. Random
keys name the micro-batch, never the rank. So the world size changes nothing but speed, to rounding.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from remix_dist.config.run import Run
from remix_dist.train.collective import all_reduce, rank_world
from remix_dist.train.metrics import Meter
from remix_dist.types import Batch, ClassTable, generator


class Engine:
    """Model, optimizer and running statistics of one rank, and the step that moves them."""

    def __init__(self, run: Run, model: nn.Module, table: ClassTable, device: torch.device, bf16: bool) -> None:
        self.run, self.table, self.device, self.bf16 = run, table, device, bf16
        self.layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.model = model.to(device=device, memory_format=self.layout)  # type: ignore[call-overload]
        self.meter = Meter(table.classes, device)
        self.weight_C = run.rebalance.row_weight(table)
        self.params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = _sgd(run, model, fused=device.type == "cuda")
        self.ema = [p.detach().clone() for p in self.params] if run.optim.ema else None
        self.norms = BatchNormStatistics(model)
        kinds = [type(m).__name__ for m in model.modules()]  # Dropout, AlphaDropout, DropPath, DropBlock2d ...
        self.stochastic = any(n in kind for kind in kinds for n in ("Drop", "StochasticDepth"))
        self.forward: nn.Module = model
        if rank_world()[1] > 1:
            names = ("forward_sync_buffers", "broadcast_buffers")  # the new name, and torch 2.11's
            known = inspect.signature(DistributedDataParallel).parameters
            own: dict[str, Any] = {next(n for n in names if n in known): False}
            self.forward = DistributedDataParallel(model, gradient_as_bucket_view=True, **own)
            self._settle_buckets()

    def _settle_buckets(self) -> None:
        # DDP regroups its buckets after the first backward; one discarded pass, so that a restarted run reduces
        # in the same order, bit for bit, as one that never stopped
        size = self.run.data.augment.size
        images = torch.zeros(2, 3, size, size, device=self.device)
        self.model.eval()  # no dropout: it would draw from the global generator
        for _ in range(2):
            self.forward(images).float().sum().backward()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=False)

    def step(self, batches: Iterator[Batch], count: int, lr: float, rebalanced: bool) -> None:
        """One optimizer step on this rank's next `count` micro-batches. Nothing syncs the device."""
        self.accumulate(batches, count, rebalanced)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        if self.ema is not None:
            torch._foreach_lerp_(self.ema, self.params, 1 - (self.run.optim.ema or 0.0))

    def accumulate(self, batches: Iterator[Batch], count: int, rebalanced: bool) -> None:
        """Leave the global batch's gradient in `.grad`, the same on every rank."""
        weight_C = self.weight_C if rebalanced else None
        den = torch.zeros((), device=self.device)
        self.norms.begin()
        for left in range(count - 1, -1, -1):
            ddp = self.forward if isinstance(self.forward, DistributedDataParallel) else None
            with ddp.no_sync() if ddp and left else contextlib.nullcontext():
                den += self._micro_step(next(batches), weight_C)
            self.norms.collect()
        self._reduce(den)

    def state(self, step: int) -> dict[str, dict[str, Tensor]]:
        """Tensors of a checkpoint after `step` steps, by file: model, optim and, if kept, ema."""
        self.norms.publish(step)
        names = {p: n for n, p in self.model.named_parameters()}
        momentum = {names[p]: s["momentum_buffer"] for p, s in self.optimizer.state.items() if "momentum_buffer" in s}
        out = {"model": dict(self.model.state_dict()), "optim": momentum}
        if self.ema is not None:
            out["ema"] = {names[p]: e for p, e in zip(self.params, self.ema, strict=True)}
        return out

    def load(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Continue from a checkpoint's tensors."""
        self.model.load_state_dict(tensors["model"])
        self.norms.adopt()
        for name, p in self.model.named_parameters():
            if name in tensors["optim"]:
                self.optimizer.state[p]["momentum_buffer"] = tensors["optim"][name].to(self.device)
        if self.ema is not None:
            names = [n for n, p in self.model.named_parameters() if p.requires_grad]
            saved = tensors.get("ema", tensors["model"])  # a resume may be where the average begins
            torch._foreach_copy_(self.ema, [saved[n].to(self.device) for n in names])

    @contextlib.contextmanager
    def averaged(self, step: int) -> Iterator[nn.Module]:
        """The model to evaluate: with the running BatchNorm statistics, and EMA weights if kept."""
        self.norms.publish(step)
        if self.ema is None:
            yield self.model
            return
        live = [p.detach().clone() for p in self.params]
        with torch.no_grad():
            torch._foreach_copy_(self.params, self.ema)
            yield self.model
            torch._foreach_copy_(self.params, live)

    def _micro_step(self, batch: Batch, weight_C: Tensor | None) -> Tensor:
        run, labels_B = self.run, batch.labels_B.to(self.device, non_blocking=True)
        images_BCHW = batch.images_BCHW.to(self.device, non_blocking=True).float()
        images_BCHW = run.data.augment.photometric(images_BCHW, batch.noise_BK.to(self.device, non_blocking=True))
        rng = generator(run.train.seed, "mix", batch.step, batch.micro_batch)
        mixed = run.mix(images_BCHW, rng, getattr(self.model, "mix_points", 1))
        labels_BK, share_BK, lam_y_B = labels_B[:, None], torch.ones_like(mixed.lam_x_B)[:, None], mixed.lam_x_B
        if mixed.partner_B is not None:
            other_B, count_C = labels_B[mixed.partner_B], self.table.count_C
            lam_y_B = run.labels(mixed.lam_x_B, count_C[labels_B], count_C[other_B])
            labels_BK = torch.stack((labels_B, other_B), 1)
            share_BK = torch.stack((lam_y_B, 1 - lam_y_B), 1)
        self.meter.add(labels_B, mixed.lam_x_B, lam_y_B, mixed.partner_B is not None)

        images_BCHW = run.data.augment.normalize(mixed.images_BCHW).contiguous(memory_format=self.layout)
        plan = {} if mixed.layer is None else {k: getattr(mixed, k) for k in ("partner_B", "lam_x_B", "layer")}
        with self._keyed_dropout(batch), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits_BC = self.forward(images_BCHW, **plan)
        loss_BK = run.loss(logits_BC, labels_BK, self.table)
        if weight_C is not None:
            share_BK = share_BK * weight_C[labels_BK]
        num, den = (share_BK * loss_BK).sum(), share_BK.detach().sum()
        num.backward()
        self.meter.sums += torch.stack((num.detach(), den))
        return den

    @contextlib.contextmanager
    def _keyed_dropout(self, batch: Batch) -> Iterator[None]:
        # dropout draws from the global generator: lend it a state keyed like every other draw, then put it back
        if not self.stochastic:
            yield
            return
        seed = generator(self.run.train.seed, "dropout", batch.step, batch.micro_batch).integers(1 << 62)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(seed))
            yield

    def _reduce(self, den: Tensor) -> None:
        """Sum den and the BatchNorm statistics over the global batch in one small all-reduce; scale gradients."""
        world, train = rank_world()[1], self.run.train
        flat = torch.cat([den.reshape(1), *(t.flatten() for t in self.norms.sums)])
        den, *stats = all_reduce(flat).split([1, *(t.numel() for t in self.norms.sums)])
        if train.normalize == "count":
            den = torch.full_like(den, train.global_batch)
        # DDP averaged the ranks' sums, so the global mean is that times world / den
        torch._foreach_mul_([p.grad for p in self.params if p.grad is not None], (world / den).squeeze(0))
        self.norms.update(stats, train.global_batch // train.micro_batch)


class BatchNormStatistics:
    """Running statistics that do not depend on the world size: each global batch moves them once, by the mean of
    its micro-batches' statistics. (Left alone, every rank would keep its own, with its own number of updates.)"""

    def __init__(self, model: nn.Module) -> None:
        layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        buffers = [b for m in layers for b in (m.running_mean, m.running_var)]
        self.live = [b for b in buffers if b is not None]
        self.counters = [m.num_batches_tracked for m in layers if m.num_batches_tracked is not None]
        self.momentum = [0.1 if m.momentum is None else m.momentum for m in layers for _ in range(2)]
        self.running = [b.clone() for b in self.live]
        self.sums: list[Tensor] = []
        for layer in layers:
            layer.momentum = 1.0  # a forward now leaves the micro-batch's own statistics in the buffers

    def begin(self) -> None:
        """Start a global batch."""
        self.sums = [torch.zeros_like(b) for b in self.live]

    def collect(self) -> None:
        """Take the statistics that the last forward left."""
        if self.live:
            torch._foreach_add_(self.sums, self.live)

    def update(self, sums: list[Tensor], micro_batches: int) -> None:
        """Move the running statistics by the global batch's mean."""
        for running, total, momentum in zip(self.running, sums, self.momentum, strict=True):
            running.lerp_(total.view_as(running) / micro_batches, momentum)

    def publish(self, step: int) -> None:
        """Put the running statistics into the model, for evaluation or a checkpoint."""
        for live, running in zip(self.live, self.running, strict=True):
            live.copy_(running)
        for counter in self.counters:
            counter.fill_(step)

    def adopt(self) -> None:
        """Take the model's buffers (just loaded) as the running statistics."""
        for live, running in zip(self.live, self.running, strict=True):
            running.copy_(live)


def _sgd(run: Run, model: nn.Module, fused: bool) -> torch.optim.SGD:
    optim = run.optim
    groups: dict[float, list[Tensor]] = {}
    for p in model.parameters():
        if p.requires_grad:
            groups.setdefault(optim.weight_decay if p.ndim >= 2 or optim.decay_norm else 0.0, []).append(p)
    options = {"lr": optim.lr, "momentum": optim.momentum, "nesterov": optim.nesterov, "fused": fused or None}
    return torch.optim.SGD([{"params": g, "weight_decay": d} for d, g in groups.items()], **options)  # type: ignore[arg-type]
