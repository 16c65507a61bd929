"""Plan how a folder of videos becomes a checkpoint: which VAE, how large a transformer, how many steps of each.

folder, minutes  ->  RunPlan: the recipes of its stages, and in words what they will do

A plan is made once, from what the folder holds and what this machine was measured to do; the run keeps it, so that a
run that was stopped ends with the checkpoint of one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor

from videogen.config.parsing import from_mapping, to_mapping
from videogen.config.sample import MINI, SampleConfig
from videogen.config.sizes import SPACE_STRIDE, TIME_STRIDE
from videogen.config.train import DataConfig, DitConfig, OptimConfig, RunConfig, TrainConfig, VaeConfig
from videogen.data.files import save_text
from videogen.data.folder import VideoFolder
from videogen.models.checkpoint import load_network
from videogen.models.checkpoint_config import read_json
from videogen.models.precision import resolve_mixed_precision
from videogen.models.vae import VideoVAE
from videogen.models.vae_network import VAE
from videogen.packing.packs import Grid
from videogen.packing.patch_schedule import Patch
from videogen.training.pack_plan import dit_options, split_folder
from videogen.training.progress import read_log
from videogen.training.step_speed import DitSpeed, measure_dit, measure_vae_step
from videogen.training.vae_loss import psnr
from videogen.training.vae_stage import clip_patches

PLAN = "plan.json"
NETWORKS = ((3, 6), (4, 8), (6, 10), (8, 12), (12, 16), (16, 24))
"""Heads of 64 channels and blocks of the transformers to choose from; the second is the one that is measured."""
MEASURED = 1
STEPS_WANTED = 1500  # of the transformer: a larger one is not worth fewer
LEAST_STEPS = 20
PATCH: Patch = (1, 2, 2)
CHANNELS = 48  # of a new VAE
VAE_SHARE = 0.3  # of the time, where a VAE is trained
USED_SHARE = 0.85  # of the minutes: validation, samples and checkpoints take the rest
SHIPPED_GAIN_DB = 1.0  # by which the shipped VAE must be better, since a new one is still to be trained
SHIPPED_LEAST_DB = 30.0
NUM_SAMPLES = 4  # prompts of the sample grids


class VaeChoice(NamedTuple):
    """How well two VAEs read a folder before any training, in dB of PSNR."""

    shipped: float
    components: float  # of the folder's own principal components
    read_seconds: float  # to read one clip

    @property
    def takes_shipped(self) -> bool:
        """True if the shipped checkpoint reads the folder well, and better than a new one would before its training."""
        return self.shipped >= max(SHIPPED_LEAST_DB, self.components + SHIPPED_GAIN_DB)


@dataclass(frozen=True)
class RunPlan:
    """The stages of a run in their order, and what was said of them."""

    folder: str
    minutes: float
    stages: tuple[TrainConfig, ...]
    lines: tuple[str, ...]

    def save(self, run: Path) -> None:
        """Write the plan into the run's folder."""
        text = json.dumps(
            {
                "folder": self.folder,
                "minutes": self.minutes,
                "lines": self.lines,
                "stages": list(map(to_mapping, self.stages)),
            },
            indent=1,
        )
        save_text(run / PLAN, text + "\n")


def read_plan(run: Path) -> RunPlan | None:
    """Read the plan of a run; None if it has none."""
    path = run / PLAN
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        stages = tuple(from_mapping(TrainConfig, stage) for stage in cast("list[dict[str, object]]", values["stages"]))
        lines = tuple(map(str, cast("list[str]", values["lines"])))
        return RunPlan(str(values["folder"]), float(cast("float", values["minutes"])), stages, lines)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and the run is planned anew") from None


def make_plan(run: Path, minutes: float, data: DataConfig) -> RunPlan:
    """Plan a run of so many minutes on the folder of data, whose files it opens and whose speed it measures."""
    clips = VideoFolder(data, PATCH)
    choice = compare_vaes(clips)
    network = dict(read_json(MINI / "transformer" / "config.json")) if choice.takes_shipped else None
    if network is not None:  # its patches may be others
        patch = cast("Patch", tuple(cast("list[int]", network["patch_size"])))
        clips = VideoFolder(data, patch, log=lambda _: None)
    seconds = 60 * minutes * USED_SHARE - choice.read_seconds * len(clips.entries)
    stages: list[TrainConfig] = []
    if network is None:
        stages.append(plan_vae(run, data, VAE_SHARE * seconds))
        seconds *= 1 - VAE_SHARE
    dit = plan_dit(run, clips, network, seconds)
    stages.append(dit)
    return RunPlan(str(data.folder), minutes, tuple(stages), tuple(describe(run, clips, choice, stages, minutes)))


