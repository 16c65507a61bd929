"""Training: it learns, and a run that was stopped and resumed is the run that was not."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.conftest import STAGES, assert_same_state, elsewhere, fit, state_of, tiny_recipe
from videogen.config.parsing import to_mapping
from videogen.config.train import OptimConfig, TrainConfig
from videogen.models.vae import VideoVAE
from videogen.sampling.pipeline import VideoPipeline
from videogen.training import trainer
from videogen.training.dit_stage import DitStage
from videogen.training.ema import PowerEMA
from videogen.training.frozen_models import load_part
from videogen.training.run_checkpoints import saved_steps
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer, learning_rate
from videogen.training.vae_stage import VaeStage

ROOT = Path(__file__).parent.parent


def stop_at(stage: VaeStage | DitStage, num: int) -> None:
    """Send this process a real SIGTERM while the num-th batch from now is on its way."""
    make = stage.batches

    def batches(start: int, every: int = 1) -> Iterator[object]:
        for number, batch in enumerate(make(start), start=1):
            if number == num:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    stage.batches = batches  # type: ignore[method-assign,assignment]


# --- it learns


class OneClip:
    """A stage that sees the same batch, at the same noise, for ever."""

    def __init__(self, stage: VaeStage | DitStage) -> None:
        self.stage, self.model = stage, stage.model
        self.batch = next(iter(stage.batches(0)))

    def __getattr__(self, name: str) -> object:
        return getattr(self.stage, name)

    def batches(self, start: int, every: int = 1) -> Iterator[object]:
        while True:
            yield self.batch

    def loss(self, model: nn.Module, batch: object, step: int) -> dict[str, Tensor]:
        return self.stage.loss(model, batch, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls_on_a_repeated_clip(stage: str, clips_folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(stage, clips_folder, checkpoint, tmp_path / "run", steps=40, val_every=40, save_every=40)
    recipe = replace(recipe, optim=replace(recipe.optim, lr=5e-3), vae=replace(recipe.vae, whole_share=0.0))
    one = OneClip(make_stage(recipe))
    before = one.loss(one.model, one.batch, 0)["loss"].item()
    assert Trainer(one, recipe).fit()  # type: ignore[arg-type]
    after = one.loss(one.model, one.batch, 0)["loss"].item()
    assert after < 0.9 * before


def test_a_run_that_goes_on_says_which_settings_are_not_as_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainConfig(stage="vae")
    trainer.write_config(config, tmp_path)
    trainer.write_config(config, tmp_path)
    assert not caplog.records
    trainer.write_config(replace(config, optim=replace(config.optim, lr=0.25)), tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"unlike before, optim.lr is 0.25, was {config.optim.lr}"
    ]
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["optim"]["lr"] == 0.25


# --- exact resume


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    stage: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    """From the checkpoint after four steps, in a process whose random state is another."""
    run_dir, recipe = finished[stage].run.dir, elsewhere(finished[stage], tmp_path / "run")
    for name in ("step_000004", "config.json"):
        (shutil.copytree if name == "step_000004" else shutil.copy)(run_dir / name, _made(recipe.run.dir) / name)
    torch.manual_seed(12345)
    trainer = Trainer(make_stage(recipe), recipe)
    assert trainer.step == 4
    assert trainer.fit()
    assert_same_state(recipe.run.dir, run_dir, 8)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_was_asked_to_stop_twice_equals_an_uninterrupted_one(
    stage: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished[stage], tmp_path / "run")
    for num, steps in ((3, 3), (2, 5)):
        torch.manual_seed(11)
        first = make_stage(recipe)
        stop_at(first, num)
        assert not Trainer(first, recipe).fit()
        assert saved_steps(recipe.run.dir)[-1] == steps
    assert fit(recipe)
    assert_same_state(recipe.run.dir, finished[stage].run.dir, 8)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_depends_on_its_seed_and_not_on_the_process(
    stage: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished[stage], tmp_path / "run")
    torch.manual_seed(999)  # whatever was drawn before
    assert fit(recipe)
    assert_same_state(recipe.run.dir, finished[stage].run.dir, 8)


@pytest.mark.parametrize("stage", STAGES)
def test_another_seed_is_another_run(stage: str, finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(finished[stage], tmp_path / "run", seed=1)
    torch.manual_seed(11)
    assert fit(recipe)
    ours, theirs = state_of(recipe.run.dir, 8), state_of(finished[stage].run.dir, 8)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_before_its_first_checkpoint_starts_again_as_it_began(
    stage: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    """Its folder holds a config and no step."""
    recipe = elsewhere(finished[stage], tmp_path / "run")
    shutil.copy(finished[stage].run.dir / "config.json", _made(recipe.run.dir) / "config.json")
    torch.manual_seed(11)
    assert fit(recipe)
    assert_same_state(recipe.run.dir, finished[stage].run.dir, 8)


def test_a_finished_run_does_nothing_more(finished: dict[str, TrainConfig]) -> None:
    recipe = finished["dit"]
    before = {path: path.stat().st_mtime_ns for path in recipe.run.dir.rglob("*") if path.is_file()}
    assert fit(recipe)
    assert {path: path.stat().st_mtime_ns for path in recipe.run.dir.rglob("*") if path.is_file()} == before


def test_a_run_stops_in_time_and_goes_on(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run", minutes=1e-6)
    assert not fit(recipe)
    assert saved_steps(recipe.run.dir) == [1]
    assert fit(elsewhere(recipe, recipe.run.dir, minutes=None))
    assert_same_state(recipe.run.dir, finished["dit"].run.dir, 8)


# --- what a run leaves


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_leaves_its_config_log_two_newest_steps_and_a_checkpoint(
    stage: str, finished: dict[str, TrainConfig]
) -> None:
    run_dir = finished[stage].run.dir
    assert saved_steps(run_dir) == [4, 8]
    assert json.loads((run_dir / "config.json").read_text()) == json.loads(json.dumps(to_mapping(finished[stage])))
    assert not [path for path in run_dir.rglob("*") if ".part" in path.name or ".old" in path.name]
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    assert any(key.startswith("val_") for line in lines for key in line)
    assert not [path for path in run_dir.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl")]


def test_older_steps_go_when_a_new_one_is_safe(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run", save_every=2)
    assert fit(recipe)
    assert saved_steps(recipe.run.dir) == [6, 8]


def test_a_trained_checkpoint_samples(finished: dict[str, TrainConfig]) -> None:
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


def test_the_latents_of_a_trained_vae_are_used_by_the_next_stage(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    vae_run = finished["vae"].run.dir / "checkpoint"
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    stage = DitStage(replace(recipe, dit=replace(recipe.dit, vae=vae_run)))
    trained = load_part(VideoVAE, vae_run, "vae")
    assert all(map(torch.equal, stage.vae.state_dict().values(), trained.state_dict().values()))
    latents = torch.cat([latent.float().flatten(1) for latent in stage.read(stage.train).latents], dim=1)
    assert latents.mean(1).abs().max() < 0.3  # measured on the same clips at another size
    assert abs(latents.var(1).mean() - 1) < 0.3


def test_samples_are_written_for_every_prompt(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(
        finished["dit"], tmp_path / "run", steps=1, sample_every=1, sample_prompts=("a red circle", "a blue star")
    )
    assert fit(recipe)
    samples = recipe.run.dir / "samples"
    found = sorted(path.relative_to(samples).as_posix() for path in samples.rglob("*") if path.is_file())
    assert found == ["step_000001.png", "step_000001/0.mp4", "step_000001/1.mp4"]


def test_a_longer_run_says_what_is_unlike_before(
    finished: dict[str, TrainConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run", steps=1)
    assert fit(recipe)
    assert "unlike before" not in caplog.text
    longer = elsewhere(recipe, recipe.run.dir, steps=2)
    assert fit(replace(longer, optim=replace(longer.optim, lr=2e-3)))
    said = [record.getMessage() for record in caplog.records if "unlike before" in record.getMessage()]
    assert said == ["unlike before, optim.lr is 0.002, was 0.001", "unlike before, run.steps is 2, was 1"]


def test_a_step_of_another_model_is_refused(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    shutil.copytree(finished["dit"].run.dir / "step_000004", _made(recipe.run.dir) / "step_000004")
    other = replace(recipe, dit=replace(recipe.dit, num_layers=3))
    with pytest.raises(ValueError, match="was written by another model; choose another --run folder"):
        Trainer(make_stage(other), other)
    wider = replace(recipe, dit=replace(recipe.dit, ffn_dim=64))
    with pytest.raises(ValueError, match="was written by another model; choose another --run folder"):
        Trainer(make_stage(wider), wider)


# --- parts


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    config = OptimConfig(lr=2.0, warmup_steps=10, decay_share=0.2)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert set(rates[10:81]) == {2.0}
    assert rates[80:] == pytest.approx([2.0 * (100 - step) / 20 for step in range(80, 101)])
    assert rates[99] > 0
    assert rates[100] == 0


def test_a_learning_rate_without_rise_or_fall_is_constant() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=0, decay_share=0.0)
    assert {learning_rate(step, 50, config) for step in range(50)} == {1.0}


def test_the_average_of_constant_weights_is_the_constant() -> None:
    model = nn.Linear(3, 2)
    ema = PowerEMA(model, (0.05, 0.2))
    for step in range(1, 50):
        ema.update(step)
    for copy in ema.copies:
        for average, weight in zip(copy, model.parameters(), strict=True):
            torch.testing.assert_close(average, weight.detach(), atol=1e-6, rtol=0)  # float32 lerps


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_an_average_has_the_width_that_was_asked_for(width: float) -> None:
    """Weights that are the step tell the profile's mean; their squares its deviation, over the run."""
    steps = 2000
    model = nn.Linear(2, 1, bias=False).double()
    ema = PowerEMA(model, (width,))
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[step / steps, (step / steps) ** 2]]))
        ema.update(step)
    mean, square = ema.copies[0][0].flatten().tolist()
    assert (square - mean**2) ** 0.5 == pytest.approx(width, rel=0.02)  # a sum of 2000 for an integral


