"""Large models on small cards: parts that wait on the CPU, weights in fewer bits.

    VideoPipeline  ->  the same, its parts moved to the device when they compute (--offload)
    checkpoint folder  ->  VideoPipeline with quantised transformers (--quantise, --gguf)
    checkpoint folder  ->  the bytes that all this takes, before it is loaded (--dry-run)

All of it is diffusers' own: ModelMixin's layerwise casting and quantisers, DiffusionPipeline's offloading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig
from diffusers.quantizers.quantization_config import (
    BitsAndBytesConfig,
    GGUFQuantizationConfig,
    QuantizationConfigMixin,
    TorchAoConfig,
)
from torch import Tensor, nn

from videogen.models.checkpoint import blank
from videogen.models.checkpoint_config import class_of, read_json
from videogen.models.dit import VideoDiT
from videogen.sampling.cost import count_weights
from videogen.sampling.lora_files import read_lora
from videogen.sampling.pipeline import VideoPipeline

EXPERTS = ("transformer", "transformer_2")
OTHERS = ("vae", "text_encoder", "image_encoder")


def _int8(dtype: torch.dtype) -> QuantizationConfigMixin:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _nf4(dtype: torch.dtype) -> QuantizationConfigMixin:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


# Name: the package that it needs, and its config for a precision to compute in.
QUANTISERS: dict[str, tuple[str, Callable[[torch.dtype], QuantizationConfigMixin]]] = {
    "int8": ("torchao", _int8),
    "nf4": ("bitsandbytes", _nf4),
}
# What they make of a matrix (rows, columns), in bytes.
BYTES_OF: dict[str, Callable[[Tensor], int]] = {
    "int8": lambda weight: weight.numel() + 5 * len(weight),  # of a row, a scale in float32 and a zero point
    "nf4": lambda weight: -(-weight.numel() // 2) + 4 * -(-weight.numel() // 64),  # of 64 values, a scale in float32
}


def load_small(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    quantise: str = "none",
    gguf: Sequence[Path] = (),
    loras: Sequence[str] = (),
) -> VideoPipeline:
    """VideoPipeline.load with its transformers in fewer bits, and LoRAs beside them in dtype.

    fp8 keeps their weights in eight bits and computes in dtype (layerwise casting); int8 is torchao's, nf4 is
    bitsandbytes' and needs CUDA. Files of gguf stand for the transformers, that for high noise first.
    """
    parts = find_experts(folder, quantise, gguf)
    options: dict[str, object] = {
        part: read_gguf(path, folder / part, dtype=dtype) for part, path in zip(parts, gguf, strict=False)
    }
    if quantise in QUANTISERS:
        package, make = QUANTISERS[quantise]
        require(package, f"--quantise {quantise}")
        options["quantization_config"] = PipelineQuantizationConfig(quant_mapping=dict.fromkeys(parts, make(dtype)))
    pipeline = VideoPipeline.load(folder, dtype=dtype, options=options)
    if loras:
        pipeline.add_loras(loras)
    if quantise == "fp8":  # last: matrices that come later would be cast and not cast back
        for expert in pipeline.experts:
            expert.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    return pipeline


def find_experts(folder: Path, quantise: str, gguf: Sequence[Path]) -> list[str]:
    """The transformers of a checkpoint folder; a ValueError where the options do not go with them."""
    index = read_json(folder / "model_index.json")
    parts = [part for part in EXPERTS if class_of(index, part) is not None]
    if gguf and quantise != "none":
        raise ValueError(f"the weights of a .gguf are quantised already; leave --quantise {quantise} out")
    if gguf and len(gguf) != len(parts):
        raise ValueError(f"{folder} has {len(parts)} transformers, got {len(gguf)} .gguf files; give one for each")
    return parts


def weight_bytes(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    quantise: str = "none",
    gguf: Sequence[Path] = (),
    loras: Sequence[str] = (),
    offload: str = "none",
) -> int:
    """Bytes of the weights that lie where the networks compute, from configs and the headers of files.

    Nothing is loaded. Of what offload moves there, the largest counts: a part (model), or a layer of one (group).
    """
    index = read_json(folder / "model_index.json")
    experts = [cast_as_loaded(blank(folder, part), dtype) for part in find_experts(folder, quantise, gguf)]
    others = [cast_as_loaded(blank(folder, part), dtype) for part in OTHERS if class_of(index, part) is not None]
    saved = [shrink(expert, quantise, dtype) for expert in experts]
    sizes = [count_bytes(expert) - less for expert, less in zip(experts, saved, strict=True)]
    sizes = [size - gguf_saves(path, dtype) for size, path in zip(sizes, gguf, strict=True)] if gguf else sizes
    if offload == "group":  # a LoRA's layers are smaller than what they stand beside
        return max(count_bytes(layer, deep=False) for part in (*experts, *others) for layer in part.modules())
    for path, _, expert in map(read_lora, loras):
        files = [path] if path.is_file() else path.glob("*.safetensors")
        sizes[expert == "low"] += dtype.itemsize * sum(map(count_weights, files))
    return (max if offload == "model" else sum)([*sizes, *map(count_bytes, others)])


def count_bytes(part: nn.Module, *, deep: bool = True) -> int:
    """Bytes of a network's weights, or of a layer's own."""
    return sum(weight.nbytes for weight in chain(part.parameters(deep), part.buffers(deep)))


def weights_of(part: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, by name."""
    return dict(chain(part.named_parameters(), part.named_buffers()))


