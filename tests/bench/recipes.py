"""Train on the toybox's clips by one command on their folder and by the two recipes, for the same minutes, and judge.

    videogen bench recipes [--clips 500] [--minutes 30] [--captions 200]  ->  assets/bench/recipes.json

With --run, the ways may be trained at the same time, each with --way on a core of its own; without --way they are then
judged.
A recipe gets half of the minutes. Its steps are fitted to them as the command's are: what it does in a tenth of its
time says how many it can do in all, so that its learning rate has fallen when the time is over.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.flags import make_parser, parse_flags  # noqa: E402
from tests.bench.folder import small_plan  # noqa: E402
from tests.bench.judged import (  # noqa: E402
    Scores,
    draw_cases,
    group_into_packs,
    judge_clips,
    sample_pack,
    tally_scores,
    write_result,
)
from tests.bench.machine import processor_name, set_num_threads  # noqa: E402
from videogen.config.parsing import load_toml  # noqa: E402
from videogen.config.sample import SampleConfig  # noqa: E402
from videogen.config.train import TrainConfig  # noqa: E402
from videogen.sampling.pipeline import VideoPipeline  # noqa: E402
from videogen.toybox import write_folder  # noqa: E402
from videogen.training.folder_plan import read_plan, step_speeds  # noqa: E402
from videogen.training.folder_run import train  # noqa: E402
from videogen.training.stages import make_stage  # noqa: E402
from videogen.training.trainer import Trainer  # noqa: E402

FIRST_PART = 0.1  # of a recipe's minutes, to see how fast it is


def fit(config: TrainConfig) -> int:
    """Train until the last step or the last minute, and return the number of steps that were taken."""
    # A union of stages is not a stage of a union; each fits on its own.
    trainer = Trainer(make_stage(config), config)  # pyright: ignore[reportArgumentType]
    trainer.fit()
    return trainer.step


def train_by_recipe(config: TrainConfig, minutes: float) -> int:
    """Train by a recipe for so many minutes, its steps fitted to them, and return their number."""
    first = replace(config, run=replace(config.run, steps=10**6, minutes=minutes * FIRST_PART, sample_every=0))
    done, rest = fit(first), minutes * (1 - FIRST_PART)
    speeds = step_speeds(config.run.dir)
    steps = done + int((speeds[-1][1] if speeds else 0.0) * rest * 60)
    return done if steps == done else fit(replace(first, run=replace(first.run, steps=steps, minutes=rest)))


def train_by_recipes(clips: Path, out: Path, minutes: float) -> tuple[Path, dict[str, int]]:
    """Train the VAE and the DiT of the recipes for folders, and return the checkpoint and the steps of each.

    What was trained before is taken as it is.
    """
    if (out / "steps.json").is_file():
        return out / "dit" / "checkpoint", json.loads((out / "steps.json").read_text(encoding="utf-8"))
    vae, dit = (load_toml(TrainConfig, ROOT / "configs" / f"folder-{stage}.toml") for stage in ("vae", "dit"))
    vae = replace(vae, data=replace(vae.data, folder=clips), run=replace(vae.run, dir=out / "vae"))
    steps = {"vae": train_by_recipe(vae, minutes / 2)}
    dit = replace(
        dit,
        data=replace(dit.data, folder=clips),
        dit=replace(dit.dit, vae=out / "vae" / "checkpoint"),
        run=replace(dit.run, dir=out / "dit"),
    )
    steps["dit"] = train_by_recipe(dit, minutes / 2)
    (out / "steps.json").write_text(json.dumps(steps), encoding="utf-8")
    return out / "dit" / "checkpoint", steps


def write_clips(out: Path, num: int, *, is_small: bool) -> None:
    """Write clips of the toybox at its own sizes and lengths; those that are there stay as they are."""
    own = {"sizes": ((32, 32),), "lengths": (9,)} if is_small else {}
    write_folder(out, num_clips=num, seed=0, num_workers=1, **own)


def judge(checkpoint: Path, num: int, config: SampleConfig | None) -> tuple[Scores, SampleConfig]:
    """Judge a checkpoint's clips of held-out captions, at its own size and length or at another's."""
    pipeline = VideoPipeline.load(checkpoint)
    own = pipeline.defaults
    config = own if config is None else replace(own, size=config.size, frames=config.frames, seconds=config.seconds)
    packs = group_into_packs(pipeline, draw_cases(config, num), 1, config)
    clips = [clip for jobs in packs for clip in sample_pack(pipeline, jobs, config)[0]]
    return tally_scores(judge_clips(clips)), config


def main(argv: Sequence[str] | None = None) -> None:
    """Write the clips, train both ways, and publish the judge's table."""
    parser = make_parser("recipes", __doc__)
    parser.add_argument("--clips", type=int, default=500, help="clips to train on")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long each way may train")
    parser.add_argument("--captions", type=int, default=200, help="captions to judge by")
    parser.add_argument("--run", type=Path, help="folder of clips and runs; a temporary one by default")
    parser.add_argument("--way", choices=("folder", "recipes"), help="train this way alone, the other at the same time")
    args = parse_flags(parser, argv, {"clips": 6, "minutes": 0.01, "captions": 2})
    set_num_threads()
    with small_plan(args.small), tempfile.TemporaryDirectory() as temporary:
        place = args.run or Path(temporary)
        clips, run, recipes = place / "clips", place / "run", place / "recipes"
        write_clips(clips, args.clips, is_small=args.small)
        if args.way == "recipes":
            print(*train_by_recipes(clips, recipes, args.minutes))
            return
        by_folder = train(clips, minutes=args.minutes if read_plan(run) is None else None, run=run)
        if args.way == "folder":
            print(by_folder)
            return
        by_recipes, steps = train_by_recipes(clips, recipes, args.minutes)
        scores, config = judge(by_folder, args.captions, None)
        both = {"folder": scores, "recipes": judge(by_recipes, args.captions, config)[0]}
        plan = read_plan(run)
        assert plan is not None
        lines = [line.replace(f"{place}/", "") for line in plan.lines]
    print("\n".join(lines), f"the recipes' steps: {steps}", sep="\n")
    for name in both["folder"]:
        print(name, *(f"{way} {table[name]['share']:.1%} of {table[name]['clips']}" for way, table in both.items()))
    about = {
        "processor": f"{processor_name()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}",
        "minutes": args.minutes,
    }
    write_result(args.out, {**about, "clips": args.clips, "plan": lines, "recipe_steps": steps, "scores": both})


if __name__ == "__main__":
    main()
