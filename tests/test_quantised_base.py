"""A LoRA is trained on a base in 8 or 4 bits nearly as on the base itself, and fits the base as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import assert_same_state, elsewhere, fit
from tests.test_lora_training import lora_recipe
from tests.test_wan_pipeline import PROMPT, SETTINGS
from tests.wan_folders import DIT, save
from videogen.config.train import DataConfig, DitConfig, RunConfig, TrainConfig
from videogen.models.dit import VideoDiT
from videogen.models.quantised_linear import BITS, QuantisedLinear, block_matrices, count_base_bytes, load_quantised
from videogen.sampling import gguf_files
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.training import dry_run
from videogen.training.caches import moved_to
from videogen.training.dit_stage import DitStage
from videogen.training.dry_run import format_plan, plan_folder, step_cost
from videogen.training.frozen_models import load_part
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer

WIDE = {"num_attention_heads": 4, "attention_head_dim": 16, "ffn_dim": 128}
WEIGHT_ERROR = {"fp8": 0.03, "nf4": 0.1}  # of normal values: 3 bits of mantissa round by 2.6% (rms), 16 levels by 9%
LEAST_COSINE = {"fp8": 0.995, "nf4": 0.95}


def relative_error(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).norm() / exact.norm())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a folder of diffusers' Wan pipeline whose rows are a block of 64 values."""
    folder = tmp_path_factory.mktemp("wan") / "T2V 2.1"
    with pytest.MonkeyPatch.context() as patched:
        for key, value in WIDE.items():
            patched.setitem(DIT, key, value)
        save("T2V 2.1", folder)
    return folder


