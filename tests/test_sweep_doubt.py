"""A sweep recommends only what its clips can tell, and ranks nothing by a measure that says nothing of it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.sweeps import PROMPTS, QUICK, SMALL, plan_of
from tests.test_sweep_summary import AXES, SECONDS, make_rows
from videogen.cli.main import ROOT, sample
from videogen.intervals import num_needed, t_quantile
from videogen.sampling.pipeline import VideoPipeline
from videogen.sweep.axes import Axis
from videogen.sweep.choice import choose_setting, count_costs, disturbance, find_knee
from videogen.sweep.findings import describe_sweep
from videogen.sweep.report import conclude, growing_page
from videogen.sweep.results import Row, read_rows
from videogen.sweep.runner import sweep
from videogen.sweep.summary import summarise

RED_CIRCLE = "a large red circle moves right on a black background"
STEPS = Axis(("steps",), ((4,), (8,), (16,), (32,)))
GUIDANCE = Axis(("guidance",), ((1.0,), (2.0,), (6.0,)))


def rows_of(values: dict[object, list[float]], field: str, name: str, *, seconds: dict[object, float]) -> list[Row]:
    """Make the rows of a sweep over one field, one for each seed."""
    return [
        {"key": f"{at}-{i}", "prompt": "x", "seed": i, field: at, name: value, "total_seconds": seconds[at]}
        for at, of_seeds in values.items()
        for i, value in enumerate(of_seeds)
    ]


def test_the_needed_number_of_clips_is_where_students_interval_becomes_narrower_than_the_distance() -> None:
    for distance, deviation in ((1.0, 1.0), (1.0, 2.5), (0.2, 0.1)):
        num = num_needed(distance, deviation)
        assert num is not None
        assert stats.t.ppf(0.975, num - 1) * deviation / math.sqrt(num) == pytest.approx(distance, rel=0.4)
        assert stats.t.ppf(0.975, num - 1) * deviation / math.sqrt(num) < distance
        if num > 3:
            assert stats.t.ppf(0.975, num - 2) * deviation / math.sqrt(num - 1) >= distance
    assert num_needed(0.001, 10.0) is None


# --- effort: distance to the reference


def curve(num_seeds: int, noise: float = 1.0) -> list[Row]:
    """Make rows whose PSNR rises with the steps and bends after 8; seeds differ far more than that."""
    seeds = 5 * np.random.default_rng(0).normal(size=num_seeds)
    wobble = noise * np.random.default_rng(1).normal(size=(4, num_seeds))
    means = {4: 15.0, 8: 25.0, 16: 27.0, 32: 28.0}
    values = {steps: (mean + seeds + wobble[i]).tolist() for i, (steps, mean) in enumerate(means.items())}
    return rows_of(values, "steps", "psnr_db", seconds={steps: steps / 10 for steps in means})


def test_steps_end_at_the_knee() -> None:
    rows = curve(num_seeds=8)
    settings = summarise(rows, ["steps"])
    assert find_knee(settings, "psnr_db", count_costs(settings)).values == ("8",)
    findings = conclude(plan_of(["steps=4,8,16,32"], seeds=range(8), reference_steps=128), rows).findings
    assert findings[0].startswith("Use 8 steps: ")


@pytest.mark.parametrize("noise", [0.0, 6.0])
def test_two_seeds_do_not_end_in_a_use(noise: float) -> None:
    plan = plan_of(["steps=4,8,16,32"], seeds=[0, 1], reference_steps=128)
    conclusions = conclude(plan, curve(num_seeds=2, noise=noise))
    assert conclusions.choice is None
    assert conclusions.findings[0].startswith("Look at the clips side by side: two seeds cannot tell these apart")
    assert conclusions.findings[0].endswith(" would.")
    assert not any("Use " in sentence for sentence in conclusions.findings)


def test_the_doubt_names_the_rivals_and_how_many_seeds_would_tell_them_apart() -> None:
    difference = [1.0, 3.0, -1.0, 2.0]  # of 8 steps over 4
    values = {4: [20.0, 21.0, 22.0, 23.0], 8: [20.0 + i + d for i, d in enumerate(difference)]}
    rows = rows_of(values, "steps", "psnr_db", seconds={4: 1.0, 8: 2.0})  # type: ignore[arg-type]
    plan = plan_of(["steps=4,8"], seeds=range(4), reference_steps=32)
    settings = summarise(rows, plan.names)
    choice = choose_setting(settings, "psnr_db", plan.axes, SMALL)
    assert choice is not None
    assert choice.doubt is not None
    needed = next(
        n for n in range(3, 100)
        if stats.t.ppf(0.975, n - 1) * np.std(difference, ddof=1) / math.sqrt(n) < np.mean(difference)
    )  # fmt: skip
    assert (choice.doubt.num_clips, choice.doubt.num_needed) == (4, needed)
    text = describe_sweep(plan, settings, "psnr_db", choice, [])[0]
    assert text.endswith(f"four seeds cannot tell these apart: 4 steps from 8 steps; {needed} would.")


def test_one_seed_is_told_to_be_several() -> None:
    rows = rows_of({4: [20.0], 8: [30.0]}, "steps", "psnr_db", seconds={4: 1.0, 8: 2.0})
    findings = conclude(plan_of(["steps=4,8"], reference_steps=32), rows).findings
    assert "one seed cannot tell these apart: 4 steps from 8 steps; give several, such as --seeds 0:7:8." in findings[0]


# --- intent: only a reading of the clips


def guidance_rows(name: str) -> list[Row]:
    """Make rows in which guidance 1 is nearest to its reference, and follows the prompt worst."""
    wobble = np.random.default_rng(0).normal(size=(3, 8))
    means = {1.0: 45.0, 2.0: 30.0, 6.0: 20.0} if name == "psnr_db" else {1.0: 20.0, 2.0: 45.0, 6.0: 35.0}
    values = {at: (mean + wobble[i]).tolist() for i, (at, mean) in enumerate(means.items())}
    return rows_of(values, "guidance", name, seconds=dict.fromkeys(means, 1.0))  # type: ignore[arg-type]


def test_closeness_to_a_reference_neither_recommends_nor_ranks_guidance() -> None:
    plan = plan_of(["guidance=1,2,6"], seeds=range(8), reference_steps=8)
    conclusions = conclude(plan, guidance_rows("psnr_db"))
    assert conclusions.choice is None
    assert not conclusions.is_rated
    assert "Nothing here judges guidance" in conclusions.findings[0]
    assert "clips side by side, or give --score module:function" in conclusions.findings[0]
    text = " ".join(conclusions.findings)
    assert not any(word in text for word in ("Use ", "PSNR moves", "undominated"))


def test_a_score_recommends_guidance() -> None:
    plan = plan_of(["guidance=1,2,6"], seeds=range(8), reference_steps=0)
    conclusions = conclude(plan, guidance_rows("score_read"))
    assert conclusions.findings[0].startswith("Use guidance 2")


def test_equal_scores_recommend_no_guidance() -> None:
    """Every clip of an easy prompt is right under all of them, and the least guidance is the fastest."""
    seconds: dict[object, float] = {1.0: 1.0, 2.0: 2.0, 6.0: 2.0}
    rows = rows_of({at: [1.0] * 8 for at in seconds}, "guidance", "score_read", seconds=seconds)
    conclusions = conclude(plan_of(["guidance=1,2,6"], seeds=range(8), reference_steps=0), rows)
    assert conclusions.choice is None
    assert "eight seeds cannot tell these apart" in conclusions.findings[0]
    assert conclusions.findings[0].endswith("; all score the same, and harder prompts may not.")


def test_a_straight_curve_has_no_knee() -> None:
    values = {steps: [steps + 0.1 * seed for seed in range(5)] for steps in (4, 12, 24)}
    rows = rows_of(values, "steps", "psnr_db", seconds={4: 4.1, 12: 12.0, 24: 24.0})  # type: ignore[arg-type]
    findings = conclude(plan_of(["steps=4,12,24"], seeds=range(5), reference_steps=96), rows).findings
    assert findings[0].startswith("Use 24 steps: ")


def test_in_a_sweep_of_both_kinds_steps_are_chosen_at_the_commands_own_guidance() -> None:
    rows = []
    for guidance, shift in ((1.0, 20.0), (2.0, 0.0)):
        rows += [
            row | {"guidance": guidance, "psnr_db": row["psnr_db"] + shift, "key": f"{row['key']}-{guidance}"}  # type: ignore[operator]
            for row in curve(num_seeds=8)
        ]
    plan = plan_of(["steps=4,8,16,32", "guidance=1,2"], seeds=range(8), reference_steps=128)
    conclusions = conclude(plan, rows)
    assert conclusions.findings[0].startswith("Use 8 steps, guidance 2: ")
    assert "Nothing here judges guidance" in conclusions.findings[1]
    assert [of_quality.axis.name for of_quality, _ in conclusions.effects] == ["steps"]
    assert {setting.values[1] for setting in conclusions.ranked if "psnr_db" in setting.means} == {"2"}


# --- seconds


def test_disturbed_seconds_are_said_and_not_chosen_by() -> None:
    rows = make_rows({at: [1.0, 1.0, 1.0] for at in SECONDS}, SECONDS | {(4, "euler"): 9.0}, "score_a")
    evaluations = {(4, "euler"): 4, (8, "euler"): 8, (4, "heun"): 7, (8, "heun"): 15}
    for row in rows:
        of_row = evaluations[row["steps"], row["sampler"]]  # type: ignore[index]
        row |= {"evaluations": of_row, "denoise_seconds": row["total_seconds"]}
    plan = plan_of(["steps=4,8", "sampler=euler,heun"], seeds=range(3))
    settings = summarise(rows, plan.names)
    assert disturbance(settings) == pytest.approx((9 / 4) / (2 / 8))
    choice = choose_setting(settings, "score_a", AXES, SMALL)
    assert choice is not None
    assert choice.setting.values == ("4", "euler")  # of fewest evaluations, though its seconds are the most
    text = " ".join(describe_sweep(plan, settings, "score_a", choice, []))
    assert "Other load disturbed the seconds: equal work took up to 9.0 times as long" in text
    calm = summarise([row | {"denoise_seconds": row["evaluations"]} for row in rows], plan.names)
    assert "disturbed" not in " ".join(describe_sweep(plan, calm, "score_a", choice, []))


def test_a_score_that_is_the_same_everywhere_is_said_to_be() -> None:
    values = {value: [1.0, 1.0, 1.0] for value in (1.0, 2.0, 6.0)}
    rows = rows_of(values, "guidance", "score_clauses", seconds=dict.fromkeys(values, 1.0))
    findings = conclude(plan_of(["guidance=1,2,6"], seeds=range(3)), rows).findings
    assert "clauses does not move with guidance: it is 1 everywhere." in findings


# --- the folder and the command


def test_clips_carry_their_settings_in_their_names(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1,2", "guidance=2"], prompts=["一只 猫 / #1?", "b" * 300], seeds=[3])
    rows = sweep(pipeline, plan, tmp_path)
    names = sorted(path.name for path in (tmp_path / "clips").iterdir())
    assert sorted(str(row["clip"]) for row in rows) == [f"clips/{name}" for name in names]
    assert [name.rpartition("-")[0] for name in names if "猫" in name] == [
        "prompt=一只-猫-1,steps=1,guidance=2,seed=3",
        "prompt=一只-猫-1,steps=2,guidance=2,seed=3",
    ]
    assert all(not {*name} & {*"?#%/ \\"} and len(name.encode()) < 255 for name in names)


def test_the_page_is_there_from_the_first_clip_on(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1,2,3"], prompts=PROMPTS)
    page, seen = growing_page(tmp_path, plan), []

    def look(row: Row) -> None:
        page(row)
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        data = json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])
        seen.append(len(data["rows"]))

    sweep(pipeline, plan, tmp_path, on_row=look)
    assert seen[0] == 1
    assert seen == sorted(seen)


def test_a_dry_run_says_what_references_are_what_they_take_and_which_flag_leaves_them_out(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["x", "--sweep", "steps=1,2", "--seeds", "0,1", "--model", str(checkpoint), *QUICK, "--dry-run"]
    assert sample([*words, "--out", str(tmp_path / "s")]) == 0
    first, second, quality, few, third = capsys.readouterr().out.splitlines()
    assert first.startswith("4 clips: 2 settings x 1 prompt x 2 seeds; 12 evaluations")
    assert second.startswith("2 references of 8 steps: the same clips solved almost exactly")
    assert "--reference 0 leaves them out" in second
    assert quality == "Quality is that PSNR."
    assert few == "Only 2 clips of each setting cannot end in a recommendation; 3 or more may: --seeds 0:7:8."
    assert third.startswith("About ")
    assert third.endswith(" for the references.")
    assert sample([*words, "--out", str(tmp_path / "s"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["seconds"] >= row["reference_seconds"] >= 0


def test_a_dry_run_says_what_will_judge_the_clips(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--sweep", "guidance=1,3", "--seeds", "0,1,2", "--dry-run", "--out", str(tmp_path / "s")]
    assert sample(["a red circle moves right", *words]) == 0
    assert "read by the toybox's judge (--score videogen.toybox.judge:score)" in capsys.readouterr().out
    assert sample(["a skateboard in Rome", *words]) == 0
    assert "Nothing here judges guidance: another value makes another clip" in capsys.readouterr().out
    assert sample(["a skateboard in Rome", *words, "--reference", "0"]) == 0
    assert "Nothing measures quality: the clips stand side by side." in capsys.readouterr().out


# --- on the default checkpoint, with its default settings


@pytest.mark.slow
def test_on_the_default_checkpoint_a_sweep_of_guidance_does_not_end_in_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight prompts do: guidance 1 is neither recommended nor the best, as far as eight clips can tell."""
    prompts = (ROOT / "assets" / "toybox" / "prompts.txt").read_text(encoding="utf-8").splitlines()[:8]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--sweep", "guidance=1,3,6", "--reference", "0", "--quiet"]
    assert sample([*words, "--out", str(tmp_path / "s")]) == 0
    out = capsys.readouterr()
    assert "the clips are judged by what their captions say" in out.err
    end = out.out.splitlines()[0]
    best = re.search(r"Use guidance (\d)|from guidance (\d);", end)
    assert best is not None, end
    assert (best[1] or best[2]) in "36", end
    if (tmp_path / "s" / "best.toml").exists():
        assert "guidance = 1.0" not in (tmp_path / "s" / "best.toml").read_text(encoding="utf-8")


