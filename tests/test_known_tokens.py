"""Known tokens: given ones stay to the bit under every solver, held ones are led to what was given, others are free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import BertModel, PreTrainedTokenizerFast

from tests.conftest import CHANNELS, seeded, tiny_dit
from videogen.config.sample import SampleConfig
from videogen.models.vae import VideoVAE
from videogen.packing.noise import NoiseLevels
from videogen.packing.packs import pack, unpack
from videogen.packing.patch_schedule import Patch
from videogen.sampling import denoiser
from videogen.sampling.brownian import BrownianPath
from videogen.sampling.clip_sampler import ClipRequest
from videogen.sampling.known_tokens import KnownLatent, free_latent, pack_known
from videogen.sampling.pipeline import VideoPipeline
from videogen.sampling.solvers import DIFFUSERS_SAMPLERS, SAMPLERS, STOCHASTIC_SAMPLERS, solve

OUR_SAMPLERS = (*SAMPLERS, *STOCHASTIC_SAMPLERS)
EVERY_SAMPLER = (*OUR_SAMPLERS, *DIFFUSERS_SAMPLERS)
FINE, COARSE = (1, 1, 1), (1, 2, 2)
SHAPE = (CHANNELS, 3, 4, 6)  # of the tiny pipeline's default clip


def draw_known(*weights: float, seed: int = 0) -> KnownLatent:
    """Draw a latent whose frames have these weights."""
    weight = torch.tensor(weights)[:, None, None].expand(SHAPE[1:]).clone()
    return KnownLatent(torch.randn(SHAPE, generator=seeded(seed)), weight)


def run_solver(name: str, velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int = 9) -> Tensor:
    path = BrownianPath(tuple(x.shape), 3)
    return solve(name, velocity, x, lambda a, b: path.increment(float(a), float(b)), steps=steps, shift=2.0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", EVERY_SAMPLER)
def test_given_frames_come_back_to_the_bit_and_lead_the_others(
    sampler: str, guidance: float, pipeline: VideoPipeline
) -> None:
    config, known = replace(pipeline.defaults, sampler=sampler, guidance=guidance), draw_known(1, 0, 0)
    free, held = (pipeline.sample([ClipRequest("a red circle", 4, k)], config)[0] for k in ((), known))
    assert torch.equal(held[:, 0], known.clean[:, 0])
    assert not torch.isclose(held[:, 1:], free[:, 1:]).any(1).all()
    assert held.isfinite().all()


@pytest.mark.parametrize("cap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("sampler", EVERY_SAMPLER)
def test_a_solver_is_led_to_what_was_given_from_any_noise(sampler: str, cap: float) -> None:
    """Freed tokens see a field whose clean value is the given one as well, so that all of them must end there."""
    known = pack_known([draw_known(1 - cap, 1, 1 - cap)], COARSE, COARSE)
    noise = torch.randn(known.clean.tokens.shape, generator=seeded(1))
    field = known.hold(lambda x, sigma: (x - known.clean.tokens) / float(sigma))
    torch.testing.assert_close(
        run_solver(sampler, field, noise), known.clean.tokens, atol=2e-2, rtol=0
    )  # timesteps round


@pytest.mark.parametrize("sampler", OUR_SAMPLERS)
def test_the_noise_that_the_network_sees_is_of_the_level_that_it_is_told(sampler: str) -> None:
    """Also where a solver renews the noise at every step: the deviation is that of the cap, or of sigma below it."""
    shape = (8, 4, 16, 16)
    clean = torch.zeros(shape)
    weight = torch.tensor([1.0, 0.7, 0.4, 0.0])[:, None, None].expand(shape[1:])
    known = pack_known([KnownLatent(clean, weight)], FINE, FINE)
    seen: list[tuple[float, list[float]]] = []

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        shown = known.show(x, sigma)
        (frames,) = unpack(known.clean._replace(tokens=shown))
        seen.append((float(sigma), [frame.std().item() for frame in frames.unbind(1)]))
        told = known.levels(sigma.reshape(1), [0], FINE).per_token()
        assert {round(level, 4) for level in told.flatten().tolist()} == {
            round(min(float(sigma), cap), 4) for cap in (0, 0.3, 0.6, 1)
        }
        return x / float(sigma)  # free tokens are led to zero too

    run_solver(sampler, known.hold(velocity), pack([torch.randn(shape, generator=seeded(2))], FINE).tokens, steps=7)
    assert len(seen) >= 7
    for sigma, deviations in seen:
        wanted = [min(sigma, cap) for cap in (0, 0.3, 0.6, 1)]
        assert deviations == pytest.approx(wanted, abs=0.04 * sigma)  # of 2,048 values each: 1.6%


def test_the_network_sees_given_frames_clean_in_both_branches_of_guidance(pipeline: VideoPipeline) -> None:
    known, calls = draw_known(1, 0, 0.5), list[tuple[Tensor, NoiseLevels, tuple[object, ...]]]()
    config = replace(pipeline.defaults, guidance=3.0, steps=4)
    dit = pipeline.transformer
    project = dit.project_levels
    told: list[list[float]] = []

    def project_levels(levels: NoiseLevels, patch: Patch) -> object:
        told.append(levels.values.tolist())
        return project(levels, patch)

    hook = dit.register_forward_pre_hook(lambda _, args: calls.append(args))  # type: ignore[arg-type]
    dit.project_levels = project_levels  # type: ignore[method-assign]
    try:
        pipeline.sample([ClipRequest("a red circle", 4, known)], config)
    finally:
        hook.remove()
        del dit.project_levels
    assert len(calls) == 4
    for video, levels, _ in calls:
        for latent in unpack(video):  # type: ignore[arg-type]
            assert torch.equal(latent[:, 0], known.clean[:, 0])
        assert len(levels.index) == 2 * 18
    assert all(values[1] == 0 and values[2] == min(values[0], 0.5) for values in told)


def test_a_clip_with_known_frames_does_not_change_its_neighbours(pipeline: VideoPipeline) -> None:
    known = draw_known(1, 0.3, 0)
    requests = [ClipRequest("a red circle", 3), ClipRequest("a blue star", 4, known), ClipRequest("a circle", 5)]
    together = pipeline.sample(requests, pipeline.defaults)
    for request, latent in zip(requests, together, strict=True):
        (alone,) = pipeline.sample([request], pipeline.defaults)
        torch.testing.assert_close(latent, alone, atol=2e-4, rtol=0)  # Only the order of sums differs.


def test_a_known_clip_of_no_weight_changes_nothing(pipeline: VideoPipeline) -> None:
    plain, known = (
        pipeline.sample([ClipRequest("a red circle", 3, known)], pipeline.defaults)[0]
        for known in ((), free_latent(SHAPE))
    )
    assert torch.equal(plain, known)


@pytest.mark.parametrize("patch", ["1x1x1", "1x2x2", "1x2x2:0.5,1x1x1"])
def test_cells_are_known_under_every_patch_size(
    patch: str, vae: VideoVAE, text_encoder: BertModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A token is as free as the freest of its cells, in the coarsest patch of the run; a finer one keeps more."""
    sampler = VideoPipeline(tiny_dit(extra_patch_sizes=[FINE]), vae, text_encoder, tokenizer)
    clean, weight = torch.randn(CHANNELS, 1, 4, 4), torch.ones(1, 4, 4)
    weight[0, 0, 0] = 0
    config = SampleConfig(size="32x32", frames=1, steps=4, patch=patch)
    (latent,) = sampler.sample([ClipRequest("a red circle", 0, KnownLatent(clean, weight))], config)
    is_kept = torch.isclose(latent, clean, atol=0, rtol=0).all(0)[0]
    is_free = torch.zeros(4, 4, dtype=torch.bool)
    is_free[:1, :1] = True
    if "1x2x2" in patch:
        is_free[:2, :2] = True
    assert torch.equal(is_kept, ~is_free)


def test_guidance_sums_over_free_tokens_alone(pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the network says of a given frame is not trained, and must not change the scale of CFG-Zero*."""
    known, config = draw_known(1, 0, 0), replace(pipeline.defaults, guidance=4.0, cfg_zero=True)
    velocities: list[Tensor] = []

    def record(cond: Tensor, uncond: Tensor, scale: float, *, cfg_zero: bool) -> Tensor:
        velocities.extend((cond, uncond))
        return cond

    monkeypatch.setattr(denoiser, "apply_guidance", record)
    pipeline.sample([ClipRequest("a red circle", 4, known)], config)
    for velocity in velocities:
        given, *others = velocity.chunk(3)
        assert not given.any()
        assert all(frame.any() for frame in others)
