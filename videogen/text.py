"""Prompts to packed token embeddings.

    ["a red circle", ...]  ->  PackedText: tokens (m, text_dim), lengths, weights (m,)

The default checkpoint reads with all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019), frozen.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from videogen.packing import Lengths

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class PackedText(NamedTuple):
    """Texts side by side; a row's weight is how many equal rows it stands for."""

    tokens: Tensor  # (m, text_dim)
    lengths: Lengths
    weights: Tensor  # (m,) float32


def pack_texts(texts: Sequence[Tensor]) -> PackedText:
    """Embedded texts (m_i, text_dim) as one pack, every row standing for itself."""
    tokens = torch.cat(list(texts))
    return PackedText(tokens, tuple(len(text) for text in texts), torch.ones(len(tokens), device=tokens.device))


def load_text(folder: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The tokenizer and the frozen text encoder of a checkpoint folder."""
    from transformers import AutoTokenizer

    for name in ("tokenizer", "text_encoder"):
        if not (folder / name).is_dir():
            raise ValueError(f"{folder} has no {name}/; give a checkpoint folder that holds one")
    return AutoTokenizer.from_pretrained(folder / "tokenizer"), load_encoder(folder)


def load_encoder(folder: Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The frozen text encoder, every weight from its file: transformers would draw a missing one at random."""
    from transformers import AutoModel

    where = folder / "text_encoder"
    encoder, info = AutoModel.from_pretrained(where, dtype=dtype, output_loading_info=True)
    for say, names in (("lacks", info["missing_keys"]), ("has an extra weight", info["unexpected_keys"])):
        if names:
            raise ValueError(f"{where} {say} {min(names)}; its weights do not belong to its config.json")
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def embed_prompts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel) -> list[Tensor]:
    """Each prompt's token embeddings (m_i, text_dim), without padding; a prompt gives the same alone or among others.

    An empty prompt is the encoder's begin and end tokens; a prompt beyond the encoder's limit is cut there, with a
    warning.
    """
    limit = encoder.config.max_position_embeddings
    coded = tokenizer(list(prompts), truncation=True, max_length=limit + 1)["input_ids"]
    if any(len(ids) > limit for ids in coded):
        logger.warning("a prompt of more than %d tokens is cut there", limit)
        coded = tokenizer(list(prompts), truncation=True, max_length=limit)["input_ids"]
    done: dict[int, Tensor] = {}
    for length in sorted({len(ids) for ids in coded}):  # equal lengths go together: no padding, no mask
        rows = [i for i, ids in enumerate(coded) if len(ids) == length]
        ids = torch.tensor([coded[i] for i in rows], device=encoder.device)
        hidden = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        done |= dict(zip(rows, hidden.float(), strict=True))
    return [done[i] for i in range(len(prompts))]
