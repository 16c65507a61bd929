"""Keep the recipe of a run, and say key by key what changed when it goes on.

TrainConfig, run folder  ->  config.json;  what changed since  ->  warnings, or a refusal where the run would be another
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from videogen.config.parsing import dotted, to_mapping
from videogen.config.train import TrainConfig
from videogen.data.files import save_text
from videogen.data.json_files import read_json_object

logger = logging.getLogger(__name__)
CONFIG = "config.json"
FREE = {
    "data.workers", "data.decoded", "data.cache_gb", "dit.gradient_checkpointing",
    "optim.accumulate", "optim.lr", "optim.betas", "optim.weight_decay", "optim.warmup_steps", "optim.decay_share",
    "optim.grad_clip",
    "run.dir", "run.steps", "run.minutes", "run.save_every", "run.val_every", "run.sample_every", "run.sample_rarer",
    "run.sample_prompts",
    "run.keep", "run.resume", "run.report_to", "run.compile", "run.mixed_precision", "run.skip_bad_steps",
}  # fmt: skip
"""Settings that may change within a run: how long it is, how fast, how it steps and what it leaves behind."""
PATHS = {"data.folder", "dit.vae", "dit.text", "dit.init"}


class Change(NamedTuple):
    """A setting that is not what it was when the run was started; None where there is none."""

    name: str
    now: object
    before: object

    def __str__(self) -> str:
        """Say what the setting is and was."""
        return f"{self.name} is {self.now}, was {self.before}"

    @property
    def is_free(self) -> bool:
        """True if the run stays the same run."""
        return self.name.startswith("sample.") or setting_of(self.name) in FREE or setting_of(self.name) not in SETTINGS


def setting_of(name: str) -> str:
    """Name the setting that a dotted name belongs to: dit.known of dit.known.nothing."""
    return ".".join(name.split(".")[:2])


DEFAULTS = dict(dotted(to_mapping(TrainConfig())))
SETTINGS = {
    f"{section}.{name}" if isinstance(fields, Mapping) else section
    for section, fields in to_mapping(TrainConfig()).items()
    for name in (fields if isinstance(fields, Mapping) else ("",))
}


def changes_since(config: TrainConfig, run_dir: Path) -> list[Change]:
    """List the settings that changed since the run in a folder was started; a ValueError if its config is damaged."""
    path = run_dir / CONFIG
    if not path.exists():
        return []
    try:
        before = dict(dotted(read_json_object(path)))
    except ValueError:
        raise ValueError(
            f"{path} is damaged: it is no recipe in JSON, so what changed since cannot be told; remove it to go on"
        ) from None
    now = dict(dotted(json.loads(json.dumps(to_mapping(config)))))
    # An earlier version, which did not know a setting yet, did what is its default now.
    before = {
        name: value for name, value in DEFAULTS.items() if setting_of(name) not in set(map(setting_of, before))
    } | before
    changes = [Change(name, now.get(name), before.get(name)) for name in sorted(before.keys() | now.keys())]
    return [change for change in changes if change.now != change.before and not is_same_value(change)]


def is_same_value(change: Change) -> bool:
    """True if a folder is only written in another way, or a precision left to the machine."""
    if change.name == "run.mixed_precision" and "auto" in (change.now, change.before):
        return True
    paths = [value for value in (change.now, change.before) if isinstance(value, str)]
    return change.name in PATHS and len(paths) == 2 and Path(paths[0]).resolve() == Path(paths[1]).resolve()


def check_config(config: TrainConfig, run_dir: Path) -> None:
    """Raise a ValueError that names each setting whose change would make another run of one that has steps."""
    if any(run_dir.glob("step_*")) and (changes := [str(c) for c in changes_since(config, run_dir) if not c.is_free]):
        raise ValueError(
            f"the run in {run_dir} was begun with other settings: {'; '.join(changes)}; give those that it had, "
            "another --run folder, or --accept-changes to go on with these"
        )


def write_config(config: TrainConfig, run_dir: Path) -> None:
    """Write the resolved config to the run folder, and warn of each setting that changed since the run was started."""
    for change in changes_since(config, run_dir):
        logger.warning("unlike before, %s", change)
    save_text(run_dir / CONFIG, json.dumps(to_mapping(config), indent=2) + "\n")
