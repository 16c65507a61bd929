"""The measurements that need a trained checkpoint, run on a tiny one: they end, and they measure what they say."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertModel, PreTrainedTokenizerFast

from tests.bench import framing, halfway, judged, mini, patches, readme, sizes, teaser
from tests.bench.judged import Made
from tests.bench.timed import second_part
from tests.conftest import tiny_dit
from videogen.cli.judge import JudgeArgs, list_cases, reconstruct, render_case
from videogen.config.parsing import to_mapping
from videogen.config.sample import SampleConfig
from videogen.data.video_io import probe
from videogen.models.vae import VideoVAE
from videogen.sampling.pipeline import VideoPipeline
from videogen.toybox import render
from videogen.toybox.judge import judge, parse
from videogen.toybox.judge import workers as crew
from videogen.toybox.judge.scores import Case, Judged
from videogen.toybox.judge.workers import Clip, look
from videogen.toybox.world.backgrounds import paint
from videogen.toybox.world.scenes import track
from videogen.training.run_checkpoints import saved_steps


@pytest.fixture
def quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads one clip of the world and takes all others for it: reading noise takes seconds a clip."""
    case = judged.cases_of(SampleConfig(frames=9), 1)[0]
    seen = look(Clip(case, 0, render_case(case)))

    def glance(clip: Clip) -> Judged:
        return seen._replace(case=clip.case, seed=clip.seed, holds=judge(seen.found, clip.case.clauses))

    monkeypatch.setattr(judged, "look", glance)
    monkeypatch.setattr(crew, "CORES", 1)  # other processes would look closely


@pytest.fixture(scope="module")
def small(vae: VideoVAE, text_encoder: BertModel, tokenizer: PreTrainedTokenizerFast) -> VideoPipeline:
    dit = tiny_dit(prediction="clean", extra_patch_sizes=[(1, 4, 4)])
    defaults = SampleConfig(size="64x64", frames=9, steps=4, guidance=2.0)
    return VideoPipeline(dit, vae, text_encoder, tokenizer, defaults=to_mapping(defaults))


@pytest.mark.parametrize(
    ("area", "duration", "size", "frames"),
    [(1, 1, "64x64", 17), (1.5, 1, "80x80", 17), (2, 1, "96x96", 17), (1, 1.5, "64x64", 25), (1, 2, "64x64", 33)],
)
def test_a_scaled_size_is_the_nearest_possible(area: float, duration: float, size: str, frames: int) -> None:
    found = sizes.scaled(SampleConfig(), area, duration, stride=16, time_stride=4)
    assert (found.size, found.frames) == (size, frames)


@pytest.mark.usefixtures("quick_judge")
def test_sizes_are_measured_for_every_setting_that_differs(small: VideoPipeline) -> None:
    rows = sizes.measure(small, num_clips=2, num_seeds=1, scales=[(1, 1), (1, 2)])
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
def test_schedules_are_measured_against_the_base(small: VideoPipeline, tmp_path: Path) -> None:
    schedule = "1x4x4:0.5,1x2x2"
    base, coarse = patches.measure(small, [schedule], num_clips=2, num_seeds=1)
    assert (base.schedule, base.speed, base.psnr_db) == ("1x2x2", 1.0, 99.0)
    assert (coarse.schedule, coarse.tokens) == (schedule, 0.625)
    assert coarse.psnr_db < 99
    patches.plot([base, coarse], schedule, tmp_path / "patches.png")
    assert (tmp_path / "patches.png").stat().st_size > 1000


