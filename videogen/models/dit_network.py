"""The denoiser: a diffusion transformer on packed spacetime patches, with the weights and names of Wan.

    PackedVideo (n, c·pt·ph·pw), NoiseLevels, PackedText (m, text_dim)  ->  prediction (n, c·pt·ph·pw)

Parameter names, shapes and config keys are those of diffusers' WanTransformer3DModel (Wan Team 2025), so its weights
load here unchanged and ours load there. Other predictions and more patch sizes go beyond Wan, and are off by default.
This is torch alone; dit.py adds diffusers' loading, LoRA and offloading.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videogen.models.attention import TextKeys, text_keys
from videogen.models.block_cache import Blocks, RunBlocks
from videogen.models.checkpoint_config import FLOAT32_PARTS
from videogen.models.dit_blocks import (
    Block,
    CrossAttentionInput,
    FP32LayerNorm,
    Modulation,
    compute_dtype,
    gather_by_level,
    join_inputs,
    modulate,
    random_table,
)
from videogen.models.dit_embeddings import ConditionEmbedder, PatchEmbedding
from videogen.models.preconditioning import Preconditioning, precondition
from videogen.models.rope import Rotary, rotary
from videogen.packing.noise import NoiseLevels
from videogen.packing.packs import PackedText, PackedVideo, PackLayout
from videogen.packing.patch_schedule import Patch, patch_name


class TextContext(NamedTuple):
    """Keys and values of a pack's texts, or of its images, for every block; computed once a prompt, not once a step."""

    keys: TextKeys
    blocks: list[tuple[Tensor, Tensor]]  # for each block, keys and values (b, heads, m, e)
    image: TextContext | None = None  # those of the images, in a text's context (Wan 2.1 image-to-video)
    is_text: bool = False  # True for images whose rows stand among those of the text, under one softmax

    def take(self, rows: Sequence[int]) -> TextContext:
        """Select texts, in the order given; the longest of them sets the number of rows."""
        index, keys = torch.tensor(rows, device=self.keys.rows.device), self.keys.take(rows)
        longest = max(keys.lengths)
        blocks = [(k[index, :, :longest], v[index, :, :longest]) for k, v in self.blocks]
        return TextContext(keys, blocks, self.image.take(rows) if self.image is not None else None, self.is_text)

    def inputs_of_block(self, i: int) -> list[CrossAttentionInput]:
        """List what block i attends to: the text, and the images if there are any."""
        parts = [CrossAttentionInput(*part.blocks[i], part.keys) for part in (self.image, self) if part is not None]
        return [join_inputs(*parts)] if self.image is not None and self.image.is_text else parts[::-1]


class LevelContext(NamedTuple):
    """What noise levels tell the network under a patch size."""

    blocks: Sequence[Tensor | Modulation]  # for each block its modulation, or what it adds its own table to
    shift: Tensor  # (u, d) of the output
    factor: Tensor  # (u, d)
    preconditioning: Preconditioning | None  # each factor (u, c·pt·ph·pw)
    index: Tensor  # (n,) each token's row  # pyright: ignore[reportIncompatibleMethodOverride]


class ExtraPatch(nn.Module):
    """Embedding and heads of one more patch size, and a vector that tells the blocks this size (FlexiDiT)."""

    def __init__(self, d: int, in_size: int, out_size: int, *, gated: bool) -> None:
        super().__init__()
        self.embed, self.unembed = nn.Linear(in_size, d), nn.Linear(d, out_size)
        self.gate = nn.Linear(d, out_size) if gated else None
        self.level = nn.Parameter(torch.zeros(d))


