"""Train the model of a stage: one loop with its optimizer, averaged weights and checkpoints.

    Stage (model, batches, loss, validate, preview, export)  ->  run folder: step_000500/ ..., log.jsonl, samples/

Whatever is random is a function of (seed, step), so a run that was stopped and resumed equals an uninterrupted one, bit
for bit on CPU. Checkpoints are written under another name and renamed: a kill at any moment leaves the last good one.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Generic

import torch
from torch import Tensor

from videogen.config.train import TrainConfig
from videogen.data.folder_lock import lock_run
from videogen.interruption import StopRequest
from videogen.models.dit import VideoDiT
from videogen.models.precision import lacks_bf16_instructions, resolve_mixed_precision
from videogen.training.due import RunParts, are_samples_due, find_missing, is_validation_due
from videogen.training.ema import PowerEMA
from videogen.training.optimizers import learning_rate, make_optimizer
from videogen.training.progress import Meter, RunLog, average_packs, cut_log, progress_bar
from videogen.training.run_checkpoints import (
    RunProgress,
    Stretch,
    choose_step,
    count_packs,
    count_steps,
    load_progress,
    load_step,
    save_step,
    set_later_steps_aside,
)
from videogen.training.run_config import write_config
from videogen.training.sharding import LAUNCHER_FLAGS, gather_one, own_part, read_shards, shard_model, wait_for_all
from videogen.training.stages import Batch, MicroBatch, Stage

logger = logging.getLogger(__name__)
CPU_PASS_TOKENS = 1280
"""Tokens of a pass on a CPU: in twice as large a pass each token takes a tenth longer, because the activations no
longer stay in the cache (assets/LOG.md)."""
PROCESS_TIMEOUT = timedelta(days=1)
"""How long processes wait for the first, which validates, saves and samples; torch's default is ten minutes."""


def is_out_of_memory(error: BaseException) -> bool:
    """True if memory ran out: torch raises a class of its own on CUDA, and errors with these messages elsewhere."""
    messages = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in messages)