@pytest.mark.usefixtures("quick_judge")
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde"])
def test_clips_finished_from_little_noise_are_the_worlds_own(
    small: VideoPipeline, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(small.defaults, sampler=sampler)
    monkeypatch.setattr(VideoPipeline, "defaults", config)
    cases = judged.cases_of(small.defaults, 2)
    own = [torch.from_numpy(reconstruct(render_case(case), small.vae)) for case in cases]
    near, far = (halfway.finish(small, cases, level) for level in (1e-4, 1.0))
    assert all(patches.psnr(a, b) > 40 for a, b in zip(near, own, strict=True))
    assert all(patches.psnr(a, b) < 25 for a, b in zip(far, own, strict=True))
    found = halfway.measure(small, [1.0, 0.5], num_clips=2)
    assert list(found) == ["1", "0.5"]
    assert found["0.5"]["all"]["clips"] == 2


def row(schedule: str, speed: float, score: float, psnr_db: float) -> patches.Row:
    return patches.Row(schedule, 1 / speed, 1 / speed, speed, psnr_db, score, {})


def test_the_chosen_schedule_is_the_fastest_within_a_point() -> None:
    rows = [row("base", 1, 0.50, 99), row("a", 1.4, 0.495, 30), row("b", 1.6, 0.49, 25), row("c", 2, 0.48, 20)]
    assert patches.choose(rows) == "b"
    assert patches.choose(rows[:1] + rows[3:]) == "base"
    assert patches.undominated([*rows, row("d", 1.5, 0.485, 28)], "all_clauses") == ["base", "a", "b", "c"]


def test_psnr_is_the_decibels_between_clips() -> None:
    clip = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    assert patches.psnr(clip, clip) == pytest.approx(99, abs=0.01)
    assert patches.psnr(clip, clip + 255) == pytest.approx(0, abs=1e-5)
    assert patches.psnr(clip, clip + 1) == pytest.approx(48.13, abs=0.01)


def test_a_model_of_one_patch_size_is_told_so(pipeline: VideoPipeline) -> None:
    with pytest.raises(ValueError, match=r"no patches coarser than 1x2x2; train it with dit.patches first"):
        patches.measure(pipeline, [], num_clips=1, num_seeds=1)


def test_a_thing_is_whole_while_all_of_it_is_in_the_frame() -> None:
    x, y, radius = np.array([10.0, 20.0]), np.array([10.0, 10.0]), np.array([8.0, 8.0])
    assert framing.is_whole(x, y, radius, 30, 20)
    assert not framing.is_whole(x, y, radius, 26, 20)  # at the end it is 2 pixels out on the right
    assert not framing.is_whole(x - 4, y, radius, 30, 20)
    assert not framing.is_whole(x, y + 4, radius, 30, 20)


def test_an_off_centre_subject_is_whole_in_its_frame_and_cut_by_the_square() -> None:
    for scene in islice(framing.off_centre(0), 10):
        assert scene.width != scene.height
        assert len(scene.things) == 1
        pose, (left, top, side) = track(scene), framing.middle(scene.width, scene.height)
        place = pose.x[:, 0], pose.y[:, 0], pose.radius[:, 0]
        assert framing.is_whole(*place, scene.width, scene.height)
        assert not framing.is_whole(place[0] - left, place[1] - top, place[2], side, side)


@pytest.mark.usefixtures("quick_judge")
def test_framing_is_compared_on_the_same_clips_and_tokens(checkpoint: Path, tmp_path: Path) -> None:
    options = {"num_clips": 12, "num_held": 3, "steps": 2, "budget": 96}
    rows = framing.compare(tmp_path, checkpoint, **options)
    assert [row[:2] for row in rows] == [
        ("the world's own", "native"),
        *((trained_on, made_as) for trained_on in framing.WAYS for made_as in framing.WAYS),
    ]
    assert all(row.clips == 3 for row in rows)
    first = next(framing.off_centre(0))
    side = min(first.width, first.height)
    sizes_of = [(probe(tmp_path / way / "clips" / "000000.mp4")) for way in framing.WAYS]
    assert [(one.width, one.height) for one in sizes_of] == [(first.width, first.height), (side, side)]
    assert len(render(first)) == framing.FRAMES
    again = framing.compare(tmp_path, checkpoint, **options)  # nothing is trained twice
    assert again == rows
    framing.compare(tmp_path, checkpoint, **(options | {"steps": 3}))  # what was stopped goes on
    assert {max(saved_steps(tmp_path / f"run_{way}")) for way in framing.WAYS} == {3}


def rows_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


@pytest.mark.usefixtures("quick_judge")
def test_a_checkpoint_is_measured_against_every_floor(
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
    made = ["default", "4 steps"]
    assert ways == {
        "held-out captions": [*made, "after the VAE", "the world's own", "shuffled captions"],
        "new combinations": [*made, "shuffled captions"],
        "paraphrases": [*made, "shuffled captions"],
        "new sentences": ["default", "shuffled captions"],
    }
    assert result["scores"]["paraphrases"]["4 steps"]["all"]["clips"] == 3  # one a caption
    assert result["scores"]["held-out captions"]["after the VAE"]["all"]["clips"] == result["vae"]["clips"] == 3
    assert list(result["seconds_a_clip"]) == made
    assert len(result["floors"]) == 12
    done = rows_in(rows.with_suffix(".done.jsonl"))
    assert len(done) == 3 * 3 * (2 + 1) + 2 * 3 + 3 * 2
    by_clip = {(row["captions"], row["prompt"], row["seed"]) for row in done if row["way"] == "default"}
    assert {seed for name, _, seed in by_clip if name == "paraphrases"} == {*range(6)}  # noise of its own
    assert not rows.exists()
    table, told = readme.mini(result), capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == f"before\n<!-- mini -->\n{table}\n<!-- /mini -->\nafter\n"
    assert table in told
    assert readme.clauses(result) in told


@pytest.mark.usefixtures("quick_judge")
def test_an_interrupted_measurement_goes_on_with_the_same_result(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, num_judged = mini.judge_clips, list[int]()

    def counted(made: list[Made]) -> list[Judged]:
        num_judged.append(len(made))
        return plain(made)

    def stop_from_the_third_pack_on(made: list[Made]) -> list[Judged]:
        if len(num_judged) == 2:
            raise KeyboardInterrupt
        return counted(made)

    options = {"num_clips": 3, "num_seeds": 2}
    whole = mini.measure(checkpoint, tmp_path / "whole.jsonl", **options)
    monkeypatch.setattr(mini, "judge_clips", stop_from_the_third_pack_on)
    part = tmp_path / "deep" / "part.jsonl"
    with pytest.raises(KeyboardInterrupt):
        mini.measure(checkpoint, part, **options)
    assert len(rows_in(part)) == sum(num_judged) > 0
    with part.open("a", encoding="utf-8") as file:
        file.write('{"captions": "held-out')  # a kill while writing
    monkeypatch.setattr(mini, "judge_clips", counted)
    again = mini.measure(checkpoint, part, **options)
    assert sum(num_judged) == len(rows_in(part)) == len(rows_in(tmp_path / "whole.jsonl"))
    for name in ("vae", "floors", "scores"):
        assert again[name] == whole[name]
    with pytest.raises(ValueError, match="rows of another checkpoint"):
        mini.measure(checkpoint, part, num_clips=2, num_seeds=2)
    text = part.read_text(encoding="utf-8")
    part.write_text(text.replace(rows_in(part)[0]["prompt"], "a cat sits still"), encoding="utf-8")
    with pytest.raises(ValueError, match="rows of other captions, such as 'a cat sits still'"):
        mini.measure(checkpoint, part, **options)


def test_each_floor_asks_the_clips_that_it_names() -> None:
    def asked(caption: str) -> set[str]:
        clauses = parse(caption)
        return {aim.name for aim in mini.AIMS if aim.captions == mini.HELD_OUT and aim.asked(clauses)}

    common = {"background", "class (shape, digit, sprite)", "direction / motion kind", "camera"}
    star, digit, cat = "a red star moves left", "a red digit 7 moves left", "a small cat moves left"
    assert asked(star) == common | {"colour of shapes", "count (1-2)", "all clauses, one object"}
    assert asked(digit) == asked(cat) == common | {"count (1-2)", "all clauses, one object"}
    two = f"{star} and {cat}"
    assert asked(two) == common | {"colour of shapes", "count (1-2)", "all clauses, two objects"}
    assert asked(f"{star}, {cat} and a blue star sits still") == common | {"colour of shapes"}


def test_a_floor_counts_the_clips_in_which_its_clause_was_said() -> None:
    star, bare = Case("moves", parse("a red star moves left")), Case("bare", parse("a red star"))
    verdicts = [(star, {"motion": True, "all": True}), (star, {"motion": False, "all": False}), (bare, {"all": True})]
    aims = {aim.name: aim for aim in mini.AIMS}
    assert mini.count_aim(aims["direction / motion kind"], verdicts)[:2] == (1, 2)
    assert mini.count_aim(aims["all clauses, one object"], verdicts)[:2] == (2, 3)
    assert mini.count_aim(aims["camera"], verdicts)[:2] == (0, 0)


def test_foreground_is_what_stands_out_from_the_background() -> None:
    case = judged.cases_of(SampleConfig(frames=9), 1)[0]
    clip, scene = render_case(case), case.scene
    assert scene is not None
    empty = np.broadcast_to(paint(scene), clip.shape).astype(np.uint8)
    assert mini.foreground_iou(clip, clip, scene) == 1
    assert mini.foreground_iou(empty, clip, scene) == 0
    half = np.where(np.arange(len(clip))[:, None, None, None] < 4, clip, empty)
    assert 0.2 < mini.foreground_iou(half, clip, scene) < 0.7  # it grows or moves, so not exactly 4 / 9


def test_hand_written_sentences_differ_and_are_of_one_thing() -> None:
    cases = list_cases(JudgeArgs(captions=mini.SENTENCES))
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
    clip_height, below = 32 * teaser.SCALE, teaser.label(teaser.PROMPTS[0], 48 * teaser.SCALE)
    assert width == 4 * (48 * teaser.SCALE + teaser.GAP)
    assert height == 2 * (clip_height + len(below) + teaser.GAP)
    for prompt in teaser.PROMPTS:
        words = teaser.label(prompt, 64 * teaser.SCALE)
        dark = np.argwhere((words < 128).any(-1))
        assert len(dark) > 200
        assert (dark.max(0) < np.array(words.shape[:2]) - 1).all()  # nothing is cut off


def test_a_timed_run_s_second_part_has_as_many_steps_as_the_speed_at_the_end_allows(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    slow, fast = [{"step": 10 * i, "steps_per_second": 1.0} for i in range(30)], {"step": 400, "steps_per_second": 20.0}
    log.write_text("".join(json.dumps(line) + "\n" for line in [*slow, *[fast] * 9, {"step": 400, "val_loss": 0.1}]))
    assert second_part(log, 50.0) == (400 + 960, 960 / 1360)  # 50 s at 20 a second, less what is kept in hand
    log.write_text('{"step": 3, "val_loss": 0.1}\n')
    with pytest.raises(ValueError, match="has no speed yet; give the first part more of the time with --first"):
        second_part(log, 50.0)
