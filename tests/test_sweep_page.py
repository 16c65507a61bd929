"""The page of a sweep works from disk in a real browser: it loads, plays in step, sorts, filters, copies."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from tests.sweeps import SMALL, plan_of
from videogen.sampling.pipeline import VideoPipeline
from videogen.sweep.report import publish
from videogen.sweep.runner import sweep

pytestmark = pytest.mark.browser
PROMPTS = ('</script><b>it\'s a "red" circle', "a large blue star")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,900",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(pipeline: VideoPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published sweep of twelve settings under two prompts and two seeds."""
    folder = tmp_path_factory.mktemp("sweep") / "s"
    plan = plan_of(
        ["steps=1,2,10", "guidance=1,2", "sampler=euler,heun"], prompts=PROMPTS, seeds=[0, 1], reference_steps=12
    )
    publish(folder, plan, sweep(pipeline, plan, folder))
    return folder


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.fail("chromium or chromedriver is missing; apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield browser
    browser.quit()


@pytest.fixture
def page(driver: WebDriver, folder: Path) -> WebDriver:
    """The page, newly opened, with all clips of the grid loaded."""
    driver.get((folder / "report.html").as_uri())
    wait_until(lambda: len(videos(driver)) == 6 and all(state >= 2 for state in evaluate(driver, "v.readyState")))
    return driver


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition was not met within {seconds} seconds"
        time.sleep(0.05)


def videos(page: WebDriver) -> list[WebElement]:
    return page.find_elements(By.CSS_SELECTOR, "#clips video")


def evaluate(page: WebDriver, expression: str) -> list[float]:
    """Evaluate a JavaScript expression of every video v of the grid, at one moment."""
    return page.execute_script(f"return [...document.querySelectorAll('#clips video')].map((v) => {expression})")


def texts(page: WebDriver, selector: str) -> list[str]:
    return [element.text for element in page.find_elements(By.CSS_SELECTOR, selector)]


def column(page: WebDriver, name: str) -> list[str]:
    """Return the texts of a column of the table."""
    names = [head.get_attribute("data-name") for head in page.find_elements(By.CSS_SELECTOR, "#table th")]
    return texts(page, f"#table tbody td:nth-child({names.index(name) + 1})")


def choose(page: WebDriver, picker: str, value: str) -> None:
    Select(page.find_element(By.ID, f"pick-{picker}")).select_by_visible_text(value)


def click(page: WebDriver, selector: str) -> None:
    element = page.find_element(By.CSS_SELECTOR, selector)
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def test_the_page_opens_from_disk_without_an_error_and_without_network(page: WebDriver) -> None:
    assert page.get_log("browser") == []
    assert page.execute_script("return [...document.querySelectorAll('video')].some((v) => v.error)") is False
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith(("file:", "data:")) for name in loaded)
    assert page.find_element(By.TAG_NAME, "h1").text == "Sweep over steps, guidance, sampler"
    assert "12 settings, 2 prompts, 2 seeds: 48 clips." in page.find_element(By.ID, "findings").text
    assert page.find_elements(By.CSS_SELECTOR, "#pareto svg")
    assert len(page.find_elements(By.CSS_SELECTOR, "#marginals svg")) == 2  # PSNR judges no guidance


