"""The precision that is chosen where nobody asks for one, and that a clip repeats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import elsewhere, fit
from tests.test_cli import QUICK
from videogen.cli.main import sample
from videogen.cli.sample import load, parse_args
from videogen.config.train import RunConfig, TrainConfig
from videogen.data.video_io import read_settings
from videogen.models import precision
from videogen.models.precision import bf16_instructions, lacks_bf16_instructions, resolve_mixed_precision

CPUINFO = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 {}\nbugs\t\t: spectre_v1\n"


def chosen(*words: str) -> str:
    return parse_args(["x", *words])[0].dtype


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videogen.cli.sample.bf16_instructions", lambda: True)


@pytest.mark.parametrize(
    ("flags", "answer"), [("avx512f", False), ("avx512f avx512_bf16", True), ("amx_tile amx_bf16", True)]
)
def test_the_instructions_are_read_from_the_flags_of_the_cpu(
    flags: str, answer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(flags))
    monkeypatch.setattr(precision, "Path", lambda _: tmp_path / "cpuinfo")
    assert bf16_instructions.__wrapped__() is answer


def test_nobody_can_say_where_a_cpu_lists_no_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd\n")  # as on ARM
    for name in ("cpuinfo", "missing"):
        monkeypatch.setattr(precision, "Path", lambda _, name=name: tmp_path / name)
        assert bf16_instructions.__wrapped__() is None


def test_torch_sees_the_same_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    get_capabilities: Callable[[], dict[str, object]] | None = getattr(torch.cpu, "get_capabilities", None)
    if get_capabilities is None or get_capabilities().get("architecture") != "x86_64":
        pytest.skip("this version of torch does not list the instructions of this CPU")
    theirs = get_capabilities()
    assert bf16_instructions.__wrapped__() is bool(theirs["avx512_bf16"] or theirs["amx_bf16"])


@pytest.mark.usefixtures("with_bf16")
def test_auto_takes_bfloat16_for_plain_checkpoints_on_such_a_cpu_alone(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", str(checkpoint))
    assert chosen(*model) == "bfloat16"
    assert chosen(*model, "--dtype", "float32") == "float32"
    assert chosen(*model, "--compile") == "float32"  # by diffusers' classes
    assert chosen(*model, "--device", "cuda") == "float32"
    assert next(load(*parse_args(["x", *model])).transformer.blocks.parameters()).dtype == torch.float32  # a table
    assert load(*parse_args(["x", *model])).transformer.proj_out.weight.dtype == torch.bfloat16
    for answer in (False, None):
        monkeypatch.setattr("videogen.cli.sample.bf16_instructions", lambda answer=answer: answer)
        assert chosen(*model) == "float32"


@pytest.mark.usefixtures("with_bf16")
def test_a_clip_is_repeated_in_its_own_precision_whatever_auto_would_choose(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again, model = tmp_path / "first.mp4", tmp_path / "again.mp4", ["--model", str(checkpoint)]
    assert sample(["x", "--out", str(first), *model, *QUICK]) == 0
    assert read_settings(first)["dtype"] == "bfloat16"
    monkeypatch.setattr("videogen.cli.sample.bf16_instructions", lambda: False)
    assert sample(["--from", str(first), "--out", str(again), *model]) == 0
    assert again.read_bytes() == first.read_bytes()


@pytest.mark.parametrize("answer", [True, False, None])
def test_training_takes_bf16_where_the_cpu_has_it_and_keeps_what_it_is_told(
    answer: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bf16_instructions", lambda: answer)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_mixed_precision(RunConfig()).mixed_precision == ("bf16" if answer else "no")
    for told in ("no", "bf16"):
        assert resolve_mixed_precision(RunConfig(mixed_precision=told)).mixed_precision == told
    assert lacks_bf16_instructions(torch.device("cpu")) is (answer is False)
    assert not lacks_bf16_instructions(torch.device("cuda"))


def test_a_run_records_the_precision_that_was_chosen(
    finished: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bf16_instructions", lambda: True)
    recipe = elsewhere(finished["dit"], tmp_path / "run", steps=1)
    assert recipe.run.mixed_precision == "auto"
    assert fit(recipe)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["mixed_precision"] == "bf16"
