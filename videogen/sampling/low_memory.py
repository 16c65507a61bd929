"""Run large models on small cards: components that wait on the CPU, weights in fewer bits.

    checkpoint folder  ->  VideoPipeline with quantised transformers (--quantise, --gguf)
    VideoPipeline  ->  the same, its components moved to the device when they compute (--offload)
    checkpoint folder  ->  the bytes that all this takes, before it is loaded (--dry-run)

All of it is diffusers' own: ModelMixin's layerwise casting and quantisers, DiffusionPipeline's offloading.
"""

from __future__ import annotations

import shutil
import tempfile
from atexit import register
from collections.abc import Callable, Sequence
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

from videogen.models.checkpoint import cast_weights, meta_component
from videogen.models.checkpoint_config import CheckpointInfo
from videogen.models.dit import VideoDiT
from videogen.models.single_file import load_parts
from videogen.models.weight_layouts import convert_transformer
from videogen.sampling.cost import count_weights
from videogen.sampling.gguf_files import check_gguf, require, transformers_of
from videogen.sampling.lora_files import read_lora
from videogen.sampling.pipeline import VideoPipeline

OTHER_NETWORKS = ("vae", "text_encoder", "image_encoder")


def _int8(dtype: torch.dtype) -> QuantizationConfigMixin:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _nf4(dtype: torch.dtype) -> QuantizationConfigMixin:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


