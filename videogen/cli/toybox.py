"""The toybox command: write a folder of captioned MP4s."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from videogen.cli.arguments import parse
from videogen.config.sizes import parse_size


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


def run_toybox(argv: Sequence[str]) -> int:
    """Write the folder, counting clips on stderr."""
    args = parse(ToyboxArgs, argv, prog="videogen toybox", description=ToyboxArgs.__doc__)
    from rich.console import Console
    from rich.progress import Progress

    from videogen.toybox.folder import write_folder
    from videogen.toybox.world.scenes import FRAME_SIZES, LENGTHS

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
