"""Load a LoRA into a transformer: all of its tensors, or a refusal that names those that would be left out.

    file or folder, VideoPipeline  ->  an adapter of the transformer, or a ValueError

diffusers converts what other trainers write, and drops what it has no place for: differences of norms and biases, DoRA
scales of other programs, layers that the model lacks. Which tensors take part is asked of the conversion itself: it is
run once more on tensors without values, and a gradient flows back to those that it used.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from videogen.data.files import error_reason
from videogen.data.manifest import check_manifest

WEIGHTS = "pytorch_lora_weights.safetensors"


def load_lora(pipeline: WanLoraLoaderMixin, path: Path, adapter: str, part: str) -> None:
    """Load a LoRA's file or folder as an adapter of one transformer (part); a ValueError where it does not fit."""
    file = find_file(path)
    where = {"load_into_transformer_2": True} if part == "transformer_2" else {}
    try:
        names = read_shapes(file)
        pipeline.load_lora_weights(
            str(file), adapter_name=adapter, local_files_only=True, use_safetensors=True, **where
        )
        if adapter not in pipeline.get_list_adapters().get(part, ()):
            raise ValueError("it names none of its layers as diffusers does")
        left_out = set(names) - used_tensors(pipeline, names, getattr(pipeline, part), adapter)
    except (KeyError, ValueError, RuntimeError, AttributeError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is no LoRA for this model: {error_reason(error)}") from error
    if left_out := sorted(name for name in left_out if not is_zero(file, name)):
        shown = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
        raise ValueError(
            f"{path} would be used in part: {len(left_out)} of its {len(names)} tensors have no place in this model "
            f"({shown}); give a LoRA of this model whose layers all have matrices A and B"
        )


def find_file(path: Path) -> Path:
    """Find the file of a LoRA: the path itself, or the one .safetensors file of a folder, checked by its manifest."""
    if path.is_file():
        return path
    check_manifest(path)
    files = sorted(path.glob("*.safetensors"))
    if (named := path / WEIGHTS) in files:
        return named
    if len(files) != 1:
        raise ValueError(f"{path} holds {len(files)} .safetensors files; name the one that is the LoRA")
    return files[0]


def read_shapes(file: Path) -> dict[str, Tensor]:
    """Read a LoRA's header as tensors without values; alphas, which scale matrices, keep theirs."""
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                tensors[name] = opened.get_tensor(name) if name.endswith("alpha") else meta_leaf(opened, name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the file is not whole: {error_reason(error)}") from None
    return tensors


def meta_leaf(opened: safe_open, name: str) -> Tensor:
    """Make a tensor of a file's shape that has no values and takes a gradient."""
    return torch.empty(opened.get_slice(name).get_shape(), device="meta", requires_grad=True)


def used_tensors(
    pipeline: WanLoraLoaderMixin, tensors: dict[str, Tensor], model: torch.nn.Module, adapter: str
) -> set[str]:
    """Name the tensors of a LoRA that reach its adapter: those with a gradient, and the alphas."""
    # The conversion scales some in place, which leaves forbid.
    copies = {name: tensor.clone() if tensor.is_meta else tensor for name, tensor in tensors.items()}
    named = cast("dict[str, Tensor]", pipeline.lora_state_dict(copies))
    converted = {
        name.removeprefix("transformer."): tensor for name, tensor in named.items() if name.startswith("transformer.")
    }
    if "lora_A" not in next(iter(converted), ""):
        converted = convert_unet_state_dict_to_peft(converted)
    taken = get_peft_model_state_dict(model, adapter_name=adapter).keys()
    reached = [converted[name].sum() for name in converted.keys() & taken if converted[name].requires_grad]
    torch.stack(reached).sum().backward()
    return {name for name, tensor in tensors.items() if not tensor.is_meta or tensor.grad is not None}


def is_zero(file: Path, name: str) -> bool:
    """True for a difference that changes nothing: some trainers write them for every norm."""
    with safe_open(file, framework="pt") as opened:
        return ".diff" in name and not opened.get_tensor(name).any()
