"""`sample.py ... --sweep`: plan the runs, run them, and print the findings.

    SampleArgs, CheckpointInfo  ->  Plan  ->  rows  ->  report.html, best.toml, grid.mp4, contact.png, pareto.png

Imports that cost time (torch, matplotlib, optuna) stand where they are used, so that a wrong flag is answered at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from videogen.cli.clip_files import OUT, STDOUT, check_files, check_folder
from videogen.cli.dry_run import format_duration
from videogen.cli.known_flags import check_places, check_rows
from videogen.cli.known_material import load_material
from videogen.cli.processes import find_team
from videogen.cli.provenance import provenance
from videogen.cli.sample import load, progress
from videogen.cli.sample_arguments import SampleArgs
from videogen.cli.sample_jobs import check_settings, list_rows
from videogen.cli.words import note_unknown_words
from videogen.config.sample import MINI
from videogen.data.files import slug
from videogen.data.video_io import WRITABLE
from videogen.data.words import ANY_KIND, read_words, unknown_words
from videogen.models.checkpoint_config import CheckpointInfo
from videogen.models.hub import checkpoint_name
from videogen.sampling.cost import clip_flop, clip_seconds, num_evaluations
from videogen.sweep.axes import Axis, read_axes
from videogen.sweep.choice import MIN_CLIPS, intents
from videogen.sweep.findings import describe_intents
from videogen.sweep.plan import Plan, Run, check_sweep_folder, lock_folder, max_steps
from videogen.sweep.results import Row, gather_rows, read_rows, unfinished_runs

if TYPE_CHECKING:
    from videogen.sampling.clip_sampler import ClipSampler
    from videogen.sampling.known import Known
    from videogen.sweep.measures import Score
    from videogen.sweep.runner import Team

JUDGE = "videogen.toybox.judge:score"
REFERENCE_FACTOR = 4  # steps of the references against the most steps of the axes


def run_sweep(args: SampleArgs, info: CheckpointInfo) -> int:
    """Plan a sweep, check everything, run it and print the findings."""
    folder = args.out or OUT / f"sweep-{slug((args.prompt or ('prompts',))[0])}"
    if folder.suffix.lower() in WRITABLE or folder == STDOUT:
        raise ValueError(f"--out of a sweep is a folder, got {folder}")
    if args.storyboard is not None or args.extend is not None:
        flag = "extend" if args.storyboard is None else "storyboard"
        raise ValueError(
            f"a sweep makes each clip at once, and --{flag} makes one in windows; leave it out, or make those clips "
            "one by one (a sweep takes --image, and --video with --mask or --strength)"
        )
    check_folder(folder)
    plan = make_plan(args, info)
    check_settings({run.config for run in plan.runs()}, info)
    check_rows([run.config for run in plan.runs()], args)
    for config in {run.config for run in plan.runs()}:
        check_places(replace(args, sample=config), info)
    note_unknown_words((run.prompt for run in plan.bases), info.folder)
    name = args.score or choose_judge(plan, info)
    if args.dry_run:
        print(estimate_sweep(plan, args, info, name))
        return 0
    from videogen.sweep.plots import check_matplotlib
    from videogen.sweep.report import publish
    from videogen.sweep.search import check_optuna

    for check in (check_matplotlib, *([check_optuna] if args.search else [])):
        check()
    team, device = find_team(args)
    if team.num > 1 and args.search:
        raise ValueError("--search runs in one process; leave accelerate launch out, or --search")
    if name is not None and args.score is None:
        print(f"note: the clips are judged by what their captions say (--score {name})", file=sys.stderr)
    score, score_about = find_score(name)
    plan = replace(plan, about=plan.about + tuple(score_about.items()))
    check_sweep_folder(folder, plan, overwrite=args.overwrite)
    check_files([folder / "clips" / "clip.mp4"])
    args = replace(args, device=device)
    known = load_material(args, info).known
    # Loading comes before the folder is touched, so that a failure to load has cleared and claimed nothing.
    pipeline = load(args, info) if args.overwrite or unfinished_runs(folder, plan) else None
    team.wait()
    with lock_folder(folder, plan, overwrite=args.overwrite) if team.rank == 0 else nullcontext():
        team.wait()
        keys, stopped, status = [run.key for run in plan.runs()], False, 0
        try:
            if pipeline is not None:
                run_plan(pipeline, plan, folder, args, team, score, known)
        except KeyboardInterrupt:
            if not read_rows(folder):
                raise
            stopped = True
        if team.rank == 0:
            rows = gather_rows(folder, keys)
            print_findings(folder, rows, publish(folder, plan, rows).findings, as_json=args.json)
            status = int(all(row.get("error") for row in rows))
    if stopped:
        raise KeyboardInterrupt
    return status


def make_plan(args: SampleArgs, info: CheckpointInfo) -> Plan:
    """Plan the sweep that the flags ask for."""
    axes = tuple(resolve_sizes(axis, info) for axis in read_axes(args.sweep))
    bases = tuple(Run(*row) for row in list_rows(args, info))
    if len({(run.prompt, run.seed) for run in bases}) < len(bases):
        raise ValueError("a sweep needs each prompt once with each seed, and one stands there twice")
    steps = REFERENCE_FACTOR * max_steps(bases, axes) if args.reference is None else args.reference
    if steps < 0:
        raise ValueError(f"--reference must be a number of steps, or 0 for none, got {steps}")
    words = read_words(info.folder)
    about = {key: value for key, value in provenance(args).items() if key != "versions"}
    return Plan(
        bases=bases,
        axes=axes,
        reference_steps=steps,
        model="" if args.model == MINI else str(info.files.model) if info.files else checkpoint_name(args.model),
        defaults=info.defaults,
        about=tuple(about.items()),
        unknown_words=tuple(dict.fromkeys(word for run in bases for word in unknown_words(run.prompt, words))),
    )


def resolve_sizes(axis: Axis, info: CheckpointInfo) -> Axis:
    """Replace the shapes among the sizes of an axis, such as 9:16, by sizes in pixels."""

    def resolve(name: str, value: object) -> object:
        return info.resolve_size(replace(info.defaults, size=str(value))).size if name == "size" else value

    return axis._replace(places=tuple(tuple(map(resolve, axis.names, place)) for place in axis.places))


def estimate_sweep(plan: Plan, args: SampleArgs, info: CheckpointInfo, score_name: str | None) -> str:
    """Estimate the number of runs and their seconds; nothing is run but one small matrix product."""
    runs = plan.runs()
    num_settings = min(args.search or len(plan.settings), len(plan.settings))
    share = num_settings / len(plan.settings)  # a search chooses some of them, and each is as likely
    references = plan.references(runs)
    seconds, reference_seconds = (
        clip_seconds(share * sum(clip_flop(info, run.config) for run in some)) if args.device == "cpu" else None
        for some in (runs, references)
    )
    row = {
        "runs": num_settings * len(plan.bases),
        "settings": num_settings,
        "references": round(share * len(references)),
        "evaluations": round(share * sum(num_evaluations(run.config) for run in runs)),
    }
    if seconds is not None and reference_seconds is not None:
        times = {"seconds": seconds + reference_seconds, "reference_seconds": reference_seconds}
        row |= {name: float(f"{value:.2g}") for name, value in times.items()}
    return json.dumps(row) if args.json else describe_estimate(plan, row, score_name)


def describe_estimate(plan: Plan, row: Mapping[str, float], score_name: str | None) -> str:
    """Describe the estimate of a sweep in a person's words: its clips and references, what judges, what all takes."""
    prompts, seeds = len({run.prompt for run in plan.bases}), len({run.seed for run in plan.bases})
    nouns = {"prompt": prompts, "seed": seeds} if prompts * seeds == len(plan.bases) else {"row": len(plan.bases)}
    counts = {"setting": row["settings"], **nouns}
    product = " x ".join(f"{num} {noun}{'' if num == 1 else 's'}" for noun, num in counts.items())
    lines = [f"{row['runs']} clips: {product}; {row['evaluations']:,} evaluations of the network."]
    if num := row["references"]:
        lines.append(
            f"{num} references of {plan.reference_steps} steps: the same clips solved almost exactly, against which "
            "PSNR measures what fewer steps, another sampler or a cache change. --reference 0 leaves them out, and "
            "PSNR with them."
        )
    lines.append(describe_quality(plan, score_name))
    if len(plan.bases) < MIN_CLIPS:
        clips = "A single clip" if len(plan.bases) == 1 else f"Only {len(plan.bases)} clips"
        lines.append(f"{clips} of each setting cannot end in a recommendation; {MIN_CLIPS} or more may: --seeds 0:7:8.")
    if "seconds" in row:
        whole, of_references = (format_duration(row[name]) for name in ("seconds", "reference_seconds"))
        lines.append(f"About {whole} in all" + (f", {of_references} of them for the references." if num else "."))
    return "\n".join(lines)


