"""What a recipe makes of its clips, known before anything is loaded: sizes, tokens, packs, memory and time a step.

TrainConfig  ->  FolderPlan  ->  what train.py RECIPE --dry-run says
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from videogen.config.sizes import parse_patch
from videogen.config.train import DitConfig, TrainConfig
from videogen.models.hub import look_up_checkpoint
from videogen.packing.patch_schedule import Patch
from videogen.sampling.cost import dit_flop, matmul_flops, training_memory
from videogen.training.frozen_models import count_frozen, located
from videogen.training.pack_plan import (
    check_trained,
    dit_options,
    epoch_packs,
    num_facts,
    open_clips,
    packed_lengths,
    share_of,
    tell_untrained,
)

logger = logging.getLogger(__name__)
ROWS = 16  # of the table; the rest is one row


def network_config(dit: DitConfig) -> dict[str, object] | None:
    """The config of the DiT that a recipe trains; None while the checkpoints that decide it are not there."""
    if dit.init is not None:
        config = _read(dit.init / "transformer" / "config.json")
        if config is None:
            return None
        more = [list(parse_patch(name)) for name in dit.patches]
        known = [*cast("list[list[int]]", config.get("extra_patch_sizes", [])), *more]
        sizes = [patch for i, patch in enumerate(known) if patch not in known[:i]]
        asked = {"nearby": dit.nearby, "num_facts": num_facts(dit)}
        parts = {name: config.get(name) or value for name, value in asked.items()}
        if dit.widen:
            parts |= {"num_attention_heads": dit.num_attention_heads, "ffn_dim": dit.ffn_dim}
        return config | parts | {"extra_patch_sizes": sizes}
    vae, text = _read(dit.vae / "vae" / "config.json"), _read(dit.text / "text_encoder" / "config.json")
    if vae is None or text is None:
        return None
    return dit_options(dit, channels=vae["latent_channels"], text_dim=text.get("hidden_size", text.get("d_model")))


def _read(path: Path) -> dict[str, object] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


@dataclass(frozen=True, kw_only=True)
class FolderPlan:
    """What a folder becomes."""

    clips: list[dict[str, object]]
    """For each size and length: width, height, frames, tokens, and how many clips have it."""
    unusable: int
    """Files that cannot be read, each named before."""
    held_out: int
    """Clips kept for the validation loss."""
    tokens: int
    """Video tokens of all clips to train on."""
    fill: float | None
    """Share of the token budget that the packs of an epoch use; none for the VAE, which is not trained on packs."""
    steps_per_epoch: int
    """Optimiser steps in which every clip is seen data.repeats times."""
    more_steps: dict[str, int] = field(default_factory=dict)
    """For each further patch size, as many in which the clips that are trained in it are seen."""
    weights: int | None = None
    """Values that are trained; none where it is not known."""
    frozen_weights: int | None = None
    """Values that stay as they are: those a LoRA stands beside, the VAE's, the text encoder's."""
    memory_gb: float | None = None
    """Weights, optimiser, averages and the activations of a pack; none where it is not known."""
    seconds_per_step: float | None = None
    """On this machine's processor."""


def plan_folder(config: TrainConfig) -> FolderPlan:
    """Look at the clips of a recipe and pack the first epoch of them."""
    data, seed = config.data, config.run.seed
    config = replace(config, dit=located(config.dit, lambda path: look_up_checkpoint(path) or path))
    network = network_config(config.dit) if config.stage == "dit" else None
    pt, ph, pw = network["patch_size"] if network else config.dit.patch_size  # type: ignore[misc]
    patch: Patch = (pt, ph, pw)
    folder = open_clips(data, patch, seed)
    train, held = folder.split()
    lengths = packed_lengths(folder.entries, patch, patch)
    sizes = Counter((e.width, e.height, e.frames, n) for e, n in zip(folder.entries, lengths, strict=True))
    names = ("width", "height", "frames", "tokens")
    clips = [dict(zip(names, size, strict=True)) | {"clips": num} for size, num in sorted(sizes.items())]
    tokens = sum(lengths[index] for index in train)
    common = {"clips": clips, "unusable": len(getattr(folder, "problems", ())), "held_out": len(held), "tokens": tokens}
    if config.stage == "vae":
        return FolderPlan(**common, fill=None, steps_per_epoch=math.ceil(len(train) / config.vae.batch_clips))  # type: ignore[arg-type]
    every = {patch: lengths}
    every |= {other: packed_lengths(folder.entries, other, patch) for other in map(parse_patch, config.dit.patches)}
    check_trained(every, train, patch, config)
    tell_untrained({other: own for other, own in every.items() if share_of(other, patch, config.dit)}, train)
    packs = epoch_packs(lengths, train, data, seed, epoch=0)
    fill = sum(lengths[index] for packed in packs for index in packed) / (len(packs) * data.token_budget)
    more = {
        name: len(epoch_packs(every[other], train, data, seed, epoch=0)) if share_of(other, patch, config.dit) else 0
        for name, other in ((name, parse_patch(name)) for name in config.dit.patches)
    }
    plan = FolderPlan(**common, fill=fill, steps_per_epoch=len(packs), more_steps=more)  # type: ignore[arg-type]
    return plan if network is None else _with_cost(plan, config, network, [lengths[i] for p in packs for i in p])


