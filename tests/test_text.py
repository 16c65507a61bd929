"""A prompt of any length has the same embedding, alone or in a batch, computed or from disk."""

from pathlib import Path

import pytest
import torch
from transformers import BertModel, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.conftest import TEXT_DIM, WORDS
from videogen.models.bert import BertEncoder, embed_texts, load_tokenizer
from videogen.models.checkpoint import load_network
from videogen.models.text_encoder import embed_prompts, load_tokenizer_and_encoder
from videogen.packing.packs import pack_texts
from videogen.toybox import Scene, caption
from videogen.training import caches
from videogen.training.caches import TextCache

MINI = Path(__file__).parent.parent / "assets" / "mini"
LARGE = "a large blue star moves right on a white background"
PROMPTS = ["a red circle", "", LARGE, "red", "a red circle", "ünïcode ☃!"]
LONG = " ".join(WORDS[i % len(WORDS)] for i in range(400))


@pytest.fixture(scope="module")
def mini() -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    return load_tokenizer_and_encoder(MINI)


def test_a_prompt_embeds_the_same_alone_or_in_a_batch(
    tokenizer: PreTrainedTokenizerFast, text_encoder: BertModel
) -> None:
    batch_embeddings = embed_prompts([*PROMPTS, LONG], tokenizer, text_encoder)
    for prompt, in_batch in zip([*PROMPTS, LONG], batch_embeddings, strict=True):
        (alone,) = embed_prompts([prompt], tokenizer, text_encoder)
        torch.testing.assert_close(in_batch, alone, atol=1e-5, rtol=0)  # float32, only the order of sums differs


def test_the_default_checkpoint_embeds_a_prompt_the_same_alone_or_in_a_batch(
    mini: tuple[PreTrainedTokenizerBase, PreTrainedModel],
) -> None:
    batch_embeddings = embed_prompts(PROMPTS, *mini)
    for prompt, in_batch in zip(PROMPTS, batch_embeddings, strict=True):
        torch.testing.assert_close(in_batch, embed_prompts([prompt], *mini)[0], atol=1e-5, rtol=0)  # order of sums


def test_embeddings_equal_those_of_a_padded_batch(tokenizer: PreTrainedTokenizerFast, text_encoder: BertModel) -> None:
    """A padded batch with a mask is the common way to call transformers."""
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    hidden = text_encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    embeddings = embed_prompts(PROMPTS, tokenizer, text_encoder)
    for padded, mask, embedding in zip(hidden, batch["attention_mask"], embeddings, strict=True):
        torch.testing.assert_close(embedding, padded[mask.bool()], atol=1e-5, rtol=0)  # float32, order of sums


def test_an_empty_prompt_embeds_as_the_begin_and_end_tokens(
    mini: tuple[PreTrainedTokenizerBase, PreTrainedModel],
) -> None:
    (empty,) = embed_prompts([""], *mini)
    assert empty.shape == (2, mini[1].config.hidden_size)
    assert empty.isfinite().all()


def test_a_prompt_of_400_words_is_embedded_and_one_beyond_the_limit_truncated(
    mini: tuple[PreTrainedTokenizerBase, PreTrainedModel], tokenizer: PreTrainedTokenizerFast, text_encoder: BertModel
) -> None:
    (long,) = embed_prompts([LONG], *mini)
    assert len(long) == 402  # every word is a token, between begin and end
    (truncated,) = embed_prompts([LONG], tokenizer, text_encoder)
    assert len(truncated) == text_encoder.config.max_position_embeddings == 48
    (longest,) = embed_prompts([LONG * 5], *mini)
    assert len(longest) == mini[1].config.max_position_embeddings
    assert longest.isfinite().all()


def test_truncating_a_prompt_is_logged(
    tokenizer: PreTrainedTokenizerFast, text_encoder: BertModel, caplog: pytest.LogCaptureFixture
) -> None:
    embed_prompts(["a red circle"], tokenizer, text_encoder)
    assert caplog.records == []
    embed_prompts([LONG], tokenizer, text_encoder)
    assert any("48" in record.getMessage() for record in caplog.records)


def test_equal_prompts_have_equal_embeddings_and_different_ones_do_not(
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
def test_a_folder_without_tokenizer_or_text_encoder_is_refused(own_checkpoint: Path, missing: str) -> None:
    (own_checkpoint / missing).rename(own_checkpoint / "elsewhere")
    with pytest.raises(ValueError, match=f"has no {missing}/; give a checkpoint folder that holds one"):
        load_tokenizer_and_encoder(own_checkpoint)


def test_incomplete_weights_are_refused(own_checkpoint: Path) -> None:
    path = own_checkpoint / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"has no complete .safetensors weights: .*; download the checkpoint again"):
        load_tokenizer_and_encoder(own_checkpoint)
    path.rename(path.with_name("pytorch_model.bin"))  # pickles are never loaded
    with pytest.raises(ValueError, match=r"has no complete .safetensors weights"):
        load_tokenizer_and_encoder(own_checkpoint)


# --- the encoder by torch alone

