"""Muon (Jordan et al., 2024): the momentum of a weight matrix, made orthogonal, is its step; everything else learns by AdamW.

A matrix then moves as far in the directions that few samples ask for as in the one that most do. Adam's step follows the mean of the
inputs where that is large, which is how a projector over tokens of rms 4 to 9 lost all but four of its directions (docs/nano.md).

Steps have one size for matrices of every shape (Moonlight, arXiv 2502.16982, section 2.2), five times AdamW's at the same rate: in trials
of the embedded model that is where matrices learn fastest while the rest, at the same rate, stays stable.
"""

from typing import Any

import torch
from torch import Tensor

from fastvlm.model.precision import has_fast_bfloat16
from fastvlm.train.distributed import rank_and_processes, sum_over_processes

MOMENTUM = 0.95
STEP_RMS = 1.0  # of a step's elements, as a share of the rate; AdamW's have about 0.2
# Newton-Schulz iterations of degree 5 with the best coefficients for each (Polar Express, arXiv 2505.16932, its safety factor included)
_COEFFICIENTS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


class Muon(torch.optim.AdamW):
    """AdamW whose groups may say `orthogonal=True`: their parameters are matrices, or convolutions of 1 x 1.

    Each process makes a share of the matrices orthogonal. Parameters must be whole on every process, not sharded.
    """

    @staticmethod
    def first_state(parameter: Tensor, orthogonal: bool) -> dict[str, Tensor]:
        """What a parameter begins with when its first gradient comes."""
        moments = ("momentum",) if orthogonal else ("exp_avg", "exp_avg_sq")
        return {"step": torch.tensor(0.0), **{name: torch.zeros_like(parameter) for name in moments}}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        groups = [group for group in self.param_groups if group.get("orthogonal")]
        moved = [(group, p) for group in groups for p in group["params"] if p.grad is not None]
        for (group, p), direction in zip(moved, self._directions([p for _, p in moved]), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            matrix = p.flatten(1)
            p.add_(direction.view_as(p), alpha=-group["lr"] * STEP_RMS * max(matrix.shape) ** 0.5)
            p.grad = None  # done: AdamW passes over it
        return super().step(closure)

    def _directions(self, parameters: list[Tensor]) -> list[Tensor]:
        """The orthogonal momentum of each parameter, (out, in), the same on all processes."""
        rank, processes = rank_and_processes()
        load = [0.0] * processes
        owner = {}
        for index in sorted(range(len(parameters)), key=lambda index: -_cost(parameters[index])):
            owner[index] = load.index(min(load))
            load[owner[index]] += _cost(parameters[index])
        directions = []
        for index, p in enumerate(parameters):
            assert p.grad is not None
            state = self.state[p] = self.state[p] or self.first_state(p, orthogonal=True)
            state["step"] += 1
            momentum = state["momentum"].lerp_(p.grad, 1 - MOMENTUM)
            ahead = p.grad.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
            mine = owner[index] == rank
            directions.append(orthogonalize(ahead) if mine else torch.zeros_like(ahead, dtype=torch.bfloat16))
        if processes == 1 or not directions:
            return directions
        flat = sum_over_processes(torch.cat([direction.flatten() for direction in directions]))
        return [part.view_as(d) for part, d in zip(flat.split([d.numel() for d in directions]), directions, strict=True)]


def _cost(parameter: Tensor) -> float:
    short, long = sorted(parameter.flatten(1).shape)
    return 4.0 * short**2 * long + 2.0 * short**3


def orthogonalize(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T, nearly. (m, n) -> (m, n) in bfloat16, computed in it where it is fast.

    Its singular values come out between 0.85 and 1.15, those below a thousandth of the largest smaller.
    """
    x = matrix.to(torch.bfloat16 if has_fast_bfloat16(matrix.device) else torch.float32)
    if x.shape[0] > x.shape[1]:
        return orthogonalize(matrix.T).T
    x = x / (x.norm() * 1.02 + 1e-7)
    for a, b, c in _COEFFICIENTS:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.bfloat16()
