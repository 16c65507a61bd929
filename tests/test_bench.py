"""The measurements that need a trained checkpoint run on a tiny one, and measure what they name."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertModel, PreTrainedTokenizerFast

from tests.bench import framing, halfway, judged, mini, mini_aims, patches, readme, sizes, teaser
from tests.bench.judged import BenchClip
from tests.bench.timed import plan_second_part
from tests.conftest import tiny_dit
from videogen.cli.judge import JudgeArgs, list_cases, reconstruct, render_case
from videogen.config.parsing import to_mapping
from videogen.config.sample import SampleConfig
from videogen.data.video_io import probe
from videogen.models.vae import VideoVAE
from videogen.sampling.pipeline import VideoPipeline
from videogen.toybox import render
from videogen.toybox.judge import parse
from videogen.toybox.judge.scores import Case, JudgedClip
from videogen.toybox.world.backgrounds import render_background
from videogen.toybox.world.scenes import track
from videogen.training.run_checkpoints import saved_steps


@pytest.fixture(scope="module")
def small_pipeline(vae: VideoVAE, text_encoder: BertModel, tokenizer: PreTrainedTokenizerFast) -> VideoPipeline:
    dit = tiny_dit(prediction="clean", extra_patch_sizes=[(1, 4, 4)])
    defaults = SampleConfig(size="64x64", frames=9, steps=4, guidance=2.0)
    return VideoPipeline(dit, vae, text_encoder, tokenizer, defaults=to_mapping(defaults))


@pytest.mark.parametrize(
    ("area", "duration", "size", "frames"),
    [(1, 1, "64x64", 17), (1.5, 1, "80x80", 17), (2, 1, "96x96", 17), (1, 1.5, "64x64", 25), (1, 2, "64x64", 33)],
)
def test_scale_size_takes_the_nearest_possible_size_and_length(
    area: float, duration: float, size: str, frames: int
) -> None:
    config = sizes.scale_size(SampleConfig(), area, duration, stride=16, time_stride=4)
    assert (config.size, config.frames) == (size, frames)


@pytest.mark.usefixtures("quick_judge")
def test_sizes_are_measured_for_every_position_scaling_that_matters(small_pipeline: VideoPipeline) -> None:
    rows = sizes.measure(small_pipeline, num_clips=2, num_seeds=1, scales=[(1, 1), (1, 2)])
    assert [(row.frames, row.position_scaling) for row in rows] == [
        (9, "the world's own"),
        (9, "none"),
        (17, "the world's own"),
        *((17, kind) for kind in ("none", "interpolate", "ntk", "riflex")),
    ]
    for row in rows:
        assert row.scores["all"]["clips"] == 2
        assert "all clauses" in str(row)


@pytest.mark.usefixtures("quick_judge")
def test_schedules_are_measured_against_base_patches(small_pipeline: VideoPipeline, tmp_path: Path) -> None:
    schedule = "1x4x4:0.5,1x2x2"
    base, coarse = patches.measure(small_pipeline, [schedule], num_clips=2, num_seeds=1)
    assert (base.schedule, base.speed, base.psnr_db) == ("1x2x2", 1.0, 99.0)
    assert (coarse.schedule, coarse.tokens) == (schedule, 0.625)
    assert coarse.psnr_db < 99
    patches.plot([base, coarse], schedule, tmp_path / "patches.png")
    assert (tmp_path / "patches.png").stat().st_size > 1000


@pytest.mark.usefixtures("quick_judge")
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde"])
def test_clips_denoised_from_little_noise_are_the_worlds_own(
    small_pipeline: VideoPipeline, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(small_pipeline.defaults, sampler=sampler)
    monkeypatch.setattr(VideoPipeline, "defaults", config)
    cases = judged.draw_cases(small_pipeline.defaults, 2)
    world_clips = [torch.from_numpy(reconstruct(render_case(case), small_pipeline.vae)) for case in cases]
    near, far = (halfway.denoise_from(small_pipeline, cases, level) for level in (1e-4, 1.0))
    assert all(patches.psnr(a, b) > 40 for a, b in zip(near, world_clips, strict=True))
    assert all(patches.psnr(a, b) < 25 for a, b in zip(far, world_clips, strict=True))
    scores = halfway.measure(small_pipeline, [1.0, 0.5], num_clips=2)
    assert list(scores) == ["1", "0.5"]
    assert scores["0.5"]["all"]["clips"] == 2


def make_row(schedule: str, speed: float, score: float, psnr_db: float) -> patches.Row:
    return patches.Row(schedule, 1 / speed, 1 / speed, speed, psnr_db, score, {})


def test_the_chosen_schedule_is_the_fastest_that_loses_at_most_a_point() -> None:
    rows = [
        make_row("base", 1, 0.50, 99),
        make_row("a", 1.4, 0.495, 30),
        make_row("b", 1.6, 0.49, 25),
        make_row("c", 2, 0.48, 20),
    ]
    assert patches.choose_schedule(rows) == "b"
    assert patches.choose_schedule(rows[:1] + rows[3:]) == "base"
    assert patches.pareto_front([*rows, make_row("d", 1.5, 0.485, 28)], "all_clauses") == ["base", "a", "b", "c"]


def test_psnr_is_the_decibels_between_clips() -> None:
    clip = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    assert patches.psnr(clip, clip) == pytest.approx(99, abs=0.01)
    assert patches.psnr(clip, clip + 255) == pytest.approx(0, abs=1e-5)
    assert patches.psnr(clip, clip + 1) == pytest.approx(48.13, abs=0.01)


def test_a_model_of_one_patch_size_is_refused(pipeline: VideoPipeline) -> None:
    with pytest.raises(ValueError, match=r"no patches coarser than 1x2x2; train it with dit.patches first"):
        patches.measure(pipeline, [], num_clips=1, num_seeds=1)


def test_a_thing_is_whole_if_it_never_leaves_the_frame() -> None:
    x, y, radius = np.array([10.0, 20.0]), np.array([10.0, 10.0]), np.array([8.0, 8.0])
    assert framing.is_whole(x, y, radius, 30, 20)
    assert not framing.is_whole(x, y, radius, 26, 20)  # at the end it is 2 pixels out on the right
    assert not framing.is_whole(x - 4, y, radius, 30, 20)
    assert not framing.is_whole(x, y + 4, radius, 30, 20)


def test_an_off_centre_subject_is_whole_in_its_frame_and_cut_by_the_middle_square() -> None:
    for scene in islice(framing.off_centre_scenes(0), 10):
        assert scene.width != scene.height
        assert len(scene.things) == 1
        pose, (left, top, side) = track(scene), framing.middle_square(scene.width, scene.height)
        place = pose.x[:, 0], pose.y[:, 0], pose.radius[:, 0]
        assert framing.is_whole(*place, scene.width, scene.height)
        assert not framing.is_whole(place[0] - left, place[1] - top, place[2], side, side)


@pytest.mark.usefixtures("quick_judge")
def test_framing_is_compared_on_the_same_clips_and_tokens(checkpoint: Path, tmp_path: Path) -> None:
    options = {"num_clips": 12, "num_held": 3, "steps": 2, "budget": 96}
    rows = framing.compare(tmp_path, checkpoint, **options)
    assert [row[:2] for row in rows] == [
        ("the world's own", "native"),
        *((trained_on, made_as) for trained_on in framing.FRAMINGS for made_as in framing.FRAMINGS),
    ]
    assert all(row.clips == 3 for row in rows)
    first = next(framing.off_centre_scenes(0))
    side = min(first.width, first.height)
    videos = [probe(tmp_path / framing_name / "clips" / "000000.mp4") for framing_name in framing.FRAMINGS]
    assert [(video.width, video.height) for video in videos] == [(first.width, first.height), (side, side)]
    assert len(render(first)) == framing.FRAMES
    repeated = framing.compare(tmp_path, checkpoint, **options)  # a finished training is not repeated
    assert repeated == rows
    framing.compare(tmp_path, checkpoint, **(options | {"steps": 3}))  # a training of more steps resumes
    assert {max(saved_steps(tmp_path / f"run_{framing_name}")) for framing_name in framing.FRAMINGS} == {3}


def read_json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


@pytest.mark.usefixtures("quick_judge")
def test_a_checkpoint_is_compared_with_every_floor(
    own_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = own_checkpoint / "model_index.json"
    index.write_text(index.read_text(encoding="utf-8").replace('"steps": 3', '"steps": 5'), encoding="utf-8")
    page, out, rows = tmp_path / "README.md", tmp_path / "mini.json", tmp_path / "rows.jsonl"
    page.write_text("before\n<!-- mini -->\nold\n<!-- /mini -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(readme, "PAGES", (page,))
    options = ["--clips", "3", "--seeds", "2", "--rows", str(rows), "--out", str(out), "--write"]
    mini.main(["--model", str(own_checkpoint), *options])
    result = json.loads(out.read_text(encoding="utf-8"))
    ways = {name: list(of_name) for name, of_name in result["scores"].items()}
    sampled_ways = ["default", "4 steps"]
    assert ways == {
        "held-out captions": [*sampled_ways, "after the VAE", "the world's own", "shuffled captions"],
        "new combinations": [*sampled_ways, "shuffled captions"],
        "paraphrases": [*sampled_ways, "shuffled captions"],
        "sentences of another hand": ["default", "shuffled captions"],
        "new sentences": ["default", "shuffled captions"],
    }
    assert result["scores"]["paraphrases"]["4 steps"]["all"]["clips"] == 3  # one clip a caption
    assert result["scores"]["held-out captions"]["after the VAE"]["all"]["clips"] == result["vae"]["clips"] == 3
    assert list(result["seconds_a_clip"]) == sampled_ways
    assert len(result["floors"]) == 2 + 4 + 11  # the VAE's facts, what the judge says after it, and the checkpoint
    done_rows = read_json_lines(rows.with_suffix(".done.jsonl"))
    assert len(done_rows) == 3 * 3 * (2 + 1) + 2 * (3 * 2) + 3 * 2
    by_clip = {(row["captions"], row["prompt"], row["seed"]) for row in done_rows if row["way"] == "default"}
    assert {seed for name, _, seed in by_clip if name == "paraphrases"} == {*range(6)}  # every clip has its own noise
    assert not rows.exists()
    table, printed = readme.mini_table(result), capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == f"before\n<!-- mini -->\n{table}\n<!-- /mini -->\nafter\n"
    assert table in printed
    assert readme.clauses_table(result) in printed


@pytest.mark.usefixtures("quick_judge")
def test_an_interrupted_measurement_resumes_with_the_same_result(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_clips, num_judged = mini.judge_clips, list[int]()

    def judge_and_count(clips: list[BenchClip]) -> list[JudgedClip]:
        num_judged.append(len(clips))
        return judge_clips(clips)

    def stop_from_the_third_pack_on(clips: list[BenchClip]) -> list[JudgedClip]:
        if len(num_judged) == 2:
            raise KeyboardInterrupt
        return judge_and_count(clips)

    options = {"num_clips": 3, "num_seeds": 2}
    whole = mini.measure(checkpoint, tmp_path / "whole.jsonl", **options)
    monkeypatch.setattr(mini, "judge_clips", stop_from_the_third_pack_on)
    part = tmp_path / "deep" / "part.jsonl"
    with pytest.raises(KeyboardInterrupt):
        mini.measure(checkpoint, part, **options)
    assert len(read_json_lines(part)) == sum(num_judged) > 0
    with part.open("a", encoding="utf-8") as file:
        file.write('{"captions": "held-out')  # a kill while writing
    monkeypatch.setattr(mini, "judge_clips", judge_and_count)
    resumed = mini.measure(checkpoint, part, **options)
    assert sum(num_judged) == len(read_json_lines(part)) == len(read_json_lines(tmp_path / "whole.jsonl"))
    for name in ("vae", "floors", "scores"):
        assert resumed[name] == whole[name]
    with pytest.raises(ValueError, match="rows of another checkpoint"):
        mini.measure(checkpoint, part, num_clips=2, num_seeds=2)
    text = part.read_text(encoding="utf-8")
    part.write_text(text.replace(read_json_lines(part)[0]["prompt"], "a cat sits still"), encoding="utf-8")
    with pytest.raises(ValueError, match="rows of other captions, such as 'a cat sits still'"):
        mini.measure(checkpoint, part, **options)


def test_each_floor_applies_to_the_clips_that_its_name_says() -> None:
    def applicable_aims(caption: str) -> set[str]:
        clauses = parse(caption)
        aims = [aim for aim in mini_aims.AIMS if (aim.captions, aim.way) == (mini_aims.HELD_OUT, mini_aims.DEFAULT)]
        return {aim.name for aim in aims if aim.applies(clauses)}

    common = {"background", "class (shape, digit, sprite)", "direction / motion kind", "camera"}
    star, digit, cat = "a red star moves left", "a red digit 7 moves left", "a small cat moves left"
    assert applicable_aims(star) == common | {"colour of shapes", "count (1-2)", "all clauses, one object"}
    assert applicable_aims(digit) == applicable_aims(cat) == common | {"count (1-2)", "all clauses, one object"}
    two = f"{star} and {cat}"
    assert applicable_aims(two) == common | {"colour of shapes", "count (1-2)", "all clauses, two objects"}
    assert applicable_aims(f"{star}, {cat} and a blue star sits still") == common | {"colour of shapes"}


def test_a_floor_counts_the_clips_whose_caption_has_its_clause() -> None:
    star, no_motion = Case("moves", parse("a red star moves left")), Case("bare", parse("a red star"))
    verdicts = [
        (star, {"motion": True, "all": True}),
        (star, {"motion": False, "all": False}),
        (no_motion, {"all": True}),
    ]
    aims = {aim.name: aim for aim in mini_aims.AIMS}
    assert mini_aims.count_aim(aims["direction / motion kind"], verdicts)[:2] == (1, 2)
    assert mini_aims.count_aim(aims["all clauses, one object"], verdicts)[:2] == (2, 3)
    assert mini_aims.count_aim(aims["camera"], verdicts)[:2] == (0, 0)


def test_foreground_is_where_a_clip_differs_from_its_background() -> None:
    case = judged.draw_cases(SampleConfig(frames=9), 1)[0]
    clip, scene = render_case(case), case.scene
    assert scene is not None
    empty = np.broadcast_to(render_background(scene), clip.shape).astype(np.uint8)
    assert mini.foreground_iou(clip, clip, scene) == 1
    assert mini.foreground_iou(empty, clip, scene) == 0
    half = np.where(np.arange(len(clip))[:, None, None, None] < 4, clip, empty)
    assert 0.2 < mini.foreground_iou(half, clip, scene) < 0.7  # it grows or moves, so not exactly 4 / 9


def test_the_hand_written_sentences_differ_and_name_one_thing() -> None:
    cases = list_cases(JudgeArgs(captions=mini.PARAPHRASES), None)
    assert len({case.prompt for case in cases}) == len(cases) == 100
    assert {len(case.clauses.things) for case in cases} == {1}


def test_the_teaser_shows_every_prompt_under_its_clip(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "teaser.webp"
    teaser.main(["--model", str(checkpoint), "--out", str(out)])
    with Image.open(out) as picture:
        picture.load()
        assert picture.n_frames == 9
        assert picture.info["duration"] == 125  # milliseconds a frame at 8 a second
        width, height = picture.size
    clip_height, label = 32 * teaser.SCALE, teaser.render_label(teaser.PROMPTS[0], 48 * teaser.SCALE)
    assert width == 4 * (48 * teaser.SCALE + teaser.GAP)
    assert height == 2 * (clip_height + len(label) + teaser.GAP)
    for prompt in teaser.PROMPTS:
        label_pixels = teaser.render_label(prompt, 64 * teaser.SCALE)
        dark = np.argwhere((label_pixels < 128).any(-1))
        assert len(dark) > 200
        assert (dark.max(0) < np.array(label_pixels.shape[:2]) - 1).all()  # no letter is cut off


def test_the_second_part_of_a_timed_run_has_the_steps_that_the_last_speed_allows(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    slow, fast = [{"step": 10 * i, "steps_per_second": 1.0} for i in range(30)], {"step": 400, "steps_per_second": 20.0}
    log.write_text("".join(json.dumps(line) + "\n" for line in [*slow, *[fast] * 9, {"step": 400, "val_loss": 0.1}]))
    assert plan_second_part(log, 50.0) == (400 + 960, 960 / 1360)  # 50 s at 20 steps a second, less the spare share
    log.write_text('{"step": 3, "val_loss": 0.1}\n')
    with pytest.raises(ValueError, match="has no speed yet; give the first part more of the time with --first"):
        plan_second_part(log, 50.0)
