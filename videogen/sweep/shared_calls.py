"""Many runs in each network call: what can be computed once is, and the rest goes side by side.

    runs of one schedule (size, length, sampler, steps, shift)  ->  [Made(latent, seconds, evaluations, ...)]

Clips of a pack walk the same noise levels; prompts, seeds and guidance are their own. Two questions to the network that
agree in every bit of tokens, noise level and prompt are one: the first step of all runs of a seed, the guidance
settings that are not on yet, Heun's second look and Euler's next. Texts are read once a sweep.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from videogen.models.block_cache import BlockCache, cache_of
from videogen.models.dit import TextContext
from videogen.packing.packs import Grid, PackedVideo, Scaling, check_patch, unpack
from videogen.packing.patch_schedule import Cut, Patch, cut_by
from videogen.sampling.guidance import is_guided, strengthen, texts_of
from videogen.sampling.pipeline import Job, VideoPipeline
from videogen.sweep.plan import Run
from videogen.sweep.resource_usage import forget_peak, peak_memory_gb, synchronise

Question = tuple[bytes, float, str]  # digest of a clip's tokens and grid, noise level, text
# One clip more makes a CPU no faster from here on (measured: 25.0 ms a clip alone, 20.4 of 4 to 16); a GPU wants more.
TOKENS_AT_ONCE = {"cpu": 1280}
TOKENS_ON_GPU = 16384
MEMORY_BYTES = 256 << 20  # of remembered answers


class Made(NamedTuple):
    """A run's latent, or why there is none, and what it cost."""

    latent: Tensor | None
    error: str = ""
    text_seconds: float = 0.0
    denoise_seconds: float = 0.0
    evaluations: int = 0
    evaluations_reused: int = 0
    clips_in_pack: int = 1
    peak_memory_gb: float = 0.0


def schedule_of(run: Run) -> tuple[object, ...]:
    """What the clips of a pack share."""
    c = run.config
    length = c.frames if c.seconds is None else (c.seconds, c.fps)
    return c.size, length, c.sampler, c.steps, c.shift, c.patch, c.position_scaling, c.first_block_cache, c.mag_cache


