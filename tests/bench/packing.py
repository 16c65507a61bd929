"""Race three loaders on one mixed folder: packed, padded with a mask, and buckets, in turn on the same small model.

    videogen bench packing [--minutes 3]  ->  assets/bench/packing.json

The loaders differ in their plans alone (tests/bench/packing_plans.py). They share the model, its first weights, the
optimiser, noise levels, loss, latents and the memory of a batch and, as nearly as whole batches allow, the data of an
optimiser step: a loader whose batches hold less adds up the gradient of several. They take turns of a few seconds on
one core, counted in processor time, so that the machine's other work slows all alike; a second thread that waits would
be counted as work. Rates are medians over the turns, and their ratios are what to compare. A batch is computed in one
pass, a pack in passes of as many tokens as a CPU computes fastest, as in training; other batches are no larger.
"""

from __future__ import annotations

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import count
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tests.bench.flags import make_parser, parse_flags
from tests.bench.machine import write_json
from tests.bench.packing_attention import measure_attention
from tests.bench.packing_plans import (
    Plan,
    Shape,
    choose_buckets,
    measure_plan,
    mixed_sources,
    native_shape,
    plan_buckets,
    plan_packed,
    plan_padded,
    simulate,
    visible_pixels,
)
from videogen.data.folder import scale_and_crop
from videogen.models import attention
from videogen.models.dit import VideoDiT
from videogen.models.rope import Rotary, rotary
from videogen.models.text_encoder import embed_prompts, load_tokenizer_and_encoder
from videogen.models.vae import VideoVAE
from videogen.models.vae_network import frames_to_patches
from videogen.packing.noise import NoiseLevels, step_generator
from videogen.packing.packs import Lengths, PackedVideo, pack, pack_texts
from videogen.toybox import caption, draw_scene, render
from videogen.training.flow_matching import FlowTask, drop_captions, flow_loss, sample_levels, sample_task
from videogen.training.trainer import CPU_PASS_TOKENS

Facts = dict[str, object]
ROOT = Path(__file__).parents[2]
BUDGET, MAX_TOKENS, CHANNELS, BASE_TOKENS, LR = 2560, 400, 16, 20, 1e-3


@dataclass
class Folder:
    """Clips at their own sizes, and their latents at those they are trained at."""

    sources: list[Shape]
    seeds: list[int]
    vae: VideoVAE | None = None
    latents: dict[tuple[int, Shape], Tensor] = field(default_factory=dict)

    def scene(self, i: int):  # noqa: ANN201
        """Draw the scene of a clip."""
        width, height, frames = self.sources[i]
        return draw_scene(self.seeds[i], sizes=((width, height),), lengths=(frames,))

    @torch.no_grad()
    def encode(self, i: int, shapes: Collection[Shape]) -> None:
        """Encode a clip at some shapes, before the clock runs."""
        assert self.vae is not None
        frames = torch.from_numpy(np.ascontiguousarray(render(self.scene(i))))
        for shape in shapes:
            self.latents[i, shape] = self.vae.encode(training_clip(frames, shape)[None])[0]


def training_clip(frames: Tensor, shape: Shape) -> Tensor:
    """Cut frames (t, h, w, 3) uint8 to a shape, as training does: (3, t, h, w) in [-1, 1]."""
    return rearrange(scale_and_crop(frames[: shape.frames], shape.width, shape.height), "t c h w -> c t h w")


