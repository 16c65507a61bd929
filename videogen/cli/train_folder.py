"""The train command for a folder: one plan said first, one run folder, a checkpoint at its end.

argv  ->  RunPlan  ->  run/checkpoint, run/results
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from videogen.cli.arguments import UNFINISHED, parse, silence_quantisers
from videogen.config.parsing import format_toml
from videogen.config.train import BaseDtype, DataConfig
from videogen.models.hub import set_offline
from videogen.sampling.gguf_files import require

DESCRIPTION = """Train on a folder of videos, from nothing to a checkpoint, by one plan that is said first.

The same command again goes on; with --minutes, a run that is complete goes on from its result."""


@dataclass(frozen=True, kw_only=True)
class TrainFolderArgs:
    """Which folder, for how long, and where to."""

    folder: tyro.conf.Positional[Path]
    """Folder of videos and pictures, with captions or without."""
    minutes: float | None = None
    """How long to train, 30 by default; of a run that is complete, how much longer."""
    run: Path | None = None
    """Folder of the run; default runs/ and the folder's name."""
    lora: bool = False
    """Train a LoRA of the weights that --model names, which stay as they are."""
    model: Path | None = None
    """The model that --lora adapts: a folder of Wan 2.1 text to video, or of our own."""
    base_dtype: BaseDtype = "float32"
    """How the matrices of that model are kept while its LoRA trains: in 4 bytes, 8 bits or 4 bits a value."""
    data: DataConfig = field(default_factory=DataConfig)
    """How clips are read."""
    dry_run: bool = False
    """Say the plan and train nothing."""
    write_recipes: Path | None = None
    """Write the plan as recipes into this folder, to go on by hand, and train nothing."""
    json: bool = False
    """Print the checkpoint as a JSON object."""

    def __post_init__(self) -> None:
        if self.minutes is not None and not 0 < self.minutes < 1e6:
            raise ValueError(f"--minutes must be above 0, got {self.minutes:g}")
        if self.lora != (self.model is not None):
            raise ValueError("--lora and --model FOLDER go together: the model is what the LoRA is trained for")
        if self.base_dtype != "float32" and not self.lora:
            raise ValueError(f"--base-dtype {self.base_dtype} is of the model below a LoRA; give --lora and --model")
        if self.base_dtype == "nf4":
            require("bitsandbytes", "--base-dtype nf4")
        if self.data.toybox:
            raise ValueError("--data.toybox draws clips, and a folder was given; leave it out")


def train_folder(argv: Sequence[str]) -> int:
    """Run train.py FOLDER."""
    args = parse(TrainFolderArgs, argv, prog="train.py FOLDER", description=DESCRIPTION)
    data = replace(args.data, folder=args.folder)
    set_offline()
    silence_quantisers()
    from videogen.training.folder_plan import recipes
    from videogen.training.folder_run import default_run, new_plan, prepare_plan, sample_command, train_planned

    run = args.run or default_run(args.folder)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if args.dry_run or args.write_recipes is not None:
        plan = new_plan(run, args.minutes, data, args.model, args.base_dtype)
        for line in plan.lines:
            say(line)
        if args.write_recipes is not None:
            write_recipes(args.write_recipes, {name: format_toml(recipe) for name, recipe in recipes(plan).items()})
        return 0
    plan = prepare_plan(run, args.minutes, data, say, args.model, args.base_dtype)
    if not train_planned(run):
        say(f"stopped; the same command goes on with {run}")
        return UNFINISHED
    checkpoint = str(run / "checkpoint")
    say(f"samples beside their sources: {run / 'results' / 'index.html'}\nmore: {sample_command(run, plan)}")
    print(json.dumps({"checkpoint": checkpoint, "complete": True}) if args.json else checkpoint)
    return 0


def write_recipes(folder: Path, texts: dict[str, str]) -> None:
    """Write recipes into a folder and print their paths; a ValueError where one is there already."""
    from videogen.data.files import save_text

    for name in texts:
        if (folder / name).exists():
            raise ValueError(f"{folder / name} exists; give another folder with --write-recipes")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        save_text(folder / name, text)
        print(folder / name)
