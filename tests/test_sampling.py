"""Solvers against exact answers: for data N(0, s²) the velocity and the whole path are known."""

import itertools
import math
from collections.abc import Sequence

import diffusers
import pytest
import torch
from torch import Tensor

from videogen.packing.noise import seeded_noise
from videogen.sampling.brownian import BrownianPath
from videogen.sampling.guidance import guide, zero_star
from videogen.sampling.solvers import (
    DIFFUSERS_SAMPLERS,
    SAMPLERS,
    STOCHASTIC_SAMPLERS,
    BrownianIncrement,
    check_sampler,
    log_snr,
    make_scheduler,
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_euler,
    sigma_schedule,
    solve,
)

DEVIATION = 0.3
ALL = [*SAMPLERS, *STOCHASTIC_SAMPLERS, *DIFFUSERS_SAMPLERS]


def exact(x: Tensor, sigma: Tensor, s: float = DEVIATION) -> Tensor:
    """The velocity of data N(0, s²)."""
    return (sigma - (1 - sigma) * s**2) / spread(sigma, s) ** 2 * x


def spread(sigma: Tensor, s: float = DEVIATION) -> Tensor:
    """The deviation of noised data; along the exact path x / spread(sigma) does not change."""
    return ((1 - sigma) ** 2 * s**2 + sigma**2).sqrt()


def more_noise(*shape: int) -> BrownianIncrement:
    """What samplers draw on the way."""
    generator = torch.Generator().manual_seed(1)
    return lambda before, after: torch.randn(*shape, generator=generator)


def none_is_drawn(before: Tensor, after: Tensor) -> Tensor:
    """For samplers that follow one path."""
    raise AssertionError(f"noise was drawn from {before} to {after}")


def error(name: str, steps: int) -> float:
    """How far a sampler misses the exact answer between sigma 0.9 and 0.1, relative to it, in float64."""
    sigmas = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
    x = torch.ones(1, dtype=torch.float64)
    truth = x * spread(sigmas[-1]) / spread(sigmas[0])
    return ((SAMPLERS[name](exact, x, sigmas) - truth) / truth).abs().item()


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_a_sampler_has_its_order(name: str, order: int) -> None:
    coarse, fine = error(name, 64), error(name, 128)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)
    assert fine < (0.05 if order == 1 else 0.002)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_path_from_pure_noise_ends_at_the_data(name: str) -> None:
    noise = torch.randn(64, 8)
    clean = SAMPLERS[name](exact, noise, sigma_schedule(100))
    torch.testing.assert_close(clean, DEVIATION * noise, atol=0.05, rtol=0)  # the last step is of first order
    assert clean.dtype == torch.float32


@pytest.mark.parametrize("name", [*SAMPLERS, *DIFFUSERS_SAMPLERS])
def test_every_sampler_by_name_lands_near_the_truth(name: str) -> None:
    noise = torch.randn(64, 8)
    clean = solve(name, exact, noise, none_is_drawn, steps=50, shift=1.0)
    assert clean.isfinite().all()
    off = (clean - DEVIATION * noise).norm() / (DEVIATION * noise).norm()
    assert off < 0.15


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_every_sampler_stays_finite_at_few_steps(name: str, steps: int, shift: float) -> None:
    noise = torch.randn(16, 4)
    clean = solve(name, exact, noise, more_noise(16, 4), steps=steps, shift=shift)
    assert clean.isfinite().all()
    assert clean.abs().max() <= noise.abs().max()


@pytest.mark.parametrize("name", [*SAMPLERS, *DIFFUSERS_SAMPLERS])
def test_a_sampler_is_told_the_noise_level_that_it_is_at(name: str) -> None:
    """With data at one point the velocity is (x - data) / sigma: where x is on the path, any other sigma shows."""
    data, noise = torch.full((4, 2), 0.7), torch.randn(4, 2)
    seen: list[tuple[float, float]] = []

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        real = ((x - data) / (noise - data)).median().item()  # x = data + sigma (noise - data)
        seen.append((float(sigma), real))
        return (x - data) / sigma

    clean = solve(name, velocity, noise, none_is_drawn, steps=12, shift=2.0)
    for told, real in seen:
        assert told == pytest.approx(real, abs=7e-4)  # some of diffusers' schedules start at 0.9995
    torch.testing.assert_close(clean, data, atol=2e-3, rtol=0)  # none of the noise is left, but for that


@pytest.mark.parametrize("name", [*SAMPLERS, *STOCHASTIC_SAMPLERS])
def test_samplers_take_guidance_and_noise_without_changing_them(name: str) -> None:
    noise = torch.randn(8, 4)
    before = noise.clone()
    solve(name, exact, noise, more_noise(8, 4), steps=4, shift=1.0)
    assert torch.equal(noise, before)


