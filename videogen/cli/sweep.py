"""`sample.py ... --sweep`: flags onto a plan, the plan carried out, what was found on stdout.

    SampleArgs  ->  Plan  ->  rows  ->  report.html, best.toml, grid.mp4, contact.png, pareto.png

Imports that cost time (torch, matplotlib, optuna) stand where they are used, so that a wrong flag is answered at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from videogen.cli.provenance import provenance
from videogen.cli.sample import load, progress
from videogen.cli.sample_arguments import SampleArgs
from videogen.cli.sample_jobs import SUFFIXES, check_folder, check_settings, list_orders, slug
from videogen.config.sample import MINI, resolve_frames
from videogen.models.checkpoint_config import check_images, known_patches, pixel_stride, read_defaults
from videogen.models.hub import called
from videogen.packing.patch_schedule import mean_share
from videogen.sampling.cost import TIME_STRIDE, count_tokens, num_evaluations
from videogen.sweep.axes import read_axes
from videogen.sweep.plan import Plan, Run, check_held, hold, most_steps
from videogen.sweep.results import Row, arrow, gather, read_rows, unfinished

if TYPE_CHECKING:
    from videogen.sampling.pipeline import VideoPipeline
    from videogen.sweep.measures import Score
    from videogen.sweep.runner import Team

REFERENCE_FACTOR = 4  # times the most steps of the axes


def run_sweep(args: SampleArgs) -> int:
    """Plan, check everything, run, show."""
    folder = args.out or Path("out") / f"sweep-{slug((args.prompt or ('prompts',))[0])}"
    if folder.suffix.lower() in SUFFIXES:
        raise ValueError(f"--out of a sweep is a folder, got {folder}")
    if args.image or args.last_image:
        raise ValueError("a sweep takes prompts alone; leave --image out, or make those clips one by one")
    check_folder(folder)
    check_images(args.model, None, None)
    plan = make_plan(args)
    check_settings({run.config for run in plan.runs()}, args.model)
    if args.dry_run:
        print(foresee(plan, args))
        return 0
    from videogen.sweep.plots import check_matplotlib
    from videogen.sweep.report import publish
    from videogen.sweep.search import check_optuna

    for check in (arrow, check_matplotlib, *([check_optuna] if args.search else [])):
        check()
    team, device = find_team(args)
    if team.num > 1 and args.search:
        raise ValueError("--search runs in one process; leave accelerate launch out, or --search")
    score, told = find_score(args.score)
    plan = replace(plan, about=plan.about + tuple(told.items()))
    check_held(folder, plan, overwrite=args.overwrite)
    args = replace(args, device=device)  # type: ignore[arg-type]  # cuda:1, too
    # Loaded before the folder is touched: what cannot be loaded has cleared and claimed nothing.
    pipeline = load(args) if args.overwrite or unfinished(folder, plan) else None
    team.wait()
    with hold(folder, plan, overwrite=args.overwrite) if team.rank == 0 else nullcontext():
        team.wait()
        keys, stopped, status = [run.key for run in plan.runs()], False, 0
        try:
            if pipeline is not None:
                carry_out(pipeline, plan, folder, args, team, score)
        except KeyboardInterrupt:
            if team.num > 1 or not read_rows(folder):  # the others' rows are still being written
                raise
            stopped = True
        if team.rank == 0:
            rows = gather(folder, keys)
            report(folder, rows, publish(folder, plan, rows).findings, as_json=args.json)
            status = int(all(row.get("error") for row in rows))
    if stopped:
        raise KeyboardInterrupt
    return status


def make_plan(args: SampleArgs) -> Plan:
    """The sweep that the flags ask for."""
    axes = read_axes(args.sweep)
    bases = tuple(Run(*order) for order in list_orders(args))
    if len({(run.prompt, run.seed) for run in bases}) < len(bases):
        raise ValueError("a sweep needs each prompt once with each seed, and one stands there twice")
    steps = REFERENCE_FACTOR * most_steps(bases, axes) if args.reference is None else args.reference
    if steps < 0:
        raise ValueError(f"--reference must be a number of steps, or 0 for none, got {steps}")
    about = {key: value for key, value in provenance(args).items() if key != "versions"}
    return Plan(
        bases=bases,
        axes=axes,
        reference_steps=steps,
        model="" if args.model == MINI else called(args.model),
        defaults=read_defaults(args.model),
        about=tuple(about.items()),
    )


def foresee(plan: Plan, args: SampleArgs) -> str:
    """How many runs, and about how long; nothing is run but one small matrix product."""
    from videogen.sampling.cost import clip_flop, clip_seconds

    runs = plan.runs()
    num_settings = min(args.search or len(plan.settings), len(plan.settings))
    share = num_settings / len(plan.settings)  # of a search, which may choose any
    flop, stride, references = 0.0, pixel_stride(args.model), plan.references(runs)
    base = known_patches(args.model)[0]
    for run in (*runs, *references):
        frames = resolve_frames(run.config, TIME_STRIDE)
        pixels = frames * run.config.width * run.config.height
        tokens = round(count_tokens(run.config, stride) * mean_share(run.config, base))
        flop += share * clip_flop(args.model, tokens=tokens, evaluations=num_evaluations(run.config), pixels=pixels)
    told = {
        "runs": num_settings * len(plan.bases),
        "settings": num_settings,
        "references": round(share * len(references)),
        "evaluations": round(share * sum(num_evaluations(run.config) for run in runs)),
        **({"seconds": round(clip_seconds(flop), 1)} if args.device == "cpu" else {}),
    }
    return json.dumps(told) if args.json else "  ".join(f"{key} {value}" for key, value in told.items())


def find_team(args: SampleArgs) -> tuple[Team, str]:
    """Which of the processes of `accelerate launch` this is, and its device."""
    from videogen.sweep.runner import Team

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team(), args.device
    from accelerate import PartialState

    state = PartialState(cpu=args.device == "cpu", timeout=timedelta(days=7))  # one may wait long for another's pack
    return Team(state.process_index, state.num_processes, state.wait_for_everyone), str(state.device)


def find_score(name: str | None) -> tuple[Score | None, dict[str, object]]:
    """The plug that --score names, and what it is known by."""
    from videogen.sweep.measures import load_score, score_id

    score = load_score(name) if name else None
    return score, score_id(score)


def carry_out(
    pipeline: VideoPipeline, plan: Plan, folder: Path, args: SampleArgs, team: Team, score: Score | None
) -> None:
    """Run what has no row yet."""
    left = unfinished(folder, plan)
    from videogen.sweep.runner import Worker
    from videogen.sweep.search import search

    about = provenance(args)
    share = min(1.0, args.search / len(plan.settings)) if args.search else 1.0
    total = round(share * sum(num_evaluations(run.config) for run in left))
    with progress(total, "evaluations") if team.rank == 0 else nullcontext(lambda: None) as tick:
        worker = Worker(pipeline, plan, folder, score=score, team=team, about=about, tick=tick)
        worker.save_latents = args.save_latents
        worker.on_row = tell if args.json else worker.on_row
        if args.search:
            search(worker, plan, folder, args.search)
        else:
            worker.run(plan.runs())


def tell(row: Row) -> None:
    """A row on stdout as it ends."""
    print(json.dumps(row), flush=True)


def report(folder: Path, rows: Sequence[Row], findings: Sequence[str], *, as_json: bool) -> None:
    """What was found, and where to look."""
    page, best = folder / "report.html", folder / "best.toml"
    if as_json:
        told = {"report": str(page), "best": str(best) if best.is_file() else None, "rows": len(rows)}
        print(json.dumps(told | {"findings": list(findings)}))
        return
    for line in (*findings, page, *([best] if best.is_file() else [])):
        print(line)
