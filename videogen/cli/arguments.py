"""Words of a command line onto dataclasses, and failures onto sentences and exit statuses.

argv, dataclass  ->  an instance;  command  ->  0 done, 1 failure, 2 wrong input, 130 after Ctrl-C
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import tyro

from videogen.config.parsing import nearest

T = TypeVar("T")


def guard(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command and turn what went wrong into a sentence and an exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return command(argv)
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, OSError, RuntimeError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing is half-written", file=sys.stderr)
        return 130


def parse(kind: type[T], argv: Sequence[str], *, prog: str, description: str | None, default: T | None = None) -> T:
    """Flags onto a dataclass by tyro; what does not fit gets one sentence, an unknown flag the nearest that exists."""
    known = flags_of(kind, default)
    for word in argv:
        flag = word.split("=", 1)[0]
        if flag.startswith("--") and len(flag) > 2 and flag.replace("_", "-") not in known and flag != "--help":
            raise ValueError(f"unknown flag {flag}{nearest(flag, known)}; --help lists them all")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            made = tyro.cli(kind, args=list(argv), default=default, prog=prog, description=description)
            return cast("T", made)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(first_sentence(said.getvalue())) from None


def first_sentence(box: str) -> str:
    """What tyro says first in its box of lines, as one line."""
    lines = []
    for line in box.splitlines():
        text = line.strip("╭╮╰╯│ ")
        if set(text) <= {"─"} and lines:
            break
        if text and not line.startswith("╭"):
            lines.append(text)
    return " ".join(lines).rstrip(".") + "; --help lists what is allowed"


def flags_of(kind: type[T], default: T | None = None) -> set[str]:
    """Every flag that tyro makes of a dataclass."""
    parser = tyro.extras.get_parser(kind, default=default)
    return {option for action in parser._actions for option in action.option_strings}


def offline() -> None:
    """Nothing is ever fetched while the program runs, whatever a library would like to look up."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def quiet_quantisers() -> None:
    """Where torchao is installed, whatever imports diffusers would begin with warnings about kernels for GPUs."""
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)


def peek(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag that decides the defaults of others."""
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"{flag}="):
            return word.split("=", 1)[1]
    return None
