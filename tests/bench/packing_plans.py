"""Three ways to make training steps of clips of all sizes, as plans: which clips go together, at which size.

    Sources (width, height, frames), token budget, ranks  ->  Plan: shapes, batches, clips dropped

Nothing is read and no network is run, so that data sets of any size can be simulated (`mixes`, `simulate`).
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from videogen.data.folder import fit_size
from videogen.packing.bin_packing import deal, plan_packs

CELL, STRIDE = 16, 4  # pixels and frames of a token


class Shape(NamedTuple):
    """Pixels and frames of a clip: as its file has them, or as it is trained on."""

    width: int
    height: int
    frames: int

    @property
    def tokens(self) -> int:
        """At a size that the patches divide."""
        return (self.width // CELL) * (self.height // CELL) * (1 + (self.frames - 1) // STRIDE)

    @property
    def pixels(self) -> int:
        """Over all frames."""
        return self.width * self.height * self.frames


class Plan(NamedTuple):
    """One epoch: each clip's shape, and batches of clip numbers; the clips of no batch are dropped."""

    shapes: list[Shape]
    batches: list[list[int]]
    padded: bool = False

    def useful(self, batch: Sequence[int]) -> int:
        """Tokens of a batch that belong to a clip."""
        return sum(self.shapes[i].tokens for i in batch)

    def lengths(self, batch: Sequence[int]) -> list[int]:
        """Tokens that are computed for each clip of a batch."""
        own = [self.shapes[i].tokens for i in batch]
        return [max(own)] * len(own) if self.padded else own

    def dropped(self) -> int:
        """Clips that no batch has."""
        return len(self.shapes) - len({i for batch in self.batches for i in batch})


def kept(source: Shape, target: Shape) -> float:
    """Source pixels that a clip's shape shows: the frame is scaled to cover it, what sticks out is cropped."""
    scale = max(target.width / source.width, target.height / source.height)
    area = (target.width / scale) * (target.height / scale)
    return min(area, source.width * source.height) * min(target.frames, source.frames)


