"""Longer and larger than trained: each axis keeps within what it has seen, and at the trained size nothing changes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertModel, PreTrainedTokenizerFast

from tests.conftest import CHANNELS, TEXT_DIM, tiny_dit
from videogen.cli.main import sample
from videogen.config.parsing import to_mapping
from videogen.config.sample import POSITION_SCALINGS, SampleConfig
from videogen.data.video_io import read_settings
from videogen.models.rope import SCALINGS, Rotary, axis_sizes, frequencies, rotary
from videogen.models.vae import VideoVAE
from videogen.packing.noise import per_clip
from videogen.packing.packs import Grid, PackedVideo, Scaling, pack, pack_texts, recut
from videogen.packing.patch_schedule import Patch
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.sweep.axes import read_axes
from videogen.sweep.plan import Run
from videogen.sweep.shared_calls import BatchedRuns

FINE, COARSE = (1, 2, 2), (1, 4, 4)
TRAINED: Grid = (5, 4, 4)
LARGER: list[Grid] = [(9, 4, 4), (5, 8, 4), (5, 4, 7), (10, 6, 8)]
SIZE, THETA = 64, 1e4
CPU = torch.device("cpu")


def ladder(kind: str | None, grid: Grid, axis: int, patch: Patch = FINE) -> Tensor:
    scaling = Scaling(kind, TRAINED) if kind else None
    return frequencies(axis_sizes(SIZE)[axis], axis, THETA, grid, patch, FINE, scaling)


def table(grids: tuple[Grid, ...], kind: str | None, patch: Patch = FINE) -> Rotary:
    return rotary(grids, patch, SIZE, CPU, scaling=Scaling(kind, TRAINED) if kind else None)


def test_every_setting_but_none_is_a_way_to_scale() -> None:
    assert set(POSITION_SCALINGS) == {"none", *SCALINGS}


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("grid", [TRAINED, (1, 4, 4), (3, 2, 4)])
def test_a_clip_within_the_trained_size_is_told_as_ever(kind: str, grid: Grid) -> None:
    assert all(map(torch.equal, table((grid,), kind), table((grid,), None)))


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("grid", LARGER)
def test_an_axis_within_the_trained_size_is_told_as_ever(kind: str, grid: Grid) -> None:
    for axis in range(3):
        if grid[axis] <= TRAINED[axis]:
            assert torch.equal(ladder(kind, grid, axis), ladder(None, grid, axis))


@pytest.mark.parametrize("grid", LARGER)
def test_interpolation_puts_the_larger_clip_on_the_trained_one(grid: Grid) -> None:
    """Place m of the larger clip turns as place m / scale of the trained one."""
    for axis in range(3):
        scale = max(1.0, grid[axis] / TRAINED[axis])
        torch.testing.assert_close(ladder("interpolate", grid, axis) * scale, ladder(None, grid, axis))


@pytest.mark.parametrize("grid", LARGER)
def test_ntk_is_another_base_of_the_ladder(grid: Grid) -> None:
    """b' = b * scale^(d / (d - 2)): the fastest pair stays, the slowest is interpolated."""
    for axis, size in enumerate(axis_sizes(SIZE)):
        scale = max(1.0, grid[axis] / TRAINED[axis])
        base = THETA * scale ** (size / (size - 2))
        found = ladder("ntk", grid, axis)
        torch.testing.assert_close(found, base ** (-torch.arange(0, size, 2).double() / size))
        assert found[0] == 1
        torch.testing.assert_close(found[-1] * scale, ladder(None, grid, axis)[-1])


def test_ntk_of_a_single_pair_is_the_pair() -> None:
    assert torch.equal(SCALINGS["ntk"](torch.ones(1).double(), 4, 8, 0), torch.ones(1).double())


def test_riflex_slows_one_frequency_of_time_to_less_than_a_period() -> None:
    grid, plain = (9, 8, 8), ladder(None, (9, 8, 8), 0)
    found = ladder("riflex", grid, 0)
    assert (found != plain).nonzero().flatten().tolist() == [0]  # its period of 2 pi frames holds 5, not 9
    assert found[0] == 0.9 * 2 * math.pi / 9
    for axis in (1, 2):
        assert torch.equal(ladder("riflex", grid, axis), ladder(None, grid, axis))
    long = SCALINGS["riflex"](plain, 40.0, 41.0, 0)
    first = int((plain > 2 * math.pi / 40).sum())  # the fastest that did not come round in training
    assert plain[first] * 40 < 2 * math.pi < plain[first - 1] * 40
    assert torch.equal(long[:first], plain[:first])
    assert torch.equal(long[first + 1 :], plain[first + 1 :])


@pytest.mark.parametrize("kind", [None, *SCALINGS])
def test_each_clip_of_a_pack_is_scaled_by_its_own_size(kind: str | None) -> None:
    grids = (TRAINED, *LARGER, (1, 2, 2))
    together = table(grids, kind)
    alone = [table((grid,), kind) for grid in grids]
    assert torch.equal(together.cos, torch.cat([one.cos for one in alone]))
    assert torch.equal(together.sin, torch.cat([one.sin for one in alone]))


