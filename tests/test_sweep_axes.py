"""Sweeps: words become axes, axes become runs, and a wrong word gets one sentence."""

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
from videogen.sweep.plan import FRESH_NOISE, Run
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
def test_a_word_is_an_axis_of_values_of_its_type(word: str, values: list[object]) -> None:
    (axis,) = read_axes([word])
    assert [value for (value,) in axis.places] == values
    assert [type(value) for (value,) in axis.places] == [type(value) for value in values]


def test_a_file_of_axes_links_what_stands_in_one_table(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text('guidance = "1:2:2"\n[[linked]]\nsampler = ["euler", "heun"]\nsteps = [8, 4]\n', encoding="utf-8")
    axes = read_axes([str(path), "cfg_zero=true,false"])
    assert [axis.name for axis in axes] == ["guidance", "sampler, steps", "cfg_zero"]
    tried = combinations(axes)
    assert len(tried) == 2 * 2 * 2
    assert {(change["sampler"], change["steps"]) for change in tried} == {("euler", 8), ("heun", 4)}


@pytest.mark.parametrize(
    ("word", "said"),
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
def test_a_wrong_axis_gets_one_sentence(
    word: str, said: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    refused(capsys, sample(["x", "--sweep", word, "--out", str(out), "--model", str(checkpoint)]), said)
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz = [4]", "did you mean 'steps'"),
        ("steps = [", "grid.toml: "),
        ("[linked]\nsteps = [4]", "double brackets"),
        ("[[linked]]\nsteps = [4, 8]\nshift = [1.0]", "equally many values"),
        ("steps = [4]\n[[linked]]\nsteps = [8]\nshift = [1.0]", "steps stands on two axes"),
    ],
)
def test_a_wrong_file_of_axes_gets_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(said)):
        read_axes([str(path)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x", "--search", "3"], "give both"),
        (["x", "--sweep"], "--sweep needs what to compare"),
        (["x", "--score", "json:dumps"], "--score is for a sweep"),
        (["x", "--reference", "8"], "--reference is for a sweep"),
        (["x", "--sweep", "steps=1,2", "--image", "a.png"], "a sweep takes prompts alone"),
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
def test_a_wrong_sweep_gets_one_sentence(
    words: list[str], said: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if "--out" in words else ["--out", str(tmp_path / "sweep")]
    refused(capsys, sample([*words, *out, "--model", str(checkpoint)]), said)


@pytest.mark.parametrize(
    ("module", "library"), [("pyarrow", "pyarrow"), ("matplotlib", "matplotlib"), ("optuna", "Optuna")]
)
def test_a_missing_library_gets_one_sentence_before_anything_is_run(
    module: str, library: str, checkpoint: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, module, None)
    words = ["x", "--sweep", "steps=1,2,3", "--search", "2", "--out", str(tmp_path / "s"), "--model", str(checkpoint)]
    refused(capsys, sample(words), library, "pip install 'videogen[sweep]'")
    assert not (tmp_path / "s").exists()


def test_a_prompts_file_may_not_set_what_is_an_axis(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text("prompt,steps\na red circle,4\na blue star,5\n", encoding="utf-8")
    words = ["--prompts", str(table), "--sweep", "steps=1,2", "--model", str(checkpoint), "--out", str(tmp_path / "s")]
    refused(capsys, sample(words), "the prompts file sets steps, which is also an axis")


# --- plan


def test_a_run_has_a_command_that_makes_its_clip(checkpoint: Path) -> None:
    words = [
        "guidance_interval=[0,1],[0.2,0.8]",
        "cfg_zero=true,false",
        "negative=,-x y",
        "seconds=1,null",
        "steps=2,3",
    ]
    plan = plan_of(words, prompts=['it\'s a "red" circle'], seeds=[-3], model=str(checkpoint))
    plan = replace(plan, defaults=parse_args(["x", "--model", str(checkpoint)]).sample)
    for run in plan.runs():
        args = parse_args(shlex.split(plan.command(run))[2:])
        made = args.sample if run.config.seconds is None else replace(args.sample, frames=run.config.frames)
        assert (args.prompt, args.seed, made) == ((run.prompt,), run.seed, run.config)


def test_what_stands_beside_the_model_tells_sweeps_apart_and_is_in_their_commands(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA, fewer bits: the rows of one are not the rows of the other."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b"):
        Path(name).write_text(name, encoding="utf-8")
    words = ["x", "--model", str(checkpoint), "--sweep", "steps=2,3"]
    beside = ["--lora", "a.safetensors=0.5", "b", "--quantise", "fp8", "--device", "cuda", "--dtype", "bfloat16"]
    plain, other = (make_plan(parse_args(more)) for more in (words, [*words, *beside]))
    assert plain.manifest() != other.manifest()
    Path("best.toml").touch()
    for command in (other.command(other.runs()[0]), best_command(Path("best.toml"), other, "x")):
        args = parse_args(shlex.split(command)[2:])
        assert (args.lora, args.quantise) == (("a.safetensors=0.5", "b"), "fp8")
        assert (args.device, args.dtype) == ("cuda", "bfloat16")


def test_every_difference_is_another_key() -> None:
    run = Run("a", 0, SMALL)
    others = [run._replace(prompt="b"), run._replace(seed=1), run._replace(config=replace(SMALL, shift=3.0))]
    assert len({run.key, *(other.key for other in others)}) == 4
    assert run.key == Run("a", 0, replace(SMALL)).key


def test_the_reference_has_more_steps_and_the_same_guidance() -> None:
    plan = plan_of(["steps=1,2", "sampler=euler,heun", "shift=1,3", "guidance=1,3"], seeds=[0, 1], reference_steps=8)
    references = plan.references(plan.runs())
    assert len(references) == 2 * 2  # seeds, guidance
    assert {(ref.config.steps, ref.config.sampler) for ref in references} == {(8, "dpmpp_2m")}


def test_a_sampler_that_draws_more_noise_is_its_own_reference() -> None:
    """What many of its steps end on is not what the path without that noise ends on."""
    assert STOCHASTIC_SAMPLERS.keys() == FRESH_NOISE
    plan = plan_of(["sampler=euler,dpmpp_2m_sde"], reference_steps=8)
    assert [ref.config.sampler for ref in plan.references(plan.runs())] == ["dpmpp_2m", "dpmpp_2m_sde"]
    assert plan.describe_reference().endswith("; of dpmpp_2m_sde, itself in as many steps")
