"""The judge command: compare clips of a checkpoint, of a folder or of the world itself with what their captions say.

argv  ->  cases (prompt, clauses)  ->  clips  ->  a table of clauses, scores.json, report.html

Every score comes with its ceilings, the same scenes drawn by the world itself and those after a VAE, and with its
floor, the same clips under the captions of others. A small network measures how far each set is from other clips of
the world.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import numpy as np
import tyro

from videogen.cli.arguments import is_given, parse
from videogen.cli.devices import check_device, resolve_device
from videogen.cli.sample import TOKENS_PER_PACK
from videogen.config.sample import SampleConfig, resolve_frames
from videogen.config.sizes import TIME_STRIDE
from videogen.data.files import save_text
from videogen.models.checkpoint_config import CheckpointInfo, read_checkpoint_info
from videogen.models.hub import checkpoint_id, checkpoint_name, find_checkpoint, look_up_checkpoint
from videogen.packing.bin_packing import group_by_budget
from videogen.toybox import Scene, caption, draw_scene, render
from videogen.toybox.judge import parse as read_caption
from videogen.toybox.judge.prompts import read_cases
from videogen.toybox.judge.report import format_distances, format_means, format_proportion
from videogen.toybox.judge.report import render_report as render_page
from videogen.toybox.judge.scores import Case, JudgedClip, Proportion, mean_quality, shuffled_captions, tally
from videogen.toybox.judge.workers import ClipToJudge, judge_in_parallel
from videogen.toybox.world.scenes import FRAME_SIZES, LENGTHS

if TYPE_CHECKING:
    from videogen.models.vae import VideoVAE
    from videogen.models.wan_vae import WanVAE
    from videogen.sampling.pipeline import VideoPipeline
    from videogen.toybox.judge.features import Distance

logger = logging.getLogger(__name__)
FIRST_SEED = 10**9  # folders for training draw theirs from all of 64 bits, so that none of these is among them
Columns = dict[str, dict[str, Proportion]]
Item = TypeVar("Item")
DESCRIPTION = "Judge clips by their frames alone: which clauses of its caption does each fulfil?"


@dataclass(frozen=True, kw_only=True)
class JudgeArgs:
    """What to judge, by which captions, and where to write it."""

    target: tyro.conf.Positional[Path | None] = None
    """A checkpoint folder or owner/name[@revision] of one on the Hugging Face Hub, or a folder of clips with
    metadata.csv; left out, the world's own clips are judged."""
    clips: int = 256
    """How many captions."""
    seeds: int = 2
    """Clips a caption, of a checkpoint; each clip has a seed of its own."""
    held_out: bool = False
    """Captions of combinations of attributes that training never shows: one moving thing before a still camera."""
    new_words: bool = False
    """Captions of the family of sentences that training never reads."""
    all_sizes: bool = False
    """Scenes of all sizes and lengths of the world, not of the sample's alone; without a checkpoint only."""
    captions: Path | None = None
    """Prompts of your own: a .jsonl with prompt, kind, colour, size, motion, sense, background, camera, or a text file
    of captions in the world's words, one a line."""
    first: int = FIRST_SEED
    """The first scene's seed; the others follow."""
    vae: Path | None = None
    """Checkpoint folder whose VAE the world's own clips go through; default that of the checkpoint that is judged."""
    ceilings: bool = True
    """Judge the world's own clips, and those after the VAE, too."""
    out: Path | None = None
    """A .json file for all scores."""
    report: Path | None = None
    """An .html file that shows every clip, what was found in it, and which clauses hold."""
    sample: Annotated[SampleConfig, tyro.conf.arg(name="")] = field(default_factory=SampleConfig)
    """Settings; default those of the checkpoint."""
    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda[:N]|mps|xpu")] = "cpu"
    """Where to compute; the published scores are of a CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights; bfloat16 is for GPUs."""
    json: bool = False
    """Print a JSON object instead of the table."""

    def __post_init__(self) -> None:
        if self.clips < 1 or self.seeds < 1:
            raise ValueError(f"--clips and --seeds must be at least 1, got {self.clips} and {self.seeds}")
        if self.new_words and self.sample.frames == 1:
            raise ValueError("--new-words are sentences about clips, and an image has none; leave out --frames 1")


