"""Plan a training run before anything is loaded: clip sizes, tokens, packs, memory and time per step.

TrainConfig  ->  FolderPlan  ->  the report of train.py RECIPE --dry-run
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, cast

import torch

from videogen.config.sizes import parse_patch
from videogen.config.train import DitConfig, TrainConfig
from videogen.data.splits import list_changes
from videogen.models.dit import VideoDiT
from videogen.models.hub import look_up_checkpoint
from videogen.models.precision import resolve_mixed_precision
from videogen.models.quantised_linear import count_base_bytes
from videogen.packing.patch_schedule import Patch
from videogen.sampling.cost import Config, clip_seconds, dit_flop
from videogen.training.frozen_models import count_frozen_weights, resolve_checkpoints
from videogen.training.lora import add_lora
from videogen.training.memory import StepMemory, count_activations, count_trained
from videogen.training.pack_plan import (
    check_cache,
    count_latent_bytes,
    dit_options,
    epoch_packs,
    num_facts,
    open_clips,
    packed_lengths,
    plan_lengths,
    split_folder,
)

MAX_ROWS = 16  # of the table; all further sizes share one row


def network_config(dit: DitConfig) -> dict[str, object] | None:
    """Return the config of the DiT that a recipe trains, or None if the checkpoints that decide it are missing."""
    if dit.init is None:
        vae, text = _read_config(dit.vae, "vae"), _read_config(dit.text, "text_encoder")
        if vae is None or text is None:
            return None
        return dit_options(dit, channels=vae["latent_channels"], text_dim=text.get("hidden_size", text.get("d_model")))
    config = _read_config(dit.init, "transformer")
    if config is None:
        return None
    patches = [*cast("list[list[int]]", config.get("extra_patch_sizes", [])), *map(parse_patch, dit.patches)]
    changes: dict[str, object] = {
        "nearby": config.get("nearby") or dit.nearby,
        "num_facts": config.get("num_facts") or num_facts(dit),
        "extra_patch_sizes": [list(patch) for patch in dict.fromkeys(map(tuple, patches))],
    }
    if dit.widen:
        changes |= {"num_attention_heads": dit.num_attention_heads, "ffn_dim": dit.ffn_dim}
    return config | changes


def _read_config(folder: Path, part: str) -> dict[str, object] | None:
    path = folder / part / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


class StepCost(NamedTuple):
    """What a step of a DiT's training takes."""

    weights: int  # trained values
    frozen_weights: int  # values that are not trained: a LoRA's model, the VAE, the text encoder
    memory_gb: float  # all of memory_mb, as much of it as there is at once
    memory_mb: dict[str, int]  # by the parts of StepMemory
    seconds_per_step: float | None  # on this machine's CPU; None with an accelerator


@dataclass(frozen=True, kw_only=True)
class FolderPlan:
    """The clips, packs and cost of a training run; what is not known is None."""

    clips: list[dict[str, int]]  # for each size and length: width, height, frames, tokens, and how many clips have it
    unusable: int  # files that cannot be read; each was reported by name
    held_out: int  # clips kept for the validation loss
    came: Sequence[str]  # clips of the folder that the run did not begin with
    went: Sequence[str]  # clips that it began with and that are not there any more
    tokens: int  # video tokens of all training clips
    fill: float | None = None  # share of the token budget that the packs of an epoch use; the VAE has no packs
    packs_per_epoch: int = 0  # in which every clip is seen data.repeats times
    steps_per_epoch: int = 0  # optimiser steps on one device for these, optim.accumulate packs each
    more_steps: dict[str, int] = field(default_factory=dict)  # the same for each extra patch size and its clips
    weights: int | None = None  # as in StepCost
    frozen_weights: int | None = None
    memory_gb: float | None = None
    memory_mb: dict[str, int] = field(default_factory=dict)
    latents_gb: float | None = None  # what the run keeps on disk of its clips
    seconds_per_step: float | None = None


def plan_folder(config: TrainConfig) -> FolderPlan:
    """Read the headers of a recipe's clips, pack the first epoch and estimate the cost of a step."""
    data, seed, accumulate = config.data, config.run.seed, config.optim.accumulate
    config = replace(config, dit=resolve_checkpoints(config.dit, lambda path: look_up_checkpoint(path) or path))
    network = network_config(config.dit) if config.stage == "dit" else None
    pt, ph, pw = network["patch_size"] if network else config.dit.patch_size  # type: ignore[misc]
    base: Patch = (pt, ph, pw)
    folder = open_clips(data, base, seed)
    split = split_folder(folder, config)
    train, val = split.train, split.val
    lengths = packed_lengths(folder.entries, base, base)
    sizes = Counter((e.width, e.height, e.frames, n) for e, n in zip(folder.entries, lengths, strict=True))
    names = ("width", "height", "frames", "tokens")
    clips = [dict(zip(names, size, strict=True)) | {"clips": num_clips} for size, num_clips in sorted(sizes.items())]
    tokens, unusable = sum(lengths[index] for index in train), len(getattr(folder, "problems", ()))
    plan = FolderPlan(
        clips=clips, unusable=unusable, held_out=len(val), tokens=tokens, came=split.came, went=split.went
    )
    if config.stage == "vae":
        return replace(plan, steps_per_epoch=math.ceil(len(train) / (config.vae.batch_clips * accumulate)))
    extra = {name: parse_patch(name) for name in config.dit.patches}
    all_lengths, trained = plan_lengths(folder.entries, train, [base, *extra.values()], config)
    packs = {patch: epoch_packs(all_lengths[patch], train, data, seed, epoch=0) for patch in {base, *trained}}
    packed = [lengths[index] for pack in packs[base] for index in pack]
    plan = replace(
        plan,
        fill=sum(packed) / (len(packs[base]) * data.token_budget),
        packs_per_epoch=len(packs[base]),
        steps_per_epoch=math.ceil(len(packs[base]) / accumulate),
        more_steps={
            name: math.ceil(len(packs[patch]) / accumulate) if patch in trained else 0 for name, patch in extra.items()
        },
    )
    if network is None:
        return plan
    num_bytes = count_latent_bytes(folder, int(str(network["out_channels"])))
    check_cache(num_bytes, folder, data)
    plan = replace(plan, latents_gb=float(f"{num_bytes / 1e9:.3g}"))
    return replace(plan, **step_cost(config, network, packed, plan.packs_per_epoch)._asdict())


