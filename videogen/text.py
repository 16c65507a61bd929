"""Prompts to packed token embeddings.

    ["a red circle", ...]  ->  PackedText: tokens (m, text_dim), lengths, weights (m,)

The default checkpoint reads with all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019), Wan with UMT5 (Chung et
al. 2023), frozen.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from videogen.config import SampleConfig
from videogen.packing import Lengths
from videogen.storage import checkpoint_id, save_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
WAN_ROWS = 512
HALVES = ("UMT5EncoderModel", "T5EncoderModel")  # AutoModel would ask for the decoder too


class PackedText(NamedTuple):
    """Texts side by side; a row's weight is how many equal rows it stands for."""

    tokens: Tensor  # (m, text_dim)
    lengths: Lengths
    weights: Tensor  # (m,) float32


def pack_texts(texts: Sequence[Tensor]) -> PackedText:
    """Embedded texts (m_i, text_dim) as one pack, every row standing for itself."""
    tokens = torch.cat(list(texts))
    return PackedText(tokens, tuple(len(text) for text in texts), torch.ones(len(tokens), device=tokens.device))


def pad_texts(texts: Sequence[Tensor], num_rows: int) -> PackedText:
    """Embedded texts (m_i, text_dim), each followed by zeros up to num_rows: one row that stands for all of them."""
    parts, weights = [], []
    for text in texts:
        num_zeros = max(0, num_rows - len(text))
        parts += [text, text.new_zeros(min(1, num_zeros), text.shape[1])]
        weights += [1.0] * len(text) + [float(num_zeros)] * min(1, num_zeros)
    lengths = tuple(len(text) + (len(text) < num_rows) for text in texts)
    tokens = torch.cat(parts)
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    return PackedText(tokens, lengths, torch.tensor(weights, device=tokens.device, dtype=dtype))


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


def texts_of(prompts: Sequence[str], config: SampleConfig) -> list[str]:
    """What is read for some clips: the prompts, and under guidance the negative prompt once for each."""
    guided = {config.guidance, config.guidance_2} - {1, None}
    return [*prompts, *([config.negative] * len(prompts) if guided else [])]


class TextCache:
    """Embedded prompts in memory and on disk, in half precision: each different one is encoded once, not every session.

    Prompts that were new at once lie in one file. A text's name is a hash of the prompt and of the encoder's and the
    tokenizer's files, so it is never stale. Beyond so many bytes those that were not asked for longest leave memory.
    """

    held_bytes = 2**30

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, cache_dir: Path) -> None:
        self.tokenizer, self.encoder, self.cache_dir = tokenizer, encoder, cache_dir
        names = [part.name_or_path for part in (tokenizer, encoder)]
        self.text_id = "|".join(checkpoint_id(Path(str(name)))["sha256"] for name in names)
        self.texts = OrderedDict[str, Tensor]()
        self.files = dict(self._on_disk())

    def _on_disk(self) -> Iterator[tuple[str, Path]]:
        for path in sorted(self.cache_dir.glob("*.safetensors")):
            with contextlib.suppress(SafetensorError, OSError), safe_open(path, "pt") as file:
                yield from ((name, path) for name in file.keys())  # noqa: SIM118  # it is no dict

    def name_of(self, prompt: str) -> str:
        """What a prompt's embedding is called on disk."""
        return hashlib.sha256(f"{self.text_id}|{prompt}".encode()).hexdigest()[:32]

    def read(self, prompts: Sequence[str]) -> list[Tensor]:
        """Each prompt's token embeddings (m_i, text_dim) on the host in half precision, from disk or made now."""
        names = [self.name_of(prompt) for prompt in prompts]
        for path in sorted({self.files[name] for name in names if name in self.files and name not in self.texts}):
            with contextlib.suppress(SafetensorError, OSError):  # damaged: made anew
                self.texts.update(load_file(path))
        new = {name: prompt for name, prompt in zip(names, prompts, strict=True) if name not in self.texts}
        if new:
            made = embed_prompts(list(new.values()), self.tokenizer, self.encoder)
            rows = torch.cat(made).half().cpu().split([len(text) for text in made])  # one way back, not one each
            fresh = dict(zip(new, rows, strict=True))
            self.texts.update(fresh)
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            save_tensors(fresh, path := self.cache_dir / f"{next(iter(new))}.safetensors")
            self.files |= dict.fromkeys(fresh, path)
        found = [self.texts[name] for name in names]
        self._make_room(names)
        return found

    def _make_room(self, names: Sequence[str]) -> None:
        for name in names:
            self.texts.move_to_end(name)
        held = sum(text.nbytes for text in self.texts.values())
        while held > self.held_bytes and len(self.texts) > len(set(names)):
            held -= self.texts.popitem(last=False)[1].nbytes
