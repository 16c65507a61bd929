"""Offloading makes the same clips; weights in fewer bits make clips as near as their precision allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate import hooks
from diffusers import AutoencoderKLWan
from diffusers.hooks import group_offloading
from diffusers.quantizers.gguf.utils import GGUFLinear
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import draw_texts, tiny_dit
from tests.test_wan_pipeline import PROMPT, SETTINGS, images_for
from tests.test_wan_pipeline import without_ftfy as without_ftfy
from tests.wan_folders import DIT, KINDS, save
from videogen.cli.main import sample
from videogen.models.checkpoint_config import read_checkpoint_info
from videogen.models.dit import VideoDiT
from videogen.packing.noise import shared_level
from videogen.packing.packs import pack
from videogen.sampling.cost import vae_flop
from videogen.sampling.known import Known
from videogen.sampling.low_memory import QUANTISERS, load_pipeline, read_gguf
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.training.lora import save_lora

WIDE = {"num_attention_heads": 4, "attention_head_dim": 16, "ffn_dim": 128}  # A quantiser's block has 32 weights.
KINDS_SMALL = ("T2V 2.1", "T2V A14B", "TI2V 5B, image", "I2V 2.1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of diffusers' Wan pipelines that are wide enough to be quantised, by kind."""
    root = tmp_path_factory.mktemp("wan")
    with pytest.MonkeyPatch.context() as patched:
        for key, value in WIDE.items():
            patched.setitem(DIT, key, value)
        patched.setitem(KINDS, "I2V 2.1", (*KINDS["I2V 2.1"][:1], KINDS["I2V 2.1"][1] | {"added_kv_proj_dim": 64},
                                           *KINDS["I2V 2.1"][2:]))  # fmt: skip
        for kind in KINDS_SMALL:
            save(kind, root / kind)
    return {kind: root / kind for kind in KINDS_SMALL}


def make_clip(pipeline: VideoPipeline, images: Sequence[Known] = ()) -> tuple[Tensor, Tensor]:
    """Sample a latent and decode its frames."""
    (latent,) = pipeline.sample([ClipRequest(PROMPT, 5, images)], SETTINGS)
    return latent, torch.cat(list(pipeline.frames(latent)))


class FakeOffload:
    """Simulate accelerate's model offload on the CPU: the weights of an offloaded network are NaN."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.offloaded: dict[nn.Module, dict[str, Tensor]] = {}
        self.max_networks_on_device = self.num_onloads = self.num_networks = 0
        patched.setattr(hooks.CpuOffload, "init_hook", lambda _, module: self.offload(module))
        pre_forward = self.pre_forward  # A bound method as an attribute of a class would not be given the hook.
        patched.setattr(
            hooks.CpuOffload, "pre_forward", lambda hook, *args, **options: pre_forward(hook, *args, **options)
        )
        patched.setattr(hooks.UserCpuOffloadHook, "offload", lambda hook: self.offload(hook.model))

    def offload(self, module: nn.Module) -> nn.Module:
        if module not in self.offloaded:
            self.num_networks += 1
        if not self.offloaded.get(module):
            self.offloaded[module] = {name: p.data for name, p in module.named_parameters()}
            for p in module.parameters():
                p.data = torch.full_like(p, torch.nan)
        return module

    def pre_forward(self, hook: hooks.CpuOffload, module: nn.Module, *args: object, **options: object) -> object:
        if hook.prev_module_hook is not None:
            hook.prev_module_hook.offload()
        for name, p in module.named_parameters():
            p.data = self.offloaded[module].pop(name, p.data)
        self.num_onloads += 1
        num_on_device = sum(not weights for weights in self.offloaded.values())
        self.max_networks_on_device = max(self.max_networks_on_device, num_on_device)
        return args, options


@pytest.mark.parametrize("kind", KINDS_SMALL)
def test_model_offload_makes_the_same_clip_with_one_network_on_the_device_at_a_time(
    kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_for(kind)
    expected = make_clip(VideoPipeline.load(folders[kind]), images)
    pipeline = VideoPipeline.load(folders[kind])
    fake = FakeOffload(monkeypatch)
    pipeline.enable_model_cpu_offload(device="cpu")
    for tensor, expected_tensor in zip(make_clip(pipeline, images), expected, strict=True):
        assert torch.equal(tensor, expected_tensor)
    assert fake.num_networks == sum(isinstance(part, nn.Module) for part in pipeline.components.values())
    assert fake.num_onloads > fake.num_networks
    assert fake.max_networks_on_device == 1


def list_group_weights(group: group_offloading.ModuleGroup) -> list[Tensor]:
    """List the weights that diffusers moves together."""
    return [p for module in group.modules for p in module.parameters()] + list(group.parameters)


@pytest.mark.parametrize("kind", KINDS_SMALL)
def test_group_offload_makes_the_same_clip_with_few_layers_on_the_device_at_a_time(
    kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of a layer are NaN except while it computes."""
    images, weights = images_for(kind), dict[int, Tensor]()
    expected = make_clip(VideoPipeline.load(folders[kind]), images)
    pipeline = VideoPipeline.load(folders[kind])
    on_device, num_on_device = set[int](), list[int]()

    def offload(group: group_offloading.ModuleGroup) -> None:
        for p in list_group_weights(group):
            if id(p) not in weights or id(p) in on_device:
                weights[id(p)] = p.data
                p.data = torch.full_like(p, torch.nan)
                on_device.discard(id(p))

    def onload(group: group_offloading.ModuleGroup) -> None:
        for p in list_group_weights(group):
            p.data = weights[id(p)]
            on_device.add(id(p))
        num_on_device.append(len(on_device))

    monkeypatch.setattr(group_offloading.ModuleGroup, "offload_", offload)
    monkeypatch.setattr(group_offloading.ModuleGroup, "onload_", onload)
    pipeline.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    for tensor, expected_tensor in zip(make_clip(pipeline, images), expected, strict=True):
        assert torch.equal(tensor, expected_tensor)
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    assert len(weights) == sum(1 for network in networks for _ in network.parameters())
    assert max(num_on_device) < 8


