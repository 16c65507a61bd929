"""The flow loss is exact where the velocity is known, and does not depend on how clips are grouped."""

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
from videogen.packing.noise import (
    NoiseLevels,
    interpolate,
    levels_per_clip,
    levels_per_frame,
    step_generator,
    velocity_of,
)
from videogen.packing.packs import PackedText, PackedVideo, pack, pack_texts, unpack
from videogen.training.ema import power_gamma
from videogen.training.flow_matching import (
    FlowTask,
    drop_captions,
    flow_loss,
    sample_levels,
    sample_sigmas,
    sample_task,
    token_shift,
)

SHAPES = [(CHANNELS, 1, 4, 4), (CHANNELS, 3, 4, 8), (CHANNELS, 5, 8, 8), (CHANNELS, 2, 6, 6)]
BASE = 8


def clean_pack() -> PackedVideo:
    return pack([torch.randn(shape, generator=seeded(i)) for i, shape in enumerate(SHAPES)], (1, 2, 2))


def loss_with_seed_0(dit: nn.Module, clean: PackedVideo, text: PackedText, levels: NoiseLevels) -> Tensor:
    """The flow loss of a pack with the noise of seed 0."""
    return flow_loss(dit, sample_task(clean, text, levels, base_tokens=BASE, generator=seeded()))


class Oracle(nn.Module):
    """A network that knows the clean clip and returns the exact prediction, plus an offset."""

    def __init__(self, clean: Tensor, prediction: str, offset: float = 0.0) -> None:
        super().__init__()
        self.clean, self.offset, self.config = clean, offset, {"prediction": prediction}

    def forward(self, video: PackedVideo, levels: NoiseLevels, text: PackedText) -> Tensor:
        if self.config["prediction"] == "clean":
            return self.clean + self.offset
        sigma = levels.per_token()
        return (video.tokens - self.clean) / sigma.clamp(min=1e-6) + self.offset  # noised = clean + sigma velocity


@pytest.mark.parametrize("prediction", ["velocity", "clean"])
def test_the_exact_prediction_has_zero_loss(prediction: str) -> None:
    clean = clean_pack()
    levels = levels_per_clip(torch.tensor([0.1, 0.4, 0.7, 1.0]), clean.lengths)
    loss = loss_with_seed_0(Oracle(clean.tokens, prediction), clean, draw_texts((1,) * 4), levels)
    assert loss.item() < 1e-10  # the oracle divides float32 by sigma 0.1


def test_a_velocity_that_is_off_by_one_has_a_loss_of_one() -> None:
    clean = clean_pack()
    levels = levels_per_clip(torch.tensor([0.1, 0.4, 0.7, 1.0]), clean.lengths)
    oracle = Oracle(clean.tokens, "velocity", offset=1.0)
    loss = loss_with_seed_0(oracle, clean, draw_texts((1,) * 4), levels)
    assert loss.item() == pytest.approx(1.0, abs=1e-5)


def test_clean_and_velocity_predictions_have_the_same_velocity_loss() -> None:
    """A clean value that is offset by sigma is a velocity that is offset by one."""
    clean = clean_pack()
    levels = levels_per_clip(torch.full((4,), 0.4), clean.lengths)
    oracle = Oracle(clean.tokens, "clean", offset=0.4)
    loss = loss_with_seed_0(oracle, clean, draw_texts((1,) * 4), levels)
    assert loss.item() == pytest.approx(1.0, abs=1e-5)


def test_sigma_0_gives_the_clean_clip_and_sigma_1_the_noise() -> None:
    clean, noise = torch.randn(2, 5, 3)
    assert torch.equal(interpolate(clean, noise, torch.zeros(5, 1)), clean)
    assert torch.equal(interpolate(clean, noise, torch.ones(5, 1)), noise)


def test_the_velocity_of_a_clean_prediction_is_noise_minus_clean() -> None:
    clean, noise = torch.randn(2, 5, 3)
    sigma = torch.tensor([[0.05], [0.2], [0.5], [0.9], [1.0]])
    velocity = velocity_of(clean, interpolate(clean, noise, sigma), sigma)
    torch.testing.assert_close(velocity, noise - clean, atol=1e-5, rtol=0)  # float32, divided by 0.05


# --- grouping of clips


