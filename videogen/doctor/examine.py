"""Examine a folder: judge every file by all of its frames, compare the files, and plan what training makes of them.

DataConfig  ->  Examination: every clip with its judgement, findings of the folder, prospects
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from videogen.config.train import DataConfig
from videogen.data.clip_plan import ClipShape, judge_clip
from videogen.data.findings import LEVELS, Finding, Level
from videogen.data.frame_findings import judge_frames
from videogen.data.judgement import Judgement
from videogen.data.judgement_cache import open_judgements
from videogen.data.listing import LocatedFinding, list_folder
from videogen.doctor.duplicates import group_duplicates
from videogen.doctor.threads import thread_pool
from videogen.packing.bin_packing import plan_packs
from videogen.packing.patch_schedule import Patch


class ExaminedClip(NamedTuple):
    """A file of the folder, and the clip that training makes of it where it can be used."""

    path: Path
    judgement: Judgement
    captions: tuple[str, ...]
    shape: ClipShape | None
    same_as: Path | None = None  # the first of the files that it is a near duplicate of

    @property
    def worst(self) -> Level | None:
        """The level of its worst finding, or None."""
        levels = {finding.level for finding in self.judgement.findings}
        return next((level for level in LEVELS if level in levels), None)


class Prospects(NamedTuple):
    """What training makes of a folder in an epoch."""

    clips: int
    tokens: int
    packs: int
    fill: float  # share of the token budget that the packs use
    cropped: float  # mean share of a frame that is cropped


@dataclass(frozen=True)
class Examination:
    """All that was found in a folder."""

    folder: Path
    clips: list[ExaminedClip]
    others: list[LocatedFinding]  # about folders, links, tables and rows: what is no clip
    prospects: Prospects

    def located_findings(self) -> list[LocatedFinding]:
        """List every finding with its file, the worst kinds first."""
        of_clips = [(clip.path, finding) for clip in self.clips for finding in clip.judgement.findings]
        return sorted([*self.others, *of_clips], key=lambda located: LEVELS.index(located[1].level))

    @property
    def is_clean(self) -> bool:
        """True if nothing was found but what training handles."""
        return all(finding.level == "note" for _, finding in self.located_findings())


def examine(
    config: DataConfig,
    patch: Patch,
    *,
    num_threads: int = 1,
    judge_captions: Callable[[Mapping[Path, tuple[str, ...]]], Mapping[Path, Finding]] | None = None,
    on_file: Callable[[int, int], object] = lambda done, total: None,
) -> Examination:
    """Examine a folder on num_threads cores; on_file is told how many files are done, and of how many."""
    listing = list_folder(config.folder, follow_links=config.follow_links)
    clips = list[ExaminedClip]()
    with open_judgements() as known, thread_pool(num_threads) as pool:

        def judge(path: Path) -> ExaminedClip:
            judged = judge_clip(path, listing.captions, config, patch, lambda p: known.judge(p, deep=judge_frames))
            return ExaminedClip(path, *judged)

        for clip in pool.map(judge, listing.clips):
            clips.append(clip)
            on_file(len(clips), len(listing.clips))
    places = {clip.path: number for number, clip in enumerate(clips)}
    others = [located for located in listing.findings if located[0] not in places]
    for path, finding in listing.findings:
        if (number := places.get(path)) is not None:
            clips[number] = add_findings(clips[number], finding)
    clips = mark_duplicates(clips)
    if judge_captions is not None:
        about = judge_captions({clip.path: clip.captions for clip in clips})
        clips = [add_findings(clip, about.get(clip.path)) for clip in clips]
    return Examination(config.folder, clips, others, plan_epoch(clips, config))


def add_findings(clip: ExaminedClip, finding: Finding | None) -> ExaminedClip:
    """Return the clip with another finding, if there is one."""
    return clip if finding is None else clip._replace(judgement=clip.judgement.with_findings(finding))


def mark_duplicates(clips: list[ExaminedClip]) -> list[ExaminedClip]:
    """Name in each near duplicate the largest of the files that look alike."""
    marked = list(clips)
    prints = [clip.judgement.fingerprint if clip.judgement.info is not None else b"" for clip in clips]
    for group in group_duplicates(prints):
        best = max(group, key=lambda number: (quality(clips[number].judgement), -number))
        for number in group:
            if number != best:
                words = f"it looks like {clips[best].path.name}"
                marked[number] = add_findings(marked[number], Finding("duplicate", words))._replace(
                    same_as=clips[best].path
                )
    return marked


def quality(judgement: Judgement) -> tuple[bool, int, int, float]:
    """Compare near duplicates: first by what is wrong with them, then by their pixels, then by their length."""
    assert judgement.info is not None, "a file that cannot be read is no duplicate"
    num_faults = sum(finding.level != "note" for finding in judgement.findings)
    return judgement.fault is None, -num_faults, judgement.info.width * judgement.info.height, judgement.info.seconds


def plan_epoch(clips: list[ExaminedClip], config: DataConfig) -> Prospects:
    """Count the clips and tokens of an epoch, and pack them."""
    shapes = [clip.shape for clip in clips if clip.shape is not None]
    tokens = [shape.num_tokens for shape in shapes]
    if not tokens:
        return Prospects(0, 0, 0, 0.0, 0.0)
    packs = len(plan_packs(tokens, budget=config.token_budget)) if max(tokens) <= config.token_budget else 0
    fill = sum(tokens) / (packs * config.token_budget) if packs else math.nan
    cropped = [cropped_share(clip) for clip in clips if clip.shape is not None]
    once = Prospects(len(tokens), sum(tokens), packs, fill, sum(cropped) / len(cropped))
    repeats = config.repeats
    return once._replace(clips=once.clips * repeats, tokens=once.tokens * repeats, packs=once.packs * repeats)


def cropped_share(clip: ExaminedClip) -> float:
    """Return the share of a file's frame that training crops."""
    assert clip.shape is not None, "only a usable clip has a shape"
    assert clip.judgement.info is not None, "only a usable clip has a size"
    info, shape = clip.judgement.info, clip.shape
    scale = max(shape.width / info.width, shape.height / info.height)
    return 1 - shape.width * shape.height / (info.width * info.height * scale**2)