@torch.no_grad()
def test_a_transformer_runs_under_the_sequential_offload_of_accelerate() -> None:
    """Every layer is on the meta device except while it computes."""
    model, video, text = tiny_dit(), pack([torch.randn(4, 2, 4, 6)], (1, 2, 2)), draw_texts((5,))
    expected = model(video, shared_level(torch.tensor([0.5]), len(video.tokens)), text)
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert torch.equal(model(video, shared_level(torch.tensor([0.5]), len(video.tokens)), text), expected)


def relative_error(latent: Tensor, expected: Tensor) -> float:
    """Divide the norm of the error by the norm of the expected latent."""
    return float((latent - expected).norm() / expected.norm())


def count_linear_layers(model: nn.Module) -> int:
    return sum(isinstance(layer, nn.Linear) for layer in model.modules())


@pytest.mark.parametrize("kind", ["T2V A14B", "I2V 2.1"])
def test_fp8_weights_make_nearly_the_same_clip(kind: str, folders: dict[str, Path]) -> None:
    plain = VideoPipeline.load(folders[kind])
    expected = make_clip(plain, images_for(kind))[0]
    quantised = load_pipeline(read_checkpoint_info(folders[kind]), quantise="fp8")
    for expert, plain_expert in zip(quantised.experts, plain.experts, strict=True):
        weights = [weight for layer in expert.modules() if (weight := getattr(layer, "weight", None)) is not None]
        num_fp8 = sum(weight.dtype == torch.float8_e4m3fn for weight in weights)
        assert num_fp8 > 0.7 * count_linear_layers(plain_expert)
        assert expert.scale_shift_table.dtype == torch.float32
    # The mantissa of float8_e4m3fn has three bits.
    assert 0 < relative_error(make_clip(quantised, images_for(kind))[0], expected) < 0.1


def test_a_lora_keeps_full_precision_on_fp8_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = VideoPipeline.load(folders["T2V 2.1"])
    plain.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    save_lora(plain.transformer, tmp_path)
    loras = [f"{tmp_path}=0.5"]
    expected = make_clip(load_pipeline(read_checkpoint_info(folders["T2V 2.1"]), loras=loras))[0]
    quantised = load_pipeline(read_checkpoint_info(folders["T2V 2.1"]), quantise="fp8", loras=loras)
    assert {p.dtype for name, p in quantised.transformer.named_parameters() if "lora_" in name} == {torch.float32}
    assert 0 < relative_error(make_clip(quantised)[0], expected) < 0.1


def test_a_model_with_a_second_patch_size_runs_in_fp8(pipeline: VideoPipeline, tmp_path: Path) -> None:
    dit = tiny_dit(extra_patch_sizes=[(1, 4, 4)])
    parts = (pipeline.vae, pipeline.text_encoder, pipeline.tokenizer)
    VideoPipeline(dit, *parts, defaults=pipeline.config["defaults"]).save_pretrained(tmp_path)
    config = replace(pipeline.defaults, size="32x64", patch="1x4x4:0.5,1x2x2")
    pipelines = [load_pipeline(read_checkpoint_info(tmp_path), quantise=name) for name in ("none", "fp8")]
    expected, latent = (loaded.sample([ClipRequest("a red circle", 0)], config)[0] for loaded in pipelines)
    assert 0 < relative_error(latent, expected) < 0.1


def test_int8_weights_of_torchao_make_nearly_the_same_clip(folders: dict[str, Path]) -> None:
    pytest.importorskip("torchao")
    plain = VideoPipeline.load(folders["T2V A14B"])
    expected = make_clip(plain)[0]
    quantised = load_pipeline(read_checkpoint_info(folders["T2V A14B"]), quantise="int8")
    for expert in quantised.experts:
        kinds = [type(layer.weight).__name__ for layer in expert.modules() if isinstance(layer, nn.Linear)]
        assert kinds.count("Int8Tensor") > 0.7 * len(kinds)
    assert 0 < relative_error(make_clip(quantised)[0], expected) < 0.1


