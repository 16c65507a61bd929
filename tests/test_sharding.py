"""Weights in shards are trained as whole ones are, and what cannot be trained in shards is refused in a sentence."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import elsewhere, fit, state_of, tiny_recipe
from tests.test_lora_training import FILE, lora_recipe
from tests.test_two_processes import ROOT, assert_same_run, fit_jointly, resume
from tests.two_shards import MAX_NORM, WAYS, loss_of, make_dit, run
from tests.wan_folders import save
from videogen.cli.train import train
from videogen.config.parsing import to_mapping
from videogen.config.train import OptimConfig, RunConfig, TrainConfig
from videogen.sampling.pipeline import VideoPipeline
from videogen.training.ema import PowerEMA
from videogen.training.run_checkpoints import Stretch, load_progress
from videogen.training.sharding import Shards, read_shards
from videogen.training.trainer import Trainer

FSDP = {"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "8"}
HSDP = FSDP | {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}
SIZES = {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "4"}


def environment_of(name: str) -> dict[str, str]:
    """Return the variables that `accelerate launch` sets for a shipped configuration."""
    config = yaml.safe_load((ROOT / "configs" / name).read_text(encoding="utf-8"))
    copies = config.get("parallelism_config", {})
    flags = {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_PARALLELISM_CONFIG": str(bool(copies)).lower()}
    values = {key.upper(): str(value) for key, value in (config["fsdp_config"] | copies).items()}
    return flags | values | {"WORLD_SIZE": str(config["num_processes"])}


def test_what_accelerate_was_configured_to_shard_is_read() -> None:
    recipe = TrainConfig()
    assert read_shards(recipe, {"WORLD_SIZE": "8"}) is None
    assert read_shards(recipe, FSDP) == Shards(1, 8, reshard=True)
    assert read_shards(recipe, FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}) == Shards(1, 8, reshard=False)
    assert read_shards(recipe, HSDP | SIZES) == Shards(2, 4, reshard=True)
    assert read_shards(recipe, environment_of("fsdp.yaml")) == Shards(1, 2, reshard=True)
    assert read_shards(recipe, environment_of("hsdp.yaml")) == Shards(2, 1, reshard=True)


@pytest.mark.parametrize(
    ("recipe", "environment", "message"),
    [
        (TrainConfig(), FSDP | {"FSDP_VERSION": "1"}, "fsdp_version '2', got '1'; launch with configs/fsdp.yaml"),
        (TrainConfig(), FSDP | {"FSDP_OFFLOAD_PARAMS": "True"}, "fsdp_offload_params 'false', got 'True'"),
        (TrainConfig(), HSDP | SIZES | {"PARALLELISM_CONFIG_TP_SIZE": "2"}, "parallelism_config_tp_size '1', got '2'"),
        (TrainConfig(), HSDP | SIZES | {"WORLD_SIZE": "2"}, "2 copies .* in 4 parts each need 8 processes, got 2"),
        (TrainConfig(), FSDP | {"WORLD_SIZE": "1"}, "1 copies .* in 1 parts each need 2 processes, got 1"),
        (TrainConfig(optim=OptimConfig(optimizer="muon")), FSDP, "not trained with optim.optimizer = 'muon'; leave"),
        (TrainConfig(run=RunConfig(compile=True)), FSDP, "not trained with run.compile; leave it out"),
    ],
)
def test_what_is_not_trained_in_shards_is_refused(
    recipe: TrainConfig, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_shards(recipe, environment)


def test_shards_that_are_refused_are_refused_before_anything_is_loaded(
    tmp_path: Path, clips_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (FSDP | {"WORLD_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("videogen.training.stages.make_stage", lambda recipe: pytest.fail("it was loaded"))
    words = ["configs/folder-dit.toml", "--data", str(clips_folder), "--run", str(tmp_path / "run")]
    assert train([str(ROOT / words[0]), *words[1:]]) == 2
    assert "need 2 processes, got 1" in capsys.readouterr().err


def test_the_trainer_does_not_pass_over_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate would leave them out in silence on a CPU."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="need 2 processes, got 1"):
        Trainer(None, TrainConfig())  # type: ignore[arg-type]


def test_a_step_in_shards_is_the_step_of_one_process_with_both_packs(tmp_path: Path) -> None:
    """Two processes with one part each, and with a copy each; the second process's own weights are not used."""
    multiprocessing.set_forkserver_preload([run.__module__])  # torch is imported once for both processes
    torch.multiprocessing.start_processes(run, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    dit = make_dit(seed=0)
    num_weights = sum(param.numel() for param in dit.parameters())
    losses = torch.stack([loss_of(dit, rank) for rank in range(2)])
    losses.mean().backward()
    trained = {name: param for name, param in dit.named_parameters() if param.grad is not None}
    assert not any("extra_patches" in name for name in trained)
    expected = {f"gradient {name}": param.grad.clone() for name, param in trained.items()}  # type: ignore[union-attr]
    ema = PowerEMA(dit, (0.1,))
    norm = torch.nn.utils.clip_grad_norm_(dit.parameters(), MAX_NORM)
    assert norm > MAX_NORM
    with torch.no_grad():
        for param in trained.values():
            param.add_(param.grad)  # type: ignore[arg-type]
    ema.update(2)
    expected |= {f"average {name}": copy.clone() for name, copy in zip(ema.names, ema.copies[0], strict=True)}
    expected["norm"] = norm
    with torch.no_grad():
        for param, average in zip(dit.parameters(), ema.copies[0], strict=True):
            param.copy_(average)
        lent = [loss_of(dit, 0), torch.zeros(())]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for shards, *results in zip(WAYS, *parts, strict=True):
        assert sum(result["part"] for result in results) == shards.copies * num_weights
        for rank, result in enumerate(results):
            # Float32, only the order of sums differs.
            torch.testing.assert_close(result["loss"], losses[rank], atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(result["lent"], lent[rank], atol=1e-6, rtol=1e-6)
            assert expected.keys() == result.keys() - {"loss", "part", "lent"}
            for name, value in expected.items():
                torch.testing.assert_close(result[name], value, atol=1e-6, rtol=1e-5, msg=f"{shards} {name}")


# --- whole runs, launched by accelerate


def launch(config: str, recipes: dict[str, TrainConfig], folder: Path, num: int, *flags: str) -> None:
    """Carry out recipes in processes that accelerate launches."""
    file = folder / f"{config}-{num}.json"
    file.write_text(json.dumps([to_mapping(recipe) for recipe in recipes.values()]), encoding="utf-8")
    words = ["--config_file", str(ROOT / "configs" / config), "--num_processes", str(num), "--main_process_port", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *words, *flags]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "two_processes.py"), str(file)],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def plain(clips_folder: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Train eight steps in one process, with samples, saved after four and eight."""
    folder = tmp_path_factory.mktemp("plain")
    options = {"mixed_precision": "no", "sample_every": 4, "sample_prompts": ("a red circle",)}
    recipe = tiny_recipe("dit", clips_folder, checkpoint, folder / "run", **options)
    assert fit(recipe)
    return recipe


@pytest.fixture(scope="module")
def sharded(plain: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainConfig]:
    """Train in two processes by FSDP, anew and on from four steps of one process, and by HSDP in four, 2 copies x 2."""
    place = tmp_path_factory.mktemp("sharded")
    (place / "on").mkdir()
    recipes = {"anew": elsewhere(plain, place / "anew"), "on": resume(plain, place / "on")}
    launch("fsdp.yaml", recipes, place, 2)
    hsdp = elsewhere(plain, place / "hsdp")
    hsdp = replace(hsdp, dit=replace(hsdp.dit, gradient_checkpointing=True))  # to the same gradient
    sizes = {"replicate": 2, "shard": 2}
    flags = [word for name, size in sizes.items() for word in (f"--parallelism_config_dp_{name}_size", str(size))]
    launch("hsdp.yaml", {"hsdp": hsdp}, place, 4, *flags)
    return recipes | {"hsdp": hsdp}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num"), [("anew", 2), ("hsdp", 4)])
def test_shards_have_the_losses_of_one_process_with_the_same_batch(
    name: str, num: int, sharded: dict[str, TrainConfig], tmp_path: Path
) -> None:
    fit_jointly(elsewhere(sharded[name], tmp_path / "run"), num)
    assert_same_run(sharded[name].run.dir, tmp_path / "run")
    rows = [(sharded[name].run.dir / "log.jsonl"), tmp_path / "run" / "log.jsonl"]
    losses = [[json.loads(line).get("val_loss") for line in path.read_text().splitlines()] for path in rows]
    assert losses[0][-1] == pytest.approx(losses[1][-1], abs=1e-5)


@pytest.mark.slow
def test_shards_go_on_with_the_run_of_one_process(sharded: dict[str, TrainConfig], tmp_path: Path) -> None:
    assert load_progress(sharded["on"].run.dir, 8).stretches == [Stretch(1, 4), Stretch(2, 4)]
    (tmp_path / "run").mkdir()
    fit_jointly(resume(sharded["on"], tmp_path / "run"))
    assert_same_run(sharded["on"].run.dir, tmp_path / "run")


@pytest.mark.slow
def test_one_process_goes_on_with_a_run_in_shards(sharded: dict[str, TrainConfig], tmp_path: Path) -> None:
    fit_jointly(elsewhere(sharded["anew"], tmp_path / "joint"))
    for name, source in (("joint on", tmp_path / "joint"), ("on", sharded["anew"].run.dir)):
        (tmp_path / name).mkdir()
        recipe = resume(elsewhere(sharded["anew"], source), tmp_path / name)
        assert fit(recipe)
        assert load_progress(recipe.run.dir, 8).stretches == [Stretch(2, 4), Stretch(1, 4)]
    assert_same_run(tmp_path / "on", tmp_path / "joint on")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["anew", "hsdp"])
def test_a_run_in_shards_leaves_what_a_run_of_one_process_leaves(
    name: str, plain: TrainConfig, sharded: dict[str, TrainConfig]
) -> None:
    """Step folders, checkpoint and samples; the checkpoint opens in one process and holds the averaged weights."""
    run_dir = sharded[name].run.dir
    left = [
        {path.relative_to(place).as_posix() for path in place.rglob("*") if path.parts[len(place.parts)] in kinds}
        for place in (run_dir, plain.run.dir)
        for kinds in [("checkpoint", "samples", "step_000004", "step_000008")]
    ]
    assert left[0] == left[1]
    opened = VideoPipeline.from_pretrained(run_dir / "checkpoint").transformer.state_dict()
    averages = {key.removeprefix("ema_0."): x for key, x in state_of(run_dir, 8).items() if key.startswith("ema_0.")}
    assert opened.keys() == averages.keys()
    assert all(torch.equal(opened[key], averages[key]) for key in opened)


@pytest.mark.slow
def test_a_vae_is_trained_whole_where_shards_are_asked_for(
    clips_folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe("vae", clips_folder, checkpoint, tmp_path / "run", mixed_precision="no")
    launch("fsdp.yaml", {"vae": recipe}, tmp_path, 2)
    fit_jointly(elsewhere(recipe, tmp_path / "joint"))
    assert_same_run(recipe.run.dir, tmp_path / "joint")


@pytest.mark.slow
def test_a_lora_is_trained_in_shards_with_the_model_that_it_adapts(clips_folder: Path, tmp_path: Path) -> None:
    save("T2V 2.1", tmp_path / "wan")
    recipe = lora_recipe(tmp_path / "wan", clips_folder, tmp_path / "run")
    recipe = replace(
        recipe, optim=replace(recipe.optim, lr=1e-3), run=replace(recipe.run, mixed_precision="no", sample_every=0)
    )
    launch("fsdp.yaml", {"lora": recipe}, tmp_path, 2)
    fit_jointly(elsewhere(recipe, tmp_path / "joint" / "run"))
    assert_same_run(recipe.run.dir, tmp_path / "joint" / "run")
    files = [load_file(place / "checkpoint" / FILE) for place in (recipe.run.dir, tmp_path / "joint" / "run")]
    assert files[0].keys() == files[1].keys()
    for name, value in files[0].items():
        torch.testing.assert_close(value, files[1][name], atol=2e-4, rtol=0, msg=name)
