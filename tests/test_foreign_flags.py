"""Flags and prompt lines of other programs: each is named in this one's words, or read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_cli import refused
from videogen.cli.arguments import flags_of
from videogen.cli.foreign_flags import FOREIGN_FLAGS
from videogen.cli.main import sample
from videogen.cli.prompts import read_prompts
from videogen.cli.sample_arguments import SampleArgs
from videogen.cli.train import train
from videogen.cli.train_folder import TrainFolderArgs
from videogen.config.sample import SampleConfig
from videogen.config.train import TrainConfig


def test_every_hint_begins_with_a_flag_that_exists_or_with_none() -> None:
    ours = flags_of(SampleArgs, SampleArgs(sample=SampleConfig())) | flags_of(TrainConfig, TrainConfig())
    ours |= flags_of(TrainFolderArgs, TrainFolderArgs(folder=Path()))
    for name, hints in FOREIGN_FLAGS.items():
        assert hints, name
        for hint in hints:
            assert not hint.startswith("--") or hint.split()[0].rstrip(",") in ours, (name, hint)
    assert len(FOREIGN_FLAGS) > 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_inference_steps", "30"], "--num-inference-steps is a flag of other programs; here it is --steps N"),
        (["--height", "480", "--width", "832"], "here it is --size 832x480"),
        (["--height=480"], "here it is --size WIDTHxHEIGHT"),
        (["--guidance_scale", "5"], "here it is --guidance W"),
        (["--cfg", "5"], "here it is --guidance W"),
        (["--flow_shift", "5"], "here it is --shift N"),
        (["--output_dir", "x"], "here it is --out PATH"),
        (["--negative_prompt", "x"], "here it is --negative TEXT"),
        (["--ckpt_dir", "x"], "here it is --model FOLDER"),
        (["--enable-model-cpu-offload"], "here it is --offload model"),
        (["--learning_rate", "1e-4"], "and here one of another command: --optim.lr X"),
        (["--stpes", "3"], "unknown flag --stpes; did you mean '--steps'"),
    ],
)
def test_a_flag_of_another_program_is_named_in_the_words_of_sample(
    words: list[str], message: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, sample(["x", *words, "--model", str(checkpoint)]), message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rate", "1e-4"], "here it is --optim.lr X"),
        (["--output_dir", "x"], "here it is --run.dir DIR"),
        (["--max_train_steps", "9"], "here it is --run.steps N"),
        (["--train_batch_size", "1"], "here it is --data.token-budget N"),
        (["--network_dim", "16"], "here it is --dit.lora-rank N"),
    ],
)
def test_a_flag_of_another_trainer_is_named_in_the_words_of_train(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text("", encoding="utf-8")
    refused(capsys, train([str(tmp_path / "recipe.toml"), *words]), message)


def read(line: str, path: Path, settings: SampleConfig | None = None) -> tuple[str, int, SampleConfig]:
    path.write_text(line + "\n", encoding="utf-8")
    [row] = read_prompts(path, settings or SampleConfig(), 7)
    return row


def test_a_prompt_line_of_kohyas_trainers_is_read_with_its_settings(tmp_path: Path) -> None:
    line = "a red circle --w 96 --h 64 --f 9 --n a blue star, blurry --s 12 --d 42 --l 3.5 --fs 4"
    prompt, seed, config = read(line, tmp_path / "p.txt")
    assert (prompt, seed) == ("a red circle", 42)
    assert config == SampleConfig(
        size="96x64", frames=9, negative="a blue star, blurry", steps=12, guidance=3.5, shift=4.0
    )


def test_one_side_takes_the_other_of_the_command_and_names_of_settings_are_read(tmp_path: Path) -> None:
    _, seed, config = read("a cat --h 32 --sampler euler --frames 5", tmp_path / "p.txt", SampleConfig(seconds=2))
    assert (seed, config.size, config.sampler, config.frames, config.seconds) == (7, "64x32", "euler", 5, None)


def test_a_dash_within_a_prompt_is_text(tmp_path: Path) -> None:
    for line in ("a cat -- and a dog", "a semi--trailer", "a cat --- 9"):
        assert read(line, tmp_path / "p.txt")[0] == line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a cat --x 3", "p.txt row 1: unknown column 'x'"),
        ("a cat --s many", "row 1: steps must be of type int, got 'many'"),
        ("a cat --s 3 --s 4", "row 1: the line gives --s twice"),
        ("a cat --d 1.5", "row 1: seed must be a whole number, got 1.5"),
        ("--s 3", "row 1: the line has settings and no prompt: '--s 3'"),
    ],
)
def test_a_wrong_setting_of_a_line_is_refused(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"p\.txt row 1") as error:
        read(line, tmp_path / "p.txt")
    assert message in str(error.value)