def kept_whole(part: nn.Module) -> set[str]:
    """What diffusers keeps in float32 whatever the precision: words of its parameters' names."""
    return set(part._keep_in_fp32_modules or ()) if isinstance(part, ModelMixin) else set()


def cast_as_loaded(part: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A part on the meta device in the precision that from_pretrained gives each of its weights."""
    for name, weight in weights_of(part).items():
        if weight.is_floating_point():
            weight.data = weight.data.to(torch.float32 if kept_whole(part) & {*name.split(".")} else dtype)
    return part


def shrink(expert: nn.Module, quantise: str, dtype: torch.dtype) -> int:
    """Bytes that a quantiser takes off a transformer; fp8 casts it, and what is left is counted as it is."""
    if quantise == "fp8":
        cast("ModelMixin", expert).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    if quantise not in BYTES_OF:
        return 0
    layers = [layer for name, layer in expert.named_modules() if not kept_whole(expert) & {*name.split(".")}]
    matrices = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
    return sum(weight.nbytes - BYTES_OF[quantise](weight) for weight in matrices)


def gguf_saves(path: Path, dtype: torch.dtype) -> int:
    """Bytes that a file of a transformer takes off it: what is quantised there stays so, the rest is cast."""
    check_gguf(path)
    import gguf

    whole = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
    try:
        tensors = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.tensor_type not in whole]
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} cannot be read: {error}; give the .gguf of this model") from None
    return sum(dtype.itemsize * int(tensor.n_elements) - int(tensor.n_bytes) for tensor in tensors)


def read_gguf(path: Path, config: Path, *, dtype: torch.dtype = torch.float32) -> VideoDiT:
    """A transformer from a .gguf in Wan's or diffusers' names; the folder config says its size.

    diffusers reads it into its own class; layer for layer, quantised ones as they are, it moves into ours.
    """
    check_gguf(path)
    try:
        theirs = WanTransformer3DModel.from_single_file(
            str(path),
            config=str(config),
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            dtype=dtype,
            local_files_only=True,
        )
    except (ValueError, OSError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} does not fit {config}: {reason}; give the .gguf of this model") from None
    with torch.device("meta"):
        ours: VideoDiT = VideoDiT.from_config(VideoDiT.load_config(config))  # type: ignore[assignment]
    for name, layer in theirs.named_modules():
        if type(layer).__name__ == "GGUFLinear":
            ours.set_submodule(name, layer)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    return ours.eval()


def check_gguf(path: Path) -> None:
    """Refuse a .gguf that is not there or that nothing here can read."""
    require("gguf", "--gguf")
    if not path.is_file() or path.suffix != ".gguf":
        raise ValueError(f"there is no .gguf file {path}; give one of a Wan transformer")


def offload(pipeline: VideoPipeline, how: str, device: str) -> None:
    """Keep the parts on the CPU: whole ones come to the device to compute (model), or layer by layer (group)."""
    if how == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_group_offload(
            onload_device=torch.device(device), offload_type="leaf_level", use_stream=device == "cuda"
        )


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a CUDA GPU and a CUDA build of torch, and finds none; use --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps needs an Apple GPU; this machine has none: use --device cpu")


def require(package: str, flag: str) -> None:
    """Refuse a flag whose package is missing."""
    if find_spec(package) is None:
        raise ValueError(
            f"{flag} needs {package}, which is not installed: pip install {package}, or leave the flag out"
        )
