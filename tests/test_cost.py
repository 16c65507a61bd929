"""A dry run estimates memory and seconds from configs and file headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

from tests.bench.flop import count_gflop
from tests.test_cli import refused
from tests.test_low_memory import folders as folders
from tests.test_low_memory import write_gguf
from videogen.cli.dry_run import count_bytes
from videogen.cli.main import sample
from videogen.cli.sample import load, parse_args
from videogen.config.sample import MINI
from videogen.models.attention import text_keys
from videogen.models.checkpoint import meta_component, weights_of
from videogen.models.checkpoint_config import read_checkpoint_info
from videogen.models.dit_network import DiT, TextContext
from videogen.models.vae_network import VAE
from videogen.packing.noise import NoiseLevels
from videogen.packing.packs import pack
from videogen.sampling.clip_sampler import ClipSampler
from videogen.sampling.cost import Config, dit_flop, estimate, vae_flop
from videogen.sampling.low_memory import BYTES_OF, weight_bytes
from videogen.sampling.pipeline import VideoPipeline
from videogen.training.lora import save_lora

PRECISIONS = ("float32", "bfloat16")
BILLION = {"transformer": 14.29, "text_encoder": 5.68, "vae": 0.127}  # The published sizes of Wan 2.1 T2V 14B.


def count_loaded_bytes(pipeline: ClipSampler) -> int:
    """Count the bytes of the weights and buffers of all components; a quantised weight may be several tensors."""
    components = pipeline.components if isinstance(pipeline, VideoPipeline) else vars(pipeline)
    parts = [part for part in components.values() if isinstance(part, nn.Module)]
    weights = [weight for part in parts for weight in (*part.parameters(), *part.buffers())]
    return sum(inner.nbytes for weight in weights for inner in list_inner_tensors(weight))


def list_inner_tensors(weight: Tensor) -> list[Tensor]:
    """List the tensors that a quantised weight consists of; of any other, the weight itself."""
    flatten = getattr(weight, "__tensor_flatten__", None)
    return [weight] if flatten is None else [getattr(weight, name) for name in flatten()[0]]


@pytest.fixture(scope="module")
def lora(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a LoRA on layers of attention and feed-forward."""
    folder, model = tmp_path_factory.mktemp("lora"), VideoPipeline.load(folders["T2V 2.1"]).transformer
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "ffn.net.2"], init_lora_weights=False))
    save_lora(model, folder)
    return folder


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("options", ["none", "fp8", "int8", "lora", "fp8, lora"])
@pytest.mark.parametrize("kind", ["T2V A14B", "TI2V 5B, image", "I2V 2.1"])
def test_count_bytes_is_the_size_of_the_loaded_weights(
    kind: str, options: str, dtype: str, folders: dict[str, Path], lora: Path
) -> None:
    if options == "int8":
        pytest.importorskip("torchao")
    quantise = options.split(", ")[0] if options != "lora" else "none"
    words = ["x", "--model", str(folders[kind]), "--dtype", dtype, "--quantise", quantise]
    if "lora" in options:
        words += ["--lora", f"{'high:' * (kind == 'T2V A14B')}{lora}=0.5"]
    args, info = parse_args(words)
    assert count_bytes(args, info) == count_loaded_bytes(load(args, info))


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("quantise", ["none", "fp8"])
def test_count_bytes_is_the_size_of_a_videogen_checkpoint(quantise: str, dtype: str, checkpoint: Path) -> None:
    args, info = parse_args(["x", "--model", str(checkpoint), "--dtype", dtype, "--quantise", quantise])
    assert count_bytes(args, info) == count_loaded_bytes(load(args, info))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_count_bytes_is_the_size_of_a_gguf_as_it_is_loaded(
    dtype: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "wan.gguf"
    write_gguf(VideoPipeline.load(folders["T2V 2.1"]).transformer, path)
    args, info = parse_args(["x", "--model", str(folders["T2V 2.1"]), "--dtype", dtype, "--gguf", str(path)])
    assert count_bytes(args, info) == count_loaded_bytes(load(args, info))
    plain_args, _ = parse_args(["x", "--model", str(folders["T2V 2.1"]), "--dtype", dtype])
    assert count_bytes(args, info) < count_bytes(plain_args, info)


@pytest.mark.parametrize("shape", [(64, 64), (36, 40), (96, 37)])
def test_nf4_bytes_are_those_of_the_packed_matrix_of_bitsandbytes(shape: tuple[int, int]) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(shape)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4")
    assert BYTES_OF["nf4"](weight) == packed.nbytes + state.absmax.nbytes


@pytest.mark.parametrize(("width", "channels"), [(32, 16), (64, 16), (64, 96), (128, 16)])
@pytest.mark.parametrize("latent_frames", [1, 5])
def test_vae_flop_is_what_the_decoder_computes(width: int, channels: int, latent_frames: int) -> None:
    """The decoder is on the meta device, where operations are counted but not computed."""
    with torch.device("meta"), torch.no_grad():
        vae = VAE(channels, width)
        gflop, clip = count_gflop(lambda: vae.reconstruct(torch.empty(1, channels, latent_frames, 8, 6)))
    config = {"width": width, "latent_channels": channels}
    assert vae_flop(config, clip.shape[2], clip.shape[3] * clip.shape[4]) == pytest.approx(1e9 * gflop, rel=1e-9)


WAN_1_3B: dict[str, object] = {
    "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16, "out_channels": 16,
    "patch_size": [1, 2, 2], "ffn_dim": 8960, "num_layers": 30,
}  # fmt: skip


@pytest.mark.parametrize("side", [8, 16])
@pytest.mark.parametrize("name", ["mini", "Wan 2.1 1.3B"])
def test_dit_flop_is_what_the_network_computes_but_for_the_noise_level(name: str, side: int) -> None:
    config = WAN_1_3B
    if name == "mini":
        config = json.loads((MINI / "transformer" / "config.json").read_text(encoding="utf-8"))
        config = {key: value for key, value in config.items() if not key.startswith("_")}
    device = "cpu" if config.get("nearby") else "meta"  # where its layer has no autocast
    with torch.device(device):
        dit = DiT(**config)  # type: ignore[arg-type]
        video = pack([torch.zeros(dit.in_channels, 5, side, side)], dit.base_patch)
        num_tokens = len(video.tokens)
        levels = NoiseLevels(torch.full((1,), 0.5), torch.zeros(num_tokens, dtype=torch.int64))
        rows = torch.zeros(1, config["num_attention_heads"], 24, dit.head_size)  # type: ignore[arg-type]
    text = TextContext(text_keys((24,), torch.ones(24)), [(rows, rows)] * len(dit.blocks))
    with torch.no_grad():
        gflop, _ = count_gflop(lambda: dit(video, levels, text))
    # What is left out, the embedding of the noise level, is the same for a clip of any size.
    assert dit_flop(cast("Config", config), num_tokens, 24) == pytest.approx(1e9 * gflop, rel=1e-3)


def test_activations_take_half_the_memory_in_bfloat16(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The clip is so large that the weights, some hundred kilobytes, are negligible."""
    words = ["x", "--model", str(checkpoint), "--size", "4096x4096", "--frames", "17", "--dry-run", "--json"]
    activations_gb = []  # A dry run adds 0.6 GB for Python and the libraries.
    for dtype in PRECISIONS:
        assert sample([*words, "--dtype", dtype]) == 0
        activations_gb.append(json.loads(capsys.readouterr().out)["memory_gb"] - 0.6)
    assert activations_gb[0] > 3
    assert activations_gb[0] == pytest.approx(2 * activations_gb[1], rel=0.01)


def test_offload_counts_the_largest_component_or_layer_and_seconds_are_estimated_for_cpus_only(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [meta_component(checkpoint, part) for part in ("transformer", "vae", "text_encoder")]
    sizes = [sum(weight.nbytes for weight in weights_of(part).values()) for part in parts]
    info = read_checkpoint_info(checkpoint)
    assert weight_bytes(info) == sum(sizes)
    assert weight_bytes(info, offload="model") == max(sizes)
    layers = [weight.nbytes for part in parts for weight in weights_of(part).values()]
    assert max(layers) <= weight_bytes(info, offload="group") < min(sizes)
    assert sample(["x", "--model", str(checkpoint), "--dry-run", "--json", "--device", "cuda"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] is None


def test_the_memory_estimate_includes_the_bytes_of_the_weights(checkpoint: Path) -> None:
    info = read_checkpoint_info(checkpoint)
    with_weights, without = (estimate(info, info.defaults, weights=num).memory_gb for num in (3 * 10**9, 0))
    assert with_weights == pytest.approx(without + 3)


@pytest.fixture
def wan_14b(tmp_path: Path) -> Path:
    """The configs of Wan 2.1 T2V 14B, without its weights."""
    components = {part: ["diffusers", kind] for part, kind in (
        ("transformer", "WanTransformer3DModel"), ("vae", "AutoencoderKLWan"), ("scheduler", "UniPCMultistepScheduler"),
    )}  # fmt: skip
    encoder = {"text_encoder": ["transformers", "UMT5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"]}
    dit = {
        "num_attention_heads": 40, "attention_head_dim": 128, "in_channels": 16, "out_channels": 16, "text_dim": 4096,
        "freq_dim": 256, "ffn_dim": 13824, "num_layers": 40, "patch_size": [1, 2, 2],
    }  # fmt: skip
    umt5 = {
        "architectures": ["UMT5EncoderModel"], "model_type": "umt5", "d_model": 4096, "d_kv": 64, "d_ff": 10240,
        "num_layers": 24, "num_heads": 64, "vocab_size": 256384, "feed_forward_proj": "gated-gelu",
    }  # fmt: skip
    files: dict[str, dict[str, object]] = {
        "model_index.json": {"_class_name": "WanPipeline", **components, **encoder},
        "transformer/config.json": {"_class_name": "WanTransformer3DModel", **dit},
        "vae/config.json": {"_class_name": "AutoencoderKLWan", "base_dim": 96, "z_dim": 16},
        "text_encoder/config.json": umt5,
        "scheduler/scheduler_config.json": {"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0},
    }
    for name, values in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(values), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "gb"),
    [
        ([], 4 * sum(BILLION.values())),
        (["--dtype", "bfloat16"], 2 * sum(BILLION.values())),
        (["--dtype", "bfloat16", "--quantise", "fp8"], 2 * sum(BILLION.values()) - BILLION["transformer"]),
        (["--dtype", "bfloat16", "--quantise", "int8"], 2 * sum(BILLION.values()) - BILLION["transformer"]),
        (["--dtype", "bfloat16", "--quantise", "nf4"], 2 * sum(BILLION.values()) - 1.4375 * BILLION["transformer"]),
    ],
)
def test_a_dry_run_estimates_the_published_memory_of_wan_14b(
    words: list[str], gb: float, wan_14b: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sizes are published in billions, hence 2%; the activations of one small frame are negligible."""
    small = ["--size", "64x64", "--frames", "1", "--dry-run", "--json"]
    assert sample(["x", "--model", str(wan_14b), *small, *words]) == 0
    assert json.loads(capsys.readouterr().out)["memory_gb"] == pytest.approx(gb + 0.6, rel=0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gguf", "missing.gguf"], "there is no .gguf file missing.gguf"),
        (["--gguf", "a.gguf", "b.gguf"], "has 1 transformers, got 2 .gguf files; give one for each"),
        (["--gguf", "a.gguf", "--quantise", "fp8"], "quantised already; leave --quantise fp8 out"),
        (["--lora", "missing.safetensors=2"], "there is no LoRA missing.safetensors"),
    ],
)
def test_a_dry_run_refuses_the_same_flags_as_a_run(
    words: list[str], message: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, sample(["x", "--model", str(folders["T2V 2.1"]), "--size", "32x32", "--dry-run", *words]), message)


def test_a_dry_run_refuses_a_file_that_is_no_gguf(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"not one at all, and long enough to have a header")
    words = ["x", "--model", str(folders["T2V 2.1"]), "--size", "32x32", "--dry-run"]
    refused(
        capsys,
        sample([*words, "--gguf", str(tmp_path / "a.gguf")]),
        "a.gguf cannot be read",
        "give the .gguf of this model",
    )