def test_noise_drawn_on_the_way_leaves_the_spread_of_the_data() -> None:
    """4,096 x 8 values: the sample deviation's own is 0.4%; what is left is the solver's, smaller with more steps."""
    noise = torch.randn(4096, 8)
    clean = solve("dpmpp_2m_sde", exact, noise, more_noise(4096, 8), steps=100, shift=1.0)
    assert clean.std().item() == pytest.approx(DEVIATION, rel=0.02)
    assert torch.corrcoef(torch.stack([clean.flatten(), noise.flatten()]))[0, 1].abs() < 0.05  # the start is forgotten


# --- schedule


def test_no_shift_begins_above_the_noise() -> None:
    """Rounding did so for a twentieth of them, 2.14 among these: log(1 - sigma) is then no number."""
    for shift in range(1, 2001):
        assert 1 - 1e-6 < sigma_schedule(4, shift=shift / 100)[0] <= 1, shift / 100


def test_deis_goes_to_the_end_beside_another_scheduler() -> None:
    """A checkpoint's own scheduler says the timesteps of any; that DEIS stops short is undone all the same."""
    clean = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    options = {"steps": 20, "shift": 3.0, "scheduler": make_scheduler("unipc", 3.0)}
    for name in ("deis", "unipc"):
        made = solve(name, lambda x, sigma: (x - clean) / sigma, noise, lambda a, b: noise, **options)
        assert (made - clean).abs().max() < 0.02, name


@pytest.mark.parametrize("steps", [1, 2, 20, 1000])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 12.0])
def test_the_schedule_starts_at_1_falls_and_ends_at_0(steps: int, shift: float) -> None:
    sigmas = sigma_schedule(steps, shift=shift)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float32
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_shift_multiplies_the_odds_of_noise() -> None:
    plain, shifted = sigma_schedule(10), sigma_schedule(10, shift=3.0)
    odds = [part[1:-1] / (1 - part[1:-1]) for part in (plain, shifted)]
    torch.testing.assert_close(odds[1], 3 * odds[0], atol=1e-5, rtol=1e-5)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        sigma_schedule(0)


def test_log_snr_is_infinite_at_the_ends_and_0_in_the_middle() -> None:
    assert log_snr(torch.tensor([1.0, 0.5, 0.0])).tolist() == [-math.inf, 0.0, math.inf]


# --- agreement with diffusers


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_the_euler_of_diffusers(shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=sigma_schedule(12)[:-1].tolist())
    torch.testing.assert_close(scheduler.sigmas, sigma_schedule(12, shift=shift), atol=1e-6, rtol=0)
    noise = torch.randn(16, 4)
    theirs = stepped(scheduler, noise, scheduler.sigmas)
    ours = sample_euler(exact, noise, sigma_schedule(12, shift=shift))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)  # float32 rounding of sums


@pytest.mark.parametrize("steps", [5, 12, 30])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_dpmpp_2m_is_the_dpm_solver_of_diffusers(algorithm: str, steps: int, shift: float) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type=algorithm, prediction_type="flow_prediction", use_flow_sigmas=True, euler_at_final=False
    )
    scheduler.set_timesteps(steps)
    sigmas = sigma_schedule(steps, shift=shift)
    sigmas[0] -= 1e-6  # as diffusers does, which cannot start at an infinite log signal-to-noise
    scheduler.sigmas, scheduler.timesteps = sigmas, 1000 * sigmas[:-1]
    noise = torch.randn(16, 4)
    if algorithm == "dpmsolver++":
        theirs, ours = stepped(scheduler, noise, sigmas), sample_dpmpp_2m(exact, noise, sigmas)
    else:
        theirs = stepped(scheduler, noise, sigmas, more_noise(16, 4))
        ours = sample_dpmpp_2m_sde(exact, noise, sigmas, more_noise(16, 4))
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)  # float32 rounding of sums


def stepped(
    scheduler: object, x: Tensor, sigmas: Sequence[Tensor] | Tensor, more: BrownianIncrement | None = None
) -> Tensor:
    for sigma, timestep in zip(sigmas[:-1], scheduler.timesteps, strict=True):  # type: ignore[attr-defined]
        noise = {} if more is None else {"variance_noise": more(sigma, sigma)}
        x = scheduler.step(exact(x, sigma), timestep, x, return_dict=False, **noise)[0]  # type: ignore[attr-defined]
    return x


def test_an_unknown_sampler_is_refused_with_those_that_are_known() -> None:
    names = ", ".join(ALL)
    for call in (check_sampler, lambda name: solve(name, exact, torch.zeros(1), none_is_drawn, steps=1, shift=1.0)):
        with pytest.raises(ValueError, match=f"sampler must be one of {names}, got 'ddim'"):
            call("ddim")


# --- guidance


