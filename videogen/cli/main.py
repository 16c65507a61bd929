"""The command line: videogen sample | train | toybox | judge | bench, and the scripts sample.py and train.py.

Exit status: 0 done; 1 failure; 2 wrong input, one sentence on stderr; 130 after Ctrl-C, with nothing half-written.
Imports that cost time (torch, diffusers) stand where they are used, so that --help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from videogen.cli.arguments import guard, offline, parse, quiet_quantisers
from videogen.cli.toybox import _toybox
from videogen.cli.train import _train
from videogen.config.parsing import nearest

ROOT = Path(__file__).resolve().parents[2]


def _sample(argv: Sequence[str]) -> int:
    offline()
    quiet_quantisers()
    from videogen.cli.sample import parse_args, run

    args = parse_args(argv)
    if args.sweep or args.search:
        from videogen.cli.sweep import run_sweep

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
    from videogen.cli.judge import run_judge

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
