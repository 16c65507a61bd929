"""--device auto takes the accelerator that there is, and any other device is named as torch names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.test_cli import QUICK, refused
from videogen.cli import devices
from videogen.cli.devices import check_device, may_have_accelerator, resolve_device
from videogen.cli.main import sample
from videogen.cli.sample import parse_args
from videogen.data.video_io import read_settings


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch find a GPU, as far as its name goes."""
    monkeypatch.setattr(devices, "may_have_accelerator", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))


@pytest.mark.usefixtures("accelerator")
def test_auto_is_the_accelerator_and_is_said_once(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args, _ = parse_args(["x", "--model", str(checkpoint)])
    assert args.device == "cuda"
    assert capsys.readouterr().err == "note: computing on cuda; --device cpu computes on the CPU\n"
    assert parse_args(["x", "--model", str(checkpoint), "--device", "cpu"])[0].device == "cpu"
    assert capsys.readouterr().err == ""


def test_auto_is_the_cpu_without_a_word_where_there_is_no_accelerator(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for driver in (False, True):  # a driver without a GPU, or without a build of torch for it
        monkeypatch.setattr(devices, "may_have_accelerator", lambda driver=driver: driver)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
        assert parse_args(["x", "--model", str(checkpoint)])[0].device == "cpu"
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("accelerator")
def test_a_clip_of_a_cpu_is_made_again_on_the_cpu(checkpoint: Path, tmp_path: Path) -> None:
    first, again, model = tmp_path / "first.mp4", tmp_path / "again.mp4", ["--model", str(checkpoint)]
    assert sample(["a red circle", *model, *QUICK, "--device", "cpu", "--out", str(first)]) == 0
    assert sample(["--from", str(first), *model, "--out", str(again)]) == 0
    assert again.read_bytes() == first.read_bytes()
    assert resolve_device("auto", "cuda") == "cuda"


@pytest.mark.parametrize("driver", ["/dev/nvidiactl", "/dev/kfd"])
def test_a_linux_with_a_driver_may_have_an_accelerator(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices.sys, "platform", "linux")
    monkeypatch.setattr(devices, "DRIVERS", [str(tmp_path / Path(driver).name)])
    assert not original_may_have_accelerator()
    (tmp_path / Path(driver).name).touch()
    assert original_may_have_accelerator()


original_may_have_accelerator = may_have_accelerator  # before conftest.py lets every machine have none


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "--device must be auto, cpu, cuda, cuda:1 (or another number), mps or xpu, got 'gpu'"),
        ("cuda:one", "got 'cuda:one'"),
        ("cpu:1", "got 'cpu:1'"),
    ],
)
def test_what_is_no_device_is_refused(
    device: str, message: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, sample(["x", "--model", str(checkpoint), "--device", device]), message)


def test_a_device_that_is_not_there_is_refused_and_the_others_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "xpu"):
        monkeypatch.setattr(getattr(torch, name), "is_available", lambda: False)
        with pytest.raises(ValueError, match=f"--device {name}:1 needs .* finds none; use --device cpu"):
            check_device(f"{name}:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1")
    with pytest.raises(ValueError, match="--device cuda:2 is not there: this machine has 2, from cuda:0 to cuda:1"):
        check_device("cuda:2")


def test_float16_makes_a_clip_that_says_so(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    assert sample(["x", "--model", str(checkpoint), *QUICK, "--dtype", "float16", "--out", str(out)]) == 0
    assert read_settings(out)["dtype"] == "float16"
