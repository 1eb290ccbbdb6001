"""timm's nets as `timm/<name>`; timm is optional and imported only when such a name is used."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from remix_dist.types import UserError

PREFIX = "timm/"


def names() -> list[str]:
    """All of timm's names with the prefix; none where timm is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return [PREFIX + name for name in timm.list_models()]


def accepts(name: str) -> bool:
    """Any known name with the prefix; UserError if the prefix is there and timm is not."""
    if not name.startswith(PREFIX):
        return False
    try:
        import timm
    except ImportError as error:
        raise UserError(f"model {name!r} needs timm, which is not installed: pip install timm") from error
    return timm.is_model(name.removeprefix(PREFIX))


def build(name: str, classes: int) -> nn.Module:
    """The net with random weights (files of pretrained weights come in by `weights`)."""
    import timm

    return timm.create_model(name.removeprefix(PREFIX), pretrained=False, num_classes=classes)


def stages(net: nn.Module) -> list[Callable[[Tensor], Tensor]]:
    """Input only: timm's nets have no common inner structure."""
    return [net]


def plain(name: str, classes: int) -> tuple[str, str]:
    """timm alone builds the net."""
    return "timm", f"timm.create_model({name.removeprefix(PREFIX)!r}, num_classes={classes})"
