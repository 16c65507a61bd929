"""Bring a LoRA's names into those that diffusers reads, and refuse by its header what would not be applied as it is.

names  ->  {name: diffusers' name};  {name: shape}, transformer  ->  nothing, or a ValueError

Some trainers file a LoRA without the prefix that says whose names it has, or under the name of PEFT's first adapter.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor, nn

from videogen.models.weight_layouts import convert_transformer

WAN_NAMES, OUR_NAMES = "diffusion_model.", "transformer."  # begin names of Wan's own code, and of diffusers
PEFT_NAMES = "base_model.model."
ADAPTER = re.compile(r"(\.lora_\w+)\.default(?=\.|$)")  # PEFT's name of the first adapter, within a weight's
WAN_LAYERS = re.compile(r"^blocks\.\d+\.(self_attn|cross_attn|ffn\.[02])\.")
OUR_LAYERS = re.compile(r"^blocks\.\d+\.(attn[12]|ffn\.net)\.")
KINDS = {"LoKr": ".lokr_", "LoHa": ".hada_", "OFT": ".oft_", "BOFT": ".boft_"}  # whose matrices are no A and B
MATRIX = re.compile(r"\.lora_(A|B|down|up)\.weight$")


def read_names(names: Collection[str]) -> dict[str, str]:
    """Map each name to that which diffusers reads: with a prefix, and without that of an adapter."""
    bare = {name: ADAPTER.sub(r"\1", name.removeprefix(PEFT_NAMES)) for name in names}
    for layers, prefix in ((WAN_LAYERS, WAN_NAMES), (OUR_LAYERS, OUR_NAMES)):
        if any(layers.match(name) for name in bare.values()):
            return {name: prefix + new for name, new in bare.items()}
    return bare


def check_kinds(names: Collection[str]) -> None:
    """Refuse a LoRA of which some tensors are of a kind that is not read, with their count."""
    for kind, mark in KINDS.items():
        if found := sorted(name for name in names if mark in name):
            raise ValueError(
                f"{len(found)} of its {len(names)} tensors are {kind}, which is not read ({found[0]}, ...)"
            )


def check_widths(shapes: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse a LoRA whose matrices are of another width than the layers that they are for, naming both."""
    weights = {name.replace(".base_layer.", "."): weight for name, weight in model.named_parameters()}
    for name, layer in layers_of(shapes).items():
        weight = weights.get(layer)
        if weight is None or weight.ndim != 2 or type(weight.data) is not Tensor or weight.itemsize == 1:
            continue  # what the model lacks is named later, and of quantised weights the shape is not that of the layer
        side = int(name.endswith(("lora_A.weight", "lora_down.weight")))  # down from its width, or up to its height
        if (own := shapes[name].shape[side]) != (wanted := weight.shape[side]):
            raise ValueError(f"it is of width {own} and this model of {wanted} ({name}); give one that was made for it")


def layers_of(names: Collection[str]) -> dict[str, str]:
    """Name the weight of the layer that each matrix is for, as diffusers names it."""
    found = {name: match for name in names if (match := MATRIX.search(name))}
    layers = {name: name[: match.start()] + ".weight" for name, match in found.items()}
    wan = {layer.removeprefix(WAN_NAMES): layer for layer in layers.values() if layer.startswith(WAN_NAMES)}
    ours = {layer: new for new, layer in convert_transformer(wan).items()} if wan else {}
    return {name: ours.get(layer, layer.removeprefix(OUR_NAMES)) for name, layer in layers.items()}
