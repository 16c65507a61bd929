"""Measure what a checkpoint makes of what it is given: pictures, clips to go on from, masks, and clips to vary.

    videogen bench known [--model FOLDER] [--clips 16] [--tasks minute ...]  ->  assets/bench/known.json

Everything that is given is rendered by the world, of scenes that training never shows: one thing before a still camera.
What is wanted of each task stands beside its number. A step between two frames is their mean absolute difference; at a
seam it is compared with those of the given clip, and so are the steps of clips that need no seam: those of the world
behind the VAE, and those of text alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.bench.flags import make_parser, parse_flags
from tests.bench.judged import FIRST_TRIAL, BenchClip, judge_clips, tally_scores, write_result
from tests.bench.patches import psnr
from videogen.cli.judge import case_of, render_case
from videogen.config.parsing import to_mapping
from videogen.config.sample import MINI, SampleConfig
from videogen.models.hub import checkpoint_id, find_checkpoint
from videogen.sampling.known import Known, to_pixels
from videogen.sampling.long_clips import LongClip
from videogen.sampling.pipeline import VideoPipeline
from videogen.toybox import draw_scene
from videogen.toybox.judge.scores import Case, JudgedClip
from videogen.toybox.world.motions import MOTIONS
from videogen.toybox.world.render import masks

FROZEN = 0.1  # of the world's own motion: below, a clip stands still
STRENGTHS = (0.4, 0.6, 0.8, 1.0)
EXTENSIONS = (1, 5, 10)
STILL = frozenset({"still"})
MOVING = frozenset(MOTIONS) - STILL
LASTING = frozenset({"still", "spin", "jump", "orbit", "bounce up and down", "bounce side to side"})  # without an end
CALM = 1.5  # guidance of clips whose beginning says more than their prompt
PARTS = 6  # of a minute
PROMPT = "a large red circle orbits on a black background"
PEAK = """import sys

import torch

from videogen.cli.main import sample
from videogen.sweep.resource_usage import peak_memory_gb

if sample(sys.argv[1:]):
    sys.exit(1)
print(peak_memory_gb(torch.device("cpu")))
"""


class Row(NamedTuple):
    """A number of a task, and what is wanted of it."""

    task: str
    measure: str
    wanted: str
    value: float


def draw_given(
    config: SampleConfig, num: int, *, motions: Collection[str] = MOVING, frames: int | None = None
) -> list[Case]:
    """Draw captions of scenes of one thing, which moves in one of some ways, before a still camera."""

    def cases() -> Iterator[Case]:
        size, length = (config.width, config.height), frames or config.frames
        for seed in count(FIRST_TRIAL):
            scene = draw_scene(seed, sizes=(size,), lengths=(length,))
            if len(scene.things) != 1 or scene.camera != "still" or scene.event:
                continue
            if scene.things[0].motion in motions:
                yield case_of(scene)

    return list(islice(cases(), num))


class Bench:
    """The checkpoint, its settings, and clips that it makes of given ones."""

    def __init__(self, model: Path, num: int, seconds: float = 60) -> None:
        self.model, self.num, self.seconds = model, num, seconds
        self.pipeline = VideoPipeline.load(model)
        self.config = replace(self.pipeline.defaults, seconds=None)
        self.length = 1 + (self.config.frames - 1) // 4
        self.cases = draw_given(self.config, num)
        self.given = [torch.from_numpy(render_case(case).copy()) for case in self.cases]

    def make(self, case: Case, seed: int, known: Sequence[Known] = (), **changes: object) -> Tensor:
        """Make the frames of a clip at once."""
        config = replace(self.config, **changes)  # type: ignore[arg-type]
        return self.pipeline([case.prompt], config, seeds=[seed], known=known)[0]

    def make_all(self, give: Callable[[Tensor], Sequence[Known]], **changes: object) -> list[Tensor]:
        """Make a clip of each of the given ones."""
        return [self.make(case, i, give(self.given[i]), **changes) for i, case in enumerate(self.cases)]

    def extend(
        self, case: Case, seed: int, known: Sequence[Known], frames: int, guidance: float | None = None
    ) -> Tensor:
        """Make a clip in windows, and put the given pixels in their places, as the command does."""
        config = replace(self.config, frames=frames, guidance=guidance or self.config.guidance)
        clip = LongClip(self.pipeline, self.pipeline.encode_known(known, config), config, seed, length=self.length)
        return torch.cat(list(self.pipeline.frames(torch.cat(list(clip.denoise(case.prompt)), dim=1), known, config)))

    def reconstruct(self, frames: Tensor) -> Tensor:
        """Encode and decode frames by the VAE."""
        return torch.cat(list(self.pipeline.frames(self.encode(frames))))

    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames by the VAE."""
        return self.pipeline.vae.encode(to_pixels(frames)[None])[0]

    def share(self, clause: str, cases: Sequence[Case], clips: Sequence[Tensor]) -> float:
        """Judge in which share of clips a clause holds."""
        pairs = zip(cases, clips, strict=True)
        return share_right(clause, judge_clips([BenchClip(case, 0, clip) for case, clip in pairs]))


