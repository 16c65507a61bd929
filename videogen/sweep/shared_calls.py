"""Denoise many runs in each network call, and compute once what several of them ask for.

    runs of one schedule (size, length, sampler, steps, ...), Known  ->  [RunResult(latent, seconds, evaluations, ...)]

Clips of a pack pass the same noise levels; prompts, seeds and guidance are their own, and what is known is that of all.
Two evaluations that agree in every bit of tokens, noise level and prompt are one: the first step of all runs of a seed,
guidance settings that are not on yet, Heun's second evaluation and Euler's next. Texts are encoded once a sweep.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from videogen.models.block_cache import BlockCache
from videogen.models.dit_network import TextContext
from videogen.packing.bin_packing import group_by_budget
from videogen.packing.packs import PackedVideo, patch_grid, unpack
from videogen.packing.patch_schedule import patch_schedule
from videogen.sampling.clip_sampler import ClipRequest, ClipSampler
from videogen.sampling.denoiser import Denoiser, with_guidance
from videogen.sampling.guidance import prompts_and_negatives
from videogen.sampling.known import Known
from videogen.sampling.known_tokens import Condition
from videogen.sampling.solvers import known_levels
from videogen.sweep.plan import Run
from videogen.sweep.resource_usage import peak_memory_gb, reset_peak_memory, synchronise

Question = tuple[bytes, float, str]  # digest of a clip's tokens and grid, noise level, text
TOKENS_PER_SWEEP_PACK = {"cpu": 1280, "gpu": 16384}
"""More clips make a CPU no faster (measured: 25.0 ms a clip alone, 20.4 for 4 to 16 together); a GPU wants more."""
ANSWER_BYTES = 256 << 20  # kept of computed velocities


class RunResult(NamedTuple):
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
    """List what the clips of a pack share."""
    c = run.config
    length = c.frames if c.seconds is None else (c.seconds, c.fps)
    solver = c.sampler, c.steps, c.shift, c.strength
    return c.size, length, *solver, c.patch, c.position_scaling, c.first_block_cache, c.mag_cache


class BatchedRuns:
    """Denoises runs in packs; keeps texts and the network's answers from one pack to the next."""

    def __init__(
        self,
        pipeline: ClipSampler,
        tokens_per_pack: int | None = None,
        *,
        alone: bool = False,
        known: Sequence[Known] = (),
    ) -> None:
        self.pipeline, self.alone, self.known = pipeline, alone, known
        default = TOKENS_PER_SWEEP_PACK["cpu" if pipeline.compute_device.type == "cpu" else "gpu"]
        self.tokens_per_pack = tokens_per_pack or default
        self.text_rows: dict[str, int] = {}  # each text's row in self.texts
        self.texts: TextContext | None = None
        self.text_seconds = 0.0  # to encode one text
        self.answers: OrderedDict[Question, Tensor] = OrderedDict()
        self.answer_bytes = 0
        # Seconds of one evaluation of so many tokens under a patch schedule, when last measured.
        self.seconds_per_evaluation: dict[tuple[int, str], float] = {}

    @torch.no_grad()
    def encode_texts(self, runs: Iterable[Run]) -> None:
        """Encode every text that the runs ask for and that is not encoded yet, each once."""
        wanted = {text for run in runs for text in (run.prompt, run.config.negative)}
        if wanted <= self.text_rows.keys():
            return
        texts = sorted(wanted | self.text_rows.keys())
        began = time.perf_counter()
        self.texts = self.pipeline.encode_prompts(texts)
        synchronise(self.pipeline.compute_device)
        self.text_seconds = (time.perf_counter() - began) / len(texts)
        self.text_rows = {text: i for i, text in enumerate(texts)}

    def take_texts(self, texts: Iterable[str]) -> TextContext:
        """Select encoded texts."""
        assert self.texts is not None, "encode_texts comes first"
        return self.texts.take([self.text_rows[text] for text in texts])

    def packs(self, runs: Sequence[Run]) -> list[list[Run]]:
        """Group runs of one schedule, counting prompt and negative prompt of each, up to the token budget."""
        groups: dict[tuple[object, ...], list[Run]] = {}
        for run in runs:
            groups.setdefault(schedule_of(run), []).append(run)
        packs = list[list[Run]]()
        for group in groups.values():
            # What a block cache reuses is a clip's own.
            budget = 0 if self.alone or group[0].config.reuses_blocks else self.tokens_per_pack
            packs += group_by_budget(group, lambda run: 2 * self.num_tokens(run), budget)
        return packs

    def num_tokens(self, run: Run) -> int:
        """Count the tokens of a run's clip."""
        t, h, w = patch_grid(self.pipeline.latent_shape(run.config), self.pipeline.transformer.base_patch)
        return t * h * w

    def denoise(self, runs: Sequence[Run], on_evaluation: Callable[[], None] = lambda: None) -> list[RunResult]:
        """Denoise the runs of one pack; where the pack fails, each alone, so that one bad run costs no other."""
        try:
            self.encode_texts(runs)
            if runs[0].config.reuses_blocks:
                return [self.denoise_with_block_cache(run, on_evaluation) for run in runs]
            return self.denoise_together(runs, on_evaluation)
        except Exception as error:
            if len(runs) > 1:
                return [result for run in runs for result in self.denoise([run], on_evaluation)]
            return [RunResult(None, error=reason_of(error))]

    @torch.no_grad()
    def denoise_together(self, runs: Sequence[Run], on_evaluation: Callable[[], None]) -> list[RunResult]:
        """Denoise a pack side by side."""
        config, device = runs[0].config, self.pipeline.compute_device
        reset_peak_memory(device)
        began = time.perf_counter()
        seeds, configs = [run.seed for run in runs], [run.config for run in runs]
        noise = self.pipeline.noise(seeds, configs)
        requests = [ClipRequest(run.prompt, run.seed, self.known, run.config) for run in runs]
        condition = self.pipeline.condition(requests, configs, noise)
        pack = PackRun(self, runs, noise, condition, on_evaluation)
        velocity = with_guidance(pack, configs, noise.lengths, self.pipeline.boundary)
        tokens = self.pipeline.solve_around(condition.known, velocity, noise, seeds, config)
        latents = unpack(noise._replace(tokens=tokens))
        synchronise(device)
        kind = noise.lengths[0], config.patch
        if pack.num_computed:
            self.seconds_per_evaluation[kind] = (time.perf_counter() - began) / pack.num_computed
        peak = peak_memory_gb(device)
        return [
            RunResult(
                latent=latent if (is_finite := bool(latent.isfinite().all())) else None,
                error="" if is_finite else "the latents are not finite; lower the guidance or check the weights",
                text_seconds=self.text_seconds * (1 if run.config.guidance == 1 else 2),
                # A reused evaluation costs what it did when it was computed.
                denoise_seconds=num_requested * self.seconds_per_evaluation.get(kind, 0.0),
                evaluations=num_requested,
                evaluations_reused=num_reused,
                clips_in_pack=len(runs),
                peak_memory_gb=peak,
            )
            for run, latent, num_requested, num_reused in zip(
                runs, latents, pack.num_requested, pack.num_reused, strict=True
            )
        ]

    def denoise_with_block_cache(self, run: Run, on_evaluation: Callable[[], None]) -> RunResult:
        """Denoise a run whose evaluations depend on those before them, so that it shares none with others."""
        cache, device = BlockCache(run.config), self.pipeline.compute_device
        texts = prompts_and_negatives([run.prompt], run.config)
        reset_peak_memory(device)
        began = time.perf_counter()
        (latent,) = self.pipeline.sample(
            [ClipRequest(run.prompt, run.seed, self.known)],
            run.config,
            on_evaluation,
            block_cache=cache,
            text=self.take_texts(texts),
        )
        synchronise(device)
        return RunResult(
            latent,
            text_seconds=self.text_seconds * len(texts),
            denoise_seconds=time.perf_counter() - began,
            evaluations=round(cache.num_requested),
            evaluations_reused=round(cache.num_requested - cache.num_computed),
            peak_memory_gb=peak_memory_gb(device),
        )

    def cache_answer(self, question: Question, answer: Tensor) -> None:
        """Keep a computed velocity, dropping the oldest where they take too much memory."""
        self.answers[question] = answer
        self.answer_bytes += answer.nbytes
        while self.answer_bytes > ANSWER_BYTES and len(self.answers) > 1:
            self.answer_bytes -= self.answers.popitem(last=False)[1].nbytes