class Packer:
    """Makes runs in packs; remembers texts and the network's answers from one pack to the next."""

    def __init__(self, pipeline: VideoPipeline, tokens_at_once: int | None = None, *, alone: bool = False) -> None:
        self.pipeline, self.alone = pipeline, alone
        kind = pipeline.computes_on.type
        self.tokens_at_once = tokens_at_once or TOKENS_AT_ONCE.get(kind, TOKENS_ON_GPU)
        self.texts: dict[str, int] = {}  # each text's row in the library
        self.library: TextContext | None = None
        self.text_seconds = 0.0  # of one text
        self.shelf: tuple[tuple[int, ...], TextContext] | None = None  # the texts of the last call
        self.answers: OrderedDict[Question, Tensor] = OrderedDict()
        self.held_bytes = 0
        # Seconds of one evaluation of so many tokens, cut by so many schedules, when last measured.
        self.price: dict[tuple[int, str], float] = {}

    @torch.no_grad()
    def read(self, runs: Iterable[Run]) -> None:
        """Encode every text that the runs will ask for and that is not known yet, each once."""
        wanted = {text for run in runs for text in (run.prompt, run.config.negative)}
        if wanted <= self.texts.keys():
            return
        texts = sorted(wanted | self.texts.keys())
        began = time.perf_counter()
        self.library = self.pipeline.read(texts)
        synchronise(self.pipeline.computes_on)
        self.text_seconds = (time.perf_counter() - began) / len(texts)
        self.texts, self.shelf = {text: i for i, text in enumerate(texts)}, None

    def packs(self, runs: Sequence[Run]) -> list[list[Run]]:
        """Runs of one schedule together, prompt and negative prompt of each counted, up to the token budget."""
        groups: dict[tuple[object, ...], list[Run]] = {}
        for run in runs:
            groups.setdefault(schedule_of(run), []).append(run)
        packs = []
        for group in groups.values():
            together = not self.alone and cache_of(group[0].config) is None  # what a cache reuses is a clip's own
            size = max(1, self.tokens_at_once // (2 * self.count_tokens(group[0]))) if together else 1
            packs += [group[i : i + size] for i in range(0, len(group), size)]
        return packs

    def count_tokens(self, run: Run) -> int:
        """Tokens of a run's clip."""
        t, h, w = check_patch(self.pipeline.latent_shape(run.config), self.pipeline.transformer.base_patch)
        return t * h * w

    def make(self, runs: Sequence[Run], tick: Callable[[], None] = lambda: None) -> list[Made]:
        """The runs of one pack; where the pack fails, each alone, so that one bad run costs no other."""
        try:
            if cache_of(runs[0].config) is not None:
                return [self.make_approximately(run, tick) for run in runs]
            self.read(runs)
            return self.make_together(runs, tick)
        except Exception as error:
            if len(runs) > 1:
                return [made for run in runs for made in self.make([run], tick)]
            return [Made(None, error=reason_of(error))]

    @torch.no_grad()
    def make_together(self, runs: Sequence[Run], tick: Callable[[], None]) -> list[Made]:
        """Denoise a pack."""
        config, device = runs[0].config, self.pipeline.computes_on
        forget_peak(device)
        began = time.perf_counter()
        seeds = [run.seed for run in runs]
        video = self.pipeline.noise(seeds, [run.config for run in runs])
        walk = Walk(self, runs, video, tick)
        tokens = self.pipeline.denoise(walk.velocity, video, seeds, config)
        latents = unpack(video._replace(tokens=tokens))
        synchronise(device)
        length = video.lengths[0], config.patch
        if walk.num_asked:
            self.price[length] = (time.perf_counter() - began) / walk.num_asked
        peak = peak_memory_gb(device)
        return [
            Made(
                latent=latent if (whole := bool(latent.isfinite().all())) else None,
                error="" if whole else "the latents are not finite; lower the guidance or check the weights",
                text_seconds=self.text_seconds * (1 if run.config.guidance == 1 else 2),
                denoise_seconds=wanted * self.price.get(length, 0.0),  # what was reused costs what it did when made
                evaluations=wanted,
                evaluations_reused=reused,
                clips_in_pack=len(runs),
                peak_memory_gb=peak,
            )
            for run, latent, wanted, reused in zip(runs, latents, walk.wanted, walk.reused, strict=True)
        ]

    def make_approximately(self, run: Run, tick: Callable[[], None]) -> Made:
        """A run whose answers depend on those before them: it shares none with others."""
        cache, device = BlockCache(run.config), self.pipeline.computes_on
        self.read([run])
        rows = [self.texts[text] for text in texts_of([run.prompt], run.config)]
        assert self.library is not None
        forget_peak(device)
        began = time.perf_counter()
        (latent,) = self.pipeline.sample(
            [Job(run.prompt, run.seed)], run.config, tick, cache=cache, context=self.library.take(rows)
        )
        synchronise(device)
        return Made(
            latent,
            text_seconds=self.text_seconds * len(rows),
            denoise_seconds=time.perf_counter() - began,
            evaluations=round(cache.asked),
            evaluations_reused=round(cache.asked - cache.computed),
            peak_memory_gb=peak_memory_gb(device),
        )

    def ask(self, questions: Mapping[Question, Tensor], like: PackedVideo, cut: Cut) -> dict[Question, Tensor]:
        """The velocity of each question's tokens (n, c) under its text: one noise level, one call of the network."""
        rows = tuple(self.texts[text] for _, _, text in questions)
        if self.shelf is None or self.shelf[0] != rows:
            assert self.library is not None
            self.shelf = rows, self.library.take(rows)
        video = like._replace(tokens=torch.cat(list(questions.values())), grids=like.grids[:1] * len(rows))
        sigma = torch.tensor(next(iter(questions))[1], dtype=torch.float64)
        field = self.pipeline.velocity(video, self.shelf[1], lambda: None, cut=cut)
        answer = field(video.tokens, sigma)
        return dict(zip(questions, answer.split(video.lengths), strict=True))

    def remember(self, question: Question, answer: Tensor) -> None:
        """Keep an answer, dropping the oldest where there are too many."""
        self.answers[question] = answer
        self.held_bytes += answer.nbytes
        while self.held_bytes > MEMORY_BYTES and len(self.answers) > 1:
            self.held_bytes -= self.answers.popitem(last=False)[1].nbytes


class Walk:
    """A pack on its way from noise to clips: what each run asked, and the velocity of all of them."""

    def __init__(self, packer: Packer, runs: Sequence[Run], video: PackedVideo, tick: Callable[[], None]) -> None:
        self.packer, self.runs, self.video, self.tick = packer, runs, video, tick
        self.cut = cut_by(runs[0].config, packer.pipeline.transformer.patches)
        self.wanted, self.reused = [0] * len(runs), [0] * len(runs)
        self.num_asked = 0

    def velocity(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The guided velocity of every clip of the pack, x (n, c)."""
        clips = x.split(self.video.lengths)
        asked = [self.questions(run, clip, sigma) for run, clip in zip(self.runs, clips, strict=True)]
        known, missing = self.packer.answers, dict[Question, Tensor]()
        for i, clip in enumerate(clips):
            for question in asked[i]:
                again = question in known or question in missing
                self.wanted[i] += 1
                self.reused[i] += again
                if not again:
                    missing[question] = clip
                self.tick()
        now = self.packer.ask(missing, self.video, self.cut) if missing else {}
        found = [[now[q] if q in now else known[q] for q in questions] for questions in asked]
        for question, answer in now.items():
            self.packer.remember(question, answer)
        self.num_asked += len(missing)
        return torch.cat([self.guide(run, answers, sigma) for run, answers in zip(self.runs, found, strict=True)])

    def questions(self, run: Run, clip: Tensor, sigma: Tensor) -> list[Question]:
        """What a run asks of the network at a noise level: under its prompt, and where guidance is on its negative."""
        now = self.packer.pipeline.settings_at(run.config, sigma)
        texts = (run.prompt, now.negative) if is_guided(now, sigma) else (run.prompt,)
        where = digest(clip, self.video.grids[0], self.cut(float(sigma)), self.video.scaling)
        return [(where, float(sigma), text) for text in texts]

    def guide(self, run: Run, answers: Sequence[Tensor], sigma: Tensor) -> Tensor:
        """The answers to a run's questions as one velocity."""
        if len(answers) == 1:
            return answers[0]
        now = self.packer.pipeline.settings_at(run.config, sigma)
        return strengthen(answers[0], answers[1], now, self.video.lengths[:1])


def digest(tokens: Tensor, grid: Grid, patch: Patch, scaling: Scaling | None = None) -> bytes:
    """A hash of a clip's tokens, of their grid, since a turned clip can have the same numbers, and how it is seen."""
    place = repr((grid, patch, scaling)).encode()
    return hashlib.blake2b(tokens.contiguous().cpu().numpy().tobytes() + place, digest_size=16).digest()


def reason_of(error: BaseException) -> str:
    """An error as one line of a table."""
    said = " ".join(str(error).split())
    plain = isinstance(error, ValueError | RuntimeError | ArithmeticError | OSError) and said
    return said if plain else f"{type(error).__name__}: {said}".rstrip(": ")
