"""Muon: momentum whose update of every matrix is made orthogonal (Jordan et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# A quintic whose iterates bring all singular values near 1 in 5 rounds (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """For matrices, stacks of them (three dimensions), and convolutions, which are (out, the rest).

    Updates have the size of Adam's (root mean square 0.2 x lr; Liu et al. 2025, section 2.2), so
    one learning rate and decay suit both. torch's own takes matrices only.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        """Optimise `params`; raises ValueError for vectors and scalars, which are for AdamW."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        flat = [tuple(p.shape) for g in self.param_groups for p in g["params"] if p.dim() < 2]
        if flat:
            raise ValueError(
                f"Muon is for weights of 2 or more dimensions, got shapes {flat}; give these to "
                "AdamW."
            )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step with Nesterov momentum."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "mean" not in state:
                    state["mean"] = torch.zeros_like(p)
                mean = state["mean"]
                mean.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(mean, group["momentum"])
                update = update.flatten(1) if p.dim() > 3 else update
                size = 0.2 * max(update.shape[-2:]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonal(update).view_as(p), alpha=-group["lr"] * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return (..., a, b) float32 with the same singular vectors and singular values near 1."""
    a, b, c = COEFFICIENTS
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = (matrix if wide else matrix.mT).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide else x.mT).float()


def muon_and_adamw(
    matrices: Iterable[nn.Parameter], rest: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon at rate `lr` for `matrices`, AdamW at half of it for the rest."""
    return [
        Muon(matrices, lr, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr / 2, betas=(0.9, 0.95), weight_decay=weight_decay),
    ]


def by_kind(module: nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """`muon_and_adamw` for the weights of linear maps and convolutions, and all else it learns."""
    maps = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    matrices = [m.weight for m in maps if m.weight.requires_grad]
    known = {id(p) for p in matrices}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in known]
    return muon_and_adamw(matrices, rest, lr, weight_decay)


def warm_cosine(
    optimizers: Iterable[torch.optim.Optimizer], steps: int
) -> list[torch.optim.lr_scheduler.OneCycleLR]:
    """Bring rates up from nearly nothing over a twentieth of the steps, and down along a cosine."""
    return [
        torch.optim.lr_scheduler.OneCycleLR(
            o, o.param_groups[0]["lr"], steps, pct_start=0.051, cycle_momentum=False
        )
        for o in optimizers
    ]
