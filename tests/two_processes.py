"""Carry out recipes one after another, as each process of a torchrun: `two_processes.py RECIPES.json`."""

import json
import sys
from pathlib import Path

import torch

from videogen.config.parsing import from_mapping
from videogen.config.train import TrainConfig
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer

if __name__ == "__main__":
    torch.set_num_threads(1)
    for values in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        recipe = from_mapping(TrainConfig, values)
        stage = make_stage(recipe)
        assert Trainer(stage, recipe).fit()  # pyright: ignore[reportArgumentType]
