"""What a step of training is made of: packs of two patch sizes, drawn clips, latents that a decoder does not change."""

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
from videogen.toybox.dataset import DrawnClips
from videogen.training.dit_stage import DitStage
from videogen.training.dry_run import plan_folder
from videogen.training.flow_matching import draw_levels
from videogen.training.frozen_models import encoder_id
from videogen.training.pack_plan import num_tokens
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer
from videogen.training.vae_stage import VaeStage

COARSE = (1, 2, 4)


@pytest.fixture
def recipe(clips_folder: Path, checkpoint: Path, tmp_path: Path) -> TrainConfig:
    """Drawn clips in two patch sizes, two steps in five of them coarse."""
    made = tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run", steps=5, save_every=2, val_every=5)
    data = DataConfig(toybox=24, toybox_sizes=("64x48", "48x48"), toybox_lengths=(5, 1), token_budget=96, val_clips=4)
    return replace(made, data=data, dit=replace(made.dit, patches={"1x2x4": 0.4}))


def dit_stage(recipe: TrainConfig) -> DitStage:
    stage = make_stage(recipe)
    assert isinstance(stage, DitStage)
    return stage


@pytest.mark.parametrize("patches", [{"1x2x4": 0.4}, {"1x2x4": 0.2, "1x1x1": 0.5}, {"1x1x1": 1.0}, {"1x2x4": 0.0}])
def test_every_patch_size_has_its_share_of_the_steps_evenly(recipe: TrainConfig, patches: dict[str, float]) -> None:
    stage = dit_stage(replace(recipe, dit=replace(recipe.dit, patches=patches)))
    sizes = [stage.patch_of(step) for step in range(1000)]
    shares = {parse_patch(name): share for name, share in patches.items()}
    shares |= {stage.model.base_patch: 1 - sum(shares.values())}
    for patch, share in shares.items():
        for first, num in ((0, 1000), (0, 10), (333, 20), (500, 100)):
            assert abs(sizes[first : first + num].count(patch) - share * num) < 2.5, (patch, first, num)


def test_every_patch_size_goes_through_the_clips_that_it_divides(recipe: TrainConfig) -> None:
    stage = dit_stage(recipe)
    for patch in stage.model.patches:
        lengths = {index: num_tokens(stage.folder.entries[index], patch) for index in stage.train}
        whole = {i for i in stage.train if lengths[i] and (patch != COARSE or stage.folder.entries[i].frames > 1)}
        assert whole, patch
        packs = [indices for epoch, indices in islice(stage.packs(patch), 60) if epoch == 1]
        assert sorted(index for indices in packs for index in indices) == sorted(whole)
        assert all(sum(lengths[index] for index in indices) <= 96 for indices in packs)
    assert {stage.folder.entries[i].width for _, indices in islice(stage.packs(COARSE), 20) for i in indices} == {64}


def test_tokens_are_counted_as_they_are_cut(recipe: TrainConfig) -> None:
    stage = dit_stage(recipe)
    for index, entry in enumerate(stage.folder.entries[:8]):
        latent = stage.read([index]).latents[0]
        for patch in stage.model.patches:
            if n := num_tokens(entry, patch):
                assert pack([latent], patch).lengths == (n,)
    wide = next(entry for entry in stage.folder.entries if entry.width == 48)
    assert num_tokens(wide, COARSE) == 0  # six cells are no multiple of four


def test_batches_with_two_patch_sizes_go_on_where_a_run_stopped(recipe: TrainConfig) -> None:
    stage = dit_stage(recipe)
    whole = list(islice(stage.batches(0), 9))
    for start in range(1, 9):
        for one, other in zip(whole[start:], stage.batches(start), strict=False):
            assert one.patch == other.patch
            assert one.captions == other.captions
            assert np.array_equal(one.tokens, other.tokens)
            assert np.array_equal(one.sigmas, other.sigmas)


def test_two_processes_have_the_same_patch_size_and_different_clips(recipe: TrainConfig) -> None:
    stage = dit_stage(replace(recipe, dit=replace(recipe.dit, caption_dropout=0.0)))
    shares = [list(islice(stage.batches(rank, 2), 40)) for rank in (0, 1)]
    assert [batch.patch for batch in shares[0]] == [batch.patch for batch in shares[1]]
    assert {batch.patch for batch in shares[0]} == set(stage.model.patches)
    for rank, share in enumerate(shares):
        again = islice(stage.batches(2 * 7 + rank, 2), 5)
        assert [batch.captions for batch in again] == [batch.captions for batch in share[7:12]]
    epoch = [indices for number, indices in islice(stage.packs(COARSE), 40) if number == 0]
    seen = [batch.captions for pair in zip(*shares, strict=True) for batch in pair if batch.patch == COARSE]
    wanted = [[stage.folder.caption(index) for index in indices] for indices in epoch]
    assert all(captions in seen for captions in wanted)