def share_right(clause: str, judged: Sequence[JudgedClip]) -> float:
    """Count in which share of judged clips a clause holds."""
    scores = tally_scores(judged)
    return scores[clause]["share"] if clause in scores else float("nan")


def steps(frames: Tensor) -> Tensor:
    """Compute the mean absolute difference of each frame from the one before, (t - 1,)."""
    return (frames[1:].float() - frames[:-1].float()).abs().mean((1, 2, 3))


def ratio_at(frames: Tensor, seam: int, given: Tensor) -> float:
    """Compare the step to the frame at a seam with the mean step of the given clip."""
    return float(steps(frames)[seam - 1] / steps(given).mean().clamp(min=1e-3))


def measure_images(bench: Bench) -> Iterator[Row]:
    """Text to image, image to video, first and last image."""
    stills = draw_given(bench.config, bench.num, motions=STILL, frames=1)
    pictures = [bench.make(case, i, frames=1) for i, case in enumerate(stills)]
    for clause in ("class", "colour", "background"):
        yield Row("text to image", f"{clause} right", "as for video", bench.share(clause, stills, pictures))
    free = bench.make_all(lambda frames: ())
    between = [float(steps(clip)[4::4].mean() / steps(clip).mean()) for clip in free]
    yield Row("text to video", "steps between latent frames, beside all of its steps", "", float(np.median(between)))
    from_first = bench.make_all(lambda frames: [Known.first(frames[0])])
    own = [psnr(bench.reconstruct(frames[:1]), frames[:1]) for frames in bench.given]
    made = [psnr(clip[:1], frames[:1]) for clip, frames in zip(from_first, bench.given, strict=True)]
    yield Row(
        "image to video", "dB of the first frame below the VAE's own", "at most 1", float(np.mean(own) - np.mean(made))
    )
    motion = [bench.share("motion", bench.cases, clips) for clips in (from_first, free)]
    yield Row("image to video", "motion right, beside text to video", "at least 0.8", motion[0] / max(motion[1], 1e-3))
    is_frozen = [
        float(steps(a).mean() / steps(b).mean()) < FROZEN for a, b in zip(from_first, bench.given, strict=True)
    ]
    yield Row("image to video", "share of frozen clips", "below 0.03", float(np.mean(is_frozen)))
    both = bench.make_all(lambda frames: [Known.first(frames[0]), Known.last(frames[-1])])
    jumps = [
        float(steps(clip).max() / steps(frames).max().clamp(min=1e-3))
        for clip, frames in zip(both, bench.given, strict=True)
    ]
    yield Row("first and last", "largest step, beside the world's own", "at most 1.5", float(np.median(jumps)))
    made = [psnr(clip[-1:], frames[-1:]) for clip, frames in zip(both, bench.given, strict=True)]
    own = [psnr(bench.reconstruct(frames[-1:]), frames[-1:]) for frames in bench.given]
    yield Row(
        "first and last", "dB of the last frame below the VAE's own", "at most 1", float(np.mean(own) - np.mean(made))
    )


