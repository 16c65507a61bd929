"""The denoiser: a diffusion transformer on packed spacetime patches, with the weights and names of Wan.

    PackedVideo (n, c·pt·ph·pw), NoiseLevels, PackedText (m, text_dim)  ->  prediction (n, c·pt·ph·pw)

Parameter names, shapes and config keys are those of diffusers' WanTransformer3DModel (Wan Team 2025), so its weights
load here unchanged and ours open there. What goes beyond Wan, x-prediction and more patch sizes, is off by default.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from videogen.attention import Rotary, TextKeys, attend, attend_text, gather_text, rotary, rotate, text_keys
from videogen.packing import Lengths, NoiseLevels, PackedVideo, Patch
from videogen.text import PackedText


class TextContext(NamedTuple):
    """A pack's texts as every block reads them: computed once a prompt, not once a step."""

    keys: TextKeys
    blocks: list[tuple[Tensor, Tensor]]  # for each block, keys and values (b, heads, m, e)


def sinusoid(timestep: Tensor, size: int) -> Tensor:
    """Cosines and sines of a time (u,) at geometric frequencies, (u, size) (Vaswani et al. 2017)."""
    half = size // 2
    rates = torch.exp(-math.log(1e4) / half * torch.arange(half, dtype=torch.float32, device=timestep.device))
    angles = timestep.float()[:, None] * rates
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class MLP(nn.Module):
    """Two linear layers around an activation, named as diffusers names its embedders."""

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_size, out_size)
        self.linear_2 = nn.Linear(out_size, out_size)


class ConditionEmbedder(nn.Module):
    """Noise level and text, brought to the model's width."""

    def __init__(self, d: int, freq_dim: int, text_dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = MLP(freq_dim, d)
        self.time_proj = nn.Linear(d, 6 * d)
        self.text_embedder = MLP(text_dim, d)

    def time(self, sigma: Tensor) -> Tensor:
        """Noise levels (u,) as embeddings (u, d); Wan's timestep is 1000 sigma."""
        mlp = self.time_embedder
        waves = sinusoid(1000 * sigma, self.freq_dim).to(mlp.linear_1.weight.dtype)
        return mlp.linear_2(F.silu(mlp.linear_1(waves)))

    def text(self, tokens: Tensor) -> Tensor:
        """Text rows (m, text_dim) as (m, d)."""
        mlp = self.text_embedder
        return mlp.linear_2(F.gelu(mlp.linear_1(tokens.to(mlp.linear_1.weight.dtype)), approximate="tanh"))


class Attention(nn.Module):
    """Projections and query/key norms (over all heads at once, as Wan) for self- or cross-attention."""

    def __init__(self, d: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(d, d) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(d, d)])
        self.norm_q, self.norm_k = nn.RMSNorm(d, eps=eps), nn.RMSNorm(d, eps=eps)

    def forward(self, x: Tensor, table: Rotary, lengths: Lengths) -> Tensor:
        """Self-attention within each clip, x (n, d)."""
        q, k, v = (
            rearrange(part, "n (heads e) -> n heads e", heads=self.heads)
            for part in (self.norm_q(self.to_q(x)), self.norm_k(self.to_k(x)), self.to_v(x))
        )
        out = attend(rotate(q, table), rotate(k, table), v, lengths)
        return self.to_out[0](rearrange(out, "n heads e -> n (heads e)"))

    def read(self, text: Tensor, keys: TextKeys) -> tuple[Tensor, Tensor]:
        """Keys and values of packed text rows (m, d), (b, heads, m, e)."""
        k, v = self.norm_k(self.to_k(text)), self.to_v(text)
        return gather_text(k, keys, self.heads), gather_text(v, keys, self.heads)

    def look_up(self, x: Tensor, kv: tuple[Tensor, Tensor], lengths: Lengths, keys: TextKeys) -> Tensor:
        """Cross-attention of x (n, d) to its own clip's text."""
        q = rearrange(self.norm_q(self.to_q(x)), "n (heads e) -> n heads e", heads=self.heads)
        out = attend_text(q, *kv, lengths, keys)
        return self.to_out[0](rearrange(out, "n heads e -> n (heads e)"))


class GeluLinear(nn.Module):
    """A linear layer and GELU (tanh form), under the name that diffusers gives it."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(d, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, hidden)."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Two linear layers around GELU; the place of diffusers' dropout stays empty."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GeluLinear(d, hidden), nn.Identity(), nn.Linear(hidden, d)])

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, d)."""
        return self.net[2](self.net[0](x))


class Norm(nn.LayerNorm):
    """LayerNorm in float32 whatever the input's precision."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, d) -> (n, d)."""
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