def test_swapping_twice_brings_the_live_weights_back() -> None:
    model = nn.Linear(3, 2)
    ema = PowerEMA(model, (0.1,))
    live = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for copy in ema.copies[0]:
            copy.zero_()
    ema.swap()
    assert not any(p.any() for p in model.parameters())
    ema.swap()
    assert all(map(torch.equal, live, model.parameters()))


def test_weight_decay_is_on_matrices_only() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Conv2d(2, 2, 1))
    groups = trainer.make_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert {p.ndim >= 2 for p in groups[0]["params"]} == {True}
    assert {p.ndim >= 2 for p in groups[1]["params"]} == {False}
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.3, 0.0)
    assert sum(len(group["params"]) for group in groups) == 6


# --- stages


def test_every_clip_of_an_epoch_is_in_one_pack_within_the_budget(finished: dict[str, TrainConfig]) -> None:
    stage = make_stage(finished["dit"])
    assert isinstance(stage, DitStage)
    for epoch in range(3):
        packs = packs_of(stage, epoch)
        assert sorted(index for packed in packs for index in packed) == stage.train
        for packed in packs:
            assert sum(stage.folder.entries[index].num_tokens for index in packed) <= 240
    assert packs_of(stage, 0) != packs_of(stage, 1)


def packs_of(stage: DitStage, epoch: int) -> list[list[int]]:
    found = takewhile(lambda pack: pack[0] <= epoch, stage.packs(stage.model.base_patch))
    return [indices for number, indices in found if number == epoch]


