"""Framing: the same checkpoint trained on native sizes and on square crops of the same clips, for the same tokens.

    videogen bench framing [--clips 1500] [--steps 500] [--run runs/framing]  ->  assets/bench/framing.json

Sora's report (Brooks et al. 2024) shows that a model trained on crops puts its subject half out of the picture. Here
every clip has one thing, whole in the native frame and cut by the square in its middle. Both models then make the same
held-out captions, at the native sizes and as squares, and the judge locates the thing. Both runs can be resumed.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tests.bench.flags import make_parser, parse_flags
from tests.bench.judged import BenchClip, group_into_packs, judge_clips, sample_pack, write_result
from videogen.cli.judge import FIRST_SEED, case_of, render_case
from videogen.config.sample import MINI
from videogen.config.train import DataConfig, DitConfig, OptimConfig, RunConfig, TrainConfig
from videogen.data.video_io import write_video
from videogen.models.checkpoint_config import read_checkpoint_info
from videogen.models.hub import checkpoint_id
from videogen.packing.patch_schedule import last_patch, patch_name
from videogen.sampling.pipeline import VideoPipeline
from videogen.toybox import Scene, caption, draw_scene, render
from videogen.toybox.judge import Found, wilson
from videogen.toybox.world.scenes import track
from videogen.training.dit_stage import DitStage
from videogen.training.run_checkpoints import saved_steps
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer

SIZES = ((96, 48), (48, 96), (96, 64), (64, 96), (80, 48), (48, 80))
SQUARE, FRAMES, FPS = 64, 9, 8
SLACK = 1.0  # pixels that the edge of a thing may lie outside, since the judge is no more exact
FRAMINGS = ("native", "square")


class Row(NamedTuple):
    """The shares of a model's clips that show their subject, and show it whole."""

    trained_on: str
    made_as: str
    clips: int
    found: float  # share of clips in which the judge sees a thing
    whole: float  # share of clips whose whole subject is in the frame all the time
    interval: tuple[float, float]  # 95%


def middle_square(width: int, height: int) -> tuple[int, int, int]:
    """Compute left, top and side of the square in the middle of a frame."""
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


def is_whole(
    pose_x: np.ndarray, pose_y: np.ndarray, radius: np.ndarray, width: float, height: float, *, slack: float = SLACK
) -> bool:
    """True if a thing, each value (t,) in pixels, never leaves the frame."""
    inside = (pose_x - radius >= -slack) & (pose_x + radius <= width + slack)
    return bool((inside & (pose_y - radius >= -slack) & (pose_y + radius <= height + slack)).all())


def is_off_centre(scene: Scene) -> bool:
    """True if a scene has one thing and a still camera, the thing whole in the frame and cut by its middle square."""
    if len(scene.things) != 1 or scene.camera != "still":
        return False
    pose = track(scene)
    x, y, radius = pose.x[:, 0], pose.y[:, 0], pose.radius[:, 0]
    left, top, side = middle_square(scene.width, scene.height)
    native = is_whole(x, y, radius, scene.width, scene.height, slack=0)
    return native and not is_whole(x - left, y - top, radius, side, side)


def off_centre_scenes(first: int) -> Iterator[Scene]:
    """Draw off-centre scenes without end, of the seeds from the first on."""
    scenes = (draw_scene(seed, sizes=SIZES, lengths=(FRAMES,)) for seed in count(first))
    return (scene for scene in scenes if is_off_centre(scene))


def write_folders(root: Path, num: int) -> None:
    """Write the same captioned clips twice: root/native, and root/square cropped; finished folders stay as they are."""
    if (root / "done").exists():
        if (num_written := (root / "done").read_text(encoding="utf-8")) != str(num):
            raise ValueError(f"{root} holds {num_written or 'other'} clips, not {num}; remove it, or ask for as many")
        return
    rows = []
    for i, scene in enumerate(islice(off_centre_scenes(0), num)):
        frames, (left, top, side) = np.ascontiguousarray(render(scene)), middle_square(scene.width, scene.height)
        square = np.ascontiguousarray(frames[:, top : top + side, left : left + side])
        for framing, clip in zip(FRAMINGS, (frames, square), strict=True):
            path = root / framing / "clips" / f"{i:06d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, torch.from_numpy(clip), fps=FPS, overwrite=True)
        rows.append((f"clips/{i:06d}.mp4", caption(scene, scene.seed)))
    for framing in FRAMINGS:
        with (root / framing / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("file_name", "text"), *rows])
    (root / "done").write_text(str(num), encoding="utf-8")


