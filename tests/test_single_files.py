"""Weights that come as single files, in the original and in ComfyUI's layout, are those of diffusers' folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import save_file
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from tests.test_cli import refused
from tests.test_low_memory import write_gguf
from tests.wan_folders import TEXT_WIDTH, make_tokenizer
from videogen.cli.main import sample
from videogen.cli.sample import load, parse_args
from videogen.data.video_io import read_settings
from videogen.models.weight_layouts import UMT5_NAMES
from videogen.sampling.low_memory import read_gguf
from videogen.sampling.pipeline import VideoPipeline

SIZE = ["--size", "32x32", "--frames", "5", "--steps", "2", "--quiet"]
# Diffusers' names of a transformer, and those of Wan's own code.
ORIGINAL = {
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    ".add_k_proj.": ".k_img.", ".add_v_proj.": ".v_img.", ".norm_added_k.": ".norm_k_img.",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "attn1": "self_attn", "attn2": "cross_attn", ".to_out.0.": ".o.", ".to_q.": ".q.", ".to_k.": ".k.",
    ".to_v.": ".v.", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2", "norm2": "norm3", "proj_out": "head.head",
}  # fmt: skip


def original_transformer(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a transformer's weights to the names of Wan's own code."""
    renamed = {}
    for name, weight in weights.items():
        new = name
        for theirs, own in ORIGINAL.items():
            new = new.replace(theirs, own)
        table = "modulation" if name.startswith("blocks.") else "head.modulation"
        renamed[new.replace("scale_shift_table", table)] = weight
    return renamed


def original_vae(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of 2.1's VAE to Wan's own names: those that diffusers renames to the given ones."""
    residual = [f"residual.{i}.{kind}" for i in (0, 2, 3, 6) for kind in ("gamma", "weight", "bias")]
    layer = [
        *residual,
        *(f"{part}.{kind}" for part in ("shortcut", "resample.1", "time_conv") for kind in ("weight", "bias")),
    ]
    attention = ["norm.gamma", *(f"{part}.{kind}" for part in ("to_qkv", "proj") for kind in ("weight", "bias"))]
    names = [f"conv{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")]
    for half, stages in (("encoder", "downsamples"), ("decoder", "upsamples")):
        names += [f"{half}.{stages}.{i}.{part}" for i in range(15) for part in layer]
        names += [f"{half}.middle.{i}.{part}" for i in (0, 2) for part in residual]
        names += [f"{half}.middle.1.{part}" for part in attention]
        names += [f"{half}.conv1.{kind}" for kind in ("weight", "bias")]
        names += [f"{half}.head.{part}" for part in ("0.gamma", "2.weight", "2.bias")]
    theirs = {convert_wan_vae_to_diffusers({name: name}).popitem()[0]: name for name in names}
    return {theirs[name]: weight for name, weight in weights.items()}


def original_text(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename UMT5's weights to the names of Wan's own code."""
    renamed = {}
    for name, weight in weights.items():
        new = name.replace("encoder.final_layer_norm", "norm")
        for own, theirs in UMT5_NAMES.items():
            new = new.replace(theirs, own)
        renamed[new] = weight
    return renamed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of diffusers' WanPipeline with the shapes of Wan 2.1, but few and narrow."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text = UMT5Config(vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    dit = {"num_attention_heads": 1, "ffn_dim": 160, "text_dim": TEXT_WIDTH, "freq_dim": 32, "num_layers": 2}
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text).eval(),
        transformer=WanTransformer3DModel(**dit).eval(),
        vae=AutoencoderKLWan(base_dim=8).eval(),
        scheduler=scheduler,
    )
    saved = tmp_path_factory.mktemp("wan") / "folder"
    pipeline.save_pretrained(saved)
    return saved


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> VideoPipeline:
    return VideoPipeline.load(folder)


@pytest.fixture(scope="module")
def weights(pipeline: VideoPipeline) -> dict[str, dict[str, Tensor]]:
    """The weights of each part in the names of Wan's own code."""
    text = {name: w for name, w in pipeline.text_encoder.state_dict().items() if "embed_tokens" not in name}
    return {
        "transformer": original_transformer(pipeline.transformer.state_dict()),
        "vae": original_vae(pipeline.vae.state_dict()),
        "text": original_text(text),
    }


