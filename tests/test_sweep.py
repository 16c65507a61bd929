"""Sweeps: what is asked for is what is run, once, side by side, and every run leaves a row."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from tests.test_cli import refused
from videogen.cli import sample
from videogen.config import SampleConfig, load_toml
from videogen.generate import num_evaluations, parse_args
from videogen.pipeline import Job, VideoPipeline
from videogen.sweep.axes import Axis, combinations, read_axes
from videogen.sweep.measures import compare, look_alone
from videogen.sweep.packs import Packer
from videogen.sweep.page import publish
from videogen.sweep.plan import Plan, Run
from videogen.sweep.search import open_study, search
from videogen.sweep.summary import choose, front, mean_of, summarise
from videogen.sweep.table import Row, gather, read_rows
from videogen.sweep.words import paragraphs
from videogen.sweep.work import Worker, config_of, open_folder, sweep
from videogen.video_io import probe, read_settings, read_video

ROOT = Path(__file__).parents[1]
PROMPTS = ("a red circle", "a large blue star moves")
SMALL = SampleConfig(size="32x32", frames=5, steps=2, guidance=2.0)
QUICK = ["--size", "32x32", "--frames", "5"]


def plan_of(
    words: Sequence[str], *, prompts: Sequence[str] = PROMPTS[:1], seeds: Sequence[int] = (0,), **more: object
) -> Plan:
    bases = tuple(Run(prompt, seed, SMALL) for prompt in prompts for seed in seeds)
    return Plan(bases=bases, axes=read_axes(words), defaults=SMALL, **more)  # type: ignore[arg-type]


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


# --- packs


def alone(pipeline: VideoPipeline, run: Run) -> Tensor:
    return pipeline.sample([Job(run.prompt, run.seed)], run.config)[0]


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "unipc"])
def test_a_run_in_a_pack_is_the_run_alone(pipeline: VideoPipeline, sampler: str) -> None:
    words = ["guidance=1,2,3", "guidance_interval=[0,1],[0.3,0.9]", "cfg_zero=true,false", "negative=,a blue star"]
    runs = plan_of([f"sampler={sampler}", "steps=3", *words], prompts=PROMPTS).runs()
    packer = Packer(pipeline, tokens_at_once=40 * 8)
    for pack in packer.packs(runs):
        for run, made in zip(pack, packer.make(pack), strict=True):
            assert made.latent is not None, made.error
            torch.testing.assert_close(made.latent, alone(pipeline, run), atol=1e-4, rtol=0)  # float32 over the steps


def test_packs_lose_nothing_and_fit_the_budget(pipeline: VideoPipeline) -> None:
    runs = plan_of(["steps=1,2", "guidance=1,2,3", "size=32x32,48x32"], seeds=range(3)).runs()
    packer = Packer(pipeline, tokens_at_once=40)
    packs = packer.packs(runs)
    assert sorted(run.key for pack in packs for run in pack) == sorted(run.key for run in runs)
    for pack in packs:
        assert len({(run.config.size, run.config.steps) for run in pack}) == 1
        assert 2 * sum(packer.count_tokens(run) for run in pack) <= 40


class Counter:
    """Counts what goes through a module, clips of the pack for the transformer."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.calls, self.clips = 0, 0
        self.hook = module.register_forward_pre_hook(self.note)

    def note(self, _module: torch.nn.Module, args: tuple[object, ...]) -> None:
        self.calls += 1
        self.clips += sum(len(getattr(arg, "grids", ())) for arg in args)  # of a pack, if there is one


def test_the_network_is_asked_once_what_many_runs_ask(pipeline: VideoPipeline) -> None:
    """Three steps at 1, 2/3 and 1/3: guidance that begins at 1/3 shares what comes before with no guidance at all."""
    late = "guidance_interval=[0,0.4]"
    runs = plan_of(["steps=3", "shift=1", "sampler=euler", "guidance=1,2,3", late]).runs()
    counter, packer = Counter(pipeline.transformer), Packer(pipeline)
    made = packer.make(runs)
    counter.hook.remove()
    assert [one.evaluations for one in made] == [3, 4, 4]
    assert counter.clips == 3 + 1  # one walk, and the negative prompt where it is asked for at last, for both at once
    assert sum(one.evaluations - one.evaluations_reused for one in made) == counter.clips
    for run, one in zip(runs, made, strict=True):
        assert one.latent is not None
        torch.testing.assert_close(one.latent, alone(pipeline, run), atol=1e-4, rtol=0)


