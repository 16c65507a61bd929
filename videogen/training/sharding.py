"""Divide a model's weights among processes (FSDP2), in one copy among all of them or in several copies (HSDP).

accelerate's configuration  ->  Shards;  DiT, Shards  ->  ShardedModel;  tensors in parts  <->  whole tensors

accelerate itself leaves FSDP out in silence where there are only CPUs, so it launches the processes and torch shards.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from videogen.config.train import TrainConfig
from videogen.models.dit_blocks import Block
from videogen.models.dit_network import DiT

logger = logging.getLogger(__name__)
LAUNCHER_FLAGS = ASKS, ASKS_FOR_COPIES = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG"
SUPPORTED = {
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_IGNORED_MODULES": "",
    "PARALLELISM_CONFIG_TP_SIZE": "1",
    "PARALLELISM_CONFIG_CP_SIZE": "1",
    "PARALLELISM_CONFIG_SP_SIZE": "1",
}
"""The settings of accelerate that would train otherwise, and their one value here."""


class HasModel(Protocol):
    """A stage of training, of which only the model matters here."""

    model: nn.Module


class Shards(NamedTuple):
    """How the weights are divided: copies x parts processes."""

    copies: int  # of the whole model: 1 is FSDP, more are HSDP
    parts: int  # of each copy, one a process
    reshard: bool  # free a block's gathered weights after its forward pass, and gather them again for the backward


def read_shards(config: TrainConfig, environment: Mapping[str, str] = os.environ) -> Shards | None:
    """Read what `accelerate launch` was configured to shard; None if nothing.

    Raises a ValueError for a setting or a recipe that is not trained in shards.
    """
    if environment.get(ASKS, "false").lower() != "true":
        return None
    for name, value in SUPPORTED.items():
        if (given := environment.get(name, value)).lower() != value.lower():
            raise ValueError(
                f"weights in shards are trained with {name.lower()} {value!r}, got {given!r}; launch with "
                "configs/fsdp.yaml or configs/hsdp.yaml"
            )
    recipe = {"optim.optimizer = 'muon'": config.optim.optimizer == "muon", "run.compile": config.run.compile}
    if refused := [name for name, is_set in recipe.items() if is_set]:
        raise ValueError(f"weights in shards are not trained with {refused[0]}; leave it out, or launch with torchrun")
    num = int(environment.get("WORLD_SIZE", "1"))
    sizes = "1", str(num)
    if environment.get(ASKS_FOR_COPIES, "false").lower() == "true":
        sizes = tuple(environment.get(f"PARALLELISM_CONFIG_DP_{name}_SIZE", "1") for name in ("REPLICATE", "SHARD"))
    copies, parts = map(int, sizes)
    if num == 1 or copies * parts != num:
        raise ValueError(
            f"{copies} copies of the weights in {parts} parts each need {max(2, copies * parts)} processes, got {num}; "
            "give accelerate launch --num_processes and the sizes of configs/hsdp.yaml, or launch with torchrun"
        )
    return Shards(copies, parts, environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true")


def shard_model(stage: HasModel, shards: Shards, device: torch.device) -> ShardedModel | None:
    """Divide the model of a stage among the processes; None, and a warning, for a VAE, which is small."""
    if isinstance(stage.model, DiT):
        return ShardedModel(stage.model, shards, device)
    logger.warning("the VAE is not divided: every process holds the whole of it, as under torchrun")
    return None


class ShardedModel:
    """A DiT of which each process holds a part, and which the first process has whole where a step does not need it."""

    def __init__(self, model: DiT, shards: Shards, device: torch.device) -> None:
        """Divide the weights of the first process: those of the other processes are not used."""
        for param in model.parameters():
            dist.broadcast(weight := param.data.to(device), src=0)
            param.data.copy_(weight)
        self.model, self.device = model, device
        self.whole = copy.deepcopy(model) if dist.get_rank() == 0 else None  # on the host
        sizes = {"copies": shards.copies, "parts": shards.parts} if shards.copies > 1 else {"parts": shards.parts}
        mesh = init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        for block in cast("Iterable[Block]", model.blocks):
            # The model computes keys and values of the texts before it runs the blocks, so they are gathered apart.
            keys_and_values = [block.attn2.to_k, block.attn2.norm_k, block.attn2.to_v]
            fully_shard(keys_and_values, mesh=mesh, reshard_after_forward=shards.reshard)
            fully_shard(block, mesh=mesh, reshard_after_forward=shards.reshard)
        fully_shard(model, mesh=mesh)

    @contextmanager
    def lend_whole(self, stage: HasModel, weights: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
        """Give the stage of the first process a model with these weights, whole, for which the others wait."""
        params = {} if self.whole is None else dict(self.whole.named_parameters())
        for name, weight in weights:
            gathered = gather_one(weight)
            if params:
                params[name].data.copy_(gathered)
        if self.whole is not None:
            stage.model = self.whole.to(self.device)
        try:
            yield
        finally:
            if self.whole is not None:
                stage.model = self.model
                self.whole.to("cpu")
        wait_for_all()


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, whose memory it shares; the tensor itself if it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_one(tensor: Tensor) -> Tensor:
    """Gather a tensor on the host, if it is in parts; all processes must take part."""
    return cast("DTensor", tensor.detach()).full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Iterable[tuple[str, Tensor]], *, keep: bool) -> dict[str, Tensor]:
    """Gather tensors one after another; a process that does not keep them has one at a time, and returns none."""
    wait_for_all()
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors:
        gathered = gather_one(tensor)
        if keep:
            whole[name] = gathered
    return whole


def wait_for_all() -> None:
    """Wait while the first process writes or samples: other calls give up after ten minutes where there are copies."""
    if dist.is_initialized():
        dist.barrier()


def copy_whole(whole: Tensor, target: Tensor) -> None:
    """Copy a tensor into another of its shape, of which each process may hold a part."""
    if isinstance(target, DTensor):
        whole = distribute_tensor(whole.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(whole)