def write_gguf(model: VideoDiT, path: Path, rename: Callable[[str], str] = str) -> None:
    """Write a transformer's large matrices in Q8_0 and the rest in float32, as llama.cpp's tools do."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "wan")
    for name, weight in model.state_dict().items():
        data = weight.detach().float().contiguous().numpy()
        if weight.ndim == 2 and weight.shape[1] % 32 == 0 and "embedder" not in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(rename(name), gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(rename(name), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_replaces_the_transformer_whose_own_weights_are_not_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    plain = VideoPipeline.load(folders["T2V 2.1"])
    expected = make_clip(plain)[0]
    write_gguf(plain.transformer, tmp_path / "wan.gguf")
    for path in (folders["T2V 2.1"] / "transformer").glob("*.safetensors"):
        path.rename(path.with_suffix(".hidden"))  # The command must not read them.
    try:
        words = [PROMPT, "--model", str(folders["T2V 2.1"]), "--seed", "5", "--size", SETTINGS.size, "--frames", "9"]
        words += ["--steps", "4", "--guidance", "4", "--negative", SETTINGS.negative, "--save-latents"]
        words += ["--gguf", str(tmp_path / "wan.gguf"), "--out", str(tmp_path / "a.mp4")]
        assert sample(words) == 0
    finally:
        for path in (folders["T2V 2.1"] / "transformer").glob("*.hidden"):
            path.rename(path.with_suffix(".safetensors"))
    assert 0 < relative_error(load_file(tmp_path / "a.safetensors")["latent"], expected) < 0.1
    model = read_gguf(tmp_path / "wan.gguf", folders["T2V 2.1"] / "transformer")
    assert sum(isinstance(layer, GGUFLinear) for layer in model.modules()) > 0.7 * count_linear_layers(model)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--offload", "model"], "leave it out with --device cpu"),
        (["--gguf", "missing.gguf"], "there is no .gguf file missing.gguf"),
        (["--gguf", "a.gguf", "b.gguf"], "has 1 transformers, got 2 .gguf files; give one for each"),
        (["--gguf", "a.gguf", "--quantise", "fp8"], "quantised already; leave --quantise fp8 out"),
        (["--quantise", "int3"], "int3"),
    ],
)
def test_an_impossible_combination_of_flags_is_refused(
    words: list[str], message: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--size", "32x32", "--frames", "1", "--out", str(tmp_path / "a.png")]
    assert sample([PROMPT, "--model", str(folders["T2V 2.1"]), *out, *words]) == 2
    assert message in capsys.readouterr().err


def test_the_missing_package_of_a_quantiser_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUANTISERS, "int8", ("no_such_package", QUANTISERS["int8"][1]))
    with pytest.raises(ValueError, match="--quantise int8 needs no_such_package, which is not installed: pip install"):
        load_pipeline(read_checkpoint_info(folders["T2V 2.1"]), quantise="int8")


@pytest.mark.gpu  # The bitsandbytes quantiser of diffusers refuses to load without a GPU.
def test_nf4_weights_of_bitsandbytes_make_nearly_the_same_clip(folders: dict[str, Path]) -> None:
    expected = make_clip(VideoPipeline.load(folders["T2V 2.1"]).to("cuda"))[0]
    quantised = load_pipeline(read_checkpoint_info(folders["T2V 2.1"]), quantise="nf4").to("cuda")
    assert 0 < relative_error(make_clip(quantised)[0], expected) < 0.5


@pytest.mark.gpu  # accelerate and diffusers move no weights without a second device.
@pytest.mark.parametrize("offload", ["model", "group"])
def test_offload_on_a_gpu_writes_the_same_bytes(offload: str, folders: dict[str, Path], tmp_path: Path) -> None:
    words = [PROMPT, "--model", str(folders["T2V A14B"]), "--size", "32x64", "--frames", "5", "--steps", "4"]
    words += ["--device", "cuda", "--save-latents"]
    assert sample([*words, "--out", str(tmp_path / "a.mp4")]) == 0
    assert sample([*words, "--out", str(tmp_path / "b.mp4"), "--offload", offload]) == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("kind", ["2.1", "2.2"])
def test_vae_flop_is_what_the_decoder_of_diffusers_computes(kind: str) -> None:
    """The decoder has its real width and is on the meta device, where operations are counted but not computed."""
    changes: dict[str, object] = {} if kind == "2.1" else {
        "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12,
        "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48,
        "latents_std": [1.0] * 48,
    }  # fmt: skip
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        vae = AutoencoderKLWan(**changes)  # type: ignore[arg-type]
        clip = vae.decode(torch.randn(1, vae.config["z_dim"], 6, 8, 8)).sample
    frames, pixels = clip.shape[2], clip[0, 0, 0].numel()
    assert vae_flop(dict(vae.config), frames, pixels) == pytest.approx(counter.get_total_flops(), rel=0.02)
    half = dict(vae.config) | {"base_dim": 48, "decoder_base_dim": 128 if kind == "2.2" else None}
    assert vae_flop(half, frames, pixels) == vae_flop(dict(vae.config), frames, pixels) / 4
