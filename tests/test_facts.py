"""Token labels: the ground truth of toybox clips as an auxiliary loss beside denoising."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import reduce
from torch import Tensor

from tests.conftest import fit, tiny_recipe
from videogen.config.train import DataConfig, TrainConfig
from videogen.models.dit import VideoDiT
from videogen.packing.noise import step_generator
from videogen.toybox import draw_scene
from videogen.toybox.token_labels import FACTS, GroundTruth, cell_coverage, ground_truth, label_maps, motion_directions
from videogen.toybox.world.motions import Thing
from videogen.toybox.world.render import masks
from videogen.toybox.world.scenes import Scene
from videogen.training.dit_stage import DitStage
from videogen.training.flow_matching import flow_loss

LARGE_CIRCLE = {"kind": "circle", "size": "large", "radius": 8.0}


def scene_with(*things: Thing, num_frames: int = 17) -> Scene:
    return Scene(width=64, height=48, num_frames=num_frames, fps=8, background="black", things=things, seed=0)


def test_cell_coverage_has_the_mean_of_the_masks() -> None:
    scene = draw_scene(3, lengths=(17,))
    coverage, exact = cell_coverage(scene, 4, 8), masks(scene)
    assert coverage.shape == (len(scene.things), 5, scene.height // 8, scene.width // 8)
    # The first frame has a latent frame of its own.
    np.testing.assert_allclose(coverage.mean((2, 3))[:, 0], exact[0].mean((1, 2)), rtol=1e-5)
    expected = reduce(exact[1:], "(t f) n h w -> n t", "mean", f=4)
    np.testing.assert_allclose(coverage.mean((2, 3))[:, 1:], expected, rtol=1e-4)


def test_a_label_map_is_the_coverage_of_the_things_for_which_its_fact_holds() -> None:
    red = Thing(colour="red", motion="right", x=12.0, y=24.0, speed=2.0, **LARGE_CIRCLE)  # type: ignore[arg-type]
    blue = Thing(colour="blue", motion="still", x=52.0, y=24.0, **LARGE_CIRCLE)  # type: ignore[arg-type]
    scene = scene_with(red, blue)
    coverage = (255 * cell_coverage(scene, 4, 8)).round().astype(np.uint8).astype(np.float32) / 255
    maps = dict(zip(FACTS, label_maps(ground_truth(scene)), strict=True))
    np.testing.assert_array_equal(maps["red"], coverage[0])
    np.testing.assert_array_equal(maps["blue"], coverage[1])
    np.testing.assert_array_equal(maps["circle"], (coverage[0] + coverage[1]).clip(0, 1))
    np.testing.assert_array_equal(maps["right"], coverage[0])
    for name in set(FACTS) - {"red", "blue", "circle", "right"}:
        assert not maps[name].any(), name


@pytest.mark.parametrize(("motion", "expected"), [("left", "left"), ("up", "up"), ("still", None)])
def test_directions_are_those_of_the_motion(motion: str, expected: str | None) -> None:
    thing = Thing(colour="red", motion=motion, x=32.0, y=24.0, speed=1.0, **LARGE_CIRCLE)  # type: ignore[arg-type]
    directions = motion_directions(scene_with(thing), 4)[0]
    names = ("right", "left", "down", "up")
    assert directions.tolist() == [[float(name == expected) for name in names]] * 5


def test_a_thing_at_rest_under_a_moving_camera_has_no_direction() -> None:
    """As in its caption, the camera moves and the thing does not."""
    thing = Thing(colour="red", motion="still", x=32.0, y=24.0, **LARGE_CIRCLE)  # type: ignore[arg-type]
    scene = replace(scene_with(thing), camera="pan right", camera_speed=1.0, background="desert")
    assert not motion_directions(scene, 4).any()


def test_things_in_an_image_have_no_direction() -> None:
    thing = Thing(colour="red", motion="still", x=32.0, y=24.0, **LARGE_CIRCLE)  # type: ignore[arg-type]
    assert not motion_directions(scene_with(thing, num_frames=1), 4).any()


@pytest.fixture
def recipe(clips_folder: Path, checkpoint: Path, tmp_path: Path) -> TrainConfig:
    base = tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run")
    data = DataConfig(toybox=12, toybox_sizes=("64x64",), toybox_lengths=(1, 9), token_budget=240, val_clips=2)
    return replace(base, data=data, dit=replace(base.dit, facts=0.1, facts_until=0.5, patches={"1x4x4": 0.5}))


def test_the_facts_head_has_a_gradient_until_facts_until(recipe: TrainConfig) -> None:
    """With facts_until 0.5 of 8 steps it has one in step 3 and none in step 4, for 1 process and for 2."""
    stage = DitStage(recipe)
    head = stage.model.facts_head
    assert head is not None
    for start, every, expected in ((3, 1, True), (4, 1, False), (3 * 2 + 1, 2, True), (4 * 2, 2, False)):
        head.zero_grad()
        stage.loss(stage.model, stage.flow_task(next(stage.batches(start, every))), start)["loss"].backward()
        assert (head.weight.grad is not None and bool(head.weight.grad.any())) == expected


@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 4, 4)])
def test_a_token_s_labels_are_the_mean_over_its_cells(recipe: TrainConfig, patch: tuple[int, int, int]) -> None:
    stage = DitStage(recipe)
    clips = stage.load_clips(stage.train_indices[:3], facts=True)
    task = stage.flow_task(stage.batch_builder.build_batch(clips, patch, step_generator(0, 0)))
    assert task.facts is not None
    pt, ph, pw = patch
    means = [reduce(maps, "k (t a) (h b) (w c) -> (t h w) k", "mean", a=pt, b=ph, c=pw) for maps in clips.facts]
    torch.testing.assert_close(task.facts, torch.cat(means), atol=5e-4, rtol=0)  # Labels have half precision.


def test_the_losses_of_micro_batches_sum_to_the_whole_with_facts(recipe: TrainConfig) -> None:
    stage = DitStage(recipe)
    clips = stage.load_clips(stage.train_indices[:6], facts=True)
    task = stage.flow_task(stage.batch_builder.build_batch(clips, stage.model.base_patch, step_generator(0, 0)))
    whole = flow_loss(stage.model, task, 0.1)
    losses = [
        flow_loss(stage.model, micro_batch, 0.1) for micro_batch in task.micro_batches(sum(task.clean.lengths) // 3)
    ]
    assert len(losses) > 1
    torch.testing.assert_close(sum(losses), whole, rtol=1e-5, atol=0)  # The order of float32 sums differs.
    assert whole > flow_loss(stage.model, task)


def test_a_run_with_facts_saves_a_checkpoint_with_the_facts_head(recipe: TrainConfig) -> None:
    assert fit(recipe)
    model = DitStage(replace(recipe, dit=replace(recipe.dit, init=recipe.run.dir / "checkpoint"))).model
    assert model.facts_head is not None
    assert not model.is_wan


def test_facts_are_refused_for_a_folder_of_videos(clips_folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    base = tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run")
    with pytest.raises(ValueError, match=r"dit\.facts needs clips whose truth is known; set data\.toybox, or leave"):
        DitStage(replace(base, dit=replace(base.dit, facts=0.1)))


def cached_arrays(stage: DitStage, index: int) -> dict[str, Tensor]:
    arrays = stage.cache.store.load(stage.cache.key(index, 0))
    assert arrays is not None
    return arrays


def test_ground_truth_is_added_to_a_cached_latent_and_read_with_it(recipe: TrainConfig) -> None:
    """The latent was cached by a run without facts."""
    plain, index = DitStage(replace(recipe, dit=replace(recipe.dit, facts=0.0))), 3
    plain.load_clips([index])
    assert list(cached_arrays(plain, index)) == ["latent"]
    stage = DitStage(recipe)
    truth = ground_truth(stage.folder.scene(index))  # type: ignore[union-attr]
    for _ in range(2):
        stage.load_clips([index], facts=True)
        cached = cached_arrays(stage, index)
        for name, value in truth._asdict().items():
            assert np.array_equal(cached[name].numpy(), value), name
    assert cached_arrays(stage, index).keys() == {"latent", *GroundTruth._fields}


def test_label_maps_have_the_grid_of_their_latents(recipe: TrainConfig) -> None:
    stage = DitStage(recipe)
    batch = stage.load_clips(stage.train_indices[:3], facts=True)
    assert [maps.shape for maps in batch.facts] == [(len(FACTS), *latent.shape[1:]) for latent in batch.latents]


def test_a_model_without_a_facts_head_gains_one_that_predicts_nearly_every_fact_false(
    recipe: TrainConfig, checkpoint: Path
) -> None:
    stage = DitStage(replace(recipe, dit=replace(recipe.dit, init=checkpoint)))
    head = stage.model.facts_head
    assert head is not None
    assert head.out_features == len(FACTS)
    assert bool((head.bias < -3).all())


def test_a_facts_head_of_another_size_is_refused(recipe: TrainConfig, checkpoint: Path, tmp_path: Path) -> None:
    model = VideoDiT.from_pretrained(checkpoint, subfolder="transformer").extended(num_facts=3)
    model.save_pretrained(tmp_path / "transformer")
    message = rf"dit\.facts does not go with .* tells 3 facts, and the toybox has {len(FACTS)}; set it to 0"
    with pytest.raises(ValueError, match=message):
        DitStage(replace(recipe, dit=replace(recipe.dit, init=tmp_path)))
