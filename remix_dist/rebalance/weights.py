"""Class weights and class shares from the counts: the maths that all rebalancing methods share."""

import re
from typing import Literal

import torch
from torch import Tensor

from remix_dist.types import ClassTable, UserError

By = Literal["effective", "inverse", "power"]


def check_weights(by: str, beta: float | None, power: float | None) -> None:
    """UserError for a value out of range, or one that could not take effect."""
    if by not in ("effective", "inverse", "power"):
        raise UserError(f"rebalance.by = {by!r}: must be effective, inverse or power")
    if beta is not None:
        if by != "effective":
            raise UserError(f"rebalance.beta = {beta!r}: has no effect with by: {by}; leave it out, or by: effective")
        if not isinstance(beta, int | float) or not 0 < beta < 1:
            raise UserError(f"rebalance.beta = {beta!r}: must be in (0, 1); 0 would weigh all classes alike")
    if (power is not None) != (by == "power"):
        way = "leave it out, or by: power" if power is not None else "give the q of n^q, as 0 (uniform) or 0.5 (sqrt)"
        raise UserError(f"rebalance.power = {power!r}: does not go with by: {by}; {way}")
    if power is not None and (not isinstance(power, int | float) or not -8 <= power <= 8 or power == 1):
        hint = "0 draws classes uniformly, 0.5 by square root, -1 in reverse"
        raise UserError(f"rebalance.power = {power!r}: must be in [-8, 8] and not 1 (the natural draw); {hint}")


def check_start(start: float | str) -> None:
    """UserError unless start is "decay:K" with K >= 1 or a fraction in [0, 1)."""
    named = isinstance(start, str) and re.fullmatch(r"decay:[1-9][0-9]*", start)
    if not named and not (isinstance(start, int | float) and 0 <= start < 1):
        way = "a fraction of the run in [0, 1), or decay:K for the K-th LR decay, K >= 1 (the paper: decay:2)"
        raise UserError(f"rebalance.start = {start!r}: must be {way}")


def per_row_weight(table: ClassTable, by: By, beta: float | None, power: float | None) -> Tensor:
    """float64 (C,): what one row of each class weighs; the scale is arbitrary.

    effective: 1 / E_n, E_n = (1 - beta^n) / (1 - beta) (Cui et al., CVPR 2019, Prop. 1), beta None: (N - 1) / N;
    inverse: 1 / n;  power: n^(q - 1), so that rows drawn by it make classes appear as n^q.
    """
    n_C = table.count_C.double()
    empty = (table.count_C < 1).nonzero().flatten().tolist()
    if empty:
        raise UserError(
            f"class {empty[0]} has no training image ({len(empty)} such classes): write the shards without it"
        )
    if by == "inverse":
        return 1 / n_C
    if by == "power":
        assert power is not None
        return n_C ** (power - 1)
    q = 1 / n_C.sum() if beta is None else n_C.new_tensor(1 - beta)
    return q / -torch.expm1(n_C * torch.log1p(-q))  # beta^n and 1 - beta^n as they are lose all digits near 1


def class_weight(table: ClassTable, by: By, beta: float | None, power: float | None) -> Tensor:
    """float32 (C,): the weights normalised to sum to C, as in LDAM's code."""
    weight_C = per_row_weight(table, by, beta, power)
    return (weight_C * (table.classes / weight_C.sum())).float()


def class_share(table: ClassTable, by: By, beta: float | None, power: float | None) -> Tensor:
    """float64 (C,), summing to 1: the share of each class when rows are drawn by their weight."""
    mass_C = table.count_C * per_row_weight(table, by, beta, power)
    return mass_C / mass_C.sum()
