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
from argparse import Action
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

import tyro

from videogen.cli.foreign_flags import translate
from videogen.cli.threads import prepare_threads
from videogen.config.parsing import nearest

T = TypeVar("T")
UNFINISHED = 75  # of a run that ended before its last step: "try again", by which schedulers queue it anew
VERBOSE = ("-v", "--verbose")


def guard(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command, and turn an exception into a sentence on stderr and an exit status."""
    words, verbose = split_verbose(sys.argv[1:] if argv is None else argv)
    prepare_threads()
    try:
        with report_choices() if verbose else contextlib.nullcontext():
            return command(words)
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
    actions = actions_of(kind, default)
    known = {option for action in actions for option in action.option_strings}
    lists = {option for action in actions if is_list(action) for option in action.option_strings}
    for flag, occurrences in scan_flags(argv).items():
        if flag not in known and flag != "--help" and not flag.startswith("--tyro-"):
            other = translate(flag, known, scan_flags(argv))
            raise ValueError(other or f"unknown flag {flag}{nearest(flag, known)}; --help lists them all")
        if flag in lists and any(values != occurrences[0] for values in occurrences):
            raise ValueError(repeated(flag, occurrences))
    stderr = io.StringIO()
    try:
        with honour_no_color(), contextlib.redirect_stderr(stderr):
            return cast("T", tyro.cli(kind, args=list(argv), default=default, prog=prog, description=description))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(first_sentence(stderr.getvalue())) from None


def split_verbose(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Split -v off the words of any command."""
    end = argv.index("--") if "--" in argv else len(argv)
    words = [word for word in argv[:end] if word not in VERBOSE]
    return [*words, *argv[end:]], len(words) < end


@contextlib.contextmanager
def report_choices() -> Iterator[None]:
    """Write to stderr what the program chooses by itself: device, precision, attention kernel, reader of a file."""
    logger, handler = logging.getLogger("videogen"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def honour_no_color() -> Iterator[None]:
    """Let tyro write without colours where NO_COLOR is set (no-color.org); of the environment it heeds only TERM."""
    term = os.environ.get("TERM")
    if term is None or not os.environ.get("NO_COLOR"):
        yield
        return
    os.environ["TERM"] = "dumb"
    try:
        yield
    finally:
        os.environ["TERM"] = term


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
    return {option for action in actions_of(kind, default) for option in action.option_strings}


def actions_of(kind: type[T], default: T | None = None) -> list[Action]:
    """List the arguments that tyro derives from a dataclass, as argparse describes them."""
    return tyro.extras.get_parser(kind, default=default)._actions


def is_list(action: Action) -> bool:
    """True if an argument takes any number of values at one time, of which a second time would drop all."""
    return action.nargs == "*" and "Append" not in type(action).__name__


def scan_flags(argv: Sequence[str]) -> dict[str, list[list[str]]]:
    """List the words behind each flag, once for each time that it is given, as the parser takes them apart.

    Flags are spelled with - or _, values follow as words or behind =, and all words behind a bare -- are no flags.
    """
    found: dict[str, list[list[str]]] = {}
    values: list[str] = []
    for word in argv:
        if word == "--":
            break
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            values = [value] if equals else []
            found.setdefault(flag.replace("_", "-"), []).append(values)
        else:
            values.append(word)
    return found


def peek(argv: Sequence[str], flag: str) -> str | None:
    """Read the value of a flag ahead of parsing, where it decides the defaults of others; None where it is not given.

    Raises a ValueError where it has two values: the parser would take the last, and its defaults would be the first's.
    """
    occurrences = [values[:1] for values in scan_flags(argv).get(flag, [])]
    if any(value != occurrences[0] for value in occurrences):
        raise ValueError(repeated(flag, occurrences))
    return next(iter(occurrences[0]), None) if occurrences else None


def is_given(argv: Sequence[str], flag: str) -> bool:
    """True if a flag is given, with or without a value."""
    return flag in scan_flags(argv)


def repeated(flag: str, occurrences: Sequence[Sequence[str]]) -> str:
    """Say that a flag is given several times."""
    given = " and ".join(" ".join((flag, *values)) for values in occurrences)
    return f"{flag} is given {len(occurrences)} times ({given}); give it once, with all its values behind it"


def silence_quantisers() -> None:
    """Silence torchao and bitsandbytes, which warn of kernels that they do not find where they are imported."""
    for name in ("torchao", "bitsandbytes", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)