def _with_cost(plan: FolderPlan, config: TrainConfig, network: dict[str, object], lengths: Sequence[int]) -> FolderPlan:
    import torch

    from videogen.models.dit import VideoDiT
    from videogen.training.lora import adapt

    with torch.device("meta"):
        model = cast("VideoDiT", VideoDiT.from_config(network))
        model = adapt(model, config.dit, seed=0) if config.dit.lora_rank else model
    weights, frozen = (sum(p.numel() for p in model.parameters() if p.requires_grad is some) for some in (True, False))
    frozen += count_frozen(config.dit)
    sizes = {name: value for name, value in network.items() if isinstance(value, int)}
    recompute = config.dit.gradient_checkpointing
    averages = len(config.optim.ema)
    memory = training_memory(
        sizes, config.data.token_budget, weights, frozen=frozen, averages=averages, recompute=recompute
    )
    forward = sum(dit_flop(sizes, length) for length in lengths) / plan.steps_per_epoch
    # The gradient costs twice the way forward, once where the weights themselves need none.
    flop = forward * ((3 if recompute else 2) + (not config.dit.lora_rank))
    seconds = None if torch.cuda.is_available() else flop / (0.6 * matmul_flops())
    return replace(plan, weights=weights, frozen_weights=frozen, memory_gb=round(memory, 2), seconds_per_step=seconds)


def tell(plan: FolderPlan, config: TrainConfig) -> str:
    """The plan as a table and a few lines."""
    shown = sorted(plan.clips, key=lambda row: -row["clips"])[:ROWS]  # type: ignore[operator]
    rest = [row for row in plan.clips if row not in shown]
    lines = [f"{'size':>9}  {'frames':>6}  {'tokens':>6}  {'clips':>7}"]
    for row in sorted(shown, key=lambda row: row["tokens"]):  # type: ignore[arg-type,return-value]
        size = f"{row['width']}x{row['height']}"
        lines.append(f"{size:>9}  {row['frames']:>6}  {row['tokens']:>6}  {row['clips']:>7,}")
    if rest:
        num = sum(row["clips"] for row in rest)  # type: ignore[misc]
        tokens = [row["tokens"] for row in rest]
        span = f"{min(tokens)}-{max(tokens)}"  # type: ignore[type-var]
        lines.append(f"{len(rest):>3} more".rjust(9) + f"  {'':>6}  {span:>6}  {num:>7,}")
    num_clips = sum(row["clips"] for row in plan.clips)  # type: ignore[misc]
    lines.append(f"{num_clips:,} clips, {plan.held_out} of them held out, {plan.unusable} files not usable")
    if plan.fill is None:
        return "\n".join([*lines, f"{plan.steps_per_epoch:,} steps an epoch of {config.vae.batch_clips} clips each"])
    budget = config.data.token_budget
    packs = f"{plan.steps_per_epoch:,} packs of at most {budget:,} tokens, {plan.fill:.1%} full"
    lines.append(f"{plan.tokens:,} tokens to train on: an epoch is {packs}, a step each on one device")
    for name, steps in plan.more_steps.items():
        lines.append(f"patch {name} goes through the clips that are trained in it in {steps:,} packs")
    if plan.memory_gb is None:
        lines.append(f"memory and time are not known before {config.dit.init or config.dit.vae} is there")
    else:
        seconds = plan.seconds_per_step
        time = "" if seconds is None else f", about {seconds:.2g} seconds a step on this processor"
        lines.append(f"about {plan.memory_gb:.1f} GB of memory{time}")
    return "\n".join(lines)