ODD = (
    "", " ", "[CLS]", "a [MASK] moves [SEP] right", "Ünïcode ÉÀ ß", "日本語 の 円", "red, blue; (green)!",
    "a\tred\ncircle", "x" * 150, "☃☃☃", "3.5 circles & 2 squares", "A LARGE RED CIRCLE", "\u200bzero width",
    LONG, LONG * 2, LONG * 5,
)  # fmt: skip


@pytest.fixture(scope="module")
def fifty_prompts(scenes: list[Scene]) -> list[str]:
    """Captions of scenes, and prompts that are empty, over-long or in other scripts."""
    return [*ODD, *(caption(scene, scene.seed) for scene in scenes[: 50 - len(ODD)])]


@pytest.mark.parametrize("folder", ["mini", "checkpoint"])
def test_the_plain_encoder_embeds_as_transformers_does(
    folder: str, fifty_prompts: list[str], request: pytest.FixtureRequest
) -> None:
    path = MINI if folder == "mini" else request.getfixturevalue("checkpoint")
    expected = embed_prompts(fifty_prompts, *load_tokenizer_and_encoder(path))
    plain = load_network(BertEncoder, path / "text_encoder")
    embeddings = embed_texts(fifty_prompts, load_tokenizer(path), plain, torch.device("cpu"))
    assert max(map(len, embeddings)) == plain.max_length  # a prompt beyond the limit is truncated
    assert len(embeddings) == len(fifty_prompts) == 50
    for embedding, theirs in zip(embeddings, expected, strict=True):
        torch.testing.assert_close(embedding, theirs, atol=1e-5, rtol=0)


def test_the_plain_encoder_logs_a_truncated_prompt(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = load_tokenizer(checkpoint), load_network(BertEncoder, checkpoint / "text_encoder"), torch.device("cpu")
    embed_texts(["a red circle"], *parts)
    assert caplog.records == []
    embed_texts([LONG], *parts)
    assert any("48" in record.getMessage() for record in caplog.records)


# --- the cache on disk


def test_a_prompt_is_encoded_once_and_then_read_from_disk(
    mini: tuple[PreTrainedTokenizerBase, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    monkeypatch.setattr(caches, "embed_prompts", lambda new, *parts: encoded.extend(new) or embed_prompts(new, *parts))
    first = TextCache(*mini, tmp_path).read(PROMPTS)
    assert sorted(encoded) == sorted(set(PROMPTS))
    again = TextCache(*mini, tmp_path).read(PROMPTS)
    assert len(encoded) == len(set(PROMPTS))
    assert all(map(torch.equal, first, again))
    for embedding, prompt in zip(first, PROMPTS, strict=True):
        alone = embed_prompts([prompt], *mini)[0]
        torch.testing.assert_close(embedding.float(), alone, atol=2e-3, rtol=1e-3)  # half precision


def test_the_prompts_of_a_damaged_file_are_encoded_again(
    mini: tuple[PreTrainedTokenizerBase, PreTrainedModel], tmp_path: Path
) -> None:
    (first,) = TextCache(*mini, tmp_path).read(["a red circle"])
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"cut")
    (encoded_again,) = TextCache(*mini, tmp_path).read(["a red circle"])
    assert torch.equal(first, encoded_again)
    (from_disk,) = TextCache(*mini, tmp_path).read(["a red circle"])
    assert torch.equal(first, from_disk)


def test_each_encoder_has_its_own_embeddings_in_a_shared_folder(
    mini: tuple[PreTrainedTokenizerBase, PreTrainedModel], checkpoint: Path, tmp_path: Path
) -> None:
    cache, other = (TextCache(*parts, tmp_path) for parts in (mini, load_tokenizer_and_encoder(checkpoint)))
    assert cache.embedding_name("a red circle") != other.embedding_name("a red circle")
    assert cache.read(["a red circle"])[0].shape[1] != other.read(["a red circle"])[0].shape[1]


def test_embeddings_in_bf16_lie_near_those_in_float32_and_have_names_of_their_own(
    mini: tuple[PreTrainedTokenizerBase, PreTrainedModel], tmp_path: Path
) -> None:
    exact, rounded = TextCache(*mini, tmp_path), TextCache(*mini, tmp_path, bf16=True)
    for one, other in zip(exact.read(PROMPTS), rounded.read(PROMPTS), strict=True):
        assert 0 < (one.float() - other.float()).norm() < 0.02 * one.float().norm()  # bf16 has 8 bits of mantissa


def test_embeddings_leave_memory_and_are_read_from_disk_again(
    mini: tuple[PreTrainedTokenizerBase, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TextCache(*mini, tmp_path)
    cache.max_bytes = 1
    first = [cache.read([prompt])[0] for prompt in PROMPTS]
    assert len(cache.embeddings) == 1
    monkeypatch.setattr("videogen.training.caches.embed_prompts", lambda *args: pytest.fail("encoded once more"))
    assert all(map(torch.equal, cache.read(PROMPTS), first))
    assert len(cache.embeddings) == len(set(PROMPTS))  # the prompts of one call stay together
