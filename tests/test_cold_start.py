"""A command starts at once: what a plain run imports is on a list, and what computes nothing imports no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.bench.cold import measure
from tests.test_cli import QUICK
from videogen.cli.main import sample
from videogen.cli.sample import load, parse_args
from videogen.models.checkpoint import load_network
from videogen.models.checkpoint_config import FLOAT32_PARTS, read_checkpoint_info
from videogen.models.dit import VideoDiT
from videogen.models.dit_network import DiT
from videogen.models.vae import VideoVAE
from videogen.models.vae_network import VAE
from videogen.sampling.clip_sampler import ClipSampler
from videogen.sampling.pipeline import VideoPipeline

ROOT = Path(__file__).parent.parent
# The packages that a plain run imports beside what torch itself imports, with those that they import in turn.
ALLOWED = {
    "videogen", "torch", "numpy", "einops", "safetensors", "tokenizers",  # networks
    "av", "PIL",  # files
    "tyro", "docstring_parser", "typeguard", "typing_extensions", "shtab", "rich", "pygments", "markdown_it", "mdurl",
    "cython_runtime",
}  # fmt: skip
SLOW_PARTS_OF_TORCH = {
    "torch._dynamo",
    "torch._inductor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.distributed.tensor",
}
PRINT_MODULES = """
import json, runpy, sys
try:
    runpy.run_path(sys.argv[1], run_name="__main__")
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
print(json.dumps(sorted(sys.modules)))
"""


def imported_modules(*words: str) -> set[str]:
    """Run sample.py or another script in a process of its own, and list the modules that it has imported at its end."""
    code = PRINT_MODULES.replace("sys.argv[1]", repr(words[0]))
    process = subprocess.run(
        [sys.executable, "-c", code, *words[1:]], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {*json.loads(process.stdout.splitlines()[-1])}


def packages_of(modules: set[str]) -> set[str]:
    """List the packages of modules, without Python's own and those that start an interpreter."""
    packages = {module.split(".")[0] for module in modules} - {*sys.stdlib_module_names}
    return {package for package in packages if not package.startswith("_")}


@pytest.fixture(scope="module")
def plain_run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The modules of a run that samples a folder of our own."""
    out = tmp_path_factory.mktemp("plain") / "clip.mp4"
    modules = imported_modules("sample.py", "a red circle", "--model", str(checkpoint), "--out", str(out), *QUICK)
    assert out.is_file()
    return modules


def test_a_plain_run_imports_only_packages_of_the_list(plain_run: set[str], tmp_path: Path) -> None:
    (tmp_path / "torch_alone.py").write_text("import torch", encoding="utf-8")
    by_torch = packages_of(imported_modules(str(tmp_path / "torch_alone.py")))
    assert packages_of(plain_run) - by_torch - ALLOWED == set()


def test_a_plain_run_imports_no_slow_part_of_torch(plain_run: set[str]) -> None:
    assert plain_run & SLOW_PARTS_OF_TORCH == set()


def test_decoding_a_saved_latent_of_a_plain_folder_imports_only_packages_of_the_list(
    plain_run: set[str], checkpoint: Path, tmp_path: Path
) -> None:
    words = ["a red circle", "--model", str(checkpoint), "--out", str(tmp_path / "clip.mp4"), "--save-latents", *QUICK]
    assert sample(words) == 0
    latent, again = str(tmp_path / "clip.safetensors"), str(tmp_path / "again.mp4")
    modules = imported_modules("sample.py", "--from", latent, "--model", str(checkpoint), "--out", again)
    assert packages_of(modules) - packages_of(plain_run) == set()


@pytest.mark.parametrize(
    "flags", [["--help"], ["a red circle", "--dry-run"], ["a red circle", "--sweep", "steps=1,2", "--dry-run"]]
)
def test_a_command_that_computes_nothing_imports_no_torch(flags: Sequence[str]) -> None:
    assert packages_of(imported_modules("sample.py", *flags)) & {"torch", "transformers", "diffusers"} == set()


@pytest.mark.parametrize("command", ["judge", "train", "toybox", "doctor", "bench"])
def test_the_help_of_every_command_imports_no_torch(command: str, tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(
        f"from videogen.cli.main import main; main(['{command}', '--help'])", encoding="utf-8"
    )
    assert packages_of(imported_modules(str(tmp_path / "command.py"))) & {"torch", "transformers", "diffusers"} == set()


# --- the plain networks and those of diffusers are the same


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("plain", "face", "part"), [(DiT, VideoDiT, "transformer"), (VAE, VideoVAE, "vae")])
def test_a_plain_network_loads_the_weights_precisions_and_layout_that_diffusers_loads(
    plain: type[torch.nn.Module], face: type[VideoDiT], part: str, dtype: torch.dtype, checkpoint: Path
) -> None:
    ours = load_network(plain, checkpoint / part, dtype=dtype).state_dict()
    theirs = face.from_pretrained(checkpoint, subfolder=part, dtype=dtype).state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert (ours[name].dtype, ours[name].stride()) == (weight.dtype, weight.stride()), name
        assert torch.equal(ours[name], weight), name
    whole = {name for name in ours if {*FLOAT32_PARTS} & {*name.split(".")}}
    assert {ours[name].dtype for name in whole} <= {torch.float32}
    assert bool(whole) == (part == "transformer")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_opened_by_torch_alone_makes_the_clip_that_diffusers_pipeline_makes(
    dtype: str, checkpoint: Path
) -> None:
    plain = load(*parse_args(["x", "--model", str(checkpoint), "--dtype", dtype]))
    assert type(plain) is ClipSampler
    theirs = VideoPipeline.load(checkpoint, dtype=getattr(torch, dtype))
    assert plain.defaults == theirs.defaults
    for prompts in (["a red circle moves right", ""], ["a large blue star " * 40]):
        for clip, expected in zip(plain(prompts), theirs(prompts), strict=True):
            assert torch.equal(clip, expected)


def test_flags_that_diffusers_serves_load_its_pipeline(checkpoint: Path) -> None:
    assert type(load(*parse_args(["x", "--model", str(checkpoint), "--quantise", "fp8"]))) is VideoPipeline


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("text_encoder/config.json", {"hidden_act": "relu"}),
        ("model_index.json", {"scheduler": ["diffusers", "UniPCMultistepScheduler"]}),
        ("model_index.json", {"tokenizer": ["transformers", "T5TokenizerFast"]}),
    ],
)
def test_a_folder_with_another_part_is_not_plain(path: str, change: dict[str, object], own_checkpoint: Path) -> None:
    assert read_checkpoint_info(own_checkpoint).is_plain
    file = own_checkpoint / path
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    assert not read_checkpoint_info(own_checkpoint).is_plain


def test_a_damaged_tokenizer_is_refused(own_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_checkpoint / "tokenizer" / "tokenizer.json").write_text("{", encoding="utf-8")
    assert sample(["x", "--model", str(own_checkpoint), "--out", str(own_checkpoint / "x.mp4"), *QUICK]) == 2
    assert "tokenizer.json cannot be read" in capsys.readouterr().err


# --- the measurement


def test_the_bench_measures_the_command_beside_its_parts(checkpoint: Path) -> None:
    rows = measure(["--model", str(checkpoint), *QUICK], rounds=1)
    assert {"import torch", "a clip, warm", "sample.py", "sample.py beyond both", "sample.py over both"} <= rows.keys()
    assert rows["sample.py"]["cpu"] > rows["a clip, warm"]["cpu"] > 0
    assert rows["sample.py over both"]["cpu"] > 0.5
