"""Training reduces the loss, and a run that was stopped and resumed equals an uninterrupted one."""

import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.conftest import STAGES, assert_same_state, elsewhere, fit, state_of, tiny_recipe
from videogen.config.parsing import to_mapping
from videogen.config.train import TrainConfig
from videogen.models.precision import resolve_mixed_precision
from videogen.models.vae import VideoVAE
from videogen.sampling.pipeline import VideoPipeline
from videogen.training.batches import TrainingBatch
from videogen.training.dit_stage import DitStage
from videogen.training.frozen_models import load_part
from videogen.training.run_checkpoints import Stretch, saved_steps
from videogen.training.run_config import write_config
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer
from videogen.training.vae_stage import VaeStage

ROOT = Path(__file__).parent.parent


def send_sigterm_at(stage: VaeStage | DitStage, num: int) -> None:
    """Make the stage send this process a SIGTERM before it yields its num-th batch."""
    original = stage.batches

    def batches(start: int, every: int = 1, earlier: Sequence[Stretch] = ()) -> Iterator[object]:
        for number, batch in enumerate(original(start), start=1):
            if number == num:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    stage.batches = batches  # type: ignore[method-assign,assignment]


# --- the loss falls


class RepeatedBatch:
    """A stage that yields the same batch, with the same noise, at every step."""

    def __init__(self, stage: VaeStage | DitStage) -> None:
        self.stage, self.model = stage, stage.model
        self.batch = next(iter(stage.batches(0)))

    def __getattr__(self, name: str) -> object:
        return getattr(self.stage, name)

    def batches(self, start: int, every: int = 1, earlier: Sequence[Stretch] = ()) -> Iterator[object]:
        while True:
            yield self.batch

    def loss(self, model: nn.Module, micro_batch: object, batch_number: int) -> dict[str, Tensor]:
        return self.stage.loss(model, micro_batch, 0)  # type: ignore[arg-type]

    def total_loss(self) -> float:
        (micro_batch,) = self.stage.split(self.batch, 240)  # type: ignore[arg-type]
        return self.loss(self.stage.objective, micro_batch, 0)["loss"].item()


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls_on_a_repeated_batch(stage: str, clips_folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(stage, clips_folder, checkpoint, tmp_path / "run", steps=40, val_every=40, save_every=40)
    recipe = replace(recipe, optim=replace(recipe.optim, lr=5e-3), vae=replace(recipe.vae, whole_share=0.0))
    repeated = RepeatedBatch(make_stage(recipe))
    before = repeated.total_loss()
    assert Trainer(repeated, recipe).fit()  # type: ignore[arg-type]
    assert repeated.total_loss() < 0.9 * before


def test_a_resumed_run_warns_of_each_changed_setting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = TrainConfig(stage="vae")
    write_config(config, tmp_path)
    write_config(config, tmp_path)
    assert not caplog.records
    write_config(replace(config, optim=replace(config.optim, lr=0.25)), tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"unlike before, optim.lr is 0.25, was {config.optim.lr}"
    ]
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["optim"]["lr"] == 0.25


# --- exact resume


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    stage: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    """It resumes from the checkpoint after four steps, in a process with another random state."""
    run_dir, recipe = finished[stage].run.dir, elsewhere(finished[stage], tmp_path / "run")
    shutil.copytree(run_dir / "step_000004", recipe.run.dir / "step_000004")
    shutil.copy(run_dir / "config.json", recipe.run.dir / "config.json")
    torch.manual_seed(12345)
    trainer = Trainer(make_stage(recipe), recipe)
    assert trainer.step == 4
    assert trainer.fit()
    assert_same_state(recipe.run.dir, run_dir, 8)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_stopped_twice_by_sigterm_equals_an_uninterrupted_one(
    stage: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished[stage], tmp_path / "run")
    for num, steps in ((3, 3), (2, 5)):
        torch.manual_seed(11)
        stopped = make_stage(recipe)
        send_sigterm_at(stopped, num)
        assert not Trainer(stopped, recipe).fit()
        assert saved_steps(recipe.run.dir)[-1] == steps
    assert fit(recipe)
    assert_same_state(recipe.run.dir, finished[stage].run.dir, 8)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_pauses_where_it_is_told_equals_one_that_did_not_bit_for_bit(
    stage: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished[stage], tmp_path / "run")
    trainer = Trainer(make_stage(recipe), recipe)
    assert not trainer.fit(until=3)
    assert trainer.step == 3
    assert not trainer.fit(until=2)
    assert trainer.step == 3
    assert trainer.fit()
    assert_same_state(recipe.run.dir, finished[stage].run.dir, 8)
    trainer.set_steps(9)
    assert trainer.fit()
    assert saved_steps(recipe.run.dir)[-1] == 9
    assert json.loads((recipe.run.dir / "config.json").read_text(encoding="utf-8"))["run"]["steps"] == 9


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_does_not_depend_on_the_global_random_state(
    stage: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished[stage], tmp_path / "run")
    torch.manual_seed(999)
    assert fit(recipe)
    assert_same_state(recipe.run.dir, finished[stage].run.dir, 8)


@pytest.mark.parametrize("stage", STAGES)
def test_another_seed_gives_other_weights(stage: str, finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(finished[stage], tmp_path / "run", seed=1)
    torch.manual_seed(11)
    assert fit(recipe)
    ours, theirs = state_of(recipe.run.dir, 8), state_of(finished[stage].run.dir, 8)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_before_its_first_checkpoint_starts_over(
    stage: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    """The run folder holds a config and no step."""
    recipe = elsewhere(finished[stage], tmp_path / "run")
    recipe.run.dir.mkdir()
    shutil.copy(finished[stage].run.dir / "config.json", recipe.run.dir / "config.json")
    torch.manual_seed(11)
    assert fit(recipe)
    assert_same_state(recipe.run.dir, finished[stage].run.dir, 8)


def test_a_complete_run_changes_no_file(finished: dict[str, TrainConfig]) -> None:
    recipe = finished["dit"]

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in recipe.run.dir.rglob("*") if path.is_file()}

    before = times()
    assert fit(recipe)
    assert times() == before


def test_a_run_stops_at_its_time_limit_and_resumes(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run", minutes=1e-6)
    assert not fit(recipe)
    assert saved_steps(recipe.run.dir) == [1]
    assert fit(elsewhere(recipe, recipe.run.dir, minutes=None))
    assert_same_state(recipe.run.dir, finished["dit"].run.dir, 8)


# --- the run folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_folder_holds_config_log_checkpoint_and_the_two_newest_steps(
    stage: str, finished: dict[str, TrainConfig]
) -> None:
    run_dir = finished[stage].run.dir
    assert saved_steps(run_dir) == [4, 8]
    recipe = replace(finished[stage], run=resolve_mixed_precision(finished[stage].run))
    assert json.loads((run_dir / "config.json").read_text()) == json.loads(json.dumps(to_mapping(recipe)))
    assert not [path for path in run_dir.rglob("*") if ".part" in path.name or ".old" in path.name]
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    assert any(key.startswith("val_") for line in lines for key in line)
    assert not [path for path in run_dir.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl")]


def test_only_the_two_newest_steps_are_kept(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run", save_every=2)
    assert fit(recipe)
    assert saved_steps(recipe.run.dir) == [6, 8]


def test_a_trained_checkpoint_samples_with_the_recipe_s_settings(finished: dict[str, TrainConfig]) -> None:
    pipeline = VideoPipeline.load(finished["dit"].run.dir / "checkpoint")
    assert pipeline.defaults == finished["dit"].sample
    (clip,) = pipeline(["a red circle"])
    assert clip.shape == (5, 32, 48, 3)


def test_the_checkpoint_holds_the_averaged_weights(finished: dict[str, TrainConfig]) -> None:
    run_dir = finished["dit"].run.dir
    saved = load_file(run_dir / "checkpoint" / "transformer" / "diffusion_pytorch_model.safetensors")
    average, live = (load_file(run_dir / "step_000008" / f"{name}.safetensors") for name in ("ema_0", "model"))
    assert all(torch.equal(saved[name], average[name]) for name in average)
    assert any(not torch.equal(saved[name], live[name]) for name in live)


def test_the_dit_stage_trains_on_the_normalised_latents_of_a_trained_vae(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    vae_run = finished["vae"].run.dir / "checkpoint"
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    stage = DitStage(replace(recipe, dit=replace(recipe.dit, vae=vae_run)))
    trained = load_part(VideoVAE, vae_run, "vae")
    assert all(map(torch.equal, stage.vae.state_dict().values(), trained.state_dict().values()))
    latents = torch.cat([latent.float().flatten(1) for latent in stage.load_clips(stage.train_indices).latents], dim=1)
    assert latents.mean(1).abs().max() < 0.3  # measured on the same clips at another size
    assert abs(latents.var(1).mean() - 1) < 0.3


def test_samples_are_written_for_every_prompt(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(
        finished["dit"], tmp_path / "run", steps=1, sample_every=1, sample_prompts=("a red circle", "a blue star")
    )
    assert fit(recipe)
    samples = recipe.run.dir / "samples"
    names = sorted(path.relative_to(samples).as_posix() for path in samples.rglob("*") if path.is_file())
    assert names == ["step_000001.png", "step_000001/0.mp4", "step_000001/1.mp4"]


def test_an_extended_run_warns_of_each_changed_setting(
    finished: dict[str, TrainConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run", steps=1)
    assert fit(recipe)
    assert "unlike before" not in caplog.text
    longer = elsewhere(recipe, recipe.run.dir, steps=2)
    assert fit(replace(longer, optim=replace(longer.optim, lr=2e-3)))
    warnings = [record.getMessage() for record in caplog.records if "unlike before" in record.getMessage()]
    assert warnings == ["unlike before, optim.lr is 0.002, was 0.001", "unlike before, run.steps is 2, was 1"]


def test_resuming_from_the_weights_of_another_model_is_refused(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    shutil.copytree(finished["dit"].run.dir / "step_000004", recipe.run.dir / "step_000004")
    for sizes in ({"num_layers": 3}, {"ffn_dim": 64}):
        changed = replace(recipe, dit=replace(recipe.dit, **sizes))
        with pytest.raises(ValueError, match="was written by another model; choose another --run folder"):
            Trainer(make_stage(changed), changed)


# --- stages


def test_an_epoch_packs_every_training_clip_once_within_the_budget(finished: dict[str, TrainConfig]) -> None:
    stage = make_stage(finished["dit"])
    assert isinstance(stage, DitStage)
    for epoch in range(3):
        packs = packs_of_epoch(stage, epoch)
        assert sorted(index for indices in packs for index in indices) == stage.train_indices
        for indices in packs:
            assert sum(stage.folder.entries[index].num_tokens for index in indices) <= 240
    assert packs_of_epoch(stage, 0) != packs_of_epoch(stage, 1)


def packs_of_epoch(stage: DitStage, epoch: int) -> list[list[int]]:
    packs = takewhile(lambda pack: pack[0] <= epoch, stage.packs(stage.model.base_patch))
    return [indices for number, indices in packs if number == epoch]


@pytest.mark.parametrize("stage", STAGES)
def test_batches_from_a_later_step_equal_those_of_a_whole_run(stage: str, finished: dict[str, TrainConfig]) -> None:
    batches = make_stage(finished[stage]).batches

    def tensors(batch: list[Tensor] | TrainingBatch) -> list[Tensor]:
        return [torch.from_numpy(batch.tokens)] if isinstance(batch, TrainingBatch) else batch

    whole, later = list(islice(batches(0), 7)), list(islice(batches(4), 3))
    for expected, batch in zip(whole[4:], later, strict=True):
        assert all(map(torch.equal, tensors(batch), tensors(expected)))


@pytest.mark.parametrize("stage", STAGES)
def test_validation_is_deterministic(stage: str, finished: dict[str, TrainConfig]) -> None:
    validate = make_stage(finished[stage]).validate
    assert validate() == validate() != {}


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_broken_during_a_run_is_reported_and_the_run_completes(
    stage: str, own_clips: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(stage, own_clips, checkpoint, tmp_path / "run")
    trainer = Trainer(loaded := make_stage(recipe), recipe)
    broken = loaded.folder.entries[loaded.train_indices[0]].path
    broken.write_bytes(broken.read_bytes()[:500])
    assert trainer.fit()
    assert broken.name in capsys.readouterr().err


def test_an_unknown_conditioning_mask_is_refused_before_clips_are_read(tmp_path: Path, checkpoint: Path) -> None:
    recipe = tiny_recipe("dit", tmp_path / "nowhere", checkpoint, tmp_path / "run")
    with pytest.raises(ValueError, match=r"dit\.known must name nothing, .*, got 'boxes'"):
        make_stage(replace(recipe, dit=replace(recipe.dit, known={"boxes": 1.0})))
