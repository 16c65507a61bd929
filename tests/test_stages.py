"""Batches of the stages: packs in several patch sizes, drawn clips, latents that training a decoder keeps."""

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import assert_same_state, elsewhere, fit, seeded, tiny_recipe
from videogen.config.sizes import parse_patch
from videogen.config.train import DataConfig, DitConfig, TrainConfig
from videogen.data.folder import Clip, VideoFolder
from videogen.models.vae import VideoVAE
from videogen.packing.packs import pack
from videogen.packing.patch_schedule import Patch, patch_name
from videogen.toybox import caption, draw_scene
from videogen.toybox.dataset import ToyboxClips
from videogen.training.dit_stage import DitStage
from videogen.training.dry_run import plan_folder
from videogen.training.flow_matching import sample_levels
from videogen.training.frozen_models import encoder_id
from videogen.training.pack_plan import num_entry_tokens
from videogen.training.run_checkpoints import Stretch
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer
from videogen.training.vae_stage import VaeStage

COARSE = (1, 2, 4)


@pytest.fixture
def recipe(clips_folder: Path, checkpoint: Path, tmp_path: Path) -> TrainConfig:
    """A recipe of drawn clips in two patch sizes, the coarse one in two steps of five."""
    base = tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run", steps=5, save_every=2, val_every=5)
    data = DataConfig(toybox=24, toybox_sizes=("64x48", "48x48"), toybox_lengths=(5, 1), token_budget=96, val_clips=4)
    return replace(base, data=data, dit=replace(base.dit, patches={"1x2x4": 0.4}))


def dit_stage(recipe: TrainConfig) -> DitStage:
    stage = make_stage(recipe)
    assert isinstance(stage, DitStage)
    return stage


@pytest.mark.parametrize("patches", [{"1x2x4": 0.4}, {"1x2x4": 0.2, "1x1x1": 0.5}, {"1x1x1": 1.0}, {"1x2x4": 0.0}])
def test_every_patch_size_has_its_share_of_any_run_of_steps(recipe: TrainConfig, patches: dict[str, float]) -> None:
    stage = dit_stage(replace(recipe, dit=replace(recipe.dit, patches=patches)))
    sizes = [stage.patch_of_step(step) for step in range(1000)]
    shares = {parse_patch(name): share for name, share in patches.items()}
    shares |= {stage.model.base_patch: 1 - sum(shares.values())}
    for patch, share in shares.items():
        for first, num in ((0, 1000), (0, 10), (333, 20), (500, 100)):
            assert abs(sizes[first : first + num].count(patch) - share * num) < 2.5, (patch, first, num)


def test_an_epoch_of_a_patch_size_has_every_clip_that_it_divides_once(recipe: TrainConfig) -> None:
    stage = dit_stage(recipe)
    for patch in stage.model.patches:
        lengths = {index: num_entry_tokens(stage.folder.entries[index], patch) for index in stage.train_indices}
        usable = {
            i for i in stage.train_indices if lengths[i] and (patch != COARSE or stage.folder.entries[i].frames > 1)
        }
        assert usable, patch
        packs = [indices for epoch, indices in islice(stage.packs(patch), 60) if epoch == 1]
        assert sorted(index for indices in packs for index in indices) == sorted(usable)
        assert all(sum(lengths[index] for index in indices) <= 96 for indices in packs)
    assert {stage.folder.entries[i].width for _, indices in islice(stage.packs(COARSE), 20) for i in indices} == {64}


def test_token_counts_equal_the_lengths_of_packed_latents(recipe: TrainConfig) -> None:
    stage = dit_stage(recipe)
    for index, entry in enumerate(stage.folder.entries[:8]):
        latent = stage.load_clips([index]).latents[0]
        for patch in stage.model.patches:
            if n := num_entry_tokens(entry, patch):
                assert pack([latent], patch).lengths == (n,)
    wide = next(entry for entry in stage.folder.entries if entry.width == 48)
    assert num_entry_tokens(wide, COARSE) == 0  # six cells are no multiple of four


def test_batches_with_two_patch_sizes_are_the_same_from_any_start(recipe: TrainConfig) -> None:
    stage = dit_stage(recipe)
    whole = list(islice(stage.batches(0), 9))
    for start in range(1, 9):
        for expected, batch in zip(whole[start:], stage.batches(start), strict=False):
            assert batch.patch == expected.patch
            assert batch.captions == expected.captions
            assert np.array_equal(batch.tokens, expected.tokens)
            assert np.array_equal(batch.sigmas, expected.sigmas)


