"""Position scaling for clips longer or larger than trained; at the trained size nothing changes."""

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
from videogen.models.rope import FREQUENCY_SCALINGS, THETA, Rotary, axis_frequencies, axis_sizes, rotary
from videogen.models.vae import VideoVAE
from videogen.packing.noise import levels_per_clip
from videogen.packing.packs import Grid, PackedVideo, RopeScaling, pack, pack_texts, repatch
from videogen.packing.patch_schedule import Patch
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.sweep.axes import read_axes
from videogen.sweep.plan import Run
from videogen.sweep.shared_calls import BatchedRuns

FINE, COARSE = (1, 2, 2), (1, 4, 4)
TRAINED: Grid = (5, 4, 4)
LARGER: list[Grid] = [(9, 4, 4), (5, 8, 4), (5, 4, 7), (10, 6, 8)]
SIZE = 64
CPU = torch.device("cpu")


def frequencies(kind: str | None, grid: Grid, axis: int, patch: Patch = FINE) -> Tensor:
    scaling = RopeScaling(kind, TRAINED) if kind else None
    return axis_frequencies(axis_sizes(SIZE)[axis], axis, grid, patch, FINE, scaling)


def table(grids: tuple[Grid, ...], kind: str | None, patch: Patch = FINE) -> Rotary:
    return rotary(grids, patch, SIZE, CPU, scaling=RopeScaling(kind, TRAINED) if kind else None)


def test_every_setting_but_none_is_a_frequency_scaling() -> None:
    assert set(POSITION_SCALINGS) == {"none", *FREQUENCY_SCALINGS}


@pytest.mark.parametrize("kind", FREQUENCY_SCALINGS)
@pytest.mark.parametrize("grid", [TRAINED, (1, 4, 4), (3, 2, 4)])
def test_a_clip_within_the_trained_size_keeps_its_rotary_tables(kind: str, grid: Grid) -> None:
    assert all(map(torch.equal, table((grid,), kind), table((grid,), None)))


@pytest.mark.parametrize("kind", FREQUENCY_SCALINGS)
@pytest.mark.parametrize("grid", LARGER)
def test_an_axis_within_the_trained_extent_keeps_its_frequencies(kind: str, grid: Grid) -> None:
    for axis in range(3):
        if grid[axis] <= TRAINED[axis]:
            assert torch.equal(frequencies(kind, grid, axis), frequencies(None, grid, axis))


@pytest.mark.parametrize("grid", LARGER)
def test_interpolation_maps_the_larger_clip_onto_the_trained_extent(grid: Grid) -> None:
    """Position m of the larger clip has the angles of position m / scale of the trained one."""
    for axis in range(3):
        scale = max(1.0, grid[axis] / TRAINED[axis])
        torch.testing.assert_close(frequencies("interpolate", grid, axis) * scale, frequencies(None, grid, axis))


@pytest.mark.parametrize("grid", LARGER)
def test_ntk_is_another_base_of_the_frequencies(grid: Grid) -> None:
    """b' = b * scale^(d / (d - 2)): the fastest pair stays, the slowest is interpolated."""
    for axis, size in enumerate(axis_sizes(SIZE)):
        scale = max(1.0, grid[axis] / TRAINED[axis])
        base = THETA * scale ** (size / (size - 2))
        scaled = frequencies("ntk", grid, axis)
        torch.testing.assert_close(scaled, base ** (-torch.arange(0, size, 2).double() / size))
        assert scaled[0] == 1
        torch.testing.assert_close(scaled[-1] * scale, frequencies(None, grid, axis)[-1])


def test_ntk_keeps_the_frequency_of_a_single_pair() -> None:
    assert torch.equal(FREQUENCY_SCALINGS["ntk"](torch.ones(1).double(), 4, 8, 0), torch.ones(1).double())


def test_riflex_slows_one_frequency_of_time_to_less_than_one_period() -> None:
    grid, plain = (9, 8, 8), frequencies(None, (9, 8, 8), 0)
    scaled = frequencies("riflex", grid, 0)
    assert (scaled != plain).nonzero().flatten().tolist() == [0]  # its period of 2 pi frames holds 5, not 9
    assert scaled[0] == 0.9 * 2 * math.pi / 9
    for axis in (1, 2):
        assert torch.equal(frequencies("riflex", grid, axis), frequencies(None, grid, axis))
    long = FREQUENCY_SCALINGS["riflex"](plain, 40.0, 41.0, 0)
    slowed = int((plain > 2 * math.pi / 40).sum())  # the fastest that completed no period in training
    assert plain[slowed] * 40 < 2 * math.pi < plain[slowed - 1] * 40
    assert torch.equal(long[:slowed], plain[:slowed])
    assert torch.equal(long[slowed + 1 :], plain[slowed + 1 :])


@pytest.mark.parametrize("kind", [None, *FREQUENCY_SCALINGS])
def test_each_clip_of_a_pack_is_scaled_by_its_own_size(kind: str | None) -> None:
    grids = (TRAINED, *LARGER, (1, 2, 2))
    together = table(grids, kind)
    alone = [table((grid,), kind) for grid in grids]
    assert torch.equal(together.cos, torch.cat([clip.cos for clip in alone]))
    assert torch.equal(together.sin, torch.cat([clip.sin for clip in alone]))


