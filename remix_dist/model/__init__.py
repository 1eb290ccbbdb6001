"""Backbones by name, and the one module that the engine trains: images in, logits out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """A backbone as a chain of stages. Mix point 0 is the input, mix point k the output of stage k."""

    def __init__(self, net: nn.Module, stages: Callable[[nn.Module], list[Callable[[Tensor], Tensor]]]):
        super().__init__()
        self.net, self._stages, self.mix_points, self.loaded = net, stages, len(stages(net)), ""

    def forward(
        self, images_BCHW: Tensor, partner_B: Tensor | None = None, lam_x_B: Tensor | None = None,
        layer: int | None = None,
    ) -> Tensor:  # fmt: skip
        """logits_BC. With `layer`, features there become lam * own + (1 - lam) * the partner's (Eq. 8)."""
        if layer is not None and (partner_B is None or lam_x_B is None or not 0 <= layer < self.mix_points):
            raise ValueError(f"layer {layer} needs partner_B, lam_x_B and 0 <= layer < {self.mix_points}")
        hidden = images_BCHW
        for point, stage in enumerate(self._stages(self.net)):
            if point == layer:
                share = lam_x_B.to(hidden.dtype).view(-1, *[1] * (hidden.ndim - 1))  # type: ignore[union-attr]
                hidden = torch.lerp(hidden[partner_B], hidden, share)
            hidden = stage(hidden)
        return hidden


def build_model(
    name: str, classes: int, head_scale: float | None = None, weights: str | None = None, seed: int = 0
) -> Classifier:
    """A Classifier on the CPU, the same for the same seed; the global random state is left as it was.

    head_scale None: linear head; s: logits are s * cosine (LDAM). weights: file, folder or URL of a state
    dict whose backbone must fit; `.loaded` says in one line what was taken. Raises UserError.
    """
    # Here and not above: whoever wants Classifier alone should not pay for them.
    from remix_dist.model import families, heads
    from remix_dist.model.weights import load_weights

    family = families.find(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too
        model = Classifier(family.build(name, classes), family.stages)
        if head_scale is not None:
            heads.use_cosine(model.net, classes, head_scale)
    if weights:
        model.loaded = load_weights(model.net, classes, weights)
    return model
