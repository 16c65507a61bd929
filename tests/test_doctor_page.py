"""The page of an examined folder works from disk in a real browser, whatever the names of its files say."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import Select

from tests.test_doctor import ill  # noqa: F401
from tests.test_sweep_page import driver  # noqa: F401
from videogen.cli.main import main

pytestmark = pytest.mark.browser


def test_the_page_shows_pictures_filters_files_and_runs_nothing_of_theirs(
    driver: WebDriver,  # noqa: F811
    ill: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    page = tmp_path / "page.html"
    assert main(["doctor", str(ill), "--quiet", "--html", str(page)]) == 3
    driver.get(page.as_uri())
    assert driver.get_log("browser") == []
    assert driver.title.endswith("5 files, 3 can be used")  # the hostile name would have changed it
    images = driver.find_elements(By.CSS_SELECTOR, "article img")
    driver.execute_script("for (const image of document.images) image.loading = 'eager'")
    assert len(images) == 4
    assert all(driver.execute_script("return arguments[0].decode().then(() => true)", image) for image in images)
    files = driver.find_elements(By.TAG_NAME, "article")
    assert len(files) == 5
    Select(driver.find_element(By.ID, "filter")).select_by_value("empty")
    assert [file.text.splitlines()[0] for file in files if file.is_displayed()] == ["[bold]empty.mp4"]
    Select(driver.find_element(By.ID, "filter")).select_by_value("")
    assert all(file.is_displayed() for file in files)
