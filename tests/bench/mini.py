"""What a checkpoint gets right, by the judge, against the floors that it is held to.

    videogen bench mini [--model FOLDER] [--clips 256] [--seeds 2] [--write]  ->  assets/bench/mini.json

Captions that training never shows, several clips of each, at the checkpoint's default settings and in fewer steps:
scenes of the world, combinations of attributes that are held out of it, sentences written by hand, and, at the default
alone, the world's own family of sentences that training never reads. Beside them stand the ceilings, the same scenes
drawn by the world itself and those after the VAE, and the floor, the default's clips under the captions of others. Each
core makes and judges packs of its own, as small networks like best. A row a clip is appended to --rows: the same
command goes on after an interruption. Every clip has noise of its own.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
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
from tests.bench.judged import BENCH, ROOT, Made, judge_clips, make, pack_size, write_result
from tests.bench.patches import psnr
from videogen.cli.judge import JudgeArgs, count_as_json, list_cases, reconstruct, render_case
from videogen.config.parsing import to_mapping
from videogen.config.sample import MINI, SampleConfig
from videogen.data.files import save_text
from videogen.models.checkpoint_config import read_checkpoint_info
from videogen.models.hub import checkpoint_id, find_checkpoint
from videogen.sampling.low_memory import check_device
from videogen.sampling.pipeline import VideoPipeline
from videogen.toybox.judge import Clauses, judge
from videogen.toybox.judge.scores import Case, Count, Judged, count, count_clips
from videogen.toybox.judge.workers import CORES, crew
from videogen.toybox.world.backgrounds import paint
from videogen.toybox.world.render import masks
from videogen.toybox.world.scenes import Scene
from videogen.toybox.world.things import SHAPES

SENTENCES = ROOT / "tests" / "paraphrases.jsonl"
HELD_OUT, NEW, BY_HAND = "held-out captions", "new combinations", "paraphrases"
NEW_WORDS = "new sentences"
DEFAULT, OWN, AFTER_VAE, SHUFFLED = "default", "the world's own", "after the VAE", "shuffled captions"
FEWER_STEPS = (8, 4)
VAE_AIMS = (
    ("VAE: PSNR on held-out clips, dB", "psnr_db", 32.0),
    ("VAE: foreground IoU on held-out clips", "foreground_iou", 0.92),
)

Verdict = tuple[Case, dict[str, bool]]
Verdicts = dict[str, dict[str, list[Verdict]]]  # by captions, then by the way that clips were made
Maker = Callable[[Sequence[tuple[Case, int]]], list[tuple[Made, dict[str, float]]]]
Key = tuple[str, str, int]


class Bench(NamedTuple):
    """What is measured: so many captions of each set, each with so many seeds."""

    model: Path
    clips: int
    seeds: int
    device: str = "cpu"


class Part(NamedTuple):
    """Clips of some captions, made in one way."""

    captions: str
    way: str
    cases: list[Case]
    num_seeds: int
    at_once: int
    make: Maker

    def case(self, number: int) -> Case:
        """The case of the clip of a number: all seeds of a caption follow each other."""
        return self.cases[number // self.num_seeds]

    def other_case(self, number: int) -> Case:
        """That of a caption half a table away."""
        return self.cases[(number // self.num_seeds + len(self.cases) // 2) % len(self.cases)]


class Row(NamedTuple):
    """One clip, judged."""

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


class Aim(NamedTuple):
    """A clause, of which captions it is asked, and the least share of clips that it should hold in."""

    name: str
    least: float
    clause: str
    asked: Callable[[Clauses], bool] = lambda clauses: True
    captions: str = HELD_OUT


def of_shapes(clauses: Clauses) -> bool:
    """Whether all colours that are said are those of shapes."""
    coloured = [thing.kind for thing in clauses.things if thing.colour]
    return bool(coloured) and set(coloured) <= set(SHAPES)


def one(clauses: Clauses) -> bool:
    """Whether one thing is named."""
    return len(clauses.things) == 1


def two(clauses: Clauses) -> bool:
    """Whether two things are named."""
    return len(clauses.things) == 2


AIMS = (
    Aim("background", 0.97, "background"),
    Aim("colour of shapes", 0.95, "colour", of_shapes),
    Aim("class (shape, digit, sprite)", 0.88, "class"),
    Aim("count (1-2)", 0.92, "count", lambda clauses: one(clauses) or two(clauses)),
    Aim("direction / motion kind", 0.88, "motion"),
    Aim("camera", 0.85, "camera"),
    Aim("all clauses, one object", 0.70, "all", one),
    Aim("all clauses, two objects", 0.45, "all", two),
    Aim("held-out combinations: all clauses, one object", 0.60, "all", one, NEW),
    Aim("paraphrases outside the grammar: all clauses, one object", 0.55, "all", one, BY_HAND),
)


# --- clips


def sampled(pipeline: VideoPipeline, config: SampleConfig) -> Maker:
    """Clips of the checkpoint, and a clip's share of the seconds of its pack, decoding included."""

    def run(jobs: Sequence[tuple[Case, int]]) -> list[tuple[Made, dict[str, float]]]:
        began = time.perf_counter()
        made, _ = make(pipeline, jobs, config)
        seconds = (time.perf_counter() - began) / len(jobs)
        return [(clip, {"seconds": round(seconds, 4)}) for clip in made]

    return run


