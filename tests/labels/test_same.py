"""Same gives lambda_x back."""

import torch

from remix_dist.labels.same import Same


def test_lambda_passes():
    lam = torch.tensor([0.0, 0.3, 1.0])
    counts = torch.tensor([1000, 1, 5])
    assert torch.equal(Same()(lam, counts, counts.flip(0)), lam)