def native(source: Shape, max_cells: int) -> Shape:
    """As videogen.data.folder does: shrunk to the room there is, to whole patches, and to 1 + 4k frames."""
    width, height = fit_size(source.width, source.height, cell=CELL, max_cells=max_cells)
    return Shape(width, height, 1 + (source.frames - 1) // STRIDE * STRIDE)


def packed(shapes: Sequence[Shape], *, budget: int, ranks: int, seed: int) -> Plan:
    """Ours: every clip at its own size, packs of at most budget tokens, dealt to the ranks, each every ranks-th."""
    lengths = [shape.tokens for shape in shapes]
    order = random.Random(seed).sample(range(len(shapes)), len(shapes))
    packs = plan_packs(lengths, budget=budget, order=order)
    return Plan(list(shapes), list(deal(packs, lambda clips: sum(lengths[i] ** 2 for i in clips), ranks, steps=8)))


def padded(shapes: Sequence[Shape], *, budget: int, ranks: int, seed: int) -> Plan:
    """Every clip at its own size, so many at a time that the longest ones would fit, padded to the longest there is.

    The masked batch that Open-Sora's report weighs against packing and Open-Sora-Plan's compares with buckets
    (reference: peers.md A2).
    """
    order = random.Random(seed).sample(range(len(shapes)), len(shapes))
    size = budget // max(shape.tokens for shape in shapes)
    return Plan(list(shapes), [order[i : i + size] for i in range(0, len(order), size)], padded=True)


class Buckets(NamedTuple):
    """What the user of a bucketing trainer writes in its config."""

    area: int
    """Pixels of a frame: resolutions = [512] in diffusion-pipe."""
    frames: tuple[int, ...]
    """Lengths, 1 for images."""
    aspects: int = 7
    """Aspect ratios from 0.5 to 2, evenly in the logarithm: the default there."""

    def shape_of(self, source: Shape) -> Shape | None:
        """The nearest aspect ratio and the longest length that the clip has; none for a video shorter than all.

        diffusion-pipe, utils/dataset.py; finetrainers likewise takes the nearest of the listed resolutions among the
        lengths that the video has.
        """
        ratios = [0.5 * 4 ** (i / (self.aspects - 1)) for i in range(self.aspects)]
        ratio = min(ratios, key=lambda one: abs(math.log(one * source.height / source.width)))
        width, height = math.sqrt(self.area * ratio), math.sqrt(self.area / ratio)
        lengths = [n for n in self.frames if n <= source.frames and (n > 1 or source.frames == 1)]
        if not lengths:
            return None
        return Shape(max(1, round(width / CELL)) * CELL, max(1, round(height / CELL)) * CELL, max(lengths))


def bucketed(sources: Sequence[Shape], buckets: Buckets, *, budget: int, ranks: int, seed: int) -> Plan:
    """Every clip in its bucket; a step takes one bucket on all ranks, and what fills no global batch is left out.

    As diffusion-pipe: one batch size for videos and one for images, the largest that fit the budget in every bucket;
    which clips of a bucket are left out is the same in all epochs.
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
        own = random.Random(0).sample(clips, len(clips))
        size = budget // largest[shape.frames == 1] * ranks
        batches += [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
    batches = random.Random(seed).sample(batches, len(batches))
    by_rank = [batch[rank::ranks] for batch in batches for rank in range(ranks)]
    return Plan([shape or source for shape, source in zip(shapes, sources, strict=True)], by_rank)


def best_buckets(sources: Sequence[Shape], area: int, *, budget: int) -> Buckets:
    """Of several configs that a user may write, the one whose batches show most of the folder's pixels."""
    lengths = ((1, 33), (1, 17, 33), (1, 9, 17, 33), (1, 9, 17, 25, 33), (1, 5, 9, 17, 25, 33))
    choices = [Buckets(area, frames, aspects) for frames, aspects in product(lengths, (3, 5, 7))]

    def lost(buckets: Buckets) -> float:
        return facts(bucketed(sources, buckets, budget=budget, ranks=1, seed=0), sources, 1, budget)["pixels_lost"]

    return min(choices, key=lost)


# --- data sets


SIZES = (
    (64, 48), (48, 64), (64, 64), (80, 64), (72, 72), (80, 80), (96, 54), (54, 96),
    (96, 72), (100, 60), (60, 110), (112, 64), (90, 90), (96, 96), (112, 96),
)  # fmt: skip
LENGTHS = (5, 8, 11, 14, 17, 22, 25, 29, 33)  # as files come: not all are 1 + 4k


def mixed_sources(num: int) -> list[Shape]:
    """Sizes and lengths of a folder: any of the sizes; a third are images, as on a phone, the rest of any length."""
    draw = random.Random(0)
    return [Shape(*draw.choice(SIZES), 1 if draw.random() < 1 / 3 else draw.choice(LENGTHS)) for _ in range(num)]


def lognormal(draw: random.Random, mean: float, sigma: float, least: float, most: float) -> float:
    """A duration with the given mean before it is cut to its range."""
    return min(most, max(least, draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))


def webvid(draw: random.Random) -> tuple[int, int, float]:
    """WebVid (Bain et al. 2021): 18 s on average, previews of 596 x 336; the spread and the 4:3 share are assumed."""
    width = 596 if draw.random() < 0.9 else 448
    return width, 336, lognormal(draw, 18.0, 0.5, 3, 60)


def panda(draw: random.Random) -> tuple[int, int, float]:
    """Panda-70M (Chen et al. 2024): 70.7 million clips, 167 thousand hours: 8.5 s, 720p; the spread is assumed."""
    return 1280, 720, lognormal(draw, 8.5, 0.8, 1, 60)


def phone(draw: random.Random) -> tuple[int, int, float]:
    """A phone's camera roll, all of it assumed: a third photos, most videos upright, from a second to minutes."""
    if draw.random() < 0.35:
        return (*draw.choice([(1440, 1920), (1920, 1440), (1080, 1080)]), 0.0)
    upright = draw.random() < 0.65
    return (1080, 1920, s) if (s := lognormal(draw, 15.0, 1.0, 1, 180)) and upright else (1920, 1080, s)


MIXES: dict[str, Callable[[random.Random], tuple[int, int, float]]] = {"webvid": webvid, "panda": panda, "phone": phone}
FPS, MAX_SECONDS = 16, 10  # frames a second that are trained on, and the longest clip
FRAME_BUCKETS = (1, 17, 33, 65, 97, 129, 161)  # finer than the two of diffusion-pipe's example


def sources_of(mix: str, num: int, seed: int = 0) -> list[Shape]:
    """Clips of a data set at the training frame rate, cut at the longest length."""
    draw, found = random.Random(seed), []
    for _ in range(num):
        width, height, seconds = MIXES[mix](draw)
        found.append(Shape(width, height, max(1, math.floor(min(seconds, MAX_SECONDS) * FPS))))
    return found


def work(length: int, d: int = 1536, ffn: int = 8960) -> float:
    """Operations of a block on one clip, in a network of Wan 1.3B's width: attention grows with the square."""
    return length * (12 * d * d + 4 * d * ffn + 4 * d * length)


def balance(plan: Plan, ranks: int, cost: Callable[[int], float]) -> float:
    """How busy the ranks are on average while each step waits for its slowest."""
    costs = [sum(map(cost, plan.lengths(batch))) for batch in plan.batches]
    steps = [costs[i : i + ranks] for i in range(0, len(costs) - ranks + 1, ranks)]
    return sum(map(sum, steps)) / (ranks * sum(map(max, steps))) if steps else math.nan


def simulate(num: int = 8_000) -> list[dict[str, object]]:
    """Fill, balance and losses of the three loaders on three data sets, at three budgets and numbers of ranks."""
    rows = []
    for mix in MIXES:
        sources = sources_of(mix, num)
        for budget in (4096, 16384, 65536):
            cells = budget // 4 // (1 + (MAX_SECONDS * FPS - 1) // STRIDE)  # the longest clip takes a quarter of a pack
            shapes = [native(source, cells) for source in sources]
            buckets = Buckets(cells * CELL**2, FRAME_BUCKETS)
            for ranks in (1, 8, 64):
                options = {"budget": budget, "ranks": ranks, "seed": 1}
                plans = {
                    "packed": packed(shapes, **options),
                    "padded": padded(shapes, **options),
                    "buckets": bucketed(sources, buckets, **options),
                }
                for name, plan in plans.items():
                    setting = {"data": mix, "budget": budget, "ranks": ranks, "loader": name}
                    rows.append(setting | facts(plan, sources, ranks, budget))
    return rows


def facts(plan: Plan, sources: Sequence[Shape], ranks: int, budget: int) -> dict[str, float]:
    """What a plan makes of a budget and of the pixels it was given."""
    useful = sum(map(plan.useful, plan.batches))
    computed = sum(sum(plan.lengths(batch)) for batch in plan.batches)
    seen = {i for batch in plan.batches for i in batch}
    whole = sum(source.pixels for source in sources)
    return {
        "fill": round(useful / (len(plan.batches) * budget), 4) if plan.batches else 0.0,
        "padding": round(1 - useful / computed, 4) if computed else 0.0,
        "dropped": round(plan.dropped() / len(sources), 4),
        "pixels_lost": round(1 - sum(kept(sources[i], plan.shapes[i]) for i in seen) / whole, 4),
        "balance_tokens": round(balance(plan, ranks, float), 4),
        "balance_work": round(balance(plan, ranks, work), 4),
    }
