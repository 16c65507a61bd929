"""The sample command: prompts and flags in, MP4s out, each carrying the settings that made it.

argv  ->  SampleArgs  ->  [Order(prompt, seed, SampleConfig, path)]  ->  files
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING

from videogen.cli.arguments import parse, peek
from videogen.cli.dry_run import count_bytes, describe
from videogen.cli.provenance import as_made, check_made, is_latent, provenance, read_made, settings_of
from videogen.cli.sample_arguments import SampleArgs
from videogen.cli.sample_jobs import Order, list_orders, place
from videogen.config.parsing import load_toml
from videogen.config.sample import MINI, SampleConfig
from videogen.data.saved_latents import check_latent, latent_settings, read_latent, save_latent
from videogen.data.video_io import write_video
from videogen.models.checkpoint_config import pixel_stride, read_defaults
from videogen.models.hub import find_checkpoint
from videogen.sampling.cost import count_tokens, num_evaluations

if TYPE_CHECKING:
    from videogen.models.vae import VideoVAE
    from videogen.models.wan_vae import WanVAE
    from videogen.sampling.pipeline import VideoPipeline

TOKENS_AT_ONCE = 8192  # clips that differ in size and length alone are packed together up to this many tokens
DESCRIPTION = "Make clips from prompts. Each file carries all its settings; --from makes the same clip again."


def run(args: SampleArgs) -> int:
    """Load, make, print the paths."""
    orders = place(list_orders(args), args)
    if args.dry_run:
        weights = count_bytes(args)
        for order in orders:
            print(describe(order, args, weights))
        return 0
    began, kept = time.monotonic(), find_latents(orders, args)
    pipeline = load(args) if len(kept) < len(orders) else None
    vae = pipeline.vae if pipeline is not None else load_decoder(args)
    loaded = time.monotonic() - began
    missing = [order for order in orders if order not in kept]
    made = make(pipeline, missing, args) if pipeline is not None else []
    for order, seconds in chain(decode_latents(vae, kept, args), made):
        result = {"path": str(order.path), "seconds": round(seconds, 2), "prompt": order.prompt, "seed": order.seed}
        took = f"({seconds:.1f} s, after {loaded:.1f} s of loading)"
        print(json.dumps(result) if args.json else f"{order.path}  {took}", flush=True)
    return 0


def parse_args(argv: Sequence[str]) -> SampleArgs:
    """Flags over --from over --config over the checkpoint's own defaults."""
    model = find_checkpoint(peek(argv, "--model") or MINI)
    if not model.is_dir():
        hint = "or leave --model out" if model != MINI else "the default one is in assets/mini of a checkout"
        raise ValueError(f"no checkpoint folder {model}; give one with model_index.json, {hint}")
    base = SampleArgs(model=model, sample=read_defaults(model))
    if path := peek(argv, "--config"):
        base = replace(base, sample=load_toml(SampleConfig, Path(path), over=base.sample))
    made = None
    if (path := peek(argv, "--from")) is not None:
        base = as_made(base, made := read_made(Path(path)))
    if peek(argv, "--frames") is not None:
        if peek(argv, "--seconds") is not None:
            raise ValueError("give --frames or --seconds, not both")
        base = replace(base, sample=replace(base.sample, seconds=None))
    args = parse(SampleArgs, argv, default=base, prog="sample.py", description=DESCRIPTION)
    if "--sweep" in argv and not args.sweep:
        raise ValueError("--sweep needs what to compare: --sweep steps=4,8,16, or a grid.toml")
    args = replace(args, model=find_checkpoint(args.model))
    if path is not None and made is not None:
        check_made(Path(path), made, args, argv)
    return args


def find_latents(orders: Sequence[Order], args: SampleArgs) -> dict[Order, Path]:
    """The clips whose latents are there already, from --from or an earlier try; a wrong one is refused."""
    found: dict[Order, Path] = {}
    for order in orders:
        beside = order.path.with_suffix(".safetensors")
        if args.from_clip is not None and is_latent(args.from_clip):
            found[order] = args.from_clip
        elif args.save_latents and not args.overwrite and beside.exists():
            found[order] = beside
    about = provenance(args) if found else {}
    for order, path in found.items():
        check_latent(path, settings_of(order, about))
    return found


