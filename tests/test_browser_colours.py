"""A browser shows the colours of a clip as they were written: it believes the tags of the file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from tests.test_sweep_page import driver, wait_until
from videogen.data.video_io import write_video

__all__ = ["driver"]  # the fixture
pytestmark = pytest.mark.browser
# Without a GPU, Chromium converts by libyuv, whose factor of blue in BT.709 is 2.0 in place of 2.11: none is very blue.
COLOURS = [(160, 60, 80), (200, 120, 130), (40, 160, 130), (128, 128, 128), (235, 235, 235), (16, 16, 16)]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_known_colour_stays_within_2_of_255_on_the_screen(suffix: str, tmp_path: Path, driver: WebDriver) -> None:
    for i, colour in enumerate(COLOURS):
        write_video(tmp_path / f"{i}{suffix}", torch.tensor(colour, dtype=torch.uint8).expand(9, 64, 64, 3), fps=8)
    page = "".join(f'<video src="{i}{suffix}" muted></video>' for i in range(len(COLOURS)))
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    driver.get((tmp_path / "page.html").as_uri())
    videos = driver.find_elements(By.TAG_NAME, "video")
    wait_until(lambda: all(int(str(video.get_property("readyState"))) >= 2 for video in videos))
    for video, colour in zip(videos, COLOURS, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(video.screenshot_as_png)).convert("RGB"))[32, 32]
        assert np.abs(shown.astype(int) - colour).max() <= 2, (colour, shown.tolist())
