"""Every transformer of the Wan family has the weights and predictions of diffusers' WanTransformer3DModel."""

import math
import random

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from tests.conftest import seeded, tiny_dit
from videogen.models.dit import VideoDiT
from videogen.models.dit_blocks import GELU_CHUNK, gelu_in_place
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
ROWS, IMAGE_ROWS = 512, 5  # text rows of a model of the family, and rows of CLIP's embedding of an image here
SIDES = [(1, 4, 4), (3, 4, 10), (2, 12, 4), (13, 2, 4), (4, 6, 6)]  # an image, wide, tall, long
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def sample_config(kind: str, seed: int) -> dict[str, object]:
    """Draw the widths of a tiny model of a kind, with an odd number of heads every other time."""
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
    return config | ({"pos_embed_seq_len": 2 * IMAGE_ROWS} if kind == "FLF2V" else {})


def make_pair(config: dict[str, object], dtype: torch.dtype) -> tuple[VideoDiT, WanTransformer3DModel]:
    """Make our model with random weights, position embeddings too, and diffusers' with the same."""
    ours = tiny_dit(**config).requires_grad_(False)
    if (embedder := ours.condition_embedder.image_embedder) is not None and embedder.pos_embed is not None:
        embedder.pos_embed.normal_(generator=seeded(9))
    theirs = WanTransformer3DModel(**config).eval().requires_grad_(False)  # type: ignore[arg-type]
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype)


class Scene:
    """Clips of several sizes with their own texts, images and timesteps, as inputs of both models."""

    def __init__(self, kind: str, config: dict[str, object], dtype: torch.dtype) -> None:
        self.dtype = dtype
        channels, text_dim, image_dim = (config.get(key) for key in ("in_channels", "text_dim", "image_dim"))
        self.clips = [torch.randn(channels, *sides, generator=seeded(i)).to(dtype) for i, sides in enumerate(SIDES)]
        self.texts = [torch.randn(m, text_dim, generator=seeded(m)).to(dtype) for m in (7, 1, 512, 30, 2)]
        num_rows = IMAGE_ROWS * (2 if kind == "FLF2V" else 1)
        self.clip_embeddings = [
            torch.randn(num_rows, image_dim, generator=seeded(i)).to(dtype) for i in range(5) if image_dim
        ]
        self.video = pack(self.clips, (1, 2, 2))
        timesteps = [999.0, 1.0, 500.5, 0.0, 1000.0]
        self.timesteps = [torch.tensor([timestep]) for timestep in timesteps]
        if kind == "TI2V":  # Every token has its own timestep, which is 0 in the conditioning first frame.
            self.timesteps = [
                (torch.arange(n) >= h * w) * timestep
                for n, (_, h, w), timestep in zip(self.video.lengths, self.video.grids, timesteps, strict=True)
            ]

    def predict_ours(self, ours: VideoDiT) -> list[Tensor]:
        """Predict all clips in one pack."""
        per_token = torch.cat([t.expand(n) for t, n in zip(self.timesteps, self.video.lengths, strict=True)])
        values, index = (per_token.double() / 1000).unique(return_inverse=True)
        images = pad_texts(self.clip_embeddings, 0) if self.clip_embeddings else None
        context = ours.project_text(pad_texts(self.texts, ROWS), images)
        out = ours(self.video, NoiseLevels(values, index), context)
        return unpack(PackedVideo(out, self.video.grids, self.video.patch))

    def predict_theirs(self, theirs: WanTransformer3DModel) -> list[Tensor]:
        """Predict each clip alone, its text padded with zeros."""
        predictions = []
        for i, (clip, text, timestep) in enumerate(zip(self.clips, self.texts, self.timesteps, strict=True)):
            padded = torch.cat([text, text.new_zeros(ROWS - len(text), text.shape[1])])[None]
            image = self.clip_embeddings[i].unflatten(0, (-1, IMAGE_ROWS)) if self.clip_embeddings else None
            time = timestep[None] if len(timestep) > 1 else timestep
            predictions.append(theirs(clip[None], time, padded, image, return_dict=False)[0][0])
        return predictions


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_predicts_what_diffusers_predicts_for_each_clip(kind: str, seed: int, dtype: torch.dtype) -> None:
    config = sample_config(kind, seed)
    ours, theirs = make_pair(config, dtype)
    scene = Scene(kind, config, dtype)
    with torch.set_grad_enabled(seed % 2 == 1):  # Some layers compute without gradients in another way.
        predictions = scene.predict_ours(ours), scene.predict_theirs(theirs)
    for prediction, expected in zip(*predictions, strict=True):
        assert expected.dtype == dtype
        assert expected.std() > 0.01
        torch.testing.assert_close(prediction, expected, atol=TOLERANCE[dtype], rtol=0)