def make_recipe(root: Path, framing: str, model: Path, *, steps: int, budget: int) -> TrainConfig:
    """Build a training's recipe; the two differ in the folder alone, and equal budgets and steps are equal tokens."""
    defaults, patches = read_checkpoint_info(model).defaults, list(read_checkpoint_info(model).patches)
    final_patch = last_patch(defaults, patches)
    return TrainConfig(
        stage="dit",
        data=DataConfig(folder=root / framing, token_budget=budget, val_clips=8),
        dit=DitConfig(
            vae=model,
            text=model,
            init=model,
            base_tokens=20,
            patches={} if final_patch == patches[0] else {patch_name(final_patch): 0.8},
        ),
        optim=OptimConfig(lr=5e-4, warmup_steps=min(50, steps // 4), decay_share=0.5),
        run=RunConfig(dir=root / f"run_{framing}", steps=steps, save_every=100, val_every=500, sample_every=0),
        sample=replace(defaults, size=f"{SQUARE}x{SQUARE}", frames=FRAMES, seconds=None),
    )


def train(config: TrainConfig) -> VideoPipeline:
    """Train a recipe, resume it, or load its checkpoint if it is complete: an interrupted run has a checkpoint, too."""
    if max(saved_steps(config.run.dir), default=0) < config.run.steps:
        stage = make_stage(config)
        assert isinstance(stage, DitStage)
        if not Trainer(stage, config).fit():  # pyright: ignore[reportArgumentType]
            raise SystemExit(f"stopped; the same command goes on with {config.run.dir}")
    return VideoPipeline.load(config.run.dir / "checkpoint")


def is_subject_whole(found: Found) -> bool:
    """True if the largest thing that the judge sees stays in the frame."""
    if not found.things:
        return False
    pose = max(found.things, key=lambda thing: float(np.mean(thing.pose.radius))).pose
    return is_whole(pose.x, pose.y, pose.radius, found.width, found.height)


def measure_framing(clips: Sequence[BenchClip], trained_on: str, made_as: str) -> Row:
    """Judge where the subjects of clips are."""
    detections = [clip.found for clip in judge_clips(clips)]
    num_whole, num_clips = sum(map(is_subject_whole, detections)), len(detections)
    num_found = sum(bool(clip.things) for clip in detections)
    shares = [round(num / num_clips, 4) for num in (num_found, num_whole)]
    return Row(trained_on, made_as, num_clips, *shares, wilson(num_whole, num_clips))


def compare(root: Path, model: Path, *, num_clips: int, num_held: int, steps: int, budget: int) -> list[Row]:
    """Write the clips, train on both framings, sample at both and judge."""
    write_folders(root, num_clips)
    scenes = sorted(islice(off_centre_scenes(FIRST_SEED), num_held), key=lambda scene: (scene.width, scene.height))
    world_clips = [
        BenchClip(case_of(scene), 0, torch.from_numpy(render_case(case_of(scene)).copy())) for scene in scenes
    ]
    rows = [measure_framing(world_clips, "the world's own", "native")]
    for framing in FRAMINGS:
        pipeline = train(make_recipe(root, framing, model, steps=steps, budget=budget))
        for made_as in FRAMINGS:
            clips: list[BenchClip] = []
            for (width, height), group in groupby(scenes, key=lambda scene: (scene.width, scene.height)):
                size = f"{width}x{height}" if made_as == "native" else pipeline.defaults.size
                settings = replace(pipeline.defaults, size=size)
                for jobs in group_into_packs(pipeline, [case_of(scene) for scene in group], 1, settings):
                    clips += sample_pack(pipeline, jobs, settings)[0]
            rows.append(measure_framing(clips, framing, made_as))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure everything and write assets/bench/framing.json."""
    parser = make_parser("framing", __doc__)
    parser.add_argument("--model", type=Path, default=MINI, help="checkpoint that both runs start from")
    parser.add_argument("--run", type=Path, default=Path("runs/framing"), help="folder of the clips and both runs")
    parser.add_argument("--clips", type=int, default=1500, help="clips to train on")
    parser.add_argument("--held", type=int, default=256, help="captions to judge by")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--budget", type=int, default=1280, help="tokens a step")
    args = parse_flags(parser, argv, {"run": None, "clips": 12, "held": 2, "steps": 2, "budget": 320})
    shared = {"steps": args.steps, "budget": args.budget}
    with tempfile.TemporaryDirectory() as own:
        rows = compare(args.run or Path(own), args.model, num_clips=args.clips, num_held=args.held, **shared)
    for row in rows:
        low, high = row.interval
        print(
            f"trained on {row.trained_on}, made as {row.made_as}: subject whole in {row.whole:.1%} "
            f"({low:.1%} to {high:.1%}) of {row.clips} clips, found in {row.found:.1%}"
        )
    about = {"checkpoint": checkpoint_id(args.model), "clips": args.clips, **shared}
    write_result(args.out, {**about, "rows": [row._asdict() for row in rows]})


if __name__ == "__main__":
    main()