def test_two_processes_have_the_same_patch_size_and_different_clips(recipe: TrainConfig) -> None:
    stage = dit_stage(replace(recipe, dit=replace(recipe.dit, caption_dropout=0.0)))
    ranks = [list(islice(stage.batches(rank, 2), 40)) for rank in (0, 1)]
    assert [batch.patch for batch in ranks[0]] == [batch.patch for batch in ranks[1]]
    assert {batch.patch for batch in ranks[0]} == set(stage.model.patches)
    for rank, batches in enumerate(ranks):
        resumed = islice(stage.batches(2 * 7 + rank, 2), 5)
        assert [batch.captions for batch in resumed] == [batch.captions for batch in batches[7:12]]
    epoch = [indices for number, indices in islice(stage.packs(COARSE), 40) if number == 0]
    captions = [batch.captions for pair in zip(*ranks, strict=True) for batch in pair if batch.patch == COARSE]
    assert all([stage.folder.caption(index) for index in indices] in captions for indices in epoch)


def test_a_run_with_two_patch_sizes_resumes_bit_for_bit(recipe: TrainConfig, tmp_path: Path) -> None:
    assert fit(recipe)
    short = elsewhere(recipe, tmp_path / "again", minutes=0.0001)
    while not fit(short):  # its time is over after every step
        pass
    assert_same_state(recipe.run.dir, short.run.dir, 5)


def test_noise_levels_stay_within_the_given_range() -> None:
    video = pack([torch.zeros(4, 5, 8, 8)] * 200, (1, 4, 4))
    levels = sample_levels(
        video, {"nothing": 1.0}, base_tokens=5, uniform=0.5, generator=seeded(), sigma_range=(0.3, 0.9)
    )
    assert 0.3 <= levels.values.min() < 0.33
    assert 0.87 < levels.values.max() <= 0.9


def test_patch_tokens_shift_the_levels_of_their_patch_size_alone(recipe: TrainConfig) -> None:
    means: list[dict[Patch, float]] = []
    for patch_tokens in ({}, {"1x2x4": 1}):
        stage = dit_stage(replace(recipe, dit=replace(recipe.dit, patch_tokens=patch_tokens, known={"nothing": 1.0})))
        sigmas: dict[Patch, list[float]] = {patch: [] for patch in stage.model.patches}
        for batch in islice(stage.batches(0), 60):
            sigmas[batch.patch].append(float(batch.sigmas[batch.level_index].mean()))
        means.append({patch: sum(values) / len(values) for patch, values in sigmas.items()})
    usual, shifted = means
    assert shifted[stage.model.base_patch] == usual[stage.model.base_patch]
    assert shifted[COARSE] > usual[COARSE] + 0.02


def test_each_patch_size_trains_within_its_range_of_levels(recipe: TrainConfig) -> None:
    levels = {"1x2x4": (0.6, 1.0), "1x2x2": (0.0, 0.5)}
    stage = dit_stage(replace(recipe, dit=replace(recipe.dit, patch_levels=levels, known={"nothing": 1.0})))
    for batch in islice(stage.batches(0), 20):
        low, high = levels[patch_name(batch.patch)]
        assert low <= batch.sigmas.min()
        assert batch.sigmas.max() <= high


def test_images_are_trained_in_no_patch_size_coarser_than_the_base(recipe: TrainConfig) -> None:
    stage = dit_stage(replace(recipe, dit=replace(recipe.dit, patches={"1x2x4": 0.2, "1x1x1": 0.4})))
    for patch, has_images in (((1, 1, 1), True), ((1, 2, 2), True), (COARSE, False)):
        packed = {index for _, indices in islice(stage.packs(patch), 20) for index in indices}
        assert any(stage.folder.entries[index].frames == 1 for index in packed) == has_images


def test_every_trained_patch_size_has_a_validation_loss(recipe: TrainConfig) -> None:
    metrics = dit_stage(recipe).validate()
    assert metrics.keys() == {"loss", "loss_1x2x4"}
    assert all(map(math.isfinite, metrics.values()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": {"1x4": 0.3}}, "a patch must be TxHxW in latent cells"),
        ({"patches": {"1x2x2": 0.3}}, "sizes beside dit.patch_size, each once"),
        ({"patches": {"1x4x4": 0.6, "1x1x1": 0.5}}, "shares of 0 or more and at most 1 in all"),
        ({"patch_levels": {"1x4x4": (0.5, 1.0)}}, "1x4x4 is no patch size of this recipe"),
        ({"patch_levels": {"1x2x2": (0.9, 0.5)}}, "must rise within 0..1"),
        ({"patch_tokens": {"1x2x2": 0}}, "must be 1 or more"),
    ],
)
def test_wrong_patch_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DitConfig(**options)