def measure_extensions(bench: Bench) -> Iterator[Row]:
    """Extend forward and backward, join and loop: the seams, and whether the thing is still the same."""
    half, fps = 1 + 4 * ((bench.length - 1) // 2), bench.config.fps
    total = bench.config.frames
    forward = [bench.extend(c, i, [Known.clip(bench.given[i][:half])], total) for i, c in enumerate(bench.cases)]
    backward = [
        bench.extend(c, i, [Known.clip(bench.given[i][-half:], at=(total - half) / fps)], total)
        for i, c in enumerate(bench.cases)
    ]
    alone = [
        torch.cat(list(bench.pipeline.frames(bench.encode(frames), [Known.clip(frames[:half])], bench.config)))
        for frames in bench.given
    ]
    ratios = [ratio_at(clip, half, frames) for clip, frames in zip(alone, bench.given, strict=True)]
    yield Row("extend forward", "step at the seam of the world's own clip behind the VAE", "", float(np.median(ratios)))
    calm = [
        bench.extend(case, i, [Known.clip(bench.given[i][:half])], total, guidance=CALM)
        for i, case in enumerate(bench.cases)
    ]
    for task, clips, seam in (
        ("extend forward", forward, half),
        (f"extend forward, guidance {CALM:g}", calm, half),
        ("extend backward", backward, total - half),
    ):
        ratios = [ratio_at(clip, seam, frames) for clip, frames in zip(clips, bench.given, strict=True)]
        yield Row(task, "step at the seam, beside the given clip's", "0.85 to 1.15", float(np.median(ratios)))
        kept = bench.share("class", bench.cases, clips)
        yield Row(task, "class right in the whole clip", "at least 0.95", kept)
    # A loop has as many steps for its way back as the given clip has, or it would have to hurry.
    for task, second, end in (("join", slice(-half, None), half + 3), ("loop", slice(half), 2 * half - 2)):
        seams = []
        for i, (case, frames) in enumerate(zip(bench.cases, bench.given, strict=True)):
            known = [Known.clip(frames[:half]), Known.clip(frames[second], at=end / fps)]
            clip = bench.extend(case, i, known, end + half)
            seams.append(max(ratio_at(clip, seam, frames) for seam in (half, end)))
        yield Row(task, "largest step at a seam, beside the given clip's", "at most 1.5", float(np.median(seams)))


def measure_drift(bench: Bench) -> Iterator[Row]:
    """Extend a still clip again and again, by its latent and through the VAE."""
    cases = draw_given(bench.config, max(1, bench.num // 4), motions=STILL)
    new = 4 * (bench.length - 2)
    for how in ("by its latent", "through the VAE"):
        drifts: dict[int, list[float]] = {number: [] for number in EXTENSIONS}
        for i, case in enumerate(cases):
            frames = torch.from_numpy(render_case(case).copy())
            first, latent = frames.float().mean((0, 1, 2)), None
            for number in range(1, max(EXTENSIONS) + 1):
                config = replace(bench.config, frames=len(frames) + new)
                known = [Known.clip(frames)._replace(latent=latent if how == "by its latent" else None)]
                clip = LongClip(
                    bench.pipeline, bench.pipeline.encode_known(known, config), config, i + number, length=bench.length
                )
                latent = torch.cat(list(clip.denoise(case.prompt)), dim=1)
                frames = torch.cat(list(bench.pipeline.frames(latent)))
                if number in EXTENSIONS:
                    last = frames[-new:].float().mean((0, 1, 2))
                    drifts[number].append(float((last - first).abs().max() / 255))
        for number, values in drifts.items():
            yield Row("drift", f"colour after {number} extensions, {how}", "at most 0.01", float(np.mean(values)))


def measure_changes(bench: Bench) -> Iterator[Row]:
    """Change the inside of a mask, and vary whole clips."""
    others = [bench.cases[(i + 1) % len(bench.cases)] for i in range(len(bench.cases))]
    outside, inside = [], []
    for i, (case, other, frames) in enumerate(zip(bench.cases, others, bench.given, strict=True)):
        assert case.scene is not None
        where = torch.from_numpy(masks(case.scene)[:, 0] > 0).any(0)
        box = torch.zeros_like(where)
        rows, columns = (side.nonzero().flatten() for side in (where.any(1), where.any(0)))
        box[max(0, int(rows[0]) - 4) : int(rows[-1]) + 4, max(0, int(columns[0]) - 4) : int(columns[-1]) + 4] = True
        if box.all():
            box[:1] = False
        clip = bench.make(other, i, [Known.mask(frames, box)])
        change = (clip.float() - frames.float()).abs().mean(-1)
        outside.append(float(change[:, ~box].mean()))
        inside.append(float(change[:, box].mean()))
    yield Row("inpaint", "change outside of the mask, of 255", "0", float(np.mean(outside)))
    yield Row("inpaint", "change inside of the mask, of 255", "above 0", float(np.mean(inside)))
    distances = []
    for strength in STRENGTHS:
        clips = bench.make_all(lambda frames: [Known.clip(frames, weight=0)], strength=strength)
        pairs = zip(clips, bench.given, strict=True)
        distances.append(float(np.mean([float((a.float() - b.float()).abs().mean()) for a, b in pairs])))
        yield Row("video to video", f"distance from the given clip at strength {strength:g}", "rises", distances[-1])


def peak_memory(model: Path, seconds: float) -> float:
    """Run the command in a process of its own and measure its peak memory in GB."""
    with tempfile.TemporaryDirectory() as out:
        words = [PROMPT, "--model", str(model), "--seconds", f"{seconds:g}", "--quiet", "--out", f"{out}/clip.mp4"]
        command = [sys.executable, "-c", PEAK, *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def measure_minute(bench: Bench) -> Iterator[Row]:
    """Make long clips in windows: their memory, and whether their end still shows what their beginning does."""
    seconds, task = bench.seconds, f"{bench.seconds:g} seconds"
    ratio = peak_memory(bench.model, seconds) / peak_memory(bench.model, min(seconds, 4))
    yield Row(task, "peak memory, beside that of 4 seconds", "at most 1.1", ratio)
    cases = draw_given(bench.config, max(1, bench.num // 4), motions=LASTING)
    per_part = int(seconds * bench.config.fps) // PARTS
    parts: list[list[JudgedClip]] = [[] for _ in range(PARTS)]
    for seed, case in enumerate(cases):
        clip = bench.extend(case, seed, (), 1 + 4 * (int(seconds * bench.config.fps) // 4))
        for number, part in enumerate(clip.split(per_part)[:PARTS]):
            # The judge reads clips as long as those of training: all of them at both ends, one of each part between.
            looks = [look for look in part.split(bench.config.frames) if len(look) == bench.config.frames] or [part]
            looks = looks if number in (0, PARTS - 1) else looks[:1]
            parts[number] += judge_clips([BenchClip(case, seed, look) for look in looks])
    first = {judged.seed: kinds_of(judged) for judged in reversed(parts[0])}
    later = [judged for part in parts[1:] for judged in part if first[judged.seed]]
    is_same = [kinds_of(judged) == first[judged.seed] for judged in later]
    yield Row(
        task, "shows the thing of its first two seconds", "at least 0.95", float(np.mean(is_same or [float("nan")]))
    )
    for clause in ("class", "background", "motion"):
        change = share_right(clause, parts[-1]) - share_right(clause, parts[0])
        yield Row(task, f"{clause} right in the last sixth, less in the first", "at least -0.1", change)


def kinds_of(judged: JudgedClip) -> list[str]:
    """List the kinds of the things that the judge finds in a clip."""
    return sorted(thing.kind for thing in judged.found.things)


TASKS = {
    "images": measure_images,
    "extensions": measure_extensions,
    "drift": measure_drift,
    "changes": measure_changes,
    "minute": measure_minute,
}


def with_other_rows(path: Path | None, about: Mapping[str, object], measured: Sequence[Row]) -> list[Row]:
    """Add the rows of tasks that are not measured again, where they are of the same checkpoint and settings."""
    if path is None or not path.is_file():
        return list(measured)
    saved = json.loads(path.read_text(encoding="utf-8"))
    if any(saved.get(key) != json.loads(json.dumps(value)) for key, value in about.items()):
        return list(measured)
    old, tasks = [Row(**row) for row in saved["rows"]], {row.task for row in measured}
    order = list(dict.fromkeys(row.task for row in [*old, *measured]))
    return sorted([*(row for row in old if row.task not in tasks), *measured], key=lambda row: order.index(row.task))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write a row a number."""
    parser = make_parser("known", __doc__)
    parser.add_argument("--model", type=Path, default=MINI, help="checkpoint folder")
    parser.add_argument("--clips", type=int, default=16, help="clips a task")
    parser.add_argument("--seconds", type=float, default=60, help="of the long clips")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="what to measure; default all")
    args = parse_flags(parser, argv, {"clips": 1, "seconds": 5})
    model = find_checkpoint(args.model)
    bench, rows = Bench(model, args.clips, args.seconds), list[Row]()
    for name in args.tasks:
        for row in TASKS[name](bench):
            print(f"{row.task:18}{row.measure:58}{row.value:8.3f}   wanted: {row.wanted}", flush=True)
            rows.append(row)
    about = {"checkpoint": checkpoint_id(model), "clips": args.clips, "settings": to_mapping(bench.pipeline.defaults)}
    if set(args.tasks) != set(TASKS):
        rows = with_other_rows(args.out, about, rows)
    write_result(args.out, {**about, "rows": [row._asdict() for row in rows]})


if __name__ == "__main__":
    main()
