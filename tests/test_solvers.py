"""Solvers against exact answers: for data N(0, s²) the velocity and the whole path are known in closed form."""

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
    known_levels,
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


def exact_velocity(x: Tensor, sigma: Tensor, s: float = DEVIATION) -> Tensor:
    """Compute the velocity of data N(0, s²)."""
    return (sigma - (1 - sigma) * s**2) / noised_deviation(sigma, s) ** 2 * x


def noised_deviation(sigma: Tensor, s: float = DEVIATION) -> Tensor:
    """Compute the deviation of noised data; along the exact path x / noised_deviation(sigma) is constant."""
    return ((1 - sigma) ** 2 * s**2 + sigma**2).sqrt()


def make_increments(*shape: int) -> BrownianIncrement:
    """Make a function that samples independent noise for every step."""
    generator = torch.Generator().manual_seed(1)
    return lambda before, after: torch.randn(*shape, generator=generator)


def refuse_increment(before: Tensor, after: Tensor) -> Tensor:
    """Fail, since a deterministic sampler takes no noise after the start."""
    raise AssertionError(f"noise was sampled from {before} to {after}")


def relative_error(name: str, steps: int) -> float:
    """Measure the relative error of a sampler between sigma 0.9 and 0.1, in float64."""
    sigmas = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
    x = torch.ones(1, dtype=torch.float64)
    truth = x * noised_deviation(sigmas[-1]) / noised_deviation(sigmas[0])
    return ((SAMPLERS[name](exact_velocity, x, sigmas) - truth) / truth).abs().item()


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_a_sampler_has_its_order(name: str, order: int) -> None:
    coarse, fine = relative_error(name, 64), relative_error(name, 128)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)
    assert fine < (0.05 if order == 1 else 0.002)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_solver_leads_pure_noise_to_the_data(name: str) -> None:
    noise = torch.randn(64, 8)
    clean = SAMPLERS[name](exact_velocity, noise, sigma_schedule(100))
    torch.testing.assert_close(clean, DEVIATION * noise, atol=0.05, rtol=0)  # The last step is of first order.
    assert clean.dtype == torch.float32


@pytest.mark.parametrize("name", [*SAMPLERS, *DIFFUSERS_SAMPLERS])
def test_every_deterministic_sampler_is_near_the_exact_answer_in_50_steps(name: str) -> None:
    noise = torch.randn(64, 8)
    clean = solve(name, exact_velocity, noise, refuse_increment, steps=50, shift=1.0)
    assert clean.isfinite().all()
    error = (clean - DEVIATION * noise).norm() / (DEVIATION * noise).norm()
    assert error < 0.15


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_every_sampler_stays_finite_and_bounded_in_few_steps(name: str, steps: int, shift: float) -> None:
    noise = torch.randn(16, 4)
    clean = solve(name, exact_velocity, noise, make_increments(16, 4), steps=steps, shift=shift)
    assert clean.isfinite().all()
    assert clean.abs().max() <= noise.abs().max()


@pytest.mark.parametrize("name", [*SAMPLERS, *DIFFUSERS_SAMPLERS])
def test_a_sampler_passes_the_noise_level_of_its_tokens_to_the_network(name: str) -> None:
    """For data at one point the velocity is (x - data) / sigma, so a sigma other than that of x would show."""
    data, noise = torch.full((4, 2), 0.7), torch.randn(4, 2)
    levels: list[tuple[float, float]] = []

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        level_of_x = ((x - data) / (noise - data)).median().item()  # On the path x = data + sigma (noise - data).
        levels.append((float(sigma), level_of_x))
        return (x - data) / sigma

    clean = solve(name, velocity, noise, refuse_increment, steps=12, shift=2.0)
    for sigma, level_of_x in levels:
        assert sigma == pytest.approx(level_of_x, abs=7e-4)  # Some schedules of diffusers start at 0.9995.
    torch.testing.assert_close(clean, data, atol=2e-3, rtol=0)  # Because of that start some noise is left.


@pytest.mark.parametrize("name", [*SAMPLERS, *STOCHASTIC_SAMPLERS])
def test_samplers_do_not_modify_their_noise(name: str) -> None:
    noise = torch.randn(8, 4)
    original = noise.clone()
    solve(name, exact_velocity, noise, make_increments(8, 4), steps=4, shift=1.0)
    assert torch.equal(noise, original)


def test_a_stochastic_sampler_keeps_the_deviation_of_the_data_and_forgets_its_start() -> None:
    """The deviation of 4,096 x 8 values is known to 0.4%; the rest is the solver's error, smaller with more steps."""
    noise = torch.randn(4096, 8)
    clean = solve("dpmpp_2m_sde", exact_velocity, noise, make_increments(4096, 8), steps=100, shift=1.0)
    assert clean.std().item() == pytest.approx(DEVIATION, rel=0.02)
    assert torch.corrcoef(torch.stack([clean.flatten(), noise.flatten()]))[0, 1].abs() < 0.05  # The start is forgotten.