@pytest.mark.parametrize("kind", SCALINGS)
def test_a_coarse_patch_has_the_frequencies_of_the_fine_ones_it_covers(kind: str) -> None:
    """They go by the extent in base cells, which is the same for every patch size."""
    for axis in range(3):
        assert torch.equal(ladder(kind, (9, 4, 4), axis, COARSE), ladder(kind, (9, 8, 8), axis, FINE))


def test_a_pack_that_is_cut_anew_keeps_its_scaling() -> None:
    video = pack([torch.randn(CHANNELS, 2, 8, 8)], FINE)._replace(scaling=Scaling("ntk", TRAINED))
    assert recut(video, COARSE).scaling == video.scaling


@torch.no_grad()
@pytest.mark.parametrize("kind", SCALINGS)
def test_the_network_sees_the_places_that_the_pack_says(kind: str) -> None:
    words = torch.randn(3, TEXT_DIM)
    dit, small, large = tiny_dit(), torch.randn(CHANNELS, 2, 4, 4), torch.randn(CHANNELS, 9, 8, 8)

    def predict(*clips: Tensor, scaling: Scaling | None) -> tuple[Tensor, ...]:
        video: PackedVideo = pack(clips, FINE)._replace(scaling=scaling)
        levels = per_clip(torch.full((len(clips),), 0.5), video.lengths)
        return dit(video, levels, pack_texts([words] * len(clips))).split(video.lengths)

    scaling = Scaling(kind, (2, 2, 2))
    plain = [predict(clip, scaling=None)[0] for clip in (small, large)]
    assert torch.equal(predict(small, scaling=scaling)[0], plain[0])
    moved = predict(large, scaling=scaling)[0]
    assert (moved - plain[1]).abs().max() > 1e-5  # heads of 12 have two frequencies an axis: little to move
    together = predict(small, large, scaling=scaling)
    for one, both in zip((plain[0], moved), together, strict=True):
        torch.testing.assert_close(one, both, atol=5e-6, rtol=0)  # float32, only the order of sums differs


# --- as a setting


@pytest.fixture(scope="module")
def small(vae: VideoVAE, text_encoder: BertModel, tokenizer: PreTrainedTokenizerFast) -> VideoPipeline:
    """Trained, so its defaults say, on 32x32 pixels and 5 frames."""
    dit = tiny_dit(prediction="clean", extra_patch_sizes=[COARSE])
    defaults = SampleConfig(size="32x32", frames=5, steps=3, guidance=2.0)
    return VideoPipeline(dit, vae, text_encoder, tokenizer, defaults=to_mapping(defaults))


def make(pipeline: VideoPipeline, **changes: object) -> Tensor:
    return pipeline.sample([ClipRequest("a red circle", 0)], replace(pipeline.defaults, **changes))[0]  # type: ignore[arg-type]


def test_the_trained_size_is_that_of_the_checkpoints_defaults(small: VideoPipeline) -> None:
    assert small.scaling_of(small.defaults) is None
    assert small.scaling_of(replace(small.defaults, position_scaling="ntk")) == Scaling("ntk", (2, 2, 2))
    assert torch.equal(make(small), make(small, position_scaling="ntk"))


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("patch", ["", "1x4x4:0.4,1x2x2"])
def test_a_longer_and_larger_clip_is_told_its_places_anew(small: VideoPipeline, kind: str, patch: str) -> None:
    larger = {"size": "64x64", "frames": 33, "patch": patch}
    assert (make(small, **larger) - make(small, **larger, position_scaling=kind)).abs().max() > 1e-4


def test_a_sweep_tells_the_scalings_apart(small: VideoPipeline) -> None:
    axes = read_axes([f"position_scaling={','.join(POSITION_SCALINGS)}"])
    assert axes[0].places == tuple((kind,) for kind in POSITION_SCALINGS)
    larger = replace(small.defaults, size="64x32", frames=9)
    runs = [Run("a red circle", 0, replace(larger, position_scaling=kind)) for kind in ("none", "ntk")]
    packer = BatchedRuns(small)
    assert [len(one) for one in packer.packs(runs)] == [1, 1]
    for run in runs:
        latent = packer.denoise([run])[0].latent
        assert latent is not None
        torch.testing.assert_close(
            latent, small.sample([ClipRequest(run.prompt, 0)], run.config)[0], atol=2e-4, rtol=0
        )  # as alone, up to the order of sums


def test_the_command_takes_it_and_the_clip_says_it(
    small: VideoPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.save_pretrained(tmp_path / "model")
    order = ["a red circle", "--model", str(tmp_path / "model"), "--size", "64x32", "--position-scaling"]
    assert sample([*order, "ntk", "--out", str(tmp_path / "a.mp4")]) == 0
    assert read_settings(tmp_path / "a.mp4")["position_scaling"] == "ntk"
    capsys.readouterr()
    assert sample([*order, "yarn", "--dry-run", "--json"]) == 2
    said = capsys.readouterr().err
    assert "position_scaling must be one of none, interpolate, ntk, riflex, got 'yarn'" in said
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["defaults"]["position_scaling"] == "none"
