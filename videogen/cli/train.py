"""The train command: a recipe and flags in, a run folder with a checkpoint out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import tyro

from videogen.cli.arguments import UNFINISHED, guard, honour_no_color, parse, silence_quantisers
from videogen.cli.train_folder import train_folder
from videogen.config.clip_sets import read_dataset_file
from videogen.config.parsing import load_toml
from videogen.config.train import DataConfig, TrainConfig
from videogen.models.hub import set_offline

DESCRIPTION = (
    "Train from a recipe. The same command again resumes; SIGTERM and Ctrl-C save first. --dry-run says what the "
    "clips become: sizes, tokens, packs, steps an epoch, memory and time; --json says it for a program. "
    "--accept-changes goes on with a run though its data, model or optimizer have other settings now."
)
FLAGS = ("--json", "--dry-run", "--accept-changes")


def train(argv: Sequence[str] | None = None) -> int:
    """Run train.py and `videogen train`."""
    return guard(run_train, argv)


def run_train(argv: Sequence[str]) -> int:
    """Train from a recipe, or with --dry-run describe what would be trained."""
    short = {"--data": "--data.folder", "--run": "--run.dir"}
    words = [short.get(flag, flag) + equals + rest for flag, equals, rest in (word.partition("=") for word in argv)]
    as_json, dry_run, accept_changes = (flag in words for flag in FLAGS)
    words = [word for word in words if word not in FLAGS]
    if not words or words[0].startswith("-"):
        if "--help" in words or "-h" in words:
            words = [word for word in words if word not in ("--help", "-h")]
            with honour_no_color():
                tyro.cli(TrainConfig, args=["--help"], prog="train.py RECIPE.toml", description=DESCRIPTION)
        raise ValueError(
            "train.py needs a folder of videos or a recipe: python train.py FOLDER [--minutes M] [--run DIR], or "
            "python train.py configs/RECIPE.toml [--data FOLDER] [--run DIR]"
        )
    if Path(words[0]).is_dir():
        return train_folder(argv)
    if not Path(words[0]).exists() and Path(words[0]).suffix != ".toml":
        raise ValueError(f"no folder {words[0]}; give a folder of videos, or one of the recipes in configs/")
    config = load_toml(TrainConfig, Path(words[0]))
    config = parse(TrainConfig, words[1:], default=config, prog=f"train.py {words[0]}", description=DESCRIPTION)
    config = with_sets(config)
    set_offline()
    silence_quantisers()
    if dry_run:
        from videogen.training.dry_run import format_plan, plan_folder

        plan = plan_folder(config)
        print(json.dumps(asdict(plan)) if as_json else format_plan(plan, config))
        return 0
    from videogen.data.folder_lock import lock_run
    from videogen.training.run_config import check_config

    with lock_run(config.run.dir):
        if not accept_changes and config.run.resume != "none":
            check_config(config, config.run.dir)
        return fit(config, as_json=as_json)


def with_sets(config: TrainConfig) -> TrainConfig:
    """Read the sets of a dataset.toml in the place of a folder, and say which of its keys have no meaning here."""
    path = config.data.folder
    if path.suffix != ".toml":
        return config
    sets, ignored = read_dataset_file(path)
    if ignored:
        print(
            f"note: {path}: no meaning here have {', '.join(ignored)}: each clip keeps its own size, shape and length, "
            "and is trained in one size",
            file=sys.stderr,
        )
    return replace(config, data=replace(config.data, folder=DataConfig.folder, sets=sets))


def fit(config: TrainConfig, *, as_json: bool) -> int:
    """Train in a run folder that no other process uses, and print the checkpoint's path."""
    from videogen.training.progress import check_trackers
    from videogen.training.sharding import read_shards
    from videogen.training.stages import make_stage
    from videogen.training.trainer import Trainer

    check_trackers(config.run.report_to)
    read_shards(config)  # refuses what it cannot, before anything is loaded
    # A union of stages is not a stage of a union; each fits on its own.
    stage = make_stage(config)
    trainer = Trainer(stage, config)  # pyright: ignore[reportArgumentType]
    if trainer.accelerator.is_main_process:
        print(stage.clip_split.describe(), file=sys.stderr)
        if stage.cache_bytes:
            print(f"about {stage.cache_bytes / 1e6:,.1f} MB of latents are kept in {config.run.dir}", file=sys.stderr)
    if trainer.step:
        print(f"resuming {config.run.dir} at step {trainer.step} of {config.run.steps}", file=sys.stderr)
    complete = trainer.fit()
    if not trainer.accelerator.is_main_process:
        return 0  # one of them says it
    checkpoint = str(config.run.dir / "checkpoint")
    print(json.dumps({"checkpoint": checkpoint, "step": trainer.step, "complete": complete}) if as_json else checkpoint)
    if not complete:
        print(f"stopped at step {trainer.step} of {config.run.steps}; the same command goes on", file=sys.stderr)
    return 0 if complete else UNFINISHED
