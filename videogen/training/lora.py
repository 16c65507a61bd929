"""A LoRA on a Wan transformer: small matrices beside the weights, which stay as they are (Hu et al. 2022).

checkpoint folder, DitConfig  ->  VideoDiT with an adapter that alone is trained
the adapter  ->  pytorch_lora_weights.safetensors, as WanPipeline.load_lora_weights reads it
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from videogen.config.train import DitConfig
from videogen.models.checkpoint import copy_weights_into_memory
from videogen.models.dit import VideoDiT
from videogen.sampling.pipeline import VideoPipeline


def adapt(model: VideoDiT, config: DitConfig, seed: int) -> VideoDiT:
    """Freeze a model and put a LoRA beside its layers, which changes nothing yet: one of its halves is zero."""
    if model.config["in_channels"] > model.out_channels:
        raise ValueError(f"{config.init} begins with an image, and training has none beside a clip; give a T2V model")
    model.requires_grad_(requires_grad=False)
    torch.manual_seed(seed)  # the other half; everything later draws from its own generators
    # Without more said, a file's scale is alpha / rank = 1; who loads it chooses another (--lora FILE=SCALE).
    options = {"r": config.lora_rank, "lora_alpha": config.lora_rank, "target_modules": list(config.lora_layers)}
    try:
        model.add_adapter(LoraConfig(**options))
    except ValueError as error:
        layers = ", ".join(config.lora_layers)
        raise ValueError(f"lora_layers must be names of the transformer's layers, got {layers}: {error}") from None
    copy_weights_into_memory(model)
    return model


def save_lora(model: VideoDiT, folder: Path) -> None:
    """Write the adapter for load_lora_weights, here (--lora) and in diffusers."""
    state = {name: value.detach().cpu() for name, value in get_peft_model_state_dict(model).items()}
    VideoPipeline.save_lora_weights(folder, transformer_lora_layers=state)  # type: ignore[arg-type]
