"""The sample command: prompts and flags in, MP4s out, each carrying the settings that made it.

argv  ->  SampleArgs, CheckpointInfo  ->  [SampleJob(prompt, seed, SampleConfig, path)]  ->  files
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from videogen.cli.arguments import is_given, parse, peek
from videogen.cli.clip_files import STDOUT
from videogen.cli.devices import check_device, resolve_device
from videogen.cli.dry_run import count_bytes, describe, format_duration
from videogen.cli.known_flags import is_long, list_windows, window_length
from videogen.cli.known_material import Material, load_material
from videogen.cli.processes import share_jobs
from videogen.cli.provenance import (
    apply_recorded_settings,
    check_recorded_files,
    is_latent,
    provenance,
    read_recorded_settings,
    settings_of,
)
from videogen.cli.sample_arguments import SampleArgs
from videogen.cli.sample_jobs import SampleJob, list_rows, plan_jobs
from videogen.cli.storyboards import list_shots, load_images
from videogen.cli.streams import MadeClip, write_clip
from videogen.cli.words import note_unknown_words
from videogen.config.parsing import load_toml
from videogen.config.sample import MINI, SampleConfig
from videogen.data.saved_latents import check_latent, latent_settings, read_latent, save_latent
from videogen.data.words import Word, read_words, unknown_words
from videogen.models.checkpoint_config import CheckpointInfo, check_vocabulary, read_checkpoint_info
from videogen.models.hub import find_checkpoint
from videogen.models.original_folder import is_original_folder
from videogen.models.precision import bf16_instructions
from videogen.models.single_file import FLAGS, assemble, is_weight_file, load_vae_part
from videogen.packing.bin_packing import group_by_budget
from videogen.sampling.cost import num_evaluations

if TYPE_CHECKING:
    from torch import Tensor

    from videogen.models.streaming import Autoencoder
    from videogen.sampling.clip_sampler import ClipSampler

logger = logging.getLogger(__name__)
TOKENS_PER_PACK = 8192  # of clips that differ in size and length alone
DESCRIPTION = "Make clips from prompts. Each file carries all its settings; --from makes the same clip again."


def run(args: SampleArgs, info: CheckpointInfo) -> int:
    """Load the checkpoint, make the clips and print their paths."""
    args, jobs = share_jobs(args, plan_jobs(list_rows(args, info), args, info))
    note_unknown_words((job.prompt for job in jobs), info.folder)
    if args.dry_run:
        weights = count_bytes(args, info)
        for job in jobs:
            print(describe(job, args, info, weights))
        return 0
    about = provenance(args)
    start, latents = time.monotonic(), find_latents(jobs, args, about)
    to_denoise, material = [job for job in jobs if job not in latents], load_material(args, info)
    pipeline = load(args, info) if to_denoise else None
    vae = pipeline.vae if pipeline is not None else load_decoder(args, info)
    loading_seconds = time.monotonic() - start
    clips = [decode_latents(vae, latents, args, material)]
    if pipeline is not None:
        short, long = ([job for job in to_denoise if is_long(args, info, job.config) == long] for long in (False, True))
        clips += [
            make(pipeline, jobs, args, info, about, material)
            for make, jobs in ((make_clips, short), (make_long_clips, long))
        ]
    for made in chain.from_iterable(clips):
        line = describe_clip(made, loading_seconds, read_words(info.folder), as_json=args.json)
        print(line, file=sys.stderr if made.job.path == STDOUT else sys.stdout, flush=True)
    return 0


def describe_clip(made: MadeClip, loading_seconds: float, known_words: Sequence[Word], *, as_json: bool) -> str:
    """Describe a clip that is written in a line: its path and how long it took."""
    (prompt, seed, _, path), seconds, first_seconds = made
    if as_json:
        unknown = unknown_words(prompt, known_words)
        row = {"path": str(path), "seconds": round(seconds, 2), "prompt": prompt, "seed": seed}
        row |= {"first_frames_seconds": round(first_seconds, 2)} if first_seconds is not None else {}
        return json.dumps(row | ({"unknown_words": unknown} if unknown else {}))
    first = f", the first frames in {format_duration(first_seconds)}" if first_seconds is not None else ""
    return f"{path}  ({format_duration(seconds)}{first}, after {format_duration(loading_seconds)} of loading)"


def parse_args(argv: Sequence[str]) -> tuple[SampleArgs, CheckpointInfo]:
    """Parse flags over --from over --config over the checkpoint's own defaults."""
    info = open_model(argv)
    model = info.folder
    base = SampleArgs(model=model, sample=info.defaults)
    if (path := peek(argv, "--config")) is not None:
        base = replace(base, sample=load_toml(SampleConfig, Path(path), over=base.sample))
    recorded = None
    if (path := peek(argv, "--from")) is not None:
        recorded = read_recorded_settings(Path(path))
        base = apply_recorded_settings(base, recorded)
        if is_given(argv, "--image"):  # which add to each other, and here replace what was recorded
            base = replace(base, image=())
    if is_given(argv, "--frames"):
        if is_given(argv, "--seconds"):
            raise ValueError("give --frames or --seconds, not both")
        base = replace(base, sample=replace(base.sample, seconds=None))
    args = parse(SampleArgs, argv, default=base, prog="sample.py", description=DESCRIPTION)
    if is_given(argv, "--sweep") and not args.sweep:
        raise ValueError("--sweep needs what to compare: --sweep steps=4,8,16, or a grid.toml")
    device = resolve_device(args.device, (recorded or {}).get("device"))
    args = replace(args, model=model, device=device)
    if path is not None and recorded is not None:
        check_recorded_files(Path(path), recorded, args, argv)
    return replace(args, dtype=resolve_dtype(args, info)), info