def describe_quality(plan: Plan, score_name: str | None) -> str:
    """Say what will compare the settings, or that the eye has to."""
    if score_name is not None:
        what = "how much of its caption a clip shows, read by the toybox's judge" if score_name == JUDGE else "your own"
        return f"Quality is {what} (--score {score_name})."
    if not plan.reference_steps:
        return "Nothing measures quality: the clips stand side by side."
    return describe_intents(fields) if (fields := intents(plan.axes)) else "Quality is that PSNR."


def choose_judge(plan: Plan, info: CheckpointInfo) -> str | None:
    """Choose the toybox's judge for axes of intent, where checkpoint and prompts are of its world."""
    if not intents(plan.axes) or all(word.kind == ANY_KIND for word in read_words(info.folder)):
        return None
    from videogen.toybox.judge import parse

    try:
        for run in plan.bases:
            parse(run.prompt)
    except ValueError:  # a sentence beyond the judge's grammar
        return None
    return JUDGE


def find_score(name: str | None) -> tuple[Score | None, dict[str, object]]:
    """Load the function that --score names, and identify it."""
    from videogen.sweep.measures import load_score, score_id

    score = load_score(name) if name else None
    return score, score_id(score)


def run_plan(
    pipeline: ClipSampler,
    plan: Plan,
    folder: Path,
    args: SampleArgs,
    team: Team,
    score: Score | None,
    known: Sequence[Known],
) -> None:
    """Run what has no row yet."""
    from videogen.sweep.report import growing_page
    from videogen.sweep.runner import Worker
    from videogen.sweep.search import search

    left, about = unfinished_runs(folder, plan), provenance(args)
    share = min(1.0, args.search / len(plan.settings)) if args.search else 1.0
    total = round(share * sum(num_evaluations(run.config) for run in left))
    grow = growing_page(folder, plan) if team.rank == 0 else lambda row: None

    def tell(row: Row) -> None:
        grow(row)
        if args.json:
            print_row(row)

    with progress(total, "evaluations", quiet=args.quiet or team.rank > 0) as on_evaluation:
        worker = Worker(
            pipeline,
            plan,
            folder,
            score=score,
            team=team,
            about=about,
            save_latents=args.save_latents,
            known=known,
            on_row=tell,
            on_evaluation=on_evaluation,
        )
        if args.search:
            search(worker, plan, folder, args.search)
        else:
            worker.run(plan.runs())


def print_row(row: Row) -> None:
    """Print a row on stdout as it is finished."""
    print(json.dumps(row), flush=True)


def print_findings(folder: Path, rows: Sequence[Row], findings: Sequence[str], *, as_json: bool) -> None:
    """Print the findings, and the files that show them."""
    page, best = folder / "report.html", folder / "best.toml"
    if as_json:
        files = {"report": str(page), "best": str(best) if best.is_file() else None, "rows": len(rows)}
        print(json.dumps(files | {"findings": list(findings)}))
        return
    for line in (*findings, page, *([best] if best.is_file() else [])):
        print(line)