class DiT(nn.Module):
    """Wan's transformer on packs of clips of any sizes."""

    _keep_in_fp32_modules: ClassVar = [*FLOAT32_PARTS]  # read by load_network, and by diffusers for its face

    def __init__(
        self,
        patch_size: Sequence[int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int | None = 16,
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
        prediction: Literal["velocity", "clean", "preconditioned"] = "velocity",
        extra_patch_sizes: Sequence[Sequence[int]] = (),
        num_facts: int = 0,
        nearby: bool = False,
    ) -> None:
        super().__init__()
        if qk_norm != "rms_norm_across_heads":
            raise ValueError(f"qk_norm must be 'rms_norm_across_heads', got {qk_norm!r}")
        if prediction == "preconditioned" and in_channels != (out_channels or in_channels):
            raise ValueError(
                f"prediction 'preconditioned' needs in_channels equal to out_channels, got {in_channels} and "
                f"{out_channels}; use 'velocity'"
            )
        d = num_attention_heads * attention_head_dim
        if added_kv_proj_dim not in (None, d):
            raise ValueError(f"added_kv_proj_dim must be the model's width {d}, got {added_kv_proj_dim}")
        self.in_channels, self.out_channels = in_channels, out_channels or in_channels
        self.prediction = prediction
        self.has_image_attention = added_kv_proj_dim is not None  # without it, images are attended among the text
        self.head_size = attention_head_dim
        self.patches = [to_patch(patch_size), *map(to_patch, extra_patch_sizes)]
        self.base_patch = self.patches[0]
        out_size, gated = self.out_channels * math.prod(self.base_patch), prediction == "preconditioned"
        self.patch_embedding = PatchEmbedding(in_channels, d, self.base_patch, stride=self.base_patch)
        self.condition_embedder = ConditionEmbedder(d, freq_dim, text_dim, image_dim, pos_embed_seq_len)
        self.blocks = nn.ModuleList(
            Block(d, num_attention_heads, ffn_dim, eps, cross_attn_norm, added_kv_proj_dim, nearby=nearby)
            for _ in range(num_layers)
        )
        self.norm_out = FP32LayerNorm(d, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(d, out_size)
        self.scale_shift_table = random_table(2, d)
        self.extra_patches = nn.ModuleDict()
        for patch in self.patches[1:]:
            cells = math.prod(patch)
            extra_patch = ExtraPatch(d, in_channels * cells, self.out_channels * cells, gated=gated)
            self.extra_patches[patch_name(patch)] = extra_patch
        self.gate_out = nn.Linear(d, out_size) if gated else None
        self.data_variance: nn.Parameter | None = None  # of each latent channel: measured, not trained
        if gated:
            self.data_variance = nn.Parameter(torch.ones(self.out_channels), requires_grad=False)
        self.facts_head = nn.Linear(d, num_facts) if num_facts else None  # Only training uses it.
        self.gradient_checkpointing = False  # diffusers turns it on, and sets the function that does it

    @property
    def takes_image_embeddings(self) -> bool:
        """True if the model needs CLIP's embeddings of an image beside the prompt, as Wan 2.1 image-to-video does."""
        return self.condition_embedder.image_embedder is not None

    @property
    def offloads_layers(self) -> bool:
        """True if a layer's weights are in their place only while it computes, as under offloading by layers."""
        return False

    def project_text(self, text: PackedText, image: PackedText | None = None) -> TextContext:
        """Compute each block's keys and values of the texts, and of CLIP's rows of each clip's images if given.

        They do not change over the steps of a sampling run.
        """
        keys = text_keys(text.lengths, text.weights)
        rows = self.condition_embedder.text(text.tokens)
        blocks = cast("Iterable[Block]", self.blocks)
        context = TextContext(keys, [block.attn2.project_text(rows, keys) for block in blocks])
        return context if image is None else context._replace(image=self.project_images(image))

    def project_images(self, image: PackedText) -> TextContext:
        """Compute each block's keys and values of the clips' images, CLIP's rows (m, image_dim)."""
        embedder = self.condition_embedder.image_embedder
        if embedder is None:
            raise ValueError("this model takes no image embeddings; leave out the image")
        keys = text_keys(image.lengths, image.weights)
        rows, blocks = embedder(image.tokens, image.lengths), cast("Iterable[Block]", self.blocks)
        projected = [block.attn2.project_image(rows, keys) for block in blocks]
        return TextContext(keys, projected, is_text=not self.has_image_attention)

    def forward(
        self,
        video: PackedVideo,
        levels: NoiseLevels | LevelContext,
        text: PackedText | TextContext,
        *,
        facts: bool = False,
        run_blocks: RunBlocks | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict the velocity or the clean value of every token, in the layout of video.tokens.

        If the model has more channels in than out (Wan image-to-video), tokens hold the extra channels behind the
        noised ones. With facts, also return the facts head's logits (n, k), read at half depth. run_blocks decides
        which blocks run on which clips (block_cache.py).
        """
        context = text if isinstance(text, TextContext) else self.project_text(text)
        if self.takes_image_embeddings and context.image is None:
            raise ValueError("this model needs image embeddings beside the prompt; give it the image")
        device, scaling = video.tokens.device, video.scaling
        table = rotary(video.grids, video.patch, self.head_size, device, base=self.base_patch, scaling=scaling)

        level = levels if isinstance(levels, LevelContext) else self.project_levels(levels, video.patch)
        noised, factors = video.tokens, level.preconditioning
        if factors is not None:
            factors = Preconditioning(*(gather_by_level(factor, level.index) for factor in factors))
            video = video._replace(tokens=noised * factors.c_in)
        x = self.embed(video)
        layout = PackLayout(video.grids, video.lengths)

        fact_logits: Tensor | None = None
        if run_blocks is not None:
            x = run_blocks(x, video.lengths, self.block_runner(level, table, layout, context))
        for i, block in enumerate(self.blocks if run_blocks is None else ()):
            args = (x, level.blocks[i], level.index, table, layout, context.inputs_of_block(i))
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, *args)  # type: ignore[operator,misc]
            else:
                x = block(*args)
            if facts and i == (len(self.blocks) - 1) // 2:
                fact_logits = self.facts_head(x)  # type: ignore[misc]

        x = modulate(self.norm_out, x, level.factor, level.shift, level.index).to(x.dtype)
        out = self.unembed(x, video.patch)
        if factors is not None:
            residual = torch.addcmul(out.float(), factors.c_gate * noised, self.gates(x, video.patch).float())
            out = factors.c_skip * noised + factors.c_out * residual
        return out if fact_logits is None else (out, fact_logits)

    def project_levels(self, levels: NoiseLevels, patch: Patch) -> LevelContext:
        """Compute the modulation of every block, that of the output, and the preconditioning at noise levels (u,).

        They do not depend on the tokens, so that a sampling run computes those of all its steps beforehand.
        """
        time = self.condition_embedder.time(levels.values).to(self.dtype_of(patch))
        if patch != self.base_patch:
            time = time + self.extra_patch(patch).level.to(time.device)
        shared = rearrange(self.condition_embedder.time_proj(F.silu(time)), "u (six d) -> u six d", six=6)
        blocks: Sequence[Tensor | Modulation] = [shared] * len(self.blocks)
        tables: list[Tensor] = [block.scale_shift_table for block in cast("Iterable[Block]", self.blocks)]
        # One sum for all blocks instead of one each. In training they sum themselves, compiled or checkpointed.
        if not torch.is_grad_enabled() and not self.offloads_layers:
            rows = rearrange(torch.cat(tables), "blocks six d -> blocks 1 six d") + shared.float()
            rows[:, :, 1::3] += 1  # the two scales
            blocks = [Modulation(*block_rows.unbind(1)) for block_rows in rows]
        shift, scale = (self.scale_shift_table + time[:, None]).unbind(1)
        return LevelContext(blocks, shift, 1 + scale, self.preconditioning(levels, patch), levels.index)

    def block_runner(self, level: LevelContext, table: Rotary, layout: PackLayout, context: TextContext) -> Blocks:
        """Return a function that runs some of the blocks on some clips of a pack."""

        def blocks(x: Tensor, which: slice, clips: Sequence[int]) -> Tensor:
            clip_index, clip_table, clip_layout, clip_context = level.index, table, layout, context
            if len(clips) < len(layout.grids):
                clip_rows = torch.arange(len(level.index), device=x.device).split(layout.lengths)
                rows = torch.cat([clip_rows[i] for i in clips])
                clip_index, clip_table = level.index[rows], Rotary(*(part[rows] for part in table))
                clip_layout, clip_context = PackLayout([layout.grids[i] for i in clips]), context.take(clips)
            for i in range(len(self.blocks))[which]:
                inputs = clip_context.inputs_of_block(i)
                x = self.blocks[i](x, level.blocks[i], clip_index, clip_table, clip_layout, inputs)
            return x

        return blocks

    def preconditioning(self, levels: NoiseLevels, patch: Patch) -> Preconditioning | None:
        """Compute the preconditioning at noise levels, each factor (u, c·pt·ph·pw); None if there is none."""
        if self.data_variance is None:
            return None
        exact = torch.promote_types(self.data_variance.dtype, torch.float32)
        factors = precondition(self.data_variance.to(exact), levels.values[:, None].to(exact))
        return Preconditioning(*(factor.repeat_interleave(math.prod(patch), dim=1) for factor in factors))

    def dtype_of(self, patch: Patch) -> torch.dtype:
        """Return the precision of the residual stream, which is that of the weights that embed a patch."""
        if patch == self.base_patch:
            return self.patch_embedding.weight.dtype
        return compute_dtype(self.extra_patch(patch).embed)

    def embed(self, video: PackedVideo) -> Tensor:
        """Embed tokens as (n, d)."""
        dtype = self.dtype_of(video.patch)
        tokens = video.tokens.to(dtype)
        if video.patch == self.base_patch:
            pt, ph, pw = video.patch
            cells = rearrange(tokens, "n (c pt ph pw) -> n c pt ph pw", pt=pt, ph=ph, pw=pw)
            # Autocast's output has fewer bits, and the residual stream keeps those of the weights, hence .to().
            return rearrange(self.patch_embedding(cells), "n d 1 1 1 -> n d").to(dtype)
        return self.extra_patch(video.patch).embed(tokens).to(dtype)

    def unembed(self, x: Tensor, patch: Patch) -> Tensor:
        """Project tokens (n, d) to (n, c·pt·ph·pw); Wan's head puts the channel last within a token."""
        out = self.proj_out(x) if patch == self.base_patch else self.extra_patch(patch).unembed(x)
        return rearrange(out, "n (cells c) -> n (c cells)", c=self.out_channels)

    def gates(self, x: Tensor, patch: Patch) -> Tensor:
        """Predict from tokens (n, d) the gate of each value (n, c·pt·ph·pw), as precondition defines it."""
        head = self.gate_out if patch == self.base_patch else self.extra_patch(patch).gate
        return rearrange(head(x), "n (cells c) -> n (c cells)", c=self.out_channels)  # type: ignore[misc]

    def extra_patch(self, patch: Patch) -> ExtraPatch:
        """Return the layers of one of the extra patch sizes; a ValueError lists the sizes if it is none of them."""
        if patch_name(patch) not in self.extra_patches:
            allowed = ", ".join(map(patch_name, self.patches))
            raise ValueError(f"patch must be one of {allowed}, got {patch_name(patch)}")
        return self.extra_patches[patch_name(patch)]  # type: ignore[return-value]

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw random weights for training from scratch; every block starts as the identity, and the output is zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                width = module.weight[0].numel() + module.weight.shape[0]
                nn.init.normal_(module.weight, std=0.02 if "embedder.time" in name else math.sqrt(2 / width))
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.condition_embedder.time_proj.weight)  # with the tables below, adaLN-zero (Peebles & Xie)
        for block in cast("Iterable[Block]", self.blocks):
            nn.init.zeros_(block.scale_shift_table)
            nn.init.zeros_(block.attn2.to_out[0].weight)  # type: ignore[arg-type]
            if block.nearby is not None:
                nn.init.zeros_(block.nearby.weight)
            block.attn1.init_local_heads()
        nn.init.zeros_(self.scale_shift_table)
        nn.init.zeros_(self.proj_out.weight)
        if self.gate_out is not None:
            nn.init.zeros_(self.gate_out.weight)
        if self.facts_head is not None:
            nn.init.constant_(self.facts_head.bias, -4.0)  # Most facts are untrue of most tokens.
        self.init_extra_patches()

    @torch.no_grad()
    def init_extra_patches(self, patches: Sequence[Patch] | None = None) -> None:
        """Initialise extra patch sizes from the base patch, so that an upscaled patch embeds as its original.

        With B the resize of a base patch to the new size: embed' = embed · pinv(B), unembed' = B · unembed
        (FlexiViT, Beyer et al. 2023, Eq. 4).
        """
        c_in, c_out = self.in_channels, self.out_channels
        base_embed = rearrange(self.patch_embedding.weight, "d c t h w -> d c (t h w)")
        for patch in self.patches[1:] if patches is None else patches:
            extra, resize = self.extra_patch(patch), resize_matrix(self.base_patch, patch).to(base_embed)
            embed = torch.einsum("d c k, k p -> d c p", base_embed, torch.linalg.pinv(resize))
            extra.embed.weight.copy_(rearrange(embed, "d c p -> d (c p)", c=c_in))
            extra.embed.bias.copy_(self.patch_embedding.bias)  # type: ignore[arg-type]
            for base_head, head in ((self.proj_out, extra.unembed), (self.gate_out, extra.gate)):
                if base_head is None or head is None:
                    continue
                weight = rearrange(base_head.weight, "(cells c) d -> cells c d", c=c_out)
                bias = rearrange(base_head.bias, "(cells c) -> cells c", c=c_out)
                head.weight.copy_(rearrange(torch.einsum("p k, k c d -> p c d", resize, weight), "p c d -> (p c) d"))
                head.bias.copy_(rearrange(resize @ bias, "p c -> (p c)"))


def to_patch(sizes: Sequence[int]) -> Patch:
    """Convert three sizes to a tuple of integers; a config read from JSON gives them as a list."""
    pt, ph, pw = sizes
    return int(pt), int(ph), int(pw)


def resize_matrix(base: Patch, new: Patch) -> Tensor:
    """Compute the linear map (new cells, base cells) that resizes a base patch to the new size, trilinearly."""
    cells = math.prod(base)
    basis = torch.eye(cells).reshape(cells, 1, *base)
    resized = F.interpolate(basis, size=new, mode="trilinear", align_corners=False)
    return rearrange(resized, "k 1 t h w -> (t h w) k")