@pytest.fixture(scope="module", params=BITS)
def trained(
    request: pytest.FixtureRequest, base: Path, clips_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainConfig:
    """Train a LoRA for eight steps on the base in few bits."""
    recipe = lora_recipe(base, clips_folder, tmp_path_factory.mktemp("lora") / "run", base_dtype=request.param)
    assert fit(recipe)
    return recipe


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(48, 128), (96, 160), (13, 50), (5, 7)])
def test_a_matrix_in_few_bits_is_near_and_takes_the_bytes_that_are_counted(bits: str, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    layer = QuantisedLinear(weight, None, bits)
    kept = BITS[bits].dequantise(layer.weight, layer.scale, shape, torch.float32)
    assert relative_error(kept, weight) < WEIGHT_ERROR[bits]
    assert layer.weight.nbytes + layer.scale.nbytes == BITS[bits].num_bytes(*shape)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bf16", [False, True])
def test_a_layer_computes_and_passes_its_gradient_on_as_a_linear_layer_of_the_same_weight(
    bits: str, bf16: bool
) -> None:
    linear = nn.Linear(64, 32)
    layer = QuantisedLinear(linear.weight.detach(), linear.bias, bits)
    linear.weight.data = BITS[bits].dequantise(layer.weight, layer.scale, (32, 64), torch.float32)
    outputs, gradients = [], []
    for module in (linear, layer):
        x = torch.randn(10, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = module(x)
        out.float().square().sum().backward()
        outputs.append(out)
        gradients.append(x.grad)
    assert outputs[0].dtype == outputs[1].dtype == (torch.bfloat16 if bf16 else torch.float32)
    assert gradients[1].dtype == torch.float32
    # In bf16 the scales of fp8 are rounded too: an element is off by some of bf16's steps of 0.4%.
    tolerance = {"atol": 0.05, "rtol": 0.05} if bf16 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(outputs[1], outputs[0], **tolerance)
    if bf16:
        assert relative_error(gradients[1], gradients[0]) < 0.01
    else:
        torch.testing.assert_close(gradients[1], gradients[0], **tolerance)
    assert layer.weight.grad is None


def test_all_matrices_of_the_blocks_are_kept_in_few_bits_and_nothing_else(base: Path) -> None:
    exact = load_part(VideoDiT, base, "transformer")
    for bits in BITS:
        model = load_quantised(base / "transformer", bits)
        matrices = block_matrices(model)
        assert {type(layer) for layer in matrices.values()} == {QuantisedLinear}
        assert matrices.keys() == block_matrices(exact).keys()
        for name, layer in matrices.items():
            theirs = exact.get_submodule(name)
            kept = BITS[bits].quantise(theirs.weight)  # type: ignore[arg-type]
            assert torch.equal(layer.weight, kept[0])
            assert torch.equal(layer.bias, theirs.bias)  # type: ignore[arg-type]
        others = {name: p for name, p in exact.named_parameters() if name.removesuffix(".weight") not in matrices}
        loaded = dict(model.named_parameters())
        assert all(torch.equal(loaded[name], p) for name, p in others.items())
        with torch.device("meta"):
            meta = VideoDiT.from_config(exact.config)
        held = [*model.parameters(), *model.buffers()]
        assert count_base_bytes(cast("nn.Module", meta), bits) == sum(value.nbytes for value in held)


def gradients_of(recipe: TrainConfig) -> dict[str, Tensor]:
    """Compute the first step's gradient of a LoRA whose matrices are all random."""
    trainer = Trainer(make_stage(recipe), recipe)  # type: ignore[arg-type]
    named = {name: p for name, p in trainer.stage.model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(0)
    for p in named.values():
        p.data.copy_(0.1 * torch.randn(p.shape, generator=generator))
    trainer.compute_gradient(next(trainer.batches()), 0)
    return {name: cast("Tensor", p.grad) for name, p in named.items()}


@pytest.mark.parametrize("bits", BITS)
def test_the_gradient_is_near_that_of_the_base_as_it_is(
    bits: str, base: Path, clips_folder: Path, tmp_path: Path
) -> None:
    exact = gradients_of(lora_recipe(base, clips_folder, tmp_path / "exact"))
    ours = gradients_of(lora_recipe(base, clips_folder, tmp_path / "bits", base_dtype=bits))
    assert ours.keys() == exact.keys()
    flat = [torch.cat([grad.flatten() for grad in grads.values()]) for grads in (ours, exact)]
    cosine, norms = torch.cosine_similarity(*flat, dim=0).item(), [grad.norm().item() for grad in flat]
    assert LEAST_COSINE[bits] < cosine < 1
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


def test_the_loss_falls_and_the_base_stays_as_it_is(trained: TrainConfig, tmp_path: Path) -> None:
    recipe = elsewhere(trained, tmp_path / "run", steps=40, sample_every=0, val_every=40, save_every=40)
    stage = make_stage(recipe)
    assert isinstance(stage, DitStage)
    held = {name: value.clone() for name, value in stage.model.state_dict().items() if ".lora_" not in name}
    trainer = Trainer(stage, recipe)
    before = stage.validate()["loss"]
    assert trainer.fit()
    assert stage.validate()["loss"] < 0.95 * before
    state = stage.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in held.items())


def test_a_run_that_is_stopped_and_resumed_equals_an_uninterrupted_one(trained: TrainConfig, tmp_path: Path) -> None:
    recipe = elsewhere(trained, tmp_path / "run", minutes=1e-9)
    torch.manual_seed(99)
    for _ in range(7):
        assert not fit(recipe)
    assert fit(recipe)
    assert_same_state(recipe.run.dir, trained.run.dir, 8)


def test_the_file_fits_the_base_as_it_is(trained: TrainConfig) -> None:
    """What it samples there is nearer to what it samples on the base in few bits than the base without it is."""
    assert trained.dit.init is not None
    stage, plain = make_stage(trained), VideoPipeline.load(trained.dit.init)
    assert isinstance(stage, DitStage)
    trainer, request = Trainer(stage, trained), [ClipRequest(PROMPT, 5)]
    with trainer.whole_model(averaged=True):
        here = stage.pipeline().sample(request, SETTINGS)[0]
    without = plain.sample(request, SETTINGS)[0]
    plain.add_loras([str(trained.run.dir / "checkpoint")])
    there = plain.sample(request, SETTINGS)[0]
    assert relative_error(there, here) < 0.5 * relative_error(without, here)


@pytest.mark.parametrize("bits", BITS)
def test_a_dry_run_says_what_the_memory_is_of(bits: str, base: Path, clips_folder: Path, tmp_path: Path) -> None:
    recipe = lora_recipe(base, clips_folder, tmp_path / "run", base_dtype=bits)
    stage = make_stage(recipe)
    plan, text = plan_folder(recipe), format_plan(plan_folder(recipe), recipe)
    frozen = [p for p in stage.model.parameters() if not p.requires_grad]
    assert plan.memory_mb["base"] == round(sum(value.nbytes for value in (*frozen, *stage.model.buffers())) / 1e6)
    assert f"of it base in {bits} {plan.memory_mb['base']:,} MB, LoRA with gradients and averages" in text
    assert "the text encoder" in text
    assert "which waits on the host" in text


WAN = {"vae": 126_892_531, "text_encoder": 5_680_910_336}  # weights of Wan 2.1's VAE and of UMT5-XXL's encoder


@pytest.mark.parametrize(
    ("bits", "base_gb", "total_gb"), [("float32", 57.2, 92.8), ("fp8", 15.0, 29.3), ("nf4", 8.9, 23.2)]
)
def test_wan_14b_is_planned_on_24_gb_in_4_bits(
    bits: str, base_gb: float, total_gb: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A clip of 480x272 and 49 frames is a pack of 6630 tokens."""
    monkeypatch.setattr(dry_run, "count_frozen_weights", lambda dit: WAN)
    with torch.device("meta"):
        network = dict(VideoDiT().config)  # whose defaults are Wan 14B
    dit = DitConfig(init=tmp_path, lora_rank=16, gradient_checkpointing=True, base_dtype=bits)  # type: ignore[arg-type]
    recipe = TrainConfig(dit=dit, data=DataConfig(token_budget=6630), run=RunConfig(mixed_precision="bf16"))
    cost = step_cost(recipe, network, [6630], 1)
    assert cost.memory_mb["base"] / 1000 == pytest.approx(base_gb, abs=0.1)
    assert cost.memory_gb == pytest.approx(total_gb, abs=0.3)


class Traveller:
    """Something with a device that records where it goes."""

    def __init__(self) -> None:
        self.device, self.path = torch.device("cpu"), list[str]()

    def to(self, device: torch.device) -> None:
        self.device = device
        self.path.append(device.type)


def test_an_encoder_that_waits_on_the_host_goes_to_the_device_and_back() -> None:
    network = Traveller()

    def fail() -> Iterator[None]:
        with moved_to(network, torch.device("cuda")):  # type: ignore[arg-type]
            assert network.device.type == "cuda"
            raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        next(fail())
    assert network.path == ["cuda", "cpu"]


def test_the_encoder_is_in_bf16_where_the_run_is_and_its_embeddings_are_near(
    base: Path, clips_folder: Path, tmp_path: Path
) -> None:
    recipe = lora_recipe(base, clips_folder, tmp_path / "run", base_dtype="fp8")
    stages = [make_stage(elsewhere(recipe, tmp_path / name, mixed_precision=name)) for name in ("no", "bf16")]
    dtypes, rows, ids = [], [], set()
    for stage in stages:
        assert isinstance(stage, DitStage)
        stage.to_device(torch.device("cpu"))
        dtypes.append(stage.text_encoder.dtype)
        rows.append(stage.embed_captions(["a cat"]).tokens)
        ids.add(stage.texts.embedding_name("a cat"))
    assert dtypes == [torch.float32, torch.bfloat16]
    assert len(ids) == 2
    assert 0 < relative_error(rows[1], rows[0]) < 0.03


def test_what_cannot_be_kept_in_few_bits_is_refused_in_a_sentence(
    base: Path, clips_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"dit.base_dtype = 'fp8' keeps weights that are not trained; give dit.lora"):
        DitConfig(base_dtype="fp8")
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    make_stage(lora_recipe(base, clips_folder, tmp_path / "run", base_dtype="fp8"))
    with pytest.raises(ValueError, match=r"dit.base_dtype = 'nf4' needs bitsandbytes, which is not installed"):
        make_stage(lora_recipe(base, clips_folder, tmp_path / "run", base_dtype="nf4"))
