"""Offloading and weights in fewer bits: the same clips, or as near as the bits allow."""

from __future__ import annotations

from collections.abc import Callable
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
from videogen.sampling.image_prompts import Images
from videogen.sampling.low_memory import QUANTISERS, load_pipeline, read_gguf
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.training.lora import save_lora

WIDE = {"num_attention_heads": 4, "attention_head_dim": 16, "ffn_dim": 128}  # a quantiser's blocks have 32 weights
KINDS_SMALL = ("T2V 2.1", "T2V A14B", "TI2V 5B, image", "I2V 2.1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wan")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(DIT, "num_attention_heads", 4)
        patched.setitem(DIT, "attention_head_dim", 16)
        patched.setitem(DIT, "ffn_dim", 128)
        patched.setitem(KINDS, "I2V 2.1", (*KINDS["I2V 2.1"][:1], KINDS["I2V 2.1"][1] | {"added_kv_proj_dim": 64},
                                           *KINDS["I2V 2.1"][2:]))  # fmt: skip
        for kind in KINDS_SMALL:
            save(kind, root / kind)
    return {kind: root / kind for kind in KINDS_SMALL}


def make(pipeline: VideoPipeline, images: Images | None = None) -> tuple[Tensor, Tensor]:
    """A latent and its frames."""
    (latent,) = pipeline.sample([ClipRequest(PROMPT, 5, images)], SETTINGS)
    return latent, torch.cat(list(pipeline.frames(latent)))


class Away:
    """Stands for a GPU that holds few models: what is not there is not a number."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.kept: dict[nn.Module, dict[str, Tensor]] = {}
        self.most_there = self.arrivals = self.models = 0
        patched.setattr(hooks.CpuOffload, "init_hook", lambda _, module: self.leave(module))
        patched.setattr(hooks.CpuOffload, "pre_forward", self.pre_forward)
        patched.setattr(hooks.UserCpuOffloadHook, "offload", lambda hook: self.leave(hook.model))

    def leave(self, module: nn.Module) -> nn.Module:
        if module not in self.kept:
            self.models += 1
        if not self.kept.get(module):
            self.kept[module] = {name: p.data for name, p in module.named_parameters()}
            for p in module.parameters():
                p.data = torch.full_like(p, torch.nan)
        return module

    def pre_forward(self, hook: hooks.CpuOffload, module: nn.Module, *args: object, **options: object) -> object:
        if hook.prev_module_hook is not None:
            hook.prev_module_hook.offload()
        for name, p in module.named_parameters():
            p.data = self.kept[module].pop(name, p.data)
        self.arrivals += 1
        self.most_there = max(self.most_there, sum(not kept for kept in self.kept.values()))
        return args, options


@pytest.mark.parametrize("kind", KINDS_SMALL)
def test_parts_that_wait_elsewhere_make_the_same_clip(
    kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_for(kind)
    wanted = make(VideoPipeline.load(folders[kind]), images)
    ours = VideoPipeline.load(folders[kind])
    away = Away(monkeypatch)
    hook = hooks.CpuOffload.pre_forward
    monkeypatch.setattr(hooks.CpuOffload, "pre_forward", lambda self, *args, **options: hook(self, *args, **options))
    ours.enable_model_cpu_offload(device="cpu")
    for one, other in zip(make(ours, images), wanted, strict=True):
        assert torch.equal(one, other)
    assert away.models == sum(isinstance(part, nn.Module) for part in ours.components.values())
    assert away.arrivals > away.models
    assert away.most_there == 1


def group_weights(group: group_offloading.ModuleGroup) -> list[Tensor]:
    return [p for module in group.modules for p in module.parameters()] + list(group.parameters)


@pytest.mark.parametrize("kind", KINDS_SMALL)
def test_layers_that_wait_elsewhere_make_the_same_clip(
    kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer's weights are not numbers but while it computes."""
    images, kept = images_for(kind), dict[int, Tensor]()
    wanted = make(VideoPipeline.load(folders[kind]), images)
    ours = VideoPipeline.load(folders[kind])
    there, most = set[int](), list[int]()

    def offload(group: group_offloading.ModuleGroup) -> None:
        for p in group_weights(group):
            if id(p) not in kept or id(p) in there:
                kept[id(p)] = p.data
                p.data = torch.full_like(p, torch.nan)
                there.discard(id(p))

    def onload(group: group_offloading.ModuleGroup) -> None:
        for p in group_weights(group):
            p.data = kept[id(p)]
            there.add(id(p))
        most.append(len(there))

    monkeypatch.setattr(group_offloading.ModuleGroup, "offload_", offload)
    monkeypatch.setattr(group_offloading.ModuleGroup, "onload_", onload)
    ours.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    for one, other in zip(make(ours, images), wanted, strict=True):
        assert torch.equal(one, other)
    assert len(kept) == sum(1 for part in ours.components.values() if isinstance(part, nn.Module)
                            for _ in part.parameters())  # fmt: skip
    assert max(most) < 8


