"""Remix: a mixed image of a frequent and a rare class counts as the rare one."""

from dataclasses import dataclass

from torch import Tensor

from remix_dist.types import LabelRule, UserError


@dataclass(frozen=True)
class Remix(LabelRule):
    """Eq. 10 of "Remix: Rebalanced Mixup" (Chou et al., ECCV 2020 workshops).

    lambda_y = 0 if n_a / n_b >= kappa and lambda < tau;  1 if n_a / n_b <= 1 / kappa and 1 - lambda < tau;
    lambda otherwise.
    """

    kappa: float = 3.0
    """Imbalance from which a class outnumbers another: at least kappa times its images."""
    tau: float = 0.5
    """The label goes to the rare class where the frequent one has less than this share of the image; 0: Mixup."""

    def __post_init__(self) -> None:
        if not isinstance(self.kappa, int | float) or not 1 < self.kappa < float("inf"):
            meaning = "a class is kappa-majority when it has at least kappa times the images"
            raise UserError(f"labels.kappa = {self.kappa!r}: must be a number > 1 ({meaning}); the paper uses 3")
        if not isinstance(self.tau, int | float) or not 0 <= self.tau <= 1:
            raise UserError(f"labels.tau = {self.tau!r}: must be in [0, 1]; the paper uses 0.5")

    def __call__(self, lam_x_B: Tensor, count_a_B: Tensor, count_b_B: Tensor) -> Tensor:
        """lam_y_B, float32. Ratios are met at equality, lambdas are not."""
        # float64 throughout: int64 * float and float32 < float both round to float32 in torch, so that
        # ties would fall otherwise than for the same numbers in Python. A product, as 1/kappa is inexact.
        lam_B, n_a_B, n_b_B = lam_x_B.double(), count_a_B.double(), count_b_B.double()
        all_b_B = (n_a_B >= self.kappa * n_b_B) & (lam_B < self.tau)
        all_a_B = (n_b_B >= self.kappa * n_a_B) & (1 - lam_B < self.tau)  # never with all_b_B, as kappa > 1
        return lam_x_B.masked_fill(all_b_B, 0.0).masked_fill(all_a_B, 1.0)
