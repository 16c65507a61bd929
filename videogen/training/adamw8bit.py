"""AdamW with its moments in 8 bits each (Dettmers et al. 2022), by bitsandbytes, whose state is saved as plain tensors.

groups of weights  ->  torch.optim.Optimizer
"""

from __future__ import annotations

from typing import cast

import torch
from bitsandbytes.optim.adamw import AdamW8bit
from torch import Tensor
from torch.optim import Optimizer

CODES = {"qmap1": "dynamic", "qmap2": "udynamic"}  # What a code stands for, by the name of its table: constants.


class PlainAdamW8bit(AdamW8bit):
    """bitsandbytes' AdamW8bit with a state of tensors alone, without its constants, as step folders keep it.

    Weights of fewer than 4096 values keep their moments in float32.
    """

    def state_dict(self) -> dict[str, object]:  # type: ignore[override]
        """Return the state of each weight by its number, and the groups."""
        state_dict = Optimizer.state_dict(self)
        state_dict["state"] = {
            number: {name: torch.as_tensor(value) for name, value in entry.items() if name not in CODES}
            for number, entry in state_dict["state"].items()
        }
        return state_dict

    def load_state_dict(self, state_dict: dict[str, object]) -> None:  # type: ignore[override]
        """Restore what state_dict returned."""
        params = [param for group in self.param_groups for param in group["params"]]
        for number, entry in cast("dict[int, dict[str, Tensor]]", state_dict["state"]).items():
            param = params[number]
            state: dict[str, object] = {name: value.to(param.device) for name, value in entry.items()}
            if entry["state1"].dtype == torch.uint8:
                state |= {name: self.name2qmap[table].to(param.device) for name, table in CODES.items()}
            self.state[param] = state | {"step": int(entry["step"])}
        for group, saved in zip(self.param_groups, cast("list[dict]", state_dict["param_groups"]), strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
