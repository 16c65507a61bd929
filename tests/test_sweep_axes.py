"""Words parse into the axes of a sweep, axes make its runs, and a wrong word is refused in one sentence."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sweeps import SMALL, plan_of
from tests.test_cli import refused
from videogen.cli.main import sample
from videogen.cli.sample import parse_args
from videogen.cli.sweep import make_plan
from videogen.sampling.solvers import STOCHASTIC_SAMPLERS
from videogen.sweep.axes import combinations, read_axes
from videogen.sweep.plan import SDE_SAMPLERS, Run
from videogen.sweep.report import best_command

# --- axes


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("steps=4,8", [4, 8]),
        ("guidance=1:7:7", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]),
        ("guidance=1:2:3,9", [1.0, 1.5, 2.0, 9.0]),
        ("shift=0.1:0.3:3", [0.1, 0.2, 0.3]),
        ("sampler=euler, heun", ["euler", "heun"]),
        ("negative=blurry,", ["blurry", ""]),
        ('negative="a, b",""', ["a, b", ""]),
        ("negative=7", ["7"]),
        ("cfg-zero=true,false", [True, False]),
        ("guidance_interval=[0,1],[0.2,0.8]", [(0.0, 1.0), (0.2, 0.8)]),
        ("seconds=null,1", [None, 1.0]),
    ],
)
def test_a_word_parses_into_values_of_its_fields_type(word: str, values: list[object]) -> None:
    (axis,) = read_axes([word])
    assert [value for (value,) in axis.places] == values
    assert [type(value) for (value,) in axis.places] == [type(value) for value in values]


def test_the_fields_of_a_linked_table_vary_together(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text('guidance = "1:2:2"\n[[linked]]\nsampler = ["euler", "heun"]\nsteps = [8, 4]\n', encoding="utf-8")
    axes = read_axes([str(path), "cfg_zero=true,false"])
    assert [axis.name for axis in axes] == ["guidance", "sampler, steps", "cfg_zero"]
    settings = combinations(axes)
    assert len(settings) == 2 * 2 * 2
    assert {(setting["sampler"], setting["steps"]) for setting in settings} == {("euler", 8), ("heun", 4)}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("stepz=4", "no setting is called 'stepz'; did you mean 'steps'"),
        ("steps=four", "axis steps: steps must be of type int, got 'four'"),
        ("steps=4,0", "steps must be above 0, got 0"),
        ("steps=1:2:3", "steps must be of type int, got 1.5"),
        ("steps=", "axis steps has no values"),
        ("steps=4,4", "axis steps has 4 twice"),
        ("guidance=1:7", "a range is start:stop:count, such as 1:7:7, got 1:7"),
        ("guidance=1:7:1", "at least 2 numbers"),
        ("guidance_interval=[0.5]", "guidance_interval must have 2 values"),
        ("sampler=eular", "sampler must be one of euler, heun"),
        ("size=60x64", "try 48x64 or 64x64"),
        ("frames=16", "try 13 or 17"),
        ("patch=1x2x2:0.5,1x1x1", "a schedule has commas of its own; quote each"),
        ("patch=1x9x9,1x2x2", "patch must be of 1x2x2"),
        ("words", "--sweep takes axis=a,b,c, axis=start:stop:count or a .toml file, got 'words'"),
        ("none.toml", "no sweep file none.toml"),
    ],
)
def test_a_wrong_axis_is_refused_and_writes_nothing(
    word: str, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    refused(capsys, sample(["x", "--sweep", word, "--out", str(out), "--model", str(checkpoint)]), message)
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = [4]", "did you mean 'steps'"),
        ("steps = [", "grid.toml: "),
        ("[linked]\nsteps = [4]", "double brackets"),
        ("[[linked]]\nsteps = [4, 8]\nshift = [1.0]", "equally many values"),
        ("steps = [4]\n[[linked]]\nsteps = [8]\nshift = [1.0]", "steps stands on two axes"),
    ],
)
def test_a_wrong_file_of_axes_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        read_axes([str(path)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--search", "3"], "give both"),
        (["x", "--sweep"], "--sweep needs what to compare"),
        (["x", "--score", "json:dumps"], "--score is for a sweep"),
        (["x", "--reference", "8"], "--reference is for a sweep"),
        (["x", "--sweep", "steps=1,2", "--image", "a.png"], "there is no file a.png"),
        (["x", "--sweep", "steps=1,2", "--search", "0"], "N >= 1"),
        (["x", "--sweep", "steps=1,2", "--seeds", "a,b"], "--seeds must be different whole numbers"),
        (["x", "--sweep", "steps=1,2", "--seeds", "1,1"], "--seeds must be different whole numbers"),
        (["x", "x", "--sweep", "steps=1,2"], "each prompt once"),
        (["--sweep", "steps=1,2"], "give a prompt"),
        (["x", "--sweep", "steps=1,2", "--out", "clip.mp4"], "--out of a sweep is a folder"),
        (["x", "--sweep", "steps=1,2", "--reference", "-1"], "--reference must be a number of steps"),
        (["x", "--sweep", "steps=1,2", "--score", "json"], "--score must be module:function"),
        (["x", "--sweep", "steps=1,2", "--score", "json:nothing"], "has no attribute 'nothing'"),
    ],
)
def test_wrong_flags_of_a_sweep_are_refused(
    words: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if "--out" in words else ["--out", str(tmp_path / "sweep")]
    refused(capsys, sample([*words, *out, "--model", str(checkpoint)]), message)


@pytest.mark.parametrize(("module", "library"), [("matplotlib", "matplotlib"), ("optuna", "Optuna")])
def test_a_missing_library_is_named_before_anything_runs(
    module: str, library: str, checkpoint: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, module, None)
    words = ["x", "--sweep", "steps=1,2,3", "--search", "2", "--out", str(tmp_path / "s"), "--model", str(checkpoint)]
    refused(capsys, sample(words), library, "pip install 'videogen[sweep]'")
    assert not (tmp_path / "s").exists()


def test_a_prompts_file_that_sets_an_axis_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text("prompt,steps\na red circle,4\na blue star,5\n", encoding="utf-8")
    words = ["--prompts", str(table), "--sweep", "steps=1,2", "--model", str(checkpoint), "--out", str(tmp_path / "s")]
    refused(capsys, sample(words), "the prompts file sets steps, which is also an axis")


def test_what_only_windows_have_is_no_axis(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["a red circle", "--sweep", "adain=0,1", "--model", str(checkpoint), "--out", str(tmp_path / "s")]
    refused(capsys, sample(words), "adain is for clips made in windows, and a sweep makes each clip at once")
    assert not (tmp_path / "s").exists()


# --- plan


def test_the_command_of_a_run_parses_back_to_its_settings(checkpoint: Path) -> None:
    words = [
        "guidance_interval=[0,1],[0.2,0.8]",
        "cfg_zero=true,false",
        "negative=,-x y",
        "seconds=1,null",
        "steps=2,3",
    ]
    plan = plan_of(words, prompts=['it\'s a "red" circle'], seeds=[-3], model=str(checkpoint))
    plan = replace(plan, defaults=parse_args(["x", "--model", str(checkpoint)])[0].sample)
    for run in plan.runs():
        args, _ = parse_args(shlex.split(plan.command(run))[2:])
        config = args.sample if run.config.seconds is None else replace(args.sample, frames=run.config.frames)
        assert (args.prompt, args.seed, config) == ((run.prompt,), run.seed, run.config)


def test_adapters_and_precision_are_in_the_manifest_and_in_the_commands(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a run with a LoRA or fewer bits must not be mistaken for rows of the plain model."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b"):
        Path(name).write_text(name, encoding="utf-8")
    words = ["x", "--model", str(checkpoint), "--sweep", "steps=2,3"]
    extra = ["--lora", "a.safetensors=0.5", "b", "--quantise", "fp8", "--device", "cuda", "--dtype", "bfloat16"]
    plain, adapted = (make_plan(*parse_args(flags)) for flags in (words, [*words, *extra]))
    assert plain.manifest() != adapted.manifest()
    Path("best.toml").touch()
    for command in (adapted.command(adapted.runs()[0]), best_command(Path("best.toml"), adapted, "x")):
        args, _ = parse_args(shlex.split(command)[2:])
        assert (args.lora, args.quantise) == (("a.safetensors=0.5", "b"), "fp8")
        assert (args.device, args.dtype) == ("cuda", "bfloat16")


def test_prompt_seed_and_every_setting_change_the_key() -> None:
    run = Run("a", 0, SMALL)
    others = [run._replace(prompt="b"), run._replace(seed=1), run._replace(config=replace(SMALL, shift=3.0))]
    assert len({run.key, *(other.key for other in others)}) == 4
    assert run.key == Run("a", 0, replace(SMALL)).key


def test_a_reference_has_more_steps_and_the_clips_own_guidance() -> None:
    plan = plan_of(["steps=1,2", "sampler=euler,heun", "shift=1,3", "guidance=1,3"], seeds=[0, 1], reference_steps=8)
    references = plan.references(plan.runs())
    assert len(references) == 2 * 2 * 2  # seeds, shift, guidance
    assert {(ref.config.steps, ref.config.sampler) for ref in references} == {(8, "dpmpp_2m")}


def test_an_sde_sampler_is_its_own_reference() -> None:
    """It solves another equation than the samplers without noise, so the two do not converge to one clip."""
    assert STOCHASTIC_SAMPLERS.keys() == SDE_SAMPLERS
    plan = plan_of(["sampler=euler,dpmpp_2m_sde"], reference_steps=8)
    assert [ref.config.sampler for ref in plan.references(plan.runs())] == ["dpmpp_2m", "dpmpp_2m_sde"]
    assert plan.describe_reference().endswith("; of dpmpp_2m_sde, itself in as many steps")
