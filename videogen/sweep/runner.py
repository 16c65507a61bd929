"""Carry out a sweep: references, packs of runs, clips, measures, rows.

    pipeline, Plan, folder  ->  clips/<key>.mp4, references/<key>.mp4 and .safetensors, results.jsonl, results.csv

A row is on disk as soon as its clip is. The same call continues where it stopped; runs that failed are tried again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from videogen.config.parsing import from_mapping, to_mapping
from videogen.config.sample import SampleConfig
from videogen.data.files import save_tensors
from videogen.data.manifest import load_hashed_tensors
from videogen.data.saved_latents import save_latent
from videogen.data.video_io import write_video
from videogen.interruption import StopRequest
from videogen.models.hub import checkpoint_id
from videogen.sampling.clip_sampler import ClipSampler
from videogen.sampling.known import Known
from videogen.sweep.measures import Score, apply_score, compare_to_reference, measure_clip, score_id
from videogen.sweep.plan import Plan, Run, facts_of, lock_folder
from videogen.sweep.resource_usage import synchronise
from videogen.sweep.results import Row, add_row, gather_rows, settings_row, unfinished_runs
from videogen.sweep.shared_calls import BatchedRuns, RunResult, reason_of

if TYPE_CHECKING:
    from videogen.sampling.pipeline import VideoPipeline

logger = logging.getLogger(__name__)


class Team(NamedTuple):
    """The processes that share a sweep, and which of them this is."""

    rank: int = 0
    num: int = 1
    wait: Callable[[], object] = lambda: None

    def share(self, packs: Sequence[list[Run]]) -> Sequence[list[Run]]:
        """Take this process's part of the packs: every num-th."""
        return packs[self.rank :: self.num]