def write(path: Path, tensors: Mapping[str, Tensor], prefix: str = "") -> Path:
    save_file({prefix + name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture
def files(weights: dict[str, dict[str, Tensor]], folder: Path, tmp_path: Path) -> dict[str, Path]:
    """The parts as files, with the tokenizer beside the encoder."""
    (tmp_path / "tokenizer").symlink_to(folder / "tokenizer")
    return {part: write(tmp_path / f"{part}.safetensors", tensors) for part, tensors in weights.items()}


def words_of(files: Mapping[str, Path]) -> list[str]:
    return ["--model", str(files["transformer"]), "--vae", str(files["vae"]), "--text", str(files["text"])]


def assert_same_weights(ours: VideoPipeline, theirs: VideoPipeline) -> None:
    for part in ("transformer", "vae", "text_encoder"):
        own, expected = (getattr(pipeline, part).state_dict() for pipeline in (ours, theirs))
        assert own.keys() == expected.keys(), part
        assert [name for name in own if not torch.equal(own[name], expected[name])] == [], part


def test_the_files_of_wans_own_code_are_the_weights_of_the_folder(
    files: dict[str, Path], pipeline: VideoPipeline, folder: Path, tmp_path: Path
) -> None:
    args, info = parse_args(["a cat", *words_of(files)])
    assert info.defaults.shift == 3.0
    ours = load(args, info)
    assert isinstance(ours, VideoPipeline)
    assert_same_weights(ours, pipeline)
    clip, again = tmp_path / "clip.mp4", tmp_path / "again.mp4"
    assert sample(["a cat", *words_of(files), *SIZE, "--out", str(clip)]) == 0
    assert read_settings(clip)["checkpoint"]["name"] == "transformer"  # type: ignore[index]
    assert sample(["--from", str(clip), *words_of(files), "--quiet", "--out", str(again)]) == 0
    assert again.read_bytes() == clip.read_bytes()
    other = tmp_path / "folder.mp4"
    assert sample(["a cat", "--model", str(folder), *SIZE, "--out", str(other)]) == 0
    assert (read_settings(other)["checkpoint"]) != read_settings(clip)["checkpoint"]


def test_comfyuis_prefix_and_folders_of_vae_and_text_are_read(
    weights: dict[str, dict[str, Tensor]], pipeline: VideoPipeline, folder: Path, tmp_path: Path
) -> None:
    model = write(tmp_path / "wan.safetensors", weights["transformer"], "model.diffusion_model.")
    ours = load(*parse_args(["x", *words_of({"transformer": model, "vae": folder, "text": folder})]))
    assert_same_weights(ours, pipeline)  # type: ignore[arg-type]


def test_names_of_diffusers_and_transformers_are_read(pipeline: VideoPipeline, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").symlink_to(folder / "tokenizer")
    parts = {"transformer": pipeline.transformer, "vae": pipeline.vae, "text": pipeline.text_encoder}
    saved = {
        name: {k: w for k, w in part.state_dict().items() if "embed_tokens" not in k} for name, part in parts.items()
    }
    files = {name: write(tmp_path / f"{name}.safetensors", tensors) for name, tensors in saved.items()}
    assert_same_weights(load(*parse_args(["x", *words_of(files)])), pipeline)  # type: ignore[arg-type]


def test_fp8_weights_are_multiplied_by_their_scales(
    weights: dict[str, dict[str, Tensor]], files: dict[str, Path], pipeline: VideoPipeline
) -> None:
    scaled: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, weight in weights["transformer"].items():
        scaled[name] = weight
        if name.startswith("blocks.") and name.endswith(".weight") and weight.ndim == 2:
            scale = weight.abs().max() / 448
            scaled[name] = (weight / scale).to(torch.float8_e4m3fn)
            scaled[name.removesuffix("weight") + "scale_weight"] = scale
            scaled[name.removesuffix("weight") + "scale_input"] = torch.ones(())
    write(files["transformer"], scaled, "model.diffusion_model.")
    ours = load(*parse_args(["x", *words_of(files)])).transformer.state_dict()
    theirs = pipeline.transformer.state_dict()
    name = "blocks.0.attn1.to_q.weight"
    assert 0 < (ours[name] - theirs[name]).abs().max() < 0.04 * theirs[name].abs().max()  # three bits of mantissa
    assert torch.equal(ours["proj_out.weight"], theirs["proj_out.weight"])


# --- refusals


def test_a_missing_part_is_named(files: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = ["x", "--model", str(files["transformer"])]
    refused(capsys, sample(model), "holds a transformer alone; give --vae too, a file or a folder")
    refused(capsys, sample([*model, "--vae", str(files["vae"])]), "give --text too")
    (tmp_path / "tokenizer").unlink()
    refused(capsys, sample([*model, *words_of(files)[2:]]), "there is no tokenizer beside", "google/umt5-xxl")
    refused(capsys, sample(["x", "--vae", str(files["vae"])]), "--vae goes with a --model that is a file")


@pytest.mark.parametrize("part", ["transformer", "vae", "text"])
def test_a_file_of_another_part_or_without_a_weight_is_refused(
    part: str,
    weights: dict[str, dict[str, Tensor]],
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = write(tmp_path / "other.safetensors", {"some.weight": torch.zeros(2)})
    refused(capsys, sample(["x", *words_of(files | {part: other})]), "other.safetensors is no ")
    dropped = {"transformer": "blocks.1.ffn.2.bias", "vae": "conv1.bias", "text": "blocks.1.ffn.fc2.weight"}[part]
    write(files[part], {name: weight for name, weight in weights[part].items() if name != dropped})
    refused(capsys, sample(["x", *words_of(files), *SIZE, "--out", str(tmp_path / "x.mp4")]), f"{files[part]} lacks ")


@pytest.mark.parametrize("suffix", [".pth", ".PT", ".ckpt", ".bin"])
def test_a_pickle_is_refused_with_how_to_convert_it(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"wan{suffix}"
    path.write_bytes(b"x")
    new = path.with_suffix(".safetensors")
    refused(capsys, sample(["x", "--model", str(path)]), "is a pickle", f"weights_only=True), '{new}')")


def test_what_a_gguf_lacks_is_named_and_its_suffix_may_be_in_capitals(
    pipeline: VideoPipeline, folder: Path, tmp_path: Path
) -> None:
    write_gguf(pipeline.transformer, tmp_path / "wan.GGUF")
    whole = read_gguf(tmp_path / "wan.GGUF", folder / "transformer")
    assert whole.state_dict().keys() == pipeline.transformer.state_dict().keys()
    half = VideoPipeline.load(folder).transformer
    del half.blocks[1].ffn
    write_gguf(half, tmp_path / "half.gguf")
    with pytest.raises(
        ValueError, match=r"half.gguf does not fit .*: it lacks blocks\.1\.ffn\.net\.0\.proj\.bias and 3 more"
    ):
        read_gguf(tmp_path / "half.gguf", folder / "transformer")
    write_gguf(pipeline.vae, tmp_path / "vae.gguf")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"vae.gguf does not fit .*: it holds another architecture \(wan\)"):
        read_gguf(tmp_path / "vae.gguf", folder / "transformer")
