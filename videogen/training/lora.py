"""Train a LoRA on a Wan transformer: low-rank matrices are added to its weights, which stay frozen (Hu et al. 2022).

checkpoint folder, DitConfig  ->  VideoDiT of which only the adapter is trained
adapter  ->  NAME.safetensors, which WanPipeline.load_lora_weights, ComfyUI and Wan2GP read
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from videogen.config.parsing import nearest
from videogen.config.train import DitConfig
from videogen.data.files import save_tensors
from videogen.models.checkpoint import copy_weights_into_memory
from videogen.models.dit import VideoDiT

# From diffusers' names of layers to those of Wan's own code, and all of the latter that a LoRA may name.
WAN_NAMES: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"\.attn1\.": ".self_attn.",
    r"\.attn2\.": ".cross_attn.",
    r"\.to_out\.0\.": ".o.",
    r"\.(?:to_([qkv])|add_([kv])_proj)\.": lambda match: f".{match[1]}." if match[1] else f".{match[2]}_img.",
    r"\.ffn\.net\.(?:0\.proj|2)\.": lambda match: ".ffn.2." if match[0] == ".ffn.net.2." else ".ffn.0.",
    r"^condition_embedder\.time_proj\.": "time_projection.1.",
    r"^condition_embedder\.(text|time)_embedder\.linear_1\.": r"\1_embedding.0.",
    r"^condition_embedder\.(text|time)_embedder\.linear_2\.": r"\1_embedding.2.",
    r"^proj_out\.": "head.head.",
}
NOT_LORAS = ("scheduler", "optimizer", "checkpoint")  # diffusers passes over files of such names in a folder
WAN_LAYERS = (
    r"(blocks\.\d+\.((self|cross)_attn\.[qkvo]|cross_attn\.[kv]_img|ffn\.[02])"
    r"|time_projection\.1|(text|time)_embedding\.[02]|head\.head)\.lora_[AB]\.weight$"
)


def add_lora(model: VideoDiT, config: DitConfig, seed: int) -> VideoDiT:
    """Freeze a model and add a LoRA, whose output is 0 at first; raises a ValueError for image-to-video models."""
    if model.config["in_channels"] > model.out_channels:
        raise ValueError(f"{config.init} begins with an image, and training has none beside a clip; give a T2V model")
    model.requires_grad_(requires_grad=False)
    # One matrix of a LoRA begins at zero, the other is random; everything later draws from its own generators.
    torch.manual_seed(seed)
    check_layers(model, config.lora_layers)
    alpha = config.lora_rank if config.lora_alpha is None else config.lora_alpha
    options = {"r": config.lora_rank, "lora_alpha": alpha, "target_modules": list(config.lora_layers)}
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


def save_lora(
    model: VideoDiT, folder: Path, *, name: str = "pytorch_lora_weights", about: Mapping[str, str] | None = None
) -> None:
    """Write the adapter to folder/name.safetensors, which --lora, diffusers, ComfyUI and Wan2GP read.

    Its layers have the names of Wan's own code where those programs have a place for all of them, else diffusers'. Its
    scale, alpha / rank, is multiplied into the matrices B, so that the file is applied at scale 1 everywhere.
    """
    if any(word in name for word in NOT_LORAS):
        name = "pytorch_lora_weights"
    config = cast("LoraConfig", model.peft_config["default"])
    scale = config.lora_alpha / config.r
    state = {key: value.detach().cpu() for key, value in get_peft_model_state_dict(model).items()}
    if scale != 1:
        state = {key: value * scale if ".lora_B." in key else value for key, value in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(wan_names(state), folder / f"{name}.safetensors", lora_metadata(config, name) | dict(about or {}))


def lora_metadata(config: LoraConfig, name: str) -> dict[str, str]:
    """Describe an adapter in a file's header as diffusers and the trainers and galleries of LoRAs read it."""
    targets = sorted(config.target_modules or ())
    adapter = {"r": config.r, "lora_alpha": config.r, "target_modules": targets}
    return {
        "format": "pt",
        LORA_ADAPTER_METADATA_KEY: json.dumps({f"transformer.{key}": value for key, value in adapter.items()}),
        "ss_network_module": "networks.lora_wan",
        "ss_network_dim": str(config.r),
        "ss_network_alpha": str(config.r),
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "wan/lora",
        "modelspec.title": name,
    }


def wan_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an adapter's tensors as Wan's own code does; where one has no name there, all keep diffusers' names."""
    renamed = {wan_name(key): value for key, value in state.items()}
    if any(re.match(WAN_LAYERS, key) is None for key in renamed):
        return {f"transformer.{key}": value for key, value in state.items()}
    return {f"diffusion_model.{key}": value for key, value in renamed.items()}


def wan_name(key: str) -> str:
    """Name a layer as Wan's own code does: blocks.0.attn1.to_q -> blocks.0.self_attn.q."""
    for pattern, name in WAN_NAMES.items():
        key = re.sub(pattern, name, key)
    return key
