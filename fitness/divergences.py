"""How next-token distributions and hidden states differ: tensors in, one number per position out.

Distributions are natural logarithms of probabilities, shape `(n_positions, n_tokens)`, fp32 or
fp64; results are in nats, shape `(n_positions,)`. NaN goes through.
"""

import torch
from torch import Tensor


def entropy(log_p: Tensor) -> Tensor:
    """`-sum p ln p`, what AdaMerging minimises (Yang et al. 2024)."""
    terms: Tensor = torch.special.entr(log_p.exp())
    return terms.sum(dim=-1)


def kullback_leibler(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`KL(p || q) = sum p (ln p - ln q)`; 0 for equal ones, infinite where only q is 0."""
    p = log_p.exp()
    sums = (p * (log_p - log_q)).sum(dim=-1)
    if sums.isnan().any():
        # Where p is 0 the term is 0, whatever q is; -inf - -inf is not.
        sums = torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(dim=-1)
    # By definition not negative; a sum of rounded terms may be.
    return sums.clamp(min=0.0)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Mean KL of both to their mixture (Lin 1991): symmetric, between 0 and ln 2."""
    p, q = log_p.exp(), log_q.exp()
    limits = torch.finfo(p.dtype)
    # Limits, so that a term with p = 0 is 0 and not 0 times infinity.
    log_m = ((p + q) / 2).clamp(min=limits.tiny).log()
    of_p = p * (log_p.clamp(min=limits.min) - log_m)
    of_q = q * (log_q.clamp(min=limits.min) - log_m)
    return ((of_p + of_q).sum(dim=-1) / 2).clamp(min=0.0)


def cosine(h: Tensor, other: Tensor) -> Tensor:
    """Cosine of the angle between hidden states, over the last dimension; 0 for zero vectors."""
    return torch.nn.functional.cosine_similarity(h, other, dim=-1)
