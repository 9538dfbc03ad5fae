"""The page of a report in a real browser, opened from the disk."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from helpers.command_line import TINY, compose_config, run_main_here
from helpers.example_runs import dataset, write_clip, write_evaluation, write_training
from trajectory.commands.report import report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage")

pytestmark = pytest.mark.skipif(
    not BROWSER or not DRIVER, reason="no browser: on Debian or Ubuntu install chromium and chromium-driver"
)


LAST_RESORT_S = 600  # for what a busy machine takes long to do

LOADED = """
const [video, done] = arguments;
if (video.readyState >= 1 || video.error || video.networkState === 3) done();
for (const event of ["loadedmetadata", "error"]) video.addEventListener(event, () => done(), true);
"""


class Driver(Service):
    """Chromedriver on a free port that it takes itself, so that nobody else can have it; it says when it listens."""

    def start(self) -> None:
        self.process = subprocess.Popen(
            [str(DRIVER), "--port=0"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        said = ""
        while not (found := re.search(r"started successfully on port (\d+)", said)):
            line = self.process.stdout.readline()
            assert line, f"chromedriver ended: {said}"
            said += line
        self.port = int(found[1])


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """With an empty profile; logs its console and what it fetches."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1280,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Driver(str(DRIVER)))
    driver.set_page_load_timeout(LAST_RESORT_S)
    driver.set_script_timeout(LAST_RESORT_S)
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Any) -> Any:
    """At a desk's width and in light colours, whatever the test before wanted."""
    colors(chromium, "light")
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page on trainings, best checkpoints, clones, a crashed run and names that would be code."""
    place = tmp_path_factory.mktemp("page")
    runs = place / "runs"
    returns = {0: [900.0, 2600.0, 3000.0], 1: [2800.0, 2100.0, 1900.0]}
    for seed, of_seed in returns.items():
        training = write_training(runs / f"t{seed}", of_seed, seed=seed)
        write_clip(training)
        write_evaluation(runs / f"e{seed}", training / "best.ckpt", [value + 90 for value in of_seed], steps=9_000)
        write_training(runs / f"c{seed}", [1100.0 + seed, 990.0], seed=seed, baseline="bc")
    write_training(runs / "crashed", [1.0], finished=False)
    code = dataset("me/<script>document.title='broken'</script>/x\"onload=-v0")
    write_training(runs / "code", [5.0, 8.0], data=code)
    folder = place / "report"
    folder.mkdir()
    return report(compose_config("report", f"runs={runs}", "report.resamples=100"), folder)


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    """The browser with the page just opened."""
    browser.get(page.as_uri())
    return browser


def colors(browser: Any, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def table(browser: Any, caption: str) -> WebElement:
    return next(one for one in browser.find_elements(By.TAG_NAME, "table") if caption in one.text.splitlines()[0])


def column(of: WebElement, number: int) -> list[str]:
    return [row.find_elements(By.XPATH, "./*")[number].text for row in of.find_elements(By.CSS_SELECTOR, "tbody tr")]


def head(of: WebElement, name: str) -> tuple[int, WebElement]:
    heads = of.find_elements(By.CSS_SELECTOR, "thead th")
    number = next(index for index, one in enumerate(heads) if one.text.startswith(name))
    return number, heads[number]


def requests(browser: Any) -> list[str]:
    """What was asked for since the last call, but for the page itself and what it holds within it."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    urls = [one["request"]["url"] for one in sent]
    assert any(url.startswith("file://") for url in urls)
    return [url for url in urls if not url.startswith(("data:", "file://"))]


def test_page_opens_from_disk_without_errors_or_requests(browser: Any, page: Path) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    assert requests(browser) == []
    assert browser.get_log("browser") == []
    assert browser.title == "Report"
    text = page.read_text()
    assert "http://" not in text.replace("http://www.w3.org/", "")
    assert "https://" not in text.replace("https://www.w3.org/", "")


def test_headers_sort_by_number_both_ways_and_say_so(opened: Any) -> None:
    scores = table(opened, "trajectory/hopper/medium-v0")
    number, header = head(scores, "return")
    before = column(scores, number)
    button = header.find_element(By.TAG_NAME, "button")
    button.click()
    assert header.get_attribute("aria-sort") == "ascending"
    upwards = column(scores, number)
    # as words, 1045.2 would come before 2216.7 but 990.0 after both
    assert upwards == sorted(before, key=float) != before
    button.send_keys(Keys.ENTER)  # from the keyboard
    assert header.get_attribute("aria-sort") == "descending"
    assert column(scores, number) == upwards[::-1]
    _, other = head(scores, "method")
    other.find_element(By.TAG_NAME, "button").click()
    assert header.get_attribute("aria-sort") is None
    assert column(scores, 0) == sorted(column(scores, 0), key=str.lower)


def test_empty_cells_stay_last_whichever_way_a_table_is_sorted(opened: Any) -> None:
    published = table(opened, "D4RL v2")
    number, header = head(published, "BC")
    for _ in range(2):
        header.find_element(By.TAG_NAME, "button").click()
        cells = column(published, number)
        assert cells[-3:] == 3 * ["–"]
        assert "–" not in cells[:-3]


