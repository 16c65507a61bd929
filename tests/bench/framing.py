"""Framing: the same checkpoint trained on native sizes and on square crops of the same clips, for the same tokens.

    videogen bench framing [--clips 1500] [--steps 500] [--run runs/framing]  ->  assets/bench/framing.json

Sora's report (Brooks et al. 2024) shows that a model trained on crops puts its subject half out of the picture. Here
every clip has one thing, whole in the native frame and cut by the square in its middle. Both models then make the same
held-out captions, at the native sizes and as squares, and the judge says where the thing is. Both runs can be resumed.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tests.bench.judged import BENCH, Made, batches, judge_clips, make, write_result
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
SLACK = 1.0  # pixels that the edge of a thing may lie outside: the judge is not more exact
WAYS = ("native", "square")


class Row(NamedTuple):
    """Where the subjects of a model's clips are."""

    trained_on: str
    made_as: str
    clips: int
    found: float  # share of clips with a thing in them
    whole: float  # share of clips whose subject is in the frame, all of it, all the time
    interval: tuple[float, float]  # 95%


def middle(width: int, height: int) -> tuple[int, int, int]:
    """Left, top and side of the square in the middle of a frame."""
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


def is_whole(
    pose_x: np.ndarray, pose_y: np.ndarray, radius: np.ndarray, width: float, height: float, *, slack: float = SLACK
) -> bool:
    """Whether a thing, each value (t,) in pixels, never leaves a frame."""
    inside = (pose_x - radius >= -slack) & (pose_x + radius <= width + slack)
    return bool((inside & (pose_y - radius >= -slack) & (pose_y + radius <= height + slack)).all())


def is_off_centre(scene: Scene) -> bool:
    """Whether it shows one thing to a still camera, whole in the frame and cut by the square in its middle."""
    if len(scene.things) != 1 or scene.camera != "still":
        return False
    pose = track(scene)
    x, y, radius = pose.x[:, 0], pose.y[:, 0], pose.radius[:, 0]
    left, top, side = middle(scene.width, scene.height)
    native = is_whole(x, y, radius, scene.width, scene.height, slack=0)
    return native and not is_whole(x - left, y - top, radius, side, side)


def off_centre(first: int) -> Iterator[Scene]:
    """Such scenes, of the seeds from one on."""
    scenes = (draw_scene(seed, sizes=SIZES, lengths=(FRAMES,)) for seed in count(first))
    return (scene for scene in scenes if is_off_centre(scene))


def write_folders(root: Path, num: int) -> None:
    """The same captioned clips twice: root/native, and root/square cropped; what is there already stays."""
    if (root / "done").exists():
        if (there := (root / "done").read_text(encoding="utf-8")) != str(num):
            raise ValueError(f"{root} holds {there or 'other'} clips, not {num}; remove it, or ask for as many")
        return
    rows = []
    for i, scene in enumerate(islice(off_centre(0), num)):
        frames, (left, top, side) = np.ascontiguousarray(render(scene)), middle(scene.width, scene.height)
        square = np.ascontiguousarray(frames[:, top : top + side, left : left + side])
        for way, clip in zip(WAYS, (frames, square), strict=True):
            path = root / way / "clips" / f"{i:06d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, torch.from_numpy(clip), fps=FPS, overwrite=True)
        rows.append((f"clips/{i:06d}.mp4", caption(scene, scene.seed)))
    for way in WAYS:
        with (root / way / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("file_name", "text"), *rows])
    (root / "done").write_text(str(num), encoding="utf-8")


