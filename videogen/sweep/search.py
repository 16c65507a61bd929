"""Try a part of a sweep's settings, chosen by Optuna's multi-objective search over quality and seconds.

    Plan, number of settings  ->  the settings tried;  search.log in the folder keeps the study for the next call

Each trial is one setting under every prompt and seed. An axis of numbers is searched in order, another by category.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from videogen.sweep.axes import Axis, Changes
from videogen.sweep.plan import Plan
from videogen.sweep.results import read_rows
from videogen.sweep.summary import numbers, quality_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study, Trial

    from videogen.sweep.runner import Worker

MAX_REPEATS = 20  # suggestions in a row of settings already tried, after which the search ends


def check_optuna() -> None:
    """Raise a ValueError that says how to install Optuna, if it is missing."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ValueError("--search needs Optuna: pip install 'videogen[sweep]'") from None


def search(worker: Worker, plan: Plan, folder: Path, num_settings: int) -> list[Changes]:
    """Try so many different settings, those of earlier calls included."""
    if num_settings >= len(plan.settings):  # A search has nothing to choose.
        worker.run(plan.runs())
        return plan.settings
    study = open_study(folder)
    from optuna.trial import TrialState

    tried: dict[tuple[object, ...], Changes] = {}

    def run_trial(number: int, places: Sequence[int]) -> None:
        pairs = [zip(axis.names, axis.places[i], strict=True) for axis, i in zip(plan.axes, places, strict=True)]
        setting = {name: value for pair in pairs for name, value in pair}
        setting = tried.setdefault(tuple(setting.values()), setting)
        worker.run(plan.runs([setting]))  # which skips the runs that have a row
        if study.trials[number].state == TrialState.RUNNING:
            objectives = mean_objectives(worker.folder, plan, setting)
            study.tell(number, objectives, state=None if objectives else TrialState.FAIL)

    for trial in study.trials:  # If an earlier call was stopped, its last trial still has to be completed.
        if "places" in trial.user_attrs:
            run_trial(trial.number, trial.user_attrs["places"])
    num_repeats = 0
    while len(tried) < num_settings and num_repeats < MAX_REPEATS:
        num_tried, trial = len(tried), study.ask()
        places = [suggest_place(trial, axis) for axis in plan.axes]
        trial.set_user_attr("places", places)
        run_trial(trial.number, places)
        num_repeats = num_repeats + 1 if len(tried) == num_tried else 0
    return list(tried.values())


def open_study(folder: Path) -> Study:
    """Open the folder's study, or create it."""
    check_optuna()
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / "search.log")))
    study = optuna.create_study(
        study_name="sweep", storage=storage, directions=["maximize", "minimize"], load_if_exists=True
    )
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials), n_startup_trials=8)
    return study


def suggest_place(trial: Trial, axis: Axis) -> int:
    """Let the study suggest a place on an axis."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for (value, *_) in axis.places):
        return trial.suggest_int(axis.name, 0, len(axis.places) - 1)
    return axis.labels.index(trial.suggest_categorical(axis.name, axis.labels))


def mean_objectives(folder: Path, plan: Plan, setting: Changes) -> tuple[float, float] | None:
    """Average quality and seconds over a setting's clips; None if a clip failed or nothing measures quality."""
    saved = read_rows(folder)
    rows = [saved[run.key] for run in plan.runs([setting]) if run.key in saved]
    quality = quality_name(rows)
    if quality is None or any(row.get("error") for row in rows):
        return None
    return statistics.fmean(numbers(rows, quality)), statistics.fmean(numbers(rows, "total_seconds"))
