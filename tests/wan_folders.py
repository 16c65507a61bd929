"""Save folders of diffusers' Wan pipelines: real classes, tiny, with random weights, a tokenizer and encoders."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

TEXT_WIDTH, CHANNELS, CLIP_WIDTH = 16, 4, 12
WORDS = ("a", "cat", "and", "dog", "walk", "in", "the", "rain", "blurry", "worst", "quality", "café", "&", "<", ">")
VAE = {"base_dim": 8, "z_dim": CHANNELS, "num_res_blocks": 1}
VAE_22 = VAE | {
    "decoder_base_dim": 12, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2,
    "scale_factor_spatial": 16,
}  # fmt: skip
DIT = {
    "num_attention_heads": 3, "attention_head_dim": 12, "in_channels": CHANNELS, "out_channels": CHANNELS,
    "text_dim": TEXT_WIDTH, "freq_dim": 24, "ffn_dim": 40, "num_layers": 2,
}  # fmt: skip
WITH_IMAGE_CHANNELS = {"in_channels": 2 * CHANNELS + 4}
WITH_CLIP = WITH_IMAGE_CHANNELS | {"image_dim": CLIP_WIDTH, "added_kv_proj_dim": 36}
Kind = tuple[type, dict[str, object], dict[str, object], dict[str, object]]
KINDS: dict[str, Kind] = {  # pipeline class, changes to DIT, VAE, further options
    "T2V 2.1": (WanPipeline, {}, VAE, {}),
    "T2V A14B": (WanPipeline, {}, VAE, {"boundary_ratio": 0.875}),
    "TI2V 5B": (WanPipeline, {}, VAE_22, {"expand_timesteps": True}),
    "I2V 2.1": (WanImageToVideoPipeline, WITH_CLIP, VAE, {}),
    "FLF2V 2.1": (WanImageToVideoPipeline, WITH_CLIP | {"pos_embed_seq_len": 20}, VAE, {}),
    "I2V A14B": (WanImageToVideoPipeline, WITH_IMAGE_CHANNELS, VAE, {"boundary_ratio": 0.9}),
    "TI2V 5B, image": (WanImageToVideoPipeline, {}, VAE_22, {"expand_timesteps": True}),
}


def make_tokenizer() -> T5TokenizerFast:
    """Build a Unigram tokenizer with an end token, like UMT5's, over some words and all letters."""
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789.,!&<>;#'\"é\u00a0"})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS] + [(letter, -6.0) for letter in letters]
    return T5TokenizerFast(vocab=pieces, extra_ids=0)


def make_pipeline(kind: str, *, scheduler: str = "unipc", shift: float = 3.0) -> WanPipeline | WanImageToVideoPipeline:
    """Build the pipeline of a kind."""
    pipeline_class, transformer, vae, options = KINDS[kind]
    torch.manual_seed(4)
    tokenizer = make_tokenizer()
    text = UMT5Config(vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    parts: dict[str, object] = {"tokenizer": tokenizer, "text_encoder": UMT5EncoderModel(text).eval()}
    channels = {"latents_mean": [0.2] * CHANNELS, "latents_std": [1.4] * CHANNELS}
    parts["vae"] = AutoencoderKLWan(**vae, **channels).eval()  # type: ignore[arg-type]
    for part in ("transformer", *(["transformer_2"] if "boundary_ratio" in options else [])):
        parts[part] = WanTransformer3DModel(**(DIT | transformer)).eval()  # type: ignore[arg-type]
        torch.nn.init.normal_(parts[part].proj_out.weight, std=0.3)  # type: ignore[attr-defined]
    if scheduler == "unipc":
        parts["scheduler"] = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
        )
    else:
        parts["scheduler"] = FlowMatchEulerDiscreteScheduler(shift=shift)
    if "image_dim" in transformer:
        config = CLIPVisionConfig(
            hidden_size=CLIP_WIDTH, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, image_size=24,
            patch_size=8,
        )  # fmt: skip
        parts["image_encoder"] = CLIPVisionModel(config).eval()
        parts["image_processor"] = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    pipeline = pipeline_class(**parts, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save(kind: str, folder: Path, **options: object) -> WanPipeline | WanImageToVideoPipeline:
    """Save the pipeline of a kind as a folder, and return it."""
    pipeline = make_pipeline(kind, **options)  # type: ignore[arg-type]
    pipeline.save_pretrained(str(folder))
    return pipeline
