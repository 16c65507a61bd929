"""Preconditioning: the network predicts at unit variance what the linear estimate leaves open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import CHANNELS, draw_texts, fit, seeded, tiny_dit, tiny_recipe
from videogen.config.train import TrainConfig
from videogen.models.preconditioning import MAX_GATE_SNR, precondition
from videogen.packing.noise import NoiseLevels, interpolate
from videogen.packing.packs import pack
from videogen.training.dit_stage import DitStage

VARIANCE = torch.tensor([9.0, 1.0, 0.01])
SIGMA = torch.tensor([[0.0], [0.1], [0.5], [0.9], [1.0]])


def test_c_skip_is_the_linear_estimate_and_the_residual_has_unit_variance() -> None:
    """For Gaussian data this is optimal: E[v | z] = c_skip * z, and (v - c_skip * z) / c_out has variance 1."""
    clean = VARIANCE.sqrt() * torch.randn(200_000, 1, 3, generator=seeded(0))
    noise = torch.randn(200_000, 1, 3, generator=seeded(1))
    noised, velocity = interpolate(clean, noise, SIGMA), noise - clean
    c_in, c_skip, c_out, _ = precondition(VARIANCE, SIGMA)
    residual = (velocity - c_skip * noised) / c_out
    # The standard error of a mean of 200,000 products is 0.002.
    torch.testing.assert_close((noised * c_in).var(0), torch.ones(5, 3), atol=0.02, rtol=0)
    torch.testing.assert_close(residual.var(0), torch.ones(5, 3), atol=0.02, rtol=0)
    torch.testing.assert_close((residual * noised * c_in).mean(0), torch.zeros(5, 3), atol=0.02, rtol=0)


def test_the_output_is_the_clean_value_at_sigma_one_and_the_noise_at_sigma_zero() -> None:
    _, c_skip, c_out, _ = precondition(VARIANCE, torch.tensor([[1.0], [0.0]]))
    assert c_skip[0].tolist() == [1, 1, 1]  # v = z - sqrt(variance) * output: the output is x at unit variance
    torch.testing.assert_close(c_out[0], -VARIANCE.sqrt())
    torch.testing.assert_close(c_skip[1], -torch.ones(3))  # v = -x - output: the output is -e
    torch.testing.assert_close(c_out[1], -torch.ones(3))


@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 4, 4)])
@torch.no_grad()
def test_a_new_model_predicts_the_linear_estimate_of_every_channel(patch: tuple[int, int, int]) -> None:
    dit = tiny_dit(prediction="preconditioned", extra_patch_sizes=[(1, 4, 4)])
    dit.init_weights()
    variance = torch.linspace(0.1, 4, CHANNELS)
    dit.data_variance.copy_(variance)  # type: ignore[union-attr]
    latents = [torch.randn(CHANNELS, 2, 4, 8), torch.randn(CHANNELS, 1, 4, 4)]
    video = pack(latents, patch)
    sigmas = torch.tensor([0.3, 0.8])
    index = torch.tensor([0, 1]).repeat_interleave(torch.tensor(video.lengths))
    out = dit(video, NoiseLevels(sigmas, index), draw_texts((3, 2)))
    c_skip = precondition(variance, sigmas[:, None]).c_skip
    expected = pack([c_skip[i, :, None, None, None] * latent for i, latent in enumerate(latents)], patch).tokens
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


def test_a_gate_of_minus_one_predicts_that_all_is_noise() -> None:
    """Then v = z / sigma when the network's value is 0: no number of a plain token has to pass through the network."""
    sigma = SIGMA[2:]
    assert ((1 - sigma) * VARIANCE.sqrt() / sigma <= MAX_GATE_SNR).all()  # The gate cannot remove more signal.
    _, c_skip, c_out, c_gate = precondition(VARIANCE, sigma)
    noised = torch.randn(len(sigma), 3, generator=seeded(0))
    torch.testing.assert_close(c_skip * noised + c_out * (c_gate * noised * -1), noised / sigma)


@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 4, 4)])
@torch.no_grad()
def test_the_gates_add_a_share_of_each_noised_value(patch: tuple[int, int, int]) -> None:
    """The gate heads have a bias and zero weights here, so they predict the same for all tokens, cell by cell."""
    dit = tiny_dit(prediction="preconditioned", extra_patch_sizes=[(1, 4, 4)])
    dit.init_weights()
    latent = torch.randn(CHANNELS, 2, 4, 8)
    video = pack([latent], patch)
    levels = NoiseLevels(torch.tensor([0.5]), torch.zeros(video.lengths[0], dtype=torch.long))
    before = dit(video, levels, draw_texts((3,)))
    bias = torch.randn(before.shape[1], generator=seeded(1))  # cell after cell, all channels of each
    head = dit.gate_out if patch == dit.base_patch else dit.extra_patch(patch).gate
    head.bias.copy_(bias)  # type: ignore[union-attr]
    gates = bias.reshape(-1, CHANNELS).T.flatten()
    _, _, c_out, c_gate = precondition(dit.data_variance, torch.tensor([[0.5]]))  # type: ignore[arg-type]
    factors = (c_out * c_gate).repeat_interleave(before.shape[1] // CHANNELS, dim=1)
    torch.testing.assert_close(dit(video, levels, draw_texts((3,))) - before, factors * gates * video.tokens)


@torch.no_grad()
def test_the_prediction_is_finite_at_sigma_zero() -> None:
    dit = tiny_dit(prediction="preconditioned")
    video = pack([torch.randn(CHANNELS, 2, 4, 4)], dit.base_patch)
    levels = NoiseLevels(torch.tensor([0.0]), torch.zeros(8, dtype=torch.long))
    assert dit(video, levels, draw_texts((3,))).isfinite().all()


def test_preconditioning_refuses_more_channels_in_than_out() -> None:
    with pytest.raises(
        ValueError, match="prediction 'preconditioned' needs in_channels equal to out_channels, got 6 and 4"
    ):
        tiny_dit(prediction="preconditioned", in_channels=6, out_channels=4)


@pytest.fixture
def recipe(clips_folder: Path, checkpoint: Path, tmp_path: Path) -> TrainConfig:
    base = tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run")
    return replace(base, dit=replace(base.dit, prediction="preconditioned"))


def test_the_variances_are_measured_from_the_latents_and_not_trained(recipe: TrainConfig) -> None:
    stage = DitStage(recipe)
    variance = stage.model.data_variance
    assert variance is not None
    latents = torch.cat([latent.float().flatten(1) for latent in stage.load_clips(stage.train_indices).latents], dim=1)
    torch.testing.assert_close(variance.data, latents.square().mean(1))
    before = variance.clone()
    assert fit(recipe)
    trained = DitStage(replace(recipe, dit=replace(recipe.dit, init=recipe.run.dir / "checkpoint"))).model
    assert trained.data_variance is not None
    assert trained.data_variance.equal(before)
    assert not trained.is_wan