@pytest.mark.parametrize("kind", FREQUENCY_SCALINGS)
def test_a_coarse_patch_has_the_frequencies_of_the_fine_ones_it_covers(kind: str) -> None:
    """They depend on the extent in base cells, which is the same for every patch size."""
    for axis in range(3):
        assert torch.equal(frequencies(kind, (9, 4, 4), axis, COARSE), frequencies(kind, (9, 8, 8), axis, FINE))


def test_a_pack_in_patches_of_another_size_keeps_its_scaling() -> None:
    video = pack([torch.randn(CHANNELS, 2, 8, 8)], FINE)._replace(scaling=RopeScaling("ntk", TRAINED))
    assert repatch(video, COARSE).scaling == video.scaling


@torch.no_grad()
@pytest.mark.parametrize("kind", FREQUENCY_SCALINGS)
def test_the_network_uses_the_scaling_of_the_pack(kind: str) -> None:
    text = torch.randn(3, TEXT_DIM)
    dit, small, large = tiny_dit(), torch.randn(CHANNELS, 2, 4, 4), torch.randn(CHANNELS, 9, 8, 8)

    def predict(*clips: Tensor, scaling: RopeScaling | None) -> tuple[Tensor, ...]:
        video: PackedVideo = pack(clips, FINE)._replace(scaling=scaling)
        levels = levels_per_clip(torch.full((len(clips),), 0.5), video.lengths)
        return dit(video, levels, pack_texts([text] * len(clips))).split(video.lengths)

    scaling = RopeScaling(kind, (2, 2, 2))
    plain_small, plain_large = (predict(clip, scaling=None)[0] for clip in (small, large))
    assert torch.equal(predict(small, scaling=scaling)[0], plain_small)
    scaled_large = predict(large, scaling=scaling)[0]
    assert (scaled_large - plain_large).abs().max() > 1e-5  # heads of 12 have two frequencies an axis to scale
    together = predict(small, large, scaling=scaling)
    for alone, packed in zip((plain_small, scaled_large), together, strict=True):
        torch.testing.assert_close(alone, packed, atol=5e-6, rtol=0)  # float32, only the order of sums differs


# --- the setting position_scaling


@pytest.fixture(scope="module")
def small(vae: VideoVAE, text_encoder: BertModel, tokenizer: PreTrainedTokenizerFast) -> VideoPipeline:
    """A pipeline whose defaults say that it was trained on 32x32 pixels and 5 frames."""
    dit = tiny_dit(prediction="clean", extra_patch_sizes=[COARSE])
    defaults = SampleConfig(size="32x32", frames=5, steps=3, guidance=2.0)
    return VideoPipeline(dit, vae, text_encoder, tokenizer, defaults=to_mapping(defaults))


def sample_latent(pipeline: VideoPipeline, **changes: object) -> Tensor:
    return pipeline.sample([ClipRequest("a red circle", 0)], replace(pipeline.defaults, **changes))[0]  # type: ignore[arg-type]


def test_the_trained_size_is_that_of_the_checkpoints_defaults(small: VideoPipeline) -> None:
    assert small.position_scaling(small.defaults) is None
    assert small.position_scaling(replace(small.defaults, position_scaling="ntk")) == RopeScaling("ntk", (2, 2, 2))
    assert torch.equal(sample_latent(small), sample_latent(small, position_scaling="ntk"))


@pytest.mark.parametrize("kind", FREQUENCY_SCALINGS)
@pytest.mark.parametrize("patch", ["", "1x4x4:0.4,1x2x2"])
def test_scaling_changes_a_longer_and_larger_clip(small: VideoPipeline, kind: str, patch: str) -> None:
    larger = {"size": "64x64", "frames": 33, "patch": patch}
    scaled = sample_latent(small, **larger, position_scaling=kind)
    assert (sample_latent(small, **larger) - scaled).abs().max() > 1e-4


def test_a_sweep_does_not_pack_different_scalings_together(small: VideoPipeline) -> None:
    axes = read_axes([f"position_scaling={','.join(POSITION_SCALINGS)}"])
    assert axes[0].places == tuple((kind,) for kind in POSITION_SCALINGS)
    larger = replace(small.defaults, size="64x32", frames=9)
    runs = [Run("a red circle", 0, replace(larger, position_scaling=kind)) for kind in ("none", "ntk")]
    batch = BatchedRuns(small)
    assert [len(pack) for pack in batch.packs(runs)] == [1, 1]
    for run in runs:
        latent = batch.denoise([run])[0].latent
        assert latent is not None
        alone = small.sample([ClipRequest(run.prompt, 0)], run.config)[0]
        torch.testing.assert_close(latent, alone, atol=2e-4, rtol=0)  # only the order of sums differs


def test_the_command_takes_a_scaling_and_the_video_file_records_it(
    small: VideoPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.save_pretrained(tmp_path / "model")
    arguments = ["a red circle", "--model", str(tmp_path / "model"), "--size", "64x32", "--position-scaling"]
    assert sample([*arguments, "ntk", "--out", str(tmp_path / "a.mp4")]) == 0
    assert read_settings(tmp_path / "a.mp4")["position_scaling"] == "ntk"
    capsys.readouterr()
    assert sample([*arguments, "yarn", "--dry-run", "--json"]) == 2
    message = capsys.readouterr().err
    assert "position_scaling must be one of none, interpolate, ntk, riflex, got 'yarn'" in message
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["defaults"]["position_scaling"] == "none"
