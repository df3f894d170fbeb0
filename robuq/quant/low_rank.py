"""The full-precision low-rank branch: where its two factors start."""

from __future__ import annotations

import torch
from torch import Tensor


def low_rank_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """weight: (O, I) -> left (O, r), right (r, I), the best rank-r approximation left @ right of the weight.

    weight ~ U_r S_r V_r^T; left = U_r sqrt(S_r), right = sqrt(S_r) V_r^T (paper, section 4: the branch is
    initialised from the rotated weight).
    """
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    root = s[:rank].sqrt()
    left, right = u[:, :rank] * root, root[:, None] * vt[:rank]
    return left.to(weight.dtype).contiguous(), right.to(weight.dtype).contiguous()


def zero_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the same shapes as `low_rank_factors` gives, all zero."""
    return weight.new_zeros(weight.shape[0], rank), weight.new_zeros(rank, weight.shape[1])
