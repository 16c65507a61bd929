"""Plan how a folder of videos becomes a LoRA of a model: its rank and steps, and what a step costs on this machine.

folder, model, minutes  ->  RunPlan of one stage
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from videogen.config.sample import resolve_frames
from videogen.config.sizes import SPACE_STRIDE, TIME_STRIDE
from videogen.config.train import BaseDtype, DataConfig, DitConfig, OptimConfig, RunConfig, TrainConfig
from videogen.data.folder import VideoFolder
from videogen.models.checkpoint_config import CheckpointInfo, read_checkpoint_info
from videogen.models.hub import find_checkpoint
from videogen.training.dry_run import StepCost, step_cost
from videogen.training.folder_plan import (
    LEAST_STEPS,
    USED_SHARE,
    RunPlan,
    count_views,
    describe_clips,
    describe_end,
    fit_schedule,
    spread,
)
from videogen.training.step_speed import DitSpeed, measure_dit

RANKS = ((10, 8), (100, 16), (math.inf, 32))
"""The rank of a LoRA for fewer than so many clips: what trainers of LoRAs recommend for a person and for a style."""
VIEWS_WANTED = 100  # of each clip: a LoRA that sees them more often forgets the rest of what its model knows
LEAST_WORTHWHILE = 200  # steps that the tokens of a clip are cut down for
LEAST_TOKENS = 64
SAMPLE_STEPS = 20  # at most, of the clips that show what was learned
MEASURED_GRID = (1, 16, 16)


def make_lora_plan(
    run: Path, minutes: float, data: DataConfig, model: Path, base_dtype: BaseDtype = "float32"
) -> RunPlan:
    """Plan a LoRA of a model: clips at the model's frame rate, as large as leaves time for enough steps."""
    info = read_checkpoint_info(find_checkpoint(model))
    check_adaptable(info)
    config = TrainConfig(
        data=replace(data, fps=info.defaults.fps if data.fps == DataConfig().fps else data.fps),
        dit=DitConfig(
            init=info.folder, lora_rank=RANKS[0][1], base_dtype=base_dtype, base_tokens=base_tokens(info),
            gradient_checkpointing=True, known={"nothing": 1.0},
        ),
        optim=OptimConfig(lr=1e-4, betas=(0.9, 0.99)),
        run=RunConfig(dir=run),
    )  # fmt: skip
    speed, seconds = measure_model(config, info), 60 * minutes * USED_SHARE
    affordable = int((seconds / LEAST_WORTHWHILE - speed.update_seconds) / speed.token_seconds)
    if data.max_tokens == DataConfig().max_tokens:
        largest = max(LEAST_TOKENS, min(clip_tokens(info), affordable))
        config = replace(config, data=replace(config.data, max_tokens=largest, token_budget=largest))
    clips = VideoFolder(config.data, info.patches[0])
    config = fit_to_clips(config, info, clips, speed, seconds)
    lengths = [entry.num_tokens for entry in clips.entries]
    cost = step_cost(config, dict(info.dit_config), lengths, math.ceil(sum(lengths) / config.data.token_budget))
    return RunPlan(str(data.folder), minutes, (config,), tuple(describe(run, clips, config, info, cost, minutes)))


def check_adaptable(info: CheckpointInfo) -> None:
    """Raise a ValueError for a model whose LoRA is not trained here."""
    if info.num_experts > 1:
        raise ValueError(f"{info.folder} has two transformers; --lora takes models of one, such as Wan 2.1")
    if info.space_stride != SPACE_STRIDE:
        cells = f"cells of {info.space_stride} pixels"
        raise ValueError(f"{info.folder} has {cells}; --lora takes models of {SPACE_STRIDE}, such as Wan 2.1")
    if info.needs_image:
        raise ValueError(f"{info.folder} begins with an image, and training has none beside a clip; give a T2V model")