def draw_folder(num: int) -> Folder:
    """Draw toybox clips of mixed sizes, and initialise a linear encoder for them."""
    folder = Folder(mixed_sources(num), list(range(num)))
    sample = []
    for i in range(0, num, max(1, num // 60)):
        shape = native_shape(folder.sources[i], 48)
        sample.append(training_clip(torch.from_numpy(np.ascontiguousarray(render(folder.scene(i)))), shape))
    padded_clips = (torch.cat([clip[:, :1].expand(-1, 3, -1, -1), clip], dim=1) for clip in sample)
    patches = [frames_to_patches(rearrange(clip, "c t h w -> 1 t c h w")) for clip in padded_clips]
    folder.vae = vae = VideoVAE(CHANNELS, width=8, linear_encoder=True).eval()
    vae.init_weights(torch.cat([rearrange(x, "1 t p h w -> (t h w) p") for x in patches]))
    with torch.no_grad():
        values = torch.cat([vae.posterior(clip[None]).mean[0].flatten(1) for clip in sample], dim=1)
    vae.register_to_config(latents_mean=values.mean(1).tolist(), latents_std=values.std(1).tolist())
    return folder


# --- the padded batch, on the same network


class PaddedVideo(PackedVideo):
    """Clips whose tokens are followed by zeros up to the longest clip's length."""

    @property
    def lengths(self) -> Lengths:
        """The longest clip's length for every clip."""
        lengths = super().lengths
        return (max(lengths),) * len(lengths)


def padded_row_indices(lengths: Lengths) -> Tensor:
    """Index the pack's rows by the padded batch's, (b * longest); padding has the index one past the end."""
    starts = torch.tensor((0, *lengths[:-1])).cumsum(0)
    steps, length_column = torch.arange(max(lengths)), torch.tensor(lengths)
    return torch.where(steps < length_column[:, None], starts[:, None] + steps, sum(lengths)).flatten()


def pad_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Turn rows of a pack into those of a padded batch, with zeros past a clip's end."""
    return torch.cat([x, x.new_zeros(1, *x.shape[1:])])[rows]


def pad_task(task: FlowTask) -> FlowTask:
    """Turn a task into a padded batch, whose padding has no weight in the loss."""
    rows = padded_row_indices(task.clean.lengths)
    return FlowTask(
        PaddedVideo(pad_rows(task.clean.tokens, rows), task.clean.grids, task.clean.patch),
        pad_rows(task.noise, rows),
        NoiseLevels(task.levels.values, pad_rows(task.levels.index, rows)),
        task.text,
        pad_rows(task.weight, rows),
        task.total_weight,
    )


@contextlib.contextmanager
def padded_attention(lengths: Lengths) -> Iterator[None]:
    """Let the network see a padded batch: one attention call under a key mask, rotary tables with padding rows."""
    rows = padded_row_indices(lengths)
    mask = rearrange(rows < sum(lengths), "(b n) -> b 1 1 n", b=len(lengths))

    def attend_masked(q: Tensor, k: Tensor, v: Tensor, padded_lengths: Lengths) -> Tensor:
        batch = (rearrange(x, "(b n) heads e -> b heads n e", b=len(padded_lengths)) for x in (q, k, v))
        return rearrange(F.scaled_dot_product_attention(*batch, attn_mask=mask), "b heads n e -> (b n) heads e")

    def padded_rotary(*args: object, **options: object) -> Rotary:
        return Rotary(*(pad_rows(x, rows) for x in rotary(*args, **options)))  # type: ignore[arg-type]

    with (
        mock.patch.dict(attention.SELF_KERNELS, {"runs": attend_masked}),
        mock.patch("videogen.models.dit_network.rotary", padded_rotary),
    ):
        yield


def task_loss(dit: VideoDiT, task: FlowTask, *, padded: bool) -> Tensor:
    """Compute the loss of a task, as a pack or as a padded batch."""
    if not padded:
        return flow_loss(dit, task)
    with padded_attention(task.clean.lengths):
        return flow_loss(dit, pad_task(task))


# --- the race


def is_step_full(tokens: int, more: int) -> bool:
    """True if an optimiser step on so many tokens is nearer to the budget without the next batch than with it."""
    return tokens > 0 and abs(BUDGET - tokens) < abs(BUDGET - tokens - more)


class Runner:
    """A loader with a model of its own, which trains in turns and counts."""

    def __init__(
        self, name: str, plan: Callable[[int], Plan], folder: Folder, texts: Sequence[Tensor], num_layers: int
    ) -> None:
        self.name, self.plan, self.folder, self.texts = name, plan, folder, texts
        self.model = new_model(texts[0].shape[1], num_layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, betas=(0.9, 0.99), fused=True)
        self.batches = self.stream()
        self.step, self.num_batches, self.in_gradient, self.seconds = 0, 0, 0, 0.0
        self.rates: list[tuple[float, float]] = []

    def stream(self) -> Iterator[tuple[Plan, list[int]]]:
        """Yield batches without end, epoch by epoch."""
        for epoch in count():
            plan = self.plan(epoch)
            if not plan.batches:
                raise ValueError(f"{self.name} leave nothing of so small a folder; give more --clips")
            for batch in plan.batches:
                yield plan, batch

    def task(self, plan: Plan, batch: list[int], step: int, drop: float = 0.1) -> FlowTask:
        """Build a batch's task with its noise; a task depends on nothing else of a loader."""
        generator = step_generator(0, step)
        clean = pack([self.folder.latents[i, plan.shapes[i]] for i in batch], (1, 2, 2))
        words = drop_captions([str(i) for i in batch], drop, generator)
        text = pack_texts([self.texts[int(word) if word else -1] for word in words])
        levels = sample_levels(clean, {"nothing": 1.0}, base_tokens=BASE_TOKENS, uniform=0.1, generator=generator)
        return sample_task(clean, text, levels, base_tokens=BASE_TOKENS, generator=generator)

    def turn(self, seconds: float) -> None:
        """Train for some seconds, and record the useful tokens and the source pixels a second."""
        began, tokens, pixels = time.process_time(), 0, 0.0
        self.model.train()
        while (elapsed := time.process_time() - began) < seconds:
            plan, batch = next(self.batches)
            if is_step_full(self.in_gradient, plan.useful(batch)):
                self.update()
            task = self.task(plan, batch, self.num_batches)
            for part in task.micro_batches(CPU_PASS_TOKENS) if self.name == "packed" else [task]:  # as in training
                (task_loss(self.model, part, padded=plan.padded) * (plan.useful(batch) / BUDGET)).backward()
            self.num_batches += 1
            self.in_gradient += plan.useful(batch)
            tokens += plan.useful(batch)
            pixels += sum(visible_pixels(self.folder.sources[i], plan.shapes[i]) for i in batch)
        self.seconds += elapsed
        self.rates.append((tokens / elapsed, pixels / elapsed))

    def update(self) -> None:
        """Take an optimiser step on the gradient so far."""
        for group in self.optimizer.param_groups:
            group["lr"] = LR * min(1.0, (self.step + 1) / 20)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step, self.in_gradient = self.step + 1, 0

    @torch.no_grad()
    def held_out_loss(self, plan: Plan) -> float:
        """Compute the flow loss on clips that no loader trains on, at the same noise for every loader."""
        self.model.eval()
        tasks = (self.task(plan, batch, -1 - number, drop=0.0) for number, batch in enumerate(plan.batches))
        losses = [flow_loss(self.model, task) for task in tasks]
        weights = [plan.useful(batch) for batch in plan.batches]
        return sum(loss.item() * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)


def new_model(text_dim: int, num_layers: int) -> VideoDiT:
    """Build blocks as wide as the default checkpoint's, with the same first weights each time."""
    torch.manual_seed(0)
    model = VideoDiT(
        num_attention_heads=4, attention_head_dim=64, in_channels=CHANNELS, out_channels=CHANNELS,
        text_dim=text_dim, ffn_dim=1024, num_layers=num_layers, prediction="clean",
    )  # fmt: skip
    model.init_weights()
    return model


def race(folder: Folder, num_held: int, minutes: float, turn_seconds: float, num_layers: int) -> dict[str, object]:
    """Give each loader its share of the minutes, a turn at a time, and measure it."""
    tokenizer, encoder = load_tokenizer_and_encoder(ROOT / "assets" / "mini")
    captions = [caption(folder.scene(i), folder.seeds[i]) for i in range(len(folder.sources))]
    texts = embed_prompts([*captions, ""], tokenizer, encoder)
    num_train = len(folder.sources) - num_held
    sources = folder.sources[:num_train]
    shapes = [native_shape(source, MAX_TOKENS // (1 + (source.frames - 1) // 4)) for source in folder.sources]
    area = round(statistics.mean(shape.width * shape.height for shape in shapes))
    buckets = choose_buckets(sources, area, budget=BUDGET)
    options = {"budget": BUDGET, "ranks": 1}
    plans: dict[str, Callable[[int], Plan]] = {
        "packed": lambda seed: plan_packed(shapes[:num_train], seed=seed, **options),
        "padded": lambda seed: plan_padded(shapes[:num_train], seed=seed, **options),
        "buckets": lambda seed: plan_buckets(sources, buckets, seed=seed, **options),
    }
    runners = [Runner(name, plan, folder, texts, num_layers) for name, plan in plans.items()]
    in_buckets = [buckets.shape_of(source) or shape for source, shape in zip(folder.sources, shapes, strict=True)]
    for i, pair in enumerate(zip(shapes, in_buckets, strict=True)):
        folder.encode(i, set(pair))
    check_padding(runners[0], plans["padded"](0))
    held_out = range(num_train, len(folder.sources))
    tests = {"native": plan_small_batches(shapes, held_out), "in_buckets": plan_small_batches(in_buckets, held_out)}
    for _ in range(max(2, round(60 * minutes / turn_seconds / len(runners)))):
        for runner in runners:
            runner.turn(turn_seconds)
    rows = {}
    for runner in runners:
        tokens, pixels = map(statistics.median, zip(*runner.rates[1:], strict=True))  # the first turn warms up
        losses = {f"held_out_loss_{name}": round(runner.held_out_loss(plan), 4) for name, plan in tests.items()}
        rows[runner.name] = {
            **measure_plan(runner.plan(0), sources, 1, BUDGET),
            "useful_tokens_per_second": round(tokens),
            "source_pixels_per_second": round(pixels),
            "steps": runner.step,
            "seconds": round(runner.seconds, 1),
            **losses,
        }
    return {
        "clips": num_train,
        "held_out": num_held,
        "sizes_and_lengths": len(set(sources)),
        "shapes_trained_on": len(set(shapes[:num_train])),
        "tokens_a_clip": [min(s.tokens for s in shapes[:num_train]), max(s.tokens for s in shapes[:num_train])],
        "token_budget": BUDGET,
        "bucket_frames": buckets.frames,
        "bucket_sizes": sorted({tuple(s[:2]) for s in map(buckets.shape_of, sources) if s}),
        "loaders": rows,
        "ratios": compare_rates(runners),
    }


def plan_small_batches(shapes: Sequence[Shape], clips: Sequence[int]) -> Plan:
    """Plan small batches of clips in their own order, so that the noise of each is the same for every loader."""
    return Plan(list(shapes), [list(clips[i : i + 4]) for i in range(0, len(clips), 4)])


def compare_rates(runners: Sequence[Runner]) -> dict[str, float]:
    """Compare packed with the others: the median over the turns of the ratio of neighbouring turns."""
    packed, others = runners[0], runners[1:]
    ratios = {}
    for other in others:
        for column, measure in enumerate(("useful_tokens", "source_pixels")):
            pairs = zip(packed.rates[1:], other.rates[1:], strict=True)
            ratios[f"{measure}_over_{other.name}"] = round(
                statistics.median(a[column] / b[column] for a, b in pairs), 3
            )
    return ratios


def check_padding(runner: Runner, plan: Plan) -> None:
    """Check that the padded batch has the pack's loss."""
    model = runner.model
    first_weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=step_generator(0, weight.numel())))
        task = runner.task(plan, plan.batches[0], 0)
        packed_loss, padded_loss = (task_loss(model, task, padded=padded).item() for padded in (False, True))
    assert abs(packed_loss - padded_loss) < 1e-4 * packed_loss, f"padded {padded_loss}, packed {packed_loss}"
    model.load_state_dict(first_weights)


ROWS = ("fill", "padding", "dropped", "pixels_lost", "useful_tokens_per_second", "source_pixels_per_second")
ROWS += ("held_out_loss_native", "held_out_loss_in_buckets")


def format_table(race: Facts, attention_ratios: Facts, simulated: Sequence[Facts]) -> str:
    """Format the race, a column a loader, and fill and balance of the packs on 64 ranks."""
    loaders: dict[str, Facts] = race["loaders"]  # type: ignore[assignment]
    lines = [f"{'':26}" + "".join(f"{name:>12}" for name in loaders)]
    for name in ROWS:
        values = [row[name] for row in loaders.values()]
        number_format = ",.0f" if "second" in name else ".4f" if "loss" in name else ".1%"
        lines.append(f"{name:26}" + "".join(f"{value:>12{number_format}}" for value in values))
    lines += [f"packed over the others, {name}: {value}" for name, value in race["ratios"].items()]  # type: ignore[union-attr]
    lines += [f"attention over an equal batch, {name}: {value}" for name, value in attention_ratios.items()]
    for row in simulated:
        if row["ranks"] == 64 and row["loader"] == "packed":
            setting = f"{row['data']:7} {row['budget']:>6} tokens, 64 ranks"
            lines.append(f"{setting}: fill {row['fill']:.1%}, balance {row['balance_tokens']:.1%}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure everything and write assets/bench/packing.json."""
    parser = make_parser("packing", __doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="of training in all, for the three loaders together")
    parser.add_argument("--turn", type=float, default=6.0, help="seconds that a loader trains before the next one")
    parser.add_argument("--clips", type=int, default=1200, help="in the folder, a twentieth of them held out")
    parser.add_argument("--layers", type=int, default=4, help="blocks of the network")
    parser.add_argument("--rounds", type=int, default=100, help="of measuring attention alone")
    parser.add_argument("--simulated", type=int, default=8000, help="clips of each simulated data set")
    small = {"minutes": 0.0, "turn": 0.1, "clips": 100, "layers": 1, "rounds": 4, "simulated": 200}
    args = parse_flags(parser, argv, small)
    torch.set_num_threads(1)
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    attention_ratios, simulated = measure_attention(BUDGET, MAX_TOKENS, args.rounds), simulate(args.simulated)
    race_result = race(draw_folder(args.clips), args.clips // 20, args.minutes, args.turn, args.layers)
    print(format_table(race_result, attention_ratios, simulated))
    result = {
        "machine": f"{platform.machine()}, {threads}, torch {torch.__version__}",
        "date": date.today().isoformat(),
        "grouped_attention": attention_ratios,
        "race": race_result,
        "simulated": simulated,
    }
    write_json(args.out, result)


if __name__ == "__main__":
    main()
