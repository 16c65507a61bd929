"""The command line: videogen sample | train | toybox | judge | bench, and the scripts sample.py and train.py.

Exit status: 0 done; 1 failure; 2 wrong input, one sentence on stderr; 130 after Ctrl-C, with nothing half-written.
Imports that cost time (torch, diffusers) stand where they are used, so that --help answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro

from videogen.config import TrainConfig, parse_size
from videogen.flags import guard, offline, parse, quiet_quantisers
from videogen.plain import load_toml, nearest

ROOT = Path(__file__).resolve().parent.parent


def train(argv: Sequence[str] | None = None) -> int:
    """train.py and `videogen train`."""
    return guard(_train, argv)


def _train(argv: Sequence[str]) -> int:
    short = {"--data": "--data.folder", "--run": "--run.dir"}
    words = [short.get(flag, flag) + equals + rest for flag, equals, rest in (word.partition("=") for word in argv)]
    as_json, dry_run = ("--json" in words), ("--dry-run" in words)
    words = [word for word in words if word not in ("--json", "--dry-run")]
    if not words or words[0].startswith("-"):
        if "--help" in words or "-h" in words:
            words = [word for word in words if word not in ("--help", "-h")]
            tyro.cli(TrainConfig, args=["--help"], prog="train.py RECIPE.toml", description=train_help())
        raise ValueError("train.py needs a recipe: python train.py configs/RECIPE.toml [--data FOLDER] [--run DIR]")
    config = load_toml(TrainConfig, Path(words[0]))
    config = parse(TrainConfig, words[1:], default=config, prog=f"train.py {words[0]}", description=train_help())
    offline()
    quiet_quantisers()
    if dry_run:
        from videogen.plan import plan_folder, tell

        plan = plan_folder(config)
        print(json.dumps(asdict(plan)) if as_json else tell(plan, config))
        return 0
    from videogen.stages import make_stage
    from videogen.training import Trainer

    # A union of stages is not a stage of a union; each fits on its own.
    trainer = Trainer(make_stage(config), config)  # pyright: ignore[reportArgumentType]
    if trainer.step:
        print(f"resuming {config.run.dir} at step {trainer.step} of {config.run.steps}", file=sys.stderr)
    complete = trainer.fit()
    if not trainer.accelerator.is_main_process:
        return 0  # one of them says it
    checkpoint = str(config.run.dir / "checkpoint")
    print(json.dumps({"checkpoint": checkpoint, "step": trainer.step, "complete": complete}) if as_json else checkpoint)
    if not complete:
        print(f"stopped at step {trainer.step} of {config.run.steps}; the same command goes on", file=sys.stderr)
    return 0


def train_help() -> str:
    """What --help says of training."""
    return (
        "Train from a recipe. The same command again resumes; SIGTERM and Ctrl-C save first. --dry-run says what the "
        "clips become: sizes, tokens, packs, steps an epoch, memory and time; --json says it for a program."
    )


@dataclass(frozen=True, kw_only=True)
class ToyboxArgs:
    """Write a folder of captioned MP4s from a world whose truth is known."""

    out: tyro.conf.Positional[Path]
    """Folder to write."""
    clips: int = 1000
    """How many clips."""
    seed: int = 0
    """Clip i depends on (seed, i) alone."""
    size: str | None = None
    """Only clips of this WIDTHxHEIGHT."""
    frames: int | None = None
    """Only clips of this length."""
    json: bool = False
    """Print a JSON object instead of text."""

    def __post_init__(self) -> None:
        if self.clips < 1 or (self.frames is not None and self.frames < 1):
            raise ValueError(f"--clips and --frames must be at least 1, got {self.clips} and {self.frames}")
        if self.size is not None and any(side < 16 or side % 2 for side in parse_size(self.size)):
            raise ValueError(f"--size must be even and at least 16x16, got {self.size}")


def _toybox(argv: Sequence[str]) -> int:
    args = parse(ToyboxArgs, argv, prog="videogen toybox", description=ToyboxArgs.__doc__)
    from rich.console import Console
    from rich.progress import Progress

    from videogen.toybox.folder import write_folder
    from videogen.toybox.scenes import FRAME_SIZES, LENGTHS

    sizes = FRAME_SIZES if args.size is None else (parse_size(args.size),)
    lengths = LENGTHS if args.frames is None else (args.frames,)
    bar = Progress(console=Console(stderr=True))
    task = bar.add_task("clips", total=args.clips)

    def show(num_done: int) -> None:
        bar.start()  # at the first clip, not before a refusal
        bar.update(task, completed=num_done)

    try:
        write_folder(args.out, num_clips=args.clips, seed=args.seed, sizes=sizes, lengths=lengths, on_clip=show)
    finally:
        bar.stop()
    print(json.dumps({"folder": str(args.out), "clips": args.clips}) if args.json else args.out)
    return 0


def _sample(argv: Sequence[str]) -> int:
    offline()
    quiet_quantisers()
    from videogen.generate import parse_args, run

    args = parse_args(argv)
    if args.sweep or args.search:
        from videogen.sweep.command import run_sweep

        return run_sweep(args)
    return run(args)


def sample(argv: Sequence[str] | None = None) -> int:
    """sample.py and `videogen sample`."""
    return guard(_sample, argv)


@dataclass(frozen=True, kw_only=True)
class BenchArgs:
    """Measure what the README claims; the result goes to assets/bench/NAME.json."""

    name: tyro.conf.Positional[
        Literal[
            "framing",
            "halfway",
            "line",
            "mini",
            "packing",
            "patches",
            "precision",
            "settings",
            "sizes",
            "sweep",
            "teaser",
            "wan",
            "wan_vae",
        ]
    ]
    """Which measurement."""


def _bench(argv: Sequence[str]) -> int:
    import runpy

    args = parse(BenchArgs, argv[:1], prog="videogen bench", description=BenchArgs.__doc__)
    script = ROOT / "tests" / "bench" / f"{args.name}.py"
    if not script.is_file():
        raise ValueError(f"the measurements are run from a checkout of the source: there is no {script}")
    sys.argv, sys.path = [str(script), *argv[1:]], [str(ROOT), *sys.path]
    runpy.run_path(str(script), run_name="__main__")
    return 0


def _judge(argv: Sequence[str]) -> int:
    offline()
    quiet_quantisers()
    from videogen.judging import run_judge

    return run_judge(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "sample": _sample,
    "train": _train,
    "toybox": _toybox,
    "judge": _judge,
    "bench": _bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """`videogen COMMAND ...`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__.split("\n\n")[0] if __doc__ else "")
        print("\n".join(f"  videogen {name} --help" for name in COMMANDS))
        return 0 if words else 2
    if words[0] not in COMMANDS:
        print(f"error: unknown command {words[0]!r}{nearest(words[0], COMMANDS)}", file=sys.stderr)
        return 2
    return guard(COMMANDS[words[0]], words[1:])
