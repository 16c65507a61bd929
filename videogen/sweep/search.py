"""Part of a sweep's settings, chosen by Optuna: its multi-objective search over quality and seconds.

    Plan, how many  ->  the settings tried;  search.log in the folder remembers, and the same command goes on

Each trial is one setting under every prompt and seed. Axes of numbers are searched in their order, others by name.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from videogen.sweep.axes import Axis, Changes, say
from videogen.sweep.plan import Plan
from videogen.sweep.results import Row, read_rows
from videogen.sweep.summary import numbers, quality_name

if TYPE_CHECKING:
    from optuna import Study, Trial

    from videogen.sweep.runner import Worker

MOST_REPEATS = 20  # draws of a setting that was drawn before, until the search is taken to be done


def check_optuna() -> None:
    """A sentence where there is nothing to search with."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ValueError("--search needs Optuna: pip install 'videogen[sweep]'") from None


def search(worker: Worker, plan: Plan, folder: Path, num_settings: int) -> list[Changes]:
    """Try so many different settings, those of earlier calls included."""
    if num_settings >= len(plan.settings):  # nothing to choose
        worker.run(plan.runs())
        return plan.settings
    study = open_study(folder)
    tried: dict[tuple[object, ...], Changes] = {}
    for trial in study.trials:  # of a call that was stopped, one is still without its answer
        if "places" in trial.user_attrs:
            answer(study, trial.number, worker, plan, remember(tried, plan.axes, trial.user_attrs["places"]))
    repeats = 0
    while len(tried) < num_settings and repeats < MOST_REPEATS:
        before, trial = len(tried), study.ask()
        places = [suggest(trial, axis) for axis in plan.axes]
        trial.set_user_attr("places", places)
        answer(study, trial.number, worker, plan, remember(tried, plan.axes, places))
        repeats = repeats + 1 if len(tried) == before else 0
    return list(tried.values())


def answer(study: Study, number: int, worker: Worker, plan: Plan, setting: Changes) -> None:
    """Run what is missing of a trial's setting, and tell the study what came of it."""
    from optuna.trial import TrialState

    worker.run(plan.runs([setting]))
    if study.trials[number].state == TrialState.RUNNING:
        rating = rate(plan, setting, read_rows(worker.folder))
        study.tell(number, rating, state=None if rating else TrialState.FAIL)


def remember(tried: dict[tuple[object, ...], Changes], axes: Sequence[Axis], places: Sequence[int]) -> Changes:
    """The setting at a place on each axis, noted under its values."""
    pairs = [zip(axis.names, axis.places[i], strict=True) for axis, i in zip(axes, places, strict=True)]
    setting = {name: value for pair in pairs for name, value in pair}
    return tried.setdefault(tuple(setting.values()), setting)


def open_study(folder: Path) -> Study:
    """The folder's study, begun or gone on with."""
    check_optuna()
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / "search.log"
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(
        study_name="sweep", storage=storage, directions=["maximize", "minimize"], load_if_exists=True
    )
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials), n_startup_trials=8)
    return study


def suggest(trial: Trial, axis: Axis) -> int:
    """A place on an axis."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for (value, *_) in axis.places):
        return trial.suggest_int(axis.name, 0, len(axis.places) - 1)
    named = [", ".join(map(say, place)) for place in axis.places]
    return named.index(trial.suggest_categorical(axis.name, named))


def rate(plan: Plan, setting: Changes, rows: dict[str, Row]) -> tuple[float, float] | None:
    """Mean quality and seconds of a setting's clips; none where one failed or nothing measures quality."""
    found = [rows[run.key] for run in plan.runs([setting]) if run.key in rows]
    quality = quality_name(found)
    if quality is None or any(row.get("error") for row in found):
        return None
    return statistics.fmean(numbers(found, quality)), statistics.fmean(numbers(found, "total_seconds"))