def test_a_run_with_two_patch_sizes_resumes_bit_for_bit(recipe: TrainConfig, tmp_path: Path) -> None:
    assert fit(recipe)
    short = elsewhere(recipe, tmp_path / "again", minutes=0.0001)
    while not fit(short):  # stops after every step
        pass
    assert_same_state(recipe.run.dir, short.run.dir, 5)


def test_patches_learn_no_level_beyond_theirs() -> None:
    video = pack([torch.zeros(4, 5, 8, 8)] * 200, (1, 4, 4))
    levels = draw_levels(video, {"nothing": 1.0}, base_tokens=5, uniform=0.5, generator=seeded(), between=(0.3, 0.9))
    assert 0.3 <= levels.values.min() < 0.33
    assert 0.87 < levels.values.max() <= 0.9


def test_coarse_patches_may_learn_noisier_levels_than_fine_ones(recipe: TrainConfig) -> None:
    """Fine ones keep theirs."""
    means: dict[tuple[bool, Patch], float] = {}
    for given in (False, True):
        tokens = {"1x2x4": 1} if given else {}
        own = replace(recipe, dit=replace(recipe.dit, patch_tokens=tokens, known={"nothing": 1.0}))
        stage = dit_stage(own)
        drawn: dict[Patch, list[float]] = {patch: [] for patch in stage.model.patches}
        for batch in islice(stage.batches(0), 60):
            drawn[batch.patch].append(float(batch.sigmas[batch.levels].mean()))
        means |= {(given, patch): sum(levels) / len(levels) for patch, levels in drawn.items()}
    fine, coarse = (means[False, patch] for patch in (stage.model.base_patch, COARSE))
    assert means[True, stage.model.base_patch] == fine
    assert means[True, COARSE] > coarse + 0.02


def test_each_patch_size_has_its_levels(recipe: TrainConfig) -> None:
    levels = {"1x2x4": (0.6, 1.0), "1x2x2": (0.0, 0.5)}
    stage = dit_stage(replace(recipe, dit=replace(recipe.dit, patch_levels=levels, known={"nothing": 1.0})))
    for batch in islice(stage.batches(0), 20):
        drawn = batch.sigmas
        least, most = levels[patch_name(batch.patch)]
        assert least <= drawn.min()
        assert drawn.max() <= most


def test_images_are_cut_finely_and_not_coarsely(recipe: TrainConfig) -> None:
    stage = dit_stage(replace(recipe, dit=replace(recipe.dit, patches={"1x2x4": 0.2, "1x1x1": 0.4})))
    for patch, seen in (((1, 1, 1), True), ((1, 2, 2), True), (COARSE, False)):
        packed = {index for _, indices in islice(stage.packs(patch), 20) for index in indices}
        assert any(stage.folder.entries[index].frames == 1 for index in packed) == seen


def test_both_patch_sizes_are_validated(recipe: TrainConfig) -> None:
    found = dit_stage(recipe).validate()
    assert found.keys() == {"loss", "loss_1x2x4"}
    assert all(map(math.isfinite, found.values()))


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
def test_wrong_patches_get_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DitConfig(**options)


def test_patches_finer_than_the_budget_holds_are_refused(recipe: TrainConfig) -> None:
    small = replace(recipe, data=replace(recipe.data, token_budget=95), dit=replace(recipe.dit, patches={"1x1x1": 0.4}))
    said = "the longest clip, of 96 tokens in patches of 1x1x1, and is 95; give --data.token-budget 96 or more$"
    for look in (make_stage, plan_folder):
        with pytest.raises(ValueError, match=said):  # drawn clips are of the sizes that are asked for
            look(small)
    make_stage(replace(small, dit=replace(recipe.dit, patches={"1x1x1": 0.0})))  # no step is in them


def test_a_patch_that_divides_no_clip_is_refused(recipe: TrainConfig) -> None:
    uneven = replace(recipe, dit=replace(recipe.dit, patches={"3x2x2": 0.4}))
    for look in (make_stage, plan_folder):
        with pytest.raises(ValueError, match="3x2x2 have 40% of the steps, and no clip here is trained in them"):
            look(uneven)
    dit_stage(replace(recipe, dit=replace(recipe.dit, patches={"3x2x2": 0.0})))  # it is in the model, untrained
    base = replace(recipe, dit=replace(recipe.dit, patch_size=(3, 2, 2), patches={}))
    for look in (make_stage, plan_folder):
        with pytest.raises(ValueError, match="3x2x2 have 100% of the steps, and no clip here is trained in them"):
            look(base)