def resolve_dtype(args: SampleArgs, info: CheckpointInfo) -> Literal["float32", "bfloat16", "float16"]:
    """Choose the precision that "auto" stands for: bfloat16 where it is faster and the judge sees no difference."""
    dtype = args.dtype
    if dtype == "auto":
        is_faster = args.device == "cpu" and bf16_instructions() is True
        dtype = "bfloat16" if is_faster and info.is_plain and not args.needs_diffusers else "float32"
    logger.info("precision: %s", dtype)
    return dtype


def open_model(argv: Sequence[str]) -> CheckpointInfo:
    """Read the checkpoint that --model names: a folder, or files of weights."""
    given = peek(argv, "--model")
    parts = {part: Path(path) for part, flag in FLAGS.items() if (path := peek(argv, flag)) is not None}
    if given is not None and (is_weight_file(given) or is_original_folder(Path(given))):
        folder, files = assemble(Path(given), parts)
        return read_checkpoint_info(folder)._replace(files=files)
    if parts:
        raise ValueError(f"{FLAGS[min(parts)]} goes with a --model that is a file; a folder has its own")
    is_trial = is_given(argv, "--dry-run") or is_given(argv, "--help")  # which brings no gigabytes
    model = find_checkpoint(MINI if given is None else given, local_files_only=is_trial)
    if not model.is_dir():
        hint = "or leave --model out" if model != MINI else "the default one is in assets/mini of a checkout"
        raise ValueError(f"no checkpoint folder {model}; give one with model_index.json, {hint}")
    return read_checkpoint_info(model)


def find_latents(jobs: Sequence[SampleJob], args: SampleArgs, about: Mapping[str, object]) -> dict[SampleJob, Path]:
    """Find the clips whose latents exist, from --from or an earlier try; a latent of other settings is refused."""
    latents: dict[SampleJob, Path] = {}
    for job in jobs:
        saved = job.path.with_suffix(".safetensors")
        if args.from_clip is not None and is_latent(args.from_clip):
            latents[job] = args.from_clip
        elif args.save_latents and not args.overwrite and saved.exists():
            latents[job] = saved
    for job, path in latents.items():
        check_latent(path, settings_of(job, about))
    return latents


