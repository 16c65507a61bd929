"""Large models on small cards: parts that wait on the CPU, weights in fewer bits.

    VideoPipeline  ->  the same, its parts moved to the device when they compute (--offload)
    checkpoint folder  ->  VideoPipeline with quantised transformers (--quantise, --gguf)

All of it is diffusers' own: ModelMixin's layerwise casting and quantisers, DiffusionPipeline's offloading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig
from diffusers.quantizers.quantization_config import (
    BitsAndBytesConfig,
    GGUFQuantizationConfig,
    QuantizationConfigMixin,
    TorchAoConfig,
)

from videogen.dit import VideoDiT
from videogen.pipeline import VideoPipeline
from videogen.wan_folder import class_of, read_json

EXPERTS = ("transformer", "transformer_2")


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
    index = read_json(folder / "model_index.json")
    parts = [part for part in EXPERTS if class_of(index, part) is not None]
    if gguf and quantise != "none":
        raise ValueError(f"the weights of a .gguf are quantised already; leave --quantise {quantise} out")
    if gguf and len(gguf) != len(parts):
        raise ValueError(f"{folder} has {len(parts)} transformers, got {len(gguf)} .gguf files; give one for each")
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


def read_gguf(path: Path, config: Path, *, dtype: torch.dtype = torch.float32) -> VideoDiT:
    """A transformer from a .gguf in Wan's or diffusers' names; the folder config says its size.

    diffusers reads it into its own class; layer for layer, quantised ones as they are, it moves into ours.
    """
    require("gguf", "--gguf")
    if not path.is_file() or path.suffix != ".gguf":
        raise ValueError(f"there is no .gguf file {path}; give one of a Wan transformer")
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


def offload(pipeline: VideoPipeline, how: str, device: str) -> None:
    """Keep the parts on the CPU: whole ones come to the device to compute (model), or layer by layer (group)."""
    if device == "cpu":
        raise ValueError(
            f"--offload {how} keeps on the CPU what does not compute on a GPU; leave it out with --device cpu"
        )
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
