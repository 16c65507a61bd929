"""Parse the flags that every measurement has: --small for a run of seconds, --out for the result file.

argv, smaller defaults  ->  argparse.Namespace
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "assets" / "bench"


def make_parser(name: str, doc: str | None, *, out: Path | None = None) -> argparse.ArgumentParser:
    """Make the parser of a measurement, whose result goes to assets/bench/NAME.json unless another place is given."""
    path = out or BENCH / f"{name}.json"
    parser = argparse.ArgumentParser(
        prog=f"videogen bench {name}", description=str(doc).split("\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "--small", action="store_true", help="run all of it in seconds, on so little that its numbers mean nothing"
    )
    shown = path.relative_to(ROOT)
    parser.add_argument("--out", type=Path, default=path, help=f"result file; {shown}, or none with --small")
    return parser


def parse_flags(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, small: Mapping[str, object] | None = None
) -> argparse.Namespace:
    """Parse the flags; with --small those that are not given have smaller defaults, and no result file is written."""
    words = sys.argv[1:] if argv is None else argv
    if "--small" in words:
        parser.set_defaults(**{"out": None, **(small or {})})
    return parser.parse_args(words)
