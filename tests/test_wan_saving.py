"""Pipelines of Wan's networks are saved as folders that diffusers opens, and others under our own class."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline

from tests.conftest import tiny_dit
from tests.test_wan_pipeline import PROMPT, SETTINGS, assert_same_latents, images_for, latents_of
from tests.test_wan_pipeline import folders as folders
from tests.test_wan_pipeline import without_ftfy as without_ftfy
from tests.wan_folders import KINDS
from videogen.config.parsing import to_mapping
from videogen.sampling.pipeline import ClipRequest, VideoPipeline


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_checkpoint_opens_in_diffusers_and_makes_the_same_latent(
    kind: str, folders: dict[str, tuple[Path, DiffusionPipeline]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, theirs = folders[kind]
    settings = replace(SETTINGS, guidance_2=2.0 if "A14B" in kind else None)
    ours = VideoPipeline.from_pretrained(folder)
    ours.register_to_config(defaults=to_mapping(settings))
    with torch.no_grad():
        for expert in ours.experts:
            expert.proj_out.bias.add_(0.1)  # so that the weights are not those of the first folder
    ours.save_pretrained(tmp_path)
    caplog.clear()
    opened = type(theirs).from_pretrained(str(tmp_path))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []
    opened.set_progress_bar_config(disable=True)
    assert {name: type(part) for name, part in opened.components.items()} == {
        name: type(part) for name, part in theirs.components.items()
    }
    (latent,) = ours.sample([ClipRequest(PROMPT, 5, images_for(kind))], settings)
    their_latent = latents_of(opened, settings, images_for(kind))
    assert_same_latents(latent, their_latent)
    assert (their_latent - latents_of(theirs, settings, images_for(kind))).abs().max() > 1e-3
    reopened = VideoPipeline.from_pretrained(tmp_path)
    assert reopened.defaults == settings
    assert torch.equal(reopened.sample([ClipRequest(PROMPT, 5, images_for(kind))], settings)[0], latent)
    VideoPipeline.load(tmp_path)


def test_our_transformer_with_wans_vae_opens_in_diffusers(
    folders: dict[str, tuple[Path, DiffusionPipeline]], tmp_path: Path
) -> None:
    """It has a transformer of ours and no scheduler: saving adds a scheduler with the same settings."""
    ours = VideoPipeline.from_pretrained(folders["T2V 2.1"][0])
    dit = tiny_dit(text_dim=16, num_attention_heads=3)
    mixed = VideoPipeline(dit, ours.vae, ours.text_encoder, ours.tokenizer, defaults=to_mapping(SETTINGS))
    mixed.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "WanPipeline"
    theirs = WanPipeline.from_pretrained(str(tmp_path))
    assert_same_latents(mixed.sample([ClipRequest(PROMPT, 5)], SETTINGS)[0], latents_of(theirs, SETTINGS))


def test_a_pipeline_that_diffusers_cannot_run_is_saved_under_our_class(
    folders: dict[str, tuple[Path, DiffusionPipeline]], tmp_path: Path
) -> None:
    ours = VideoPipeline.from_pretrained(folders["T2V 2.1"][0])
    dit = tiny_dit(text_dim=16, prediction="clean")
    VideoPipeline(dit, ours.vae, ours.text_encoder, ours.tokenizer).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert (index["_class_name"], index["vae"]) == ("VideoPipeline", ["videogen.models.wan_vae", "WanVAE"])
    assert VideoPipeline.load(tmp_path).transformer.config["prediction"] == "clean"
