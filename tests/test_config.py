"""Options: a wrong one is refused in one sentence that suggests the right one."""

import dataclasses
import json
from pathlib import Path

import pytest

from videogen.config.parsing import from_mapping, load_toml, nearest, to_mapping
from videogen.config.sample import SampleConfig, resolve_frames
from videogen.config.sizes import check_frames, check_size, parse_size
from videogen.config.train import DataConfig, DitConfig, OptimConfig, RunConfig, TrainConfig, VaeConfig
from videogen.models.checkpoint_config import read_checkpoint_info

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "configs").glob("*.toml"))
SECTIONS = (SampleConfig, DataConfig, VaeConfig, DitConfig, OptimConfig, RunConfig, TrainConfig)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(recipe: Path) -> None:
    load_toml(TrainConfig, recipe)


def test_no_two_recipes_share_a_run_folder() -> None:
    folders = [load_toml(TrainConfig, recipe).run.dir for recipe in RECIPES]
    assert len(folders) >= 2
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_header_of_every_recipe_contains_its_command(recipe: Path) -> None:
    header = [line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(f"python train.py configs/{recipe.name}" in line for line in header)


def make_changed_config() -> TrainConfig:
    """Build a config that differs from the defaults in fields of every type."""
    return TrainConfig(
        stage="vae",
        data=DataConfig(folder=Path("some/where"), fps=12.5, val_clips=0),
        vae=VaeConfig(mask_latents=False, kl=1e-3),
        dit=DitConfig(init=Path("a"), known={"nothing": 0.5, "box": 0.5}, patch_size=(1, 1, 1), prediction="velocity"),
        optim=OptimConfig(ema=(0.02, 0.2), betas=(0.8, 0.9)),
        run=RunConfig(minutes=2.5, sample_prompts=("a", "b")),
        sample=SampleConfig(size="96x64", seconds=2.0, guidance_interval=(0.1, 0.9)),
    )


@pytest.mark.parametrize("config", [TrainConfig(), make_changed_config()], ids=["defaults", "changed"])
def test_a_config_survives_a_round_trip_through_a_mapping_and_json(config: TrainConfig) -> None:
    assert from_mapping(TrainConfig, to_mapping(config)) == config
    assert from_mapping(TrainConfig, json.loads(json.dumps(to_mapping(config)))) == config


def test_toml_values_are_converted_to_the_types_of_the_fields(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(
        'stage = "vae"\n[data]\nfolder = "clips"\nfps = 12\n[run]\nminutes = 3\nsample_prompts = ["a", "b"]\n'
        "[optim]\nema = [0.1, 0.2]\n[dit.known]\nbox = 1\n[sample]\nguidance_interval = [0, 0.5]\n",
        encoding="utf-8",
    )
    config = load_toml(TrainConfig, tmp_path / "x.toml")
    assert config.data == DataConfig(folder=Path("clips"), fps=12.0)
    assert config.run == RunConfig(minutes=3.0, sample_prompts=("a", "b"))
    assert config.optim.ema == (0.1, 0.2)
    assert config.dit.known == {"box": 1.0}
    assert config.sample.guidance_interval == (0.0, 0.5)
    assert isinstance(config.data.fps, float)


def test_toml_values_override_those_of_another_config(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("steps = 7\n", encoding="utf-8")
    base = SampleConfig(steps=3, guidance=2.0)
    assert load_toml(SampleConfig, tmp_path / "x.toml", over=base) == SampleConfig(steps=7, guidance=2.0)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_option_has_a_docstring_and_every_section_is_frozen(section: type) -> None:
    import ast
    import inspect

    (cls,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(cls, ast.ClassDef)
    for statement, following in zip(cls.body, cls.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign):
            assert isinstance(following, ast.Expr), f"{section.__name__}.{statement.target.id} has no docstring"  # type: ignore[union-attr]
    assert section.__dataclass_params__.frozen  # type: ignore[attr-defined]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_config_takes_keywords_only_and_is_immutable(section: type) -> None:
    with pytest.raises(TypeError):
        section(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(section(), dataclasses.fields(section)[0].name, 1)


# --- errors

WRONG: list[tuple[dict[str, object], str]] = [
    ({"stagee": "vae"}, "unknown key 'stagee'; did you mean 'stage'"),
    ({"data": {"fodler": "x"}}, r"unknown key 'data\.fodler'; did you mean 'folder'"),
    ({"optim": {"learning_rate": 1e-3}}, r"unknown key 'optim\.learning_rate'"),
    ({"data": {"fps": "8"}}, r"data\.fps must be of type float, got '8'"),
    ({"data": {"fps": True}}, r"data\.fps must be of type float, got True"),
    ({"data": {"max_tokens": 4.5}}, r"data\.max_tokens must be of type int, got 4\.5"),
    ({"data": {"max_tokens": True}}, r"data\.max_tokens must be of type int, got True"),
    ({"data": {"folder": 3}}, r"data\.folder must be of type Path, got 3"),
    ({"data": {"fps": None}}, r"data\.fps must be of type float, got None"),
    ({"data": 3}, "data must be a table, got 3"),
    ({"stage": "gan"}, "stage must be one of 'vae', 'dit', got 'gan'"),
    (
        {"dit": {"prediction": "noise"}},
        r"dit\.prediction must be one of 'preconditioned', 'clean', 'velocity', got 'noise'",
    ),
    ({"dit": {"patch_size": [1, 2]}}, r"dit\.patch_size must have 3 values, got \[1, 2\]"),
    ({"dit": {"patch_size": [1, 2, 2.5]}}, r"dit\.patch_size must be of type int, got 2\.5"),
    ({"dit": {"patch_size": 2}}, r"dit\.patch_size must be .*, got 2"),
    ({"dit": {"known": {"box": "much"}}}, r"dit\.known\.box must be of type float, got 'much'"),
    ({"dit": {"known": 0.5}}, r"dit\.known must be .*, got 0\.5"),
    ({"run": {"minutes": "ten"}}, r"run\.minutes must be of type float, got 'ten'"),
    ({"run": {"sample_prompts": "a red ball"}}, r"run\.sample_prompts must be .*, got 'a red ball'"),
    ({"sample": {"size": 64}}, r"sample\.size must be of type str, got 64"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda case: str(case)[:40])
def test_a_wrong_key_or_type_is_refused_with_its_path(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        from_mapping(TrainConfig, values)
    assert "must be of type ," not in str(error.value)
    assert str(error.value).count("'") % 2 == 0  # Every quoted name is closed.


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (SampleConfig, {"steps": 0}, "steps must be above 0, got 0"),
        (SampleConfig, {"frames": -3}, "frames must be above 0, got -3"),
        (SampleConfig, {"fps": 0.0}, "fps must be above 0, got 0"),
        (SampleConfig, {"fps": NAN}, "fps"),
        (SampleConfig, {"fps": INF}, "fps"),
        (SampleConfig, {"shift": NAN}, "shift"),
        (SampleConfig, {"seconds": 0.0}, "seconds must be above 0, got 0"),
        (SampleConfig, {"seconds": NAN}, "seconds"),
        (SampleConfig, {"adain": 1.5}, "adain must be between 0 and 1, got 1.5; 0 leaves all windows as they come"),
        (SampleConfig, {"adain": NAN}, "adain"),
        (SampleConfig, {"guidance": -1.0}, "guidance must be 0 or more, got -1; 1 is no guidance"),
        (SampleConfig, {"guidance": NAN}, "guidance"),
        (SampleConfig, {"guidance_interval": (0.8, 0.2)}, "two rising noise levels in 0..1, got 0.8 and 0.2"),
        (SampleConfig, {"guidance_interval": (0.0, 1.5)}, "two rising noise levels in 0..1, got 0 and 1.5"),
        (SampleConfig, {"size": "64"}, "size must be WIDTHxHEIGHT in pixels, such as 64x64, got '64'"),
        (SampleConfig, {"size": "0x64"}, "size must be WIDTHxHEIGHT"),
        (SampleConfig, {"size": "64x64x3"}, "size must be WIDTHxHEIGHT"),
        (DataConfig, {"fps": 0.0}, "fps must be above 0"),
        (DataConfig, {"token_budget": 0}, "token_budget must be above 0"),
        (DataConfig, {"windows": 0}, "windows must be above 0"),
        (DataConfig, {"val_clips": -1}, "val_clips must be 0 or more, got -1"),
        (VaeConfig, {"channels": 0}, "channels"),
        (VaeConfig, {"crop": 20}, "crop must be .*8"),
        (VaeConfig, {"batch_clips": 0}, "batch_clips"),
        (DitConfig, {"num_layers": 0}, "num_layers"),
        (DitConfig, {"attention_head_dim": 7}, "attention_head_dim"),
        (DitConfig, {"caption_dropout": 1.5}, "caption_dropout"),
        (OptimConfig, {"lr": 0.0}, "lr must be above 0"),
        (OptimConfig, {"lr": NAN}, "lr"),
        (OptimConfig, {"ema": (0.5, 0.1)}, "ema"),
        (RunConfig, {"steps": 0}, "steps must be above 0"),
        (RunConfig, {"save_every": 0}, "save_every must be above 0"),
        (RunConfig, {"val_every": 0}, "val_every must be above 0"),
        (RunConfig, {"minutes": -1.0}, "minutes must be above 0"),
    ],
    ids=lambda case: case.__name__ if isinstance(case, type) else str(case),
)
def test_an_impossible_value_is_refused_by_the_constructor(cls: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**values)


def test_invalid_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config file .*nowhere\.toml; the recipes are in configs/"):
        load_toml(TrainConfig, tmp_path / "nowhere.toml")
    (tmp_path / "broken.toml").write_text("stage = \n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.toml is not valid TOML: .*line 1"):
        load_toml(TrainConfig, tmp_path / "broken.toml")
    (tmp_path / "typo.toml").write_text("[rum]\nsteps = 3\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"typo\.toml: unknown key 'rum'; did you mean 'run'"):
        load_toml(TrainConfig, tmp_path / "typo.toml")


def test_a_name_is_suggested_only_where_one_is_similar() -> None:
    assert nearest("stesp", ["steps", "size"]) == "; did you mean 'steps'?"
    assert nearest("xyzzy", ["steps", "size"]) == ""


# --- sizes and lengths


def test_a_size_is_width_by_height() -> None:
    assert parse_size("64x48") == parse_size(" 64 X 48 ") == parse_size("64×48") == (64, 48)
    config = SampleConfig(size="64x48")
    assert (config.width, config.height) == (64, 48)


@pytest.mark.parametrize("frames", [2, 3, 4, 6, 100])
def test_an_impossible_length_is_refused_with_the_nearest_two_possible_lengths(frames: int) -> None:
    with pytest.raises(ValueError, match=r"1 \+ a multiple of 4") as error:
        check_frames(frames, 4)
    below, above = map(int, str(error.value).rsplit("try ", 1)[1].split(" or "))
    assert below < frames < above == below + 4
    check_frames(below, 4)
    check_frames(above, 4)


def test_an_impossible_size_is_refused_with_the_nearest_possible_sizes() -> None:
    check_size(64, 48, 16)
    with pytest.raises(ValueError, match="multiples of 16, got 70x48; try 64x48 or 80x48"):
        check_size(70, 48, 16)
    with pytest.raises(ValueError, match="got 5x48; try 16x48"):
        check_size(5, 48, 16)


def test_seconds_are_converted_to_the_nearest_possible_length() -> None:
    for seconds in (0.01, 0.5, 1.0, 2.0, 3.3, 10.0):
        frames = resolve_frames(SampleConfig(seconds=seconds, fps=8.0), 4)
        check_frames(frames, 4)
        assert frames == 1 or abs(frames / 8 - seconds) <= 4 / 8 / 2 + 1e-9
    assert resolve_frames(SampleConfig(frames=9), 4) == 9


def test_the_default_settings_of_a_checkpoint_are_read_from_its_json(checkpoint: Path, tmp_path: Path) -> None:
    assert read_checkpoint_info(checkpoint).defaults == SampleConfig(size="48x32", frames=9, steps=3, guidance=2.0)
    with pytest.raises(ValueError, match=r"is not a checkpoint folder: it has no model_index\.json"):
        read_checkpoint_info(tmp_path)
