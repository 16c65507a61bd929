"""What people and power cuts do to checkpoints, runs and prompts gets a sentence: none is silent, hangs or crashes."""

from pathlib import Path

import pytest

from tests.bench.damage import LIMIT_SECONDS, Outcome, try_kind
from tests.bench.damage_kinds import KINDS, Kind, Shop
from videogen.data.json_files import read_json_object
from videogen.models.weight_headers import check_sizes

QUICK = (
    "20000", "1000000000}", '"eight"', '"latents_mean": [0.0]', '"vae": 7', "a fifo", "an endless device", "deep",
    "300 MB", "prompt of", "surrogate", "transformer/config.json a folder",
    '{"seed": "x"}', '{"lora": 3}', '{"prompt": null}',
)  # fmt: skip


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


def check(kind: Kind, shop: Shop, folder: Path) -> Outcome:
    outcome = try_kind(kind, shop, folder)
    assert outcome.got in ("used", "named", "refused"), outcome
    assert outcome.seconds < LIMIT_SECONDS
    return outcome


@pytest.mark.parametrize(
    "kind",
    [kind for kind in KINDS if not kind.name.startswith("run") and any(word in kind.name for word in QUICK)],
    ids=lambda kind: kind.name,
)
def test_damage_done_to_what_a_clip_is_made_of_is_refused_in_a_sentence(kind: Kind, shop: Shop, tmp_path: Path) -> None:
    assert check(kind, shop, tmp_path / "own").got == "refused"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_of_damage_is_used_named_or_refused(kind: Kind, shop: Shop, tmp_path: Path) -> None:
    check(kind, shop, tmp_path / "own")


def test_the_kinds_are_many_and_each_is_named_once() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) > 60


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "must hold a JSON object, got list"),
        (b'{"a": "\xff"}', "not whole"),
        (b"", "not whole"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not whole"),
    ],
)
def test_a_file_that_is_no_json_object_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (path := tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_json_object(path)
    assert str(path) in str(error.value)


def test_sizes_that_the_weights_have_pass() -> None:
    shapes = {f"blocks.{i}.weight": (64, 64) for i in range(8)}
    check_sizes({"num_layers": 8, "ffn_dim": 64, "rope_theta": 1_000_000, "name": "x"}, shapes, Path("config.json"))
    with pytest.raises(ValueError, match=r"json asks for num_layers = 9, and the files beside it hold 8 tensors"):
        check_sizes({"num_layers": 9}, shapes, Path("config.json"))
    with pytest.raises(ValueError, match=r"asks for num_heads = 0, which must be 1 or more"):
        check_sizes({"num_heads": 0}, shapes, Path("config.json"))
