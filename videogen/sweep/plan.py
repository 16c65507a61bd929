"""Plan what a sweep runs, and claim the folder that holds it.

    prompts, seeds, settings, axes  ->  Plan  ->  [Run(prompt, seed, SampleConfig)]

A run's key is a hash of what decides its clip, so the same command finds its own rows again. The folder's sweep.json
names the sweep that it holds; a command for another sweep is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

from videogen.config.parsing import to_mapping
from videogen.config.sample import SampleConfig
from videogen.data.files import save_text, slug
from videogen.data.folder_lock import lock_folder as hold_lock
from videogen.data.json_files import read_json_object
from videogen.packing.patch_schedule import parse_patch_shares
from videogen.sweep.axes import Axis, Changes, combinations, format_value, with_changes

# Fields of effort: the same clip for less, measured by its distance to a reference. All others are of intent: another
# clip, which only a reading of it can judge.
EFFORT_FIELDS = ("steps", "sampler", "patch", "first_block_cache", "mag_cache")
SDE_SAMPLERS = frozenset({"dpmpp_2m_sde"})  # each of them solves an equation of its own
REFERENCE_SAMPLER = "dpmpp_2m"  # second order from one evaluation a step
OWN_FILES = (
    "results*", ".results.lock", "report.html", "grid.mp4", "contact.png", "pareto.png", "best.toml", "search.log",
    "sweep.json",
)  # fmt: skip
OWN_FOLDERS = ("clips", "references")
LOCK = "sweep.lock"
UNSAFE = re.compile(r"[^A-Za-z0-9._+-]")  # in a link of the page, or a file name
MAX_NAME = 80  # characters before the key: a file system allows 255 bytes


class Run(NamedTuple):
    """One clip of a sweep."""

    prompt: str
    seed: int
    config: SampleConfig

    @property
    def key(self) -> str:
        """A short hash of what decides the clip."""
        text = json.dumps([self.prompt, self.seed, to_mapping(self.config)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep: every prompt and seed with its own settings, changed along the axes."""

    bases: tuple[Run, ...]
    """Prompts, seeds and settings before the axes change them."""
    axes: tuple[Axis, ...]
    """The settings to try."""
    reference_steps: int = 0
    """Steps of the run that each clip is compared with; 0 for no reference."""
    model: str = ""
    """The checkpoint folder as the command names it, for the commands on the page; empty for the default one."""
    defaults: SampleConfig
    """The checkpoint's own settings."""
    unknown_words: tuple[str, ...] = ()
    """Words of the prompts that the checkpoint never met in training, for the page."""
    about: tuple[tuple[str, object], ...] = ()
    """Further facts on which two commands for one folder must agree: checkpoint, what is known, device, score, ..."""

    def __post_init__(self) -> None:
        if not self.bases:
            raise ValueError("a sweep needs at least one prompt; give one, or a file of them")
        if not self.axes:
            raise ValueError("a sweep needs at least one axis, such as steps=4,8,16")
        if "adain" in self.names:
            raise ValueError("adain is for clips made in windows, and a sweep makes each clip at once; leave it out")
        for run in self.bases:
            for name in self.names:
                if getattr(run.config, name) != getattr(self.bases[0].config, name):
                    raise ValueError(f"the prompts file sets {name}, which is also an axis; leave one of them out")
        self.runs()  # A combination that its config refuses stops the sweep now, not after hours.

    @property
    def settings(self) -> list[Changes]:
        """Every combination of the axes."""
        return combinations(self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that are on axes."""
        return tuple(name for axis in self.axes for name in axis.names)

    @property
    def finest_patch(self) -> str:
        """The patches on the axes that make the most tokens; the checkpoint's base size where that is among them."""
        schedules = [str(setting["patch"]) for setting in self.settings]
        return min(schedules, key=lambda text: tokens_saved(text) if text else 0.0)

    def runs(self, settings: Iterable[Changes] | None = None) -> list[Run]:
        """List every prompt and seed under some settings, by default under all."""
        settings = self.settings if settings is None else settings
        return [base._replace(config=with_changes(base.config, setting)) for setting in settings for base in self.bases]

    def reference(self, run: Run) -> Run | None:
        """Return the run that solves the same equation in many steps, so that only the solver's error differs."""
        if not self.reference_steps:
            return None
        sampler = run.config.sampler if run.config.sampler in SDE_SAMPLERS else REFERENCE_SAMPLER
        exact = {"first_block_cache": 0.0, "mag_cache": 0.0}
        patch = self.finest_patch if "patch" in self.names else run.config.patch
        return run._replace(
            config=replace(run.config, steps=self.reference_steps, sampler=sampler, patch=patch, **exact)
        )

    def references(self, runs: Iterable[Run]) -> list[Run]:
        """List the distinct references of some runs."""
        return list({ref.key: ref for run in runs if (ref := self.reference(run)) is not None}.values())

    def describe_reference(self) -> str:
        """Describe on the page the run that clips are compared with."""
        text = f"{REFERENCE_SAMPLER}, {self.reference_steps} steps, the other settings those of the clip"
        names = {run.config.sampler for run in self.runs()} & SDE_SAMPLERS
        return text + "".join(f"; of {name}, itself in as many steps" for name in sorted(names))

    def name_run(self, run: Run) -> str:
        """Name a run by prompt, settings and seed, as steps=4,seed=0-<key>; the key alone makes it unique."""
        values = {name: format_value(getattr(run.config, name)) for name in self.names}
        prompts = {"prompt": run.prompt} if len({base.prompt for base in self.bases}) > 1 else {}
        pairs = prompts | values | {"seed": str(run.seed)}
        words = (f"{name}={re.sub('-+', '-', slug(text) if name == 'prompt' else UNSAFE.sub('-', text))}"
                 for name, text in pairs.items())  # fmt: skip
        return f"{','.join(words)[:MAX_NAME]}-{run.key}"

    def manifest(self) -> dict[str, object]:
        """Return all that decides the rows, as sweep.json holds it."""
        return {
            "prompts": [[run.prompt, run.seed, to_mapping(run.config)] for run in self.bases],
            "axes": [
                {"names": list(axis.names), "places": [list(place) for place in axis.places]} for axis in self.axes
            ],
            "reference_steps": self.reference_steps,
            **dict(self.about),
        }

    def command(self, run: Run) -> str:
        """Return the shell command that samples a run's clip alone."""
        return shlex.join(["python", "sample.py", run.prompt, *self.flags(run)])

    def shared_flags(self, run: Run | None = None) -> list[str]:
        """List the flags that runs share, or those of one: checkpoint, adapters, precision, device, what is known."""
        words = ["--model", self.model] if self.model else []
        about = dict(self.about) if run is None else facts_of(run, dict(self.about))
        about = {name: value for name, value in about.items() if value != "cpu"}
        parts = ("vae", "text", "model_2", "image_encoder", "device", "dtype", "lora", "quantise", "gguf")
        for name in (*parts, "video", "mask", "fit", "background"):
            if values := about.get(name):
                words += [f"--{name.replace('_', '-')}", *([values] if isinstance(values, str) else values)]  # type: ignore[misc]
        for image in cast("list[str]", about.get("image", [])):
            words += ["--image", image]
        return words

    def flags(self, run: Run) -> list[str]:
        """List a run's flags: the shared ones, and its settings that differ from the checkpoint's own."""
        words = ["--seed", str(run.seed), *self.shared_flags(run)]
        defaults = to_mapping(self.defaults)
        for name, value in to_mapping(run.config).items():
            flag = f"--{name.replace('_', '-')}"
            # Without --frames, a checkpoint's length in seconds would override its length in frames.
            needed = name == "frames" and defaults["seconds"] is not None
            if value is None or (name == "frames" and run.config.seconds) or (value == defaults[name] and not needed):
                continue
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            elif isinstance(value, str):
                words.append(f"{flag}={value}")  # one word, because the value may begin with a dash
            else:
                words += [flag, *map(str, value if isinstance(value, list) else [value])]
        return words


def facts_of(run: Run, about: Mapping[str, object]) -> dict[str, object]:
    """Take what holds for a run: one of strength 1 begins at noise, and has nothing of a video that is a start."""
    left_out = ("video", "video_sha256") if run.config.strength == 1 and "mask" not in about else ()
    return {name: value for name, value in about.items() if name not in left_out}


def tokens_saved(schedule: str) -> float:
    """Average the latent cells of a token over the steps of a patch schedule."""
    return 1 / sum(share / math.prod(patch) for patch, share in parse_patch_shares(schedule))


def max_steps(bases: Sequence[Run], axes: Sequence[Axis]) -> int:
    """Return the most steps that any run of a sweep takes."""
    return max(int(str(setting.get("steps", base.config.steps))) for setting in combinations(axes) for base in bases)


@contextmanager
def lock_folder(folder: Path, plan: Plan, *, overwrite: bool = False) -> Iterator[None]:
    """Start a sweep's folder or resume it, and lock it against other processes; a ValueError if it cannot be used."""
    check_sweep_folder(folder, plan, overwrite=overwrite)
    with hold_lock(folder, LOCK, task="sweep", flag="--out"):
        check_sweep_folder(folder, plan, overwrite=overwrite)  # again: another process may have started it meanwhile
        if overwrite:  # Delete what a sweep writes, and nothing else.
            for path in (path for pattern in OWN_FILES for path in folder.glob(pattern)):
                path.unlink()
            for name in OWN_FOLDERS:
                shutil.rmtree(folder / name, ignore_errors=True)
        save_text(folder / "sweep.json", json.dumps(plan.manifest(), indent=2, ensure_ascii=False) + "\n")
        yield


def check_sweep_folder(folder: Path, plan: Plan, *, overwrite: bool) -> None:
    """Raise a ValueError if a folder holds something else than a sweep or, without overwrite, another sweep."""
    path = folder / "sweep.json"
    manifest = json.loads(json.dumps(plan.manifest()))
    if path.exists() and not overwrite:
        try:
            saved = read_json_object(path)
        except ValueError as error:
            raise ValueError(f"{error}; choose another --out, or add --overwrite to begin anew") from None
        changed = sorted(key for key in {*manifest, *saved} if manifest.get(key) != saved.get(key))
        if changed:
            raise ValueError(
                f"{folder} holds another sweep (its {', '.join(changed)} differ{'s' if len(changed) == 1 else ''}); "
                "choose another --out, or add --overwrite to begin anew"
            )
    is_empty = folder.is_dir() and all(item.name == LOCK for item in folder.iterdir())
    if folder.exists() and not is_empty and not path.is_file():
        raise ValueError(f"{folder} holds something that is no sweep; choose another --out")