def test_guidance_of_1_is_the_prompt_alone_and_0_is_none() -> None:
    cond, uncond = torch.randn(2, 10, 4)
    torch.testing.assert_close(guide(cond, uncond, 1.0), cond, atol=0, rtol=0)
    torch.testing.assert_close(guide(cond, uncond, 0.0), uncond, atol=0, rtol=0)
    torch.testing.assert_close(guide(cond, uncond, 3.0), uncond + 3 * (cond - uncond), atol=1e-6, rtol=0)


def test_zero_star_is_the_projection_of_a_clip_on_its_unguided_velocity() -> None:
    """The remainder is orthogonal, and no other multiple is nearer."""
    for length in (3, 7, 1):
        c, u = torch.randn(2, length, 4)
        f = zero_star(c, u)
        assert ((c - f) * u).sum().abs() < 1e-4  # float32 sums of 28 products
        scale = (f / u).median()
        torch.testing.assert_close(f, scale * u, atol=1e-6, rtol=0)
        assert all((c - f).norm() <= (c - (scale + d) * u).norm() for d in (-0.1, -0.01, 0.01, 0.1))


def test_zero_star_of_a_parallel_prediction_is_the_prompt_and_of_zero_is_zero() -> None:
    cond = torch.randn(6, 4)
    torch.testing.assert_close(zero_star(cond, 3 * cond), cond, atol=1e-6, rtol=0)
    assert not zero_star(cond, torch.zeros(6, 4)).any()


# --- noise


def test_brownian_increments_add_up_to_one_path_in_few_steps_and_in_many() -> None:
    """Over ratios t = exp(2 log ratio) the path's increments, sqrt(dt) times the noise, add up."""
    path = BrownianPath((4, 3, 8, 8), 7)
    for grid in (torch.linspace(-4, 5, 6), torch.linspace(-4, 5, 40), torch.tensor([-4.0, -3.99, 5.0])):
        places = [-math.inf, *grid.tolist()]
        steps = itertools.pairwise(places)
        parts = [math.sqrt(math.exp(2 * b) - math.exp(2 * a)) * path.increment(a, b) for a, b in steps]
        whole = math.exp(5) * path.increment(-math.inf, 5)
        torch.testing.assert_close(sum(parts), whole, rtol=0, atol=0.01 * math.exp(5))  # places are rounded by 0.00015


def test_brownian_increments_are_normal_and_independent_over_steps_and_seeds() -> None:
    """12,288 values: the deviation of their deviation is 0.6%, of a correlation 0.9%."""
    places = [-math.inf, *torch.linspace(-9, 9, 12).tolist(), 10, 11]  # beyond 10 all is one place
    paths = [BrownianPath((3, 4, 32, 32), seed) for seed in (0, 1)]
    drawn = [path.increment(a, b).flatten() for path in paths for a, b in itertools.pairwise(places)]
    drawn += [one.flatten() for one in seeded_noise([(3, 4, 32, 32)] * 2, (0, 1))]
    table = torch.stack(drawn)
    torch.testing.assert_close(table.std(1), torch.ones(len(table)), atol=0.03, rtol=0)
    torch.testing.assert_close(table.mean(1), torch.zeros(len(table)), atol=0.04, rtol=0)
    torch.testing.assert_close(torch.corrcoef(table), torch.eye(len(table)), atol=0.05, rtol=0)


def test_a_stochastic_sampler_nearly_makes_the_same_clip_in_more_steps() -> None:
    """For data N(0, s²) in 50 and in 400 steps; with noise of other steps they have nothing in common."""
    noise, path = torch.randn(1, 4096), BrownianPath((1, 4096), 3)

    def brownian_increment(before: Tensor, after: Tensor) -> Tensor:
        return path.increment(float(before), float(after))

    few, many = (solve("dpmpp_2m_sde", exact, noise, brownian_increment, steps=n, shift=1.0) for n in (50, 400))
    assert torch.corrcoef(torch.cat([few, many]))[0, 1] > 0.95


def test_the_noise_of_a_clip_depends_on_its_seed_and_shape_only() -> None:
    shapes = [(4, 1, 2, 2), (4, 3, 2, 4), (4, 2, 2, 2)]
    together = seeded_noise(shapes, [5, 6, 7])
    torch.manual_seed(99)
    assert torch.equal(seeded_noise(shapes[1:2], [6])[0], together[1])
    assert not torch.equal(seeded_noise(shapes[1:2], [8])[0], together[1])
    assert [tuple(noise.shape) for noise in together] == shapes


def test_noise_is_standard_normal() -> None:
    (noise,) = seeded_noise([(4, 8, 32, 32)], [0])
    assert noise.mean().abs() < 0.02  # deviation 0.0055
    assert noise.std().item() == pytest.approx(1, abs=0.02)