def run(argv: Sequence[str]) -> int:
    """Make or read the clips, judge them, print and write the scores."""
    args, info = parse_args(argv)
    pipeline, vae = load(args, info)
    cases = list_cases(args, info)
    shown: list[tuple[JudgedClip, np.ndarray]] = []
    columns: Columns = {}
    frames: dict[str, list[np.ndarray]] = {}
    for name, clips, num in sources(args, info, cases, pipeline, vae):
        column = [(verdict, clip.frames) for verdict, clip in with_bar(judge_in_parallel(clips, num), num, name)]
        if not column:
            raise ValueError(f"none of the {num} clips can be read")
        columns[name], frames[name] = tally([verdict for verdict, _ in column]), [clip for _, clip in column]
        shown = shown or column  # the first source is what was asked for; the others are there to compare
    judged = [verdict for verdict, _ in shown]
    if floor := shuffled_captions(judged):
        columns["shuffled captions"] = floor
    # Clips by a user's own captions are not meant to be distributed as the world's are.
    distances = {} if args.captions is not None else measure_distances(frames, new=args.held_out)
    publish(args, columns, mean_quality(judged), distances, shown)
    return 0


def parse_args(argv: Sequence[str]) -> tuple[JudgeArgs, CheckpointInfo | None]:
    """Parse flags over the judged checkpoint's own settings; None for what is no checkpoint."""
    # The target's settings are the defaults of the flags; it may stand anywhere but behind --vae.
    words = [word for before, word in pairwise(["", *argv]) if before != "--vae"]
    folders = (folder for word in words if (folder := look_up_checkpoint(word)) is not None)
    target = next((folder for folder in folders if is_checkpoint(folder)), None)
    info = read_checkpoint_info(target) if target is not None else None
    base = JudgeArgs() if info is None else JudgeArgs(sample=info.defaults)
    if is_given(argv, "--frames"):
        base = replace(base, sample=replace(base.sample, seconds=None))
    args = parse(JudgeArgs, argv, default=base, prog="videogen judge", description=DESCRIPTION)
    named = {"target": args.target, "vae": args.vae}
    args = replace(args, **{name: find_checkpoint(path) for name, path in named.items() if path is not None})
    if args.target is None or not is_checkpoint(args.target):
        info = None
    elif info is None or args.target != info.folder:
        info = read_checkpoint_info(args.target)
    if args.target is not None and not args.target.is_dir():
        raise ValueError(f"{args.target} is no folder; give a checkpoint, or a folder of clips with metadata.csv")
    if args.target is not None and info is None and (args.captions or args.held_out or args.new_words):
        raise ValueError("a folder has captions of its own; leave out --captions, --held-out and --new-words")
    if args.vae is not None and not (args.vae / "vae" / "config.json").is_file():
        raise ValueError(f"--vae {args.vae} is not a checkpoint folder with a VAE: it has no vae/config.json")
    if args.all_sizes and info is not None:
        raise ValueError("--all-sizes is for the world's own clips; a checkpoint makes them of one --size and --frames")
    if args.target is None and args.captions is not None:
        raise ValueError("--captions are for a checkpoint to make clips of; name its folder")
    shape = {name: getattr(args.sample, name) for name in ("size", "frames", "seconds", "fps")}
    if info is None and args.sample != replace(SampleConfig(), **shape):
        raise ValueError("steps, guidance and the like are how a checkpoint makes clips; name its folder as well")
    for path, suffix in ((args.out, ".json"), (args.report, ".html")):
        if path is not None and path.suffix != suffix:
            raise ValueError(f"{path} must end in {suffix}")
    if info is not None:
        info.latent_grid(args.sample)
    return args, info


def is_checkpoint(folder: Path) -> bool:
    """True if a folder holds a model rather than clips."""
    return (folder / "model_index.json").is_file()


def load(args: JudgeArgs, info: CheckpointInfo | None) -> tuple[VideoPipeline | None, VideoVAE | WanVAE | None]:
    """Load the checkpoint that is judged, and the VAE that the world's own clips go through."""
    check_device(device := resolve_device(args.device))
    pipeline = None
    if info is not None:
        import torch

        from videogen.sampling.pipeline import VideoPipeline

        pipeline = VideoPipeline.load(info.folder, dtype=getattr(torch, args.dtype)).to(device)
    if args.vae is None:
        return pipeline, None if pipeline is None else pipeline.vae
    from videogen.models.checkpoint import load_vae

    return pipeline, load_vae(args.vae).to(device)  # type: ignore[call-overload]


