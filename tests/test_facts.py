"""What is where, said beside denoising: the truth of drawn clips, token by token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import reduce
from safetensors.torch import load_file

from tests.conftest import fit, tiny_recipe
from videogen.config.train import DataConfig, TrainConfig
from videogen.models.dit import VideoDiT
from videogen.packing.noise import step_generator
from videogen.toybox import draw_scene
from videogen.toybox.token_labels import FACTS, Truth, cover, say, truth, ways
from videogen.toybox.world.motions import Thing
from videogen.toybox.world.render import masks
from videogen.toybox.world.scenes import Scene
from videogen.training.dit_stage import DitStage
from videogen.training.flow_matching import flow_error

SHAPES = {"kind": "circle", "size": "large", "radius": 8.0}


def scene_of(*things: Thing, num_frames: int = 17) -> Scene:
    return Scene(width=64, height=48, num_frames=num_frames, fps=8, background="black", things=things, seed=0)


def test_cells_are_covered_as_the_masks_say() -> None:
    scene = draw_scene(3, lengths=(17,))
    shown, exact = cover(scene, 4, 8), masks(scene)
    assert shown.shape == (len(scene.things), 5, scene.height // 8, scene.width // 8)
    np.testing.assert_allclose(
        shown.mean((2, 3))[:, 0], exact[0].mean((1, 2)), rtol=1e-5
    )  # the first frame stands alone
    pixels = reduce(exact[1:], "(t f) n h w -> n t", "mean", f=4)
    np.testing.assert_allclose(shown.mean((2, 3))[:, 1:], pixels, rtol=1e-4)


def test_a_fact_is_where_its_thing_is_and_nowhere_else() -> None:
    red = Thing(colour="red", motion="right", x=12.0, y=24.0, speed=2.0, **SHAPES)  # type: ignore[arg-type]
    blue = Thing(colour="blue", motion="still", x=52.0, y=24.0, **SHAPES)  # type: ignore[arg-type]
    scene = scene_of(red, blue)
    shown = (255 * cover(scene, 4, 8)).round().astype(np.uint8).astype(np.float32) / 255
    told = say(truth(scene))
    by_name = dict(zip(FACTS, told, strict=True))
    np.testing.assert_array_equal(by_name["red"], shown[0])
    np.testing.assert_array_equal(by_name["blue"], shown[1])
    np.testing.assert_array_equal(by_name["circle"], (shown[0] + shown[1]).clip(0, 1))
    np.testing.assert_array_equal(by_name["right"], shown[0])
    for name in set(FACTS) - {"red", "blue", "circle", "right"}:
        assert not by_name[name].any(), name


@pytest.mark.parametrize(("motion", "expected"), [("left", "left"), ("up", "up"), ("still", None)])
def test_ways_are_those_of_the_path(motion: str, expected: str | None) -> None:
    thing = Thing(colour="red", motion=motion, x=32.0, y=24.0, speed=1.0, **SHAPES)  # type: ignore[arg-type]
    found = ways(scene_of(thing), 4)[0]
    names = ("right", "left", "down", "up")
    assert found.tolist() == [[float(name == expected) for name in names]] * 5


def test_a_thing_that_rests_under_a_moving_camera_goes_nowhere() -> None:
    """As its caption says: the camera moves, not the thing."""
    thing = Thing(colour="red", motion="still", x=32.0, y=24.0, **SHAPES)  # type: ignore[arg-type]
    scene = replace(scene_of(thing), camera="pan right", camera_speed=1.0, background="desert")
    assert not ways(scene, 4).any()


def test_an_image_goes_nowhere() -> None:
    thing = Thing(colour="red", motion="still", x=32.0, y=24.0, **SHAPES)  # type: ignore[arg-type]
    assert not ways(scene_of(thing, num_frames=1), 4).any()


@pytest.fixture
def recipe(clips_folder: Path, checkpoint: Path, tmp_path: Path) -> TrainConfig:
    base = tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run")
    data = DataConfig(toybox=12, toybox_sizes=("64x64",), toybox_lengths=(1, 9), token_budget=240, val_clips=2)
    return replace(base, data=data, dit=replace(base.dit, facts=0.1, facts_until=0.5, patches={"1x4x4": 0.5}))


def test_a_step_asks_for_the_facts_until_their_share_of_the_run_is_over(recipe: TrainConfig) -> None:
    """facts_until 0.5 of 8 steps: the head has a gradient in step 3 and none in step 4, of every process."""
    stage = DitStage(recipe)
    head = stage.model.facts_head
    assert head is not None
    for start, every, asked in ((3, 1, True), (4, 1, False), (3 * 2 + 1, 2, True), (4 * 2, 2, False)):
        head.zero_grad()
        stage.loss(stage.model, next(stage.batches(start, every)), start)["loss"].backward()
        assert (head.weight.grad is not None and bool(head.weight.grad.any())) == asked


@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 4, 4)])
def test_each_token_is_told_what_its_cells_show(recipe: TrainConfig, patch: tuple[int, int, int]) -> None:
    stage = DitStage(recipe)
    clips = stage.read(stage.train[:3], facts=True)
    task = stage.task(stage.drawing.draw(clips, patch, step_generator(0, 0)))
    assert task.facts is not None
    pt, ph, pw = patch
    means = [reduce(told, "k (t a) (h b) (w c) -> (t h w) k", "mean", a=pt, b=ph, c=pw) for told in clips.facts]
    torch.testing.assert_close(task.facts, torch.cat(means), atol=5e-4, rtol=0)  # half precision


def test_the_parts_of_a_task_add_up_with_facts_too(recipe: TrainConfig) -> None:
    stage = DitStage(recipe)
    clips = stage.read(stage.train[:6], facts=True)
    task = stage.task(stage.drawing.draw(clips, stage.model.base_patch, step_generator(0, 0)))
    whole = flow_error(stage.model, task, 0.1)
    parts = [flow_error(stage.model, part, 0.1) for part in task.parts(sum(task.clean.lengths) // 3)]
    assert len(parts) > 1
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=0)  # float32, another order of sums
    assert whole > flow_error(stage.model, task)


def test_a_run_with_facts_trains_and_is_saved_with_its_head(recipe: TrainConfig) -> None:
    assert fit(recipe)
    trained = DitStage(replace(recipe, dit=replace(recipe.dit, init=recipe.run.dir / "checkpoint"))).model
    assert trained.facts_head is not None
    assert not trained.is_wan


def test_a_folder_knows_no_facts(clips_folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    base = tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run")
    with pytest.raises(ValueError, match=r"dit\.facts needs clips whose truth is known; set data\.toybox, or leave"):
        DitStage(replace(base, dit=replace(base.dit, facts=0.1)))


def test_what_is_kept_beside_a_latent_says_what_is_drawn(recipe: TrainConfig) -> None:
    """Added to a latent of a run without facts, then read with it."""
    plain, index = DitStage(replace(recipe, dit=replace(recipe.dit, facts=0.0))), 3
    plain.read([index])
    assert list(load_file(plain.cache.path_of(index, 0))) == ["latent"]
    stage = DitStage(recipe)
    drawn = truth(stage.folder.scene(index))  # type: ignore[union-attr]
    for _ in range(2):
        stage.read([index], facts=True)
        kept = load_file(stage.cache.path_of(index, 0))
        for name, value in drawn._asdict().items():
            assert np.array_equal(kept[name].numpy(), value), name
    assert load_file(stage.cache.path_of(index, 0)).keys() == {"latent", *Truth._fields}


def test_facts_pack_like_latents(recipe: TrainConfig) -> None:
    stage = DitStage(recipe)
    batch = stage.read(stage.train[:3], facts=True)
    assert [told.shape for told in batch.facts] == [(len(FACTS), *latent.shape[1:]) for latent in batch.latents]


def test_a_model_without_a_head_for_facts_gains_one_that_calls_nearly_all_untrue(
    recipe: TrainConfig, checkpoint: Path
) -> None:
    stage = DitStage(replace(recipe, dit=replace(recipe.dit, init=checkpoint)))
    head = stage.model.facts_head
    assert head is not None
    assert head.out_features == len(FACTS)
    assert bool((head.bias < -3).all())


def test_a_head_for_other_facts_is_refused(recipe: TrainConfig, checkpoint: Path, tmp_path: Path) -> None:
    model = VideoDiT.from_pretrained(checkpoint, subfolder="transformer").extended(num_facts=3)
    model.save_pretrained(tmp_path / "transformer")
    said = rf"dit\.facts does not go with .* tells 3 facts, and the toybox has {len(FACTS)}; set it to 0"
    with pytest.raises(ValueError, match=said):
        DitStage(replace(recipe, dit=replace(recipe.dit, init=tmp_path)))
