"""Measure what share of captions a checkpoint follows, by the judge, against the floors that it is held to.

    videogen bench mini [--model FOLDER] [--clips 256] [--seeds 2] [--write]  ->  assets/bench/mini.json

The captions are those that training never shows, several clips of each, at the checkpoint's default settings and in
fewer steps: scenes of the world, combinations of attributes that are held out of it, sentences written by hand, and, at
the defaults alone, the world's own family of sentences that training never reads. The ceilings are the same scenes
rendered by the world itself and those after the VAE; the floor is the default's clips under the captions of others.
Each core makes and judges packs of its own, which is fastest for small networks. A row a clip is appended to --rows, so
that the same command resumes after an interruption. Every clip has noise of its own.
"""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing import parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from tests.bench import readme
from tests.bench.flags import ROOT, make_parser, parse_flags
from tests.bench.judged import BenchClip, clips_per_pack, judge_clips, sample_pack, write_result
from tests.bench.mini_aims import (
    AFTER_VAE,
    ALL_CAPTIONS,
    BY_HAND,
    BY_OTHERS,
    DEFAULT,
    HELD_OUT,
    NEW_COMBINATIONS,
    NEW_WORDS,
    OWN,
    SHUFFLED,
    VAE_FACTS,
    Verdicts,
    compare_with_floors,
)
from tests.bench.patches import psnr
from videogen.cli.devices import check_device
from videogen.cli.judge import JudgeArgs, count_as_json, list_cases, reconstruct, render_case
from videogen.config.parsing import to_mapping
from videogen.config.sample import MINI, SampleConfig
from videogen.data.files import save_text
from videogen.models.checkpoint_config import read_checkpoint_info
from videogen.models.hub import checkpoint_id, find_checkpoint
from videogen.sampling.pipeline import VideoPipeline
from videogen.toybox.judge import judge
from videogen.toybox.judge.scores import Case, JudgedClip, count_clauses
from videogen.toybox.judge.workers import CORES, worker_pool
from videogen.toybox.world.backgrounds import render_background
from videogen.toybox.world.render import masks
from videogen.toybox.world.scenes import Scene

PARAPHRASES, SENTENCES = (ROOT / "tests" / f"{name}.jsonl" for name in ("paraphrases", "sentences"))
FEWER_STEPS = (8, 4)
Maker = Callable[[Sequence[tuple[Case, int]]], list[tuple[BenchClip, dict[str, float]]]]
Key = tuple[str, str, int]


class Bench(NamedTuple):
    """The checkpoint to measure, the number of captions of each set, and the seeds of each caption."""

    model: Path
    clips: int
    seeds: int
    device: str = "cpu"


