"""Image-to-video models, those of two experts and Wan 2.2's VAE, as single files: the clips of diffusers' folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from tests.test_cli import refused
from tests.test_single_files import original_text, original_transformer, original_vae, write
from tests.wan_folders import TEXT_WIDTH, make_tokenizer
from videogen.cli.main import sample
from videogen.cli.sample import load, parse_args
from videogen.data.video_io import read_video
from videogen.models.weight_layouts import VAE_22_MEAN, VAE_22_STD
from videogen.sampling.pipeline import VideoPipeline

QUICK = ["--size", "32x32", "--frames", "5", "--steps", "2", "--quiet"]
CLIP_WIDTH = 160  # two heads as wide as those of ViT-H
FROM_IMAGE = {"in_channels": 36, "out_channels": 16}
WITH_CLIP = FROM_IMAGE | {"image_dim": CLIP_WIDTH, "added_kv_proj_dim": 128}
VAE_22 = {
    "base_dim": 8, "decoder_base_dim": 12, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": VAE_22_MEAN, "latents_std": VAE_22_STD,
}  # fmt: skip
# Of each kind: changes to the transformer, to its pipeline, and the shift of the published folder.
KINDS: dict[str, tuple[dict[str, object], dict[str, object], float]] = {
    "I2V 2.1": (WITH_CLIP, {}, 3.0),
    "FLF2V 2.1": (WITH_CLIP | {"pos_embed_seq_len": 20}, {}, 16.0),
    "T2V A14B": ({}, {"boundary_ratio": 0.875}, 3.0),
    "I2V A14B": (FROM_IMAGE, {"boundary_ratio": 0.9}, 3.0),
    "TI2V 5B": ({"in_channels": 48, "out_channels": 48}, {"expand_timesteps": True}, 5.0),
}
CLIP_ORIGINAL = {  # transformers' names, and those of Wan's own code
    "embeddings.patch_embedding": "patch_embedding", "pre_layrnorm": "pre_norm", "post_layernorm": "post_norm",
    "encoder.layers": "transformer", "layer_norm": "norm", "self_attn.out_proj": "attn.proj", "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}  # fmt: skip
FLAGS = {"transformer": "--model", "transformer_2": "--model-2", "vae": "--vae", "text_encoder": "--text",
         "image_encoder": "--image-encoder"}  # fmt: skip


def original_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of CLIP's half that sees to Wan's own names, beside some of the half that reads."""
    original = {"textual.head.0.weight": torch.ones(3), "log_scale": torch.ones(()), "visual.head": torch.ones(160, 7)}
    for name, weight in weights.items():
        if name == "embeddings.class_embedding":
            original["visual.cls_embedding"] = weight[None, None]
        elif name == "embeddings.position_embedding.weight":
            original["visual.pos_embedding"] = weight[None]
        elif ".q_proj." in name:
            rows = [weights[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            _, _, layer, _, _, kind = name.split(".")
            original[f"visual.transformer.{layer}.attn.to_qkv.{kind}"] = torch.cat(rows)
        elif not re.search(r"\.[kv]_proj\.", name):
            for theirs, own in CLIP_ORIGINAL.items():
                name = name.replace(theirs, own)
            original[f"visual.{name}"] = weight
    return original


def original_vae_22(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of 2.2's VAE to the names of Wan's own code, whose stages are lists of layers."""
    layers = {"norm1.": "residual.0.", "conv1.": "residual.2.", "norm2.": "residual.3.", "conv2.": "residual.6.",
              "conv_shortcut.": "shortcut."}  # fmt: skip
    numbers = {half: 1 + max(int(n.split(".")[4]) for n in weights if re.match(rf"{half}\.\w+_blocks.*resnets", n))
               for half in ("encoder", "decoder")}  # fmt: skip
    stages: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if match := re.fullmatch(r"(encoder|decoder)\.(down|up)_blocks\.(\d)\.(resnets\.\d|\w+sampler)\.(.+)", name):
            half, way, stage, layer, rest = match.groups()
            for theirs, own in layers.items():
                rest = (
                    own + rest.removeprefix(theirs) if layer.startswith("resnets") and rest.startswith(theirs) else rest
                )
            number = layer.removeprefix("resnets.") if layer.startswith("resnets") else numbers[half]
            stages[f"{half}.{way}samples.{stage}.{way}samples.{number}.{rest}"] = weight
    others = {n: w for n, w in weights.items() if "_blocks." not in n}
    return stages | original_vae(others)


def make_folder(kind: str, folder: Path) -> None:
    """Save a folder of diffusers' pipeline of a kind, with the widths of heads that all of Wan's models have."""
    transformer, options, shift = KINDS[kind]
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text = UMT5Config(vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    sizes = {"num_attention_heads": 1, "ffn_dim": 160, "text_dim": TEXT_WIDTH, "freq_dim": 32, "num_layers": 1}
    parts: dict[str, object] = {
        "tokenizer": tokenizer,
        "text_encoder": UMT5EncoderModel(text).eval(),
        "vae": AutoencoderKLWan(**(VAE_22 if kind == "TI2V 5B" else {"base_dim": 8})).eval(),  # type: ignore[arg-type]
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift),
    }
    for part in ("transformer", *(["transformer_2"] if "boundary_ratio" in options else [])):
        parts[part] = WanTransformer3DModel(**(sizes | transformer)).eval()  # type: ignore[arg-type]
        torch.nn.init.normal_(parts[part].proj_out.weight, std=0.3)  # type: ignore[attr-defined]
    if "image_dim" in transformer:
        if "pos_embed_seq_len" in transformer:
            torch.nn.init.normal_(parts["transformer"].condition_embedder.image_embedder.pos_embed)  # type: ignore[attr-defined]
        config = CLIPVisionConfig(hidden_size=CLIP_WIDTH, intermediate_size=20, num_hidden_layers=3, image_size=24,
                                  num_attention_heads=2, patch_size=8, hidden_act="gelu")  # fmt: skip
        parts["image_encoder"] = CLIPVisionModel(config).eval()
        parts["image_processor"] = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    kind_of_pipeline = WanImageToVideoPipeline if "in_channels" in transformer and kind != "TI2V 5B" else WanPipeline
    kind_of_pipeline(**parts, **options).save_pretrained(str(folder))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        make_folder(kind, root / kind)
    return {kind: root / kind for kind in KINDS}


def write_files(folder: Path, out: Path, layout: str) -> list[str]:
    """Write the parts of a folder as files in a layout, and return the flags that name them."""
    pipeline, out = VideoPipeline.load(folder), out / layout
    out.mkdir()
    (out / "tokenizer").symlink_to(folder / "tokenizer")
    words = []
    for part, flag in FLAGS.items():
        if (network := pipeline.components.get(part)) is None:
            continue
        weights = {name: w for name, w in network.state_dict().items() if "embed_tokens" not in name}
        if part == "image_encoder" and layout == "comfy":  # where CLIP's file is transformers', all of it
            weights = {f"vision_model.{name.removeprefix('vision_model.')}": w for name, w in weights.items()}
            weights |= {"vision_model.embeddings.position_ids": torch.arange(10)[None]}
            weights |= {"visual_projection.weight": torch.ones(7, CLIP_WIDTH)}
        elif part == "vae":
            weights = (original_vae_22 if weights["post_quant_conv.weight"].shape[0] == 48 else original_vae)(weights)
        else:
            own = {"text_encoder": original_text, "image_encoder": original_clip}.get(part, original_transformer)
            weights = own(weights)
        prefix = "model.diffusion_model." if layout == "comfy" and part.startswith("transformer") else ""
        is_expert = part.startswith("transformer") and pipeline.boundary is not None
        noise = ("_low_noise" if part == "transformer_2" else "_high_noise") if is_expert else ""
        words += [flag, str(write(out / f"wan_{part[:4]}{noise}.safetensors", weights, prefix))]
    return words


def images_of(kind: str, tmp_path: Path) -> list[str]:
    """Draw the images that a kind begins, and ends, with."""
    words = []
    for number, when in enumerate(["first", "last"] if kind.startswith("FLF") else ["first"] if "I2V" in kind else []):
        path = tmp_path / f"{when}.png"
        pixels = torch.randint(0, 256, (5, 5, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).resize((50, 50), Image.Resampling.BICUBIC).save(path)
        words += ["--image", f"{path}@{when}"]
    return words


def assert_same(ours: VideoPipeline, theirs: VideoPipeline) -> None:
    """Compare all weights, and where the second expert takes over."""
    assert ours.boundary == theirs.boundary
    for part in FLAGS:
        if (network := theirs.components.get(part)) is not None:
            expected = {n.removeprefix("vision_model."): w for n, w in network.state_dict().items()}
            given = {n.removeprefix("vision_model."): w for n, w in ours.components[part].state_dict().items()}
            assert {n: torch.equal(given[n], w) for n, w in expected.items()} == dict.fromkeys(expected, True), part


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["original", "comfy"])
def test_files_of_a_kind_make_the_clip_of_its_folder(
    kind: str, layout: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = write_files(folders[kind], tmp_path, layout)
    args, info = parse_args(["a cat", *words])
    _, of_folder = parse_args(["a cat", "--model", str(folders[kind])])
    assert info.defaults == of_folder.defaults
    ours, theirs = load(args, info), VideoPipeline.load(folders[kind])
    assert isinstance(ours, VideoPipeline)
    assert_same(ours, theirs)
    clips = [tmp_path / "files.mp4", tmp_path / "folder.mp4"]
    asked = ["a cat", *QUICK, *images_of(kind, tmp_path)]
    assert sample([*asked, *words, "--out", str(clips[0])]) == 0
    assert sample([*asked, "--model", str(folders[kind]), "--out", str(clips[1])]) == 0
    frames = [read_video(clip) for clip in clips]
    assert frames[0].float().std() > 1
    assert torch.equal(*frames)
    capsys.readouterr()
    for model in (words, ["--model", str(folders[kind])]):
        assert sample([*asked, *model, "--dry-run"]) == 0
    costs = [re.sub("  time .*", "", line) for line in capsys.readouterr().out.splitlines()]
    assert costs[0] == costs[1]


def test_a_clip_path_through_a_folder_of_the_image_encoder_is_the_same(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    words = write_files(folders["I2V 2.1"], tmp_path, "original")
    words[words.index("--image-encoder") + 1] = str(folders["I2V 2.1"])
    ours, theirs = load(*parse_args(["a cat", *words])), VideoPipeline.load(folders["I2V 2.1"])
    own, expected = (pipeline.image_encoder.state_dict() for pipeline in (ours, theirs))  # type: ignore[union-attr]
    assert all(torch.equal(own[name], weight) for name, weight in expected.items())


def test_scaled_fp8_experts_are_each_multiplied_by_their_own_scales(folders: dict[str, Path], tmp_path: Path) -> None:
    words = write_files(folders["T2V A14B"], tmp_path, "comfy")
    expected = {}
    for flag, part, factor in (("--model", "transformer", 2.0), ("--model-2", "transformer_2", 4.0)):
        path = Path(words[words.index(flag) + 1])
        weights = original_transformer(VideoPipeline.load(folders["T2V A14B"]).components[part].state_dict())
        name = "blocks.0.self_attn.q"
        small = weights[f"{name}.weight"].to(torch.float8_e4m3fn)
        expected[part] = factor * small.float()
        weights |= {f"{name}.weight": small, f"{name}.scale_weight": torch.tensor(factor), "scaled_fp8": torch.ones(0)}
        save_file({f"model.diffusion_model.{n}": w.contiguous().clone() for n, w in weights.items()}, path)
    ours = load(*parse_args(["a cat", *words]))
    for part, weight in expected.items():
        assert torch.equal(ours.components[part].blocks[0].attn1.to_q.weight, weight), part  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["I2V 2.1", "T2V A14B"])
def test_an_original_folder_opens_once_its_pickles_are_converted_as_the_refusal_says(
    kind: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = write_files(folders[kind], tmp_path, "original")
    files, original = dict(zip(words[::2], words[1::2], strict=True)), tmp_path / "Wan"
    experts = {"--model": "high_noise_model", "--model-2": "low_noise_model"} if "A14B" in kind else {"--model": "."}
    for flag, name in experts.items():
        (original / name).mkdir(parents=True, exist_ok=True)
        (original / name / "config.json").write_text('{"_class_name": "WanModel", "model_type": "t2v"}')
        weights = list(load_file(files[flag]).items())
        for number, shard in enumerate([dict(weights[::2]), dict(weights[1::2])], start=1):
            save_file(shard, original / name / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors")
    (original / "google").mkdir()
    (original / "google" / "umt5-xxl").symlink_to(folders[kind] / "tokenizer")
    pickles = {"--vae": "Wan2.1_VAE.pth", "--text": "models_t5_umt5-xxl-enc-bf16.pth"}
    pickles |= {"--image-encoder": "models_clip_open-clip-xlm-roberta.pth"} if "I2V" in kind else {}
    for flag, name in pickles.items():
        torch.save(load_file(files[flag]), original / name)
    for name in pickles.values():
        assert sample(["x", "--model", str(original)]) == 2
        sentence = capsys.readouterr().err
        assert f"{original / name} is a pickle" in sentence
        exec(sentence.split('python -c "')[1].rstrip().rstrip('"'))
    args, info = parse_args(["a cat", "--model", str(original)])
    assert info.folder.name == "Wan"
    assert_same(load(args, info), VideoPipeline.load(folders[kind]))  # type: ignore[arg-type]


# --- refusals


@pytest.mark.parametrize(
    ("kind", "left_out", "sentence"),
    [
        ("I2V 2.1", "--image-encoder", "sees images through CLIP; give --image-encoder too, a file or a folder"),
        ("I2V A14B", "--model-2", "alone; give that for low noise, --model-2"),
        ("T2V A14B", "--model-2", "is by its name the expert for high noise alone"),
        ("T2V A14B", "--vae", "give --vae too"),
    ],
)
def test_a_missing_part_is_named(
    kind: str,
    left_out: str,
    sentence: str,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = write_files(folders[kind], tmp_path, "original")
    at = words.index(left_out)
    refused(capsys, sample(["x", *words[:at], *words[at + 2 :]]), sentence)


def test_parts_that_do_not_belong_together_are_refused(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {}
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        words = write_files(folders[kind], tmp_path / kind, "original")
        files[kind] = dict(zip(words[::2], words[1::2], strict=True))

    def words_of(kind: str, **changes: str) -> list[str]:
        flags = files[kind] | {f"--{name.replace('_', '-')}": path for name, path in changes.items()}
        return ["x", *(word for pair in flags.items() for word in pair), *QUICK]

    high, low = files["T2V A14B"]["--model"], files["T2V A14B"]["--model-2"]
    clip = files["I2V 2.1"]["--image-encoder"]
    refused(capsys, sample(words_of("T2V A14B", model=low, model_2=high)), "is by its name the expert for low noise")
    refused(capsys, sample(words_of("T2V A14B", image_encoder=clip)), "does not see images through CLIP")
    refused(capsys, sample(words_of("I2V 2.1", model_2=low)), "sees images through CLIP, as Wan 2.1 does")
    refused(
        capsys, sample(words_of("T2V A14B", model_2=files["I2V A14B"]["--model-2"])), "in_channels 36", "of one model"
    )
    refused(capsys, sample(words_of("I2V 2.1", image_encoder=low)), "is no CLIP that sees: it has no embeddings.class")
    refused(capsys, sample(words_of("TI2V 5B", vae=files["T2V A14B"]["--vae"])), "gives 16 channels", "takes 48")
    renamed = Path(files["I2V A14B"]["--model"]).rename(tmp_path / "expert.safetensors")
    alone = {flag: path for flag, path in files["I2V A14B"].items() if flag != "--model-2"} | {"--model": str(renamed)}
    words = [word for pair in alone.items() for word in pair]
    refused(capsys, sample(["x", *words]), "is one of the two experts of image to video; give --model-2 too, the file")
    refused(capsys, sample(["x", "--model-2", low]), "--model-2 goes with a --model that is a file")
    other = {"patch_embedding.weight": torch.zeros(128, 21, 1, 2, 2)}
    weights = original_transformer(VideoPipeline.load(folders["T2V A14B"]).components["transformer"].state_dict())
    odd = write(tmp_path / "control.safetensors", weights | other)
    refused(capsys, sample(words_of("TI2V 5B", model=str(odd))), "takes 21 channels for 16", "neither text nor image")