def decode_latents(
    vae: Autoencoder, latents: Mapping[SampleJob, Path], args: SampleArgs, material: Material
) -> Iterator[MadeClip]:
    """Decode saved latents into clips, each with the settings that it was denoised with."""
    import torch

    from videogen.models.streaming import decode_frames

    device = torch.device(args.device)
    for job, path in latents.items():
        start = time.monotonic()
        if job.path.exists() and not args.overwrite and args.save_latents:  # whole, and as asked: plan_jobs has checked
            yield MadeClip(job, 0.0)
            continue
        latent, settings = read_latent(path), latent_settings(path) | {"fps": job.config.fps}
        if args.save_latents and not (saved := job.path.with_suffix(".safetensors")).exists():
            save_latent(saved, latent, settings, overwrite=False)
        frames = material.frame_with(decode_frames(vae, latent, device), job.config, vae.time_stride)
        yield write_clip(job, frames, args, settings, start)


def load_decoder(args: SampleArgs, info: CheckpointInfo) -> Autoencoder:
    """Load the VAE alone."""
    import torch

    from videogen.models.checkpoint import load_network, load_vae
    from videogen.models.vae_network import VAE

    check_device(args.device)
    dtype = getattr(torch, args.dtype)
    if info.files is not None:
        return load_vae_part(info.files.vae, info.folder, dtype).to(args.device)  # type: ignore[return-value]
    if info.is_plain:
        return load_network(VAE, info.folder / "vae", dtype=dtype).to(args.device)
    return load_vae(info.folder, dtype=dtype).to(args.device)  # type: ignore[call-overload]


def load(args: SampleArgs, info: CheckpointInfo) -> ClipSampler:
    """Load the checkpoint on its device and in its precision: by torch alone where it and the flags allow it.

    Otherwise by diffusers, whose import and that of transformers take longer than a short clip.
    """
    if info.files is None:
        check_vocabulary(info.folder)
    import torch

    check_device(args.device)
    dtype = getattr(torch, args.dtype)
    if info.is_plain and not args.needs_diffusers:
        from videogen.sampling.clip_sampler import load_clip_sampler

        return load_clip_sampler(info, dtype=dtype, device=args.device)
    from videogen.sampling.low_memory import load_pipeline, offload

    pipeline = load_pipeline(info, dtype=dtype, quantise=args.quantise, gguf=args.gguf, loras=args.lora)
    if args.offload == "none":
        pipeline.to(args.device)
    else:
        offload(pipeline, args.offload, args.device)
    if args.compile:
        for expert in pipeline.experts:
            expert.compile_repeated_blocks(dynamic=True)
    return pipeline


def make_clips(
    pipeline: ClipSampler,
    jobs: Sequence[SampleJob],
    args: SampleArgs,
    info: CheckpointInfo,
    about: Mapping[str, object],
    material: Material,
) -> Iterator[MadeClip]:
    """Make clips one by one, or side by side in packs of any sizes and lengths where all other settings are equal.

    Yields each with its share of the seconds, by its tokens. A clip of a pack equals the clip alone to rounding, since
    products of more rows add up in another order; its file says how many shared the pack.
    """
    from videogen.sampling.clip_sampler import ClipRequest

    mixed = not material.known
    for _, group in groupby(jobs, key=lambda job: shared_settings(job.config, mixed=mixed)):
        budget = 0 if args.exact and args.device == "cpu" else TOKENS_PER_PACK
        for batch in group_by_budget(group, lambda job: info.num_tokens(job.config), budget):
            start, config = time.monotonic(), batch[0].config
            about_pack = {**about, **({"pack": len(batch)} if len(batch) > 1 else {})}
            label = f"{len(batch)} clip{'s' if len(batch) > 1 else ''}"
            with progress(num_evaluations(config), label, quiet=args.quiet) as on_evaluation:
                requests = [ClipRequest(job.prompt, job.seed, material.known, job.config) for job in batch]
                latents = pipeline.sample(requests, config, on_evaluation)
            tokens = [info.num_tokens(job.config) for job in batch]
            seconds_per_token = (time.monotonic() - start) / sum(tokens)
            for job, latent in zip(batch, latents if args.save_latents else [], strict=False):
                saved, settings = job.path.with_suffix(".safetensors"), settings_of(job, about_pack)
                save_latent(saved, latent, settings, overwrite=args.overwrite)
            for job, latent, num in zip(batch, latents, tokens, strict=True):
                started, settings = time.monotonic() - seconds_per_token * num, settings_of(job, about_pack)
                frames = material.frame_with(pipeline.frames(latent), job.config, info.time_stride)
                yield write_clip(job, frames, args, settings, started)