def test_the_clips_play_in_step(page: WebDriver) -> None:
    before = page.execute_script("return clock.now")
    wait_until(lambda: page.execute_script("return clock.now") != before)
    spreads, positions = [], set()
    for _ in range(20):
        times = evaluate(page, "v.currentTime")
        spreads.append(max(times) - min(times))
        positions.add(round(times[0], 2))
        time.sleep(0.05)
    assert len(positions) > 3  # they do play
    assert sorted(spreads)[len(spreads) // 2] < 1 / SMALL.fps  # within a frame
    click(page, "#play")
    wait_until(lambda: all(evaluate(page, "v.paused")))
    time.sleep(0.3)
    paused = evaluate(page, "v.currentTime")
    assert max(paused) - min(paused) < 0.03
    time.sleep(0.3)
    assert evaluate(page, "v.currentTime") == paused


def test_keys_pause_and_step_by_one_frame(page: WebDriver) -> None:
    body = page.find_element(By.TAG_NAME, "body")
    body.send_keys(" ")
    assert page.find_element(By.ID, "play").text == "play"
    page.execute_script("clock.now = 0")
    for frame in (1, 2):
        body.send_keys(".")
        wait_until(lambda f=frame: all(int(t * SMALL.fps) == f for t in evaluate(page, "v.currentTime")))
    body.send_keys(",")
    wait_until(lambda: all(int(t * SMALL.fps) == 1 for t in evaluate(page, "v.currentTime")))


def test_rows_and_columns_of_the_grid_can_be_chosen(page: WebDriver) -> None:
    assert texts(page, "#clips th") == ["guidance 1", "guidance 2", "steps 1", "steps 2", "steps 10"]
    choose(page, "columns", "sampler")
    assert texts(page, "#clips thead th") == ["sampler euler", "sampler heun"]
    before = evaluate(page, "v.src")
    choose(
        page,
        "guidance",
        "1" if Select(page.find_element(By.ID, "pick-guidance")).first_selected_option.text == "2" else "2",
    )
    assert not set(before) & set(evaluate(page, "v.src"))
    choose(page, "rows", "prompt")
    assert texts(page, "#clips tbody th") == [f"prompt {prompt}" for prompt in PROMPTS]
    choose(page, "rows", "sampler")  # the same as the columns: they change places
    assert texts(page, "#clips tbody th") == ["sampler euler", "sampler heun"]
    assert texts(page, "#clips thead th") == [f"prompt {prompt}" for prompt in PROMPTS]
    choose(page, "columns", "none")
    assert len(videos(page)) == 2
    assert page.get_log("browser") == []


def test_a_click_opens_a_clip_next_to_its_reference(page: WebDriver) -> None:
    click(page, "#clips .cell")
    dialog = page.find_element(By.ID, "dialog")
    assert dialog.get_attribute("open") is not None
    assert page.find_element(By.ID, "dialog-title").text.startswith("1 steps, guidance 1")
    assert texts(page, "#pair figcaption") == ["this clip", "its reference"]
    assert page.find_element(By.ID, "dialog-prompt").text == PROMPTS[0]
    assert {"sampler", "seed", "psnr db", "total seconds", "guidance interval"} <= set(texts(page, "#facts dt"))
    assert texts(page, "#dialog-command code")[0].startswith("python sample.py '</script><b>it")
    title = page.find_element(By.ID, "dialog-title").text
    dialog.send_keys(Keys.ARROW_RIGHT)
    assert page.find_element(By.ID, "dialog-title").text != title
    dialog.send_keys(Keys.ARROW_LEFT)
    assert page.find_element(By.ID, "dialog-title").text == title
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    wait_until(lambda: dialog.get_attribute("open") is None)


def test_the_copy_button_copies_the_command(page: WebDriver) -> None:
    field = page.find_element(By.ID, "filter")
    for box in ("#best", "#dialog-command"):
        if box == "#dialog-command":
            click(page, "#clips .cell")
        command = page.find_element(By.CSS_SELECTOR, f"{box} code").text
        click(page, f"{box} button")
        wait_until(lambda b=box: page.find_element(By.CSS_SELECTOR, f"{b} button").text == "copied")
        page.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
        wait_until(lambda: page.find_element(By.ID, "dialog").get_attribute("open") is None)
        field.clear()
        field.send_keys(Keys.CONTROL, "v")
        assert field.get_attribute("value") == command


def test_the_table_sorts_in_both_directions(page: WebDriver) -> None:
    click(page, "#by-clip")
    for name, kind in (("psnr_db", float), ("steps", int), ("sampler", str)):
        click(page, f"#table th[data-name='{name}'] button")
        rising = [kind(cell) for cell in column(page, name)]
        assert rising == sorted(rising)
        assert len(rising) == 48
        assert (
            page.find_element(By.CSS_SELECTOR, f"#table th[data-name='{name}']").get_attribute("aria-sort")
            == "ascending"
        )
        page.switch_to.active_element.send_keys(Keys.ENTER)  # the button kept the focus
        assert [kind(cell) for cell in column(page, name)] == sorted(rising, reverse=True)


def test_the_table_filters_by_words_and_conditions(page: WebDriver) -> None:
    field = page.find_element(By.ID, "filter")
    field.send_keys("heun steps>=2")
    assert set(column(page, "sampler")) == {"heun"}
    assert set(column(page, "steps")) == {"2", "10"}
    assert page.find_element(By.ID, "count").text == "4 of 12"
    assert "±" in column(page, "psnr_db")[0]
    click(page, "#by-clip")
    assert page.find_element(By.ID, "count").text == "16 of 48"
    field.send_keys(" seed=1 guidance!=1 star")
    assert page.find_element(By.ID, "count").text == "2 of 48"
    field.clear()
    field.send_keys("nothing<3")
    assert page.find_element(By.ID, "count").text == "0 of 48"


def test_a_row_and_a_setting_of_the_front_open_by_keyboard(page: WebDriver) -> None:
    for selector in ("#table tbody tr", "#front button"):
        page.execute_script("document.querySelector(arguments[0]).focus()", selector)
        page.switch_to.active_element.send_keys(Keys.ENTER)
        wait_until(lambda: page.find_element(By.ID, "dialog").get_attribute("open") is not None)
        page.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
        wait_until(lambda: page.find_element(By.ID, "dialog").get_attribute("open") is None)


def test_every_control_can_be_reached_by_tab(page: WebDriver) -> None:
    reached = set()
    for _ in range(80):
        page.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.execute_script("const e = document.activeElement; return e.id || e.className || e.tagName"))
    assert {"pick-rows", "pick-columns", "play", "moment", "size", "cell", "by-setting", "by-clip", "filter"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_dark(page: WebDriver, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") == 360
        click(page, "#clips .cell")
        assert page.execute_script("return document.getElementById('dialog').getBoundingClientRect().width") <= 360
        paper, ink = page.execute_script(
            "const s = getComputedStyle(document.body);"
            "return [s.backgroundColor, s.color].map((c) => c.match(/\\d+/)[0])"
        )
        assert (int(paper) > int(ink)) == (scheme == "light")
        text = page.execute_script(
            "return getComputedStyle(document.querySelector('#pareto text')).fill.match(/\\d+/)[0]"
        )
        assert abs(int(text) - int(paper)) > 60  # the plots follow the scheme
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
