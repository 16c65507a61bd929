"""A loss or a weight that is not finite is never saved: the run stops and names the clips, or skips the step."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import STAGES, assert_same_state, elsewhere, fit, tiny_recipe
from videogen.config.train import RunConfig, TrainConfig
from videogen.training.dit_stage import DitStage
from videogen.training.run_checkpoints import load_progress, saved_steps
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer


def bad_recipe(stage: str, clips: Path, checkpoint: Path, run_dir: Path, **run: object) -> tuple[TrainConfig, str]:
    """Train three steps; then let the latent of the next step's first clip be NaN, and return the clip's name."""
    recipe = tiny_recipe(stage, clips, checkpoint, run_dir, **({"save_every": 1} | run))
    recipe = replace(recipe, data=replace(recipe.data, token_budget=80))
    for _ in range(3):
        assert not fit(elsewhere(recipe, run_dir, minutes=1e-6))
    made = make_stage(recipe)
    assert isinstance(made, DitStage)
    index = next(iter(made.batch_requests(3, 1))).indices[0]
    latent = made.load_clips([index]).latents[0]
    made.cache.store.save(made.cache.key(index, 0), {"latent": torch.full_like(latent, torch.nan)})
    return recipe, made.folder.names()[index]


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved_and_names_the_clips(
    clips_folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    recipe, name = bad_recipe("dit", clips_folder, checkpoint, tmp_path / "run")
    message = f"of the clips .*{name}.* the loss is nan .* at step 3; what was saved is whole"
    for _ in range(2):  # the same command again meets the same clip
        with pytest.raises(FloatingPointError, match=message):
            fit(recipe)
        assert saved_steps(recipe.run.dir) == [2, 3]
    assert not [path for path in recipe.run.dir.rglob("*") if ".part" in path.name]
    for step in (2, 3):
        shutil.rmtree(recipe.run.dir / f"step_{step:06d}")
    with pytest.raises(FloatingPointError, match=f"latents of {name} are not finite; leave them out"):
        make_stage(recipe)  # whose variance is measured at the start


def test_the_vae_s_clips_are_named_too(clips_folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe("vae", clips_folder, checkpoint, tmp_path / "run")
    trainer = Trainer(stage := make_stage(recipe), recipe)
    stage.model.decoder.linear.weight.data.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(FloatingPointError, match=r"of the clips .* at step 0; ") as error:
        trainer.fit()
    named = str(error.value).partition("of the clips ")[2].partition(" the loss")[0].split(", ")
    assert len(named) == recipe.vae.batch_clips
    assert set(named) <= {stage.folder.names()[index] for index in stage.train_indices}


def test_bad_steps_are_skipped_as_often_as_the_run_may(
    clips_folder: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten clips of a pack each: the epoch's other steps are good, and the second epoch meets the clip again."""
    recipe, name = bad_recipe("dit", clips_folder, checkpoint, tmp_path / "run", steps=30, skip_bad_steps=2)
    shutil.copytree(recipe.run.dir, again := tmp_path / "again")
    with pytest.raises(FloatingPointError, match=r"--run\.skip-bad-steps 3"):
        fit(recipe)
    skipped = [record.getMessage() for record in caplog.records if "it is skipped" in record.getMessage()]
    assert len(skipped) == 2
    assert all(name in message for message in skipped)
    assert skipped[1].endswith("the 2. of at most 2")
    saved = saved_steps(recipe.run.dir)[-1]
    assert load_progress(recipe.run.dir, saved).skipped == 2
    more = elsewhere(recipe, recipe.run.dir, skip_bad_steps=30, minutes=1e-6)
    while not fit(more):  # its time is over after every step
        pass
    assert fit(elsewhere(recipe, again, skip_bad_steps=30))
    assert_same_state(again, recipe.run.dir, 30)
    rows = [json.loads(line) for line in (recipe.run.dir / "log.jsonl").read_text().splitlines()]
    assert all("loss" in row for row in rows if "lr" in row)


@pytest.mark.parametrize("stage", STAGES)
def test_weights_that_are_not_finite_are_not_saved(
    stage: str, clips_folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(stage, clips_folder, checkpoint, tmp_path / "run", steps=2, save_every=1)
    trainer = Trainer(make_stage(recipe), recipe)
    step = trainer.train_step

    def overflow(batch: object, number: int) -> dict[str, float]:
        values = step(batch, number)
        if number == 1:
            next(trainer.stage.model.parameters()).data.flatten()[0] = torch.inf
        return values

    trainer.train_step = overflow  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="weights are not finite after step 2 and were not saved"):
        trainer.fit()
    assert saved_steps(recipe.run.dir) == [1]


def test_a_negative_number_of_skipped_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run\.skip_bad_steps must be 0 or more, got -1"):
        RunConfig(skip_bad_steps=-1)
