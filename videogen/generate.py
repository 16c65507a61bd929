"""The sample command: prompts and flags in, MP4s out, each carrying the settings that made it.

argv  ->  SampleArgs  ->  [Order(prompt, seed, SampleConfig, path)]  ->  files
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from videogen.config import MINI, SampleConfig, read_defaults, resolve_frames
from videogen.estimate import TIME_STRIDE, count_tokens, estimate, num_evaluations
from videogen.flags import parse, peek
from videogen.hub import find_checkpoint
from videogen.latents import check_latent, latent_settings, read_latent, save_latent
from videogen.orders import Order, list_orders, pixel_stride, place
from videogen.patches import known_patches, mean_share
from videogen.plain import load_toml
from videogen.provenance import as_made, check_made, is_latent, provenance, read_made, settings_of
from videogen.video_io import write_video

if TYPE_CHECKING:
    from videogen.pipeline import VideoPipeline
    from videogen.vae import VideoVAE
    from videogen.wan_vae import WanVAE

TOKENS_AT_ONCE = 8192  # clips that differ in size and length alone are packed together up to this many tokens
DESCRIPTION = "Make clips from prompts. Each file carries all its settings; --from makes the same clip again."


@dataclass(frozen=True, kw_only=True)
class SampleArgs:
    """What to make, from what, and where to put it."""

    prompt: tyro.conf.Positional[tuple[str, ...]] = ()
    """One or more prompts."""
    prompts: Path | None = None
    """A file of prompts: one a line, or .jsonl / .csv with a column prompt and any of seed, steps, size, ..."""
    out: Path | None = None
    """A .mp4, .gif, .webm or .png file for one clip, or a folder; default out/<prompt>-<seed>.mp4."""
    model: Path = MINI
    """Checkpoint folder, or owner/name[@revision] of one in the Hugging Face cache."""
    num: int = 1
    """Clips a prompt; their seeds follow on from --seed."""
    seed: int = 0
    """The clip's noise."""
    seeds: str | None = None
    """Several seeds for every prompt, instead of --seed and --num: 0,1,2 or a range 0:9:10."""
    sweep: tuple[str, ...] = ()
    """Compare settings: axis=a,b,c or axis=start:stop:count for any of the settings below, or a grid.toml."""
    search: int | None = None
    """Let Optuna choose so many of the sweep's settings instead of running all."""
    score: str | None = None
    """For a sweep, module:function of your own: score(frames, prompt) -> numbers, higher is better, first counts."""
    reference: int | None = None
    """Steps of the runs that a sweep measures distance to, 0 for none; default four times the most on its axes."""
    from_clip: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Take prompt, seed and settings from a clip that this program wrote; flags override. A latent is decoded."""
    config: Path | None = None
    """A TOML file of settings; flags override."""
    image: Path | None = None
    """The first frame, for a model that begins with one."""
    last_image: Path | None = None
    """The last frame as well, for a model that takes both."""
    lora: tuple[str, ...] = ()
    """LoRA files or folders, each with =SCALE behind it where that is not 1; of a model with two experts with high: or
    low: before it, for high or low noise."""
    sample: Annotated[SampleConfig, tyro.conf.arg(name="")] = field(default_factory=SampleConfig)
    """Settings."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """Where to compute."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights; bfloat16 is for GPUs."""
    offload: Literal["none", "model", "group"] = "none"
    """Keep what does not compute on the CPU: whole parts (model), or layer by layer (group), slower and smaller."""
    quantise: Literal["none", "fp8", "int8", "nf4"] = "none"
    """Transformer weights in fewer bits: fp8 needs nothing more, int8 torchao, nf4 bitsandbytes and CUDA."""
    gguf: tuple[Path, ...] = ()
    """A quantised Wan transformer in place of the folder's; of two experts one for each, high noise first."""
    compile: bool = False
    """Compile the transformer's block: slow to start, faster from the second clip on."""
    save_latents: bool = False
    """Keep each latent as .safetensors beside its clip, before it is decoded; the same command, no sweep, resumes."""
    draft: bool = False
    """A quick look: few steps, most of them in the model's coarsest patches; seed and layout are the clip's own."""
    dry_run: bool = False
    """Say sizes, tokens, memory and time; run nothing."""
    overwrite: bool = False
    """Replace files that exist."""
    json: bool = False
    """Print a JSON object a clip instead of text."""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError(f"num must be at least 1, got {self.num}")
        if self.search is not None and (self.search < 1 or not self.sweep):
            raise ValueError("--search N chooses N >= 1 of the settings of --sweep axis=a,b,c; give both")
        if self.offload != "none" and self.device == "cpu":
            raise ValueError(
                f"--offload {self.offload} keeps on the CPU what does not compute on a GPU; "
                "leave it out with --device cpu"
            )
        alone = [flag for flag in ("score", "reference") if getattr(self, flag) is not None and not self.sweep]
        if alone:
            raise ValueError(f"--{alone[0]} is for a sweep; add --sweep axis=a,b,c, or leave it out")


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

    from videogen.vae import decode

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

    from videogen.checkpoint import load_vae
    from videogen.memory import check_device

    check_device(args.device)
    return load_vae(args.model, dtype=getattr(torch, args.dtype)).to(args.device)  # type: ignore[call-overload]


def load(args: SampleArgs) -> VideoPipeline:
    """The pipeline, on its device and in its precision."""
    import torch

    from videogen.memory import check_device, load_small, offload

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
    from videogen.pipeline import Job
    from videogen.wan_image import open_images

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


def count_bytes(args: SampleArgs) -> int:
    """Bytes of the weights that would be loaded where the networks compute."""
    import torch

    from videogen.memory import weight_bytes

    dtype = getattr(torch, args.dtype)
    beside = {"quantise": args.quantise, "gguf": args.gguf, "loras": args.lora}
    return weight_bytes(args.model, dtype=dtype, offload=args.offload, **beside)  # type: ignore[arg-type]


def describe(order: Order, args: SampleArgs, weights: int) -> str:
    """What a clip would take beside so many bytes of weights; seconds are a CPU's, of which one product is measured."""
    config, frames = order.config, resolve_frames(order.config, TIME_STRIDE)
    pixels, tokens = frames * config.width * config.height, count_tokens(config, pixel_stride(args.model))
    cut = tokens * mean_share(config, known_patches(args.model)[0])
    cost = estimate(
        args.model,
        tokens=round(cut),
        evaluations=num_evaluations(config),
        pixels=pixels,
        weights=weights,
        bytes_a_value={"float32": 4, "bfloat16": 2}[args.dtype],
    )
    row = {
        "path": str(order.path),
        "size": config.size,
        "frames": frames,
        "seconds_of_video": round(frames / config.fps, 2),
        "tokens": tokens,
        "evaluations": num_evaluations(config),
        "gflop": round(cost.gflop),
        "memory_gb": round(cost.memory_gb, 2),
        "seconds": round(cost.seconds(), 1) if args.device == "cpu" else None,
    }
    told = {key: value for key, value in row.items() if value is not None}
    return json.dumps(row) if args.json else "  ".join(f"{key} {value}" for key, value in told.items())
