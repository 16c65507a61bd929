"""Captions are embedded before their batches are trained on, in few calls, and the same again after a kill."""

from itertools import islice
from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import BertModel, PreTrainedTokenizerFast

from tests.conftest import WORDS, elsewhere
from videogen.config.train import TrainConfig
from videogen.training import caches
from videogen.training.batches import BatchRequest
from videogen.training.caches import TextCache
from videogen.training.dit_stage import DitStage
from videogen.training.text_ahead import embed_ahead, group_end


class NumberedClips:
    def caption(self, index: int, epoch: int) -> str:
        return f"clip {index} in epoch {epoch}"


class Calls:
    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def read(self, prompts: list[str]) -> None:
        self.calls.append(prompts)


def test_groups_grow_to_sixteen_batches_and_depend_on_the_number_alone() -> None:
    assert [group_end(number) for number in (0, 1, 2, 3, 4, 7, 8, 15)] == [1, 2, 4, 4, 8, 8, 16, 16]
    assert [group_end(number) for number in (16, 31, 32, 100)] == [32, 32, 48, 112]


@pytest.mark.parametrize("start", [0, 5, 21])
def test_each_caption_is_embedded_once_and_before_its_batch(start: int) -> None:
    texts, numbers = Calls(), range(start, start + 40)
    requests = [BatchRequest([2 * number, 2 * number + 1], number % 3, (1, 1, 1), number, False) for number in numbers]
    for request, _ in zip(
        requests, embed_ahead(cast("TextCache", texts), NumberedClips(), iter(requests), start), strict=False
    ):
        embedded = [prompt for call in texts.calls for prompt in call]
        assert NumberedClips().caption(request.indices[1], request.epoch) in embedded
    assert len(embedded) == len(set(embedded))
    assert len(texts.calls) <= 8


def test_a_stage_embeds_captions_in_fewer_calls_than_batches(
    finished: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = DitStage(elsewhere(finished["dit"], tmp_path / "run"))
    calls, read = list[list[str]](), stage.texts.read
    monkeypatch.setattr(stage.texts, "read", lambda prompts: calls.append(prompts) or read(prompts))
    batches = list(islice(stage.batches(0), 16))
    assert len(calls) == 5  # groups of 1, 1, 2, 4 and 8 batches
    embedded = {prompt for call in calls for prompt in call}
    assert {caption for batch in batches for caption in batch.captions if caption} <= embedded


def test_embeddings_have_the_same_bits_after_a_kill_between_two_files(
    tokenizer: PreTrainedTokenizerFast, text_encoder: BertModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "PROMPTS_PER_FILE", 3)
    prompts = [" ".join(WORDS[: 1 + number % 7]) + " red" * (number % 2) for number in range(13)]
    whole = TextCache(tokenizer, text_encoder, tmp_path).read(prompts)
    for path in sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)[2:]:
        path.unlink()
    again = TextCache(tokenizer, text_encoder, tmp_path).read(prompts)
    assert all(map(torch.equal, whole, again))
    assert not any(parameter.requires_grad for parameter in text_encoder.parameters())


def test_the_encoder_is_frozen_again_where_embedding_fails(
    tokenizer: PreTrainedTokenizerFast, text_encoder: BertModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        assert all(parameter.requires_grad for parameter in text_encoder.parameters())
        assert not torch.is_grad_enabled()
        raise OSError(28, "No space left on device")

    text_encoder.requires_grad_(False)
    monkeypatch.setattr(caches, "save_hashed_tensors", fail)
    with pytest.raises(OSError, match="No space left"):
        TextCache(tokenizer, text_encoder, tmp_path, bf16=True).read(["a red circle"])
    assert not any(parameter.requires_grad for parameter in text_encoder.parameters())
