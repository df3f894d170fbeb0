"""The inception-style score: confident and varied predictions score high."""

from __future__ import annotations

import torch
from torch import Tensor


def classifier_score(logits: Tensor, splits: int = 1) -> tuple[float, float]:
    """(N, K) -> mean and standard deviation over the splits of exp(mean KL(p(y|x) || p(y))), from 1 to K.

    Split i takes every `splits`-th image from the i-th on, so that labels in order do not end up in different
    splits. A split's standard deviation is 0 where there is one. Source: Salimans et al. 2016.

    Raises:
        ValueError: more splits than images.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"cannot split {len(logits)} images {splits} times: use 1 to {len(logits)} splits")
    log_p = logits.double().log_softmax(dim=1)
    scores = torch.stack([_score(log_p[start::splits]) for start in range(splits)])
    return float(scores.mean()), float(scores.std(correction=0))


def _score(log_p: Tensor) -> Tensor:
    p = log_p.exp()
    log_marginal = p.mean(dim=0).log()
    # p log p is 0 where p underflows, also where the marginal does
    terms = torch.where(p > 0, p * (log_p - log_marginal), 0)
    return terms.sum(dim=1).mean().exp()