def step_cost(
    config: TrainConfig, network: dict[str, object], lengths: Sequence[int], packs_per_epoch: int
) -> StepCost:
    """Estimate the weights, the memory and the time of a step; lengths are the tokens of an epoch's clips."""
    with torch.device("meta"):
        model = cast("VideoDiT", VideoDiT.from_config(network))
        base = count_base_bytes(model, config.dit.base_dtype) if config.dit.lora_rank else 0
        model = add_lora(model, config.dit, seed=0) if config.dit.lora_rank else model
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    others = count_frozen_weights(config.dit)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad) + sum(others.values())
    sizes = {name: value for name, value in network.items() if isinstance(value, int)}
    recompute, waits = config.dit.gradient_checkpointing, config.dit.base_dtype != "float32"
    halves = waits and resolve_mixed_precision(config.run).mixed_precision == "bf16"
    memory = StepMemory(
        base,
        4 * others["vae"],
        (2 if halves else 4) * others["text_encoder"],
        *count_trained(weights, config.optim.optimizer, len(config.optim.ema)),
        count_activations(sizes, config.data.token_budget, recompute=recompute),
    )
    forward = sum(dit_flop(cast("Config", network), length) for length in lengths) / packs_per_epoch
    forward *= config.optim.accumulate
    # The backward pass costs twice the forward pass, or once if the weights themselves need no gradient.
    flop = forward * ((3 if recompute else 2) + (not config.dit.lora_rank))
    seconds = None if torch.cuda.is_available() else clip_seconds(flop)
    megabytes = {name: round(num_bytes / 1e6) for name, num_bytes in memory._asdict().items()}
    return StepCost(weights, frozen, round(memory.total(encoder_waits=waits) / 1e9, 2), megabytes, seconds)


def format_plan(plan: FolderPlan, config: TrainConfig) -> str:
    """Format the plan as a table of clip sizes and a few lines."""
    by_frequency = sorted(plan.clips, key=lambda row: -row["clips"])
    shown, rest = by_frequency[:MAX_ROWS], by_frequency[MAX_ROWS:]
    lines = [f"{'size':>9}  {'frames':>6}  {'tokens':>6}  {'clips':>7}"]
    for row in sorted(shown, key=lambda row: row["tokens"]):
        size = f"{row['width']}x{row['height']}"
        lines.append(f"{size:>9}  {row['frames']:>6}  {row['tokens']:>6}  {row['clips']:>7,}")
    if rest:
        num_clips, tokens = sum(row["clips"] for row in rest), [row["tokens"] for row in rest]
        span = f"{min(tokens)}-{max(tokens)}"
        lines.append(f"{len(rest):>3} more".rjust(9) + f"  {'':>6}  {span:>6}  {num_clips:>7,}")
    num_clips = sum(row["clips"] for row in plan.clips)
    lines.append(f"{num_clips:,} clips, {plan.held_out} of them held out, {plan.unusable} files not usable")
    if changes := list_changes(plan.came, plan.went):
        lines.append(changes)
    if plan.fill is None:
        clips = config.vae.batch_clips * config.optim.accumulate
        return "\n".join([*lines, f"{plan.steps_per_epoch:,} steps an epoch of {clips} clips each"])
    packs = f"{plan.packs_per_epoch:,} packs of at most {config.data.token_budget:,} tokens, {plan.fill:.1%} full"
    each = "a step each" if (num := config.optim.accumulate) == 1 else f"{num} a step, {plan.steps_per_epoch:,} steps"
    lines.append(f"{plan.tokens:,} tokens to train on: an epoch is {packs}, {each} on one device")
    for name, num_steps in plan.more_steps.items():
        lines.append(f"patch {name} goes through the clips that are trained in it in {num_steps:,} steps")
    if plan.memory_gb is None:
        lines.append(f"memory and time are not known before {config.dit.init or config.dit.vae} is there")
    else:
        seconds = plan.seconds_per_step
        time = "" if seconds is None else f", about {seconds:.2g} seconds a step on this processor"
        lines.append(
            f"about {plan.memory_gb:.1f} GB of memory{time}; {1000 * (plan.latents_gb or 0):,.1f} MB of latents on disk"
        )
        lines.append(describe_memory(plan, config))
    return "\n".join(lines)


def describe_memory(plan: FolderPlan, config: TrainConfig) -> str:
    """Say what the memory of a step is of, in MB."""
    parts, dit = {name: f"{megabytes:,} MB" for name, megabytes in plan.memory_mb.items()}, config.dit
    encoder = f"the text encoder {parts['text_encoder']}"
    if dit.base_dtype != "float32":
        encoder += ", which waits on the host and is there only while it encodes"
    base = f"base in {dit.base_dtype} {parts['base']}, " if dit.lora_rank else ""
    what = "LoRA" if dit.lora_rank else "weights"
    return (
        f"of it {base}{what} with gradients and averages {parts['trained']}, {config.optim.optimizer} "
        f"{parts['optimizer']}, activations {parts['activations']}, the VAE {parts['vae']}, {encoder}"
    )