def make_long_clips(
    pipeline: ClipSampler,
    jobs: Sequence[SampleJob],
    args: SampleArgs,
    info: CheckpointInfo,
    about: Mapping[str, object],
    material: Material,
) -> Iterator[MadeClip]:
    """Make clips one after another in windows; frames are written as they come, so that memory does not grow."""
    for job in jobs:
        start, config, settings = time.monotonic(), job.config, settings_of(job, about)
        windows = list_windows(args, info, config)
        label = f"{len(windows)} windows"
        with progress(sum(map(num_evaluations, windows)), label, quiet=args.quiet) as on_evaluation:
            frames = (
                make_storyboard(pipeline, job, args, info, on_evaluation)
                if args.storyboard is not None
                else make_long_clip(pipeline, job, args, info, material, settings, on_evaluation)
            )
            made = write_clip(job, frames, args, settings, start)
        yield made


def make_long_clip(
    pipeline: ClipSampler,
    job: SampleJob,
    args: SampleArgs,
    info: CheckpointInfo,
    material: Material,
    settings: Mapping[str, object],
    on_evaluation: Callable[[], object],
) -> Iterator[Tensor]:
    """Make the frames of a clip; where its latent is kept, all of that is before any is decoded."""
    import torch

    from videogen.models.streaming import decode_chunks
    from videogen.sampling.long_clips import LongClip

    known = pipeline.encode_known(material.known, job.config)
    clip = LongClip(pipeline, known, job.config, job.seed, length=window_length(info))
    latents: Iterable[Tensor] = clip.denoise(job.prompt, on_evaluation=on_evaluation)
    if args.save_latents:
        latents = [torch.cat(list(latents), dim=1)]
        save_latent(job.path.with_suffix(".safetensors"), latents[0], settings, overwrite=args.overwrite)
    decoded = decode_chunks(pipeline.vae, latents, pipeline.compute_device)
    return material.frame_with(decoded, job.config, info.time_stride)


def make_storyboard(
    pipeline: ClipSampler,
    job: SampleJob,
    args: SampleArgs,
    info: CheckpointInfo,
    on_evaluation: Callable[[], object],
) -> Iterator[Tensor]:
    """Make the frames of a clip of several scenes."""
    from videogen.sampling.storyboards import sample_storyboard

    shots, length = list_shots(args, job.config, info), window_length(info)
    images = load_images(shots, args)
    return sample_storyboard(pipeline, shots, images, job.config, job.seed, length=length, on_evaluation=on_evaluation)


def shared_settings(config: SampleConfig, *, mixed: bool) -> SampleConfig:
    """Blank out the settings that clips of one pack need not share: size and length, if they may be mixed."""
    blank = {"size": SampleConfig.size, "frames": SampleConfig.frames, "seconds": None, "fps": SampleConfig.fps}
    return replace(config, **blank) if mixed else config  # type: ignore[arg-type]


@contextlib.contextmanager
def progress(total: int, label: str, *, quiet: bool = False) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr that counts network evaluations, unless it shall be quiet."""
    if quiet:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)