def test_a_patch_size_in_which_a_clip_exceeds_the_budget_is_refused(recipe: TrainConfig) -> None:
    small = replace(recipe, data=replace(recipe.data, token_budget=95), dit=replace(recipe.dit, patches={"1x1x1": 0.4}))
    message = "the longest clip, of 96 tokens in patches of 1x1x1, and is 95; give --data.token-budget 96 or more$"
    for check in (make_stage, plan_folder):
        with pytest.raises(ValueError, match=message):
            check(small)
    make_stage(replace(small, dit=replace(recipe.dit, patches={"1x1x1": 0.0})))  # no step has this patch size


def test_a_patch_size_that_divides_no_clip_is_refused(recipe: TrainConfig) -> None:
    uneven = replace(recipe, dit=replace(recipe.dit, patches={"3x2x2": 0.4}))
    for check in (make_stage, plan_folder):
        with pytest.raises(ValueError, match="3x2x2 have 40% of the steps, and no clip here is trained in them"):
            check(uneven)
    dit_stage(replace(recipe, dit=replace(recipe.dit, patches={"3x2x2": 0.0})))  # the model has it, untrained
    uneven_base = replace(recipe, dit=replace(recipe.dit, patch_size=(3, 2, 2), patches={}))
    for check in (make_stage, plan_folder):
        with pytest.raises(ValueError, match="3x2x2 have 100% of the steps, and no clip here is trained in them"):
            check(uneven_base)


