"""What a command line asks for, clip by clip, refused before anything is loaded where it cannot be made.

SampleArgs  ->  [(prompt, seed, SampleConfig)]  ->  [Order(prompt, seed, SampleConfig, path)]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from videogen.cli.prompts import read_prompts, read_seeds
from videogen.cli.sample_arguments import SampleArgs
from videogen.config.sample import SampleConfig, resolve_frames
from videogen.config.sizes import check_frames, check_size
from videogen.data.saved_latents import WHERE, is_same, latent_settings
from videogen.data.video_io import check_format, read_settings
from videogen.models.checkpoint_config import check_images, class_of, known_patches, read_json, strides
from videogen.packing.patch_schedule import check_duration, coarsest, cut_by, draft
from videogen.sampling.cost import TIME_STRIDE
from videogen.sampling.lora_files import check_experts, read_lora

SUFFIXES = (".mp4", ".gif", ".webm", ".png")
SEEDS = range(-(2**63), 2**64)  # what torch takes


class Order(NamedTuple):
    """One clip to make."""

    prompt: str
    seed: int
    config: SampleConfig
    path: Path


def list_orders(args: SampleArgs) -> list[tuple[str, int, SampleConfig]]:
    """Prompt, seed and settings of every clip asked for."""
    patches = known_patches(args.model)
    rows = [(prompt, args.seed, args.sample) for prompt in args.prompt]
    if args.prompts is not None:
        rows += list(read_prompts(args.prompts, args.sample, args.seed))
    if not rows:
        raise ValueError('give a prompt: python sample.py "a large red circle moves right on a black background"')
    rows = [(prompt, seed, draft(config, patches) if args.draft else config) for prompt, seed, config in rows]
    if args.seeds is None:
        rows = [(prompt, seed + i, config) for prompt, seed, config in rows for i in range(args.num)]
    else:
        check_seeds(args, {seed for _, seed, _ in rows})
        rows = [(prompt, seed, config) for prompt, _, config in rows for seed in read_seeds(args.seeds)]
    for _, seed, _ in rows:
        if seed not in SEEDS:
            raise ValueError(f"seed must be a whole number from -2^63 to 2^64 - 1, got {seed}")
    return rows


def check_seeds(args: SampleArgs, said: set[int]) -> None:
    """Refuse --seeds beside what says the seeds, too."""
    if args.num > 1:
        raise ValueError(f"--seeds {args.seeds} and --num {args.num} both say how many clips; give one of them")
    if said != {args.seed}:
        raise ValueError(f"{args.prompts} gives its rows seeds of their own; leave --seeds out, or that column")


def place(rows: Sequence[tuple[str, int, SampleConfig]], args: SampleArgs) -> list[Order]:
    """Give every clip its file, and refuse what cannot be before anything is computed."""
    check_settings({config for _, _, config in rows}, args.model)
    check_images(args.model, args.image, args.last_image)
    if args.last_image is not None and any(resolve_frames(config, TIME_STRIDE) == 1 for _, _, config in rows):
        raise ValueError("frames must be more than 1 to begin and end with an image, got 1")
    two = class_of(read_json(args.model / "model_index.json"), "transformer_2") is not None
    check_experts(list(map(read_lora, args.lora)), two=two)
    to_file = args.out is not None and args.out.suffix.lower() in SUFFIXES
    if args.out is not None and args.out.suffix and not to_file and not args.out.is_dir():
        raise ValueError(f"--out must be a folder or end in {', '.join(SUFFIXES)}, got {args.out}")
    if to_file and len(rows) > 1:
        raise ValueError(f"--out {args.out} is one file for {len(rows)} clips; give a folder")
    folder = args.out if args.out is not None and not to_file else Path("out")
    check_folder(args.out.parent if to_file and args.out is not None else folder)
    used = set[str]()
    orders = []
    for prompt, seed, config in rows:
        stem = f"{slug(prompt)}-{seed}"
        names = (f"{stem}-{i}" if i > 1 else stem for i in count(1))
        used.add(name := next(name for name in names if name not in used))
        path = args.out if to_file and args.out is not None else folder / f"{name}.mp4"
        check_format(path, config.fps)
        if path.suffix.lower() == ".png" and resolve_frames(config, TIME_STRIDE) != 1:
            frames = resolve_frames(config, TIME_STRIDE)
            raise ValueError(f"{path} holds one frame, not {frames}; add --frames 1 or write an .mp4")
        if path.exists() and not (args.overwrite or args.dry_run or goes_on(path, config, args)):
            raise ValueError(f"{path} exists; add --overwrite, or choose another --out or --seed")
        orders.append(Order(prompt, seed, config, path))
    return orders


def goes_on(path: Path, config: SampleConfig, args: SampleArgs) -> bool:
    """Whether a clip that exists is one that the same command, kept latents and all, has made already."""
    beside = path.with_suffix(".safetensors")
    if not args.save_latents or not beside.exists():
        return False
    made, kept = read_settings(path), latent_settings(beside) | {"fps": config.fps}  # a latent does not decide that one
    return all(is_same(made.get(name), kept.get(name)) for name in {*made, *kept} - {*WHERE})


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made since a file has its name, or that of one it would lie in."""
    there = next(path for path in (folder, *folder.parents, Path()) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file; give --out a folder, or another name")


def check_settings(configs: set[SampleConfig], model: Path) -> None:
    """Refuse settings that a checkpoint folder cannot make, from its configs alone."""
    from videogen.sampling.solvers import check_sampler

    patches, (time_stride, stride) = known_patches(model), strides(model)
    for config in configs:
        check_sampler(config.sampler)
        cut_by(config, patches)
        num_latent, rows, columns = coarsest(config, patches)
        check_size(config.width, config.height, stride * max(rows, columns))
        frames = resolve_frames(config, time_stride)
        check_frames(frames, time_stride)
        check_duration(1 + (frames - 1) // time_stride, num_latent, time_stride)


def slug(prompt: str) -> str:
    """A file name that still reads like the prompt."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].rstrip("-") or "clip"