def spread(count: int, num: int) -> list[int]:
    """Return at most num of count indices, evenly over all."""
    num = min(num, count)
    return [round(i * (count - 1) / max(1, num - 1)) for i in range(num)]


@torch.no_grad()
def compare_vaes(clips: VideoFolder, num: int = 8) -> VaeChoice:
    """Compare the shipped VAE with the folder's own principal components, on clips that these have not seen."""
    began, videos = time.perf_counter(), list[Tensor]()
    for index in spread(len(clips.entries), num):
        try:
            videos.append(clips.read(index).video)
        except (ValueError, OSError) as error:
            clips.report(index, str(error))
    if not videos:
        raise ValueError(f"no clip of {clips.config.folder} can be read: {clips.problems[-1][1]}")
    read_seconds = (time.perf_counter() - began) / len(videos)
    seen, unseen = videos[::2], videos[1::2] or videos
    components = VideoVAE(CHANNELS, 8, linear_encoder=True)
    components.init_weights(torch.cat([clip_patches(video) for video in seen]))
    shipped = load_network(VAE, MINI / "vae")

    def decibels(vae: VAE) -> float:
        rebuilt = [vae.reconstruct(vae.posterior(rearrange(video, "c t h w -> 1 c t h w")).mean) for video in unseen]
        values = [psnr(one[0], video) for one, video in zip(rebuilt, unseen, strict=True)]
        return sum(values) / len(values)

    return VaeChoice(decibels(shipped), decibels(components), read_seconds)


def plan_vae(run: Path, data: DataConfig, seconds: float) -> TrainConfig:
    """Plan the training of a new VAE, whose encoder is the folder's principal components."""
    config = TrainConfig(
        stage="vae",
        data=data,
        vae=VaeConfig(
            channels=CHANNELS, linear_encoder=True, kl=0.0, mask_latents=False, local_correlation=0.0,
            scale_equivariance=0.0, whole_share=0.1,
        ),
        optim=OptimConfig(lr=1e-3, decay_share=0.3),
        run=RunConfig(dir=run / "vae"),
    )  # fmt: skip
    step_seconds = measure_vae_step(config)
    return fit_schedule(config, max(LEAST_STEPS, int(seconds / step_seconds)), step_seconds)


def plan_dit(run: Path, clips: VideoFolder, network: dict[str, object] | None, seconds: float) -> TrainConfig:
    """Plan the training of the transformer: the shipped one, or the largest new one that has time to learn."""
    data, entries = clips.config, clips.entries
    captions = sorted({caption for entry in entries for caption in entry.captions if caption})
    prompts = tuple(captions[i] for i in spread(len(captions), NUM_SAMPLES)) or ("",)
    run_config = resolve_mixed_precision(RunConfig(dir=run, sample_prompts=prompts))
    uses_muon = run_config.mixed_precision == "bf16"  # in float32 its steps are 1.4 times as long, and not compared yet
    dit = DitConfig(
        vae=run / "vae" / "checkpoint",
        text=MINI,
        base_tokens=20,
        caption_dropout=0.1 if captions else 0.0,
        known={"nothing": 0.7, "first_frame": 0.1, "extend": 0.05, "keyframes": 0.05, "per_frame": 0.05, "box": 0.05},
    )
    if network is not None:
        heads, head_dim, layers = (
            cast("int", network[name]) for name in ("num_attention_heads", "attention_head_dim", "num_layers")
        )
        dit = replace(
            dit, vae=MINI, init=MINI, num_attention_heads=heads, attention_head_dim=head_dim, num_layers=layers
        )
    longest = max(entry.num_tokens for entry in entries)
    (width, height, frames), _ = Counter((entry.width, entry.height, entry.frames) for entry in entries).most_common(1)[
        0
    ]
    config = TrainConfig(
        data=replace(data, token_budget=max(data.token_budget, longest)),
        dit=dit,
        optim=OptimConfig(
            optimizer="muon" if uses_muon else "adamw", lr=1.5e-3 if uses_muon else 8e-4, decay_share=0.3
        ),
        run=run_config,
        sample=SampleConfig(
            size=f"{width}x{height}", frames=frames, fps=data.fps, sampler="dpmpp_2m_sde", steps=12,
            guidance=3.0 if captions else 1.0, shift=2.0,
        ),
    )  # fmt: skip
    grid = 1 + (frames - 1) // TIME_STRIDE, height // SPACE_STRIDE, width // SPACE_STRIDE
    config, speed = choose_network(config, network, grid, seconds)
    # A small folder fills its packs with several copies of each clip, each with other noise.
    epoch_tokens = sum(entry.num_tokens for entry in entries)
    budget = max(longest, min(config.data.token_budget, int(seconds / speed.token_seconds / STEPS_WANTED)))
    repeats = math.ceil(budget / epoch_tokens)
    step_seconds = speed.step_seconds(budget)
    config = replace(config, data=replace(config.data, token_budget=budget, repeats=repeats))
    return fit_schedule(config, max(LEAST_STEPS, int(seconds / step_seconds)), step_seconds)


