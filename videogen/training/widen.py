"""A network made wider that says what it said: hours of training on a narrow one are a start for a wide one.

VideoDiT, heads, ffn_dim  ->  VideoDiT

Every feature is copied, and where copies are added up each counts for its share (Net2Net, Chen et al. 2016). Copies
that stayed alike would stay so for ever; so what is added up also gets noise that cancels between the copies of a
feature, as much as lets each weight vary as one of a matrix of the new width does. It tells them apart in the gradient.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Generator, Tensor

from videogen.models.dit import VideoDiT
from videogen.packing.noise import step_generator


@torch.no_grad()
def widened(model: VideoDiT, *, heads: int, ffn_dim: int, seed: int = 0) -> VideoDiT:
    """The network with more heads of the same size, a multiple of what it has, and wider feed-forward layers."""
    config = model.config
    had, had_hidden = cast("int", config["num_attention_heads"]), cast("int", config["ffn_dim"])
    if heads % had or ffn_dim < had_hidden:
        raise ValueError(
            f"dit.widen makes a network of {had} heads and ffn_dim {had_hidden} wider, got {heads} and {ffn_dim}; give "
            f"dit.num_attention_heads = {had}, {2 * had}, {3 * had}, ... and a dit.ffn_dim of at least {had_hidden}"
        )
    added = config["added_kv_proj_dim"] and heads * model.head_size
    options = {"num_attention_heads": heads, "ffn_dim": ffn_dim, "added_kv_proj_dim": added}
    wide = cast("VideoDiT", VideoDiT.from_config(config, **options))  # pyright: ignore[reportArgumentType]
    before, after, generator = model.state_dict(), wide.state_dict(), step_generator(seed, 0)
    for name, narrow in before.items():
        # the only layer with several features of the width behind each other: shift, scale and gate, twice
        chunks = 6 if "time_proj" in name else 1
        after[name] = widen(narrow.float(), tuple(after[name].shape), chunks, generator)
    wide.load_state_dict(after)
    wide.to(model.device)  # type: ignore[call-overload]
    return wide.train(model.training)


def widen(narrow: Tensor, shape: tuple[int, ...], chunks: int, generator: Generator) -> Tensor:
    """A weight of a shape that does to copied features what the narrow one does to each."""
    if narrow.ndim == 3:  # a table of modulations (1, k, d)
        return narrow[..., origins(narrow.shape[2], shape[2])]
    rows = origins(narrow.shape[0], shape[0], chunks)
    if narrow.ndim != 2:  # biases, norms, and kernels that read no features of the width
        return narrow[rows]
    columns = origins(narrow.shape[1], shape[1])
    copies = columns.bincount()  # of each feature that is read
    noise = torch.randn(shape, generator=generator) * narrow.square().mean().sqrt() / copies[columns].sqrt()
    sums = torch.zeros(shape[0], narrow.shape[1]).index_add_(1, columns, noise)
    return (narrow / copies)[rows][:, columns] + noise - (sums / copies)[:, columns]


def origins(old: int, new: int, chunks: int = 1) -> Tensor:
    """Of which old feature each new one is a copy, (new,): in every chunk all of them, again and again."""
    per_chunk = torch.arange(new // chunks) % (old // chunks)
    return torch.cat([chunk * (old // chunks) + per_chunk for chunk in range(chunks)])
