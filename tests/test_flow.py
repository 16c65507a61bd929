"""The objective: exact where the answer is known, and blind to how clips were grouped."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import CHANNELS, draw_texts, seeded, tiny_dit
from videogen.models.dit import VideoDiT
from videogen.models.rope import rotary
from videogen.packing.noise import NoiseLevels, interpolate, per_clip, step_generator, velocity_of
from videogen.packing.packs import PackedText, PackedVideo, pack, pack_texts
from videogen.training.ema import power_gamma
from videogen.training.flow_matching import (
    FlowTask,
    draw_levels,
    draw_sigmas,
    draw_task,
    drop_captions,
    flow_error,
    token_shift,
)

SHAPES = [(CHANNELS, 1, 4, 4), (CHANNELS, 3, 4, 8), (CHANNELS, 5, 8, 8), (CHANNELS, 2, 6, 6)]
BASE = 8


def clean_pack() -> PackedVideo:
    return pack([torch.randn(shape, generator=seeded(i)) for i, shape in enumerate(SHAPES)], (1, 2, 2))


def flow_loss(dit: nn.Module, clean: PackedVideo, text: PackedText, levels: NoiseLevels) -> Tensor:
    """The flow error of a pack at the noise of seed 0."""
    return flow_error(dit, draw_task(clean, text, levels, base_tokens=BASE, generator=seeded()))


class Oracle(nn.Module):
    """Knows the clip that was noised, and answers as a network of its kind would."""

    def __init__(self, clean: Tensor, prediction: str, off: float = 0.0) -> None:
        super().__init__()
        self.clean, self.off, self.config = clean, off, {"prediction": prediction}

    def forward(self, video: PackedVideo, levels: NoiseLevels, text: PackedText) -> Tensor:
        if self.config["prediction"] == "clean":
            return self.clean + self.off
        sigma = levels.per_token()
        return (video.tokens - self.clean) / sigma.clamp(min=1e-6) + self.off  # noised = clean + sigma velocity


@pytest.mark.parametrize("prediction", ["velocity", "clean"])
def test_the_true_answer_has_zero_loss(prediction: str) -> None:
    clean = clean_pack()
    levels = per_clip(torch.tensor([0.1, 0.4, 0.7, 1.0]), clean.lengths)
    loss = flow_loss(
        Oracle(clean.tokens, prediction), clean, draw_texts((1,) * 4), levels
    )
    assert loss.item() < 1e-10  # the oracle divides float32 by sigma 0.1


def test_a_velocity_that_is_off_by_one_has_a_loss_of_one() -> None:
    clean = clean_pack()
    levels = per_clip(torch.tensor([0.1, 0.4, 0.7, 1.0]), clean.lengths)
    oracle = Oracle(clean.tokens, "velocity", off=1.0)
    loss = flow_loss(oracle, clean, draw_texts((1,) * 4), levels)
    assert loss.item() == pytest.approx(1.0, abs=1e-5)


def test_both_predictions_are_judged_by_the_same_velocity() -> None:
    """A clean value that is off by sigma is a velocity that is off by one."""
    clean = clean_pack()
    levels = per_clip(torch.full((4,), 0.4), clean.lengths)
    oracle = Oracle(clean.tokens, "clean", off=0.4)
    loss = flow_loss(oracle, clean, draw_texts((1,) * 4), levels)
    assert loss.item() == pytest.approx(1.0, abs=1e-5)


def test_sigma_0_is_clean_and_1_is_noise() -> None:
    clean, noise = torch.randn(2, 5, 3)
    assert torch.equal(interpolate(clean, noise, torch.zeros(5, 1)), clean)
    assert torch.equal(interpolate(clean, noise, torch.ones(5, 1)), noise)


def test_the_velocity_of_the_clean_value_is_noise_minus_clean() -> None:
    clean, noise = torch.randn(2, 5, 3)
    sigma = torch.tensor([[0.05], [0.2], [0.5], [0.9], [1.0]])
    velocity = velocity_of(clean, interpolate(clean, noise, sigma), sigma)
    torch.testing.assert_close(velocity, noise - clean, atol=1e-5, rtol=0)  # float32, divided by 0.05


# --- grouping


def each_alone(dit: VideoDiT, clean: PackedVideo, text: PackedText, levels: NoiseLevels) -> list[Tensor]:
    """The loss of each clip by itself, at the noise that it has in the pack."""
    noise = torch.randn(clean.tokens.shape, generator=seeded())
    sigma = levels.per_token()
    parts = (x.split(clean.lengths) for x in (clean.tokens, noise, sigma))
    losses = []
    for i, (tokens, own_noise, own_sigma) in enumerate(zip(*parts, strict=True)):
        video = PackedVideo(interpolate(tokens, own_noise, own_sigma), (clean.grids[i],), clean.patch)
        own = NoiseLevels(own_sigma[:, 0], torch.arange(len(tokens)))
        out = dit(video, own, pack_texts([text.tokens.split(text.lengths)[i]]))
        target = own_noise - tokens
        free = own_sigma[:, 0] > 0
        losses.append(((out - target).square().mean(-1) * free).sum() / free.sum())
    return losses


def pack_weights(clean: PackedVideo, levels: NoiseLevels) -> Tensor:
    """Techniques 3.5: the free tokens of a clip, each weighing (n / base)^-1/2."""
    free = (levels.per_token()[:, 0] > 0).split(clean.lengths)
    return torch.stack([part.sum() * (len(part) / BASE) ** -0.5 for part in free])


@pytest.mark.parametrize("with_known", [False, True])
def test_the_loss_and_gradient_of_a_pack_are_the_weighted_means_of_its_clips(with_known: bool) -> None:
    dit, clean, text = tiny_dit(), clean_pack(), draw_texts((3, 1, 5, 3))
    shares = torch.tensor([0.9, 0.3, 0.6, 0.2])[torch.arange(4).repeat_interleave(torch.tensor(clean.lengths))]
    if with_known:
        shares = shares * (torch.rand(len(shares), generator=seeded(1)) < 0.7)
    values, index = shares.unique(return_inverse=True)
    levels = NoiseLevels(values, index)
    params = [p for p in dit.parameters() if p.requires_grad]

    together = flow_loss(dit, clean, text, levels)
    gradient = torch.autograd.grad(together, params)
    alone, weights = each_alone(dit, clean, text, levels), pack_weights(clean, levels)
    expected = (torch.stack(alone) * weights).sum() / weights.sum()
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)  # float32, only the order of sums differs
    own = [torch.autograd.grad(loss, params) for loss in alone]
    for i, total in enumerate(gradient):
        mean = sum(w * parts[i] for w, parts in zip(weights / weights.sum(), own, strict=True))
        torch.testing.assert_close(total, mean, atol=1e-5, rtol=1e-4)  # float32, only the order of sums differs


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`.float()` leaves float64 alone, so that the whole model runs in it."""
    monkeypatch.setattr(Tensor, "float", lambda x: x.to(torch.promote_types(x.dtype, torch.float32)))
    rotary.cache_clear()
    yield
    rotary.cache_clear()