def clip_tokens(info: CheckpointInfo) -> int:
    """Count the tokens of a clip of the model's default size and length."""
    config, (pt, ph, pw) = info.defaults, info.patches[0]
    cells = info.space_stride
    latent_frames = 1 + (resolve_frames(config, info.time_stride) - 1) // info.time_stride
    return max(1, latent_frames // pt) * (config.height // (cells * ph)) * (config.width // (cells * pw))


def base_tokens(info: CheckpointInfo) -> int:
    """Return the tokens of a clip whose noise levels are not shifted: shifts go by the root of the tokens' ratio."""
    return max(1, round(clip_tokens(info) / max(info.defaults.shift, 1.0) ** 2))


def measure_model(config: TrainConfig, info: CheckpointInfo) -> DitSpeed:
    """Measure one block of the model on random clips and multiply by its blocks.

    A LoRA's pass is a forward pass, the same again for the activations, and the backward pass through them; that of
    all weights, which is measured, has the gradients of the weights in place of the second forward pass.
    """
    names = ("_class_name", "_diffusers_version", "_name_or_path")
    network = {key: value for key, value in info.dit_config.items() if key not in names}
    layers = cast("int", network["num_layers"])
    whole = replace(config.dit, lora_rank=0, base_dtype="float32")
    speed = measure_dit(replace(config, dit=whole), {**network, "num_layers": 1}, MEASURED_GRID)
    return DitSpeed(layers * speed.token_seconds, 0.0)  # the adapter's own update is nothing beside its pass


def fit_to_clips(
    config: TrainConfig, info: CheckpointInfo, clips: VideoFolder, speed: DitSpeed, seconds: float
) -> TrainConfig:
    """Choose the rank by the number of clips, and the steps by their views and by the time there is."""
    entries = clips.entries
    rank = next(rank for fewer, rank in RANKS if len(entries) < fewer)
    budget = max(entry.num_tokens for entry in entries)
    config = replace(config, dit=replace(config.dit, lora_rank=rank), data=replace(config.data, token_budget=budget))
    wanted = math.ceil(VIEWS_WANTED * sum(entry.num_tokens for entry in entries) / budget)
    step_seconds = speed.step_seconds(budget)
    steps = max(LEAST_STEPS, min(wanted, int(seconds / step_seconds)))
    captions = sorted({caption for entry in entries for caption in entry.captions if caption})
    largest = max(entries, key=lambda entry: entry.num_tokens)
    sample = replace(
        info.defaults, size=f"{largest.width}x{largest.height}", seconds=None,
        frames=1 + (largest.frames - 1) // TIME_STRIDE * TIME_STRIDE, steps=min(SAMPLE_STEPS, info.defaults.steps),
    )  # fmt: skip
    prompts = tuple(captions[i] for i in spread(len(captions), 1)) or ("",)
    config = replace(config, sample=sample, run=replace(config.run, sample_prompts=prompts))
    return fit_schedule(config, steps, step_seconds)


def describe(
    run: Path, clips: VideoFolder, config: TrainConfig, info: CheckpointInfo, cost: StepCost, minutes: float
) -> Sequence[str]:
    """Say in ten lines what the run will do and what to expect of it."""
    views, steps = count_views(clips, config), config.run.steps
    return [
        *describe_clips(clips, config),
        f"model: {info.folder}, whose {cost.frozen_weights / 1e6:,.0f} million weights stay as they are, the matrices "
        f"of its transformer kept in {config.dit.base_dtype}",
        f"LoRA: rank {config.dit.lora_rank}, {cost.weights / 1e6:.2f} million weights, {steps:,} steps of "
        f"{config.data.token_budget:,} tokens, about {cost.memory_gb:.1f} GB of memory",
        f"each clip is seen about {views:,.0f} times: {expectation(steps)}",
        *describe_end(clips, run, minutes),
    ]


def expectation(steps: int) -> str:
    """Say honestly what so many steps teach a model that knows videos already."""
    if steps < LEAST_WORTHWHILE:
        return "too few steps for a LoRA to show; more minutes or a faster machine change that"
    return "expect the clips' subject and look in what the model knows"
