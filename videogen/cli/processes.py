"""Share clips among the processes of `accelerate launch` or torchrun.

SampleArgs, [SampleJob]  ->  the jobs of this process, and SampleArgs with its device
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from videogen.cli.sample_arguments import SampleArgs
from videogen.cli.sample_jobs import SampleJob

if TYPE_CHECKING:
    from videogen.sweep.runner import Team


def num_processes() -> int:
    """Return how many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def find_team(args: SampleArgs) -> tuple[Team, str]:
    """Find out which process of `accelerate launch` this is, and its device."""
    from videogen.sweep.runner import Team

    if num_processes() == 1:
        return Team(), args.device
    from accelerate import PartialState

    # A process may wait long for the pack of another.
    state = PartialState(cpu=args.device == "cpu", timeout=timedelta(days=7))
    assert state.device is not None, "accelerate has chosen no device"
    device = "cpu" if state.device.type == "cpu" else str(state.device)  # accelerate numbers CPUs as well
    return Team(state.process_index, state.num_processes, state.wait_for_everyone), device


def share_jobs(args: SampleArgs, jobs: Sequence[SampleJob]) -> tuple[SampleArgs, Sequence[SampleJob]]:
    """Take this process's part of the jobs, every num-th, once all processes have seen which names are taken."""
    if num_processes() == 1:
        return args, jobs
    team, device = find_team(args)
    team.wait()
    return replace(args, device=device), jobs[team.rank :: team.num]
