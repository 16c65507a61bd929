"""Train on a folder of videos from the first look at it to a checkpoint, by one plan in one run folder.

folder, minutes  ->  RunPlan  ->  run/vae (where a VAE is trained), run/checkpoint, run/results (samples beside sources)
"""

from __future__ import annotations

import contextlib
import html
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from videogen.config.train import BaseDtype, DataConfig, DitConfig, TrainConfig
from videogen.data.files import atomic_folder, save_text
from videogen.data.folder import VideoFolder
from videogen.data.folder_lock import lock_run
from videogen.data.manifest import find_fault
from videogen.data.video_io import write_video
from videogen.models.checkpoint_config import read_checkpoint_info
from videogen.models.hub import find_checkpoint
from videogen.models.streaming import to_uint8
from videogen.sampling.clip_sampler import ClipRequest, ClipSampler, load_clip_sampler
from videogen.sampling.pipeline import VideoPipeline
from videogen.training.folder_lora import make_lora_plan
from videogen.training.folder_plan import (
    PATCH,
    RunPlan,
    extend_plan,
    fit_plan,
    make_plan,
    read_plan,
    spread,
    step_speeds,
)
from videogen.training.run_checkpoints import newest_whole_step
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer

MINUTES = 30.0
FILM_SECONDS = 60.0
SMALL_FOLDER_SECONDS = 600.0  # of video; to look at every frame of more takes longer than one waits for a plan
FITTED_AT = (0.15, 0.5)  # of the steps, where their number is fitted to the minutes: later the learning rate falls
NUM_SHOWN = 8  # clips of the page of results
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="steps" content="{steps}"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem; color-scheme: light dark }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1.5rem }}
figure {{ margin: 0 }}
video {{ width: calc(50% - .25rem); background: #808080 }}
pre {{ overflow-x: auto }}
</style></head><body>
<h1>{title}</h1>
<p>Left a clip of the folder, right what the checkpoint makes of its caption: seeds 0, 1, 2, ..., none picked.</p>
<main>{figures}</main>
<h2>The plan</h2>
<ul>{lines}</ul>
<pre>{command}</pre>
</body></html>
"""
FIGURE = """<figure><video src="{source}" autoplay loop muted playsinline></video>
<video src="{sample}" autoplay loop muted playsinline></video><figcaption>{caption}</figcaption></figure>"""


def train(
    folder: str | Path,
    *,
    minutes: float | None = None,
    run: str | Path | None = None,
    lora: bool = False,
    model: str | Path | None = None,
    base_dtype: BaseDtype = "float32",
) -> Path:
    """Train on a folder for so many minutes (30 by default) and return the checkpoint's folder.

    With lora a LoRA of a model is trained, whose matrices are kept in base_dtype, and what is returned is the LoRA's
    folder. The same call again goes on with a run that was stopped; one that is complete goes on where minutes are
    given.
    """
    if lora != (model is not None):
        raise ValueError("lora=True and model=FOLDER go together: the model is what the LoRA is trained for")
    run = default_run(Path(folder)) if run is None else Path(run)
    data, path = DataConfig(folder=Path(folder)), None if model is None else Path(model)
    prepare_plan(run, minutes, data, say=lambda _: None, model=path, base_dtype=base_dtype)
    if not train_planned(run):
        raise RuntimeError(f"the run in {run} was stopped; the same call goes on")
    return run / "checkpoint"


def default_run(folder: Path) -> Path:
    """Name the run of a folder after it."""
    return Path("runs") / folder.resolve().name


def new_plan(
    run: Path, minutes: float | None, data: DataConfig, model: Path | None, base_dtype: BaseDtype = "float32"
) -> RunPlan:
    """Plan a checkpoint of a folder, or with a model a LoRA of it."""
    data = find_scenes_over(replace(data, captions="optional", decoded=run / "clips"))
    minutes = MINUTES if minutes is None else minutes
    return make_plan(run, minutes, data) if model is None else make_lora_plan(run, minutes, data, model, base_dtype)


def find_scenes_over(data: DataConfig) -> DataConfig:
    """Choose the files to be cut at their scenes: all of a small folder, films alone of a large one."""
    if data.scenes_over is not None:
        return data
    with contextlib.suppress(ValueError):  # A folder without a usable clip is named with its files by the plan.
        clips = VideoFolder(data, PATCH, log=lambda _: None)
        if sum(entry.info.seconds for entry in clips.entries) <= SMALL_FOLDER_SECONDS:
            return replace(data, scenes_over=0.0)
    return replace(data, scenes_over=FILM_SECONDS)


def prepare_plan(
    run: Path,
    minutes: float | None,
    data: DataConfig,
    say: Callable[[str], object],
    model: Path | None = None,
    base_dtype: BaseDtype = "float32",
) -> RunPlan:
    """Make the plan of a new run, or read that of one that goes on, and say it line by line.

    Raises a ValueError where the run is of another folder or model, or was planned for other minutes and is not done.
    """
    plan = read_plan(run)
    if plan is None:
        plan = new_plan(run, minutes, data, model, base_dtype)
        run.mkdir(parents=True, exist_ok=True)
        plan.save(run)
        for line in plan.lines:
            say(line)
        return plan
    if Path(plan.folder).resolve() != data.folder.resolve():
        raise ValueError(f"{run} is a run of {plan.folder}, not of {data.folder}; give another folder with --run")
    dit = plan.stages[-1].dit
    adapted = dit.init if dit.lora_rank else None
    is_same_model = (adapted and adapted.resolve()) == (model and find_checkpoint(model).resolve())
    if not is_same_model or dit.base_dtype != base_dtype:
        trained = "a whole checkpoint" if adapted is None else f"a LoRA of {adapted}, kept in {dit.base_dtype}"
        raise ValueError(f"{run} trains {trained}; go on with the same flags, or give another folder with --run")
    if minutes is not None and has_results(run, plan):
        plan = extend_plan(plan, minutes, step_seconds(run))
        plan.save(run)
        say(plan.lines[-1])
    elif minutes not in (None, plan.minutes):
        raise ValueError(
            f"{run} was planned for {plan.minutes:g} minutes and is not done; leave --minutes out to go on, or give "
            "another folder with --run"
        )
    else:
        say(f"going on with {run}, which was planned for {plan.minutes:g} minutes")
    return plan


def step_seconds(run: Path) -> float:
    """Return the seconds of a step of a run, the median of its log."""
    speeds = sorted(speed for _, speed in step_speeds(run))
    return 1 / speeds[len(speeds) // 2] if speeds else 1.0


def train_planned(run: Path) -> bool:
    """Train the stages of a run's plan that are not done, then show what came out; False where it was stopped."""
    plan = read_plan(run)
    assert plan is not None, f"{run} has no plan"
    with lock_run(run):
        for stage in plan.stages:
            if stage.stage == "vae" and is_complete(stage):
                continue
            # A union of stages is not a stage of a union; each fits on its own.
            trainer = Trainer(make_stage(stage), stage)  # pyright: ignore[reportArgumentType]
            if stage is plan.stages[-1]:
                plan = train_to_fit(trainer, plan, run)
            if not trainer.fit():
                return False
        write_results(run, plan)
    return True


def train_to_fit(trainer: Trainer[Any, Any], plan: RunPlan, run: Path) -> RunPlan:
    """Train the first half of a plan's last stage, and fit its steps to the minutes as fast as it turns out to be."""
    for share in FITTED_AT:
        step = round(share * plan.stages[-1].run.steps)
        if trainer.step > step:
            continue
        trainer.fit(until=step)
        if trainer.step < step:  # it was told to stop
            break
        plan = fit_plan(plan)
        plan.save(run)
        trainer.set_steps(plan.stages[-1].run.steps)
    return plan


def is_complete(stage: TrainConfig) -> bool:
    """True if a VAE has taken its last step and its checkpoint is whole."""
    folder = stage.run.dir / "checkpoint" / "vae"
    return newest_whole_step(stage.run.dir) >= stage.run.steps and folder.is_dir() and find_fault(folder) is None


def sample_command(run: Path, plan: RunPlan) -> str:
    """Return the command that makes a clip with the checkpoint of a run."""
    stage, trained = plan.stages[-1], shlex.quote(str(run / "checkpoint"))
    model = f"{shlex.quote(str(stage.dit.init))} --lora {trained}" if stage.dit.lora_rank else trained
    return f"python sample.py {shlex.quote(stage.run.sample_prompts[0])} --model {model}"


def has_results(run: Path, plan: RunPlan) -> bool:
    """True if the run has come to its end: its page is that of the last step."""
    page = run / "results" / "index.html"
    return page.is_file() and f'name="steps" content="{plan.stages[-1].run.steps}"' in page.read_text(encoding="utf-8")


def load_sampler(run: Path, dit: DitConfig) -> ClipSampler:
    """Load what a run has trained: its checkpoint, or its LoRA on the model that it is of."""
    if not dit.lora_rank:
        return load_clip_sampler(read_checkpoint_info(run / "checkpoint"))
    assert dit.init is not None, "a LoRA is of a model"
    pipeline = VideoPipeline.load(dit.init)
    pipeline.add_loras([str(run / "checkpoint")])
    return pipeline


def write_results(run: Path, plan: RunPlan) -> None:
    """Make a page of clips of the folder beside what the checkpoint makes of their captions, once a number of steps."""
    if has_results(run, plan):
        return
    dit = plan.stages[-1]
    sampler = load_sampler(run, dit.dit)
    folder = VideoFolder(dit.data, sampler.transformer.base_patch, log=lambda _: None)
    figures: list[str] = []
    with atomic_folder(run / "results") as part:
        for seed, index in enumerate(spread(len(folder.entries), NUM_SHOWN)):
            entry = folder.entries[index]
            config = replace(dit.sample, size=f"{entry.width}x{entry.height}", frames=entry.frames)
            source = folder.read(index)
            latents = sampler.sample([ClipRequest(source.caption, seed)], config)
            names = {kind: f"{seed}-{kind}.mp4" for kind in ("source", "sample")}
            write_video(part / names["source"], to_uint8(source.video), fps=config.fps)
            write_video(part / names["sample"], sampler.frames(latents[0]), fps=config.fps)
            figures.append(FIGURE.format(**names, caption=html.escape(source.caption)))
        text = PAGE.format(
            steps=dit.run.steps,
            title=html.escape(f"What was learned of {plan.folder}"),
            figures="\n".join(figures),
            lines="".join(f"<li>{html.escape(line)}</li>" for line in plan.lines),
            command=html.escape(sample_command(run, plan)),
        )
        save_text(part / "index.html", text)