def sweep(
    pipeline: VideoPipeline,
    plan: Plan,
    folder: Path,
    *,
    score: Score | None = None,
    overwrite: bool = False,
    on_row: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Make every run of a plan a clip and a row; rows of earlier calls, by the same checkpoint and score, are kept."""
    about = checkpoint_of(pipeline) | dict(plan.about)
    plan = replace(plan, about=tuple((about | score_id(score)).items()))
    with lock_folder(folder, plan, overwrite=overwrite):
        try:
            Worker(pipeline, plan, folder, score=score, about=about, on_row=on_row).run(plan.runs())
        finally:
            rows = gather_rows(folder, [run.key for run in plan.runs()])
    return rows


def checkpoint_of(pipeline: VideoPipeline) -> dict[str, object]:
    """Identify what the pipeline was loaded from, for clips and manifest; empty where it was put together by hand."""
    folder = Path(str(pipeline.config.get("_name_or_path") or ""))
    return {"checkpoint": checkpoint_id(folder)} if (folder / "model_index.json").is_file() else {}


class Worker:
    """Makes clips and rows of runs in a sweep's folder."""

    def __init__(
        self,
        pipeline: ClipSampler,
        plan: Plan,
        folder: Path,
        *,
        score: Score | None = None,
        team: Team = Team(),  # noqa: B008  # immutable
        about: Mapping[str, object] | None = None,
        save_latents: bool = False,
        known: Sequence[Known] = (),
        on_row: Callable[[Row], None] = lambda row: None,
        on_evaluation: Callable[[], None] = lambda: None,
    ) -> None:
        self.pipeline, self.plan, self.folder, self.score, self.team = pipeline, plan, folder, score, team
        self.known = known
        self.about, self.save_latents = dict(about or {}), save_latents
        self.on_row, self.on_evaluation = on_row, on_evaluation
        # A clip alone takes longer than one in a pack: where some must be alone, all are, so that seconds compare.
        alone = any(run.config.reuses_blocks for run in plan.runs())
        self.batch = BatchedRuns(pipeline, alone=alone, known=known)
        self.reference_frames = lru_cache(maxsize=16)(self.decode_reference)
        for name in ("clips", "references"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def run(self, runs: Sequence[Run]) -> None:
        """Make the runs that have no row yet, and the references that they are measured against.

        Ctrl-C waits until the rows of the pack in work are written; a second one stops at once.
        """
        left = unfinished_runs(self.folder, self.plan, runs)
        self.team.wait()  # until all have seen the same rows
        missing = [ref for ref in self.plan.references(left) if not self.has_reference(ref.key)]
        with StopRequest("finishing the rows that are being made; Ctrl-C again stops at once") as stop:
            self.batch.encode_texts([*left, *missing])
            for pack in self.team.share(self.batch.packs(missing)):
                self.save_references(pack)
                stop.check()
            self.team.wait()
            for pack in self.team.share(self.batch.packs(left)):
                for row in self.finish(pack, self.batch.denoise(pack, self.on_evaluation)):
                    add_row(self.folder, row)
                    self.on_row(row)
                stop.check()
        self.team.wait()

    def save_references(self, pack: list[Run]) -> None:
        """Make the references of a pack: latents to measure by, and clips to look at."""
        for run, result in zip(pack, self.batch.denoise(pack), strict=True):
            if result.latent is None:
                logger.warning("no reference for %s: %s", self.plan.command(run), result.error)
                continue
            settings = self.settings(run)
            path = self.reference_path(run.key)
            frames = self.decode(result.latent, run)
            write_video(path.with_suffix(".mp4"), frames, fps=run.config.fps, settings=settings, overwrite=True)
            save_tensors({"latent": result.latent}, path, {"settings": json.dumps(settings)})

    def reference_path(self, key: str) -> Path:
        """Name the file of a reference's latent."""
        return self.folder / "references" / f"{key}.safetensors"

    def has_reference(self, key: str) -> bool:
        """True if a reference's latent is whole and its clip is there."""
        path = self.reference_path(key)
        try:
            load_hashed_tensors(path)
        except (ValueError, OSError):
            return False
        return path.with_suffix(".mp4").is_file()

    def decode_reference(self, reference: Run) -> Tensor | None:
        """Decode a reference into frames; None where it could not be made."""
        path = self.reference_path(reference.key)
        return self.decode(load_file(path)["latent"], reference) if path.is_file() else None

    def decode(self, latent: Tensor, run: Run) -> Tensor:
        """Decode the latent of a run into frames (t, h, w, 3) uint8; given clips keep their pixels."""
        return torch.cat(list(self.pipeline.frames(latent, self.known, run.config)))

    def settings(self, run: Run) -> dict[str, object]:
        """Collect everything that decides a clip, for its metadata."""
        return {"prompt": run.prompt, "seed": run.seed, **to_mapping(run.config), **facts_of(run, self.about)}

    def finish(self, runs: Sequence[Run], results: Sequence[RunResult]) -> Iterator[Row]:
        """Turn latents into clips and rows; a clip is written while the next is decoded and measured."""
        waiting: tuple[Row, Future[str] | None] | None = None
        with ThreadPoolExecutor(1) as writer:
            for run, result in zip(runs, results, strict=True):
                measured = self.decode_and_measure(run, result, writer)
                if waiting:
                    yield complete(*waiting)
                waiting = measured
            if waiting:
                yield complete(*waiting)

    def decode_and_measure(
        self, run: Run, result: RunResult, writer: ThreadPoolExecutor
    ) -> tuple[Row, Future[str] | None]:
        """Decode a clip, hand it to the writer, and measure it meanwhile."""
        row, written = self.new_row(run, result), None
        try:
            if result.latent is None:
                raise FloatingPointError(result.error)
            if self.save_latents:
                save_latent(self.clip_path(run).with_suffix(".safetensors"), result.latent, self.settings(run))
            began = time.perf_counter()
            frames = self.decode(result.latent, run)
            synchronise(self.pipeline.compute_device)
            row["decode_seconds"] = seconds = time.perf_counter() - began
            row["total_seconds"] = result.text_seconds + result.denoise_seconds + seconds
            written = writer.submit(self.write, run, frames)
            row |= measure_clip(frames)
            reference = self.plan.reference(run)
            reference_frames = self.reference_frames(reference) if reference is not None else None
            if reference is not None and reference_frames is not None:
                row |= compare_to_reference(frames, reference_frames) | {"reference": f"references/{reference.key}.mp4"}
            row |= apply_score(self.score, frames, run.prompt, reference_frames)
        except Exception as error:  # a user's score may raise anything, and the other runs go on
            row["error"] = reason_of(error)
        return row, written

    def clip_path(self, run: Run) -> Path:
        """Name the file of a run's clip after what it differs in from others."""
        return self.folder / "clips" / f"{self.plan.name_run(run)}.mp4"

    def write(self, run: Run, frames: Tensor) -> str:
        """Write a clip and return its path within the folder."""
        path = self.clip_path(run)
        write_video(path, frames, fps=run.config.fps, settings=self.settings(run), overwrite=True)
        return f"clips/{path.name}"

    def new_row(self, run: Run, result: RunResult) -> Row:
        """Fill a row with what is known before decoding."""
        cost = {k: v for k, v in result._asdict().items() if k not in ("latent", "error")}
        empty = dict.fromkeys(("clip", "reference"))
        return {
            **settings_row(run), **empty, "total_seconds": None, **cost, "decode_seconds": None,
            "command": self.plan.command(run), "error": None,
        }  # fmt: skip


def complete(row: Row, written: Future[str] | None) -> Row:
    """Wait for the clip of a row, and add its path or the error."""
    if written is None:
        return row
    if (error := written.exception()) is not None:
        return row | {"error": reason_of(error)}
    return row | {"clip": written.result()}


def config_of(row: Row) -> SampleConfig:
    """Read the settings of a row."""
    plain = {name: row[name] for name in to_mapping(SampleConfig())}
    return from_mapping(SampleConfig, plain | {"guidance_interval": json.loads(str(row["guidance_interval"]))})