def test_the_prediction_depends_on_the_timestep_of_conditioning_tokens() -> None:
    """TI2V: the timestep of the first frame changes the prediction of the others."""
    config = sample_config("TI2V", 0)
    ours, _ = make_pair(config, torch.float32)
    with_condition, without = Scene("TI2V", config, torch.float32), Scene("T2V", config, torch.float32)
    assert (with_condition.predict_ours(ours)[1] - without.predict_ours(ours)[1]).abs().max() > 1e-3


def test_an_image_changes_the_prediction_of_its_own_clip_only() -> None:
    config = sample_config("I2V 2.1", 0)
    ours, _ = make_pair(config, torch.float32)
    scene = Scene("I2V 2.1", config, torch.float32)
    before = scene.predict_ours(ours)
    scene.clip_embeddings[2] = scene.clip_embeddings[2] + 1
    changed = [not equal for equal in map(torch.equal, before, scene.predict_ours(ours))]
    assert changed == [False, False, True, False, False]


def test_a_whole_timestep_is_embedded_as_a_whole_number() -> None:
    """Wan runs at whole timesteps, and 1000 (t / 1000) is not always t in float32."""
    ours, theirs = make_pair(sample_config("T2V", 1), torch.float32)
    timesteps = torch.arange(1001)
    time = ours.condition_embedder.time(timesteps.double() / 1000)
    waves = theirs.condition_embedder.timesteps_proj(timesteps)
    torch.testing.assert_close(time, theirs.condition_embedder.time_embedder(waves), atol=1e-6, rtol=0)


def test_gelu_in_place_equals_gelu() -> None:
    x = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, 1e-30, -1e30, 1e30])]).reshape(-1, 5)
    exact = torch.nn.functional.gelu(x.double(), approximate="tanh")
    torch.testing.assert_close(gelu_in_place(x.clone()).double(), exact, atol=2e-6, rtol=1e-6)  # float32 near 30
    wide = torch.randn(3, GELU_CHUNK // 2 + 1)
    torch.testing.assert_close(gelu_in_place(wide.clone()), torch.nn.functional.gelu(wide, approximate="tanh"))


# --- the released models


@pytest.mark.parametrize(("config", "total"), REAL.values(), ids=REAL)
def test_parameter_names_shapes_and_totals_are_those_of_the_released_models(
    config: dict[str, object], total: int
) -> None:
    with torch.device("meta"):
        models = VideoDiT(**config), WanTransformer3DModel(**config)  # type: ignore[arg-type]
    ours, theirs = ({name: tuple(x.shape) for name, x in model.state_dict().items()} for model in models)
    assert ours == theirs
    assert sum(math.prod(shape) for shape in ours.values()) == total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_weights_stay_in_float32_as_in_diffusers(dtype: torch.dtype, tmp_path: pytest.TempPathFactory) -> None:
    ours, _ = make_pair(sample_config("FLF2V", 1), torch.float32)
    ours.save_pretrained(str(tmp_path))
    models = [cls.from_pretrained(str(tmp_path), torch_dtype=dtype) for cls in (VideoDiT, WanTransformer3DModel)]
    dtypes, expected = ({name: p.dtype for name, p in model.named_parameters()} for model in models)
    assert dtypes == expected
    assert {*dtypes.values()} == {dtype, torch.float32}


# --- refusals


@pytest.mark.parametrize(
    ("kind", "has_image", "message"),
    [
        ("T2V", True, "takes no image embeddings; leave out the image"),
        ("I2V 2.1", False, "needs image embeddings beside the prompt; give it the image"),
        ("FLF2V", True, "reads 10 rows of a first and a last image a clip, got 5; give it both images"),
    ],
)
def test_a_missing_or_unexpected_image_is_refused(kind: str, has_image: bool, message: str) -> None:
    ours, _ = make_pair(sample_config(kind, 0), torch.float32)
    text = pad_texts([torch.randn(3, ours.config["text_dim"])], ROWS)
    image = pad_texts([torch.randn(IMAGE_ROWS, ours.config["image_dim"] or 10)], 0) if has_image else None
    video = pack([torch.randn(ours.config["in_channels"], 1, 2, 2)], (1, 2, 2))
    with pytest.raises(ValueError, match=message):
        ours(video, shared_level(torch.tensor([0.5]), 1), ours.project_text(text, image))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"image_dim": 8, "added_kv_proj_dim": 25}, "added_kv_proj_dim must be the model's width 24, got 25"),
    ],
)
def test_an_inconsistent_image_config_is_refused(option: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_dit(**option)


def test_text_padding_is_one_row_with_the_number_of_rows_as_its_weight() -> None:
    padded = pad_texts([torch.ones(3, 2), torch.ones(4, 2)], 4)
    assert padded.lengths == (4, 4)
    assert padded.weights.tolist() == [1, 1, 1, 1, 1, 1, 1, 1]
    padded = pad_texts([torch.ones(3, 2)], 512)
    assert padded.weights.tolist() == [1, 1, 1, 509]
    assert padded.tokens.tolist() == [[1, 1], [1, 1], [1, 1], [0, 0]]
    assert isinstance(padded, PackedText)
