"""Prompts to packed token embeddings.

    ["a red circle", ...]  ->  PackedText: tokens (m, text_dim), lengths, weights (m,)

The default checkpoint reads with all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019), Wan with UMT5 (Chung et
al. 2023), frozen.
"""

from __future__ import annotations

import contextlib
import html
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


logger = logging.getLogger(__name__)
WAN_ROWS = 512
HALVES = ("UMT5EncoderModel", "T5EncoderModel")  # AutoModel would ask for the decoder too


def num_rows_of(encoder: PreTrainedModel) -> int:
    """How many text rows a network sees that reads this encoder, zeros after the text; 0: as many as there are."""
    return WAN_ROWS if encoder.config.model_type == "umt5" else 0


def clean_as_wan(prompt: str) -> str:
    """A prompt as WanPipeline cleans it: mended by ftfy where that is installed, HTML undone, spaces single."""
    import regex

    with contextlib.suppress(ImportError):
        import ftfy  # type: ignore[import-not-found]

        prompt = ftfy.fix_text(prompt)
    prompt = html.unescape(html.unescape(prompt)).strip()
    return regex.sub(r"\s+", " ", prompt).strip()


def load_text(folder: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The tokenizer and the frozen text encoder of a checkpoint folder."""
    from transformers import AutoTokenizer

    for name in ("tokenizer", "text_encoder"):
        if not (folder / name).is_dir():
            raise ValueError(f"{folder} has no {name}/; give a checkpoint folder that holds one")
    return AutoTokenizer.from_pretrained(folder / "tokenizer"), load_encoder(folder)


def load_encoder(folder: Path, part: str = "text_encoder", *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A frozen encoder, every weight from its file: transformers would draw a missing one at random."""
    import transformers

    where = folder / part
    name = half_of(transformers.AutoConfig.from_pretrained(where))
    kind = getattr(transformers, name or "AutoModel")
    try:
        encoder, info = kind.from_pretrained(where, dtype=dtype, output_loading_info=True, use_safetensors=True)
    except (SafetensorError, OSError) as error:
        said = str(error).split("\n")[0]
        raise ValueError(f"{where} has no whole .safetensors weights: {said}; download the checkpoint again") from None
    for say, names in (("lacks", info["missing_keys"]), ("has an extra weight", info["unexpected_keys"])):
        if names:
            raise ValueError(f"{where} {say} {min(names)}; its weights do not belong to its config.json")
    return encoder.eval().requires_grad_(False)


def blank_encoder(where: Path) -> PreTrainedModel:
    """The encoder of a folder on the meta device: all of it but the weights' values."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(where)
    name = half_of(config)
    with torch.device("meta"):
        return getattr(transformers, name)(config) if name else transformers.AutoModel.from_config(config)


def half_of(config: PreTrainedConfig) -> str:
    """The class of an encoder that is one half of a model; empty of any other."""
    name = next(iter(config.architectures or []), "")
    return name if name in HALVES else ""


@torch.no_grad()
def embed_prompts(
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    encoder: PreTrainedModel,
    device: torch.device | None = None,
) -> list[Tensor]:
    """Each prompt's token embeddings (m_i, text_dim), without padding; a prompt gives the same alone or among others.

    An empty prompt is the encoder's begin and end tokens; a prompt beyond the encoder's limit is cut there, with a
    warning. For Wan they are cleaned first, and are as the padded ones of diffusers: its encoder sees no padding.
    The device is where the encoder computes, if it waits elsewhere.
    """
    limit = num_rows_of(encoder) or encoder.config.max_position_embeddings
    words = [clean_as_wan(prompt) if num_rows_of(encoder) else prompt for prompt in prompts]
    coded = tokenizer(words, truncation=True, max_length=limit + 1)["input_ids"]
    if any(len(ids) > limit for ids in coded):
        logger.warning("a prompt of more than %d tokens is cut there", limit)
        coded = tokenizer(words, truncation=True, max_length=limit)["input_ids"]
    done: dict[int, Tensor] = {}
    for length in sorted({len(ids) for ids in coded}):  # equal lengths go together: no padding, no mask
        rows = [i for i, ids in enumerate(coded) if len(ids) == length]
        ids = torch.tensor([coded[i] for i in rows], device=device or encoder.device)
        hidden = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        done |= dict(zip(rows, hidden.float(), strict=True))
    return [done[i] for i in range(len(prompts))]