def exact_task() -> tuple[VideoDiT, FlowTask, list[torch.nn.Parameter]]:
    """An image, short and long clips, captions of several lengths, some tokens known, all in float64."""
    dit, clean, text = tiny_dit().double(), clean_pack(), draw_texts((3, 1, 5, 3))
    clean, text = clean._replace(tokens=clean.tokens.double()), text._replace(tokens=text.tokens.double())
    levels = draw_levels(
        clean, {"per_frame": 0.5, "first_frame": 0.5}, base_tokens=BASE, uniform=0.1, generator=seeded(4)
    )
    task = draw_task(clean, text, levels, base_tokens=BASE, generator=seeded())
    weight = task.weight.double()
    task = task._replace(weight=weight, total=weight.sum())
    return dit, task, [p for p in dit.parameters() if p.requires_grad]


GROUPINGS = ([4], [1, 3], [2, 2], [3, 1], [2, 1, 1], [1, 1, 1, 1])


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("sizes", GROUPINGS, ids=str)
def test_the_gradient_of_a_pack_is_the_weighted_sum_of_its_clips_for_any_grouping(sizes: list[int]) -> None:
    dit, task, params = exact_task()
    together = torch.autograd.grad(flow_error(dit, task), params)
    clips = list(task.parts(1))
    assert len(clips) == 4
    places, total, summed = list(range(4)), task.total, [torch.zeros_like(p) for p in params]
    for size in sizes:
        own, places = [clips[place] for place in places[:size]], places[size:]
        weight = sum(part.weight.sum() for part in own)
        group = joined(own)._replace(total=weight)  # as a pack of its own, which knows of no other
        for one, part in zip(summed, torch.autograd.grad(flow_error(dit, group), params), strict=True):
            one += part * weight / total
    for one, both in zip(summed, together, strict=True):
        torch.testing.assert_close(one, both, atol=1e-13, rtol=1e-10)  # float64, only the order of sums differs