class Trainer(Generic[Batch, MicroBatch]):
    """The training loop, with its optimizer, averaged weights and checkpoints."""

    def __init__(self, stage: Stage[Batch, MicroBatch], config: TrainConfig) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
        from accelerate.utils import GradientAccumulationPlugin, patch_environment

        shards = read_shards(config)
        config = replace(config, run=resolve_mixed_precision(config.run))
        self.stage, self.config, self.run = stage, config, config.run
        # A step trains one patch size, of the recipe or of dit.init, and not always the head for the facts.
        dit = config.dit
        varies = config.stage == "vae" or dit.patches or dit.facts or dit.init  # and images pass no layer over time
        ddp_options = DistributedDataParallelKwargs(find_unused_parameters=bool(varies))
        with patch_environment(**dict.fromkeys(LAUNCHER_FLAGS, "false")):  # shards are made here, not by accelerate
            self.accelerator = Accelerator(
                cpu=not torch.accelerator.is_available(),  # without it, processes on CPUs do not form a group
                mixed_precision="no",  # precision and accumulation follow the recipe, not the settings of accelerate
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                kwargs_handlers=[ddp_options, InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT)],
            )
        device, alone = self.accelerator.device, self.accelerator.num_processes == 1
        self.is_main = self.accelerator.is_main_process
        if self.run.compile:
            if not isinstance(stage.model, VideoDiT):
                raise ValueError("run.compile is for the DiT's blocks; leave it out where the VAE is trained")
            stage.model.compile_repeated_blocks(dynamic=True)
        # First of all: optimizer and averages copy the model's device and layout.
        self.sharded = shard_model(stage, shards, device) if shards else None
        self.objective = stage.model if self.sharded else self.accelerator.prepare(stage.objective)
        stage.to_device(device)
        self.optimizer = make_optimizer(stage.model, config.optim)
        self.ema = PowerEMA(stage.model, config.optim.ema)
        # Processes reduce their gradients at every pass, so each computes its pack in one; a CPU that trains alone is
        # faster in several, to the same gradient. Where memory runs out, passes become smaller.
        self.max_tokens_per_pass = config.data.token_budget
        if alone and config.stage == "dit" and device.type == "cpu":
            self.max_tokens_per_pass = min(config.data.token_budget, CPU_PASS_TOKENS)
        if self.run.mixed_precision == "bf16" and lacks_bf16_instructions(device):
            logger.warning("this CPU has no bf16 instructions: run.mixed_precision = 'no' would be many times as fast")
        self.run.dir.mkdir(parents=True, exist_ok=True)
        self.step = choose_step(self.run.dir, self.run.resume)
        progress = load_progress(self.run.dir, self.step)
        if self.step:
            name = config.optim.optimizer
            is_same = progress.optimizer in ("", name)
            load_step(self.run.dir, self.step, self.ema, self.optimizer if is_same else None)
            if not is_same:
                logger.warning("the state of %s is left aside, and %s begins with none", progress.optimizer, name)
        self.earlier = self.stretches_before(progress)
        self.num_skipped = progress.skipped
        self.meter = Meter(None, self.accelerator.num_processes, progress.window)
        self.check_ranks_agree()
        self.optimizer = self.accelerator.prepare(self.optimizer)

    def check_ranks_agree(self) -> None:
        """Raise ValueError if processes resume at different steps: each machine then has a run folder of its own."""
        gathered = self.accelerator.gather(torch.tensor([self.step], device=self.accelerator.device))
        if len(steps := sorted(set(torch.as_tensor(gathered).tolist()))) > 1:
            raise ValueError(f"the processes found {self.run.dir} at steps {steps}; give all of them the same folder")

    def stretches_before(self, progress: RunProgress) -> list[Stretch]:
        """Return the stretches of a run before the one that it goes on with, with this number of packs a step."""
        now = self.packs_per_step
        *earlier, last = progress.stretches or [Stretch(now, self.step)]  # earlier versions did not save them
        if last.packs == now:
            return earlier
        if self.accelerator.is_main_process:
            logger.warning("unlike before, a step trains %d packs, was %d", now, last.packs)
        return [*earlier, last]

    @property
    def packs_per_step(self) -> int:
        """Return how many packs a step trains, those of all processes."""
        return self.accelerator.num_processes * self.config.optim.accumulate

    def batch_number(self, step: int, place: int = 0) -> int:
        """Count the packs of the run before one of this process's in a step: no two of a run have the same number."""
        in_step = place * self.accelerator.num_processes + self.accelerator.process_index
        return count_packs(self.earlier) + (step - count_steps(self.earlier)) * self.packs_per_step + in_step

    def batches(self) -> Iterator[tuple[Batch, ...]]:
        """Yield this process's batches of each step from the next on: optim.accumulate of its packs_per_step."""
        start = self.batch_number(self.step) - count_packs(self.earlier)
        stream = self.stage.batches(start, self.accelerator.num_processes, self.earlier)
        return zip(*[stream] * self.config.optim.accumulate, strict=True)

    def any_process(self, flag: bool) -> bool:
        """True if the flag is set in any process: all of them must leave the loop at the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        value = torch.tensor(float(flag), device=self.accelerator.device)
        return torch.as_tensor(self.accelerator.reduce(value, reduction="sum")).item() > 0

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, float]:
        """Take an optimizer step and return the values to log; skip it if loss or gradient is not finite and may be."""
        lr = learning_rate(step, self.run.steps, self.config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        values = self.compute_gradient(batches, step)
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.optim.grad_clip)
        values |= {"grad_norm": gather_one(torch.as_tensor(norm)).item(), "lr": lr}
        if self.any_process(not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]))):
            self.count_bad_step(batches, step, values)
            values = {name: value for name, value in values.items() if math.isfinite(value)}
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(step + 1)
        return values

    def count_bad_step(self, batches: Sequence[Batch], step: int, values: Mapping[str, float]) -> None:
        """Count a step whose loss or gradient is not finite; FloatingPointError if the run may skip no more of them."""
        numbered = ((batch, self.batch_number(step, place)) for place, batch in enumerate(batches))
        clips = ", ".join(name for batch, number in numbered for name in self.stage.clip_names(batch, number))
        numbers = f"the loss is {values['loss']:.4g} and the gradient norm is {values['grad_norm']:.4g}"
        what = f"of the clips {clips} {numbers} at step {step}"
        if self.num_skipped >= self.run.skip_bad_steps:
            raise FloatingPointError(
                f"{what}; what was saved is whole: lower optim.lr and run the same command again to resume, or let "
                f"such steps be skipped (--run.skip-bad-steps {self.num_skipped + 1})"
            )
        self.num_skipped += 1
        logger.warning("%s: it is skipped, the %d. of at most %d", what, self.num_skipped, self.run.skip_bad_steps)

    def compute_gradient(self, batches: Sequence[Batch], step: int) -> dict[str, float]:
        """Accumulate the gradient of a step and return its losses; if memory runs out, start over in smaller passes.

        Noise is sampled for a batch as a whole, from its number alone, so smaller passes have the same gradient.
        """
        max_tokens = self.max_tokens_per_pass
        while (losses := self.forward_backward(batches, step)) is None:
            self.optimizer.zero_grad()
            torch.cuda.empty_cache()  # does nothing without CUDA
            if self.accelerator.num_processes > 1:  # the others wait for this one's gradient and cannot start over
                raise RuntimeError(
                    f"out of memory; the last checkpoint is whole: lower data.token_budget = {max_tokens}, and resume "
                    "with --accept-changes"
                )
            longest = max(map(self.stage.longest_clip, batches))
            if self.max_tokens_per_pass <= longest:  # the longest clip already had a pass of its own
                raise RuntimeError(
                    "no memory for one clip; lower data.max_tokens or set dit.gradient_checkpointing, and resume with "
                    "--accept-changes"
                )
            self.max_tokens_per_pass = max(self.max_tokens_per_pass // 2, longest)
        if self.max_tokens_per_pass < max_tokens:
            text = "out of memory: from now on packs are computed %d tokens at a time, to the same result"
            logger.warning(text, self.max_tokens_per_pass)
        return losses

    def forward_backward(self, batches: Sequence[Batch], step: int) -> dict[str, float] | None:
        """Accumulate the gradient of a step's batches and return their losses, or None if memory ran out.

        Of several packs, in this process and in others, each counts by its weight, as its clips would in one large one.
        """
        losses, weights = list[dict[str, float]](), list[Tensor]()
        try:
            for place, batch in enumerate(batches):
                # Processes add up their gradients once, with the last of their packs.
                is_last = place == len(batches) - 1
                with nullcontext() if is_last else self.accelerator.no_sync(self.objective):
                    sums, weight = self.add_gradient(batch, self.batch_number(step, place))
                losses.append(sums)
                weights.append(weight)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Returning drops the traceback, which would keep alive what the step had computed while it is retried.
            return None
        if self.packs_per_step == 1:
            return losses[0]
        total = torch.as_tensor(self.accelerator.reduce(torch.stack(weights).sum(), reduction="mean")).item()
        for param in self.objective.parameters():
            if param.grad is not None:
                param.grad.div_(total)
        return average_packs(losses, torch.stack(weights).tolist())

    def add_gradient(self, batch: Batch, batch_number: int) -> tuple[dict[str, float], Tensor]:
        """Add a batch's gradient, times its weight where a step has several; return the sums of its losses, and it."""
        sums, use_bf16, weight = dict[str, float](), self.run.mixed_precision == "bf16", torch.ones(())
        # Only the forward pass is autocast: what `split` draws and embeds has precisions of its own.
        for micro_batch in self.stage.split(batch, self.max_tokens_per_pass):
            with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=use_bf16):
                losses = self.stage.loss(self.objective, micro_batch, batch_number)
            weight = losses.pop("weight")
            self.accelerator.backward(losses["loss"] * (1.0 if self.packs_per_step == 1 else weight))
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        return sums, weight

    def fit(self, until: int | None = None) -> bool:
        """Train until the run is complete, its time is over or a signal asks to stop; True if it is complete.

        Where until is given, stop after that many steps of the run, too, as one does whose time is over.
        """
        last = self.run.steps if until is None else min(until, self.run.steps)
        if self.step >= last and not self.any_process(any(self.find_missing())):
            return self.step >= self.run.steps
        with lock_run(self.run.dir):
            self.prepare_folder()
            try:
                if self.step < last:
                    self.train_steps(last)
                return self.step >= self.run.steps
            finally:
                if self.meter.log is not None:
                    self.meter.log.close()

    def prepare_folder(self) -> None:
        """Leave the run folder as it would be had the run just taken its step, whatever has happened since."""
        if self.is_main:
            set_later_steps_aside(self.run.dir, self.step)
            write_config(self.config, self.run.dir)
            self.stage.clip_split.keep(self.run.dir)
            cut_log(self.run.dir, self.step, validates=is_validation_due(self.run, self.step))
            self.meter.log = RunLog(self.run.dir, self.step, config=self.config)
        missing = self.find_missing()
        if self.any_process(missing.checkpoint):
            self.export()
        if self.any_process(missing.validation):
            self.validate()
        if self.any_process(missing.samples):
            self.preview()

    def set_steps(self, steps: int) -> None:
        """Change the number of the run's steps, and with it the fall of the learning rate, between two calls of fit."""
        self.run = replace(self.run, steps=steps)
        self.config = replace(self.config, run=self.run)

    def train_steps(self, last: int) -> None:
        """Train to a step in a run folder that no other process writes to, or until it is time to stop."""
        meter = self.meter
        meter.start()
        deadline = time.monotonic() + 60 * self.run.minutes if self.run.minutes is not None else math.inf
        with StopRequest() as stop, progress_bar(disable=not self.is_main) as bar:
            task, summary = bar.add_task(self.config.stage, total=self.run.steps, completed=self.step, message=""), ""
            for batches in self.batches():
                values = self.train_step(batches, self.step)
                self.step += 1
                summary = meter.add(self.step, values) or summary
                bar.update(task, completed=self.step, message=summary)
                must_stop = time.monotonic() > deadline or stop.signal is not None
                leaving = self.step >= last or self.any_process(must_stop)
                interrupted = leaving and self.any_process(stop.signal is not None)
                self.save_and_validate(leaving=leaving, interrupted=interrupted)
                if leaving:
                    break
        if stop.signal == signal.SIGINT:
            raise KeyboardInterrupt

    def save_and_validate(self, *, leaving: bool, interrupted: bool) -> None:
        """Save, validate and sample when they are due, and when the run leaves the loop.

        A signal's sender may not wait: the checkpoint comes first, and after a signal nothing follows it.
        """
        if leaving or self.step % self.run.save_every == 0:
            self.save()
        if interrupted:
            return
        if leaving or is_validation_due(self.run, self.step):
            self.validate()
        if are_samples_due(self.run, self.step):
            self.preview()

    def find_missing(self) -> RunParts:
        """Find what the run should have left with its step, in this process if it is the one that writes."""
        if not self.is_main:
            return RunParts(checkpoint=False, validation=False, samples=False)
        samples = self.config.stage == "vae" or bool(self.run.sample_prompts)
        return find_missing(self.run, self.step, validates=bool(self.stage.clip_split.val), samples=samples)

    def validate(self) -> None:
        """Log the metrics of the held-out clips."""
        metrics: dict[str, float] = {}
        # Compiling for inference too would take longer.
        with torch.compiler.set_stance("force_eager"), self.whole_model(averaged=False):
            if self.is_main:
                metrics = {f"val_{key}": value for key, value in self.stage.validate().items()}
        if self.meter.log is not None and metrics:
            self.meter.log.write(self.step, metrics)

    def preview(self) -> None:
        """Write samples of the averaged weights."""
        with torch.compiler.set_stance("force_eager"), self.whole_model(averaged=True):
            if self.is_main:
                self.stage.preview(self.step, self.run.dir / "samples")
        if self.meter.log is not None:
            self.meter.log.show(self.step, self.run.dir / "samples" / f"step_{self.step:06d}.png")

    def export(self) -> None:
        """Write the checkpoint folder that sample.py reads, with the averaged weights."""
        with self.whole_model(averaged=True):
            if self.is_main:
                self.stage.export(self.run.dir / "checkpoint")

    def save(self) -> None:
        """Write the checkpoint folder and the state to resume from; FloatingPointError if a weight is not finite."""
        if self.any_process(not all(own_part(weight).isfinite().all() for weight in self.ema.live)):
            raise FloatingPointError(
                f"weights are not finite after step {self.step} and were not saved; what was saved before is whole: "
                "lower optim.lr and run the same command again to resume"
            )
        self.export()
        # The step folder is written last: where it exists, so does the checkpoint of its step.
        stretch = Stretch(self.packs_per_step, self.step - count_steps(self.earlier))
        optimizer = self.config.optim.optimizer
        stretches = [*self.earlier, stretch]
        progress = RunProgress(self.meter.window, stretches, optimizer, self.num_skipped)
        keep, is_main = self.run.keep, self.is_main
        save_step(self.run.dir, self.step, self.ema, self.optimizer, progress, keep=keep, is_main=is_main)
        wait_for_all()

    @contextmanager
    def whole_model(self, *, averaged: bool) -> Iterator[None]:
        """Give the main process's stage the whole model within the context, with its live or its averaged weights."""
        if self.sharded is not None:
            weights = self.ema.copies[0] if averaged else self.ema.live
            with self.sharded.lend_whole(self.stage, zip(self.ema.names, weights, strict=True)):
                yield
            return
        if averaged:
            self.ema.swap()
        try:
            yield
        finally:
            if averaged:
                self.ema.swap()
