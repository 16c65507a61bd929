"""Train a LoRA on a Wan transformer: low-rank matrices are added to its weights, which stay frozen (Hu et al. 2022).

checkpoint folder, DitConfig  ->  VideoDiT of which only the adapter is trained
adapter  ->  pytorch_lora_weights.safetensors, which WanPipeline.load_lora_weights reads
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from videogen.config.parsing import nearest
from videogen.config.train import DitConfig
from videogen.models.checkpoint import copy_weights_into_memory
from videogen.models.dit import VideoDiT
from videogen.sampling.pipeline import VideoPipeline


def add_lora(model: VideoDiT, config: DitConfig, seed: int) -> VideoDiT:
    """Freeze a model and add a LoRA, whose output is 0 at first; raises a ValueError for image-to-video models."""
    if model.config["in_channels"] > model.out_channels:
        raise ValueError(f"{config.init} begins with an image, and training has none beside a clip; give a T2V model")
    model.requires_grad_(requires_grad=False)
    # One matrix of a LoRA begins at zero, the other is random; everything later draws from its own generators.
    torch.manual_seed(seed)
    # With alpha = rank a file's scale is 1 unless whoever loads it chooses another (--lora FILE=SCALE).
    check_layers(model, config.lora_layers)
    options = {"r": config.lora_rank, "lora_alpha": config.lora_rank, "target_modules": list(config.lora_layers)}
    try:
        model.add_adapter(LoraConfig(**options))
    except ValueError as error:
        layers = ", ".join(config.lora_layers)
        raise ValueError(f"lora_layers must be names of the transformer's layers, got {layers}: {error}") from None
    copy_weights_into_memory(model)
    return model


def check_layers(model: VideoDiT, layers: Sequence[str]) -> None:
    """Raise a ValueError for a name that is the end of no linear layer's name, with the names that there are."""
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    missing = [layer for layer in layers if not any(f".{name}".endswith(f".{layer}") for name in linear)]
    if missing:
        ends = dict.fromkeys(re.sub(r"^blocks\.\d+\.(attn\d\.)?", "", name) for name in linear)
        raise ValueError(
            f"lora_layers must be names of the transformer's layers, got {', '.join(missing)}"
            f"{nearest(missing[0], ends)}; it has {', '.join(ends)}"
        )


def save_lora(model: VideoDiT, folder: Path) -> None:
    """Write the adapter to a file that load_lora_weights reads, here (--lora) and in diffusers."""
    state = {name: value.detach().cpu() for name, value in get_peft_model_state_dict(model).items()}
    VideoPipeline.save_lora_weights(folder, transformer_lora_layers=state)  # type: ignore[arg-type]