@pytest.mark.parametrize("stage", STAGES)
def test_batches_from_a_step_are_those_that_a_run_from_the_start_sees(
    stage: str, finished: dict[str, TrainConfig]
) -> None:
    made = make_stage(finished[stage])

    def content(batch: object) -> list[Tensor]:
        return list(map(torch.as_tensor, batch[0]))  # type: ignore[index]

    whole = [content(batch) for batch, _ in zip(made.batches(0), range(7), strict=False)]
    later = [content(batch) for batch, _ in zip(made.batches(4), range(3), strict=False)]
    for one, other in zip(whole[4:], later, strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("stage", STAGES)
def test_the_validation_loss_is_the_same_every_time(stage: str, finished: dict[str, TrainConfig]) -> None:
    made = make_stage(finished[stage])
    assert made.validate() == made.validate() != {}


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_that_breaks_during_a_run_is_named_and_the_run_goes_on(
    stage: str, own_clips: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(stage, own_clips, checkpoint, tmp_path / "run")
    trainer = Trainer(made := make_stage(recipe), recipe)
    broken = made.folder.entries[made.train[0]].path
    broken.write_bytes(broken.read_bytes()[:500])
    assert trainer.fit()
    assert broken.name in capsys.readouterr().err


def test_an_unknown_kind_of_known_is_refused_before_anything_is_read(tmp_path: Path, checkpoint: Path) -> None:
    recipe = tiny_recipe("dit", tmp_path / "nowhere", checkpoint, tmp_path / "run")
    with pytest.raises(ValueError, match=r"dit\.known must name nothing, .*, got 'boxes'"):
        make_stage(replace(recipe, dit=replace(recipe.dit, known={"boxes": 1.0})))