def drawn(jobs: Sequence[tuple[Case, int]]) -> list[tuple[Made, dict[str, float]]]:
    """The world's own clips."""
    return [(Made(case, seed, torch.from_numpy(render_case(case))), {}) for case, seed in jobs]


def rebuilt(pipeline: VideoPipeline) -> Maker:
    """The world's own clips after the VAE, and what that cost them."""

    def run(jobs: Sequence[tuple[Case, int]]) -> list[tuple[Made, dict[str, float]]]:
        found: list[tuple[Made, dict[str, float]]] = []
        for case, seed in jobs:
            before = render_case(case)
            after = reconstruct(before, pipeline.vae)
            assert case.scene is not None, f"{case.prompt!r} has no scene"
            decibels = psnr(torch.from_numpy(after), torch.from_numpy(before))
            facts = {"psnr_db": decibels, "foreground_iou": foreground_iou(after, before, case.scene)}
            found.append((Made(case, seed, torch.from_numpy(after)), facts))
        return found

    return run


def foreground_iou(after: np.ndarray, before: np.ndarray, scene: Scene) -> float:
    """Intersection over union of a clip's foreground before and after the VAE, over the pixels of all its frames.

    A pixel is foreground if its colour is farther from the painted background there (Euclidean, RGB) than half the
    contrast of the clip: the median, over what things cover by more than half, of that distance before the VAE. Clips
    are (t, h, w, 3) uint8.
    """
    behind = paint(scene)
    far = [np.linalg.norm(clip - behind, axis=-1) for clip in (before, after)]
    covered = masks(scene).max(axis=1) > 0.5
    was, is_now = (distance > np.median(far[0][covered]) / 2 for distance in far)
    return float((was & is_now).sum() / max(1, (was | is_now).sum()))


def parts_of(pipeline: VideoPipeline, *, num_clips: int, num_seeds: int) -> list[Part]:
    """All that is measured."""
    defaults, at_once = pipeline.defaults, pack_size(pipeline, pipeline.defaults)
    cases = {
        HELD_OUT: list_cases(JudgeArgs(clips=num_clips, sample=defaults)),
        NEW: list_cases(JudgeArgs(clips=num_clips, sample=defaults, held_out=True)),
        BY_HAND: list_cases(JudgeArgs(clips=num_clips, captions=SENTENCES)),
        NEW_WORDS: list_cases(JudgeArgs(clips=num_clips, sample=defaults, new_words=True)),
    }
    fewer = {f"{steps} steps": replace(defaults, steps=steps) for steps in FEWER_STEPS if steps < defaults.steps}
    ways = {way: sampled(pipeline, config) for way, config in {DEFAULT: defaults, **fewer}.items()}
    asked = [(name, DEFAULT, num_seeds) for name in cases]
    asked += [(name, way, 1) for way in fewer for name in (HELD_OUT, NEW, BY_HAND)]
    ceilings = [
        Part(HELD_OUT, AFTER_VAE, cases[HELD_OUT], 1, at_once, rebuilt(pipeline)),
        Part(HELD_OUT, OWN, cases[HELD_OUT], 1, at_once, drawn),
    ]
    return [*(Part(name, way, cases[name], seeds, at_once, ways[way]) for name, way, seeds in asked), *ceilings]


# --- rows