def test_clips_that_no_patch_size_divides_are_counted_in_a_warning(
    recipe: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    coarse = replace(recipe, dit=replace(recipe.dit, patch_size=(1, 2, 4), patches={"1x2x2": 0.0}))
    coarse = replace(coarse, sample=replace(recipe.sample, size="64x32"))
    for check in (make_stage, plan_folder):
        caplog.clear()
        check(coarse)
        (warning,) = [record.getMessage() for record in caplog.records if "are not trained" in record.getMessage()]
        stage = dit_stage(coarse)
        num_untrained = sum(not stage.lengths[COARSE][index] for index in stage.train_indices)
        assert num_untrained > 0
        assert warning.startswith(
            f"{num_untrained} of {len(stage.train_indices)} clips are not trained: no patch of 1x2x4"
        )


def test_a_clip_shorter_than_its_header_says_is_skipped_where_the_patch_does_not_divide_it(
    own_clips: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packs are planned from headers, which may promise more frames than the file has."""
    base = tiny_recipe("dit", own_clips, checkpoint, tmp_path / "run", steps=2)
    base = replace(base, dit=replace(base.dit, patch_size=(2, 2, 2)))
    stage = dit_stage(base)
    index = next(i for i in stage.train_indices if stage.lengths[2, 2, 2][i])
    patch, path = (2, 2, 2), stage.folder.entries[index].path  # type: ignore[union-attr]
    assert len(stage.load_clips([index], patch).latents) == 1
    original = VideoFolder.read

    def read_one_frame(folder: VideoFolder, number: int, epoch: int = 0) -> Clip:
        clip = original(folder, number, epoch)
        return clip._replace(video=clip.video[:, :1]) if number == index else clip

    monkeypatch.setattr(VideoFolder, "read", read_one_frame)
    stage = dit_stage(replace(base, run=replace(base.run, dir=tmp_path / "again")))
    assert stage.load_clips([index], patch).latents == []
    assert dict(stage.folder.problems)[path] == "it ends before its header says, and 2x2x2 does not divide it"  # type: ignore[union-attr]


def test_a_sample_patch_that_the_model_lacks_is_refused_before_the_first_step(recipe: TrainConfig) -> None:
    with pytest.raises(ValueError, match="1x4x4"):
        make_stage(replace(recipe, sample=replace(recipe.sample, patch="1x4x4:0.4,1x2x2")))


def test_settings_that_dit_init_overrides_and_a_different_vae_are_warned_of(
    recipe: TrainConfig, checkpoint: Path, own_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = own_checkpoint / "vae" / "config.json"
    stats = json.loads(config.read_text(encoding="utf-8"))
    stats["latents_std"] = [2 * value for value in stats["latents_std"]]
    config.write_text(json.dumps(stats), encoding="utf-8")
    make_stage(replace(recipe, dit=replace(recipe.dit, init=checkpoint, num_layers=5, patches={})))
    assert "dit.num_layers = 5 is left aside" in caplog.text
    assert "denoises latents of its own VAE" not in caplog.text
    make_stage(replace(recipe, dit=replace(recipe.dit, init=own_checkpoint, patches={})))
    assert f"{own_checkpoint} denoises latents of its own VAE, and those of {checkpoint} are others" in caplog.text


# --- drawn clips


def test_drawn_clips_are_scenes_of_the_toybox() -> None:
    clips = ToyboxClips(DataConfig(toybox=30), (1, 2, 2), seed=3)
    more = ToyboxClips(DataConfig(toybox=40), (1, 2, 2), seed=3)
    assert more.entries[:30] == clips.entries
    assert ToyboxClips(DataConfig(toybox=30), (1, 2, 2), seed=4).entries != clips.entries
    for index, entry in enumerate(clips.entries[:10]):
        scene, clip = draw_scene(entry.seed), clips.read(index)
        assert clip.caption == clips.caption(index) == caption(scene, scene.seed)
        assert clip.video.shape == (3, scene.num_frames, scene.height, scene.width)
        assert (entry.frames, entry.height, entry.width) == clip.video.shape[1:]
        assert -1 <= clip.video.min() < clip.video.max() <= 1
    assert more.names()[:30] == clips.names()


def test_epochs_read_the_captions_of_a_drawn_clip_in_turn_some_of_them_in_free_english() -> None:
    clips = ToyboxClips(DataConfig(toybox=30, toybox_captions=4, toybox_free=0.5), (1, 2, 2), seed=3)
    captions = [[clips.caption(index, epoch) for epoch in range(4)] for index in range(30)]
    assert [clips.caption(0, epoch) for epoch in range(4, 8)] == captions[0]
    scenes = [draw_scene(entry.seed) for entry in clips.entries]
    plain = [
        caption(scene, scene.seed + epoch) == captions[index][epoch]
        for index, scene in enumerate(scenes)
        for epoch in range(4)
    ]
    assert 40 < sum(plain) < 80  # half of 120
    assert len({text for texts in captions for text in texts}) > 110
    more = ToyboxClips(DataConfig(toybox=30, toybox_captions=6, toybox_free=0.5), (1, 2, 2), seed=3)
    assert [more.caption(5, epoch) for epoch in range(4)] == captions[5]
    with pytest.raises(ValueError, match=r"data\.toybox_free must be a share, 0 to 1, got 1\.5"):
        DataConfig(toybox=3, toybox_free=1.5)


def test_sizes_and_lengths_that_the_toybox_cannot_draw_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        DataConfig(toybox=3, toybox_sizes=("50x48",))
    with pytest.raises(ValueError, match=r"frames must be 1 \+ a multiple of 4, got 6"):
        DataConfig(toybox=3, toybox_lengths=(6,))


def test_a_folder_beside_drawn_clips_is_refused() -> None:
    with pytest.raises(ValueError, match=r"draws clips instead of reading my-clips; give --data\.toybox 0 to"):
        DataConfig(toybox=3, folder=Path("my-clips"))
    assert DataConfig(toybox=0, folder=Path("my-clips")).folder == Path("my-clips")


# --- latents of a linear encoder


def test_training_the_decoder_leaves_a_linear_encoder_s_latents_unchanged(
    clips_folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe("vae", clips_folder, checkpoint, tmp_path / "run")
    recipe = replace(recipe, vae=replace(recipe.vae, linear_encoder=True), data=DataConfig(toybox=20, val_clips=2))
    stage = make_stage(recipe)
    assert isinstance(stage, VaeStage)
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    stage.export(tmp_path / "first")
    assert Trainer(stage, recipe).fit()
    after = stage.model.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "mask_token"}
    first, last = (
        VideoVAE.from_pretrained(folder / "vae") for folder in (tmp_path / "first", recipe.run.dir / "checkpoint")
    )
    assert encoder_id(first) == encoder_id(last)
    video = ToyboxClips(recipe.data, (1, 2, 2)).read(0).video[None]
    assert torch.equal(first.encode(video), last.encode(video))
    chunks = [video[:, :, :1], *video[:, :, 1:].split(4, dim=2)]
    streamed = torch.cat(list(last.encode_stream(iter(chunks))), dim=2)
    torch.testing.assert_close(streamed, last.encode(video), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_the_last_share_of_the_vaes_steps_trains_whole_clips_in_any_number_of_processes(
    num_processes: int, finished: dict[str, TrainConfig]
) -> None:
    recipe = finished["vae"]
    stage = VaeStage(replace(recipe, vae=replace(recipe.vae, whole_share=0.25)))
    for rank in range(num_processes):
        requests = list(islice(stage.crop_requests(rank, num_processes), recipe.run.steps))
        assert [request.whole for request in requests] == [False] * 6 + [True] * 2
        assert [request.number for request in requests] == [step * num_processes + rank for step in range(8)]
    resumed = next(stage.crop_requests(1, 2, [Stretch(1, 6)]))
    assert resumed == (7, True)
