"""Words of a command line onto dataclasses, and failures onto sentences and exit statuses.

argv, dataclass  ->  an instance;  command  ->  0 done, 1 failure, 2 wrong input, 130 after Ctrl-C
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import tyro

from videogen.plain import nearest

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


def read_values(text: str) -> list[object]:
    """ "4,8" -> [4, 8]; "1:7:7" -> seven numbers from 1 to 7; "[0,1],[0.2,0.8]" -> two lists; the rest are words."""
    with contextlib.suppress(json.JSONDecodeError):
        return list(json.loads(f"[{text}]"))
    return [value for word in text.split(",") for value in read_word(word.strip())]


def read_word(word: str) -> list[object]:
    """One value of a list, or the numbers of a range start:stop:count."""
    number = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
    if span := re.fullmatch(rf"({number}):({number}):(\d+)", word):
        start, stop, count = float(span[1]), float(span[2]), int(span[3])
        if count < 2:
            raise ValueError(f"a range start:stop:count has at least 2 numbers, got {word}")
        exact = (round(start + i * (stop - start) / (count - 1), 9) for i in range(count))
        return [int(value) if value.is_integer() else value for value in exact]
    if re.fullmatch(rf"{number}:{number}", word):
        raise ValueError(f"a range is start:stop:count, such as 1:7:7, got {word}")
    with contextlib.suppress(json.JSONDecodeError):
        return [json.loads(word)]
    return [word]


class Lora(NamedTuple):
    """A LoRA's file or folder, how much of it, and of two experts that for high or low noise; empty: there is one."""

    path: Path
    scale: float
    expert: str


def read_lora(word: str) -> Lora:
    """ "low:style.safetensors=0.8" -> a LoRA, all of it if no scale is said; a ValueError where it is not there."""
    name, _, scale = word.rpartition("=") if re.search(r"=[-+.\d]+$", word) else (word, "", "1")
    expert, _, path = name.partition(":") if name.startswith(("high:", "low:")) else ("", "", name)
    if not Path(path).exists():
        raise ValueError(f"there is no LoRA {path}; give a .safetensors file or its folder, =SCALE behind it")
    return Lora(Path(path), float(scale), expert)


def check_experts(loras: Sequence[Lora], *, two: bool) -> None:
    """Refuse LoRAs that do not say which of two experts they are for, or say it of one."""
    for path, _, expert in loras:
        if two and not expert:
            raise ValueError(f"this model has two experts: say --lora high:{path} or low:{path}, for high or low noise")
        if expert and not two:
            raise ValueError(f"this model has one transformer; leave {expert}: out before {path}")


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