# --- schedule


@pytest.mark.parametrize("name", [*SAMPLERS, *STOCHASTIC_SAMPLERS, "unipc"])
def test_the_noise_levels_of_our_own_samplers_are_known_beforehand(name: str) -> None:
    passed = set[float]()

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        passed.add(float(sigma))
        return x

    solve(name, velocity, torch.zeros(4, 4), lambda a, b: torch.zeros(4, 4), steps=5, shift=2.0)
    known = known_levels(name, 5, shift=2.0)
    assert passed == set(known) - {0.0} if name != "unipc" else known == []


def test_no_shift_rounds_the_first_noise_level_above_1() -> None:
    """Rounding did so for one shift in twenty, such as 2.14, and log(1 - sigma) was then NaN."""
    for shift in range(1, 2001):
        assert 1 - 1e-6 < sigma_schedule(4, shift=shift / 100)[0] <= 1, shift / 100


def test_deis_reaches_sigma_zero_when_the_checkpoint_brings_another_scheduler() -> None:
    """Any scheduler of a checkpoint sets the timesteps; the last step, which diffusers' DEIS lacks, is still taken."""
    clean = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    options = {"steps": 20, "shift": 3.0, "scheduler": make_scheduler("unipc", 3.0)}
    for name in ("deis", "unipc"):
        latent = solve(name, lambda x, sigma: (x - clean) / sigma, noise, lambda a, b: noise, **options)
        assert (latent - clean).abs().max() < 0.02, name


@pytest.mark.parametrize("steps", [1, 2, 20, 1000])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 12.0])
def test_the_schedule_falls_from_1_to_0(steps: int, shift: float) -> None:
    sigmas = sigma_schedule(steps, shift=shift)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float32
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_shift_multiplies_the_ratio_of_noise_to_signal() -> None:
    plain, shifted = sigma_schedule(10), sigma_schedule(10, shift=3.0)
    ratios = [sigmas[1:-1] / (1 - sigmas[1:-1]) for sigmas in (plain, shifted)]
    torch.testing.assert_close(ratios[1], 3 * ratios[0], atol=1e-5, rtol=1e-5)


def test_zero_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        sigma_schedule(0)


def test_log_snr_is_infinite_at_the_ends_and_0_in_the_middle() -> None:
    assert log_snr(torch.tensor([1.0, 0.5, 0.0])).tolist() == [-math.inf, 0.0, math.inf]


# --- agreement with diffusers


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_equals_the_euler_scheduler_of_diffusers(shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=sigma_schedule(12)[:-1].tolist())
    torch.testing.assert_close(scheduler.sigmas, sigma_schedule(12, shift=shift), atol=1e-6, rtol=0)
    noise = torch.randn(16, 4)
    expected = run_scheduler(scheduler, noise, scheduler.sigmas)
    clean = sample_euler(exact_velocity, noise, sigma_schedule(12, shift=shift))
    torch.testing.assert_close(clean, expected, atol=1e-6, rtol=0)  # float32 sums are rounded in another order.


@pytest.mark.parametrize("steps", [5, 12, 30])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_dpmpp_2m_equals_the_multistep_dpm_solver_of_diffusers(algorithm: str, steps: int, shift: float) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type=algorithm, prediction_type="flow_prediction", use_flow_sigmas=True, euler_at_final=False
    )
    scheduler.set_timesteps(steps)
    sigmas = sigma_schedule(steps, shift=shift)
    sigmas[0] -= 1e-6  # diffusers cannot start at an infinite log signal-to-noise ratio.
    scheduler.sigmas, scheduler.timesteps = sigmas, 1000 * sigmas[:-1]
    noise = torch.randn(16, 4)
    if algorithm == "dpmsolver++":
        expected, clean = run_scheduler(scheduler, noise, sigmas), sample_dpmpp_2m(exact_velocity, noise, sigmas)
    else:
        expected = run_scheduler(scheduler, noise, sigmas, make_increments(16, 4))
        clean = sample_dpmpp_2m_sde(exact_velocity, noise, sigmas, make_increments(16, 4))
    torch.testing.assert_close(clean, expected, atol=2e-6, rtol=0)  # float32 sums are rounded in another order.


def run_scheduler(
    scheduler: object, x: Tensor, sigmas: Sequence[Tensor] | Tensor, increment: BrownianIncrement | None = None
) -> Tensor:
    """Run a scheduler of diffusers on the exact velocity."""
    for sigma, timestep in zip(sigmas[:-1], scheduler.timesteps, strict=True):  # type: ignore[attr-defined]
        noise = {} if increment is None else {"variance_noise": increment(sigma, sigma)}
        x = scheduler.step(exact_velocity(x, sigma), timestep, x, return_dict=False, **noise)[0]  # type: ignore[attr-defined]
    return x


def test_an_unknown_sampler_is_refused_with_the_list_of_samplers() -> None:
    names = ", ".join(ALL)
    for call in (
        check_sampler,
        lambda name: solve(name, exact_velocity, torch.zeros(1), refuse_increment, steps=1, shift=1.0),
    ):
        with pytest.raises(ValueError, match=f"sampler must be one of {names}, got 'ddim'"):
            call("ddim")


