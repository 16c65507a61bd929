"""Encode prompts to packed token embeddings.

    ["a red circle", ...]  ->  PackedText: tokens (m, text_dim), lengths, weights (m,)

The encoder of the default checkpoint is all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019), and that of Wan
is UMT5 (Chung et al. 2023), both frozen.
"""

from __future__ import annotations

import contextlib
import html
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

from videogen.data.files import error_reason
from videogen.models.checkpoint_config import read_json
from videogen.models.weight_headers import check_sizes, read_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


logger = logging.getLogger(__name__)
WAN_TEXT_ROWS = 512
# AutoModel would also build a decoder, or leave a projection out.
ENCODER_CLASSES = ("UMT5EncoderModel", "T5EncoderModel", "CLIPVisionModelWithProjection")


def num_text_rows(encoder: PreTrainedModel) -> int:
    """Return to how many rows a text of this encoder is padded with zeros; 0 if it is not padded."""
    return WAN_TEXT_ROWS if encoder.config.model_type in ("umt5", "t5") else 0


def clean_wan_prompt(prompt: str) -> str:
    """Clean a prompt as WanPipeline does: ftfy where it is installed, HTML unescaped, whitespace collapsed."""
    import regex

    with contextlib.suppress(ImportError):
        import ftfy  # type: ignore[import-not-found]

        prompt = ftfy.fix_text(prompt)
    return regex.sub(r"\s+", " ", html.unescape(html.unescape(prompt)).strip()).strip()


def load_tokenizer_and_encoder(
    folder: Path, *, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Load the tokenizer and the frozen text encoder of a checkpoint folder."""
    from transformers import AutoTokenizer

    for name in ("tokenizer", "text_encoder"):
        if not (folder / name).is_dir():
            raise ValueError(f"{folder} has no {name}/; give a checkpoint folder that holds one")
    return AutoTokenizer.from_pretrained(folder / "tokenizer"), load_encoder(folder, dtype=dtype)


def load_encoder(
    folder: Path, part: str = "text_encoder", *, dtype: torch.dtype = torch.float32, variant: str | None = None
) -> PreTrainedModel:
    """Load a frozen encoder; raise ValueError if a weight is missing, which transformers would draw at random.

    A variant, such as fp16, names files of other weights; a part that has none of it is loaded as it is.
    """
    import transformers

    path = folder / part
    variant = variant if any(path.glob(f"*.{variant}*.safetensors")) else None
    class_name = encoder_class(read_encoder_config(path)) or "AutoModel"
    try:
        encoder, info = getattr(transformers, class_name).from_pretrained(
            path, dtype=dtype, output_loading_info=True, use_safetensors=True, variant=variant
        )
    except (SafetensorError, OSError) as error:
        reason = str(error).split("\n")[0]
        message = f"{path} has no complete .safetensors weights: {reason}; download the checkpoint again"
        raise ValueError(message) from None
    except (TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} makes no encoder: {error_reason(error)}; download the checkpoint again") from None
    for fault, names in (("lacks", info["missing_keys"]), ("has an extra weight", info["unexpected_keys"])):
        if names:
            raise ValueError(f"{path} {fault} {min(names)}; its weights do not belong to its config.json")
    return encoder.eval().requires_grad_(False)


def read_encoder_config(path: Path) -> PreTrainedConfig:
    """Read an encoder's config, compared with its weights: transformers would build a network of any size."""
    import transformers

    try:
        shapes = read_shapes(path)
    except ValueError as error:
        reason = str(error).partition(";")[0]
        raise ValueError(
            f"{path} has no complete .safetensors weights: {reason}; download the checkpoint again"
        ) from None
    check_sizes(read_json(path / "config.json"), shapes, path / "config.json")
    try:
        return transformers.AutoConfig.from_pretrained(path)
    except Exception as error:  # transformers checks types by errors of its own, of which no two versions have the same
        raise ValueError(f"{path / 'config.json'} is no config of an encoder: {error_reason(error)}") from None


def meta_encoder(path: Path) -> PreTrainedModel:
    """Build the encoder of a folder on the meta device, without the values of its weights."""
    import transformers

    config = read_encoder_config(path)
    class_name = encoder_class(config)
    with torch.device("meta"):
        return getattr(transformers, class_name)(config) if class_name else transformers.AutoModel.from_config(config)


def encoder_class(config: PreTrainedConfig) -> str:
    """Return the class name of an encoder that is one half of a model; empty for any other model."""
    name = next(iter(config.architectures or []), "")
    return name if name in ENCODER_CLASSES else ""


@torch.no_grad()
def embed_prompts(
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    encoder: PreTrainedModel,
    device: torch.device | None = None,
    *,
    max_length: int | None = None,
) -> list[Tensor]:
    """Embed each prompt as (m_i, text_dim), without padding: a prompt gives the same alone or in a batch.

    An empty prompt is the encoder's begin and end tokens. A prompt beyond the encoder's limit, or beyond max_length, is
    truncated, with a warning. Wan's prompts are cleaned first; their embeddings equal the padded ones of diffusers,
    whose encoder masks the padding. The encoder computes on the device, which need not be where its weights are stored
    (offloading).
    """
    limit = num_text_rows(encoder) or encoder.config.max_position_embeddings
    limit = min(limit, max_length or limit)
    texts = [clean_wan_prompt(prompt) if num_text_rows(encoder) else prompt for prompt in prompts]
    token_ids = tokenizer(texts, truncation=True, max_length=limit + 1)["input_ids"]
    if any(len(ids) > limit for ids in token_ids):
        warn_of_truncation(limit)
        token_ids = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]

    def encode(batch: Tensor) -> Tensor:
        return encoder(input_ids=batch, attention_mask=torch.ones_like(batch)).last_hidden_state

    return embed_by_length(token_ids, encode, device or encoder.device)


def warn_of_truncation(limit: int) -> None:
    """Report a prompt beyond the encoder's limit."""
    logger.warning("a prompt has more than %d tokens, the limit of the text encoder, and is cut there", limit)


def embed_by_length(
    token_ids: Sequence[Sequence[int]], encode: Callable[[Tensor], Tensor], device: torch.device
) -> list[Tensor]:
    """Embed texts as (m_i, text_dim) float32; a batch of equal lengths needs no padding and no mask."""
    embeddings: dict[int, Tensor] = {}
    for length in sorted({len(ids) for ids in token_ids}):
        rows = [i for i, ids in enumerate(token_ids) if len(ids) == length]
        hidden = encode(torch.tensor([token_ids[i] for i in rows], device=device))
        embeddings |= dict(zip(rows, hidden.float(), strict=True))
    return [embeddings[i] for i in range(len(token_ids))]
