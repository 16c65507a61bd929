"""Cache on disk what training computes once: latents of clips and embeddings of captions.

clip -> latent in a shard;  caption -> embedding in a file with others
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from videogen.data.folder import VideoFolder
from videogen.data.manifest import load_hashed_tensors, save_hashed_tensors
from videogen.data.shards import KEY_BYTES, ShardStore
from videogen.models.hub import checkpoint_id
from videogen.models.text_encoder import embed_prompts
from videogen.toybox.dataset import ToyboxClips

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS_PER_FILE = 64
CachedArrays = dict[str, np.ndarray]  # "latent" (c, t, h, w) in half precision, and the clip's extra arrays


class CacheEntry(NamedTuple):
    """The cached arrays of a clip, and what is still to be written beside them."""

    arrays: CachedArrays
    video: np.ndarray | None = None  # (3, t, h, w) in [-1, 1], if its latent is still to be encoded
    extra: CachedArrays = {}  # noqa: RUF012  # arrays still to be written beside the latent

    @property
    def is_complete(self) -> bool:
        """True if everything was on disk."""
        return self.video is None and not self.extra


class LatentCache:
    """Encoded clips on disk, so that a file is decoded and encoded once and not every epoch.

    The key of a cached latent is a hash of everything that decides its content: the clip's key and the encoder. So it
    is never stale, and what a killed run leaves of one is made again. Loading an entry reads or draws the clip,
    completing it takes the encoder: two processes may share the work.
    """

    def __init__(
        self,
        folder: VideoFolder | ToyboxClips,
        vae_id: str,
        cache_dir: Path,
        extra: Callable[[int], CachedArrays] | None = None,
    ) -> None:
        self.folder, self.vae_id, self.extra = folder, vae_id, extra
        self.store = ShardStore(cache_dir)

    def key(self, index: int, epoch: int) -> bytes:
        """Return the key of the clip's latent, whether it is cached or not."""
        parts = (*self.folder.key(index, epoch), self.vae_id)
        return hashlib.sha256("|".join(map(str, parts)).encode(errors="surrogateescape")).digest()[:KEY_BYTES]

    def load_entry(self, index: int, epoch: int) -> CacheEntry:
        """Load the clip's arrays from disk; read the clip, and make its extra arrays, where the disk lacks them."""
        tensors = self.store.load(self.key(index, epoch)) or {}  # what is missing or damaged is written again
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        video = None if "latent" in arrays else self.folder.read(index, epoch).video.contiguous().numpy()
        extra = self.extra(index) if self.extra is not None and arrays.keys() <= {"latent"} else {}
        return CacheEntry(arrays, video, extra)

    def complete_entry(
        self, index: int, epoch: int, entry: CacheEntry, encode: Callable[[Tensor], Tensor]
    ) -> CachedArrays:
        """Encode and write what an entry lacks; return all of its arrays, the normalised latent in half precision."""
        tensors = {name: torch.from_numpy(array) for name, array in (entry.arrays | entry.extra).items()}
        if entry.video is not None:
            tensors["latent"] = encode(torch.from_numpy(entry.video)).half()
        if not entry.is_complete:
            self.store.save(self.key(index, epoch), tensors)
        return {name: tensor.numpy() for name, tensor in tensors.items()}


@contextlib.contextmanager
def moved_to(network: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """Move a network to a device within the context, and back to where it waits."""
    home = network.device
    network.to(device)  # type: ignore[arg-type]
    try:
        yield
    finally:
        network.to(home)  # type: ignore[arg-type]


@contextlib.contextmanager
def keeping_casts(network: PreTrainedModel, is_autocast: bool) -> Iterator[None]:
    """Compute without gradients, and let autocast keep its casts of the weights, which it does for trainable ones."""
    frozen = [p for p in network.parameters() if is_autocast and p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.no_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


class TextCache:
    """Embedded prompts in memory and on disk, in half precision, so that each prompt is encoded once in all sessions.

    Up to 64 prompts that one call encodes share a file. An embedding's name is a hash of the prompt, of the files of
    the encoder and the tokenizer, and of the precision, so it is never stale. Above max_bytes the least recently used
    embeddings leave memory. In bf16, encoding takes less than half of the time on a CPU that has the instructions, and
    an embedding is 0.6% off. With a device set, the encoder waits elsewhere, and moves there while it encodes.
    """

    max_bytes = 2**30
    device: torch.device | None = None

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, cache_dir: Path, *, bf16: bool = False
    ) -> None:
        self.tokenizer, self.encoder, self.cache_dir, self.bf16 = tokenizer, encoder, cache_dir, bf16
        folders = [Path(str(part.name_or_path)) for part in (tokenizer, encoder)]
        self.text_id = "|".join(checkpoint_id(folder)["sha256"] for folder in folders) + ("|bf16" if bf16 else "")
        if encoder.dtype != torch.float32:
            self.text_id += f"|{encoder.dtype}"
        self.embeddings = OrderedDict[str, Tensor]()
        self.files: dict[str, Path] = {}
        for path in sorted(path for path in cache_dir.glob("[!.]*.safetensors") if path.is_file()):
            with contextlib.suppress(SafetensorError, OSError), safe_open(path, "pt") as file:
                self.files |= dict.fromkeys(file.keys(), path)

    def embedding_name(self, prompt: str) -> str:
        """Return the name of the prompt's embedding on disk."""
        return hashlib.sha256(f"{self.text_id}|{prompt}".encode()).hexdigest()[:32]

    def read(self, prompts: Sequence[str]) -> list[Tensor]:
        """Load or compute each prompt's token embeddings (m_i, text_dim), on the host in half precision."""
        names = [self.embedding_name(prompt) for prompt in prompts]
        for path in sorted({self.files[name] for name in names if name in self.files and name not in self.embeddings}):
            try:
                self.embeddings.update(load_hashed_tensors(path))
            except (ValueError, OSError):  # the prompts of a damaged file are encoded again
                path.unlink(missing_ok=True)
        missing = {name: prompt for name, prompt in zip(names, prompts, strict=True) if name not in self.embeddings}
        if missing:
            self.encode(missing)
        for name in names:
            self.embeddings.move_to_end(name)
        num_bytes = sum(embedding.nbytes for embedding in self.embeddings.values())
        while num_bytes > self.max_bytes and len(self.embeddings) > len(set(names)):  # those of this call stay
            num_bytes -= self.embeddings.popitem(last=False)[1].nbytes
        return [self.embeddings[name] for name in names]

    def encode(self, missing: dict[str, str]) -> None:
        """Compute and keep the embeddings of prompts by their names, those of about one length together, in a file.

        What is computed together decides an embedding's last bits. It is the same where some of the files are there
        already, because the process was killed before it wrote the others.
        """
        device, by_length = self.device or self.encoder.device, sorted(missing, key=lambda name: len(missing[name]))
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        with (
            moved_to(self.encoder, device),
            keeping_casts(self.encoder, self.bf16),
            torch.autocast(device.type, torch.bfloat16, enabled=self.bf16),
        ):
            for first in range(0, len(by_length), PROMPTS_PER_FILE):
                part = by_length[first : first + PROMPTS_PER_FILE]
                texts = embed_prompts([missing[name] for name in part], self.tokenizer, self.encoder)
                # One transfer from the device for all prompts, not one for each.
                rows = torch.cat(texts).half().cpu().split([len(text) for text in texts])
                encoded = dict(zip(part, rows, strict=True))
                self.embeddings.update(encoded)
                save_hashed_tensors(encoded, path := self.cache_dir / f"{part[0]}.safetensors")
                self.files |= dict.fromkeys(encoded, path)
