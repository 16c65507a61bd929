"""Read the headers of a model's weights, and compare a config with them before a network of its sizes is built.

folder  ->  {name: shape};  config, shapes  ->  nothing, or a ValueError: more layers than tensors, a size above all
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

Shapes = Mapping[str, tuple[int, ...]]
HEADS = ("num_attention_heads", "num_heads")
LAYERS = ("num_layers", "num_hidden_layers", "num_decoder_layers")


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the shape of every tensor in the .safetensors files of a folder; a ValueError where one is not whole."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if not path.is_file():  # opening a fifo would wait for its writer
            raise ValueError(f"{path} is no regular file; download or save the checkpoint again")
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not whole: {error}; download or save the checkpoint again") from None
    return shapes


def check_sizes(config: Mapping[str, object], shapes: Shapes, path: Path) -> None:
    """Raise a ValueError for a size in a config that its weights cannot have: building such a network takes minutes."""
    if not shapes:  # which whoever loads them tells
        return
    num_weights = sum(map(math.prod, shapes.values()))
    for name, value in config.items():
        if name in HEADS and isinstance(value, int) and value < 1:
            raise ValueError(f"{path} asks for {name} = {value}, which must be 1 or more")
        most = len(shapes) if name in LAYERS else max(num_weights, 2**32)  # ids and bounds are no sizes
        if isinstance(value, int) and value > most:
            what = f"{len(shapes)} tensors" if name in LAYERS else f"{num_weights:,} weights"
            raise ValueError(f"{path} asks for {name} = {value:,}, and the files beside it hold {what}")