class PackRun:
    """The denoiser of one pack of runs, which computes no velocity twice; a `Predict` of sampling.denoiser."""

    def __init__(
        self,
        batch: BatchedRuns,
        runs: Sequence[Run],
        noise: PackedVideo,
        condition: Condition,
        on_evaluation: Callable[[], None],
    ) -> None:
        self.batch, self.noise, self.on_evaluation = batch, noise, on_evaluation
        # The frame rate says which frames a time is known at, and the schedule of patches which tokens are known whole.
        self.known_at = [(run.config.fps, run.config.patch) if batch.known else () for run in runs]
        self.texts = [*(run.prompt for run in runs), *(run.config.negative for run in runs)]
        shared = runs[0].config  # schedule_of says what of it holds for all runs
        self.patch_at = patch_schedule(shared, batch.pipeline.transformer.patches)
        text = batch.take_texts(self.texts)
        if condition.image_rows is not None:
            text = batch.pipeline.with_images(text, condition.image_rows)
        self.denoiser = Denoiser(
            batch.pipeline.experts,
            batch.pipeline.boundary,
            pack=noise,
            text=text,
            patch_at=self.patch_at,
            condition=condition,
            tokens_per_call=batch.tokens_per_pack,
            sigmas=known_levels(shared.sampler, shared.steps, shift=shared.shift),
        )
        self.num_requested, self.num_reused, self.num_computed = [0] * len(runs), [0] * len(runs), 0

    def __call__(self, tokens: Tensor, sigma: Tensor, rows: Sequence[int]) -> list[Tensor]:
        """Look up or compute the velocity of clip i % b under text row i for every row."""
        clips, answers = tokens.split(self.noise.lengths), self.batch.answers
        questions = [self.question(clips[row % len(clips)], sigma, row) for row in rows]
        missing = dict[Question, int]()
        for row, question in zip(rows, questions, strict=True):
            is_reused = question in answers or question in missing
            self.num_requested[row % len(clips)] += 1
            self.num_reused[row % len(clips)] += is_reused
            if not is_reused:
                missing[question] = row
            self.on_evaluation()
        self.num_computed += len(missing)
        velocities = self.denoiser(tokens, sigma, list(missing.values())) if missing else []
        computed = dict(zip(missing, velocities, strict=True))
        result = [computed[question] if question in computed else answers[question] for question in questions]
        for question, answer in computed.items():
            self.batch.cache_answer(question, answer)
        return result

    def question(self, clip: Tensor, sigma: Tensor, row: int) -> Question:
        """Identify an evaluation by its tokens, its text, and its grid: a turned clip can have the same numbers."""
        number = row % len(self.noise.grids)
        grid, known_at = self.noise.grids[number], self.known_at[number]
        place = repr((grid, self.patch_at(float(sigma)), self.noise.scaling, known_at)).encode()
        digest = hashlib.blake2b(clip.contiguous().cpu().numpy().tobytes() + place, digest_size=16).digest()
        return digest, float(sigma), self.texts[row]


def reason_of(error: BaseException) -> str:
    """Put an error into one line of a table."""
    message = " ".join(str(error).split())
    is_plain = isinstance(error, ValueError | RuntimeError | ArithmeticError | OSError) and message
    return message if is_plain else f"{type(error).__name__}: {message}".rstrip(": ")