# --- cases


def list_cases(args: JudgeArgs, info: CheckpointInfo | None) -> list[Case]:
    """List the prompts and what they claim; none for a folder of clips, which has its own."""
    if args.captions is not None:
        if not (cases := list(islice(read_cases(args.captions), args.clips))):
            raise ValueError(f"{args.captions} has no captions; write one a line")
        return cases
    if args.target is not None and info is None:
        return []
    length = resolve_frames(args.sample, TIME_STRIDE)
    sizes = FRAME_SIZES if args.all_sizes else ((args.sample.width, args.sample.height),)
    lengths = LENGTHS if args.all_sizes else (length,)
    return [
        case_of(draw_scene(seed, sizes=sizes, lengths=lengths, new=args.held_out), new_words=args.new_words)
        for seed in range(args.first, args.first + args.clips)
    ]


def case_of(scene: Scene, *, new_words: bool = False) -> Case:
    """Pair a scene with its caption."""
    text = caption(scene, scene.seed, new=new_words)
    return Case(text, read_caption(text), scene)


# --- clips


def sources(
    args: JudgeArgs,
    info: CheckpointInfo | None,
    cases: Sequence[Case],
    pipeline: VideoPipeline | None,
    vae: VideoVAE | WanVAE | None,
) -> Iterator[tuple[str, Iterator[ClipToJudge], int]]:
    """Yield what is judged, by name: the clips asked for first, then the world's own and those after the VAE."""
    scenes = [case for case in cases if case.scene is not None]
    if info is not None:
        assert pipeline is not None
        yield "clips", sample_clips(args, info, cases, pipeline), len(cases) * args.seeds
    elif args.target is not None:
        files = captioned_files(args.target, args.clips)
        yield "clips", read_clips(files), len(files)
    if scenes and (args.ceilings or args.target is None):
        yield "the world's own", (ClipToJudge(case, 0, render_case(case)) for case in scenes), len(scenes)
        if vae is not None:
            clips = (ClipToJudge(case, 0, reconstruct(render_case(case), vae)) for case in scenes)
            yield "after the VAE", clips, len(scenes)


def render_case(case: Case) -> np.ndarray:
    """Render the world's own clip of a case."""
    assert case.scene is not None, f"{case.prompt!r} has no scene"
    return render(case.scene)


def sample_clips(
    args: JudgeArgs, info: CheckpointInfo, cases: Sequence[Case], pipeline: VideoPipeline
) -> Iterator[ClipToJudge]:
    """Make a checkpoint's clips side by side in packs."""
    import torch

    from videogen.sampling.clip_sampler import ClipRequest

    # Noise depends on the seed alone: were the first of each prompt the same, chance would strike all at once.
    jobs = [(case, seed) for seed, case in enumerate(case for case in cases for _ in range(args.seeds))]
    num_tokens = info.num_tokens(args.sample)
    for batch in group_by_budget(jobs, lambda _: num_tokens, TOKENS_PER_PACK):
        latents = pipeline.sample([ClipRequest(case.prompt, seed) for case, seed in batch], args.sample)
        for (case, seed), latent in zip(batch, latents, strict=True):
            yield ClipToJudge(case, seed, torch.cat(list(pipeline.frames(latent))).numpy())


def reconstruct(frames: np.ndarray, vae: VideoVAE | WanVAE) -> np.ndarray:
    """Encode and decode a clip by the VAE."""
    import torch
    from einops import rearrange

    from videogen.models.streaming import to_uint8

    with torch.no_grad():
        clip = rearrange(torch.from_numpy(frames).float() / 127.5 - 1, "t h w c -> 1 c t h w")
        return to_uint8(vae.decode(vae.encode(clip.to(vae.device, vae.dtype)))[0]).numpy()


def captioned_files(folder: Path, num: int) -> list[tuple[Path, Case]]:
    """List the files of a folder whose captions are in the world's words, and report how many others there are."""
    from videogen.data.listing import list_folder

    listing = list_folder(folder)
    listing.check_tables()
    captions = listing.captions
    if not captions:
        raise ValueError(f"{folder} has no captions: a metadata.csv with file_name and text says what its clips show")
    if num < len(captions):
        logger.warning("the first %d of %d clips are judged; --clips says how many", num, len(captions))
    files, errors = list[tuple[Path, Case]](), list[str]()
    for path, (text, *_) in islice(captions.items(), num):
        try:
            files.append((path, Case(text, read_caption(text))))
        except ValueError as error:
            errors.append(str(error))
    if errors:
        logger.warning("%d of %d clips are left out: %s", len(errors), len(files) + len(errors), errors[0])
    if not files:
        raise ValueError(f"no caption of {folder} can be read: {errors[0]}")
    return files