def choose_network(
    config: TrainConfig, shipped: dict[str, object] | None, grid: Grid, seconds: float
) -> tuple[TrainConfig, DitSpeed]:
    """Choose the largest network that takes STEPS_WANTED steps in the time, by the speed of one of them."""
    if shipped is not None:
        names = ("_class_name", "_diffusers_version", "_name_or_path")
        return config, measure_dit(config, {key: value for key, value in shipped.items() if key not in names}, grid)

    def with_network(number: int) -> TrainConfig:
        heads, layers = NETWORKS[number]
        return replace(
            config, dit=replace(config.dit, num_attention_heads=heads, num_layers=layers, ffn_dim=256 * heads)
        )

    def weights(number: int) -> int:
        heads, layers = NETWORKS[number]
        return heads**2 * layers

    text_dim = read_json(MINI / "text_encoder" / "config.json")["hidden_size"]
    measured = measure_dit(config, dit_options(with_network(MEASURED).dit, channels=CHANNELS, text_dim=text_dim), grid)
    best = 0
    for number in range(len(NETWORKS)):
        ratio = weights(number) / weights(MEASURED)
        speed = DitSpeed(*(ratio * part for part in measured))
        if seconds / speed.step_seconds(config.data.token_budget) >= STEPS_WANTED:
            best = number
    ratio = weights(best) / weights(MEASURED)
    return with_network(best), DitSpeed(*(ratio * part for part in measured))


