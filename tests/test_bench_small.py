"""Every measurement runs to its end with --small, so that a number in the pages can be had again."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F

from tests.bench.flags import BENCH, make_parser, parse_flags
from tests.bench.flop import count_gflop
from videogen.cli.main import BenchArgs
from videogen.sampling.pipeline import VideoPipeline

NAMES = get_args(get_type_hints(BenchArgs)["name"])
OF_ANY_CHECKPOINT = {"framing", "halfway", "known", "mini", "sizes", "teaser"}
WITH_PROCESSES = ("busy", "cache", "cold", "line", "processes", "sweep", "wan", "wan_vae")


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let new processes of Python end at once with a result: each would import everything for seconds."""

    run_process = subprocess.run

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if command[0] != sys.executable:
            return run_process(command, **options)  # type: ignore[call-overload]
        return subprocess.CompletedProcess(command, 0, stdout="2.0 1.0\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)


def run_small(name: str, out: Path, *words: str) -> None:
    importlib.import_module(f"tests.bench.{name}").main(["--small", "--out", str(out), *words])


@pytest.mark.usefixtures("quick_judge", "no_processes")
@pytest.mark.parametrize("name", NAMES)
def test_a_small_run_measures_everything_and_writes_it(
    name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(checkpoint)] if name in OF_ANY_CHECKPOINT else []
    if name == "patches":
        pipeline = VideoPipeline.load(checkpoint)
        pipeline.transformer = pipeline.transformer.extended([(3, 2, 2)])
        pipeline.save_pretrained(tmp_path / "patches")
        words = ["--model", str(tmp_path / "patches")]
    run_small(name, tmp_path / "new" / "result", *words)
    assert capsys.readouterr().out
    if name == "teaser":
        assert (tmp_path / "new" / "result").read_bytes().startswith(b"RIFF")
    else:
        result = json.loads((tmp_path / "new" / "result").read_text(encoding="utf-8"))
        committed = BENCH / f"{name}.json"
        if committed.is_file():
            assert json.loads(committed.read_text(encoding="utf-8")).keys() <= result.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_PROCESSES)
def test_a_small_run_ends_with_its_own_processes_too(name: str, tmp_path: Path) -> None:
    run_small(name, tmp_path / "result.json")
    assert (tmp_path / "result.json").stat().st_size > 100


def test_attention_and_products_in_place_count_as_operations() -> None:
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 7, 8)
    gflop, out = count_gflop(lambda: F.scaled_dot_product_attention(q, k, k))
    assert (
        round(gflop * 1e9) == 4 * 2 * 5 * 7 * 8
    )  # two products of 5 by 7 by 8 in two heads, a multiplication and a sum each
    assert out.shape == q.shape
    total, a, b = torch.zeros(3, 2, 4), torch.ones(3, 2, 5), torch.ones(3, 5, 4)
    assert round(count_gflop(lambda: total.baddbmm_(a, b))[0] * 1e9) == 2 * 3 * 2 * 5 * 4


def test_small_changes_defaults_alone_and_writes_no_file_unless_told() -> None:
    def parse(*words: str) -> tuple[Path | None, int]:
        parser = make_parser("line", "Measure.")
        parser.add_argument("--clips", type=int, default=100)
        args = parse_flags(parser, words, {"clips": 1})
        return args.out, args.clips

    assert parse() == (BENCH / "line.json", 100)
    assert parse("--small") == (None, 1)
    assert parse("--small", "--clips", "5", "--out", "x.json") == (Path("x.json"), 5)