@torch.no_grad()
def test_a_transformer_s_weights_come_and_go_one_by_one_too() -> None:
    """accelerate's sequential offload: every layer is on the meta device but while it computes."""
    model, video, text = tiny_dit(), pack([torch.randn(4, 2, 4, 6)], (1, 2, 2)), draw_texts((5,))
    wanted = model(video, shared_level(torch.tensor([0.5]), len(video.tokens)), text)
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert torch.equal(model(video, shared_level(torch.tensor([0.5]), len(video.tokens)), text), wanted)


def close(one: Tensor, other: Tensor) -> float:
    """The error of one against the size of the other."""
    return float((one - other).norm() / other.norm())


def linear_layers(model: nn.Module) -> int:
    return sum(isinstance(layer, nn.Linear) for layer in model.modules())


@pytest.mark.parametrize("kind", ["T2V A14B", "I2V 2.1"])
def test_weights_of_eight_bits_make_nearly_the_same_clip(kind: str, folders: dict[str, Path]) -> None:
    plain = VideoPipeline.load(folders[kind])
    wanted = make(plain, images_for(kind))[0]
    ours = load_pipeline(read_checkpoint_info(folders[kind]), quantise="fp8")
    for expert, before in zip(ours.experts, plain.experts, strict=True):
        small = [layer for layer in expert.modules() if getattr(layer, "weight", None) is not None
                 and layer.weight.dtype == torch.float8_e4m3fn]  # fmt: skip
        assert len(small) > 0.7 * linear_layers(before)
        assert expert.scale_shift_table.dtype == torch.float32
    error = close(make(ours, images_for(kind))[0], wanted)
    assert 0 < error < 0.1, "three bits of mantissa"


