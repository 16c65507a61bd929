"""Load a LoRA into a transformer: all of its tensors, or a refusal that names those that would be left out.

    file or folder, VideoPipeline  ->  an adapter of the transformer and changed weights, or a ValueError

Other trainers write differences of weights and biases beside the matrices: they are added to the weights here.
diffusers converts the matrices, and drops what it has no place for: DoRA scales of others, layers that the model lacks.
Which tensors take part is asked of the conversion itself: it is run once more on tensors without values, and a gradient
flows back to those that it used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from videogen.data.files import error_reason
from videogen.data.manifest import check_manifest
from videogen.models.weight_layouts import convert_transformer
from videogen.sampling.lora_names import OUR_NAMES, WAN_NAMES, check_kinds, check_widths, read_names

WEIGHTS = "pytorch_lora_weights.safetensors"
DIFFERENCES = {".diff": ".weight", ".diff_b": ".bias"}


def load_lora(pipeline: WanLoraLoaderMixin, path: Path, adapter: str, part: str, scale: float = 1.0) -> None:
    """Load a LoRA's file or folder as an adapter of one transformer (part); a ValueError where it does not fit.

    Differences of weights are added to the weights at this scale; that of the adapter is the caller's to set.
    """
    file, model = find_file(path), getattr(pipeline, part)
    where = {"load_into_transformer_2": True} if part == "transformer_2" else {}
    in_file: dict[str, Tensor] = {}
    try:
        in_file = read_shapes(file)
        own_names = {new: name for name, new in read_names(in_file).items()}
        if len(own_names) < len(in_file):
            raise ValueError(f"{len(in_file) - len(own_names)} of its {len(in_file)} tensors are there twice")
        names = {new: in_file[name] for new, name in own_names.items()}
        check_kinds(in_file)
        check_widths(names, model)
        weights = weights_of_differences(names, model)
        matrices = {name: tensor for name, tensor in names.items() if name not in weights}
        is_renamed, metadata = own_names.keys() != in_file.keys(), read_metadata(file)
        if is_renamed and metadata is not None:
            load_bare(model, read_tensors(file, own_names, matrices), adapter, metadata)
        else:
            # The file's metadata, which scales the matrices of diffusers' own LoRAs, is read where all of it is loaded.
            source = read_tensors(file, own_names, matrices) if weights or is_renamed else str(file)
            options = {"adapter_name": adapter, "local_files_only": True, "use_safetensors": True, **where}
            pipeline.load_lora_weights(source, **options)
        if adapter not in pipeline.get_list_adapters().get(part, ()):
            raise ValueError("it names none of its layers as diffusers does")
        left_out = set(matrices) - used_tensors(pipeline, matrices, model, adapter)
    except (KeyError, ValueError, RuntimeError, AttributeError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is no LoRA for this model: {describe_fault(error, len(in_file))}") from error
    if left_out := sorted(own_names[name] for name in left_out if not is_zero(file, own_names[name])):
        shown = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
        raise ValueError(
            f"{path} would be used in part: {len(left_out)} of its {len(names)} tensors have no place in this model "
            f"({shown}); give a LoRA of this model whose layers all have matrices A and B"
        )
    add_differences(read_tensors(file, own_names, weights), weights, scale)


def describe_fault(error: Exception, num_tensors: int) -> str:
    """Describe why diffusers did not take a LoRA; where it lists what it could not convert, with the count of that."""
    text = str(error)
    if "should be empty at this point" not in text:
        return error_reason(error)
    left = re.findall(r"'([^']+)'", text.partition("dict_keys")[2])
    shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
    return f"{len(left)} of its {num_tensors} tensors are of no kind that is read ({shown})"


def weights_of_differences(names: Mapping[str, Tensor], model: nn.Module) -> dict[str, nn.Parameter]:
    """Find the weights that a LoRA's differences, in the names of Wan's own code, are to be added to.

    Weights in fewer bits than floats have are none of them: a sum would be rounded, or mean nothing.
    """
    targets = {
        name.removeprefix(WAN_NAMES).removesuffix(suffix) + kind: name
        for name in names
        for suffix, kind in DIFFERENCES.items()
        if name.startswith(WAN_NAMES) and name.endswith(suffix)
    }
    weights = {name.replace(".base_layer.", "."): weight for name, weight in model.named_parameters()}
    found = {name: weights[target] for target, name in convert_transformer(targets).items() if target in weights}
    return {
        name: weight
        for name, weight in found.items()
        if type(weight.data) is Tensor and weight.itemsize > 1 and weight.shape == names[name].shape
    }


@torch.no_grad()
def add_differences(differences: Mapping[str, Tensor], weights: Mapping[str, nn.Parameter], scale: float) -> None:
    """Add differences at a scale to weights, in float32."""
    for name, difference in differences.items():
        weight = weights[name]
        weight.copy_(weight.float() + scale * difference.to(weight.device).float())


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


def read_tensors(file: Path, own_names: Mapping[str, str], names: Collection[str]) -> dict[str, Tensor]:
    """Read some tensors, each of which has a name of its own in the file."""
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(own_names[name]) for name in names}


def read_metadata(file: Path) -> dict[str, object] | None:
    """Read what diffusers writes of an adapter into the header: its rank, its alpha, its layers."""
    with safe_open(file, framework="pt") as opened:
        text = (opened.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
    return json.loads(text) if text else None


def load_bare(model: nn.Module, tensors: Mapping[str, Tensor], adapter: str, metadata: dict[str, object]) -> None:
    """Load a LoRA that diffusers saved of a transformer alone: neither its names nor its metadata have a prefix."""
    bare = {name.removeprefix(OUR_NAMES): tensor for name, tensor in tensors.items()}
    none = cast("str", None)  # which diffusers takes for no prefix
    cast("PeftAdapterMixin", model).load_lora_adapter(bare, prefix=none, adapter_name=adapter, metadata=metadata)


def meta_leaf(opened: safe_open, name: str) -> Tensor:
    """Make a tensor of a file's shape that has no values and takes a gradient."""
    return torch.empty(opened.get_slice(name).get_shape(), device="meta", requires_grad=True)


def used_tensors(pipeline: WanLoraLoaderMixin, tensors: dict[str, Tensor], model: nn.Module, adapter: str) -> set[str]:
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
