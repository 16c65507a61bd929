"""What training computes once and keeps: latents of clips and embeddings of captions.

clip -> latent on disk, memory-mapped;  caption -> embedding on disk
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from videogen.data.files import save_tensors
from videogen.data.folder import Clip
from videogen.models.hub import checkpoint_id
from videogen.models.text_encoder import embed_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kept = dict[str, np.ndarray]  # a latent, and what is kept beside it


class Clips(Protocol):
    """Where clips come from: files of a folder, or drawn ones."""

    def read(self, index: int, epoch: int = 0) -> Clip:
        """The clip of an epoch."""
        ...

    def key(self, index: int, epoch: int) -> tuple[object, ...]:
        """All that decides its content."""
        ...


class Found(NamedTuple):
    """What is known of a clip: what lies on disk of it, and what of it is not there yet."""

    kept: Kept
    video: np.ndarray | None = None  # (3, t, h, w) in [-1, 1], to be encoded
    more: dict[str, np.ndarray] = {}  # noqa: RUF012  # to be kept beside the latent

    @property
    def whole(self) -> bool:
        """Whether all of it lay on disk."""
        return self.video is None and not self.more


class LatentCache:
    """Encoded clips on disk, so that a file is decoded and encoded once and not every epoch.

    The name of a cached latent is a hash of everything that decides its content: the clip's key and the encoder. So it
    is never stale, and a killed run leaves no half-written one. One process may find a clip, which takes reading or
    drawing it, and another keep it, which takes the encoder.
    """

    def __init__(
        self,
        folder: Clips,
        vae_id: str,
        cache_dir: Path,
        more: Callable[[int], dict[str, np.ndarray]] | None = None,
    ) -> None:
        self.folder, self.vae_id, self.cache_dir, self.more = folder, vae_id, cache_dir, more
        cache_dir.mkdir(parents=True, exist_ok=True)

    def path_of(self, index: int, epoch: int) -> Path:
        """Where this clip's latent lies or will lie."""
        parts = (*self.folder.key(index, epoch), self.vae_id)
        digest = hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()
        return self.cache_dir / digest[:2] / f"{digest[2:34]}.safetensors"

    def find(self, index: int, epoch: int) -> Found:
        """A clip from disk, and what is missing there made ready."""
        kept: Kept = {}
        with contextlib.suppress(FileNotFoundError, SafetensorError):  # not there, or damaged: made anew
            kept = {name: tensor.numpy() for name, tensor in load_file(self.path_of(index, epoch)).items()}
        video = None if "latent" in kept else self.folder.read(index, epoch).video.contiguous().numpy()
        more = self.more(index) if self.more is not None and kept.keys() <= {"latent"} else {}
        return Found(kept, video, more)

    def keep(self, index: int, epoch: int, found: Found, encode: Callable[[Tensor], Tensor]) -> Kept:
        """The normalised latent (c, t, h, w) in half precision and what is kept beside it, now on disk."""
        tensors = {name: torch.from_numpy(value) for name, value in (found.kept | found.more).items()}
        if found.video is not None:
            tensors["latent"] = encode(torch.from_numpy(found.video)).half()
        if found.video is not None or found.more:
            path = self.path_of(index, epoch)
            path.parent.mkdir(exist_ok=True)
            save_tensors(tensors, path)
        return {name: tensor.numpy() for name, tensor in tensors.items()}


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
