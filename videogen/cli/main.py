"""videogen: text to video of any length, size and aspect ratio, on spacetime patches.

Exit status: 0 done; 1 failure; 2 wrong input, one sentence on stderr; 3 a finding of the doctor; 75 training that
ended before its last step; 130 after Ctrl-C, with nothing half-written.
Imports that cost time (torch, diffusers) stand where they are used, so that --help answers at once.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from videogen import __version__
from videogen.cli.arguments import guard, parse, silence_quantisers
from videogen.cli.doctor import DoctorArgs, run_doctor
from videogen.cli.toybox import ToyboxArgs, run_toybox
from videogen.cli.train import run_train
from videogen.cli.words import WordsArgs, run_words
from videogen.config.parsing import nearest
from videogen.models.hub import set_offline

ROOT = Path(__file__).resolve().parents[2]


def sample(argv: Sequence[str] | None = None) -> int:
    """Run sample.py and `videogen sample`."""
    return guard(run_sample, argv)


def run_sample(argv: Sequence[str]) -> int:
    """Make clips from prompts, or compare settings in a sweep."""
    set_offline()
    silence_quantisers()
    from videogen.cli.known_flags import fit_settings
    from videogen.cli.sample import parse_args, run

    args, info = parse_args(argv)
    args = fit_settings(args, info, argv)
    if args.sweep or args.search:
        from videogen.cli.sweep import run_sweep

        return run_sweep(args, info)
    return run(args, info)


def run_judge(argv: Sequence[str]) -> int:
    """Judge clips by what their captions say."""
    set_offline()
    silence_quantisers()
    from videogen.cli.judge import run

    return run(argv)


@dataclass(frozen=True, kw_only=True)
class BenchArgs:
    """Measure what the README claims; the result goes to assets/bench/NAME.json."""

    name: tyro.conf.Positional[
        Literal[
            "borders",
            "busy",
            "cache",
            "cold",
            "damage",
            "folder",
            "framing",
            "halfway",
            "known",
            "line",
            "mini",
            "packing",
            "patches",
            "precision",
            "processes",
            "recipes",
            "rows",
            "settings",
            "short",
            "sizes",
            "sweep",
            "teaser",
            "wan",
            "wan_vae",
            "wild",
        ]
    ]
    """Which measurement."""
    busy: tyro.conf.FlagCreatePairsOff[bool] = False
    """Measure although more than one core is busy with something else."""


def run_bench(argv: Sequence[str]) -> int:
    """Run a measurement of tests/bench as a script, where the machine is free for it."""
    words = [word for word in argv if word != "--busy"]  # the others after the name are the script's
    own = [*words[:1], *(["--busy"] if "--busy" in argv else [])]
    args = parse(BenchArgs, own, prog="videogen bench", description=BenchArgs.__doc__)
    script = ROOT / "tests" / "bench" / f"{args.name}.py"
    if not script.is_file():
        raise ValueError(f"the measurements are run from a checkout of the source: there is no {script}")
    sys.argv, sys.path = [str(script), *words[1:]], [str(ROOT), *sys.path]
    if not {"-h", "--help"} & {*words[1:]}:
        from tests.bench.load import check_load, measure_load

        check_load(measure_load(), anyway=args.busy)
    runpy.run_path(str(script), run_name="__main__")
    return 0


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "sample": (run_sample, "make clips from prompts, or compare settings in a sweep"),
    "train": (run_train, "train a VAE or a transformer from a recipe"),
    "toybox": (run_toybox, "write a folder of captioned clips from a world whose truth is known"),
    "words": (run_words, "list the words that a checkpoint met in training, by kind"),
    "judge": (run_judge, "score clips or a checkpoint by what their captions say"),
    "doctor": (run_doctor, "say what is wrong with a folder of videos, and what training makes of it"),
    "bench": (run_bench, "run a measurement behind the README's numbers"),
}
HELP = f"""{(__doc__ or "").splitlines()[0]}

{"".join(f"  videogen {name:8}{summary}{chr(10)}" for name, (_, summary) in COMMANDS.items())}
  videogen COMMAND --help        the flags of a command
  videogen COMMAND -v            say what the program chooses by itself
  videogen --version
  videogen --tyro-print-completion bash|zsh|tcsh        a completion script for the shell"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `videogen COMMAND ...`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"videogen {__version__}")
        return 0
    if words[0].startswith("--tyro-"):
        return print_completion(words)
    if words[0] not in COMMANDS:
        print(f"error: unknown command {words[0]!r}{nearest(words[0], COMMANDS)}", file=sys.stderr)
        return 2
    return guard(COMMANDS[words[0]][0], words[1:])


def print_completion(words: Sequence[str]) -> int:
    """Let tyro write a completion script for all commands and their flags."""
    from videogen.cli.judge import JudgeArgs
    from videogen.cli.sample_arguments import SampleArgs
    from videogen.config.train import TrainConfig

    def of(kind: type, name: str) -> object:
        return Annotated[kind, tyro.conf.subcommand(name, description=COMMANDS[name][1])]

    kinds = (SampleArgs, TrainConfig, ToyboxArgs, WordsArgs, JudgeArgs, DoctorArgs, BenchArgs)
    commands = [of(kind, name) for kind, name in zip(kinds, COMMANDS, strict=True)]
    union = commands[0]
    for command in commands[1:]:
        union = union | command  # type: ignore[operator]
    try:
        tyro.cli(union, args=list(words), prog="videogen")  # type: ignore[call-overload]
    except ImportError:  # of shtab, which tyro needs for any other shell
        print(f"error: {' '.join(words)} needs shtab: pip install shtab; bash and zsh need nothing", file=sys.stderr)
        return 2
    return 0