def test_another_pack_of_the_same_noise_begins_where_the_first_did(pipeline: VideoPipeline) -> None:
    packer = Packer(pipeline)
    packer.make(plan_of(["steps=2", "sampler=euler"]).runs())
    counter = Counter(pipeline.transformer)
    (made,) = packer.make(plan_of(["steps=3", "sampler=dpmpp_2m"]).runs())
    counter.hook.remove()
    assert made.evaluations == 6
    assert counter.clips == 4


def test_a_turned_clip_of_the_same_seed_is_another_clip(pipeline: VideoPipeline) -> None:
    """Their noise is the same numbers in another shape."""
    runs = plan_of(["size=32x64,64x32", "guidance=1"]).runs()
    packer = Packer(pipeline)
    for pack in packer.packs(runs):
        for run, made in zip(pack, packer.make(pack), strict=True):
            assert made.latent is not None, made.error
            torch.testing.assert_close(made.latent, alone(pipeline, run), atol=1e-4, rtol=0)


def test_euler_walks_where_heun_looked(pipeline: VideoPipeline) -> None:
    packer = Packer(pipeline)
    packer.make(plan_of(["steps=2", "sampler=heun", "guidance=1"]).runs())
    (made,) = packer.make(plan_of(["steps=2", "sampler=euler", "guidance=1"]).runs())
    assert (made.evaluations, made.evaluations_reused) == (2, 2)


def test_texts_are_read_once_a_sweep(pipeline: VideoPipeline, tmp_path: Path) -> None:
    counter = Counter(pipeline.text_encoder)
    sweep(pipeline, plan_of(["steps=1,2", "guidance=1,2"], prompts=PROMPTS, seeds=[0, 1]), tmp_path / "s")
    counter.hook.remove()
    assert counter.calls <= 3  # two prompts and the empty one, those of equal length together


@pytest.mark.parametrize("sampler", ["euler", "heun", "unipc"])
def test_evaluations_are_those_of_the_clip_alone(pipeline: VideoPipeline, sampler: str) -> None:
    runs = plan_of([f"sampler={sampler}", "steps=3", "guidance=1,2"]).runs()
    assert [made.evaluations for made in Packer(pipeline).make(runs)] == [num_evaluations(run.config) for run in runs]


# --- rows


def finite(frames: Tensor, prompt: str) -> dict[str, float]:
    """A plug: how bright a clip is, and how long its prompt."""
    return {"brightness": float(frames.float().mean()), "words": len(prompt.split())}


def stumble(frames: Tensor, prompt: str) -> dict[str, float]:
    """A plug with a fault."""
    if "star" in prompt:
        raise KeyError("star")
    return finite(frames, prompt)


def test_a_2x2_sweep_writes_4_clips_and_4_rows(pipeline: VideoPipeline, tmp_path: Path) -> None:
    out = tmp_path / "s"
    plan = plan_of(["steps=1,2", "guidance=1,2"], reference_steps=4)
    rows = sweep(pipeline, plan, out, score=finite)
    assert len(rows) == 4
    assert len(list((out / "clips").glob("*.mp4"))) == 4
    assert parquet.read_table(out / "results.parquet").to_pylist() == rows
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        assert [line["key"] for line in csv.DictReader(file)] == [row["key"] for row in rows]
    for run, row in zip(plan.runs(), rows, strict=True):
        assert config_of(row) == run.config
        info, settings = probe(out / str(row["clip"])), read_settings(out / str(row["clip"]))
        assert (info.width, info.num_frames) == (32, 5)
        assert (settings["prompt"], settings["steps"]) == (run.prompt, run.config.steps)
        assert row["error"] is None
        parts = [float(str(row[f"{part}_seconds"])) for part in ("text", "denoise", "decode")]
        assert all(part > 0 for part in parts)
        assert row["total_seconds"] == pytest.approx(sum(parts))
        assert float(str(row["peak_memory_gb"])) > 0.05
        assert row["score_words"] == 3.0
        assert {"psnr_db", "ssim", "flicker", "motion", "saturation", "clipped", "score_brightness"} <= row.keys()
    assert not list(out.rglob("*.part"))