class Part(NamedTuple):
    """Clips of one set of captions, made in one way."""

    captions: str
    way: str
    cases: list[Case]
    num_seeds: int
    clips_per_pack: int
    make: Maker

    def case(self, number: int) -> Case:
        """Look up the case of a clip by its number: all seeds of a caption follow each other."""
        return self.cases[number // self.num_seeds]

    def other_case(self, number: int) -> Case:
        """Look up the case half a table away."""
        return self.cases[(number // self.num_seeds + len(self.cases) // 2) % len(self.cases)]


class Row(NamedTuple):
    """One judged clip."""

    captions: str
    way: str
    number: int
    prompt: str
    seed: int
    holds: dict[str, bool]
    shuffled: dict[str, bool]  # the same clip under the caption of another
    facts: dict[str, float]  # seconds, or psnr_db and foreground_iou

    @property
    def key(self) -> Key:
        return self.captions, self.way, self.number


# --- clips


def sampling_maker(pipeline: VideoPipeline, config: SampleConfig) -> Maker:
    """Make clips by the checkpoint; a clip's seconds are its share of its pack's, decoding included."""

    def run(jobs: Sequence[tuple[Case, int]]) -> list[tuple[BenchClip, dict[str, float]]]:
        began = time.perf_counter()
        clips, _ = sample_pack(pipeline, jobs, config)
        seconds = (time.perf_counter() - began) / len(jobs)
        return [(clip, {"seconds": round(seconds, 4)}) for clip in clips]

    return run


def render_world_clips(jobs: Sequence[tuple[Case, int]]) -> list[tuple[BenchClip, dict[str, float]]]:
    """Render the world's own clips."""
    return [(BenchClip(case, seed, torch.from_numpy(render_case(case))), {}) for case, seed in jobs]


def reconstructing_maker(pipeline: VideoPipeline) -> Maker:
    """Make the world's own clips after the VAE, and measure what they lost."""

    def run(jobs: Sequence[tuple[Case, int]]) -> list[tuple[BenchClip, dict[str, float]]]:
        clips: list[tuple[BenchClip, dict[str, float]]] = []
        for case, seed in jobs:
            before = render_case(case)
            after = reconstruct(before, pipeline.vae)
            assert case.scene is not None, f"{case.prompt!r} has no scene"
            decibels = psnr(torch.from_numpy(after), torch.from_numpy(before))
            facts = {"psnr_db": decibels, "foreground_iou": foreground_iou(after, before, case.scene)}
            clips.append((BenchClip(case, seed, torch.from_numpy(after)), facts))
        return clips

    return run


def foreground_iou(after: np.ndarray, before: np.ndarray, scene: Scene) -> float:
    """Compute the intersection over union of a clip's foreground before and after the VAE, over all pixels.

    A pixel is foreground if its colour is farther from the rendered background there (Euclidean, RGB) than half the
    contrast of the clip: the median, over what things cover by more than half, of that distance before the VAE. Clips
    are (t, h, w, 3) uint8.
    """
    background = render_background(scene)
    distances = [np.linalg.norm(clip - background, axis=-1) for clip in (before, after)]
    covered = masks(scene).max(axis=1) > 0.5
    is_before, is_after = (distance > np.median(distances[0][covered]) / 2 for distance in distances)
    return float((is_before & is_after).sum() / max(1, (is_before | is_after).sum()))


def list_parts(pipeline: VideoPipeline, *, num_clips: int, num_seeds: int) -> list[Part]:
    """List all that is measured."""
    defaults, num_per_pack = pipeline.defaults, clips_per_pack(pipeline, pipeline.defaults)
    cases = {
        HELD_OUT: list_cases(JudgeArgs(clips=num_clips, sample=defaults), None),
        NEW_COMBINATIONS: list_cases(JudgeArgs(clips=num_clips, sample=defaults, held_out=True), None),
        BY_HAND: list_cases(JudgeArgs(clips=num_clips, captions=PARAPHRASES), None),
        BY_OTHERS: list_cases(JudgeArgs(clips=num_clips, captions=SENTENCES), None),
        NEW_WORDS: list_cases(JudgeArgs(clips=num_clips, sample=defaults, new_words=True), None),
    }
    fewer = {f"{steps} steps": replace(defaults, steps=steps) for steps in FEWER_STEPS if steps < defaults.steps}
    ways = {way: sampling_maker(pipeline, config) for way, config in {DEFAULT: defaults, **fewer}.items()}
    selections = [(name, DEFAULT, num_seeds) for name in cases]
    selections += [(name, way, 1) for way in fewer for name in (HELD_OUT, NEW_COMBINATIONS, BY_HAND)]
    ceilings = [
        Part(HELD_OUT, AFTER_VAE, cases[HELD_OUT], 1, num_per_pack, reconstructing_maker(pipeline)),
        Part(HELD_OUT, OWN, cases[HELD_OUT], 1, num_per_pack, render_world_clips),
    ]
    parts = [Part(name, way, cases[name], seeds, num_per_pack, ways[way]) for name, way, seeds in selections]
    return [*parts, *ceilings]


# --- rows


def read_rows(path: Path, about: Mapping[str, object]) -> dict[Key, Row]:
    """Read the rows of an interrupted run of the same measurement; start a new file where there is none."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    head, *lines = text[: text.rfind("\n") + 1].splitlines() or [json.dumps(about)]
    if json.loads(head) != about:
        raise ValueError(f"{path} has rows of another checkpoint, --clips, --seeds or --device; name another --rows")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_text(path, "\n".join([head, *lines, ""]))  # without the incomplete line that a kill can leave
    rows = [Row(**json.loads(line)) for line in lines]
    return {row.key: row for row in rows}


@functools.lru_cache(maxsize=1)
def load_parts(bench: Bench) -> list[Part]:
    """Load a checkpoint, once in each process, and list what is measured; a worker process computes in one thread."""
    if parent_process() is not None:
        torch.set_num_threads(1)
    pipeline = VideoPipeline.load(bench.model).to(bench.device)
    pipeline.set_progress_bar_config(disable=True)
    return list_parts(pipeline, num_clips=bench.clips, num_seeds=bench.seeds)


def make_rows(bench: Bench, part_index: int, numbers: Sequence[int]) -> list[Row]:
    """Make and judge one pack of a part's clips."""
    part = load_parts(bench)[part_index]
    clips = part.make([(part.case(number), number) for number in numbers])  # the number is the seed as well
    verdicts = judge_clips([clip for clip, _ in clips])
    rows = zip(numbers, verdicts, clips, strict=True)
    return [make_row(part, number, verdict, facts) for number, verdict, (_, facts) in rows]


def add_rows(bench: Bench, path: Path, rows: dict[Key, Row]) -> None:
    """Make and judge the clips that have no row yet; the rows of a pack are written together."""
    parts = load_parts(bench)
    check_prompts(parts, rows, path)
    todo: list[tuple[int, list[int]]] = []
    for part_index, part in enumerate(parts):
        numbers = range(len(part.cases) * part.num_seeds)
        missing = [number for number in numbers if (part.captions, part.way, number) not in rows]
        size = part.clips_per_pack
        todo += [(part_index, missing[i : i + size]) for i in range(0, len(missing), size)]
    num_clips = sum(len(numbers) for _, numbers in todo)
    with (
        path.open("a", encoding="utf-8") as file,
        Progress(console=Console(stderr=True)) as bar,
        worker_pool(num_clips) as pool,
    ):
        task = bar.add_task("clips", total=num_clips)
        part_indices, packs = ([pack[i] for pack in todo] for i in range(2))
        for new_rows in pool.map(make_rows, itertools.repeat(bench), part_indices, packs):
            for row in new_rows:
                rows[row.key] = row
                file.write(json.dumps(row._asdict()) + "\n")
            file.flush()
            bar.advance(task, len(new_rows))


def check_prompts(parts: Sequence[Part], rows: Mapping[Key, Row], path: Path) -> None:
    """Refuse rows whose captions have changed since: they would be counted under other clauses."""
    for part in parts:
        for number in range(len(part.cases) * part.num_seeds):
            row = rows.get((part.captions, part.way, number))
            if row is not None and row.prompt != part.case(number).prompt:
                raise ValueError(f"{path} has rows of other captions, such as {row.prompt!r}; name another --rows")


def make_row(part: Part, number: int, verdict: JudgedClip, facts: dict[str, float]) -> Row:
    """Make the row of a judged clip."""
    shuffled = judge(verdict.found, part.other_case(number).clauses)
    return Row(part.captions, part.way, number, verdict.case.prompt, verdict.seed, verdict.holds, shuffled, facts)


# --- results


def collect_verdicts(parts: Sequence[Part], rows: Mapping[Key, Row]) -> Verdicts:
    """Collect the clauses that hold in the clips of each part, and in the default's under the captions of others."""
    verdicts: Verdicts = {name: {} for name in ALL_CAPTIONS}
    for part in parts:
        part_rows = [rows[part.captions, part.way, number] for number in range(len(part.cases) * part.num_seeds)]
        verdicts[part.captions][part.way] = [(part.case(row.number), row.holds) for row in part_rows]
        if part.way == DEFAULT:
            verdicts[part.captions][SHUFFLED] = [(part.other_case(row.number), row.shuffled) for row in part_rows]
    order = [*sampled_ways(verdicts), AFTER_VAE, OWN, SHUFFLED]
    return {name: {way: ways[way] for way in order if way in ways} for name, ways in verdicts.items()}


def sampled_ways(verdicts: Verdicts) -> list[str]:
    """List the ways in which the checkpoint made clips, the default first."""
    return [way for way in verdicts[HELD_OUT] if way not in (AFTER_VAE, OWN, SHUFFLED)]


def collect_facts(rows: Mapping[Key, Row], way: str, name: str) -> list[float]:
    """Collect a fact of all clips that were made in one way."""
    return [row.facts[name] for row in rows.values() if row.way == way]


def summarise_rows(parts: Sequence[Part], rows: Mapping[Key, Row]) -> dict[str, object]:
    """Summarise all rows: means of the VAE's measures, medians of the seconds a clip."""
    verdicts = collect_verdicts(parts, rows)
    vae = {fact: round(statistics.fmean(collect_facts(rows, AFTER_VAE, fact)), 3) for _, fact in VAE_FACTS}
    seconds = {way: round(statistics.median(collect_facts(rows, way, "seconds")), 3) for way in sampled_ways(verdicts)}
    return {
        "vae": {**vae, "clips": len(collect_facts(rows, AFTER_VAE, "psnr_db"))},
        "seconds_a_clip": seconds,
        "floors": compare_with_floors(verdicts, vae),
        "scores": {
            name: {
                way: {clause: count_as_json(number) for clause, number in count_clauses(ways[way]).items()}
                for way in ways
            }
            for name, ways in verdicts.items()
        },
    }


def measure(model: Path, path: Path, *, num_clips: int, num_seeds: int, device: str = "cpu") -> dict[str, object]:
    """Measure a checkpoint; rows go to a file, and those that are already in it are not made again."""
    if num_clips < 2 or num_seeds < 1:
        raise ValueError(f"--clips must be at least 2 and --seeds at least 1, got {num_clips} and {num_seeds}")
    if device != "cpu":
        check_device(device)
    about = {"checkpoint": checkpoint_id(model), "clips": num_clips, "seeds": num_seeds, "device": device}
    rows = read_rows(path, about)
    bench = Bench(model, num_clips, num_seeds, device)
    add_rows(bench, path, rows)
    settings = to_mapping(read_checkpoint_info(model).defaults)
    return {**about, "settings": settings, "cores": CORES, **summarise_rows(load_parts(bench), rows)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure everything, write assets/bench/mini.json and print the tables."""
    parser = make_parser("mini", __doc__)
    parser.add_argument("--model", type=Path, default=MINI, help="checkpoint folder")
    parser.add_argument("--clips", type=int, default=256, help="captions of each set; of those by hand there are 100")
    parser.add_argument("--seeds", type=int, default=2, help="clips a caption at the default settings; else one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where clips are made")
    parser.add_argument("--rows", type=Path, default=ROOT / "out" / "bench" / "mini.jsonl", help="a row a clip")
    parser.add_argument("--write", action="store_true", help="put the tables into README and model card, too")
    args = parse_flags(parser, argv, {"clips": 2, "seeds": 1, "rows": None})
    model = find_checkpoint(args.model)
    with tempfile.TemporaryDirectory() as own:
        rows = args.rows or Path(own) / "mini.jsonl"
        result = measure(model, rows, num_clips=args.clips, num_seeds=args.seeds, device=args.device)
        result = write_result(args.out, result)
        rows.replace(rows.with_suffix(".done.jsonl"))  # so that the next run measures anew, with its own judge
    tables = {"mini": readme.mini_table(result), "clauses": readme.clauses_table(result)}
    print("\n\n".join(tables.values()))
    if args.write:
        for page in readme.PAGES:
            readme.write_tables(page, tables)


if __name__ == "__main__":
    main()