def recipe(root: Path, way: str, model: Path, *, steps: int, budget: int) -> TrainConfig:
    """What both trainings share: everything but the folder. Packs of one budget and equal steps are equal tokens."""
    defaults, known = read_checkpoint_info(model).defaults, list(read_checkpoint_info(model).patches)
    finished = last_patch(defaults, known)
    return TrainConfig(
        stage="dit",
        data=DataConfig(folder=root / way, token_budget=budget, val_clips=8),
        dit=DitConfig(
            vae=model,
            text=model,
            init=model,
            base_tokens=20,
            patches={} if finished == known[0] else {patch_name(finished): 0.8},
        ),
        optim=OptimConfig(lr=5e-4, warmup_steps=min(50, steps // 4), decay_share=0.5),
        run=RunConfig(dir=root / f"run_{way}", steps=steps, save_every=100, val_every=500, sample_every=0),
        sample=replace(defaults, size=f"{SQUARE}x{SQUARE}", frames=FRAMES, seconds=None),
    )


def train(config: TrainConfig) -> VideoPipeline:
    """Train, or go on, or only load what was trained to the end: an interrupted run has a checkpoint, too."""
    if max(saved_steps(config.run.dir), default=0) < config.run.steps:
        stage = make_stage(config)
        assert isinstance(stage, DitStage)
        if not Trainer(stage, config).fit():  # pyright: ignore[reportArgumentType]
            raise SystemExit(f"stopped; the same command goes on with {config.run.dir}")
    return VideoPipeline.load(config.run.dir / "checkpoint")


def subject_is_whole(found: Found) -> bool:
    """Whether the largest thing that is found stays in the frame."""
    if not found.things:
        return False
    pose = max(found.things, key=lambda thing: float(np.mean(thing.pose.radius))).pose
    return is_whole(pose.x, pose.y, pose.radius, found.width, found.height)


def rates(made: Sequence[Made], trained_on: str, made_as: str) -> Row:
    """What the judge sees of where the things are."""
    seen = [one.found for one in judge_clips(made)]
    whole, num = sum(map(subject_is_whole, seen)), len(seen)
    found = sum(bool(one.things) for one in seen)
    return Row(trained_on, made_as, num, round(found / num, 4), round(whole / num, 4), wilson(whole, num))


def compare(root: Path, model: Path, *, num_clips: int, num_held: int, steps: int, budget: int) -> list[Row]:
    """Write, train twice, sample, judge."""
    write_folders(root, num_clips)
    scenes = sorted(islice(off_centre(FIRST_SEED), num_held), key=lambda scene: (scene.width, scene.height))
    own = [Made(case_of(scene), 0, torch.from_numpy(render_case(case_of(scene)).copy())) for scene in scenes]
    rows = [rates(own, "the world's own", "native")]
    for way in WAYS:
        pipeline = train(recipe(root, way, model, steps=steps, budget=budget))
        for made_as in WAYS:
            made: list[Made] = []
            for (width, height), group in groupby(scenes, key=lambda scene: (scene.width, scene.height)):
                size = f"{width}x{height}" if made_as == "native" else pipeline.defaults.size
                settings = replace(pipeline.defaults, size=size)
                for jobs in batches(pipeline, [case_of(scene) for scene in group], 1, settings):
                    made += make(pipeline, jobs, settings)[0]
            rows.append(rates(made, way, made_as))
    return rows


def main() -> None:
    """Measure everything and write assets/bench/framing.json."""
    parser = argparse.ArgumentParser(prog="videogen bench framing", description=str(__doc__).split("\n")[0])
    parser.add_argument("--model", type=Path, default=MINI, help="checkpoint that both go on from")
    parser.add_argument("--run", type=Path, default=Path("runs/framing"), help="folder of the clips and both runs")
    parser.add_argument("--clips", type=int, default=1500, help="to train on")
    parser.add_argument("--held", type=int, default=256, help="captions to judge by")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--budget", type=int, default=1280, help="tokens a step")
    parser.add_argument("--out", type=Path, default=BENCH / "framing.json")
    args = parser.parse_args()
    shared = {"steps": args.steps, "budget": args.budget}
    rows = compare(args.run, args.model, num_clips=args.clips, num_held=args.held, **shared)
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
