"""Plan training steps of clips of all sizes in three ways: which clips go together, at which size.

    Shapes (width, height, frames), token budget, ranks  ->  Plan: shapes, batches, clips dropped

Nothing is read and no network is run, so that data sets of any size can be simulated (`MIXES`, `simulate`).
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from videogen.data.clip_plan import fit_size
from videogen.packing.bin_packing import balance_ranks, plan_packs

CELL, STRIDE = 16, 4  # pixels and frames of a token


class Shape(NamedTuple):
    """Width, height and frames of a clip, as its file has them or as it is trained on."""

    width: int
    height: int
    frames: int

    @property
    def tokens(self) -> int:
        """The number of tokens, at a size that the patches divide."""
        return (self.width // CELL) * (self.height // CELL) * (1 + (self.frames - 1) // STRIDE)

    @property
    def pixels(self) -> int:
        """The number of pixels over all frames."""
        return self.width * self.height * self.frames


class Plan(NamedTuple):
    """One epoch: each clip's shape, and batches of clip numbers; clips in no batch are dropped."""

    shapes: list[Shape]
    batches: list[list[int]]
    padded: bool = False

    def useful(self, batch: Sequence[int]) -> int:
        """Count the tokens of a batch that belong to a clip."""
        return sum(self.shapes[i].tokens for i in batch)

    def lengths(self, batch: Sequence[int]) -> list[int]:
        """Count the tokens that are computed for each clip of a batch."""
        tokens = [self.shapes[i].tokens for i in batch]
        return [max(tokens)] * len(tokens) if self.padded else tokens

    def dropped(self) -> int:
        """Count the clips that no batch has."""
        return len(self.shapes) - len({i for batch in self.batches for i in batch})


def visible_pixels(source: Shape, target: Shape) -> float:
    """Count the source pixels that a clip's shape shows: the frame is scaled to cover it and then cropped."""
    scale = max(target.width / source.width, target.height / source.height)
    area = (target.width / scale) * (target.height / scale)
    return min(area, source.width * source.height) * min(target.frames, source.frames)


