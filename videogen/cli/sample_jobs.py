"""List the clips that a command asks for, and refuse those that cannot be made before anything is loaded.

SampleArgs, CheckpointInfo  ->  [PromptRow(prompt, seed, SampleConfig)]  ->  [SampleJob(..., path)]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from videogen.cli.prompts import PromptRow, read_prompts, read_seeds
from videogen.cli.sample_arguments import SampleArgs
from videogen.config.sample import SampleConfig, check_sampler, resolve_frames
from videogen.data.saved_latents import ENVIRONMENT_KEYS, is_same_setting, latent_settings
from videogen.data.video_io import MAX_COMMENT, check_format, read_settings
from videogen.models.checkpoint_config import CheckpointInfo, check_images
from videogen.packing.patch_schedule import draft_config, patch_schedule
from videogen.sampling.lora_files import check_experts, read_lora

MAX_PROMPT = MAX_COMMENT - 10_000  # the other settings have the rest
SUFFIXES = (".mp4", ".gif", ".webm", ".png")
SEEDS = range(-(2**63), 2**64)  # what torch takes


class SampleJob(NamedTuple):
    """One clip to make, and its file."""

    prompt: str
    seed: int
    config: SampleConfig
    path: Path


def list_rows(args: SampleArgs, info: CheckpointInfo) -> list[PromptRow]:
    """List prompt, seed and settings of every clip that the command asks for."""
    rows = [PromptRow(prompt, args.seed, args.sample) for prompt in args.prompt]
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
        if row.seed not in SEEDS:
            raise ValueError(f"seed must be a whole number from -2^63 to 2^64 - 1, got {row.seed}")
    return rows


def check_seeds(args: SampleArgs, seeds: set[int]) -> None:
    """Refuse --seeds where something else chooses the seeds as well."""
    if args.num > 1:
        raise ValueError(f"--seeds {args.seeds} and --num {args.num} both say how many clips; give one of them")
    if seeds != {args.seed}:
        raise ValueError(f"{args.prompts} gives its rows seeds of their own; leave --seeds out, or that column")


def plan_jobs(rows: Sequence[PromptRow], args: SampleArgs, info: CheckpointInfo) -> list[SampleJob]:
    """Give every clip its file, and refuse what cannot be made or written."""
    check_settings({row.config for row in rows}, info)
    check_images(info, args.image, args.last_image)
    lengths = [resolve_frames(row.config, info.time_stride) for row in rows]
    if args.last_image is not None and 1 in lengths:
        raise ValueError("frames must be more than 1 to begin and end with an image, got 1")
    check_experts(list(map(read_lora, args.lora)), two=info.num_experts == 2)
    out_file, folder = split_out(args.out, num_clips=len(rows))
    used = set[str]()
    jobs = []
    for (prompt, seed, config), frames in zip(rows, lengths, strict=True):
        check_prompt(prompt)
        stem = f"{slug(prompt)}-{seed}"
        names = (f"{stem}-{i}" if i > 1 else stem for i in count(1))
        used.add(name := next(name for name in names if name not in used))
        path = out_file or folder / f"{name}.mp4"
        check_format(path, config.fps)
        if path.suffix.lower() == ".png" and frames != 1:
            raise ValueError(f"{path} holds one frame, not {frames}; add --frames 1 or write an .mp4")
        if path.exists() and not (args.overwrite or args.dry_run or is_made_by_same_command(path, config, args)):
            raise ValueError(f"{path} exists; add --overwrite, or choose another --out or --seed")
        jobs.append(SampleJob(prompt, seed, config, path))
    return jobs


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that a clip cannot carry: the file would be refused after all the work."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a prompt must be text in UTF-8, got {prompt[:60]!a}: {error.reason}") from None
    if (num := len(json.dumps(prompt))) > MAX_PROMPT:
        raise ValueError(
            f"a prompt may take {MAX_PROMPT:,} characters as JSON, got {num:,}; shorten {prompt[:60]!r} ..."
        )


def split_out(out: Path | None, *, num_clips: int) -> tuple[Path | None, Path]:
    """Read --out as one file and its folder, or as a folder alone; a ValueError where neither can be."""
    if out is None or out.suffix.lower() not in SUFFIXES:
        if out is not None and out.suffix and not out.is_dir():
            raise ValueError(f"--out must be a folder or end in {', '.join(SUFFIXES)}, got {out}")
        out_file, folder = None, out or Path("out")
    else:
        out_file, folder = out, out.parent
    if out_file is not None and num_clips > 1:
        raise ValueError(f"--out {out} is one file for {num_clips} clips; give a folder")
    check_folder(folder)
    return out_file, folder


def is_made_by_same_command(path: Path, config: SampleConfig, args: SampleArgs) -> bool:
    """True if a clip that exists was made by this very command, which kept its latent: a run that resumes skips it."""
    latent = path.with_suffix(".safetensors")
    if not args.save_latents or not latent.exists():
        return False
    recorded = read_settings(path)
    current = latent_settings(latent) | {"fps": config.fps}  # the frame rate is chosen when a latent is decoded
    names = (recorded.keys() | current.keys()) - {*ENVIRONMENT_KEYS}
    return all(is_same_setting(recorded.get(name), current.get(name)) for name in names)


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be created since a file has its name, or that of one above it."""
    existing = next(path for path in (folder, *folder.parents, Path()) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file; give --out a folder, or another name")


def check_settings(configs: Iterable[SampleConfig], info: CheckpointInfo) -> None:
    """Refuse settings under which a checkpoint cannot make a clip."""
    for config in configs:
        check_sampler(config.sampler)
        patch_schedule(config, info.patches)
        info.latent_grid(config)


def slug(prompt: str) -> str:
    """Turn a prompt into a file name that still reads like it."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].rstrip("-") or "clip"