@pytest.mark.slow
def test_on_the_default_checkpoint_steps_end_at_the_knee(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six seeds are the fewest that decide it: on the way to the chosen number a second brings more than beyond it."""
    words = ["--sweep", "steps=4,8,16,32", "--seeds", "0:5:6", "--reference", "64", "--out", str(tmp_path / "s")]
    assert sample([RED_CIRCLE, *words, "--quiet"]) == 0
    chosen = re.match(r"Use (\d+) steps", end := capsys.readouterr().out.splitlines()[0])
    assert chosen is not None, end
    rows, quality = list(read_rows(tmp_path / "s").values()), {}
    for steps in (4, 8, 16, 32):
        quality[steps] = np.mean([float(str(row["psnr_db"])) for row in rows if row["steps"] == steps])
    steps = int(chosen[1])
    assert steps in (8, 16), end
    assert (quality[steps] - quality[4]) / (steps - 4) > 1.2 * (quality[32] - quality[steps]) / (32 - steps)
    assert f"steps = {steps}\n" in (tmp_path / "s" / "best.toml").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["steps=4,12", "guidance=1,3,6", "--reference", "0"], ["steps=4,8,16", "--reference", "32"]],
    ids=["judged", "measured"],
)
def test_on_the_default_checkpoint_two_seeds_do_not_end_in_a_use(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample([RED_CIRCLE, "--sweep", *words, "--seeds", "0,1", "--quiet", "--out", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Look at the clips side by side: two seeds cannot tell these apart")
    assert "Use " not in out
    assert not (tmp_path / "s" / "best.toml").exists()


def test_a_patch_on_the_axes_is_measured_against_the_finest() -> None:
    plan = plan_of(['patch="1x2x2:0.5,1x1x1","1x1x1"'], reference_steps=8)
    assert {reference.config.patch for reference in plan.references(plan.runs())} == {"1x1x1"}


@pytest.mark.parametrize(
    ("degrees", "tabulated"),
    [
        (1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042), (31, 2.040), (40, 2.021),
        (60, 2.000), (120, 1.980),
    ],
)  # fmt: skip
def test_the_quantile_of_students_t_is_that_of_the_tables(degrees: int, tabulated: float) -> None:
    assert t_quantile(degrees) == pytest.approx(tabulated, abs=6e-4)  # tables have three places, and so has the formula
