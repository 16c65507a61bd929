"""List the clips that a command asks for, and refuse those that cannot be made before anything is loaded.

SampleArgs, CheckpointInfo  ->  [PromptRow(prompt, seed, SampleConfig)]  ->  [SampleJob(..., path)]
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from videogen.cli.clip_files import STDOUT, check_files, check_stream, name_clip, split_out
from videogen.cli.known_flags import check_rows, count_frames
from videogen.cli.prompts import SEEDS, PromptRow, read_prompts, read_seeds
from videogen.cli.sample_arguments import SampleArgs
from videogen.config.parsing import check_text
from videogen.config.sample import SampleConfig, check_sampler
from videogen.data.saved_latents import ENVIRONMENT_KEYS, is_same_setting, latent_settings
from videogen.data.video_io import PIPE_FORMAT, check_format, read_settings
from videogen.models.checkpoint_config import CheckpointInfo
from videogen.packing.patch_schedule import draft_config, patch_schedule
from videogen.sampling.gguf_files import check_gguf, transformers_of
from videogen.sampling.lora_files import check_experts, read_lora


class SampleJob(NamedTuple):
    """One clip to make, and its file."""

    prompt: str
    seed: int
    config: SampleConfig
    path: Path


def list_rows(args: SampleArgs, info: CheckpointInfo) -> list[PromptRow]:
    """List prompt, seed and settings of every clip that the command asks for."""
    rows = [PromptRow(check_text(prompt, "the prompt"), args.seed, args.sample) for prompt in args.prompt]
    if args.prompts is not None:
        rows += read_prompts(args.prompts, args.sample, args.seed)
    if not rows:
        raise ValueError('give a prompt: python sample.py "a large red circle moves right on a black background"')
    if args.draft:
        rows = [row._replace(config=draft_config(row.config, info.patches)) for row in rows]
    if args.seeds is None:
        rows = [row._replace(seed=row.seed + i) for row in rows for i in range(args.num)]
    else:
        check_seeds(args, {row.seed for row in rows})
        rows = [row._replace(seed=seed) for row in rows for seed in read_seeds(args.seeds)]
    for row in rows:
        if row.seed not in SEEDS:  # --num and --seeds count on
            raise ValueError(f"seed must be a whole number from -2^63 to 2^64 - 1, got {row.seed}")
    return [row._replace(config=info.resolve_size(row.config)) for row in rows]


def check_seeds(args: SampleArgs, seeds: set[int]) -> None:
    """Refuse --seeds where something else chooses the seeds as well."""
    if args.num > 1:
        raise ValueError(f"--seeds {args.seeds} and --num {args.num} both say how many clips; give one of them")
    if seeds != {args.seed}:
        raise ValueError(f"{args.prompts} gives its rows seeds of their own; leave --seeds out, or that column")


def plan_jobs(rows: Sequence[PromptRow], args: SampleArgs, info: CheckpointInfo) -> list[SampleJob]:
    """Give every clip its file, and refuse what cannot be made or written."""
    check_settings({row.config for row in rows}, info)
    check_rows([row.config for row in rows], args)
    lengths = [count_frames(args, info, row.config) for row in rows]
    check_experts(list(map(read_lora, args.lora)), two=info.num_experts == 2)
    transformers_of(info, args.quantise, args.gguf)
    for path in args.gguf:
        check_gguf(path)
    out_file, folder = split_out(args.out, num_clips=len(rows))
    used = set[Path]()
    jobs = []
    for (prompt, seed, config), frames in zip(rows, lengths, strict=True):
        path = out_file or name_clip(folder, prompt, seed, used, may_exist=not args.names_count_on)
        used.add(path)
        check_format(path if path != STDOUT else Path(f"pipe{PIPE_FORMAT}"), config.fps)
        if path.suffix.lower() == ".png" and frames != 1:
            raise ValueError(f"{path} holds one frame, not {frames}; add --frames 1 or write an .mp4")
        jobs.append(SampleJob(prompt, seed, config, path))
    if not args.dry_run:
        for path in sorted(used):
            check_stream(path, stream=args.stream)
        latents = [job.path.with_suffix(".safetensors") for job in jobs if args.save_latents]
        check_files([*used, *latents], args.codec)
    for _, _, config, path in jobs:
        taken = path != STDOUT and os.path.lexists(path) and not (args.overwrite or args.dry_run)
        if taken and not args.names_count_on and not is_made_by_same_command(path, config, args):
            raise ValueError(f"{path} exists; add --overwrite, or choose another --out or --seed")
    return jobs


def is_made_by_same_command(path: Path, config: SampleConfig, args: SampleArgs) -> bool:
    """True if a clip that exists was made by this very command, which kept its latent: a run that resumes skips it."""
    latent = path.with_suffix(".safetensors")
    if not args.save_latents or not latent.exists():
        return False
    recorded = read_settings(path)
    current = latent_settings(latent) | {"fps": config.fps}  # the frame rate is chosen when a latent is decoded
    names = (recorded.keys() | current.keys()) - {*ENVIRONMENT_KEYS}
    return all(is_same_setting(recorded.get(name), current.get(name)) for name in names)


def check_settings(configs: Iterable[SampleConfig], info: CheckpointInfo) -> None:
    """Refuse settings under which a checkpoint cannot make a clip."""
    for config in configs:
        check_sampler(config.sampler)
        patch_schedule(config, info.patches)
        info.latent_grid(config)
        if config.guidance_2 is not None and info.num_experts == 1:
            raise ValueError(
                f"guidance_2 is that of a second expert, and {info.folder} has one transformer; leave "
                f"--guidance-2 {config.guidance_2:g} out, --guidance is for all noise levels"
            )