def joined(parts: list[FlowTask]) -> FlowTask:
    """Clips of a pack as one pack."""
    tokens, noise, weight, index = (
        torch.cat(x) for x in zip(*((p.clean.tokens, p.noise, p.weight, p.levels.index) for p in parts), strict=True)
    )
    clean = PackedVideo(tokens, tuple(grid for p in parts for grid in p.clean.grids), parts[0].clean.patch)
    text = pack_texts([p.text.tokens for p in parts])
    return FlowTask(clean, noise, NoiseLevels(parts[0].levels.values, index), text, weight, parts[0].total)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("most_tokens", [1, 30, 60, 10_000])
def test_parts_of_a_pack_add_up_to_its_loss_and_gradient(most_tokens: int) -> None:
    dit, task, params = exact_task()
    whole = flow_error(dit, task)
    parts = list(task.parts(most_tokens))
    lengths = [part.clean.lengths for part in parts]
    assert sum(lengths, ()) == task.clean.lengths
    assert all(sum(own) <= most_tokens or len(own) == 1 for own in lengths)
    errors = [flow_error(dit, part) for part in parts]
    torch.testing.assert_close(sum(errors), whole, atol=1e-14, rtol=1e-12)  # float64, only the order of sums differs
    summed = torch.autograd.grad(torch.stack(errors).sum(), params)
    for one, both in zip(summed, torch.autograd.grad(whole, params), strict=True):
        torch.testing.assert_close(one, both, atol=1e-13, rtol=1e-10)


def test_a_clip_weighs_by_the_root_of_its_tokens() -> None:
    clean = pack([torch.zeros(CHANNELS, 1, 4, 4), torch.zeros(CHANNELS, 4, 8, 8)], (1, 2, 2))
    off = torch.cat([torch.full((4, 1), 2.0), torch.zeros(64, 1)])
    oracle = Oracle(clean.tokens, "velocity", off=off)  # type: ignore[arg-type]
    levels = per_clip(torch.tensor([0.5, 0.5]), clean.lengths)
    loss = flow_loss(oracle, clean, draw_texts((1, 1)), levels)
    assert loss.item() == pytest.approx(4 * 2 / (2 + 8), rel=1e-5)


def test_known_tokens_carry_no_loss() -> None:
    clean = clean_pack()
    free = torch.rand(len(clean.tokens), generator=seeded(2)) < 0.5
    levels = NoiseLevels(torch.tensor([0.0, 0.6]), free.long())
    off = torch.where(free[:, None], 0.0, 100.0)  # wrong wherever nothing was asked
    oracle = Oracle(clean.tokens, "clean", off=off)  # type: ignore[arg-type]
    loss = flow_loss(oracle, clean, draw_texts((1,) * 4), levels)
    assert loss.item() < 1e-10


def test_known_tokens_are_seen_clean() -> None:
    clean, seen = clean_pack(), []
    free = torch.rand(len(clean.tokens), generator=seeded(2)) < 0.5
    levels = NoiseLevels(torch.tensor([0.0, 0.6]), free.long())
    oracle = Oracle(clean.tokens, "velocity")
    oracle.register_forward_pre_hook(lambda _, args: seen.append(args[0].tokens))
    flow_loss(oracle, clean, draw_texts((1,) * 4), levels)
    assert torch.equal(seen[0][~free], clean.tokens[~free])
    assert not torch.isclose(seen[0][free], clean.tokens[free]).any(dim=1).all()


# --- noise levels


def test_sigmas_lie_between_0_and_1_and_a_longer_clip_has_higher_ones() -> None:
    short, long = (
        torch.cat([draw_sigmas((n,) * 50, base_tokens=80, uniform=0.1, generator=seeded(i)) for i in range(40)])
        for n in (80, 720)
    )
    for sigmas in (short, long):
        assert sigmas.min() > 0
        assert sigmas.max() < 1
    assert short.median().item() == pytest.approx(0.5, abs=0.05)
    assert long.median().item() == pytest.approx(0.75, abs=0.05)  # shift 3 at nine times the tokens


