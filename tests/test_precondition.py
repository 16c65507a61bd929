"""Preconditioning: what can be said of a value by itself needs no network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import CHANNELS, draw_texts, fit, seeded, tiny_dit, tiny_recipe
from videogen.config.train import TrainConfig
from videogen.models.preconditioning import MOST_GATED, precondition
from videogen.packing.noise import NoiseLevels, interpolate
from videogen.packing.packs import pack
from videogen.training.dit_stage import DitStage

VARIANCE = torch.tensor([9.0, 1.0, 0.01])
SIGMA = torch.tensor([[0.0], [0.1], [0.5], [0.9], [1.0]])


def test_what_is_kept_is_the_linear_estimate_and_the_rest_has_unit_variance() -> None:
    """Of Gaussian data no network can say more: E[v | z] = keep * z, and (v - keep * z) / put has variance 1."""
    clean = VARIANCE.sqrt() * torch.randn(200_000, 1, 3, generator=seeded(0))
    noise = torch.randn(200_000, 1, 3, generator=seeded(1))
    noised, velocity = interpolate(clean, noise, SIGMA), noise - clean
    enter, keep, put, _ = precondition(VARIANCE, SIGMA)
    rest = (velocity - keep * noised) / put
    # the spread of a mean of 200,000 products is 0.002
    torch.testing.assert_close((noised * enter).var(0), torch.ones(5, 3), atol=0.02, rtol=0)
    torch.testing.assert_close(rest.var(0), torch.ones(5, 3), atol=0.02, rtol=0)
    torch.testing.assert_close((rest * noised * enter).mean(0), torch.zeros(5, 3), atol=0.02, rtol=0)


def test_the_answer_is_the_clean_value_under_noise_and_the_noise_without() -> None:
    _, keep, put, _ = precondition(VARIANCE, torch.tensor([[1.0], [0.0]]))
    assert keep[0].tolist() == [1, 1, 1]  # v = z - sqrt(variance) * answer: the answer is x in unit variance
    torch.testing.assert_close(put[0], -VARIANCE.sqrt())
    torch.testing.assert_close(keep[1], -torch.ones(3))  # v = -x - answer: the answer is -e
    torch.testing.assert_close(put[1], -torch.ones(3))


@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 4, 4)])
@torch.no_grad()
def test_a_new_model_s_velocity_is_the_linear_estimate_of_every_channel(patch: tuple[int, int, int]) -> None:
    dit = tiny_dit(prediction="preconditioned", extra_patch_sizes=[(1, 4, 4)])
    dit.init_weights()
    variance = torch.linspace(0.1, 4, CHANNELS)
    dit.data_variance.copy_(variance)  # type: ignore[union-attr]
    latents = [torch.randn(CHANNELS, 2, 4, 8), torch.randn(CHANNELS, 1, 4, 4)]
    video = pack(latents, patch)
    sigmas = torch.tensor([0.3, 0.8])
    index = torch.tensor([0, 1]).repeat_interleave(torch.tensor(video.lengths))
    out = dit(video, NoiseLevels(sigmas, index), draw_texts((3, 2)))
    keep = precondition(variance, sigmas[:, None]).keep
    expected = pack([keep[i, :, None, None, None] * latent for i, latent in enumerate(latents)], patch).tokens
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


def test_a_closed_gate_says_that_there_is_nothing_but_noise() -> None:
    """Then v = z / sigma, whatever the network's own value: no number of a plain token has to pass through it."""
    sigma = SIGMA[2:]
    assert ((1 - sigma) * VARIANCE.sqrt() / sigma <= MOST_GATED).all()  # more signal cannot be taken away
    _, keep, put, gate = precondition(VARIANCE, sigma)
    noised = torch.randn(len(sigma), 3, generator=seeded(0))
    torch.testing.assert_close(keep * noised + put * (gate * noised * -1), noised / sigma)


@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 4, 4)])
@torch.no_grad()
def test_what_the_gates_let_through_goes_round_the_network(patch: tuple[int, int, int]) -> None:
    """With heads that say the same of all tokens, more of each noised value is kept, cell by cell."""
    dit = tiny_dit(prediction="preconditioned", extra_patch_sizes=[(1, 4, 4)])
    dit.init_weights()
    latent = torch.randn(CHANNELS, 2, 4, 8)
    video = pack([latent], patch)
    levels = NoiseLevels(torch.tensor([0.5]), torch.zeros(video.lengths[0], dtype=torch.long))
    before = dit(video, levels, draw_texts((3,)))
    said = torch.randn(before.shape[1], generator=seeded(1))  # of cell after cell, all channels of each
    (dit.gate_out if patch == dit.base_patch else dit.extra(patch).gate).bias.copy_(said)  # type: ignore[union-attr]
    of_channel = said.reshape(-1, CHANNELS).T.flatten()
    _, _, put, gate = precondition(dit.data_variance, torch.tensor([[0.5]]))  # type: ignore[arg-type]
    each = (put * gate).repeat_interleave(before.shape[1] // CHANNELS, dim=1)
    torch.testing.assert_close(dit(video, levels, draw_texts((3,))) - before, each * of_channel * video.tokens)


@torch.no_grad()
def test_known_tokens_give_finite_answers() -> None:
    dit = tiny_dit(prediction="preconditioned")
    video = pack([torch.randn(CHANNELS, 2, 4, 4)], dit.base_patch)
    levels = NoiseLevels(torch.tensor([0.0]), torch.zeros(8, dtype=torch.long))
    assert dit(video, levels, draw_texts((3,))).isfinite().all()


def test_more_channels_in_than_out_are_refused() -> None:
    with pytest.raises(ValueError, match="prediction 'preconditioned' needs as many channels in as out, got 6 and 4"):
        tiny_dit(prediction="preconditioned", in_channels=6, out_channels=4)


@pytest.fixture
def recipe(clips_folder: Path, checkpoint: Path, tmp_path: Path) -> TrainConfig:
    base = tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run")
    return replace(base, dit=replace(base.dit, prediction="preconditioned"))


def test_the_variances_are_those_of_the_latents_and_stay_as_they_are(recipe: TrainConfig) -> None:
    stage = DitStage(recipe)
    variance = stage.model.data_variance
    assert variance is not None
    latents = torch.cat([latent.float().flatten(1) for latent in stage.read(stage.train).latents], dim=1)
    torch.testing.assert_close(variance.data, latents.square().mean(1))
    before = variance.clone()
    assert fit(recipe)
    trained = DitStage(replace(recipe, dit=replace(recipe.dit, init=recipe.run.dir / "checkpoint"))).model
    assert trained.data_variance is not None
    assert trained.data_variance.equal(before)
    assert not trained.is_wan
