"""Take one gradient step of a tiny DiT in shards, as each of two processes: light enough to be started in seconds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from videogen.models.dit_network import DiT
from videogen.packing.noise import levels_per_clip
from videogen.packing.packs import pack, pack_texts
from videogen.training.ema import PowerEMA
from videogen.training.sharding import ShardedModel, Shards, gather, gather_one, own_part

CPU = torch.device("cpu")
WAYS = [Shards(1, 2, reshard=True), Shards(1, 2, reshard=False), Shards(2, 1, reshard=True)]
MAX_NORM = 0.1


def make_dit(seed: int) -> DiT:
    """Make two blocks of width 24 with random weights; the last extra patch size is not trained."""
    torch.manual_seed(seed)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 32}
    return DiT(**sizes, freq_dim=32, ffn_dim=48, num_layers=2, extra_patch_sizes=[(1, 4, 4)])  # type: ignore[arg-type]


def loss_of(dit: DiT, rank: int) -> Tensor:
    """Compute the mean square of what a model predicts for the pack of one process."""
    generator = torch.Generator().manual_seed(rank)
    video = pack([torch.randn(4, 2, 4, 4 + 2 * rank, generator=generator)], (1, 2, 2))
    text = pack_texts([torch.randn(3 + rank, 32, generator=generator)])
    out = dit(video, levels_per_clip(torch.tensor([0.3]), video.lengths), text)
    return (out - 1).square().mean()


def step_in_shards(shards: Shards, rank: int) -> dict[str, Tensor]:
    """Compute loss, gradient, its norm and the averages after it was added to the weights, all of them whole."""
    sharded = ShardedModel(make_dit(seed=rank), shards, CPU)  # the first process's weights are those of both
    model, stage = sharded.model, SimpleNamespace(model=sharded.model)
    ema = PowerEMA(model, (0.1,))
    loss = loss_of(model, rank)
    loss.backward()
    trained = {name: param for name, param in model.named_parameters() if param.grad is not None}
    gradients = ((f"gradient {name}", cast("Tensor", param.grad).clone()) for name, param in trained.items())
    gradient = gather(gradients, keep=True)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    with torch.no_grad():
        for param in trained.values():
            param.add_(param.grad)  # type: ignore[arg-type]
    ema.update(2)
    named = zip(ema.names, ema.copies[0], strict=True)
    averages = gather(((f"average {name}", copy) for name, copy in named), keep=True)
    with sharded.lend_whole(stage, zip(ema.names, ema.copies[0], strict=True)):  # type: ignore[arg-type]
        lent = loss_of(stage.model, 0) if rank == 0 else torch.zeros(())  # the other has no part in it
    assert stage.model is model
    part = torch.tensor(float(sum(own_part(param).numel() for param in model.parameters())))
    numbers = {"loss": loss.detach(), "norm": gather_one(norm), "part": part, "lent": lent.detach()}
    return numbers | gradient | averages


def run(rank: int, folder: str) -> None:
    """Save what each way of sharding has computed in a process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save([step_in_shards(shards, rank) for shards in WAYS], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
