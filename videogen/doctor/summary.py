"""Write down what was found: a table for people, JSON for programs.

Examination  ->  rich tables, a mapping
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from videogen.data.findings import KINDS, LEVELS, printable
from videogen.data.listing import LocatedFinding
from videogen.doctor.examine import Examination, ExaminedClip

NUM_NAMES = 3  # files of a kind that the table names; the JSON and the page name all
NUM_SHAPES = 8  # sizes and lengths of clips in the table
COLOURS = {"unusable": "red", "warning": "yellow", "note": "default"}


def group_by_kind(found: Examination) -> dict[str, list[LocatedFinding]]:
    """Group the findings by kind: the worst first, and of the same level those of most files."""
    kinds = defaultdict[str, list[LocatedFinding]](list)
    for path, finding in found.located_findings():
        kinds[finding.kind].append((path, finding))
    return dict(sorted(kinds.items(), key=lambda item: (LEVELS.index(KINDS[item[0]].level), -len(item[1]))))


def print_examination(found: Examination, console: Console, tokens_per_second: float | None) -> None:
    """Print the findings by kind, and what training makes of the folder."""
    num_used, folder = found.prospects.clips, found.folder
    used = sum(clip.shape is not None for clip in found.clips)
    console.print(Text(f"{printable(folder)}: {len(found.clips)} files, {used} can be used"))
    kinds = group_by_kind(found)
    table = Table("", "files", "what", "which", box=None, pad_edge=False)
    for kind, located in kinds.items():
        names = [printable(relative_name(path, folder)) for path, _ in located[:NUM_NAMES]]
        more = f" and {len(located) - NUM_NAMES} more" if len(located) > NUM_NAMES else ""
        which = f"{', '.join(names)}{more}: {printable(located[0][1].words)}"
        level, title = KINDS[kind]
        table.add_row(Text(level, style=COLOURS[level]), str(len(located)), Text(title), Text(which))
    if kinds:
        console.print(table)
    if not num_used:
        console.print("training can use none of it")
        return
    shapes = Counter(clip.shape for clip in found.clips if clip.shape is not None)
    table = Table("clips", "size", "frames", "tokens", box=None, pad_edge=False)
    for shape, num in shapes.most_common(NUM_SHAPES):
        table.add_row(str(num), f"{shape.width}x{shape.height}", str(shape.frames), str(shape.num_tokens))
    console.print("\nTraining sees:")
    console.print(table)
    if (num_more := len(shapes) - NUM_SHAPES) > 0:
        console.print(f"and {num_more} more sizes and lengths")
    console.print(Text(describe_epoch(found, tokens_per_second)))


def describe_epoch(found: Examination, tokens_per_second: float | None) -> str:
    """Describe an epoch in a sentence; its time only where a run measured one."""
    clips, tokens, packs, fill, cropped = found.prospects
    parts = [f"an epoch is {clips:,} clips of {tokens:,} tokens"]
    parts += [f"{packs:,} packs, {fill:.0%} full"] if not math.isnan(fill) else ["a clip is larger than a pack"]
    parts += [f"{cropped:.1%} of a frame is cropped"]
    if tokens_per_second:
        parts += [f"{tokens / tokens_per_second / 60:.1f} minutes at the {tokens_per_second:,.0f} tokens/s of its run"]
    return "; ".join(parts)


def measured_speed(run_dir: Path) -> float | None:
    """Return the tokens per second that the log of a run has, or None."""
    speeds = list[float]()
    if (log := run_dir / "log.jsonl").is_file():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                speeds.append(float(json.loads(line)["tokens_per_second"]))
            except (ValueError, TypeError, KeyError):
                continue
    return statistics.median(speeds) if speeds else None


def to_mapping(found: Examination, tokens_per_second: float | None) -> dict[str, object]:
    """Collect everything found for JSON."""
    folder, prospects = found.folder, found.prospects
    return {
        "folder": str(folder),
        "clean": found.is_clean,
        "usable": sum(clip.shape is not None for clip in found.clips),
        "files": [describe_clip(clip, folder) for clip in found.clips],
        "findings": [
            {"path": relative_name(path, folder), "level": finding.level, **finding._asdict()}
            for path, finding in found.others
        ],
        "epoch": prospects._asdict()
        | {"fill": None if math.isnan(prospects.fill) else prospects.fill}
        | {"minutes": prospects.tokens / tokens_per_second / 60 if tokens_per_second else None},
    }


def describe_clip(clip: ExaminedClip, folder: Path) -> dict[str, object]:
    """Collect what is known of a file for JSON."""
    judgement = clip.judgement
    return {
        "path": relative_name(clip.path, folder),
        "usable": clip.shape is not None,
        "findings": [{"level": finding.level, **finding._asdict()} for finding in judgement.findings],
        "file": (judgement.info._asdict() if judgement.info else {}) | judgement.facts,
        "captions": len(clip.captions),
        "clip": clip.shape._asdict() if clip.shape else None,
        "same_as": relative_name(clip.same_as, folder) if clip.same_as else None,
    }


def relative_name(path: Path, folder: Path) -> str:
    """Return a file's name in the folder; the whole of it where it lies outside."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