# --- guidance


def test_guidance_extrapolates_from_the_unguided_velocity() -> None:
    cond, uncond = torch.randn(2, 10, 4)
    torch.testing.assert_close(guide(cond, uncond, 1.0), cond, atol=0, rtol=0)
    torch.testing.assert_close(guide(cond, uncond, 0.0), uncond, atol=0, rtol=0)
    torch.testing.assert_close(guide(cond, uncond, 3.0), uncond + 3 * (cond - uncond), atol=1e-6, rtol=0)


def test_zero_star_projects_the_guided_velocity_on_the_unguided() -> None:
    """The remainder is orthogonal, and no other multiple is closer."""
    for length in (3, 7, 1):
        cond, uncond = torch.randn(2, length, 4)
        projected = zero_star(cond, uncond)
        assert ((cond - projected) * uncond).sum().abs() < 1e-4  # A float32 sum has up to 28 products.
        scale = (projected / uncond).median()
        torch.testing.assert_close(projected, scale * uncond, atol=1e-6, rtol=0)
        distance = (cond - projected).norm()
        assert all(distance <= (cond - (scale + d) * uncond).norm() for d in (-0.1, -0.01, 0.01, 0.1))


def test_zero_star_keeps_a_parallel_velocity_and_is_zero_for_a_zero_unguided_velocity() -> None:
    cond = torch.randn(6, 4)
    torch.testing.assert_close(zero_star(cond, 3 * cond), cond, atol=1e-6, rtol=0)
    assert not zero_star(cond, torch.zeros(6, 4)).any()


# --- noise


def test_brownian_increments_add_up_to_the_same_path_for_any_number_of_steps() -> None:
    """Over t = exp(2 log ratio) the increments of the path are sqrt(dt) times the noise."""
    path = BrownianPath((4, 3, 8, 8), 7)
    for grid in (torch.linspace(-4, 5, 6), torch.linspace(-4, 5, 40), torch.tensor([-4.0, -3.99, 5.0])):
        log_ratios = [-math.inf, *grid.tolist()]
        steps = itertools.pairwise(log_ratios)
        increments = [math.sqrt(math.exp(2 * b) - math.exp(2 * a)) * path.increment(a, b) for a, b in steps]
        whole = math.exp(5) * path.increment(-math.inf, 5)
        # The log ratios of a path are rounded by up to 0.00015.
        torch.testing.assert_close(sum(increments), whole, rtol=0, atol=0.01 * math.exp(5))


def test_a_brownian_increment_is_the_same_whatever_was_asked_for_before() -> None:
    path, log_ratios = BrownianPath((2, 1, 4, 4), 7), [-math.inf, -4.0, -3.99, 0.5, 2.0, 9.0, 12.0]
    pairs = list(itertools.combinations(log_ratios, 2))
    for before, after in [*pairs, *reversed(pairs)]:
        torch.testing.assert_close(
            path.increment(before, after), BrownianPath((2, 1, 4, 4), 7).increment(before, after), rtol=0, atol=0
        )


def test_brownian_increments_are_normal_and_independent_over_steps_and_seeds() -> None:
    """Of 12,288 values the deviation is known to 0.6% and a correlation to 0.9%."""
    log_ratios = [-math.inf, *torch.linspace(-9, 9, 12).tolist(), 10, 11]  # All ratios beyond 10 count as 10.
    paths = [BrownianPath((3, 4, 32, 32), seed) for seed in (0, 1)]
    noises = [path.increment(a, b).flatten() for path in paths for a, b in itertools.pairwise(log_ratios)]
    noises += [noise.flatten() for noise in seeded_noise([(3, 4, 32, 32)] * 2, (0, 1))]
    rows = torch.stack(noises)
    torch.testing.assert_close(rows.std(1), torch.ones(len(rows)), atol=0.03, rtol=0)
    torch.testing.assert_close(rows.mean(1), torch.zeros(len(rows)), atol=0.04, rtol=0)
    torch.testing.assert_close(torch.corrcoef(rows), torch.eye(len(rows)), atol=0.05, rtol=0)


def test_a_stochastic_sampler_makes_nearly_the_same_clip_in_more_steps() -> None:
    """With independent noise in each step the clips of 50 and of 400 steps would not be correlated."""
    noise, path = torch.randn(1, 4096), BrownianPath((1, 4096), 3)

    def brownian_increment(before: Tensor, after: Tensor) -> Tensor:
        return path.increment(float(before), float(after))

    few, many = (
        solve("dpmpp_2m_sde", exact_velocity, noise, brownian_increment, steps=n, shift=1.0) for n in (50, 400)
    )
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
    assert noise.mean().abs() < 0.02  # Of 32,768 values the mean has a deviation of 0.0055.
    assert noise.std().item() == pytest.approx(1, abs=0.02)