def test_a_lora_stands_in_full_precision_beside_weights_of_eight_bits(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = VideoPipeline.load(folders["T2V 2.1"])
    plain.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    save_lora(plain.transformer, tmp_path)
    loras = [f"{tmp_path}=0.5"]
    wanted = make(load_pipeline(read_checkpoint_info(folders["T2V 2.1"]), loras=loras), None)[0]
    ours = load_pipeline(read_checkpoint_info(folders["T2V 2.1"]), quantise="fp8", loras=loras)
    assert {p.dtype for name, p in ours.transformer.named_parameters() if "lora_" in name} == {torch.float32}
    assert 0 < close(make(ours, None)[0], wanted) < 0.1


def test_a_model_with_a_second_patch_size_takes_eight_bits(pipeline: VideoPipeline, tmp_path: Path) -> None:
    dit = tiny_dit(extra_patch_sizes=[(1, 4, 4)])
    parts = (pipeline.vae, pipeline.text_encoder, pipeline.tokenizer)
    VideoPipeline(dit, *parts, defaults=pipeline.config["defaults"]).save_pretrained(tmp_path)
    config = replace(pipeline.defaults, size="32x64", patch="1x4x4:0.5,1x2x2")
    plain, small = (load_pipeline(read_checkpoint_info(tmp_path), quantise=how) for how in ("none", "fp8"))
    wanted, made = (one.sample([ClipRequest("a red circle", 0)], config)[0] for one in (plain, small))
    assert 0 < close(made, wanted) < 0.1


def test_torchao_s_eight_bits_make_nearly_the_same_clip(folders: dict[str, Path]) -> None:
    pytest.importorskip("torchao")
    plain = VideoPipeline.load(folders["T2V A14B"])
    wanted = make(plain)[0]
    ours = load_pipeline(read_checkpoint_info(folders["T2V A14B"]), quantise="int8")
    for expert in ours.experts:
        kinds = [type(layer.weight).__name__ for layer in expert.modules() if isinstance(layer, nn.Linear)]
        assert kinds.count("Int8Tensor") > 0.7 * len(kinds)
    assert 0 < close(make(ours)[0], wanted) < 0.1


def write_gguf(model: VideoDiT, path: Path, rename: Callable[[str], str] = str) -> None:
    """A transformer's large matrices in Q8_0, the rest in float32, as llama.cpp's tools write them."""
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


def test_a_gguf_stands_for_the_transformer(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = VideoPipeline.load(folders["T2V 2.1"])
    wanted = make(plain)[0]
    write_gguf(plain.transformer, tmp_path / "wan.gguf")
    for path in (folders["T2V 2.1"] / "transformer").glob("*.safetensors"):
        path.rename(path.with_suffix(".away"))  # it is not read
    try:
        words = [PROMPT, "--model", str(folders["T2V 2.1"]), "--seed", "5", "--size", SETTINGS.size, "--frames", "9"]
        words += ["--steps", "4", "--guidance", "4", "--negative", SETTINGS.negative, "--save-latents"]
        words += ["--gguf", str(tmp_path / "wan.gguf"), "--out", str(tmp_path / "a.mp4")]
        assert sample(words) == 0
    finally:
        for path in (folders["T2V 2.1"] / "transformer").glob("*.away"):
            path.rename(path.with_suffix(".safetensors"))
    assert 0 < close(load_file(tmp_path / "a.safetensors")["latent"], wanted) < 0.1
    model = read_gguf(tmp_path / "wan.gguf", folders["T2V 2.1"] / "transformer")
    assert sum(isinstance(layer, GGUFLinear) for layer in model.modules()) > 0.7 * linear_layers(model)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--offload", "model"], "leave it out with --device cpu"),
        (["--gguf", "missing.gguf"], "there is no .gguf file missing.gguf"),
        (["--gguf", "a.gguf", "b.gguf"], "has 1 transformers, got 2 .gguf files; give one for each"),
        (["--gguf", "a.gguf", "--quantise", "fp8"], "quantised already; leave --quantise fp8 out"),
        (["--quantise", "int3"], "int3"),
    ],
)
def test_what_cannot_be_is_said(
    words: list[str], said: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--size", "32x32", "--frames", "1", "--out", str(tmp_path / "a.png")]
    assert sample([PROMPT, "--model", str(folders["T2V 2.1"]), *out, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_missing_package_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUANTISERS, "int8", ("no_such_package", QUANTISERS["int8"][1]))
    with pytest.raises(ValueError, match="--quantise int8 needs no_such_package, which is not installed: pip install"):
        load_pipeline(read_checkpoint_info(folders["T2V 2.1"]), quantise="int8")


@pytest.mark.gpu  # diffusers' bitsandbytes quantiser refuses to load without a GPU
def test_bitsandbytes_four_bits_make_a_clip(folders: dict[str, Path]) -> None:
    wanted = make(VideoPipeline.load(folders["T2V 2.1"]).to("cuda"))[0]
    ours = load_pipeline(read_checkpoint_info(folders["T2V 2.1"]), quantise="nf4").to("cuda")
    assert 0 < close(make(ours)[0], wanted) < 0.5


@pytest.mark.gpu  # accelerate and diffusers move nothing without a second device
@pytest.mark.parametrize("how", ["model", "group"])
def test_a_gpu_takes_turns_with_the_cpu(how: str, folders: dict[str, Path], tmp_path: Path) -> None:
    words = [PROMPT, "--model", str(folders["T2V A14B"]), "--size", "32x64", "--frames", "5", "--steps", "4"]
    words += ["--device", "cuda", "--save-latents"]
    assert sample([*words, "--out", str(tmp_path / "a.mp4")]) == 0
    assert sample([*words, "--out", str(tmp_path / "b.mp4"), "--offload", how]) == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("kind", ["2.1", "2.2"])
def test_a_dry_run_knows_what_decoding_costs(kind: str) -> None:
    """Counted on diffusers' own decoder at its real width, without computing it."""
    changes: dict[str, object] = {} if kind == "2.1" else {
        "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12,
        "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48,
        "latents_std": [1.0] * 48,
    }  # fmt: skip
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        vae = AutoencoderKLWan(**changes)  # type: ignore[arg-type]
        clip = vae.decode(torch.randn(1, vae.config["z_dim"], 6, 8, 8)).sample
    assert vae_flop(dict(vae.config)) == pytest.approx(counter.get_total_flops() / clip[0, 0].numel(), rel=0.02)
    half = dict(vae.config) | {"base_dim": 48, "decoder_base_dim": 128 if kind == "2.2" else None}
    assert vae_flop(half) == vae_flop(dict(vae.config)) / 4
