"""Damage: what people and power cuts do to checkpoints, run folders, LoRAs, prompts and sweeps, and what each gets.

    videogen bench damage [--only WORD]  ->  assets/bench/damage.json: used, named or refused; none silent, no traceback

Each kind of damage is done to a whole folder, by itself, and the command that meets it is run. It counts as refused
where the command ends with one sentence, as named where it goes on and says which file it left aside or made again, and
as used where there was nothing to say. A command that goes on without a word, ends in a traceback or takes longer than
LIMIT_SECONDS is a fault.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from tests.bench.damage_kinds import KINDS, Kind, Shop
from tests.bench.flags import ROOT, make_parser, parse_flags
from tests.bench.machine import processor_name, write_json
from videogen.cli.main import main as videogen

LIMIT_SECONDS = 30


class Outcome(NamedTuple):
    """What a kind of damage got."""

    kind: str
    got: str  # used, named or refused; or silent, traceback, hung: faults
    said: str  # the sentence
    seconds: float


class HungError(BaseException):
    """A command took longer than LIMIT_SECONDS."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise HungError in a command that takes too long, in a blocked system call too."""

    def stop(number: int, frame: object) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_command(words: Sequence[str]) -> tuple[int | str, str]:
    """Run a command in this process; return its status, or what went wrong, and what it said on stderr."""
    stderr = io.StringIO()
    logging.getLogger().handlers.clear()
    try:
        with time_limit(LIMIT_SECONDS), contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            status: int | str = videogen(list(words))
    except HungError:
        status = "hung"
    except SystemExit as stop:
        status = int(str(stop.code or 0))
    except Exception as error:  # a traceback is what is looked for
        status = "traceback"
        stderr.write(f"{type(error).__name__}: {error}")
    return status, stderr.getvalue()


def try_kind(kind: Kind, shop: Shop, folder: Path) -> Outcome:
    """Damage a whole folder in one way, and run the command that meets it."""
    words = kind.damage(shop, folder)
    start = time.monotonic()
    status, text = run_command(words)
    seconds = round(time.monotonic() - start, 2)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(status, str):
        return Outcome(kind.name, status, (lines or [""])[-1][:300], seconds)
    if status:
        sentences = [line for line in lines if line.startswith(("error: ", "failed: "))]
        got = "refused" if len(sentences) == 1 and len(sentences[0]) < 2000 else "traceback"
        return Outcome(kind.name, got, (sentences or lines or [""])[-1][:300], seconds)
    said = next((line for line in lines if kind.says and kind.says in line), "")
    return Outcome(kind.name, "used" if kind.is_harmless else "named" if said else "silent", said[:300], seconds)


def main(argv: Sequence[str] | None = None) -> None:
    """Try every kind and print what each got."""
    parser = make_parser("damage", __doc__)
    parser.add_argument("--only", default="", help="kinds whose names contain this")
    args = parse_flags(parser, argv, {"only": "nested"})
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    outcomes = []
    with tempfile.TemporaryDirectory() as place:
        shop = Shop(Path(place))
        for number, kind in enumerate(kind for kind in KINDS if args.only in kind.name):
            outcome = try_kind(kind, shop, Path(place) / f"kind_{number}")
            said = outcome.said.replace(place, "DIR").replace(f"{ROOT}/", "")  # the same wherever it is tried
            outcomes.append(outcome := outcome._replace(said=said))
            print(f"{outcome.got:9} {outcome.seconds:6.1f} s  {outcome.kind}: {outcome.said}", flush=True)
            shutil.rmtree(Path(place) / f"kind_{number}", ignore_errors=True)
    counts = Counter(outcome.got for outcome in outcomes)
    print("  ".join(f"{got} {count}" for got, count in sorted(counts.items())), f" of {len(outcomes)} kinds")
    result = {
        "kinds": len(outcomes),
        "counts": dict(sorted(counts.items())),
        "outcomes": [o._asdict() for o in outcomes],
    }
    write_json(args.out, {"machine": processor_name(), "date": date.today().isoformat(), **result})


if __name__ == "__main__":
    sys.exit(main())
