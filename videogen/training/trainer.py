"""One training loop, handed a stage: what is trained, on what, by which loss.

    Stage (model, batches, loss, validate, preview, export)  ->  run folder: step_000500/ ..., log.jsonl, samples/

Every random draw is a function of (seed, step), so a run that was stopped and resumed is the run that was not, bit for
bit on CPU. Checkpoints are written beside and renamed; a kill at any moment leaves the last good one.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from videogen.config.parsing import dotted, to_mapping
from videogen.config.train import OptimConfig, TrainConfig
from videogen.data.files import save_text
from videogen.interruption import StopRequest
from videogen.models.dit import VideoDiT
from videogen.training.ema import PowerEMA
from videogen.training.progress import Log, Meter, progress_bar
from videogen.training.run_checkpoints import load_step, save_step, saved_steps

logger = logging.getLogger(__name__)
Batch = TypeVar("Batch")
CPU_PASS_TOKENS = 1280
"""Twice as many take a tenth longer each: what the layers hand on no longer stays in the cache (assets/LOG.md)."""
PATIENCE = timedelta(days=1)
"""How long the other processes wait for the first, which measures, saves and shows; torch would give it ten minutes."""


class Stage(Protocol[Batch]):
    """What the loop needs to know of a kind of training."""

    model: nn.Module

    def place(self, device: torch.device) -> None:
        """Move what is used beside the model to the model's device."""
        ...

    def batches(self, start: int, every: int = 1) -> Iterator[Batch]:
        """The batches start, start + every, ...: the same whenever the run is resumed."""
        ...

    def loss(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """The loss of a step under "loss", and what else to log; "tokens" and "fill" are shown, "weight" is not.

        The weight is what the loss counts for beside those of other processes.
        """
        ...

    def losses(self, model: nn.Module, batch: Batch, step: int, most_tokens: int) -> Iterator[dict[str, Tensor]]:
        """The same loss in parts that add up to it, each of at most so many tokens or of one clip."""
        ...

    def longest(self, batch: Batch) -> int:
        """Tokens of the longest clip of a batch: no part can be less."""
        ...

    def validate(self) -> dict[str, float]:
        """Measures on held-out clips."""
        ...

    def preview(self, step: int, out_dir: Path) -> None:
        """Write samples of the averaged model."""
        ...

    def export(self, out_dir: Path) -> None:
        """Write the model, as it is now, as a checkpoint folder."""
        ...


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """The learning rate of a step: linear rise, constant, linear fall to zero over the last share of the run."""
    rise = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = max(1, round(total * config.decay_share))
    return config.lr * rise * min(1.0, (total - step) / decay_steps)


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices and kernels only."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8, fused=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch has a class for it on CUDA, and words elsewhere."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def slow_in_bf16(device: torch.device) -> bool:
    """Whether it is a CPU without instructions for bfloat16, where products in it take 40 times as long and more."""
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # not in all of torch 2.1x
    told = device.type == "cpu" and has.get("architecture") == "x86_64"
    return told and not (has["avx512_bf16"] or has["amx_bf16"])


class Trainer(Generic[Batch]):
    """The loop and what it owns: optimiser, averages, checkpoints."""

    def __init__(self, stage: Stage[Batch], config: TrainConfig) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
        from accelerate.utils import GradientAccumulationPlugin

        self.stage, self.config, self.run = stage, config, config.run
        dit = config.dit  # a step uses one patch size, the recipe's or one of dit.init, and tells facts or not
        some = DistributedDataParallelKwargs(find_unused_parameters=bool(dit.patches or dit.facts or dit.init))
        # cpu=True where there is nothing else: without it several processes would not know of each other there
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision="no",  # the recipe says it, and how many steps add up, not what accelerate was set to
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[some, InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        if self.accelerator.num_processes > 1 and config.stage == "vae":
            raise ValueError("the VAE is trained on one device; start train.py without torchrun or accelerate launch")
        if self.run.compile:
            if not isinstance(stage.model, VideoDiT):
                raise ValueError("run.compile is for the DiT's blocks; leave it out where the VAE is trained")
            stage.model.compile_repeated_blocks(dynamic=True)
        self.model = self.accelerator.prepare(stage.model)  # on its device, before anything is laid out like it
        stage.place(self.accelerator.device)
        self.optimizer = make_optimizer(stage.model, config.optim)
        self.ema = PowerEMA(stage.model, config.optim.ema)
        self.pass_tokens = self.at_once()  # most tokens computed at once; less once memory ran out
        if self.run.mixed_precision == "bf16" and slow_in_bf16(self.accelerator.device):
            logger.warning("this CPU has no bf16 instructions: run.mixed_precision = 'no' would be many times as fast")
        self.run.dir.mkdir(parents=True, exist_ok=True)
        self.step = max(saved_steps(self.run.dir), default=0)
        if self.step:
            load_step(self.run.dir, self.step, self.ema, self.optimizer)
        self.check_together()
        self.optimizer = self.accelerator.prepare(self.optimizer)

    def check_together(self) -> None:
        """Refuse to go on where processes found different steps: each machine had a run folder of its own."""
        steps = self.accelerator.gather(torch.tensor([self.step], device=self.accelerator.device))
        if len(found := sorted(set(torch.as_tensor(steps).tolist()))) > 1:
            raise ValueError(f"the processes found {self.run.dir} at steps {found}; give all of them the same folder")

    def at_once(self) -> int:
        """How much of a pack is computed at once: all, or on a CPU as much as is fastest, to the same gradient.

        Processes that train together add up their gradients at each part, and have as many only where each has one.
        """
        budget, alone = self.config.data.token_budget, self.accelerator.num_processes == 1
        parts = alone and self.config.stage == "dit" and self.accelerator.device.type == "cpu"
        return min(budget, CPU_PASS_TOKENS) if parts else budget

    def batches(self) -> Iterator[Batch]:
        """This process's batches from the next step on: of each step's num_processes batches, its own."""
        share, own = self.accelerator.num_processes, self.accelerator.process_index
        return self.stage.batches(self.step * share + own, share)

    def any_process(self, flag: bool) -> bool:
        """Whether any process says so: all must leave at the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        said = torch.tensor(float(flag), device=self.accelerator.device)
        return torch.as_tensor(self.accelerator.reduce(said, reduction="sum")).item() > 0

    def train_step(self, batch: Batch, step: int) -> dict[str, float]:
        """One optimiser step; the numbers to show."""
        rate = learning_rate(step, self.run.steps, self.config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        values = self.gradient(batch, step * self.accelerator.num_processes + self.accelerator.process_index)
        norm = torch.as_tensor(self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.optim.grad_clip))
        values |= {"grad_norm": norm.item(), "lr": rate}
        if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
            said = f"the loss is {values['loss']:.4g} and its gradient's norm {values['grad_norm']:.4g} at step {step}"
            raise FloatingPointError(f"{said}; what was saved is whole: lower optim.lr and go on")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(step + 1)
        return values

    def gradient(self, batch: Batch, number: int) -> dict[str, float]:
        """Add up the gradient of a batch; where memory runs out, once more from the start in parts that fit.

        A batch's random draws depend on its number alone and are made for all of it, so the parts change nothing.
        """
        before = self.pass_tokens
        while (values := self.backward(batch, number)) is None:
            self.optimizer.zero_grad()
            torch.cuda.empty_cache()  # nothing where there is no CUDA
            if self.accelerator.num_processes > 1:  # the others wait for this one's gradient and cannot begin anew
                raise RuntimeError(f"out of memory; the last checkpoint is whole: lower data.token_budget = {before}")
            if self.pass_tokens <= (longest := self.stage.longest(batch)):  # it was computed alone already
                raise RuntimeError("no memory for one clip; lower data.max_tokens or set dit.gradient_checkpointing")
            self.pass_tokens = max(self.pass_tokens // 2, longest)
        if self.pass_tokens < before:
            said = "out of memory: from now on packs are computed %d tokens at a time, to the same result"
            logger.warning(said, self.pass_tokens)
        return values

    def backward(self, batch: Batch, number: int) -> dict[str, float] | None:
        """The numbers of a batch whose gradient is now added up; None where memory ran out."""
        sums: dict[str, float] = {}
        try:
            parts = self.parts(batch, number)
            while losses := self.next_losses(parts):
                self.accelerator.backward(losses["loss"] * self.share(losses.pop("weight", None)))
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value.item()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None  # and with it goes the traceback, which holds on to what the step had computed
        return sums

    def parts(self, batch: Batch, number: int) -> Iterator[dict[str, Tensor]]:
        """The losses of a batch at once, or in parts that fit in memory; each is computed when it is asked for."""
        if self.pass_tokens < self.config.data.token_budget:
            yield from self.stage.losses(self.model, batch, number, self.pass_tokens)
        else:
            yield self.stage.loss(self.model, batch, number)

    def next_losses(self, parts: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The next part's losses, in the run's precision; none when there are no more."""
        enabled = self.run.mixed_precision == "bf16"
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=enabled):
            return next(parts, {})

    def share(self, weight: Tensor | None) -> Tensor | float:
        """What this process's loss counts for in the mean over all processes: as much as its clips weigh."""
        if weight is None or self.accelerator.num_processes == 1:
            return 1.0
        return weight / torch.as_tensor(self.accelerator.reduce(weight, reduction="mean"))

    def fit(self) -> bool:
        """Train to the end or to the session's limit; True when the run is complete."""
        if self.step >= self.run.steps:
            return True
        main = self.accelerator.is_main_process
        if main:
            write_config(self.config, self.run.dir)
        meter = Meter(Log(self.run.dir) if main else None, self.accelerator.num_processes)
        deadline = time.monotonic() + 60 * self.run.minutes if self.run.minutes is not None else math.inf
        with StopRequest() as stop, progress_bar(disable=not main) as bar:
            task = bar.add_task(self.config.stage, total=self.run.steps, completed=self.step, said="")
            for batch in self.batches():
                values = self.train_step(batch, self.step)
                self.step += 1
                if said := meter.add(self.step, values):
                    bar.update(task, completed=self.step, said=said)
                late = time.monotonic() > deadline or stop.signal is not None
                leaving = self.step >= self.run.steps or self.any_process(late)
                if main:
                    self.milestones(meter.log, leaving=leaving, interrupted=stop.signal is not None)
                if leaving:
                    break
        if stop.signal == signal.SIGINT:
            raise KeyboardInterrupt
        return self.step >= self.run.steps

    def milestones(self, log: Log | None, *, leaving: bool, interrupted: bool) -> None:
        """What is done every so many steps and at the end: save, measure, show.

        Saved first, and that alone where a signal asked for it: whoever sent it may not wait for more.
        """
        if leaving or self.step % self.run.save_every == 0:
            self.save()
        if (leaving or self.step % self.run.val_every == 0) and not interrupted:
            with torch.compiler.set_stance("force_eager"):  # compiling for it too would take longer
                measured = {f"val_{key}": value for key, value in self.stage.validate().items()}
            if log is not None and measured:
                log.write(self.step, measured)
        due = self.run.sample_every and self.step % self.run.sample_every == 0
        if (due or self.step >= self.run.steps) and not interrupted:
            self.preview()

    def save(self) -> None:
        """Write the run's state and, with the averaged weights, the checkpoint folder that sample.py reads."""
        self.ema.swap()
        try:
            self.stage.export(self.run.dir / "checkpoint")
        finally:
            self.ema.swap()
        # Last: a step folder says that the checkpoint of its step is there too.
        save_step(self.run.dir, self.step, self.ema, self.optimizer)

    def preview(self) -> None:
        """Samples of the averaged model."""
        self.ema.swap()
        try:
            with torch.compiler.set_stance("force_eager"):
                self.stage.preview(self.step, self.run.dir / "samples")
        finally:
            self.ema.swap()


def write_config(config: TrainConfig, run_dir: Path) -> None:
    """Keep the resolved config beside the weights; say what changed since the run went on last."""
    path, text = run_dir / "config.json", json.dumps(to_mapping(config), indent=2)
    if path.is_file():
        before, now = (dict(dotted(json.loads(said))) for said in (path.read_text(encoding="utf-8"), text))
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                logger.warning("unlike before, %s is %s, was %s", name, now.get(name), before.get(name))
    save_text(path, text + "\n")