def test_published_scores_are_in_a_block_of_their_own(opened: Any) -> None:
    block = opened.find_element(By.CSS_SELECTOR, "aside.published")
    captions = [one.text for one in block.find_elements(By.TAG_NAME, "caption")]
    assert [("D4RL v2" in caption, "D4RL v0" in caption) for caption in captions] == [(True, False), (False, True)]
    own = table(opened, "trajectory/hopper/medium-v0")
    assert own.find_elements(By.XPATH, "ancestor::aside") == []
    assert block.value_of_css_property("background-color") != own.value_of_css_property("background-color")


def test_videos_have_a_source_that_the_browser_decodes(opened: Any) -> None:
    videos = opened.find_elements(By.TAG_NAME, "video")
    assert len(videos) == 2
    for video in videos:
        assert video.get_attribute("aria-label")
        opened.execute_async_script(LOADED, video)
        assert int(video.get_property("readyState")) >= 1
        assert opened.execute_script("return arguments[0].error", video) is None
        assert video.get_property("videoWidth") == video.get_property("videoHeight") == 48
        assert video.get_property("duration") == pytest.approx(1.0, abs=0.2)


def test_dark_and_light_differ_in_text_figures_and_background(opened: Any) -> None:
    def brightness(color: str) -> float:
        return sum(float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3])

    seen = {}
    for scheme in ("light", "dark"):
        colors(opened, scheme)
        body = opened.find_element(By.TAG_NAME, "body")
        word = opened.find_element(By.CSS_SELECTOR, "figure svg text")
        seen[scheme] = [brightness(body.value_of_css_property(name)) for name in ("background-color", "color")] + [
            brightness(word.value_of_css_property("fill"))
        ]
    for scheme, light in (("light", True), ("dark", False)):
        back, text, figure = seen[scheme]
        assert (back > 600 and text < 200 and figure < 200) if light else (back < 200 and text > 600 and figure > 600)


def test_every_column_of_scores_is_seen_on_a_desk(opened: Any) -> None:
    region = table(opened, "trajectory/hopper/medium-v0").find_element(By.XPATH, "..")
    wide, room = opened.execute_script("return [arguments[0].scrollWidth, arguments[0].clientWidth]", region)
    assert wide <= room


def test_page_fits_a_phone(opened: Any) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    opened.refresh()
    wide = opened.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide == [390, 390]
    assert float(opened.find_element(By.TAG_NAME, "body").value_of_css_property("font-size")[:-2]) >= 16


def test_tables_and_pictures_are_named_for_who_cannot_see_them(opened: Any) -> None:
    for one in opened.find_elements(By.TAG_NAME, "table"):
        assert one.find_element(By.TAG_NAME, "caption").text
        assert {head.get_attribute("scope") for head in one.find_elements(By.CSS_SELECTOR, "thead th")} == {"col"}
        assert {head.get_attribute("scope") for head in one.find_elements(By.CSS_SELECTOR, "tbody th")} == {"row"}
    pictures = opened.find_elements(By.CSS_SELECTOR, "figure svg")
    assert len(pictures) == 5
    assert all(one.get_attribute("role") == "img" and one.get_attribute("aria-label") for one in pictures)
    ids = opened.execute_script("return [...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids)) > 0


def test_names_are_shown_and_never_run(opened: Any) -> None:
    assert opened.title == "Report"
    assert "<script>document.title='broken'</script>" in opened.find_element(By.TAG_NAME, "main").text
    assert len(opened.find_elements(By.TAG_NAME, "script")) == 1


def test_left_out_runs_stand_first(opened: Any) -> None:
    sections = opened.find_elements(By.TAG_NAME, "section")
    assert "crashed" in sections[0].text
    assert "ended before its results were written" in sections[0].text


def test_report_of_real_runs_through_the_command_line(browser: Any, tmp_path: Path) -> None:
    quick = ("evaluation.video=false", "logger=csv")
    sweeps: list[Path] = []  # in their order, whatever their names say of the time
    for method in ((), ("baseline=bc", "baseline.steps=20")):
        process = run_main_here("train", "-m", "env=hopper", "seed=0,1", *TINY, *quick, *method, folder=tmp_path)
        assert process.returncode == 0, process.stderr
        (made,) = set((tmp_path / "outputs" / "train" / "sweeps").iterdir()) - set(sweeps)
        sweeps.append(made)
    ends = ("evaluation.episodes=2", "evaluation.max_steps=15", "runtime.threads=1", *quick)
    process = run_main_here("evaluate", f"checkpoint={sweeps[0] / '0' / 'best.ckpt'}", *ends, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    process = run_main_here("report", "runs=[outputs/train,outputs/evaluate]", "report.resamples=100", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    made = Path(process.stdout.splitlines()[-1])
    assert made.parent.parent == tmp_path / "outputs" / "report"
    browser.get(made.as_uri())
    scores = table(browser, "trajectory/hopper/medium-")
    rows = list(zip(column(scores, 0), column(scores, 1), column(scores, 2), strict=True))
    assert rows == [
        ("Trajectory Transformer", "last", "2 × 2"),
        ("Trajectory Transformer", "best", "1 × 2"),
        ("bc", "last", "2 × 2"),
    ]
    assert len(browser.find_elements(By.CSS_SELECTOR, "figure svg")) == 3