def losses_alone(dit: VideoDiT, clean: PackedVideo, text: PackedText, levels: NoiseLevels) -> list[Tensor]:
    """The loss of each clip by itself, with the noise that it has in the pack."""
    noise = torch.randn(clean.tokens.shape, generator=seeded())
    sigma = levels.per_token()
    clips = (x.split(clean.lengths) for x in (clean.tokens, noise, sigma))
    losses = []
    for i, (clip, clip_noise, clip_sigma) in enumerate(zip(*clips, strict=True)):
        video = PackedVideo(interpolate(clip, clip_noise, clip_sigma), (clean.grids[i],), clean.patch)
        clip_levels = NoiseLevels(clip_sigma[:, 0], torch.arange(len(clip)))
        velocity = dit(video, clip_levels, pack_texts([text.tokens.split(text.lengths)[i]]))
        free = clip_sigma[:, 0] > 0
        losses.append(((velocity - (clip_noise - clip)).square().mean(-1) * free).sum() / free.sum())
    return losses


def pack_weights(clean: PackedVideo, levels: NoiseLevels) -> Tensor:
    """The weight of each clip: the number of its free tokens, times (n / base)^-1/2 for its n tokens."""
    free = (levels.per_token()[:, 0] > 0).split(clean.lengths)
    return torch.stack([clip.sum() * (len(clip) / BASE) ** -0.5 for clip in free])


