"""Prompts: any length, any company, the same rows."""

from pathlib import Path

import pytest
import torch
from transformers import BertModel, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.conftest import TEXT_DIM, WORDS
from videogen.models.text_encoder import embed_prompts, load_text
from videogen.packing.packs import pack_texts
from videogen.training import caches
from videogen.training.caches import TextCache

MINI = Path(__file__).parent.parent / "assets" / "mini"
LARGE = "a large blue star moves right on a white background"
PROMPTS = ["a red circle", "", LARGE, "red", "a red circle", "ünïcode ☃!"]
LONG = " ".join(WORDS[i % len(WORDS)] for i in range(400))


@pytest.fixture(scope="module")
def mini() -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    return load_text(MINI)


def test_a_prompt_embeds_the_same_alone_or_among_others(
    tokenizer: PreTrainedTokenizerFast, text_encoder: BertModel
) -> None:
    together = embed_prompts([*PROMPTS, LONG], tokenizer, text_encoder)
    for prompt, among in zip([*PROMPTS, LONG], together, strict=True):
        (alone,) = embed_prompts([prompt], tokenizer, text_encoder)
        torch.testing.assert_close(among, alone, atol=1e-5, rtol=0)  # float32, only the order of sums differs


def test_the_default_checkpoint_embeds_a_prompt_the_same_alone_or_among_others(
    mini: tuple[PreTrainedTokenizerBase, PreTrainedModel],
) -> None:
    together = embed_prompts(PROMPTS, *mini)
    for prompt, among in zip(PROMPTS, together, strict=True):
        torch.testing.assert_close(among, embed_prompts([prompt], *mini)[0], atol=1e-5, rtol=0)  # order of sums


def test_embeddings_are_those_of_a_padded_batch(tokenizer: PreTrainedTokenizerFast, text_encoder: BertModel) -> None:
    """The way transformers is commonly called gives the same rows."""
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    hidden = text_encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    for row, mask, ours in zip(
        hidden, batch["attention_mask"], embed_prompts(PROMPTS, tokenizer, text_encoder), strict=True
    ):
        torch.testing.assert_close(ours, row[mask.bool()], atol=1e-5, rtol=0)  # float32, only the order of sums differs


def test_an_empty_prompt_is_the_begin_and_the_end(mini: tuple[PreTrainedTokenizerBase, PreTrainedModel]) -> None:
    (empty,) = embed_prompts([""], *mini)
    assert empty.shape == (2, mini[1].config.hidden_size)
    assert empty.isfinite().all()