def read_rows(path: Path, about: Mapping[str, object]) -> dict[Key, Row]:
    """The rows of an interrupted run of the same measurement; a new file where there is none."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    head, *lines = text[: text.rfind("\n") + 1].splitlines() or [json.dumps(about)]
    if json.loads(head) != about:
        raise ValueError(f"{path} has rows of another checkpoint, --clips, --seeds or --device; name another --rows")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_text(path, "\n".join([head, *lines, ""]))  # without the half line that a kill can leave
    rows = [Row(**json.loads(line)) for line in lines]
    return {row.key: row for row in rows}


@functools.lru_cache(maxsize=1)
def parts_here(bench: Bench) -> list[Part]:
    """All that is measured of a checkpoint, in this process; one that was started for it keeps to a core."""
    if parent_process() is not None:
        torch.set_num_threads(1)
    pipeline = VideoPipeline.load(bench.model).to(bench.device)
    pipeline.set_progress_bar_config(disable=True)
    return parts_of(pipeline, num_clips=bench.clips, num_seeds=bench.seeds)


def rows_of(bench: Bench, which: int, numbers: Sequence[int]) -> list[Row]:
    """Make and judge some clips of a part, one pack."""
    part = parts_here(bench)[which]
    made = part.make([(part.case(number), number) for number in numbers])  # noise of its own: a seed gives the same
    judged = judge_clips([clip for clip, _ in made])
    return [row_of(part, number, seen, facts) for number, seen, (_, facts) in zip(numbers, judged, made, strict=True)]


def add_rows(bench: Bench, path: Path, rows: dict[Key, Row]) -> None:
    """Make and judge the clips that have no row yet; the rows of a pack are written at once."""
    parts = parts_here(bench)
    check_prompts(parts, rows, path)
    todo: list[tuple[int, list[int]]] = []
    for which, part in enumerate(parts):
        numbers = range(len(part.cases) * part.num_seeds)
        left = [number for number in numbers if (part.captions, part.way, number) not in rows]
        todo += [(which, left[i : i + part.at_once]) for i in range(0, len(left), part.at_once)]
    num = sum(len(numbers) for _, numbers in todo)
    with path.open("a", encoding="utf-8") as file, Progress(console=Console(stderr=True)) as bar, crew(num) as pool:
        told = bar.add_task("clips", total=num)
        for made in pool.map(rows_of, itertools.repeat(bench), *([one[i] for one in todo] for i in range(2))):
            for row in made:
                rows[row.key] = row
                file.write(json.dumps(row._asdict()) + "\n")
            file.flush()
            bar.advance(told, len(made))


def check_prompts(parts: Sequence[Part], rows: Mapping[Key, Row], path: Path) -> None:
    """Refuse rows of captions that have changed since: they would be counted under what others say."""
    for part in parts:
        for number in range(len(part.cases) * part.num_seeds):
            row = rows.get((part.captions, part.way, number))
            if row is not None and row.prompt != part.case(number).prompt:
                raise ValueError(f"{path} has rows of other captions, such as {row.prompt!r}; name another --rows")


def row_of(part: Part, number: int, seen: Judged, facts: dict[str, float]) -> Row:
    """What the judge says of a clip."""
    shuffled = judge(seen.found, part.other_case(number).clauses)
    return Row(part.captions, part.way, number, seen.case.prompt, seen.seed, seen.holds, shuffled, facts)


# --- results


def verdicts_of(parts: Sequence[Part], rows: Mapping[Key, Row]) -> Verdicts:
    """Which clauses hold in the clips of each part, and in the default's under the captions of others."""
    found: Verdicts = {name: {} for name in (HELD_OUT, NEW, BY_HAND, NEW_WORDS)}
    for part in parts:
        own = [rows[part.captions, part.way, number] for number in range(len(part.cases) * part.num_seeds)]
        found[part.captions][part.way] = [(part.case(row.number), row.holds) for row in own]
        if part.way == DEFAULT:
            found[part.captions][SHUFFLED] = [(part.other_case(row.number), row.shuffled) for row in own]
    order = [*made_ways(found), AFTER_VAE, OWN, SHUFFLED]
    return {name: {way: ways[way] for way in order if way in ways} for name, ways in found.items()}


def made_ways(verdicts: Verdicts) -> list[str]:
    """The ways in which the checkpoint made clips, the default first."""
    return [way for way in verdicts[HELD_OUT] if way not in (AFTER_VAE, OWN, SHUFFLED)]


