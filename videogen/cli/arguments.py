"""Parse a command line into a dataclass, and turn failures into one sentence and an exit status.

argv, dataclass  ->  an instance;  command  ->  0 done, 1 failure, 2 wrong input, 130 after Ctrl-C
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import tyro

from videogen.cli.threads import prepare_threads
from videogen.config.parsing import nearest

T = TypeVar("T")


def guard(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command, and turn an exception into a sentence on stderr and an exit status."""
    argv = sys.argv[1:] if argv is None else argv
    prepare_threads()
    try:
        return command(argv)
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # of which the message has all
            name = str(error.filename)
            print(f"error: a name of {len(name):,} letters is too long: {name[:40]}...; shorten it", file=sys.stderr)
            return 2
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except (FloatingPointError, RuntimeError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing is half-written", file=sys.stderr)
        return 130


def parse(kind: type[T], argv: Sequence[str], *, prog: str, description: str | None, default: T | None = None) -> T:
    """Parse flags into a dataclass by tyro; a ValueError in one sentence, with the nearest flag for an unknown one."""
    known = flags_of(kind, default)
    for word in argv:
        flag = word.split("=", 1)[0]
        if flag.startswith("--") and len(flag) > 2 and flag.replace("_", "-") not in known and flag != "--help":
            raise ValueError(f"unknown flag {flag}{nearest(flag, known)}; --help lists them all")
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return cast("T", tyro.cli(kind, args=list(argv), default=default, prog=prog, description=description))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(first_sentence(stderr.getvalue())) from None


def first_sentence(box: str) -> str:
    """Extract the first message from tyro's box of lines, as one line."""
    lines = []
    for line in box.splitlines():
        text = line.strip("╭╮╰╯│ ")
        if set(text) <= {"─"} and lines:
            break
        if text and not line.startswith("╭"):
            lines.append(text)
    return " ".join(lines).rstrip(".") + "; --help lists what is allowed"


def flags_of(kind: type[T], default: T | None = None) -> set[str]:
    """List every flag that tyro derives from a dataclass."""
    parser = tyro.extras.get_parser(kind, default=default)
    return {option for action in parser._actions for option in action.option_strings}


def peek(argv: Sequence[str], flag: str) -> str | None:
    """Read the value of a flag ahead of parsing, where it decides the defaults of others."""
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"{flag}="):
            return word.split("=", 1)[1]
    return None


def check_device(device: str) -> None:
    """Refuse a device that this machine lacks."""
    if device == "cpu":  # only another is asked of torch, which takes a second to import
        return
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a CUDA GPU and a CUDA build of torch, and finds none; use --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps needs an Apple GPU; this machine has none: use --device cpu")


def set_offline() -> None:
    """Keep libraries from downloading anything while the program runs."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def silence_quantisers() -> None:
    """Silence torchao, which warns of kernels for GPUs wherever diffusers is imported."""
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)