def test_a_prompt_of_400_words_is_read_and_one_beyond_the_limit_is_cut(
    mini: tuple[PreTrainedTokenizerBase, PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    text_encoder: BertModel,
) -> None:
    (long,) = embed_prompts([LONG], *mini)
    assert len(long) == 402  # every word is a token, between begin and end
    (cut,) = embed_prompts([LONG], tokenizer, text_encoder)
    assert len(cut) == text_encoder.config.max_position_embeddings == 48
    (longest,) = embed_prompts([LONG * 5], *mini)
    assert len(longest) == mini[1].config.max_position_embeddings
    assert longest.isfinite().all()


def test_a_cut_prompt_is_said_not_swallowed(
    tokenizer: PreTrainedTokenizerFast, text_encoder: BertModel, caplog: pytest.LogCaptureFixture
) -> None:
    embed_prompts(["a red circle"], tokenizer, text_encoder)
    assert caplog.records == []
    embed_prompts([LONG], tokenizer, text_encoder)
    assert any("48" in record.getMessage() for record in caplog.records)


def test_different_prompts_differ_and_equal_ones_do_not(
    mini: tuple[PreTrainedTokenizerBase, PreTrainedModel],
) -> None:
    red, blue, again = embed_prompts(["a red circle", "a blue circle", "a red circle"], *mini)
    assert torch.equal(red, again)
    assert (red - blue).abs().max() > 0.1


def test_texts_are_packed_without_padding(tokenizer: PreTrainedTokenizerFast, text_encoder: BertModel) -> None:
    texts = embed_prompts(PROMPTS, tokenizer, text_encoder)
    packed = pack_texts(texts)
    assert packed.lengths == tuple(map(len, texts))
    assert packed.tokens.shape == (sum(packed.lengths), TEXT_DIM)
    assert packed.weights.tolist() == [1.0] * sum(packed.lengths)
    assert all(map(torch.equal, packed.tokens.split(packed.lengths), texts))


def test_the_encoder_is_frozen_and_in_float32(mini: tuple[PreTrainedTokenizerBase, PreTrainedModel]) -> None:
    assert not any(p.requires_grad for p in mini[1].parameters())
    assert {p.dtype for p in mini[1].parameters()} == {torch.float32}
    assert not mini[1].training


@pytest.mark.parametrize("missing", ["tokenizer", "text_encoder"])
def test_a_folder_without_its_text_part_is_refused(own_checkpoint: Path, missing: str) -> None:
    (own_checkpoint / missing).rename(own_checkpoint / "elsewhere")
    with pytest.raises(ValueError, match=f"has no {missing}/; give a checkpoint folder that holds one"):
        load_text(own_checkpoint)


def test_weights_that_are_not_whole_are_refused(own_checkpoint: Path) -> None:
    path = own_checkpoint / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"has no whole .safetensors weights: .*; download the checkpoint again"):
        load_text(own_checkpoint)
    path.rename(path.with_name("pytorch_model.bin"))  # a pickle is not looked into
    with pytest.raises(ValueError, match=r"has no whole .safetensors weights"):
        load_text(own_checkpoint)


# --- kept on disk


def test_a_text_is_encoded_once_and_read_from_disk_ever_after(
    mini: tuple[PreTrainedTokenizerBase, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(caches, "embed_prompts", lambda new, *parts: asked.extend(new) or embed_prompts(new, *parts))
    first = TextCache(*mini, tmp_path).read(PROMPTS)
    assert sorted(asked) == sorted(set(PROMPTS))
    again = TextCache(*mini, tmp_path).read(PROMPTS)
    assert len(asked) == len(set(PROMPTS))
    assert all(map(torch.equal, first, again))
    for kept, prompt in zip(first, PROMPTS, strict=True):
        alone = embed_prompts([prompt], *mini)[0]
        torch.testing.assert_close(kept.float(), alone, atol=2e-3, rtol=1e-3)  # half precision


def test_a_damaged_text_is_encoded_anew(mini: tuple[PreTrainedTokenizerBase, PreTrainedModel], tmp_path: Path) -> None:
    (whole,) = TextCache(*mini, tmp_path).read(["a red circle"])
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"cut")
    (mended,) = TextCache(*mini, tmp_path).read(["a red circle"])
    assert torch.equal(whole, mended)
    (read,) = TextCache(*mini, tmp_path).read(["a red circle"])
    assert torch.equal(whole, read)


def test_another_encoder_does_not_read_this_one_s_texts(
    mini: tuple[PreTrainedTokenizerBase, PreTrainedModel], checkpoint: Path, tmp_path: Path
) -> None:
    ours, other = (TextCache(*parts, tmp_path) for parts in (mini, load_text(checkpoint)))
    assert ours.name_of("a red circle") != other.name_of("a red circle")
    assert ours.read(["a red circle"])[0].shape[1] != other.read(["a red circle"])[0].shape[1]


def test_texts_leave_memory_and_come_back_from_disk(
    mini: tuple[PreTrainedTokenizerBase, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TextCache(*mini, tmp_path)
    cache.held_bytes = 1
    first = [cache.read([prompt])[0] for prompt in PROMPTS]
    assert len(cache.texts) == 1
    monkeypatch.setattr("videogen.training.caches.embed_prompts", lambda *args: pytest.fail("encoded once more"))
    assert all(map(torch.equal, cache.read(PROMPTS), first))
    assert len(cache.texts) == len(set(PROMPTS))  # those of one call stay together
