"""Flags are read ahead of the parser in one way, which agrees with the parser."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_cli import QUICK, refused
from videogen.cli.arguments import parse, peek, scan_flags
from videogen.cli.main import sample
from videogen.cli.sample import parse_args
from videogen.cli.sample_arguments import SampleArgs


@pytest.mark.parametrize(
    "words",
    [
        ["x", "--model", "there"],
        ["x", "--model=there"],
        ["--model", "there", "x"],
        ["--lora", "a", "b", "--model", "there", "x"],
        ["--save-latents", "--model", "there", "--", "x", "--model"],
        ["x", "--negative=--model", "--model", "there"],
        ["x", "--join", "there", "--model", "there"],
        ["x", "--negative", "-3 cats", "--model", "there"],
        ["x"],
        ["--", "--model", "elsewhere"],
    ],
)
def test_a_flag_read_ahead_has_the_value_that_the_parser_gives_it(words: list[str]) -> None:
    args = parse(SampleArgs, words, prog="sample.py", description=None)
    for flag, value in (("--model", args.model), ("--join", args.join)):
        ahead = peek(words, flag)
        assert (SampleArgs().model if ahead is None and flag == "--model" else ahead and Path(ahead)) == value


@pytest.mark.parametrize("flag", ["--model", "--from", "--config", "--lora", "--sweep", "--gguf"])
@pytest.mark.parametrize("equals", [False, True])
def test_a_flag_that_is_given_twice_is_refused_before_anything_is_read(
    flag: str, equals: bool, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser takes the last: the second model would run with the first one's settings, of two LoRAs one be lost."""
    twice = [f"{flag}={value}" for value in "ab"] if equals else [flag, "a", flag, "b"]
    out = ["--out", str(tmp_path / "clip.mp4"), *([] if flag == "--model" else ["--model", str(checkpoint)])]
    refused(capsys, sample(["x", *twice, *out]), f"{flag} is given 2 times ({flag} a and {flag} b)")


def test_the_words_behind_a_flag_are_listed_for_each_time_that_it_is_given() -> None:
    words = ["x", "--lora", "a", "b", "--no-compile", "--lora=c", "--", "--lora", "d"]
    assert scan_flags(words) == {"--lora": [["a", "b"], ["c"]], "--no-compile": [[]]}


def test_of_a_setting_that_is_given_twice_the_last_counts(checkpoint: Path) -> None:
    args, _ = parse_args(["x", "--model", str(checkpoint), *QUICK, "--steps", "7"])
    assert args.sample.steps == 7


def test_an_empty_model_is_no_default(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, sample(["x", "--model=", *QUICK]), "is not a checkpoint folder")


def test_a_model_named_with_an_underscore_flag_gives_its_own_defaults(checkpoint: Path) -> None:
    args, info = parse_args(["x", "--save_latents", f"--model={checkpoint}"])
    assert args.save_latents
    assert (args.model, args.sample) == (checkpoint, info.defaults)
