"""Mathematics of the algorithms: pure functions on tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PolicyLoss(NamedTuple):
    """A clipped policy loss and what to watch beside it; scalars, only `loss` has a gradient."""

    loss: Tensor
    clip_fraction: Tensor
    """Share of unmasked events whose ratio was clipped against them."""
    approx_kl: Tensor
    """Estimate of KL(old, new) an event: mean of ratio - 1 - log(ratio), never negative."""


def group_advantage(
    returns: Tensor, group_size: int, keep_low: float = 0.1, keep_high: float = 0.9
) -> tuple[Tensor, Tensor]:
    """Advantage of every trajectory within its group, and which groups carry signal.

    (R - mean) / (std + 1e-6) with the unbiased std (WMPO, section 3.4 and code); a group is kept
    when its mean return lies in [keep_low, keep_high].

    returns: (g * group_size,) float, members of a group are neighbours.
    Gives the advantage (g * group_size,) and keep (g,) bool. Raises ValueError on ragged groups.
    """
    if group_size < 2 or returns.numel() % group_size:
        raise ValueError(
            f"{returns.numel()} returns cannot be split into groups of {group_size}; "
            "use groups of at least 2 and a multiple of group_size trajectories."
        )
    r = returns.float().view(-1, group_size)  # (g, s)
    mean = r.mean(1, keepdim=True)
    advantage = (r - mean) / (r.std(1, keepdim=True) + 1e-6)
    tolerance = 1e-6  # 0.1 and 0.9 are not exact in binary
    keep = (mean >= keep_low - tolerance) & (mean <= keep_high + tolerance)
    return advantage.flatten(), keep.squeeze(1)


def clipped_policy_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    clip_low: float = 0.20,
    clip_high: float = 0.28,
) -> PolicyLoss:
    """PPO's clipped loss with one advantage a trajectory and one ratio a token (WMPO's code).

    Mean over the unmasked tokens of each trajectory, then mean over trajectories (GRPO, eq. 3).

    log_prob, old_log_prob: (n, events); advantage: (n,); mask: (n, events) bool.
    """
    log_ratio = torch.where(mask, log_prob - old_log_prob, 0.0)  # masked tokens may hold anything
    ratio = log_ratio.exp()
    a = advantage.unsqueeze(1)
    gain, clipped = ratio * a, ratio.clamp(1 - clip_low, 1 + clip_high) * a
    loss = masked_mean(-torch.minimum(gain, clipped), mask).mean()
    with torch.no_grad():
        kl = (ratio - 1 - log_ratio)[mask].mean()
        clip_fraction = (clipped < gain)[mask].float().mean()
    return PolicyLoss(loss, clip_fraction, kl)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the unmasked entries of each row; 0 for rows without any. (n, e) -> (n,)."""
    return (x * mask).sum(1) / mask.sum(1).clamp(min=1)


def token_cross_entropy(
    logits: Tensor, token: Tensor, mask: Tensor, neighbours: float = 0.0
) -> Tensor:
    """Mean cross-entropy of action tokens over the unmasked ones; a scalar, in nats.

    `neighbours` > 0 spreads each target over nearby bins as a Gaussian with that standard
    deviation (in bins), because bins are ordered: one bin off is a small mistake.

    logits: (n, events, bins) float32; token: (n, events) int64; mask: (n, events) bool.
    """
    log_p = F.log_softmax(logits.float(), dim=-1)
    if neighbours > 0:
        bins = torch.arange(logits.shape[-1], device=logits.device)
        distance = (bins - token.unsqueeze(-1)) / neighbours  # (n, events, bins)
        loss = -(torch.softmax(-0.5 * distance.square(), -1) * log_p).sum(-1)
    else:
        loss = -log_p.gather(-1, token.unsqueeze(-1)).squeeze(-1)
    return (loss * mask).sum() / mask.sum().clamp(min=1)
