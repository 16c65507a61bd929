"""What a sweep will run, and the folder that holds it.

    prompts, seeds, settings, axes  ->  Plan  ->  [Run(prompt, seed, SampleConfig)]

A run's key is a hash of what decides its clip, so the same command finds its own rows again. The folder's sweep.json
says which sweep it holds; another one is refused.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from videogen.config.parsing import to_mapping
from videogen.config.sample import SampleConfig
from videogen.data.files import save_text
from videogen.sweep.axes import Axis, Changes, changed, combinations, say

# What only decides how exactly the same clip is computed.
SOLVER = ("steps", "sampler", "shift", "first_block_cache", "mag_cache")
FRESH_NOISE = frozenset({"dpmpp_2m_sde"})  # each of these has an equation of its own
REFERENCE_SAMPLER = "dpmpp_2m"  # second order from one evaluation a step
OWN_FILES = (
    "results*",
    "report.html",
    "grid.mp4",
    "contact.png",
    "pareto.png",
    "best.toml",
    "search.log",
    "sweep.json",
)
LOCK = "sweep.lock"
OWN_FOLDERS = ("clips", "references")


class Run(NamedTuple):
    """One clip of a sweep."""

    prompt: str
    seed: int
    config: SampleConfig

    @property
    def key(self) -> str:
        """A short hash of what decides the clip."""
        told = json.dumps([self.prompt, self.seed, to_mapping(self.config)], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep: for each prompt and seed, its own settings changed along the axes."""

    bases: tuple[Run, ...]
    """Prompts, seeds and settings before the axes change them."""
    axes: tuple[Axis, ...]
    """What is tried."""
    reference_steps: int = 0
    """Steps of the run that each is measured against; 0 is none."""
    model: str = ""
    """The checkpoint folder as the command names it, for the commands on the page; empty is the default one."""
    defaults: SampleConfig
    """The checkpoint's own settings."""
    about: tuple[tuple[str, object], ...] = ()
    """What else must agree before two commands share a folder: checkpoint, LoRAs, device, precision, score."""

    def __post_init__(self) -> None:
        if not self.bases:
            raise ValueError("a sweep needs at least one prompt")
        if not self.axes:
            raise ValueError("a sweep needs at least one axis, such as steps=4,8,16")
        for run in self.bases:
            for name in (name for axis in self.axes for name in axis.names):
                if getattr(run.config, name) != getattr(self.bases[0].config, name):
                    raise ValueError(f"the prompts file sets {name}, which is also an axis; leave one of them out")
        self.runs()  # every combination is checked now, not when its turn comes

    @property
    def settings(self) -> list[Changes]:
        """Every combination of the axes."""
        return combinations(self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that stand on axes."""
        return tuple(name for axis in self.axes for name in axis.names)

    def runs(self, settings: Iterable[Changes] | None = None) -> list[Run]:
        """Every prompt and seed under some settings, or under all."""
        settings = self.settings if settings is None else settings
        return [base._replace(config=changed(base.config, change)) for change in settings for base in self.bases]

    def reference(self, run: Run) -> Run | None:
        """The run that solves the same equation with many steps, so that what differs is the solver's error."""
        if not self.reference_steps:
            return None
        shift = self.bases[0].config.shift
        exact = replace(run.config, first_block_cache=0.0, mag_cache=0.0)
        sampler = run.config.sampler if run.config.sampler in FRESH_NOISE else REFERENCE_SAMPLER
        solved = replace(exact, steps=self.reference_steps, sampler=sampler, shift=shift)
        return run._replace(config=solved)

    def references(self, runs: Iterable[Run]) -> list[Run]:
        """The different references of some runs."""
        return list({ref.key: ref for run in runs if (ref := self.reference(run)) is not None}.values())

    def describe_reference(self) -> str:
        """What the distances are measured to, for the page."""
        shift = say(self.bases[0].config.shift)
        said = f"{REFERENCE_SAMPLER}, {self.reference_steps} steps, shift {shift}, the other settings those of the clip"
        names = {run.config.sampler for run in self.runs()} & FRESH_NOISE
        return said + "".join(f"; of {name}, itself in as many steps" for name in sorted(names))

    def manifest(self) -> dict[str, object]:
        """All that decides the rows."""
        return {
            "prompts": [[run.prompt, run.seed, to_mapping(run.config)] for run in self.bases],
            "axes": [
                {"names": list(axis.names), "places": [list(place) for place in axis.places]} for axis in self.axes
            ],
            "reference_steps": self.reference_steps,
            **dict(self.about),
        }

    def command(self, run: Run) -> str:
        """The command that makes a run's clip alone."""
        return shlex.join(["python", "sample.py", run.prompt, *self.flags(run)])

    def beside(self) -> list[str]:
        """The flags that are the same for all runs: the checkpoint, what is put into it, where it computes."""
        said = ["--model", self.model] if self.model else []
        about = {name: word for name, word in self.about if word not in ("cpu", "float32")}
        for name in ("device", "dtype", "lora", "quantise", "gguf"):
            words = about.get(name, [])
            said += [f"--{name}", *([words] if isinstance(words, str) else words)] if words else []  # type: ignore[misc]
        return said

    def flags(self, run: Run) -> list[str]:
        """A run's flags, those of its settings that differ from the checkpoint's own."""
        said = ["--seed", str(run.seed), *self.beside()]
        usual = to_mapping(self.defaults)
        for name, value in to_mapping(run.config).items():
            flag = f"--{name.replace('_', '-')}"
            length = name == "frames" and usual["seconds"] is not None  # else the checkpoint's seconds would hold
            if value is None or (name == "frames" and run.config.seconds) or (value == usual[name] and not length):
                continue
            if isinstance(value, bool):
                said.append(flag if value else f"--no-{flag[2:]}")
            elif isinstance(value, str):
                said.append(f"{flag}={value}")  # it may begin with a dash
            else:
                said += [flag, *map(str, value if isinstance(value, list) else [value])]
        return said


def most_steps(bases: Sequence[Run], axes: Sequence[Axis]) -> int:
    """The most steps that any run of a sweep takes."""
    return max(int(str(change.get("steps", base.config.steps))) for change in combinations(axes) for base in bases)


@contextmanager
def hold(folder: Path, plan: Plan, *, overwrite: bool = False) -> Iterator[None]:
    """Begin a sweep's folder, or go on with the same sweep's, and keep every other process out of it meanwhile."""
    check_held(folder, plan, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another sweep is running in {folder}; wait for its end, or choose another --out") from None
    try:
        check_held(folder, plan, overwrite=overwrite)  # once more: it may have been begun in between
        if overwrite:
            clear(folder)
        save_text(folder / "sweep.json", json.dumps(plan.manifest(), indent=2, ensure_ascii=False) + "\n")
        yield
    finally:
        lock.release()


def check_held(folder: Path, plan: Plan, *, overwrite: bool) -> None:
    """Refuse a folder of something else, and without overwrite one of another sweep."""
    path = folder / "sweep.json"
    told = json.loads(json.dumps(plan.manifest()))
    if path.is_file() and not overwrite:
        held = json.loads(path.read_text(encoding="utf-8"))
        other = sorted(key for key in {*told, *held} if told.get(key) != held.get(key))
        if other:
            raise ValueError(
                f"{folder} holds another sweep (its {', '.join(other)} differ{'s' if len(other) == 1 else ''}); "
                "choose another --out, or add --overwrite to begin anew"
            )
    others = not folder.is_dir() or any(found.name != LOCK for found in folder.iterdir())
    if folder.exists() and others and not path.is_file():
        raise ValueError(f"{folder} holds something that is no sweep; choose another --out")


def clear(folder: Path) -> None:
    """Remove what a sweep wrote, and nothing else."""
    for pattern in OWN_FILES:
        for path in folder.glob(pattern):
            path.unlink()
    for name in OWN_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