def test_more_steps_are_nearer_to_the_reference_and_the_reference_is_at_100(
    pipeline: VideoPipeline, tmp_path: Path
) -> None:
    plan = plan_of(["steps=1,4,16"], reference_steps=16)
    plan = replace(
        plan, bases=tuple(run._replace(config=replace(run.config, sampler="dpmpp_2m")) for run in plan.bases)
    )
    found = [float(str(row["psnr_db"])) for row in sweep(pipeline, plan, tmp_path / "s")]
    assert found == sorted(found)
    assert found[-1] > 55  # the same run but for who was beside it: at most a value here and there is off by one


def test_the_same_call_again_makes_nothing(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1,2"], reference_steps=3)
    rows = sweep(pipeline, plan, tmp_path)
    counter = Counter(pipeline.transformer)
    assert sweep(pipeline, plan, tmp_path) == rows
    counter.hook.remove()
    assert counter.calls == 0


def test_a_run_that_fails_is_a_row_with_its_error_and_the_rest_go_on(pipeline: VideoPipeline, tmp_path: Path) -> None:
    rows = sweep(pipeline, plan_of(["guidance=2,1e38,3"], reference_steps=2), tmp_path)
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "the latents are not finite; lower the guidance" in str(rows[1]["error"])
    assert [row["clip"] is None for row in rows] == [False, True, False]


def test_a_plug_that_fails_costs_its_row_only_and_is_tried_again(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1,2"], prompts=PROMPTS)
    rows = sweep(pipeline, plan, tmp_path, score=stumble)
    assert [row["error"] for row in rows] == [None, "KeyError: 'star'", None, "KeyError: 'star'"]
    again = sweep(pipeline, plan, tmp_path, score=finite)
    assert [row["error"] for row in again] == [None] * 4
    assert again[0] == rows[0]


@pytest.mark.parametrize(
    "score", [lambda frames, prompt: 3, lambda frames, prompt: {"a": "b"}, lambda f, p: {"a": float("nan")}]
)
def test_a_plug_gives_a_dict_of_numbers(score: object, pipeline: VideoPipeline, tmp_path: Path) -> None:
    (row,) = sweep(pipeline, plan_of(["steps=1"]), tmp_path, score=score)  # type: ignore[arg-type]
    assert "score must return" in str(row["error"])


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_finishes_the_rows_at_hand_and_the_same_call_goes_on(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1,2,3"], seeds=[0, 1])
    with pytest.raises(KeyboardInterrupt):
        sweep(pipeline, plan, tmp_path, score=finite, on_row=lambda row: press_ctrl_c() if row["seed"] == 0 else None)
    first = read_rows(tmp_path)
    assert 0 < len(first) < 6
    assert all(row["error"] is None and (tmp_path / str(row["clip"])).is_file() for row in first.values())
    rows = {str(row["key"]): row for row in sweep(pipeline, plan, tmp_path, score=finite)}
    assert len(rows) == 6
    assert {key: rows[key] for key in first} == first


def test_the_handler_of_ctrl_c_is_put_back(pipeline: VideoPipeline, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    sweep(pipeline, plan_of(["steps=1"]), tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_rows_of_other_processes_are_gathered(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1,2"], seeds=[0, 1])
    rows = sweep(pipeline, plan, tmp_path)
    for suffix in ("parquet", "csv"):
        (tmp_path / f"results.{suffix}").rename(tmp_path / f"results.1.{suffix}")
    assert sorted(read_rows(tmp_path)) == sorted(str(row["key"]) for row in rows)
    assert gather(tmp_path, [run.key for run in plan.runs()]) == rows
    assert not list(tmp_path.glob("results.1.*"))


def test_a_folder_of_another_sweep_is_refused_and_left_alone(pipeline: VideoPipeline, tmp_path: Path) -> None:
    sweep(pipeline, plan_of(["steps=1"]), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for other in (plan_of(["steps=2"]), plan_of(["steps=1"], seeds=[1]), plan_of(["steps=1"], reference_steps=4)):
        with pytest.raises(ValueError, match="holds another sweep"):
            sweep(pipeline, other, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_overwrite_begins_anew_and_spares_what_is_not_the_sweeps(pipeline: VideoPipeline, tmp_path: Path) -> None:
    sweep(pipeline, plan_of(["steps=1"]), tmp_path)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    rows = sweep(pipeline, plan_of(["steps=2"]), tmp_path, overwrite=True)
    assert [row["steps"] for row in rows] == [2]
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 1
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_folder_of_something_else_is_refused(pipeline: VideoPipeline, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="holds something that is no sweep"):
        sweep(pipeline, plan_of(["steps=1"]), tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# --- measures


def moving(num_frames: int = 6) -> Tensor:
    """Noise that drifts."""
    return torch.randint(0, 256, (num_frames, 24, 32, 3), dtype=torch.uint8)


def test_psnr_and_ssim_are_those_of_scikit_image() -> None:
    clean = moving()
    noisy = (clean.float() + 20 * torch.randn(clean.shape)).clamp(0, 255).to(torch.uint8)
    found = compare(noisy, clean)
    assert found["psnr_db"] == pytest.approx(peak_signal_noise_ratio(clean.numpy(), noisy.numpy()), abs=1e-3)
    options = {"data_range": 255, "gaussian_weights": True, "use_sample_covariance": False, "channel_axis": -1}
    theirs = [structural_similarity(a, b, **options) for a, b in zip(clean.numpy(), noisy.numpy(), strict=True)]
    assert found["ssim"] == pytest.approx(float(np.mean(theirs)), abs=1e-4)  # they work in float64
    assert compare(clean, clean) == {"psnr_db": 100.0, "ssim": pytest.approx(1.0)}


def test_motion_is_change_and_flicker_is_change_of_change() -> None:
    ramp = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1).expand(6, 16, 16, 3) * 10
    blink = (torch.arange(6) % 2).to(torch.uint8).reshape(6, 1, 1, 1).expand(6, 16, 16, 3) * 10
    assert (look_alone(ramp)["motion"], look_alone(ramp)["flicker"]) == (10.0, 0.0)
    assert (look_alone(blink)["motion"], look_alone(blink)["flicker"]) == (10.0, 10.0)
    assert (look_alone(ramp[:1])["motion"], look_alone(ramp[:1])["flicker"]) == (None, None)


def test_saturation_is_that_of_hsv() -> None:
    clip = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    clip[0, 0, 0] = torch.tensor([200, 100, 0])  # 1
    clip[0, 0, 1] = torch.tensor([200, 100, 100])  # 1/2
    clip[0, 1, 0] = 77  # grey
    found = look_alone(clip)
    assert found["saturation"] == pytest.approx(1.5 / 4)
    assert found["clipped"] == pytest.approx((1 + 3) / 12)


# --- summary


def made_rows(
    quality: dict[tuple[int, str], Sequence[float]], seconds: dict[tuple[int, str], float], name: str
) -> list[Row]:
    """Rows of a sweep over steps and sampler, one a seed."""
    usual = {"prompt": "x", "error": None, "clip": "clips/x.mp4"}
    return [
        {
            **usual,
            "key": f"{at}-{i}",
            "seed": i,
            "steps": at[0],
            "sampler": at[1],
            name: value,
            "total_seconds": seconds[at],
        }
        for at, values in quality.items()
        for i, value in enumerate(values)
    ]


AXES = (Axis(("steps",), ((4,), (8,))), Axis(("sampler",), (("euler",), ("heun",))))
SECONDS = {(4, "euler"): 1.0, (8, "euler"): 2.0, (4, "heun"): 2.1, (8, "heun"): 4.0}


def test_an_interval_is_students() -> None:
    for num in (2, 3, 10, 31):
        values = np.random.default_rng(num).normal(size=num)
        mean = mean_of(values.tolist())
        low, high = stats.t.interval(0.95, num - 1, loc=values.mean(), scale=stats.sem(values))
        assert mean.half is not None
        assert (mean.value - mean.half, mean.value + mean.half) == pytest.approx((low, high), rel=1e-3)
    assert mean_of([1.0]).half is None
    wide = mean_of(np.random.default_rng(0).normal(size=200).tolist())
    assert wide.half is not None
    assert wide.half < 0.2


def test_no_undominated_setting_is_beaten_in_both() -> None:
    scores = {(4, "euler"): [1.0], (8, "euler"): [0.9], (4, "heun"): [3.0], (8, "heun"): [4.0]}
    settings = summarise(made_rows(scores, SECONDS, "score_a"), ["steps", "sampler"])
    assert [one.values for one in front(settings, "score_a")] == [("4", "euler"), ("4", "heun"), ("8", "heun")]


def test_the_choice_is_the_fastest_that_is_as_good_as_the_best_clip_by_clip() -> None:
    """The seeds differ more than the settings do; only clip by clip does the difference show."""
    seeds = np.array([0.0, 10.0, 20.0, 30.0])
    wobble = np.array([0.1, -0.1, 0.1, -0.1])
    scores = {
        (8, "heun"): seeds + 1.0, (4, "heun"): seeds + 1.0 - wobble,
        (8, "euler"): seeds + 0.7 + wobble, (4, "euler"): seeds,
    }  # fmt: skip
    rows = made_rows({at: values.tolist() for at, values in scores.items()}, SECONDS, "score_a")
    choice = choose(summarise(rows, ["steps", "sampler"]), "score_a", AXES, SMALL)
    assert choice is not None
    assert choice.setting.values == ("4", "heun")


def test_closeness_chooses_the_solver_and_leaves_guidance_to_the_checkpoint() -> None:
    axes = (Axis(("steps",), ((4,), (8,))), Axis(("guidance",), ((1.0,), (2.0,))))
    rows = [
        {
            "key": f"{s}{g}{i}",
            "prompt": "x",
            "seed": i,
            "steps": s,
            "guidance": g,
            "psnr_db": db + i / 10,
            "total_seconds": s * g,
        }
        for s, g, db in ((4, 1.0, 50.0), (8, 1.0, 60.0), (4, 2.0, 30.0), (8, 2.0, 45.0))
        for i in range(3)
    ]
    choice = choose(summarise(rows, ["steps", "guidance"]), "psnr_db", axes, SMALL)
    assert choice is not None
    assert choice.setting.values == ("8", "2")
    assert "guidance stays at the checkpoint's 2" in choice.rule


def test_where_none_is_close_the_fastest_of_the_nearest_is_chosen() -> None:
    found = {
        (4, "euler"): [20.0, 21.0],
        (8, "euler"): [30.0, 35.0],
        (4, "heun"): [29.0, 30.0],
        (8, "heun"): [31.0, 34.4],
    }
    rows = made_rows(found, SECONDS, "psnr_db")
    choice = choose(summarise(rows, ["steps", "sampler"]), "psnr_db", AXES, SMALL)
    assert choice is not None
    assert choice.setting.values == ("8", "euler")  # as near as the slower heun, as far as two clips can tell
    assert choice.rule.startswith("none is surely at 40 dB or more, so the fastest")


def test_the_words_say_where_steps_stop_to_matter() -> None:
    found = {
        (4, "euler"): [30.0, 31.0],
        (8, "euler"): [36.0, 37.0],
        (4, "heun"): [41.0, 42.0],
        (8, "heun"): [50.0, 51.0],
    }
    rows = made_rows(found, SECONDS, "psnr_db")
    plan = replace(plan_of(["steps=4,8", "sampler=euler,heun"], seeds=[0, 1]), axes=AXES)
    settings = summarise(rows, plan.names)
    said = " ".join(paragraphs(plan, settings, "psnr_db", choose(settings, "psnr_db", AXES, SMALL), []))
    assert "Even beyond 4 steps heun changes next to nothing: 41.5 dB" in said
    assert "these are still below 40 dB: euler (8 steps, 36.5 dB)." in said
    assert "4 settings, 1 prompt, 2 seeds: 8 clips." in said


# --- what a sweep shows


@pytest.fixture(scope="module")
def shown(pipeline: VideoPipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, list[Row]]:
    """A sweep with a failed run and a prompt that would break a careless page."""
    folder = tmp_path_factory.mktemp("sweep") / "s"
    prompts = ["</script><b>a \"red\" circle & 'star'", PROMPTS[1]]
    plan = plan_of(
        ["steps=1,2,4", "guidance=1,2", "sampler=euler,heun"], prompts=prompts, seeds=[0, 1], reference_steps=8
    )
    rows = sweep(pipeline, plan, folder)
    publish(folder, plan, rows)
    return folder, plan, rows


def test_the_page_is_one_folder_without_network(shown: tuple[Path, Plan, list[Row]]) -> None:
    folder, _, rows = shown
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:|results\.csv)""", text)
    assert "@import" not in text
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    data = json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert [row["key"] for row in data["rows"]] == [row["key"] for row in rows]
    assert data["rows"][0]["prompt"].startswith("</script><b>")
    assert all((folder / row["clip"]).is_file() and (folder / row["reference"]).is_file() for row in data["rows"])
    assert "<!-- " not in text
    assert "/* data */" not in text


def test_the_pictures_are_there(shown: tuple[Path, Plan, list[Row]]) -> None:
    folder, *_ = shown
    info = probe(folder / "grid.mp4")
    assert info.num_frames == 5
    assert info.width > 2 * 112
    assert info.height > 3 * 112
    assert read_video(folder / "grid.mp4").float().std() > 1
    for name in ("contact.png", "pareto.png"):
        assert probe(folder / name).width > 300


def test_best_toml_is_a_config_that_sample_reads(shown: tuple[Path, Plan, list[Row]], checkpoint: Path) -> None:
    folder, plan, rows = shown
    best = folder / "best.toml"
    config = load_toml(SampleConfig, best)
    assert config in {run.config for run in plan.runs()}
    assert "# The rule: The " in best.read_text(encoding="utf-8")
    assert parse_args(["x", "--model", str(checkpoint), "--config", str(best)]).sample == config
    assert len(rows) == 3 * 2 * 2 * 2 * 2


def test_without_a_quality_nothing_is_recommended(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1,2"])
    found = publish(tmp_path, plan, sweep(pipeline, plan, tmp_path))
    assert found.choice is None
    assert "Nothing here measures quality" in found.findings[0]
    assert not (tmp_path / "best.toml").exists()
    assert (tmp_path / "report.html").is_file()


def test_a_sweep_of_which_nothing_works_still_has_a_page(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["guidance=1e38"], reference_steps=2)
    found = publish(tmp_path, plan, sweep(pipeline, plan, tmp_path))
    assert "No run has worked yet." in found.findings
    assert (tmp_path / "report.html").is_file()


# --- search


def test_a_search_tries_as_many_settings_as_asked_and_goes_on(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1:6:6", "sampler=euler,heun"], seeds=[0, 1], reference_steps=8)
    open_folder(tmp_path, plan)
    worker = Worker(pipeline, plan, tmp_path)
    first = search(worker, plan, tmp_path, 3)
    assert len(first) == 3
    assert len(read_rows(tmp_path)) == 3 * 2
    counter = Counter(pipeline.transformer)
    assert search(Worker(pipeline, plan, tmp_path), plan, tmp_path, 3) == first
    counter.hook.remove()
    assert counter.calls == 0
    more = search(Worker(pipeline, plan, tmp_path), plan, tmp_path, 5)
    assert more[:3] == first
    assert len(read_rows(tmp_path)) == 5 * 2
    search(worker, plan, tmp_path, 99)
    assert len(read_rows(tmp_path)) == 12 * 2


def test_a_search_that_is_stopped_goes_on_with_its_trial(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1:6:6", "sampler=euler,heun"], seeds=[0, 1], reference_steps=4)
    open_folder(tmp_path, plan)
    worker = Worker(pipeline, plan, tmp_path, on_row=lambda row: press_ctrl_c() if row["seed"] == 0 else None)
    with pytest.raises(KeyboardInterrupt):
        search(worker, plan, tmp_path, 2)
    (first,) = {(row["steps"], row["sampler"]) for row in read_rows(tmp_path).values()}
    tried = search(Worker(pipeline, plan, tmp_path), plan, tmp_path, 2)
    assert (tried[0]["steps"], tried[0]["sampler"]) == first
    study = open_study(tmp_path)
    assert all(trial.state.is_finished() for trial in study.trials)
    assert len(tried) == 2


# --- the command


def test_the_command_sweeps_and_says_where_to_look(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_judge.py").write_text(
        "def score(frames, prompt):\n    return {'frames': len(frames)}\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "s"
    words = ["a red circle", "--sweep", "steps=1,2", "--seeds", "3,5", "--out", str(out), "--model", str(checkpoint)]
    assert sample([*words, *QUICK, "--score", "my_judge:score"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [str(out / "report.html"), str(out / "best.toml")]
    rows = read_rows(out)
    assert {(row["steps"], row["seed"], row["score_frames"]) for row in rows.values()} == {
        (1, 3, 5.0), (1, 5, 5.0), (2, 3, 5.0), (2, 5, 5.0),
    }  # fmt: skip
    refused(
        capsys,
        sample([*words, *QUICK, "--guidance", "3", "--score", "my_judge:score"]),
        "another sweep (its prompts differ",
    )


def test_a_sweep_that_is_stopped_ends_with_130_and_whole_rows(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, signal\n\n\ndef score(frames, prompt):\n    os.kill(os.getpid(), signal.SIGINT)\n    return {}\n"
    (tmp_path / "impatient_judge.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "s"
    words = ["a red circle", "--sweep", "steps=1,2,3", "--out", str(out), "--model", str(checkpoint), *QUICK]
    assert sample([*words, "--score", "impatient_judge:score"]) == 130
    assert "stopped; nothing is half-written" in capsys.readouterr().err
    assert [row["error"] for row in read_rows(out).values()] == [None]
    assert not list(out.rglob("*.part*"))


def test_a_dry_run_counts_and_writes_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "x",
        "--sweep",
        "steps=1,2",
        "guidance=1,2",
        "--seeds",
        "0:2:3",
        "--dry-run",
        "--json",
        "--model",
        str(checkpoint),
    ]
    assert sample([*words, *QUICK, "--out", str(tmp_path / "s")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["runs"], said["settings"], said["references"]) == (12, 4, 6)
    assert said["evaluations"] == 3 * (1 + 2 + 2 + 4)
    assert said["seconds"] > 0
    assert not (tmp_path / "s").exists()
    assert sample([*words, *QUICK, "--search", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == 6


@pytest.mark.slow
def test_two_processes_share_a_sweep(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    words = [
        "a red circle",
        "--sweep",
        "steps=1,2,3",
        "--seeds",
        "0,1",
        "--out",
        str(out),
        "--model",
        str(checkpoint),
        *QUICK,
    ]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    done = subprocess.run([*launch, "sample.py", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(out)) == 6
    assert sorted(path.name for path in out.glob("results*")) == ["results.csv", "results.parquet"]
    assert (out / "report.html").is_file()
    assert done.stdout.count("report.html") == 1