def test_clips_that_no_patch_divides_are_counted(recipe: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    coarse = replace(recipe, dit=replace(recipe.dit, patch_size=(1, 2, 4), patches={"1x2x2": 0.0}))
    coarse = replace(coarse, sample=replace(recipe.sample, size="64x32"))
    for look in (make_stage, plan_folder):
        caplog.clear()
        look(coarse)
        (said,) = [record.getMessage() for record in caplog.records if "are not trained" in record.getMessage()]
        stage = dit_stage(coarse)
        left = sum(not stage.lengths[COARSE][index] for index in stage.train)
        assert left > 0
        assert said.startswith(f"{left} of {len(stage.train)} clips are not trained: no patch of 1x2x4")


def test_a_file_that_ends_early_is_left_out_of_patches_that_do_not_divide_what_is_there(
    own_clips: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header says so many frames; what a pack was planned with is not there."""
    made = tiny_recipe("dit", own_clips, checkpoint, tmp_path / "run", steps=2)
    made = replace(made, dit=replace(made.dit, patch_size=(2, 2, 2)))
    stage = dit_stage(made)
    index = next(i for i in stage.train if stage.lengths[2, 2, 2][i])
    patch, path = (2, 2, 2), stage.folder.entries[index].path  # type: ignore[union-attr]
    assert len(stage.read([index], patch).latents) == 1
    whole = VideoFolder.read

    def short(folder: VideoFolder, number: int, epoch: int = 0) -> Clip:
        clip = whole(folder, number, epoch)
        return clip._replace(video=clip.video[:, :1]) if number == index else clip

    monkeypatch.setattr(VideoFolder, "read", short)
    stage = dit_stage(replace(made, run=replace(made.run, dir=tmp_path / "again")))
    assert stage.read([index], patch).latents == []
    assert dict(stage.folder.problems)[path] == "it ends before its header says, and 2x2x2 does not divide it"  # type: ignore[union-attr]


def test_a_patch_that_the_model_lacks_is_said_before_the_first_step(recipe: TrainConfig) -> None:
    with pytest.raises(ValueError, match="1x4x4"):
        make_stage(replace(recipe, sample=replace(recipe.sample, patch="1x4x4:0.4,1x2x2")))


def test_what_dit_init_brings_and_the_recipe_does_not_go_with_is_said(
    recipe: TrainConfig, checkpoint: Path, own_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = own_checkpoint / "vae" / "config.json"
    stats = json.loads(config.read_text(encoding="utf-8"))
    stats["latents_std"] = [2 * value for value in stats["latents_std"]]
    config.write_text(json.dumps(stats), encoding="utf-8")
    make_stage(replace(recipe, dit=replace(recipe.dit, init=checkpoint, num_layers=5, patches={})))
    said = caplog.text
    assert "dit.num_layers = 5 is left aside" in said
    assert "denoises latents of its own VAE" not in said
    make_stage(replace(recipe, dit=replace(recipe.dit, init=own_checkpoint, patches={})))
    assert f"{own_checkpoint} denoises latents of its own VAE, and those of {checkpoint} are others" in caplog.text


# --- drawn clips


def test_drawn_clips_are_the_toybox_s() -> None:
    clips = DrawnClips(DataConfig(toybox=30), (1, 2, 2), seed=3)
    more = DrawnClips(DataConfig(toybox=40), (1, 2, 2), seed=3)
    assert more.entries[:30] == clips.entries
    assert DrawnClips(DataConfig(toybox=30), (1, 2, 2), seed=4).entries != clips.entries
    for index, entry in enumerate(clips.entries[:10]):
        scene, clip = draw_scene(entry.seed), clips.read(index)
        assert clip.caption == clips.caption(index) == caption(scene, scene.seed)
        assert clip.video.shape == (3, scene.num_frames, scene.height, scene.width)
        assert (entry.frames, entry.height, entry.width) == clip.video.shape[1:]
        assert -1 <= clip.video.min() < clip.video.max() <= 1
    assert sorted(map(sorted, clips.split())) == sorted(map(sorted, clips.split()))
    train, held = clips.split()
    assert sorted(train + held) == list(range(30))


def test_a_wish_that_the_toybox_cannot_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        DataConfig(toybox=3, toybox_sizes=("50x48",))
    with pytest.raises(ValueError, match=r"frames must be 1 \+ a multiple of 4, got 6"):
        DataConfig(toybox=3, toybox_lengths=(6,))


def test_a_folder_is_not_silently_passed_over_for_drawn_clips() -> None:
    with pytest.raises(ValueError, match=r"draws clips instead of reading my-clips; give --data\.toybox 0 to"):
        DataConfig(toybox=3, folder=Path("my-clips"))
    assert DataConfig(toybox=0, folder=Path("my-clips")).folder == Path("my-clips")


# --- latents that are known before training


def test_a_linear_encoder_s_latents_outlive_the_training_of_its_decoder(
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
    video = DrawnClips(recipe.data, (1, 2, 2)).read(0).video[None]
    assert torch.equal(first.encode(video), last.encode(video))
    chunks = [video[:, :, :1], *video[:, :, 1:].split(4, dim=2)]
    streamed = torch.cat(list(last.encode_stream(iter(chunks))), dim=2)
    torch.testing.assert_close(streamed, last.encode(video), atol=1e-5, rtol=0)
