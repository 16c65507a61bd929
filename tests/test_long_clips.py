"""Windows: they cover what is unknown, each beside what is known, and a long clip comes out frame by frame in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from videogen.cli.main import sample
from videogen.cli.provenance import apply_recorded_settings
from videogen.cli.sample_arguments import SampleArgs
from videogen.data.video_io import probe
from videogen.models.dit_network import TextContext
from videogen.models.streaming import decode_chunks, decode_frames
from videogen.packing.windows import OVERLAP, plan_windows
from videogen.sampling.clip_sampler import ClipRequest
from videogen.sampling.known_tokens import KnownLatent, free_latent
from videogen.sampling.long_clips import LongClip, window_seed
from videogen.sampling.pipeline import VideoPipeline

CLIPS = {
    "a prompt": "............",
    "forward": "TTTTT......",
    "backward": "......TTTTT",
    "a short one forward": "T........",
    "a short one backward": "........T",
    "join": "TTTTT........TTTT",
    "a short join": "TTTT.TTTT",
    "first and last": "T...........T",
    "keys": "T....T..T...",
}


@pytest.mark.parametrize("length", [2, 5, 21])
@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_windows_find_every_frame_beside_what_is_known(clip: str, length: int) -> None:
    known, length = [frame == "T" for frame in clip], max(length, OVERLAP + 1)
    for low, high in plan_windows(known, length):
        assert 0 <= low < high <= len(known)
        low += low > 0 and not known[low]  # which is not kept
        assert high - low <= length + OVERLAP  # a gap between two clips sees both, in one more overlap
        found = [i for i in range(low, high) if not known[i]]
        assert found
        if any(known):
            num_seen = high - low - len(found)
            assert num_seen >= min(OVERLAP, sum(known[: found[0]]) or len(known) - found[-1] - 1, 1)
        known[low:high] = [True] * (high - low)
    assert all(known)


def test_a_clip_of_the_models_length_is_one_window() -> None:
    assert plan_windows([False] * 5, 5) == [(0, 5)]
    assert plan_windows([True] + [False] * 4, 5) == [(0, 5)]
    assert plan_windows([False] * 11, 5) == [(0, 5), (3, 8), (6, 11)]
    assert plan_windows([False] * 4 + [True] * 4, 5) == [(1, 6), (0, 5)]  # the first leaves out frame 1
    assert plan_windows([False] * 7 + [True] * 4, 5) == [(4, 9), (2, 7), (0, 5)]
    assert plan_windows([True] * 5, 5) == []


def long_clip(pipeline: VideoPipeline, known: KnownLatent, **changes: object) -> LongClip:
    frames = 1 + 4 * (known.clean.shape[1] - 1)
    config = replace(pipeline.defaults, frames=frames, **changes)  # type: ignore[arg-type]
    return LongClip(pipeline, known, config, 3, length=3)


def test_frames_come_as_soon_as_they_are_whole_and_in_order(pipeline: VideoPipeline) -> None:
    evaluations: list[int] = []
    clip = long_clip(pipeline, free_latent((4, 9, 4, 6)), guidance=1.0)
    parts, counts = [], []
    for part in clip.denoise("a red circle", on_evaluation=lambda: evaluations.append(1)):
        parts.append(part)
        counts.append(len(evaluations))
    assert [part.shape[1] for part in parts] == [3, 1, 1, 1, 1, 1, 1]
    assert counts == [3 * (i + 1) for i in range(7)]  # three steps a window: none is waited for
    assert torch.equal(torch.cat(parts, dim=1), clip.clean)
    (first,) = pipeline.sample([ClipRequest("a red circle", 3)], replace(clip.config, frames=9))
    assert torch.equal(parts[0], first)  # the first window is the clip that it would be alone


def test_what_is_given_stays_and_comes_first(pipeline: VideoPipeline) -> None:
    known = free_latent((4, 8, 4, 6))
    known.clean[:, :4], known.weight[:4] = torch.randn(4, 4, 4, 6), 1
    evaluations: list[int] = []
    clip = long_clip(pipeline, known).denoise("a red circle", on_evaluation=lambda: evaluations.append(1))
    assert torch.equal(next(clip), known.clean[:, :4])
    assert evaluations == []  # nothing is waited for
    assert sum(part.shape[1] for part in clip) == 4
    backward = KnownLatent(known.clean.flip(1), known.weight.flip(0))
    parts = list(long_clip(pipeline, backward).denoise("a red circle"))
    assert len(parts) == 1  # the first frame is the last to be found
    assert torch.equal(parts[0][:, 4:], backward.clean[:, 4:])


def test_no_frame_within_a_clip_is_made_as_one_that_stands_alone(
    pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = free_latent((4, 10, 4, 6))
    known.clean[:, 6:], known.weight[6:] = torch.randn(4, 4, 4, 6), 1
    clip = long_clip(pipeline, known, adain=0.0)
    clip.length = 5

    def mark_first(prompt: str, text: TextContext, part: slice, on_evaluation: Callable[[], object]) -> Tensor:
        latent = torch.full_like(clip.clean[:, part], 2.0)
        latent[:, 0] = 1.0  # as a model makes the first frame of a clip, without motion
        return torch.where((clip.weight[part] == 1).flatten(1).all(1)[:, None, None], clip.clean[:, part], latent)

    monkeypatch.setattr(clip, "denoise_window", mark_first)
    latent = torch.cat(list(clip.denoise("a red circle")), dim=1)
    assert latent[0, :6, 0, 0].tolist() == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert torch.equal(latent[:, 6:], known.clean[:, 6:])


def test_a_clip_can_go_on_under_another_prompt(pipeline: VideoPipeline) -> None:
    clips = [long_clip(pipeline, free_latent((4, 6, 4, 6))) for _ in range(2)]
    same = torch.cat([*clips[0].denoise("a red circle", 3), *clips[0].denoise("a red circle")], dim=1)
    other = torch.cat([*clips[1].denoise("a red circle", 3), *clips[1].denoise("a blue star")], dim=1)
    assert same.shape[1] == other.shape[1] == 6
    assert torch.equal(same[:, :3], other[:, :3])
    assert not torch.isclose(same[:, 3:], other[:, 3:]).all()


def drifting(clip: LongClip, monkeypatch: pytest.MonkeyPatch) -> LongClip:
    """Let each window of a clip have half as much contrast again as the one before it, as networks do."""
    denoise_window = clip.denoise_window

    def amplify(prompt: str, text: TextContext, part: slice, on_evaluation: Callable[[], object]) -> Tensor:
        denoised = denoise_window(prompt, text, part, on_evaluation)
        is_known = (clip.weight[part] == 1).flatten(1).all(1)
        return torch.where(is_known[:, None, None], denoised, denoised / denoised.std() * 1.5**clip.num_windows)

    monkeypatch.setattr(clip, "denoise_window", amplify)
    return clip


def test_later_windows_keep_the_statistics_of_the_first(
    pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    deviations = {}
    for adain in (0.0, 0.5, 1.0):
        clip = drifting(long_clip(pipeline, free_latent((4, 9, 4, 6)), adain=adain), monkeypatch)
        latent = torch.cat(list(clip.denoise("a red circle")), dim=1)
        first, last = latent[:, 1:3], latent[:, -1:]
        deviations[adain] = (last.std((1, 2, 3)) / first.std((1, 2, 3))).tolist()
        if adain == 1:
            torch.testing.assert_close(last.mean((1, 2, 3)), first.mean((1, 2, 3)))
    assert deviations[1.0] == pytest.approx([1.0] * 4, abs=1e-3)
    assert min(deviations[0.0]) > 3
    assert all(1 < half < whole for half, whole in zip(deviations[0.5], deviations[0.0], strict=True))


def test_an_extension_takes_the_statistics_of_the_given_clip_forward_and_backward(
    pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = free_latent((4, 8, 4, 6))
    known.clean[:, :4], known.weight[:4] = 0.3 * torch.randn(4, 4, 4, 6) + 1, 1
    for given, made in ((known, slice(4, None)), (KnownLatent(known.clean.flip(1), known.weight.flip(0)), slice(1, 4))):
        clip = drifting(long_clip(pipeline, given, adain=1.0), monkeypatch)
        latent = torch.cat(list(clip.denoise("a red circle")), dim=1)
        assert latent[:, made].std().item() == pytest.approx(0.3, abs=0.05)
        assert latent[:, made].mean().item() == pytest.approx(1, abs=0.1)


def test_a_scene_of_another_prompt_has_statistics_of_its_own(
    pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = drifting(long_clip(pipeline, free_latent((4, 13, 4, 6)), adain=1.0), monkeypatch)
    clip.length = 4
    latent = torch.cat([*clip.denoise("a red circle", 6), *clip.denoise("a blue star")], dim=1)
    deviation = latent.std((0, 2, 3))
    assert deviation[4:6].tolist() == pytest.approx([deviation[1:4].mean().item()] * 2, rel=0.2)
    assert deviation[6:8].min() > 1.5 * deviation[4:6].max()
    assert deviation[8:].tolist() == pytest.approx([deviation[6:8].mean().item()] * 5, rel=0.2)


def test_clips_that_were_made_before_adain_are_made_again_without_it() -> None:
    recorded = {"prompt": "a red circle", "seed": 3, "steps": 4}
    assert SampleArgs().sample.adain > 0
    assert apply_recorded_settings(SampleArgs(), recorded).sample.adain == 0
    assert apply_recorded_settings(SampleArgs(), recorded | {"adain": 0.5}).sample.adain == 0.5


def test_a_window_that_leads_to_something_known_is_left_as_it_is(pipeline: VideoPipeline) -> None:
    known = free_latent((4, 5, 4, 6))
    for place in (slice(0, 2), slice(3, 5)):
        known.clean[:, place], known.weight[place] = torch.randn(4, 2, 4, 6), 1
    latents = [
        torch.cat(list(long_clip(pipeline, known, adain=share).denoise("a red circle")), dim=1) for share in (0.0, 1.0)
    ]
    assert torch.equal(*latents)


def test_windows_have_noise_of_their_own() -> None:
    seeds = {window_seed(seed, number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400
    assert window_seed(7, 0) == 7


def test_a_latent_in_any_chunks_is_decoded_to_the_same_frames(pipeline: VideoPipeline) -> None:
    latent = torch.randn(4, 9, 4, 6)
    whole = torch.cat(list(decode_frames(pipeline.vae, latent, torch.device("cpu"))))
    for lengths in ([1] * 9, [3, 1, 5], [5, 4]):
        chunks: list[Tensor] = list(latent.split(lengths, dim=1))
        parts = torch.cat(list(decode_chunks(pipeline.vae, chunks, torch.device("cpu"))))
        assert (parts.int() - whole.int()).abs().max() <= 1  # a value may lie on the border of two integers


def test_the_command_makes_long_clips_in_windows_and_writes_them_as_they_come(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["a red circle", "--model", str(checkpoint), "--steps", "2", "--seconds", "5"]
    assert sample([*words, "--dry-run", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["frames"], row["windows"], row["tokens"]) == (41, 9, 18)
    events: list[str] = []
    sampled, decoded = VideoPipeline.sample, decode_chunks
    from videogen.sampling.clip_sampler import ClipSampler

    def record_sample(self: ClipSampler, *args: object, **options: object) -> list[Tensor]:
        events.append("window")
        return sampled(self, *args, **options)  # type: ignore[arg-type]

    def record_frames(*args: object) -> object:
        for frames in decoded(*args):  # type: ignore[arg-type]
            events.append("frames")
            yield frames

    monkeypatch.setattr(ClipSampler, "sample", record_sample)
    monkeypatch.setattr("videogen.models.streaming.decode_chunks", record_frames)
    assert sample([*words, "--out", str(tmp_path / "a.mp4")]) == 0
    assert events == ["window", "frames"] * 9
    assert probe(tmp_path / "a.mp4").num_frames == 41
    assert sample([*words, "--save-latents", "--out", str(tmp_path / "b.mp4")]) == 0
    assert (tmp_path / "a.mp4").stat().st_size == pytest.approx((tmp_path / "b.mp4").stat().st_size, rel=0.01)


def test_a_clip_twice_as_long_as_those_of_training_is_made_at_once(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["a red circle", "--model", str(checkpoint), "--dry-run", "--json"]
    rows = []
    for more in (["--frames", "21"], ["--frames", "25"], ["--frames", "41", "--position-scaling", "riflex"]):
        assert sample([*words, *more]) == 0
        rows.append(json.loads(capsys.readouterr().out))
    assert ["windows" in row for row in rows] == [False, True, False]