def fit_schedule(config: TrainConfig, steps: int, step_seconds: float) -> TrainConfig:
    """Fit a stage's warm-up, saves, validations and samples to its number of steps and their seconds."""
    two_minutes = max(1, int(120 / step_seconds))
    run = replace(
        config.run,
        steps=steps,
        save_every=min(steps, two_minutes),
        val_every=max(1, steps // 4),
        sample_every=max(1, min(steps, int(0.75 * two_minutes))),
        sample_rarer=True,
    )
    return replace(config, run=run, optim=replace(config.optim, warmup_steps=min(100, max(1, steps // 10))))


def describe(
    run: Path, clips: VideoFolder, choice: VaeChoice, stages: Sequence[TrainConfig], minutes: float
) -> list[str]:
    """Say in ten lines what the run will do and what to expect of it."""
    dit, entries = stages[-1], clips.entries
    if choice.takes_shipped:
        vae = f"VAE and first weights: the shipped checkpoint's, which reads this folder at {choice.shipped:.1f} dB"
    else:
        vae = (
            f"VAE: a new one from the folder's principal components ({choice.components:.1f} dB; the shipped one reads "
            f"it at {choice.shipped:.1f}), {stages[0].run.steps:,} steps"
        )
    views, network = count_views(clips, dit), dit.dit
    precision = "bf16" if dit.run.mixed_precision == "bf16" else "float32"
    return [
        *describe_clips(clips, dit),
        vae,
        f"transformer: {network.num_attention_heads * network.attention_head_dim} wide, {network.num_layers} blocks, "
        f"{dit.run.steps:,} steps of {dit.data.token_budget:,} tokens in {precision} by {dit.optim.optimizer}",
        f"each clip is seen about {views:,.0f} times: {expectation(views, len(entries))}",
        *describe_end(clips, run, minutes),
    ]


def describe_clips(clips: VideoFolder, dit: TrainConfig) -> list[str]:
    """Say which clips are used, at which sizes, and with which captions."""
    data, entries, split, sizes = clips.config, clips.entries, split_folder(clips, dit), count_shapes(clips)
    held_out = f"{len(split.val)} held out (--data.val-clips 0 trains on all)" if split.val else "none held out"
    shown = ", ".join(f"{n} of {w}x{h}, {t} frames" for (w, h, t), n in sizes.most_common(3))
    largest = max(entries, key=lambda entry: entry.info.width * entry.info.height)
    captioned = sum(any(entry.captions) for entry in entries)
    words = {0: "no clip has a caption: it is trained without words, and a prompt will change nothing"}
    return [
        f"{len(entries)} clips of {data.folder}: {len(split.train)} to train on, {held_out}; {len(clips.problems)} "
        "files are not used" + (", named above" if clips.problems else ""),
        f"sizes: {shown}" + (f" and {len(sizes) - 3} more" if len(sizes) > 3 else "")
        + f"; {largest.info.width}x{largest.info.height} is trained at {largest.width}x{largest.height}, "
        "--data.max-tokens raises it",
        words.get(captioned, f"{captioned} of {len(entries)} clips have captions"),
    ]  # fmt: skip


def describe_end(clips: VideoFolder, run: Path, minutes: float) -> list[str]:
    """Say what the run writes, when it will be done, and how it is stopped."""
    pixels = sum(entry.frames * entry.width * entry.height * 3 for entry in clips.entries)
    megabytes = pixels * windows(clips.config, clips) / 1e6
    done = time.strftime("%H:%M", time.localtime(time.time() + 60 * minutes))
    return [
        f"disk: {megabytes:,.0f} MB of decoded copies beside weights and latents, in {run}",
        f"time: {minutes:g} minutes, until about {done}; the first samples come within two, in {run / 'samples'}",
        "Ctrl-C saves, and the same command goes on",
    ]


def count_views(clips: VideoFolder, dit: TrainConfig) -> float:
    """Return how often a run sees each clip."""
    return dit.run.steps * dit.data.token_budget / sum(entry.num_tokens for entry in clips.entries)


def count_shapes(clips: VideoFolder) -> Counter[tuple[int, int, int]]:
    """Count the clips of each width, height and number of frames."""
    return Counter((entry.width, entry.height, entry.frames) for entry in clips.entries)


def windows(data: DataConfig, clips: VideoFolder) -> float:
    """Return the mean number of stretches that are read of a file."""
    long = sum(entry.info.seconds > data.max_seconds for entry in clips.entries)
    return 1 + (data.windows - 1) * long / len(clips.entries)


def expectation(views: float, num_clips: int) -> str:
    """Say honestly what so many views of so many clips teach a transformer that begins with little."""
    if views < 30:
        return "expect colours and light, hardly shapes; more minutes or fewer clips change that"
    if views < 300:
        return "expect the look of the clips, with shapes that melt"
    if num_clips < 50:
        return "expect the clips themselves, learned by heart: few clips teach no more than themselves"
    return "expect the look and the motion of the clips"


def extend_plan(plan: RunPlan, minutes: float, step_seconds: float) -> RunPlan:
    """Add minutes to a run that is complete: the learning rate rises again, and falls at the new end."""
    *before, dit = plan.stages
    more = max(LEAST_STEPS, int(60 * minutes * USED_SHARE / step_seconds))
    line = f"{minutes:g} more minutes: {more:,} steps beside the {dit.run.steps:,} done; the learning rate rises again"
    dit = replace(dit, run=replace(dit.run, steps=dit.run.steps + more))
    return RunPlan(plan.folder, plan.minutes + minutes, (*before, dit), (*plan.lines, line))


def fit_plan(plan: RunPlan) -> RunPlan:
    """Fit the steps that are left to the minutes that are left, by the run's log; a tenth more or less stays as it is.

    What was measured in the first seconds says little of a machine that others use.
    """
    *before, dit = plan.stages
    speeds, logs = step_speeds(dit.run.dir), [step_speeds(stage.run.dir) for stage in plan.stages]
    if not speeds:
        return plan
    used = sum(num / speed for log in logs for num, speed in log)
    lately = sorted(speed for _, speed in speeds[len(speeds) // 2 :])
    done, left = sum(num for num, _ in speeds), 60 * plan.minutes * USED_SHARE - used
    more = max(done // 10, int(left * lately[len(lately) // 2]))  # a few, so that the learning rate falls
    steps, planned = max(LEAST_STEPS, done + more), dit.run.steps
    if abs(steps - planned) <= planned / 10:
        return plan
    line = (
        f"the machine is {'slower' if steps < planned else 'faster'} than when this was planned: {steps:,} steps of "
        f"the transformer in place of {planned:,}, so that it takes {plan.minutes:g} minutes"
    )
    dit = replace(dit, run=replace(dit.run, steps=steps))
    return RunPlan(plan.folder, plan.minutes, (*before, dit), (*plan.lines, line))


def step_speeds(run: Path) -> list[tuple[int, float]]:
    """Read from a run's log how many steps were taken at how many a second."""
    speeds, last = list[tuple[int, float]](), 0
    for row in read_log(run):
        if speed := float(str(row.get("steps_per_second", 0.0))):
            step = int(str(row["step"]))
            speeds.append((step - last, speed))
            last = step
    return speeds


def recipes(plan: RunPlan) -> Mapping[str, TrainConfig]:
    """Return the plan's recipes by the names of their files."""
    return {f"{stage.stage}.toml": stage for stage in plan.stages}