@pytest.mark.parametrize("with_known", [False, True])
def test_the_loss_and_gradient_of_a_pack_are_the_weighted_means_of_its_clips(with_known: bool) -> None:
    dit, clean, text = tiny_dit(), clean_pack(), draw_texts((3, 1, 5, 3))
    shares = torch.tensor([0.9, 0.3, 0.6, 0.2])[torch.arange(4).repeat_interleave(torch.tensor(clean.lengths))]
    if with_known:
        shares = shares * (torch.rand(len(shares), generator=seeded(1)) < 0.7)
    values, index = shares.unique(return_inverse=True)
    levels = NoiseLevels(values, index)
    params = [p for p in dit.parameters() if p.requires_grad]

    together = loss_with_seed_0(dit, clean, text, levels)
    gradient = torch.autograd.grad(together, params)
    alone, weights = losses_alone(dit, clean, text, levels), pack_weights(clean, levels)
    expected = (torch.stack(alone) * weights).sum() / weights.sum()
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)  # float32, only the order of sums differs
    clip_gradients = [torch.autograd.grad(loss, params) for loss in alone]
    for i, value in enumerate(gradient):
        mean = sum(w * clip[i] for w, clip in zip(weights / weights.sum(), clip_gradients, strict=True))
        torch.testing.assert_close(value, mean, atol=1e-5, rtol=1e-4)  # float32, only the order of sums differs


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make `.float()` keep float64, so that the whole model runs in it."""
    monkeypatch.setattr(Tensor, "float", lambda x: x.to(torch.promote_types(x.dtype, torch.float32)))
    rotary.cache_clear()
    yield
    rotary.cache_clear()


def float64_task() -> tuple[VideoDiT, FlowTask, list[torch.nn.Parameter]]:
    """A float64 task with an image, short and long clips, captions of several lengths, and some known tokens."""
    dit, clean, text = tiny_dit().double(), clean_pack(), draw_texts((3, 1, 5, 3))
    clean, text = clean._replace(tokens=clean.tokens.double()), text._replace(tokens=text.tokens.double())
    levels = sample_levels(
        clean, {"per_frame": 0.5, "first_frame": 0.5}, base_tokens=BASE, uniform=0.1, generator=seeded(4)
    )
    task = sample_task(clean, text, levels, base_tokens=BASE, generator=seeded())
    weight = task.weight.double()
    task = task._replace(weight=weight, total_weight=weight.sum())
    return dit, task, [p for p in dit.parameters() if p.requires_grad]


GROUPINGS = ([4], [1, 3], [2, 2], [3, 1], [2, 1, 1], [1, 1, 1, 1])


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("sizes", GROUPINGS, ids=str)
def test_the_gradient_of_a_pack_is_the_weighted_sum_of_its_clips_for_any_grouping(sizes: list[int]) -> None:
    dit, task, params = float64_task()
    together = torch.autograd.grad(flow_loss(dit, task), params)
    clips = list(task.micro_batches(1))
    assert len(clips) == 4
    sums = [torch.zeros_like(p) for p in params]
    for size in sizes:
        group, clips = clips[:size], clips[size:]
        weight = sum(clip.weight.sum() for clip in group)
        pack_alone = join(group)._replace(total_weight=weight)
        for value, gradient in zip(sums, torch.autograd.grad(flow_loss(dit, pack_alone), params), strict=True):
            value += gradient * weight / task.total_weight
    for value, expected in zip(sums, together, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-13, rtol=1e-10)  # float64, only the order of sums differs


def join(clips: list[FlowTask]) -> FlowTask:
    """Join micro-batches of one clip each into one."""
    tokens, noise, weight, index = (
        torch.cat(x) for x in zip(*((c.clean.tokens, c.noise, c.weight, c.levels.index) for c in clips), strict=True)
    )
    clean = PackedVideo(tokens, tuple(grid for c in clips for grid in c.clean.grids), clips[0].clean.patch)
    text = pack_texts([c.text.tokens for c in clips])
    return FlowTask(clean, noise, NoiseLevels(clips[0].levels.values, index), text, weight, clips[0].total_weight)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("max_tokens", [1, 30, 60, 10_000])
def test_micro_batches_add_up_to_the_loss_and_gradient_of_their_pack(max_tokens: int) -> None:
    dit, task, params = float64_task()
    whole = flow_loss(dit, task)
    micro_batches = list(task.micro_batches(max_tokens))
    runs = [micro_batch.clean.lengths for micro_batch in micro_batches]
    assert sum(runs, ()) == task.clean.lengths
    assert all(sum(lengths) <= max_tokens or len(lengths) == 1 for lengths in runs)
    losses = [flow_loss(dit, micro_batch) for micro_batch in micro_batches]
    torch.testing.assert_close(sum(losses), whole, atol=1e-14, rtol=1e-12)  # float64, only the order of sums differs
    sums = torch.autograd.grad(torch.stack(losses).sum(), params)
    for value, expected in zip(sums, torch.autograd.grad(whole, params), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-13, rtol=1e-10)


def test_a_clip_s_loss_weight_is_the_square_root_of_its_tokens() -> None:
    clean = pack([torch.zeros(CHANNELS, 1, 4, 4), torch.zeros(CHANNELS, 4, 8, 8)], (1, 2, 2))
    offset = torch.cat([torch.full((4, 1), 2.0), torch.zeros(64, 1)])
    oracle = Oracle(clean.tokens, "velocity", offset=offset)  # type: ignore[arg-type]
    levels = levels_per_clip(torch.tensor([0.5, 0.5]), clean.lengths)
    loss = loss_with_seed_0(oracle, clean, draw_texts((1, 1)), levels)
    assert loss.item() == pytest.approx(4 * 2 / (2 + 8), rel=1e-5)


def test_known_tokens_carry_no_loss() -> None:
    clean = clean_pack()
    free = torch.rand(len(clean.tokens), generator=seeded(2)) < 0.5
    levels = NoiseLevels(torch.tensor([0.0, 0.6]), free.long())
    offset = torch.where(free[:, None], 0.0, 100.0)  # wrong on the known tokens
    oracle = Oracle(clean.tokens, "clean", offset=offset)  # type: ignore[arg-type]
    loss = loss_with_seed_0(oracle, clean, draw_texts((1,) * 4), levels)
    assert loss.item() < 1e-10


def test_a_share_of_the_clips_has_a_little_noise_on_its_known_tokens_alone() -> None:
    clean = pack([torch.zeros(4, 5, 4, 4) for _ in range(400)], (1, 2, 2))
    known = torch.zeros(5, dtype=torch.bool)
    known[:2] = True
    levels = levels_per_frame([torch.where(known, 0.0, 0.7)] * 400, clean.grids)
    task = sample_task(clean, draw_texts((1,) * 400), levels, base_tokens=BASE, generator=seeded(), given_noise=0.25)
    deviation = torch.stack(unpack(task.clean)).square().mean((1, 3, 4)).sqrt()
    assert not deviation[:, 2:].any()
    assert torch.equal(deviation[:, 0] > 0, deviation[:, 1] > 0)  # all known frames of a clip, or none
    is_noised = deviation[:, 0] > 0
    assert is_noised.float().mean() == pytest.approx(0.25, abs=0.07)  # standard deviation 0.022
    assert deviation[is_noised, 0].log().mean() == pytest.approx(-3.5, abs=0.25)
    plain = sample_task(clean, draw_texts((1,) * 400), levels, base_tokens=BASE, generator=seeded())
    assert torch.equal(plain.noise, task.noise)
    assert torch.equal(plain.clean.tokens, clean.tokens)


def test_the_network_receives_known_tokens_clean() -> None:
    clean, seen = clean_pack(), []
    free = torch.rand(len(clean.tokens), generator=seeded(2)) < 0.5
    levels = NoiseLevels(torch.tensor([0.0, 0.6]), free.long())
    oracle = Oracle(clean.tokens, "velocity")
    oracle.register_forward_pre_hook(lambda _, args: seen.append(args[0].tokens))
    loss_with_seed_0(oracle, clean, draw_texts((1,) * 4), levels)
    assert torch.equal(seen[0][~free], clean.tokens[~free])
    assert not torch.isclose(seen[0][free], clean.tokens[free]).any(dim=1).all()


# --- noise levels


def test_sigmas_lie_within_0_and_1_and_are_higher_for_longer_clips() -> None:
    short, long = (
        torch.cat([sample_sigmas((n,) * 50, base_tokens=80, uniform=0.1, generator=seeded(i)) for i in range(40)])
        for n in (80, 720)
    )
    for sigmas in (short, long):
        assert sigmas.min() > 0
        assert sigmas.max() < 1
    assert short.median().item() == pytest.approx(0.5, abs=0.05)
    assert long.median().item() == pytest.approx(0.75, abs=0.05)  # shift 3 at nine times the tokens


def test_the_shift_is_the_square_root_of_the_length_clamped_to_1_and_3() -> None:
    assert token_shift((20, 80, 320, 720, 10_000), 80).tolist() == [1, 1, 2, 3, 3]


def test_sigmas_are_stratified_over_a_pack() -> None:
    """The mean of a pack hardly varies: each of its clips samples from a stratum of its own."""
    num = 16
    means, values = [], []
    for i in range(300):
        sigmas = sample_sigmas((80,) * num, base_tokens=80, uniform=0.0, generator=seeded(i))
        means.append(sigmas.mean())
        values.append(sigmas)
    independent = torch.cat(values).var() / num
    assert torch.stack(means).var() < 0.05 * independent


def test_every_position_in_a_pack_samples_all_noise_levels() -> None:
    """Levels are stratified over the pack, yet no position in it is tied to a stratum."""
    sigmas = torch.stack(
        [sample_sigmas((80,) * 8, base_tokens=80, uniform=0.0, generator=seeded(i)) for i in range(500)]
    )
    medians = sigmas.median(0).values
    assert (medians - 0.5).abs().max() < 0.08  # the deviation of a median of 500 is 0.012


def test_uniform_sigmas_cover_the_whole_range() -> None:
    sigmas = sample_sigmas((80,) * 4000, base_tokens=80, uniform=1.0, generator=seeded())
    for low in (0.0, 0.25, 0.5, 0.75):
        share = ((sigmas >= low) & (sigmas < low + 0.25)).float().mean()
        assert share == pytest.approx(0.25, abs=0.04)


def test_a_pack_has_few_distinct_levels_and_level_zero_where_known() -> None:
    clean = clean_pack()
    levels = sample_levels(clean, {"first_frame": 1.0}, base_tokens=BASE, uniform=0.1, generator=seeded())
    assert len(levels.values) <= 1 + len(clean.grids)
    for clip, (frames, rows, columns) in zip(levels.per_token().split(clean.lengths), clean.grids, strict=True):
        sigmas = clip.reshape(frames, rows * columns)
        if frames > 1:  # an image's only frame is never known
            assert not sigmas[0].any()
        assert (sigmas[-1] > 0).all()
        assert len(sigmas[-1].unique()) == 1


# --- randomness


def test_a_step_s_generator_depends_on_seed_and_step_alone() -> None:
    first, again = (torch.rand(4, generator=step_generator(3, 7)) for _ in range(2))
    assert torch.equal(first, again)


def test_every_seed_step_and_rank_has_its_own_random_numbers() -> None:
    """Negative numbers are used too: seed -1 for validation, step -2 for the patches of the VAE's first weights."""
    keys = [(seed, step, rank) for seed in (-1, 0, 1, 2) for step in (-2, -1, 0, 1, 1000) for rank in (0, 1)]
    values = {key: tuple(torch.rand(2, generator=step_generator(*key)).tolist()) for key in keys}
    assert [(a, b) for a in keys for b in keys if a < b and values[a] == values[b]] == []


def test_a_step_s_generator_is_the_same_in_another_process() -> None:
    program = (
        "import torch; from videogen.packing.noise import step_generator; "
        "print(torch.rand(3, generator=step_generator(5, 11, 1)).tolist())"
    )
    expected = str(torch.rand(3, generator=step_generator(5, 11, 1)).tolist())
    env = os.environ | {"PYTHONHASHSEED": "12345"}
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=root)
    assert process.stdout.strip() == expected


def test_drop_captions_empties_its_share_of_the_captions() -> None:
    captions = [f"clip {i}" for i in range(2000)]
    remaining = drop_captions(captions, 0.1, seeded())
    assert all(text in ("", caption) for text, caption in zip(remaining, captions, strict=True))
    assert remaining.count("") / 2000 == pytest.approx(0.1, abs=0.03)
    assert drop_captions(captions, 0.0, seeded()) == captions


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2])
def test_a_power_average_has_the_requested_width(width: float) -> None:
    """The deviation of the profile t^gamma on [0, 1], integrated numerically."""
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    profile = t ** power_gamma(width)
    profile = profile / profile.sum()
    mean = (profile * t).sum()
    assert (profile * (t - mean) ** 2).sum().sqrt().item() == pytest.approx(width, rel=1e-3)