def decode_latents(
    vae: VideoVAE | WanVAE, kept: Mapping[Order, Path], args: SampleArgs
) -> Iterator[tuple[Order, float]]:
    """Make clips of latents, each with the settings that it was denoised with."""
    import torch

    from videogen.models.streaming import decode

    device = torch.device(args.device)
    for order, path in kept.items():
        began = time.monotonic()
        if order.path.exists() and not args.overwrite and args.save_latents:  # whole, and as asked: place has looked
            yield order, 0.0
            continue
        latent, settings = read_latent(path), latent_settings(path) | {"fps": order.config.fps}
        if args.save_latents and not (beside := order.path.with_suffix(".safetensors")).exists():
            save_latent(beside, latent, settings)
        write_video(
            order.path, decode(vae, latent, device), fps=order.config.fps, settings=settings, overwrite=args.overwrite
        )
        yield order, time.monotonic() - began


def load_decoder(args: SampleArgs) -> VideoVAE | WanVAE:
    """The VAE alone."""
    import torch

    from videogen.models.checkpoint import load_vae
    from videogen.sampling.low_memory import check_device

    check_device(args.device)
    return load_vae(args.model, dtype=getattr(torch, args.dtype)).to(args.device)  # type: ignore[call-overload]


def load(args: SampleArgs) -> VideoPipeline:
    """The pipeline, on its device and in its precision."""
    import torch

    from videogen.sampling.low_memory import check_device, load_small, offload

    check_device(args.device)
    dtype = getattr(torch, args.dtype)
    pipeline = load_small(args.model, dtype=dtype, quantise=args.quantise, gguf=args.gguf, loras=args.lora)
    if args.offload == "none":
        pipeline.to(args.device)
    else:
        offload(pipeline, args.offload, args.device)
    if args.compile:
        for expert in pipeline.experts:
            expert.compile_repeated_blocks(dynamic=True)
    return pipeline


def make(pipeline: VideoPipeline, orders: Sequence[Order], args: SampleArgs) -> Iterator[tuple[Order, float]]:
    """Make the clips, side by side in packs of any sizes and lengths where all other settings are equal.

    Yields each with its share of the time, by its tokens.
    """
    from videogen.sampling.image_prompts import open_images
    from videogen.sampling.pipeline import Job

    images, about = open_images(args.image, args.last_image), provenance(args)
    stride = pixel_stride(args.model)
    for _, group in groupby(orders, key=lambda order: what_is_shared(order.config, mixed=not images)):
        for batch in in_packs(list(group), stride):
            began, config = time.monotonic(), batch[0].config
            with progress(num_evaluations(config), f"{len(batch)} clip{'s' if len(batch) > 1 else ''}") as tick:
                jobs = [Job(order.prompt, order.seed, images, order.config) for order in batch]
                latents = pipeline.sample(jobs, config, tick)
            tokens = [count_tokens(order.config, stride) for order in batch]
            share = (time.monotonic() - began) / sum(tokens)
            for order, latent in zip(batch, latents if args.save_latents else [], strict=False):
                save_latent(order.path.with_suffix(".safetensors"), latent, settings_of(order, about))
            for order, latent, num in zip(batch, latents, tokens, strict=True):
                began, config = time.monotonic(), order.config
                settings = settings_of(order, about)
                write_video(
                    order.path, pipeline.frames(latent), fps=config.fps, settings=settings, overwrite=args.overwrite
                )
                yield order, share * num + time.monotonic() - began


def what_is_shared(config: SampleConfig, *, mixed: bool) -> SampleConfig:
    """The settings that clips of one pack have in common: all but size and length, or those as well."""
    alike = {"size": SampleConfig.size, "frames": SampleConfig.frames, "seconds": None, "fps": SampleConfig.fps}
    return replace(config, **alike) if mixed else config  # type: ignore[arg-type]


def in_packs(orders: Sequence[Order], stride: int) -> Iterator[list[Order]]:
    """Orders in their own order, as many together as TOKENS_AT_ONCE holds, and at least one."""
    batch, room = list[Order](), TOKENS_AT_ONCE
    for order in orders:
        tokens = count_tokens(order.config, stride)
        if batch and tokens > room:
            yield batch
            batch, room = [], TOKENS_AT_ONCE
        batch.append(order)
        room -= tokens
    yield batch


@contextlib.contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """A bar on stderr that counts network evaluations."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
