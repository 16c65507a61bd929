"""Make the optimizer of a run: AdamW, also in 8 bits, or Muon on the matrices of the blocks and AdamW on the rest.

nn.Module, OptimConfig  ->  torch.optim.Optimizer;  step, OptimConfig  ->  learning rate
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from videogen.config.train import OptimConfig
from videogen.models.precision import lacks_bf16_instructions

MUON_MOMENTUM = 0.95  # Jordan et al. 2024
ParamGroups = list[dict[str, object]]


class MuonAdamW(Optimizer):
    """Muon and AdamW as one optimizer, with one state and one list of groups, of which the first is Muon's.

    Muon orthogonalises each matrix's momentum (Jordan et al. 2024), and scales the update to the size of AdamW's, so
    that both take the same learning rate (Liu et al. 2025, Eq. 4). Several processes orthogonalise a share each.
    """

    def __init__(self, matrices: ParamGroups, others: ParamGroups, config: OptimConfig) -> None:
        self.adamw = AdamW(others, lr=config.lr, betas=config.betas, eps=1e-8, fused=True)
        super().__init__([{"lr": config.lr, **group} for group in matrices] + self.adamw.param_groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all weights by their gradients."""
        self.step_matrices(self.param_groups[0])
        # Loading a checkpoint replaces state and groups, hence they are handed down anew in every step.
        self.adamw.state, self.adamw.param_groups = self.state, self.param_groups[1:]
        self.adamw.step()

    def step_matrices(self, group: dict[str, Any]) -> None:
        """Take Muon's step with Nesterov's momentum; every process gets each update from the one that computed it."""
        shares = dist.is_available() and dist.is_initialized()
        rank, world = (dist.get_rank(), dist.get_world_size()) if shares else (0, 1)
        updates, waits = list[tuple[Tensor, Tensor]](), []
        for index, weight in enumerate(weight for weight in group["params"] if weight.grad is not None):
            state = self.state[weight] or {"momentum_buffer": torch.zeros_like(weight)}
            self.state[weight], momentum = state, state["momentum_buffer"]
            momentum.lerp_(weight.grad, 1 - MUON_MOMENTUM)
            update, source = torch.empty_like(weight), index % world
            if source == rank:
                update.copy_(orthogonalise(weight.grad.lerp(momentum, MUON_MOMENTUM)))
            if world > 1:
                waits.append(dist.broadcast(update, source, async_op=True))
            updates.append((weight, update))
        for wait in waits:
            wait.wait()
        for weight, update in updates:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return nearly the orthogonal factor of a matrix by five Newton-Schulz iterations (Jordan et al. 2024).

    Its singular values lie in about [0.5, 1.5]. The products are in bf16, and in float32 on CPUs that lack bf16
    instructions, where those take far longer.
    """
    wide = matrix if matrix.size(0) <= matrix.size(1) else matrix.T
    x = wide if lacks_bf16_instructions(matrix.device) else wide.bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if wide is matrix else x.T


def make_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Make the optimizer of a recipe; weight decay applies to matrices and kernels only."""
    named = {name: param for name, param in model.named_parameters() if param.requires_grad}
    in_blocks = [param for name, param in named.items() if config.optimizer == "muon" and is_block_matrix(name, param)]
    taken = set(map(id, in_blocks))
    rest = [param for param in named.values() if id(param) not in taken]
    groups: ParamGroups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw8bit":
        from videogen.training.adamw8bit import PlainAdamW8bit

        return PlainAdamW8bit(groups, lr=config.lr, betas=config.betas, eps=1e-8)
    if in_blocks:
        return MuonAdamW([{"params": in_blocks, "weight_decay": config.weight_decay}], groups, config)
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8, fused=True)


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """Return a step's learning rate: linear warmup, constant, then linear decay to zero in the run's last share."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = max(1, round(total * config.decay_share))
    return config.lr * warmup * min(1.0, (total - step) / decay_steps)


def is_block_matrix(name: str, param: nn.Parameter) -> bool:
    """True for a weight matrix within the blocks, where Muon works; embeddings and heads keep AdamW."""
    return param.ndim == 2 and "blocks." in name
