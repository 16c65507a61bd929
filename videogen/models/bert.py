"""Encode prompts by a BERT encoder in torch alone: what the default checkpoint needs of transformers, and no more.

    ["a red circle", ...]  ->  tokenizer.json  ->  ids  ->  BertEncoder  ->  embeddings, a prompt (m_i, text_dim)

Parameter names and config keys are those of transformers' BertModel (Devlin et al. 2019), and so are the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videogen.models.checkpoint_config import UNUSED_PARTS
from videogen.models.text_encoder import embed_by_length, warn_of_truncation

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Embeddings(nn.Module):
    """The sum of the embeddings of each token, of its place and of the first segment, normalised."""

    def __init__(self, d: int, num_tokens: int, num_places: int, num_segments: int, eps: float) -> None:
        super().__init__()
        self.word_embeddings, self.position_embeddings, self.token_type_embeddings = (
            nn.Embedding.from_pretrained(torch.zeros(num, d), freeze=False)  # drawing numbers would take longer
            for num in (num_tokens, num_places, num_segments)
        )
        self.LayerNorm = nn.LayerNorm(d, eps)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (b, m) as (b, m, d)."""
        words = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        return self.LayerNorm(words + self.position_embeddings.weight[: ids.shape[1]])


class SelfAttention(nn.Module):
    """Attention among all tokens of a text."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(d, d) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(b, m, d) -> (b, m, d)."""
        q, k, v = (
            rearrange(project(x), "b m (heads e) -> b heads m e", heads=self.heads)
            for project in (self.query, self.key, self.value)
        )
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b heads m e -> b m (heads e)")


class AddNorm(nn.Module):
    """A linear layer whose output is added to the residual stream, which is then normalised."""

    def __init__(self, in_size: int, d: int, eps: float) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(in_size, d), nn.LayerNorm(d, eps)

    def forward(self, update: Tensor, x: Tensor) -> Tensor:
        """Add (b, m, in_size) to x (b, m, d)."""
        return self.LayerNorm(self.dense(update) + x)


class BertLayer(nn.Module):
    """Self-attention and feed-forward, each normalised behind its residual connection."""

    def __init__(self, d: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(d, heads), "output": AddNorm(d, d, eps)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(d, hidden)})
        self.output = AddNorm(hidden, d, eps)

    def forward(self, x: Tensor) -> Tensor:
        """(b, m, d) -> (b, m, d)."""
        x = self.attention["output"](self.attention["self"](x), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class BertEncoder(nn.Module):
    """BERT as an encoder of single texts; of its files it reads all but the pooler."""

    _keys_to_ignore_on_load_unexpected = UNUSED_PARTS

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        layer_norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.max_length = max_position_embeddings
        self.embeddings = Embeddings(
            hidden_size, vocab_size, max_position_embeddings, type_vocab_size, eps=layer_norm_eps
        )
        sizes = hidden_size, num_attention_heads, intermediate_size
        layers = (BertLayer(*sizes, eps=layer_norm_eps) for _ in range(num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def forward(self, ids: Tensor) -> Tensor:
        """Encode texts of one length, ids (b, m) -> (b, m, d)."""
        x = self.embeddings(ids)
        for layer in self.encoder["layer"]:  # type: ignore[union-attr]
            x = layer(x)
        return x


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a checkpoint folder; its file may also ask for a truncation and padding of its own."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer" / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises the base class itself
        raise ValueError(f"{path} cannot be read: {error}; download or save the checkpoint again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@torch.no_grad()
def embed_texts(texts: Sequence[str], tokenizer: Tokenizer, encoder: BertEncoder, device: torch.device) -> list[Tensor]:
    """Embed each text as (m_i, text_dim), as `text_encoder.embed_prompts` does with transformers' classes."""
    token_ids = [tokenizer.encode(text).ids for text in texts]
    limit = encoder.max_length
    if any(len(ids) > limit for ids in token_ids):
        warn_of_truncation(limit)
        token_ids = [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in token_ids]
    return embed_by_length(token_ids, encoder, device)
