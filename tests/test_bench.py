"""The measurements that need a trained checkpoint, run on a tiny one: they end, and they measure what they say."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertModel, PreTrainedTokenizerFast

from tests.bench import framing, judged, patches, sizes
from tests.conftest import tiny_dit
from videogen.config import SampleConfig
from videogen.judging import Clip, draw, look
from videogen.pipeline import VideoPipeline
from videogen.plain import to_mapping
from videogen.toybox import render
from videogen.toybox.judge import judge
from videogen.toybox.judge.tally import Judged
from videogen.toybox.scenes import track
from videogen.vae import VideoVAE
from videogen.video_io import probe


@pytest.fixture
def quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads one clip of the world and takes all others for it: reading noise takes seconds a clip."""
    case = judged.cases_of(SampleConfig(frames=9), 1)[0]
    seen = look(Clip(case, 0, draw(case)))

    def glance(clip: Clip) -> Judged:
        return seen._replace(case=clip.case, holds=judge(seen.found, clip.case.clauses))

    monkeypatch.setattr(judged, "look", glance)


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
    with pytest.raises(ValueError, match=r"patches of 1x2x2 alone; train it with dit.coarse_patch first"):
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
    options = {"num_clips": 12, "num_held": 3, "steps": 2, "layers": 1, "budget": 96}
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