# By name, the package that a quantiser needs, and its config for a precision to compute in.
QUANTISERS: dict[str, tuple[str, Callable[[torch.dtype], QuantizationConfigMixin]]] = {
    "int8": ("torchao", _int8),
    "nf4": ("bitsandbytes", _nf4),
}
# Bytes that a matrix (rows, columns) takes once it is quantised.
BYTES_OF: dict[str, Callable[[Tensor], int]] = {
    "int8": lambda weight: weight.numel() + 5 * len(weight),  # each row has a scale in float32 and a zero point
    "nf4": lambda weight: -(-weight.numel() // 2) + 4 * -(-weight.numel() // 64),  # 64 values share a scale in float32
}


def load_pipeline(
    info: CheckpointInfo,
    *,
    dtype: torch.dtype = torch.float32,
    quantise: str = "none",
    gguf: Sequence[Path] = (),
    loras: Sequence[str] = (),
) -> VideoPipeline:
    """Load a checkpoint with its transformers in fewer bits, and LoRAs on them in dtype.

    fp8 keeps their weights in eight bits and computes in dtype (layerwise casting); int8 is torchao's, nf4 is
    bitsandbytes' and needs CUDA. Files of gguf replace the transformers, that for high noise first.
    """
    parts = transformers_of(info, quantise, gguf)
    options: dict[str, object] = {
        part: read_gguf(path, info.folder / part, dtype=dtype) for part, path in zip(parts, gguf, strict=False)
    }
    if info.files is not None:
        if quantise in QUANTISERS:
            raise ValueError(f"--quantise {quantise} loads a folder; with single files use fp8, or leave it out")
        options = load_parts(info.files, info.folder, dtype) | options
    if quantise in QUANTISERS:
        package, make = QUANTISERS[quantise]
        require(package, f"--quantise {quantise}")
        options["quantization_config"] = PipelineQuantizationConfig(quant_mapping=dict.fromkeys(parts, make(dtype)))
    pipeline = VideoPipeline.load(info.folder, dtype=dtype, options=options)
    if loras:
        pipeline.add_loras(loras)
    if quantise == "fp8":  # last, since matrices added later would be cast and not cast back
        for expert in pipeline.experts:
            expert.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    return pipeline


def weight_bytes(
    info: CheckpointInfo,
    *,
    dtype: torch.dtype = torch.float32,
    quantise: str = "none",
    gguf: Sequence[Path] = (),
    loras: Sequence[str] = (),
    offload: str = "none",
) -> int:
    """Count the bytes of the weights on the device where the networks compute, from configs and headers of files.

    Nothing is loaded. Of what offload moves there, the largest counts: a component (model) or a layer (group).
    """
    transformers = transformers_of(info, quantise, gguf)
    others = [part for part in OTHER_NETWORKS if part in info.components]
    networks = {part: cast_as_loaded(meta_component(info.folder, part), dtype) for part in (*transformers, *others)}
    sizes = []
    for number, part in enumerate(transformers):
        saved = bytes_saved_by_quantiser(networks[part], quantise, dtype)
        saved += bytes_saved_by_gguf(gguf[number], dtype) if gguf else 0
        sizes.append(count_bytes(networks[part]) - saved)
    if offload == "group":  # a LoRA's layers are smaller than those that they are added to
        return max(count_bytes(layer, deep=False) for network in networks.values() for layer in network.modules())
    for path, _, expert in map(read_lora, loras):
        files = [path] if path.is_file() else path.glob("*.safetensors")
        sizes[expert == "low"] += dtype.itemsize * sum(map(count_weights, files))
    return (max if offload == "model" else sum)([*sizes, *(count_bytes(networks[part]) for part in others)])


def count_bytes(network: nn.Module, *, deep: bool = True) -> int:
    """Count the bytes of a network's weights, or of a layer's own."""
    return sum(weight.nbytes for weight in chain(network.parameters(deep), network.buffers(deep)))


def names_kept_in_fp32(network: nn.Module) -> set[str]:
    """List the parts of parameter names that diffusers keeps in float32 whatever the precision."""
    return set(network._keep_in_fp32_modules or ()) if isinstance(network, ModelMixin) else set()


def cast_as_loaded(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a network on the meta device to the precision that from_pretrained gives each of its weights."""
    cast_weights(network, dtype, whole=names_kept_in_fp32(network))
    return network


def bytes_saved_by_quantiser(transformer: nn.Module, quantise: str, dtype: torch.dtype) -> int:
    """Count the bytes that a quantiser saves; fp8 casts the transformer, whose bytes then count as they are."""
    if quantise == "fp8":
        cast("ModelMixin", transformer).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    if quantise not in BYTES_OF:
        return 0
    whole = names_kept_in_fp32(transformer)
    layers = [layer for name, layer in transformer.named_modules() if not whole & {*name.split(".")}]
    matrices = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
    return sum(weight.nbytes - BYTES_OF[quantise](weight) for weight in matrices)


def bytes_saved_by_gguf(path: Path, dtype: torch.dtype) -> int:
    """Count the bytes that a .gguf saves: what is quantised in it stays so, the rest is cast."""
    check_gguf(path)
    import gguf

    whole = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
    try:
        tensors = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.tensor_type not in whole]
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} cannot be read: {error}; give the .gguf of this model") from None
    return sum(dtype.itemsize * int(tensor.n_elements) - int(tensor.n_bytes) for tensor in tensors)


def read_gguf(path: Path, config: Path, *, dtype: torch.dtype = torch.float32) -> VideoDiT:
    """Read a transformer from a .gguf in Wan's or diffusers' names, of the size that the folder config says.

    diffusers reads it into its own class; its layers, quantised ones as they are, then move into ours.
    """
    check_gguf(path)
    try:
        theirs = WanTransformer3DModel.from_single_file(
            str(lower_suffix(path)),
            config=str(config),
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            dtype=dtype,
            local_files_only=True,
        )
    except (ValueError, OSError, RuntimeError, NotImplementedError, KeyError) as error:
        # All of these stand for one fault, a file of another model or damaged: diffusers has no error for it.
        reason = describe_gguf_fault(path, config) or str(error).split("\n")[0]
        raise ValueError(f"{path} does not fit {config}: {reason}; give the .gguf of this model") from None
    if missing := sorted(name for name, weight in theirs.state_dict().items() if weight.is_meta):
        raise ValueError(f"{path} does not fit {config}: it lacks {name_all(missing)}; give the .gguf of this model")
    with torch.device("meta"):
        ours: VideoDiT = VideoDiT.from_config(VideoDiT.load_config(config))  # type: ignore[assignment]
    for name, layer in theirs.named_modules():
        if type(layer).__name__ == "GGUFLinear":
            ours.set_submodule(name, layer)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    return ours.eval()


def lower_suffix(path: Path) -> Path:
    """Return a file, or a link to it, whose suffix is in lower case: diffusers reads no other."""
    if path.suffix == ".gguf":
        return path
    folder = Path(tempfile.mkdtemp(prefix="videogen-"))
    register(shutil.rmtree, folder, ignore_errors=True)
    link = folder / f"{path.stem}.gguf"
    link.symlink_to(path.absolute())
    return link


def describe_gguf_fault(path: Path, config: Path) -> str:
    """Describe what a .gguf lacks of a transformer, or that it is of another architecture; empty where it has all."""
    import gguf

    reader = gguf.GGUFReader(path)
    names = convert_transformer({tensor.name: tensor for tensor in reader.tensors})
    with torch.device("meta"):
        wanted = VideoDiT.from_config(VideoDiT.load_config(config)).state_dict()  # type: ignore[union-attr]
    missing = sorted(wanted.keys() - names.keys())
    if len(missing) > len(wanted) // 2:
        field = reader.fields.get("general.architecture")
        kind = field.contents() if field is not None else "unknown"
        return f"it holds another architecture ({kind}), with {min(names, default='no tensors')} and the like"
    return f"it lacks {name_all(missing)}" if missing else ""


def name_all(names: Sequence[str]) -> str:
    """Name the first of several, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def offload(pipeline: VideoPipeline, how: str, device: str) -> None:
    """Keep the networks on the CPU and move them to the device to compute: whole (model), or by layers (group)."""
    if how == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_group_offload(
            onload_device=torch.device(device), offload_type="leaf_level", use_stream=device.startswith("cuda")
        )
