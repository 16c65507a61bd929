"""Every transformer of the Wan family: weights, packs of clips, and the numbers of diffusers' WanTransformer3DModel."""

import math
import random

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from tests.conftest import seeded, tiny_dit
from videogen.models.dit import VideoDiT
from videogen.models.dit_blocks import CACHED, gelu_in_place
from videogen.packing.noise import NoiseLevels, shared_level
from videogen.packing.packs import PackedText, PackedVideo, pack, pad_texts, unpack

REAL: dict[str, tuple[dict[str, object], int]] = {
    "2.1 T2V-1.3B": ({"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, 1_418_996_800),
    "2.1 T2V-14B, 2.2 T2V-A14B": ({}, 14_288_491_584),
    "2.1 I2V-14B": ({"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}, 16_394_878_784),
    "2.1 FLF2V-14B": (
        {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120, "pos_embed_seq_len": 514},
        16_394_878_784 + 514 * 1280,
    ),
    "2.2 I2V-A14B": ({"in_channels": 36}, 14_288_901_184),
    "2.2 TI2V-5B": (
        {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
        4_999_787_712,
    ),
}
KINDS = ("T2V", "I2V 2.1", "FLF2V", "I2V 2.2", "TI2V")
ROWS, VIEW = 512, 5  # text rows that a model of the family sees, and rows that CLIP gives of an image here
SIDES = [(1, 4, 4), (3, 4, 10), (2, 12, 4), (13, 2, 4), (4, 6, 6)]  # an image, wide, tall, long
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def draw_config(kind: str, seed: int) -> dict[str, object]:
    """A tiny model of a kind, its widths drawn; heads are odd in number every other time."""
    rng = random.Random(f"{kind} {seed}")
    heads, head, channels = rng.choice((1, 3, 5, 2)), rng.choice((12, 14, 26, 44)), rng.choice((3, 4, 6))
    config: dict[str, object] = {
        "num_attention_heads": heads, "attention_head_dim": head, "in_channels": channels, "out_channels": channels,
        "text_dim": rng.choice((16, 20)), "freq_dim": rng.choice((24, 32)), "ffn_dim": rng.choice((20, 48)),
        "num_layers": rng.choice((1, 2, 3)), "eps": rng.choice((1e-6, 1e-3)), "cross_attn_norm": rng.random() < 0.7,
    }  # fmt: skip
    if ("I2V" in kind and kind != "TI2V") or kind == "FLF2V":
        config["in_channels"] = 2 * channels + 4
    if kind in ("I2V 2.1", "FLF2V"):
        config |= {"image_dim": rng.choice((10, 18)), "added_kv_proj_dim": heads * head}
    return config | ({"pos_embed_seq_len": 2 * VIEW} if kind == "FLF2V" else {})


def make_pair(config: dict[str, object], dtype: torch.dtype) -> tuple[VideoDiT, WanTransformer3DModel]:
    """Ours with random weights, position embeddings too, and theirs with the same."""
    ours = tiny_dit(**config).requires_grad_(False)
    if (embedder := ours.condition_embedder.image_embedder) is not None and embedder.pos_embed is not None:
        embedder.pos_embed.normal_(generator=seeded(9))
    theirs = WanTransformer3DModel(**config).eval().requires_grad_(False)  # type: ignore[arg-type]
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype)


class Scene:
    """Clips of several sizes with texts, images and timesteps of their own, as each of the two is asked about them."""

    def __init__(self, kind: str, config: dict[str, object], dtype: torch.dtype) -> None:
        self.dtype = dtype
        channels, text_dim, image_dim = (config.get(key) for key in ("in_channels", "text_dim", "image_dim"))
        self.clips = [torch.randn(channels, *sides, generator=seeded(i)).to(dtype) for i, sides in enumerate(SIDES)]
        self.texts = [torch.randn(m, text_dim, generator=seeded(m)).to(dtype) for m in (7, 1, 512, 30, 2)]
        num_rows = VIEW * (2 if kind == "FLF2V" else 1)
        self.views = [torch.randn(num_rows, image_dim, generator=seeded(i)).to(dtype) for i in range(5) if image_dim]
        self.video = pack(self.clips, (1, 2, 2))
        timesteps = [999.0, 1.0, 500.5, 0.0, 1000.0]
        self.timesteps = [torch.tensor([timestep]) for timestep in timesteps]
        if kind == "TI2V":  # every token has its own, and the first frame is known
            self.timesteps = [
                (torch.arange(n) >= h * w) * timestep
                for n, (_, h, w), timestep in zip(self.video.lengths, self.video.grids, timesteps, strict=True)
            ]

    def ask_ours(self, ours: VideoDiT) -> list[Tensor]:
        """All clips in one pack."""
        per_token = torch.cat([t.expand(n) for t, n in zip(self.timesteps, self.video.lengths, strict=True)])
        values, index = (per_token.double() / 1000).unique(return_inverse=True)
        context = ours.read_text(pad_texts(self.texts, ROWS), pad_texts(self.views, 0) if self.views else None)
        out = ours(self.video, NoiseLevels(values, index), context)
        return unpack(PackedVideo(out, self.video.grids, self.video.patch))

    def ask_theirs(self, theirs: WanTransformer3DModel) -> list[Tensor]:
        """Each clip alone, its text padded with zeros."""
        answers = []
        for i, (clip, text, timestep) in enumerate(zip(self.clips, self.texts, self.timesteps, strict=True)):
            padded = torch.cat([text, text.new_zeros(ROWS - len(text), text.shape[1])])[None]
            views = self.views[i].reshape(-1, VIEW, self.views[i].shape[1]) if self.views else None
            time = timestep[None] if len(timestep) > 1 else timestep
            answers.append(theirs(clip[None], time, padded, views, return_dict=False)[0][0])
        return answers


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_of_clips_is_what_diffusers_says_of_each(kind: str, seed: int, dtype: torch.dtype) -> None:
    config = draw_config(kind, seed)
    ours, theirs = make_pair(config, dtype)
    scene = Scene(kind, config, dtype)
    with torch.set_grad_enabled(seed % 2 == 1):  # sampling takes other ways than training through some layers
        answers = scene.ask_ours(ours), scene.ask_theirs(theirs)
    for made, wanted in zip(*answers, strict=True):
        assert wanted.dtype == dtype
        assert wanted.std() > 0.01
        torch.testing.assert_close(made, wanted, atol=TOLERANCE[dtype], rtol=0)


def test_a_token_that_is_known_is_told_so() -> None:
    """TI2V: the timestep of a first frame changes what is said of the others."""
    config = draw_config("TI2V", 0)
    ours, _ = make_pair(config, torch.float32)
    known, free = Scene("TI2V", config, torch.float32), Scene("T2V", config, torch.float32)
    assert (known.ask_ours(ours)[1] - free.ask_ours(ours)[1]).abs().max() > 1e-3


def test_an_image_is_read_beside_the_text() -> None:
    config = draw_config("I2V 2.1", 0)
    ours, _ = make_pair(config, torch.float32)
    scene = Scene("I2V 2.1", config, torch.float32)
    before = scene.ask_ours(ours)
    scene.views[2] = scene.views[2] + 1
    changed = [not torch.equal(one, other) for one, other in zip(before, scene.ask_ours(ours), strict=True)]
    assert changed == [False, False, True, False, False]


def test_a_whole_timestep_stays_whole() -> None:
    """Wan is run at whole timesteps; 1000 (t / 1000) is not always t in float32."""
    ours, theirs = make_pair(draw_config("T2V", 1), torch.float32)
    timesteps = torch.arange(1001)
    time = ours.condition_embedder.time(timesteps.double() / 1000)
    waves = theirs.condition_embedder.timesteps_proj(timesteps)
    torch.testing.assert_close(time, theirs.condition_embedder.time_embedder(waves), atol=1e-6, rtol=0)


def test_gelu_in_place_is_gelu() -> None:
    x = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, 1e-30, -1e30, 1e30])]).reshape(-1, 5)
    exact = torch.nn.functional.gelu(x.double(), approximate="tanh")
    torch.testing.assert_close(gelu_in_place(x.clone()).double(), exact, atol=2e-6, rtol=1e-6)  # float32 near 30
    wide = torch.randn(3, CACHED // 2 + 1)
    torch.testing.assert_close(gelu_in_place(wide.clone()), torch.nn.functional.gelu(wide, approximate="tanh"))


# --- the real ones


@pytest.mark.parametrize(("config", "total"), REAL.values(), ids=REAL)
def test_names_shapes_and_totals_are_those_of_the_real_ones(config: dict[str, object], total: int) -> None:
    with torch.device("meta"):
        models = VideoDiT(**config), WanTransformer3DModel(**config)  # type: ignore[arg-type]
    ours, theirs = ({name: tuple(x.shape) for name, x in model.state_dict().items()} for model in models)
    assert ours == theirs
    assert sum(math.prod(shape) for shape in ours.values()) == total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_weights_stay_in_float32_as_there(dtype: torch.dtype, tmp_path: pytest.TempPathFactory) -> None:
    ours, _ = make_pair(draw_config("FLF2V", 1), torch.float32)
    ours.save_pretrained(str(tmp_path))
    opened = [kind.from_pretrained(str(tmp_path), torch_dtype=dtype) for kind in (VideoDiT, WanTransformer3DModel)]
    kinds = [{name: p.dtype for name, p in model.named_parameters()} for model in opened]
    assert kinds[0] == kinds[1]
    assert {*kinds[0].values()} == {dtype, torch.float32}


# --- what does not fit


@pytest.mark.parametrize(
    ("config", "views", "message"),
    [
        ("T2V", True, "reads no image embeddings beside the prompt; leave out the image"),
        ("I2V 2.1", False, "reads image embeddings beside the prompt; give it the image"),
        ("FLF2V", True, "reads 10 rows of a first and a last image a clip, got 5; give it both images"),
    ],
)
def test_an_image_of_the_wrong_kind_is_refused(config: str, views: bool, message: str) -> None:
    ours, _ = make_pair(draw_config(config, 0), torch.float32)
    text = pad_texts([torch.randn(3, ours.config["text_dim"])], ROWS)
    image = pad_texts([torch.randn(VIEW, ours.config["image_dim"] or 10)], 0) if views else None
    video = pack([torch.randn(ours.config["in_channels"], 1, 2, 2)], (1, 2, 2))
    with pytest.raises(ValueError, match=message):
        ours(video, shared_level(torch.tensor([0.5]), 1), ours.read_text(text, image))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"image_dim": 1280}, "image_dim and added_kv_proj_dim come together, got 1280 and None"),
        ({"image_dim": 8, "added_kv_proj_dim": 25}, "added_kv_proj_dim must be the model's width 24, got 25"),
    ],
)
def test_half_an_image_model_is_refused(option: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_dit(**option)


def test_padding_is_one_row_of_so_much_weight() -> None:
    padded = pad_texts([torch.ones(3, 2), torch.ones(4, 2)], 4)
    assert padded.lengths == (4, 4)
    assert padded.weights.tolist() == [1, 1, 1, 1, 1, 1, 1, 1]
    padded = pad_texts([torch.ones(3, 2)], 512)
    assert padded.weights.tolist() == [1, 1, 1, 509]
    assert padded.tokens.tolist() == [[1, 1], [1, 1], [1, 1], [0, 0]]
    assert isinstance(padded, PackedText)
