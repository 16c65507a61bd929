"""Widen a trained network without changing its output, so that a wide network starts where a narrow one stopped.

VideoDiT, heads, ffn_dim  ->  VideoDiT

Every feature is copied, and the weights that sum over copies are divided by their number (Net2Net, Chen et al. 2016).
Copies with equal gradients would stay equal for ever, so these weights also get noise that cancels over the copies of
a feature. It gives each weight the variance of a matrix of the new width, and each copy a gradient of its own.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Generator, Tensor

from videogen.models.dit import VideoDiT
from videogen.packing.noise import step_generator


@torch.no_grad()
def widen_model(model: VideoDiT, *, heads: int, ffn_dim: int, seed: int = 0) -> VideoDiT:
    """Widen a DiT to a multiple of its heads and a larger ffn_dim; raises a ValueError for any other size."""
    config = model.config
    old_heads, old_ffn_dim = cast("int", config["num_attention_heads"]), cast("int", config["ffn_dim"])
    if heads % old_heads or ffn_dim < old_ffn_dim:
        raise ValueError(
            f"dit.widen makes a network of {old_heads} heads and ffn_dim {old_ffn_dim} wider, got {heads} and "
            f"{ffn_dim}; give dit.num_attention_heads = {old_heads}, {2 * old_heads}, {3 * old_heads}, ... and a "
            f"dit.ffn_dim of at least {old_ffn_dim}"
        )
    image_width = config["added_kv_proj_dim"] and heads * model.head_size
    options = {"num_attention_heads": heads, "ffn_dim": ffn_dim, "added_kv_proj_dim": image_width}
    wide = cast("VideoDiT", VideoDiT.from_config(config, **options))  # pyright: ignore[reportArgumentType]
    weights, generator = wide.state_dict(), step_generator(seed, 0)
    for name, narrow in model.state_dict().items():
        # time_proj alone puts out several features of the model's width: shift, scale and gate, twice.
        num_chunks = 6 if "time_proj" in name else 1
        weights[name] = widen_weight(narrow.float(), tuple(weights[name].shape), num_chunks, generator)
    wide.load_state_dict(weights)
    wide.to(model.device)  # type: ignore[call-overload]
    return wide.train(model.training)


def widen_weight(narrow: Tensor, shape: tuple[int, ...], num_chunks: int, generator: Generator) -> Tensor:
    """Widen one weight to the given shape, so that it maps copied features to copies of the narrow weight's output."""
    if narrow.ndim == 3:  # a table of modulations (1, k, d)
        return narrow[..., feature_origins(narrow.shape[2], shape[2])]
    rows = feature_origins(narrow.shape[0], shape[0], num_chunks)
    if narrow.ndim != 2:  # biases, norms, and kernels whose inputs are not features of the model's width
        return narrow[rows]
    columns = feature_origins(narrow.shape[1], shape[1])
    num_copies = columns.bincount()  # of each input feature
    noise = torch.randn(shape, generator=generator) * narrow.square().mean().sqrt() / num_copies[columns].sqrt()
    noise_sums = torch.zeros(shape[0], narrow.shape[1]).index_add_(1, columns, noise)
    return (narrow / num_copies)[rows][:, columns] + noise - (noise_sums / num_copies)[:, columns]


def feature_origins(old: int, new: int, num_chunks: int = 1) -> Tensor:
    """Return the old feature that each new one copies, (new,): each chunk repeats its own old features in order."""
    per_chunk = torch.arange(new // num_chunks) % (old // num_chunks)
    return torch.cat([chunk * (old // num_chunks) + per_chunk for chunk in range(num_chunks)])
