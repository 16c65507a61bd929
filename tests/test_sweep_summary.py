"""The measures of a clip agree with other libraries, and the summary of many chooses by its rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from tests.sweeps import SMALL, plan_of
from videogen.sweep.axes import Axis
from videogen.sweep.choice import choose_setting
from videogen.sweep.findings import describe_sweep, is_within_noise
from videogen.sweep.measures import compare_to_reference, measure_clip
from videogen.sweep.results import Row
from videogen.sweep.summary import effects, mean_of, pareto_front, summarise

# --- measures


def random_clip(num_frames: int = 6) -> Tensor:
    """Independent noise in every frame."""
    return torch.randint(0, 256, (num_frames, 24, 32, 3), dtype=torch.uint8)


def test_psnr_and_ssim_are_those_of_scikit_image() -> None:
    clean = random_clip()
    noisy = (clean.float() + 20 * torch.randn(clean.shape)).clamp(0, 255).to(torch.uint8)
    measures = compare_to_reference(noisy, clean)
    assert measures["psnr_db"] == pytest.approx(peak_signal_noise_ratio(clean.numpy(), noisy.numpy()), abs=1e-3)
    options = {"data_range": 255, "gaussian_weights": True, "use_sample_covariance": False, "channel_axis": -1}
    expected = [structural_similarity(a, b, **options) for a, b in zip(clean.numpy(), noisy.numpy(), strict=True)]
    assert measures["ssim"] == pytest.approx(float(np.mean(expected)), abs=1e-4)  # scikit-image computes in float64
    assert compare_to_reference(clean, clean) == {"psnr_db": 100.0, "ssim": pytest.approx(1.0)}


def test_motion_is_the_first_and_flicker_the_second_difference_in_time() -> None:
    ramp = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1).expand(6, 16, 16, 3) * 10
    blink = (torch.arange(6) % 2).to(torch.uint8).reshape(6, 1, 1, 1).expand(6, 16, 16, 3) * 10
    assert (measure_clip(ramp)["motion"], measure_clip(ramp)["flicker"]) == (10.0, 0.0)
    assert (measure_clip(blink)["motion"], measure_clip(blink)["flicker"]) == (10.0, 10.0)
    assert (measure_clip(ramp[:1])["motion"], measure_clip(ramp[:1])["flicker"]) == (None, None)


def test_saturation_is_that_of_hsv() -> None:
    clip = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    clip[0, 0, 0] = torch.tensor([200, 100, 0])  # 1
    clip[0, 0, 1] = torch.tensor([200, 100, 100])  # 1/2
    clip[0, 1, 0] = 77  # grey
    measures = measure_clip(clip)
    assert measures["saturation"] == pytest.approx(1.5 / 4)
    assert measures["clipped"] == pytest.approx((1 + 3) / 12)


# --- summary


def make_rows(
    quality: dict[tuple[int, str], Sequence[float]], seconds: dict[tuple[int, str], float], name: str
) -> list[Row]:
    """Make the rows of a sweep over steps and sampler, one for each seed."""
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


def test_an_interval_is_students_t() -> None:
    for num in (2, 3, 10, 31):
        values = np.random.default_rng(num).normal(size=num)
        mean = mean_of(list(enumerate(values.tolist())))
        low, high = stats.t.interval(0.95, num - 1, loc=values.mean(), scale=stats.sem(values))
        assert mean.half_width is not None
        assert (mean.value - mean.half_width, mean.value + mean.half_width) == pytest.approx((low, high), rel=1e-3)
    assert mean_of([("x", 1.0)]).half_width is None
    wide = mean_of(list(enumerate(np.random.default_rng(0).normal(size=200))))
    assert wide.half_width is not None
    assert wide.half_width < 0.2


def test_no_setting_of_the_pareto_front_is_beaten_in_both() -> None:
    scores = {(4, "euler"): [1.0], (8, "euler"): [0.9], (4, "heun"): [3.0], (8, "heun"): [4.0]}
    settings = summarise(make_rows(scores, SECONDS, "score_a"), ["steps", "sampler"])
    assert [setting.values for setting in pareto_front(settings, "score_a")] == [
        ("4", "euler"),
        ("4", "heun"),
        ("8", "heun"),
    ]


def test_the_fastest_setting_as_good_as_the_best_clip_by_clip_is_chosen() -> None:
    """Seeds differ more than settings do, so that only a comparison clip by clip shows the difference."""
    seeds = np.array([0.0, 10.0, 20.0, 30.0])
    wobble = np.array([0.1, -0.1, 0.1, -0.1])
    scores = {
        (8, "heun"): seeds + 1.0, (4, "heun"): seeds + 1.0 - wobble,
        (8, "euler"): seeds + 0.7 + wobble, (4, "euler"): seeds,
    }  # fmt: skip
    rows = make_rows({at: values.tolist() for at, values in scores.items()}, SECONDS, "score_a")
    choice = choose_setting(summarise(rows, ["steps", "sampler"]), "score_a", AXES, SMALL)
    assert choice is not None
    assert choice.setting.values == ("4", "heun")


def test_of_settings_with_equal_cost_the_better_is_chosen() -> None:
    """Measured seconds are never equal, and which of them is less is noise."""
    scores = {(4, "euler"): [1.0, 2.0], (4, "heun"): [1.1, 1.9], (8, "euler"): [1.2, 1.9]}
    for faster in scores:
        seconds = {at: 1.0 if at == faster else 1.04 for at in scores}
        rows = make_rows(scores, seconds, "score_a")
        choice = choose_setting(summarise(rows, ["steps", "sampler"]), "score_a", AXES, SMALL)
        assert choice is not None
        assert choice.setting.values == ("8", "euler")


def test_closeness_to_the_reference_chooses_the_steps_and_leaves_guidance_as_it_is() -> None:
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
    choice = choose_setting(summarise(rows, ["steps", "guidance"]), "psnr_db", axes, SMALL)
    assert choice is not None
    assert choice.setting.values == ("8", "2")
    assert "guidance stays at the command's 2" in choice.rule


def test_closeness_to_the_reference_does_not_replace_an_sde_sampler() -> None:
    """The reference of an SDE sampler solves another equation, which converges more slowly; its clips may be better."""
    psnr = {(4, "dpmpp_2m_sde"): [20.0, 21.0], (8, "dpmpp_2m_sde"): [24.0, 25.0], (4, "dpmpp_2m"): [41.0, 42.0]}
    seconds = dict.fromkeys(psnr, 1.0) | {(8, "dpmpp_2m_sde"): 2.0}
    axes = (AXES[0], Axis(("sampler",), (("dpmpp_2m",), ("dpmpp_2m_sde",))))
    settings = summarise(make_rows(psnr, seconds, "psnr_db"), ["steps", "sampler"])
    choice = choose_setting(settings, "psnr_db", axes, replace(SMALL, sampler="dpmpp_2m_sde"))
    assert choice is not None
    assert choice.setting.values == ("8", "dpmpp_2m_sde")
    assert "fresh noise stays at the command's on" in choice.rule
    alone = choose_setting(settings[2:], "psnr_db", axes, replace(SMALL, sampler="dpmpp_2m_sde"))
    assert alone is not None
    assert "says nothing of fresh noise: choose by eye or by --score" in alone.rule


def test_a_setting_that_lacks_clips_is_neither_chosen_nor_on_the_front() -> None:
    """If a sweep was stopped, the clips of its last setting may be of the easy prompts."""
    rows = make_rows({(8, "euler"): [0.1, 0.2, 0.9], (4, "heun"): [0.9]}, SECONDS, "score_a")
    settings = summarise(rows, ["steps", "sampler"])
    choice = choose_setting(settings, "score_a", AXES, SMALL)
    assert choice is not None
    assert choice.setting.values == ("8", "euler")
    assert [setting.values for setting in pareto_front(settings, "score_a")] == [("8", "euler")]


def test_equal_clips_of_one_prompt_count_as_one() -> None:
    """Twenty seeds of each of four prompts are four independent clips, where seeds do not matter."""
    levels = np.array([0.0, 0.3, 0.6, 0.9])
    rows = [
        row | {"prompt": str(prompt)}
        for prompt, level in enumerate(levels)
        for row in make_rows({(4, "euler"): [level] * 20}, SECONDS, "score_a")
    ]
    (setting,) = summarise(rows, ["steps", "sampler"])
    assert setting.means["score_a"] == pytest.approx((*mean_of(list(enumerate(levels)))[:2], 80))


def test_an_effect_is_compared_clip_by_clip() -> None:
    """Clips differ far more than the places of the axis do."""
    levels = np.arange(16) / 16
    rows = make_rows({(4, "euler"): levels.tolist(), (8, "euler"): (levels + 0.05).tolist()}, SECONDS, "score_a")
    flat = make_rows({(4, "heun"): levels.tolist(), (8, "heun"): levels[::-1].tolist()}, SECONDS, "score_a")
    moves, stays = (effects(table, AXES[:1], "score_a")[0] for table in (rows, flat))
    assert moves.gap is not None
    assert moves.gap.value == pytest.approx(0.05)
    assert not is_within_noise(moves)
    assert is_within_noise(stays)


def test_without_a_close_setting_the_fastest_of_the_nearest_is_chosen() -> None:
    psnr = {
        (4, "euler"): [20.0, 21.0],
        (8, "euler"): [30.0, 35.0],
        (4, "heun"): [29.0, 30.0],
        (8, "heun"): [31.0, 34.4],
    }
    rows = make_rows(psnr, SECONDS, "psnr_db")
    choice = choose_setting(summarise(rows, ["steps", "sampler"]), "psnr_db", AXES, SMALL)
    assert choice is not None
    assert choice.setting.values == ("8", "euler")  # as near as the slower heun, as far as two clips can tell
    assert choice.rule.startswith("none is surely at 40 dB or more, so the fastest")


def test_the_findings_state_from_how_many_steps_on_a_sampler_has_converged() -> None:
    psnr = {
        (4, "euler"): [30.0, 31.0],
        (8, "euler"): [36.0, 37.0],
        (4, "heun"): [41.0, 42.0],
        (8, "heun"): [50.0, 51.0],
    }
    rows = make_rows(psnr, SECONDS, "psnr_db")
    plan = replace(plan_of(["steps=4,8", "sampler=euler,heun"], seeds=[0, 1]), axes=AXES)
    settings = summarise(rows, plan.names)
    text = " ".join(describe_sweep(plan, settings, "psnr_db", choose_setting(settings, "psnr_db", AXES, SMALL), []))
    assert "Even beyond 4 steps heun changes next to nothing: 41.5 dB" in text
    assert "these are still below 40 dB: euler (8 steps, 36.5 dB)." in text
    assert "4 settings, 1 prompt, 2 seeds: 8 clips." in text