def native_shape(source: Shape, max_cells: int) -> Shape:
    """Shrink a clip as videogen.data.folder does: to the most cells, to whole patches, and to 1 + 4k frames."""
    width, height = fit_size(source.width, source.height, cell=CELL, max_cells=max_cells)
    return Shape(width, height, 1 + (source.frames - 1) // STRIDE * STRIDE)


def plan_packed(shapes: Sequence[Shape], *, budget: int, ranks: int, seed: int) -> Plan:
    """Plan as videogen does: every clip at its own size, packs of at most budget tokens, balanced over the ranks."""
    lengths = [shape.tokens for shape in shapes]
    order = random.Random(seed).sample(range(len(shapes)), len(shapes))
    packs = plan_packs(lengths, budget=budget, order=order)
    return Plan(
        list(shapes), list(balance_ranks(packs, lambda clips: sum(lengths[i] ** 2 for i in clips), ranks, steps=8))
    )


def plan_padded(shapes: Sequence[Shape], *, budget: int, ranks: int, seed: int) -> Plan:
    """Plan batches of clips at their own sizes, padded to the longest, so many that the longest ones would fit.

    This is the masked batch that Open-Sora's report weighs against packing and Open-Sora-Plan's compares with buckets.
    """
    order = random.Random(seed).sample(range(len(shapes)), len(shapes))
    size = budget // max(shape.tokens for shape in shapes)
    return Plan(list(shapes), [order[i : i + size] for i in range(0, len(order), size)], padded=True)


class Buckets(NamedTuple):
    """The buckets that a user of a bucketing trainer writes in its config."""

    area: int
    """Pixels of a frame: resolutions = [512] in diffusion-pipe."""
    frames: tuple[int, ...]
    """Lengths, 1 for images."""
    aspects: int = 7
    """Aspect ratios from 0.5 to 2, evenly in the logarithm: the default there."""

    def shape_of(self, source: Shape) -> Shape | None:
        """Choose the nearest aspect ratio and the longest length that the clip has; None for a video shorter than all.

        diffusion-pipe does so in utils/dataset.py; finetrainers likewise takes the nearest of the listed resolutions
        among the lengths that the video has.
        """
        ratios = [0.5 * 4 ** (i / (self.aspects - 1)) for i in range(self.aspects)]
        ratio = min(ratios, key=lambda ratio: abs(math.log(ratio * source.height / source.width)))
        width, height = math.sqrt(self.area * ratio), math.sqrt(self.area / ratio)
        lengths = [n for n in self.frames if n <= source.frames and (n > 1 or source.frames == 1)]
        if not lengths:
            return None
        return Shape(max(1, round(width / CELL)) * CELL, max(1, round(height / CELL)) * CELL, max(lengths))


def plan_buckets(sources: Sequence[Shape], buckets: Buckets, *, budget: int, ranks: int, seed: int) -> Plan:
    """Plan every clip in its bucket; a step takes one bucket on all ranks, and an incomplete global batch is dropped.

    As in diffusion-pipe, videos and images have one batch size each, the largest that fits the budget in every bucket,
    and the clips that a bucket drops are the same in all epochs.
    """
    shapes = [buckets.shape_of(source) for source in sources]
    members: dict[Shape, list[int]] = defaultdict(list)
    for i, shape in enumerate(shapes):
        if shape is not None:
            members[shape].append(i)
    largest = {
        image: max((s.tokens for s in members if (s.frames == 1) == image), default=budget) for image in (True, False)
    }
    batches = []
    for shape, clips in members.items():
        shuffled = random.Random(0).sample(clips, len(clips))
        size = budget // largest[shape.frames == 1] * ranks
        batches += [shuffled[i : i + size] for i in range(0, len(shuffled) - size + 1, size)]
    batches = random.Random(seed).sample(batches, len(batches))
    by_rank = [batch[rank::ranks] for batch in batches for rank in range(ranks)]
    return Plan([shape or source for shape, source in zip(shapes, sources, strict=True)], by_rank)


def choose_buckets(sources: Sequence[Shape], area: int, *, budget: int) -> Buckets:
    """Choose, of several configs that a user may write, the buckets that show most of the folder's pixels."""
    lengths = ((1, 33), (1, 17, 33), (1, 9, 17, 33), (1, 9, 17, 25, 33), (1, 5, 9, 17, 25, 33))
    choices = [Buckets(area, frames, aspects) for frames, aspects in product(lengths, (3, 5, 7))]

    def pixels_lost(buckets: Buckets) -> float:
        plan = plan_buckets(sources, buckets, budget=budget, ranks=1, seed=0)
        return measure_plan(plan, sources, 1, budget)["pixels_lost"]

    return min(choices, key=pixels_lost)


# --- data sets


SIZES = (
    (64, 48), (48, 64), (64, 64), (80, 64), (72, 72), (80, 80), (96, 54), (54, 96),
    (96, 72), (100, 60), (60, 110), (112, 64), (90, 90), (96, 96), (112, 96),
)  # fmt: skip
LENGTHS = (5, 8, 11, 14, 17, 22, 25, 29, 33)  # as in real folders, where not all are 1 + 4k


def mixed_sources(num: int) -> list[Shape]:
    """Sample the sizes and lengths of a folder: any of the sizes; a third are images, the rest of any length."""
    rng = random.Random(0)
    return [Shape(*rng.choice(SIZES), 1 if rng.random() < 1 / 3 else rng.choice(LENGTHS)) for _ in range(num)]


def sample_duration(rng: random.Random, mean: float, sigma: float, least: float, most: float) -> float:
    """Sample a log-normal duration, whose mean is given before it is cut to its range."""
    return min(most, max(least, rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))


def sample_webvid(rng: random.Random) -> tuple[int, int, float]:
    """Sample WebVid (Bain et al. 2021): 18 s on average, 596 x 336; the spread and the 4:3 share are assumed."""
    width = 596 if rng.random() < 0.9 else 448
    return width, 336, sample_duration(rng, 18.0, 0.5, 3, 60)


def sample_panda(rng: random.Random) -> tuple[int, int, float]:
    """Sample Panda-70M (Chen et al. 2024): 70.7 million clips, 167,000 hours: 8.5 s, 720p; the spread is assumed."""
    return 1280, 720, sample_duration(rng, 8.5, 0.8, 1, 60)


def sample_phone(rng: random.Random) -> tuple[int, int, float]:
    """Sample a phone's camera roll, all of it assumed: a third photos, most videos upright, of a second to minutes."""
    if rng.random() < 0.35:
        return (*rng.choice([(1440, 1920), (1920, 1440), (1080, 1080)]), 0.0)
    is_upright, seconds = rng.random() < 0.65, sample_duration(rng, 15.0, 1.0, 1, 180)
    return (1080, 1920, seconds) if is_upright else (1920, 1080, seconds)


MIXES: dict[str, Callable[[random.Random], tuple[int, int, float]]] = {
    "webvid": sample_webvid,
    "panda": sample_panda,
    "phone": sample_phone,
}
FPS, MAX_SECONDS = 16, 10  # frames a second that are trained on, and the longest clip
FRAME_BUCKETS = (1, 17, 33, 65, 97, 129, 161)  # finer than the two of diffusion-pipe's example


def sample_sources(mix: str, num: int, seed: int = 0) -> list[Shape]:
    """Sample clips of a data set at the training frame rate, cut at the longest length."""
    rng, sources = random.Random(seed), []
    for _ in range(num):
        width, height, seconds = MIXES[mix](rng)
        sources.append(Shape(width, height, max(1, math.floor(min(seconds, MAX_SECONDS) * FPS))))
    return sources


def block_flop(length: int, d: int = 1536, ffn: int = 8960) -> float:
    """Count the operations of a block on one clip at Wan 1.3B's width: attention grows with the square."""
    return length * (12 * d * d + 4 * d * ffn + 4 * d * length)


def rank_balance(plan: Plan, ranks: int, cost: Callable[[int], float]) -> float:
    """Compute how busy the ranks are on average while each step waits for its slowest."""
    costs = [sum(map(cost, plan.lengths(batch))) for batch in plan.batches]
    steps = [costs[i : i + ranks] for i in range(0, len(costs) - ranks + 1, ranks)]
    return sum(map(sum, steps)) / (ranks * sum(map(max, steps))) if steps else math.nan


def simulate(num: int) -> list[dict[str, object]]:
    """Simulate fill, balance and losses of three loaders on three data sets, at three budgets and numbers of ranks."""
    rows = []
    for mix in MIXES:
        sources = sample_sources(mix, num)
        for budget in (4096, 16384, 65536):
            cells = budget // 4 // (1 + (MAX_SECONDS * FPS - 1) // STRIDE)  # the longest clip takes a quarter of a pack
            shapes = [native_shape(source, cells) for source in sources]
            buckets = Buckets(cells * CELL**2, FRAME_BUCKETS)
            for ranks in (1, 8, 64):
                options = {"budget": budget, "ranks": ranks, "seed": 1}
                plans = {
                    "packed": plan_packed(shapes, **options),
                    "padded": plan_padded(shapes, **options),
                    "buckets": plan_buckets(sources, buckets, **options),
                }
                for name, plan in plans.items():
                    setting = {"data": mix, "budget": budget, "ranks": ranks, "loader": name}
                    rows.append(setting | measure_plan(plan, sources, ranks, budget))
    return rows


def measure_plan(plan: Plan, sources: Sequence[Shape], ranks: int, budget: int) -> dict[str, float]:
    """Measure how a plan fills its budget, and how many of its clips' pixels it shows."""
    useful = sum(map(plan.useful, plan.batches))
    computed = sum(sum(plan.lengths(batch)) for batch in plan.batches)
    trained = {i for batch in plan.batches for i in batch}
    num_pixels = sum(source.pixels for source in sources)
    return {
        "fill": round(useful / (len(plan.batches) * budget), 4) if plan.batches else 0.0,
        "padding": round(1 - useful / computed, 4) if computed else 0.0,
        "dropped": round(plan.dropped() / len(sources), 4),
        "pixels_lost": round(1 - sum(visible_pixels(sources[i], plan.shapes[i]) for i in trained) / num_pixels, 4),
        "balance_tokens": round(rank_balance(plan, ranks, float), 4),
        "balance_work": round(rank_balance(plan, ranks, block_flop), 4),
    }