def read_clips(files: Sequence[tuple[Path, Case]]) -> Iterator[ClipToJudge]:
    """Read the clips of a folder; one that cannot be read is named and left out."""
    from videogen.data.video_io import read_video

    for path, case in files:
        try:
            frames = read_video(path).numpy()
        except (ValueError, OSError) as error:
            logger.warning("not judged: %s", error)
        else:
            yield ClipToJudge(case, 0, frames)


def measure_distances(frames: Mapping[str, Sequence[np.ndarray]], *, new: bool) -> dict[str, Distance]:
    """Measure how far each set of clips is from others of the world, of the sizes and lengths of the first."""
    from videogen.toybox.judge.features import (
        MIN_CLIPS,
        WEIGHTS,
        extract_features,
        load_feature_extractor,
        mmd,
        render_reference_clips,
    )

    if not WEIGHTS.is_file():
        logger.warning("no distance to the world: the network's weights are not there, %s", WEIGHTS)
        return {}
    large_sets = {name: clips for name, clips in frames.items() if len(clips) >= MIN_CLIPS}
    if len(large_sets) < len(frames):
        logger.warning("no distance to the world: a set needs %d clips", MIN_CLIPS)
    if not large_sets:
        return {}
    reader = load_feature_extractor(WEIGHTS)
    others = extract_features(list(render_reference_clips(next(iter(large_sets.values())), new=new)), reader)
    return {name: mmd(extract_features(clips, reader), others) for name, clips in large_sets.items()}


def with_bar(judged: Iterator[Item], num: int, name: str) -> Iterator[Item]:
    """Pass the clips on, counting them on stderr."""
    from rich.console import Console
    from rich.progress import track

    yield from track(judged, description=name, total=num, console=Console(stderr=True))


# --- results


def publish(
    args: JudgeArgs,
    columns: Columns,
    means: Mapping[str, float],
    distances: Mapping[str, Distance],
    judged: Sequence[tuple[JudgedClip, np.ndarray]],
) -> None:
    """Print the table and write the files that were asked for."""
    name = checkpoint_name(args.target) if args.target else "the world's own clips"
    result = {
        "judged": name,
        **({"checkpoint": checkpoint_id(args.target)} if args.target and is_checkpoint(args.target) else {}),
        "scores": {
            column: {row: count_as_json(count) for row, count in table.items()} for column, table in columns.items()
        },
        "measures": means,
        "distances": {name: {"mmd": mmd.value, "interval": mmd.interval} for name, mmd in distances.items()},
    }
    if args.out is not None:
        write(args.out, json.dumps(result, indent=2) + "\n")
    if args.report is not None:
        write(args.report, render_page(f"Judged: {name}", columns, means, distances, judged, args.sample.fps))
    if args.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    print_table(columns, [*format_means(means), *format_distances(distances)])


def write(path: Path, text: str) -> None:
    """Write a text file, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_text(path, text)


def count_as_json(count: Proportion) -> dict[str, object]:
    """Convert a count to JSON values."""
    return {
        "right": count.right,
        "clips": count.num,
        "effective_clips": round(count.effective, 1),
        "share": round(count.share, 4),
        "interval": [round(x, 4) for x in count.interval],
    }


def print_table(columns: Columns, measures: Sequence[tuple[str, str]]) -> None:
    """Print a row a clause, a column a source, and the measures below."""
    from rich.console import Console
    from rich.table import Table

    table = Table("clause", *columns, "clips", box=None, pad_edge=False)
    for row in dict.fromkeys(row for column in columns.values() for row in column):
        num = next(column[row].num for column in columns.values() if row in column)
        table.add_row(row, *(format_proportion(column.get(row)) for column in columns.values()), str(num))
    # In a pipe rich would assume 80 columns and cut the table.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for meaning, value in measures:
        console.print(f"{meaning}: {value}", highlight=False)
