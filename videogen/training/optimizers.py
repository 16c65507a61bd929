"""Make the optimizer of a run: AdamW, also in 8 bits, or Muon on the matrices of the blocks and AdamW on the rest.

nn.Module, OptimConfig  ->  torch.optim.Optimizer;  step, OptimConfig  ->  learning rate
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from videogen.config.train import OptimConfig

MUON_MOMENTUM = 0.95  # Jordan et al. 2024
ParamGroups = list[dict[str, object]]


class MuonAdamW(Optimizer):
    """Muon and AdamW as one optimizer, with one state and one list of groups, of which the first is Muon's.

    Muon orthogonalises each matrix's momentum (Jordan et al. 2024), and scales the update to the size of AdamW's, so
    that both take the same learning rate (Liu et al. 2025, Eq. 4).
    """

    def __init__(self, matrices: ParamGroups, others: ParamGroups, config: OptimConfig) -> None:
        self.muon = Muon(matrices, lr=config.lr, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW(others, lr=config.lr, betas=config.betas, eps=1e-8, fused=True)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all weights by their gradients."""
        # Loading a checkpoint replaces state and groups, hence they are handed down anew in every step.
        self.muon.state = self.adamw.state = self.state
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.step()
        self.adamw.step()


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
