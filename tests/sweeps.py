"""Plans small enough for tests, and a counter of evaluations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from videogen.config.sample import SampleConfig
from videogen.sweep.axes import read_axes
from videogen.sweep.plan import Plan, Run

PROMPTS = ("a red circle", "a large blue star moves")
SMALL = SampleConfig(size="32x32", frames=5, steps=2, guidance=2.0)
QUICK = ["--size", "32x32", "--frames", "5"]


def plan_of(
    words: Sequence[str], *, prompts: Sequence[str] = PROMPTS[:1], seeds: Sequence[int] = (0,), **more: object
) -> Plan:
    bases = tuple(Run(prompt, seed, SMALL) for prompt in prompts for seed in seeds)
    return Plan(bases=bases, axes=read_axes(words), defaults=SMALL, **more)  # type: ignore[arg-type]


class Counter:
    """Counts the calls of a module and, for the transformer, the clips of their packs."""

    def __init__(self, module: nn.Module) -> None:
        self.calls, self.clips = 0, 0
        self.hook = module.register_forward_pre_hook(self.count)

    def count(self, _module: nn.Module, args: tuple[object, ...]) -> None:
        self.calls += 1
        self.clips += sum(len(getattr(arg, "grids", ())) for arg in args)  # only a pack has grids