def spread(rows: Tensor, index: Tensor) -> Tensor:
    """One row a noise level (u, d) to one row a token: broadcast where there is one level, gathered otherwise."""
    return rows if len(rows) == 1 else F.embedding(index, rows)


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, modulated by the noise level (adaLN with one shared MLP)."""

    def __init__(self, d: int, heads: int, ffn_dim: int, eps: float, cross_attn_norm: bool) -> None:
        super().__init__()
        self.norm1 = Norm(d, eps, elementwise_affine=False)
        self.attn1 = Attention(d, heads, eps)
        self.norm2 = Norm(d, eps) if cross_attn_norm else nn.Identity()
        self.attn2 = Attention(d, heads, eps)
        self.norm3 = Norm(d, eps, elementwise_affine=False)
        self.ffn = FeedForward(d, ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, d) / d**0.5)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        index: Tensor,
        table: Rotary,
        lengths: Lengths,
        kv: tuple[Tensor, Tensor],
        keys: TextKeys,
    ) -> Tensor:
        """x (n, d); modulation (u, 6, d) of the distinct noise levels; index (n,) says which level a token has."""
        rows = (self.scale_shift_table + modulation.float()).unbind(1)
        shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = (spread(row, index) for row in rows)
        dtype = x.dtype
        hidden = (self.norm1(x.float()) * (1 + scale) + shift).to(dtype)
        x = (x.float() + self.attn1(hidden, table, lengths) * gate).to(dtype)
        x = x + self.attn2.look_up(self.norm2(x), kv, lengths, keys)
        hidden = (self.norm3(x.float()) * (1 + scale_ffn) + shift_ffn).to(dtype)
        return (x.float() + self.ffn(hidden).float() * gate_ffn).to(dtype)


class ExtraPatch(nn.Module):
    """Embedding and head of one more patch size, and the vector that tells the blocks of it (FlexiDiT)."""

    def __init__(self, d: int, in_size: int, out_size: int) -> None:
        super().__init__()
        self.embed, self.unembed = nn.Linear(in_size, d), nn.Linear(d, out_size)
        self.level = nn.Parameter(torch.zeros(d))


class VideoDiT(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Wan's transformer on packs of clips of any sizes."""

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules = ["time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = ["norm_added_q"]  # noqa: RUF012
    _no_split_modules = ["Block"]  # noqa: RUF012
    _repeated_blocks = ["Block"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        patch_size: Sequence[int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        prediction: Literal["velocity", "clean"] = "velocity",
        extra_patch_sizes: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__()
        if qk_norm != "rms_norm_across_heads":
            raise ValueError(f"qk_norm must be 'rms_norm_across_heads', got {qk_norm!r}")
        if image_dim is not None or added_kv_proj_dim is not None:
            raise ValueError("image embeddings (Wan 2.1 image-to-video) are not read yet; give a text-to-video model")
        d = num_attention_heads * attention_head_dim
        self.head_size = attention_head_dim
        self.base_patch = _as_patch(patch_size)
        self.patch_embedding = nn.Conv3d(in_channels, d, self.base_patch, stride=self.base_patch)
        self.condition_embedder = ConditionEmbedder(d, freq_dim, text_dim)
        self.blocks = nn.ModuleList(
            Block(d, num_attention_heads, ffn_dim, eps, cross_attn_norm) for _ in range(num_layers)
        )
        self.norm_out = Norm(d, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(d, out_channels * math.prod(self.base_patch))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, d) / d**0.5)
        self.extra_patches = nn.ModuleDict(
            {
                patch_name(patch): ExtraPatch(d, in_channels * math.prod(patch), out_channels * math.prod(patch))
                for patch in map(_as_patch, extra_patch_sizes)
            }
        )
        self.gradient_checkpointing = False

    @property
    def patches(self) -> list[Patch]:
        """The patch sizes that this model knows, the base first."""
        return [self.base_patch, *map(_as_patch, self.config["extra_patch_sizes"])]

    def read_text(self, text: PackedText) -> TextContext:
        """Each block's keys and values of the texts: they do not change over the steps of a sampling run."""
        keys = text_keys(text.lengths, text.weights)
        rows = self.condition_embedder.text(text.tokens)
        blocks = cast("Iterable[Block]", self.blocks)
        return TextContext(keys, [block.attn2.read(rows, keys) for block in blocks])

    def forward(self, video: PackedVideo, levels: NoiseLevels, text: PackedText | TextContext) -> Tensor:
        """What the network says of every token, in the layout of video.tokens: the velocity or the clean value."""
        context = text if isinstance(text, TextContext) else self.read_text(text)
        lengths = video.lengths
        table = rotary(video.grids, video.patch, self.head_size, video.tokens.device, base=self.base_patch)

        x, size_level = self.embed(video)
        time = self.condition_embedder.time(levels.values).to(x.dtype) + size_level
        modulation = rearrange(self.condition_embedder.time_proj(F.silu(time)), "u (six d) -> u six d", six=6)
        for block, kv in zip(self.blocks, context.blocks, strict=True):
            args = (x, modulation, levels.index, table, lengths, kv, context.keys)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, *args)  # type: ignore[misc]
            else:
                x = block(*args)
        shift, scale = (spread(row, levels.index) for row in (self.scale_shift_table + time[:, None]).float().unbind(1))
        return self.unembed((self.norm_out(x.float()) * (1 + scale) + shift).to(x.dtype), video.patch)

    def embed(self, video: PackedVideo) -> tuple[Tensor, Tensor | float]:
        """Tokens (n, d), and what the patch size adds to the time embedding."""
        if video.patch == self.base_patch:
            weight = self.patch_embedding.weight.flatten(1)
            return F.linear(video.tokens.to(weight.dtype), weight, self.patch_embedding.bias), 0.0
        extra = self.extra(video.patch)
        return extra.embed(video.tokens.to(extra.embed.weight.dtype)), extra.level

    def unembed(self, x: Tensor, patch: Patch) -> Tensor:
        """Tokens (n, d) to (n, c·pt·ph·pw); Wan's head puts the channel last within a token."""
        out = self.proj_out(x) if patch == self.base_patch else self.extra(patch).unembed(x)
        return rearrange(out, "n (cells c) -> n (c cells)", c=self.config["out_channels"])

    def extra(self, patch: Patch) -> ExtraPatch:
        """The embedding of one of the extra patch sizes."""
        if patch_name(patch) not in self.extra_patches:
            allowed = ", ".join(map(patch_name, self.patches))
            raise ValueError(f"patch must be one of {allowed}, got {patch_name(patch)}")
        return self.extra_patches[patch_name(patch)]  # type: ignore[return-value]

    @torch.no_grad()
    def init_weights(self) -> None:
        """Random weights for training from nothing; every block starts as the identity and the first output is zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                std = 0.02 if "embedder" in name else math.sqrt(2 / (module.weight[0].numel() + module.weight.shape[0]))
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.condition_embedder.time_proj.weight)  # with the tables below, adaLN-zero (Peebles & Xie)
        for block in self.blocks:
            nn.init.zeros_(block.scale_shift_table)  # type: ignore[arg-type]
            nn.init.zeros_(block.attn2.to_out[0].weight)  # type: ignore[union-attr,index]
        nn.init.zeros_(self.scale_shift_table)
        nn.init.zeros_(self.proj_out.weight)
        self.init_extra_patches()

    @torch.no_grad()
    def init_extra_patches(self) -> None:
        """Give the extra patch sizes the base patch's weights, so that an upscaled patch embeds as its original.

        With B the resize of a base patch to the new size: embed' = embed · pinv(B), unembed' = B · unembed
        (FlexiViT, Beyer et al. 2023, Eq. 4).
        """
        c_in, c_out = self.config["in_channels"], self.config["out_channels"]
        base_embed = rearrange(self.patch_embedding.weight, "d c t h w -> d c (t h w)")
        base_head = rearrange(self.proj_out.weight, "(cells c) d -> cells c d", c=c_out)
        base_bias = rearrange(self.proj_out.bias, "(cells c) -> cells c", c=c_out)
        for patch in self.patches[1:]:
            extra, resize = self.extra(patch), _resize_matrix(self.base_patch, patch).to(base_embed)
            embed = torch.einsum("d c k, k p -> d c p", base_embed, torch.linalg.pinv(resize))
            extra.embed.weight.copy_(rearrange(embed, "d c p -> d (c p)", c=c_in))
            extra.embed.bias.copy_(self.patch_embedding.bias)  # type: ignore[arg-type]
            head = torch.einsum("p k, k c d -> p c d", resize, base_head)
            extra.unembed.weight.copy_(rearrange(head, "p c d -> (p c) d"))
            extra.unembed.bias.copy_(rearrange(resize @ base_bias, "p c -> (p c)"))


def _as_patch(patch: Sequence[int]) -> Patch:
    pt, ph, pw = patch  # JSON gives a list back
    return int(pt), int(ph), int(pw)


def patch_name(patch: Patch) -> str:
    """(1, 4, 4) -> "1x4x4"."""
    return "x".join(map(str, patch))


def _resize_matrix(base: Patch, new: Patch) -> Tensor:
    """The linear map (new cells, base cells) that resizes a base patch to the new size, trilinearly."""
    cells = math.prod(base)
    basis = torch.eye(cells).reshape(cells, 1, *base)
    resized = F.interpolate(basis, size=new, mode="trilinear", align_corners=False)
    return rearrange(resized, "k 1 t h w -> (t h w) k")