def test_the_shift_is_the_root_of_the_length_from_1_to_3() -> None:
    assert token_shift((20, 80, 320, 720, 10_000), 80).tolist() == [1, 1, 2, 3, 3]


def test_sigmas_are_stratified_over_a_pack() -> None:
    """The mean of a pack hardly varies: each of its clips draws from a stratum of its own."""
    num = 16
    means, values = [], []
    for i in range(300):
        sigmas = draw_sigmas((80,) * num, base_tokens=80, uniform=0.0, generator=seeded(i))
        means.append(sigmas.mean())
        values.append(sigmas)
    independent = torch.cat(values).var() / num
    assert torch.stack(means).var() < 0.05 * independent


def test_every_clip_of_a_pack_draws_from_all_levels() -> None:
    """Stratified over the pack, yet no place in it is tied to a level."""
    drawn = torch.stack([draw_sigmas((80,) * 8, base_tokens=80, uniform=0.0, generator=seeded(i)) for i in range(500)])
    medians = drawn.median(0).values
    assert (medians - 0.5).abs().max() < 0.08  # deviation of a median of 500 is 0.012


def test_the_uniform_share_reaches_the_ends() -> None:
    drawn = draw_sigmas((80,) * 4000, base_tokens=80, uniform=1.0, generator=seeded())
    for low in (0.0, 0.25, 0.5, 0.75):
        share = ((drawn >= low) & (drawn < low + 0.25)).float().mean()
        assert share == pytest.approx(0.25, abs=0.04)


def test_levels_of_a_pack_are_few_and_zero_where_known() -> None:
    clean = clean_pack()
    levels = draw_levels(clean, {"first_frame": 1.0}, base_tokens=BASE, uniform=0.1, generator=seeded())
    assert len(levels.values) <= 1 + len(clean.grids)
    for part, (frames, rows, columns) in zip(levels.per_token().split(clean.lengths), clean.grids, strict=True):
        own = part.reshape(frames, rows * columns)
        if frames > 1:  # an image's only frame is never known
            assert not own[0].any()
        assert (own[-1] > 0).all()
        assert len(own[-1].unique()) == 1


# --- randomness


def test_a_step_draws_what_its_seed_and_number_say() -> None:
    first, again = (torch.rand(4, generator=step_generator(3, 7)) for _ in range(2))
    assert torch.equal(first, again)


def test_every_seed_step_and_rank_draws_differently() -> None:
    """Negative steps are used too: -1 for the first weights, -2 for their sample."""
    keys = [(seed, step, rank) for seed in (-1, 0, 1, 2) for step in (-2, -1, 0, 1, 1000) for rank in (0, 1)]
    drawn = {key: tuple(torch.rand(2, generator=step_generator(*key)).tolist()) for key in keys}
    same = [(a, b) for a in keys for b in keys if a < b and drawn[a] == drawn[b]]
    assert same == []


def test_a_step_draws_alike_in_every_process() -> None:
    program = (
        "import torch; from videogen.packing.noise import step_generator; "
        "print(torch.rand(3, generator=step_generator(5, 11, 1)).tolist())"
    )
    here = str(torch.rand(3, generator=step_generator(5, 11, 1)).tolist())
    env = os.environ | {"PYTHONHASHSEED": "12345"}
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env, cwd=root
    )
    assert done.stdout.strip() == here


def test_a_share_of_the_captions_is_dropped() -> None:
    captions = [f"clip {i}" for i in range(2000)]
    kept = drop_captions(captions, 0.1, seeded())
    assert all(one in ("", caption) for one, caption in zip(kept, captions, strict=True))
    assert kept.count("") / 2000 == pytest.approx(0.1, abs=0.03)
    assert drop_captions(captions, 0.0, seeded()) == captions


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2])
def test_a_power_average_has_the_width_that_was_asked_for(width: float) -> None:
    """The deviation of the profile t^gamma on [0, 1], integrated numerically."""
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    profile = t ** power_gamma(width)
    profile = profile / profile.sum()
    mean = (profile * t).sum()
    assert (profile * (t - mean) ** 2).sum().sqrt().item() == pytest.approx(width, rel=1e-3)