def count_aim(aim: Aim, verdicts: Sequence[Verdict]) -> Count:
    """The clips in which the clause of an aim holds, of those that it is asked of."""
    asked = [(case, held) for case, held in verdicts if aim.clause in held and aim.asked(case.clauses)]
    return count_clips([(case.prompt, held[aim.clause]) for case, held in asked])


def floors_of(verdicts: Verdicts, vae: Mapping[str, float]) -> list[dict[str, object]]:
    """The table of aims: what was wanted, what is, and whether that is enough; None where no clip was asked."""
    found: list[dict[str, object]] = [
        {"name": name, "least": least, "value": vae[fact], "met": vae[fact] >= least} for name, fact, least in VAE_AIMS
    ]
    for aim in AIMS:
        counts = {way: count_aim(aim, of_way) for way, of_way in verdicts[aim.captions].items()}
        share = counts[DEFAULT].share if counts[DEFAULT].num else None
        measured = {way: count_as_json(number) for way, number in counts.items()}
        met = None if share is None else share >= aim.least
        found.append({"name": aim.name, "least": aim.least, "value": share, "met": met, "measured": measured})
    return found


def facts_of(rows: Mapping[Key, Row], way: str, name: str) -> list[float]:
    """A fact of all clips that were made in a way."""
    return [row.facts[name] for row in rows.values() if row.way == way]


def result_of(parts: Sequence[Part], rows: Mapping[Key, Row]) -> dict[str, object]:
    """All numbers; of the VAE the means, of seconds the medians over clips."""
    verdicts = verdicts_of(parts, rows)
    vae = {fact: round(statistics.fmean(facts_of(rows, AFTER_VAE, fact)), 3) for _, fact, _ in VAE_AIMS}
    seconds = {way: round(statistics.median(facts_of(rows, way, "seconds")), 3) for way in made_ways(verdicts)}
    return {
        "vae": {**vae, "clips": len(facts_of(rows, AFTER_VAE, "psnr_db"))},
        "seconds_a_clip": seconds,
        "floors": floors_of(verdicts, vae),
        "scores": {
            name: {way: {clause: count_as_json(number) for clause, number in count(ways[way]).items()} for way in ways}
            for name, ways in verdicts.items()
        },
    }


def measure(model: Path, path: Path, *, num_clips: int, num_seeds: int, device: str = "cpu") -> dict[str, object]:
    """Everything about a checkpoint; rows go to a file, those that are there already are taken from it."""
    if num_clips < 2 or num_seeds < 1:
        raise ValueError(f"--clips must be at least 2 and --seeds at least 1, got {num_clips} and {num_seeds}")
    if device != "cpu":
        check_device(device)
    about = {"checkpoint": checkpoint_id(model), "clips": num_clips, "seeds": num_seeds, "device": device}
    rows = read_rows(path, about)
    bench = Bench(model, num_clips, num_seeds, device)
    add_rows(bench, path, rows)
    settings = to_mapping(read_checkpoint_info(model).defaults)
    return {**about, "settings": settings, "cores": CORES, **result_of(parts_here(bench), rows)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure everything, write assets/bench/mini.json and print the tables."""
    parser = argparse.ArgumentParser(prog="videogen bench mini", description=str(__doc__).split("\n")[0])
    parser.add_argument("--model", type=Path, default=MINI, help="checkpoint folder")
    parser.add_argument("--clips", type=int, default=256, help="captions of each set; of those by hand there are 100")
    parser.add_argument("--seeds", type=int, default=2, help="clips a caption at the default settings; else one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where clips are made")
    parser.add_argument("--rows", type=Path, default=ROOT / "out" / "bench" / "mini.jsonl", help="a row a clip")
    parser.add_argument("--out", type=Path, default=BENCH / "mini.json")
    parser.add_argument("--write", action="store_true", help="put the tables into README and model card, too")
    args = parser.parse_args(argv)
    model = find_checkpoint(args.model)
    write_result(args.out, measure(model, args.rows, num_clips=args.clips, num_seeds=args.seeds, device=args.device))
    args.rows.replace(args.rows.with_suffix(".done.jsonl"))  # the next run measures anew, by the judge of its day
    result = json.loads(args.out.read_text(encoding="utf-8"))
    tables = {"mini": readme.mini(result), "clauses": readme.clauses(result)}
    print("\n\n".join(tables.values()))
    if args.write:
        for page in readme.PAGES:
            readme.write(page, tables)


if __name__ == "__main__":
    main()
