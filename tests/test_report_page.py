"""report.html and poses.tsv: what stands in them, and what a browser makes of it."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from conftest import head_pose
from inference_runs import run, save_head
from scripts.evaluation.outputs import CaseFiles
from scripts.evaluation.report_page import WIDTHS, report_page, thumbnail
from scripts.evaluation.run_folder import RunFolder

NASTY = "<script>alert(1)<|script>\"&'".replace("|", "_")
CASES = {"a10": 0.99, "a9": 0.6, NASTY: 0.8, "empty": 0.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run over heads of several confidences, one of an odd name, and what is no volume."""
    folder = tmp_path_factory.mktemp("report")
    for name in CASES:
        save_head(folder / f"in/{name}.nii.gz")
    (folder / "in/text.nii").write_text("no volume")
    (folder / "in/notes.txt").write_text("no volume")
    (folder / "weights.pt").write_bytes(b"weights")
    out = RunFolder(folder / "out", folder / "weights.pt", uncertain_above_deg=54.0)
    run(folder / "in", out, confidence=lambda case, _: CASES.get(case, 0.0), headless=["empty"])
    return folder / "out"


def records(folder: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in folder.glob("*_pose.json")]
    return {record["case"]: record for record in found}


def test_the_table_is_that_of_the_records(made):
    with (made / "poses.tsv").open() as file:
        rows = {
            row["case"]: row
            for row in csv.DictReader(file, delimiter="\t", quotechar=None, quoting=csv.QUOTE_NONE)
        }
    assert set(rows) == set(records(made)) == {*CASES, "text"}
    for case, record in records(made).items():
        row = rows[case]
        assert row["status"] == record["status"]
        assert float(row["confidence"]) == record["confidence"]
        assert (row["message"] == "n/a") == (record["message"] == "")
        if record["head_to_world"] is None:
            assert row["x_mm"] == row["rz_deg"] == "n/a"
            continue
        place = [float(row[name]) for name in ("x_mm", "y_mm", "z_mm")]
        np.testing.assert_allclose(place, head_pose()[:3, 3], atol=2e-3)
        turn = [float(row[name]) for name in ("rx_deg", "ry_deg", "rz_deg")]
        turned = Rotation.from_rotvec(turn, degrees=True).as_matrix()
        np.testing.assert_allclose(turned, head_pose()[:3, :3], atol=1e-3)


def test_the_page_asks_for_nothing_from_anywhere(made):
    page = (made / "report.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page
    sources = re.findall(r'<img src="([^"]{30})', page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)


def test_the_page_says_what_made_it(made):
    page = (made / "report.html").read_text()
    version = json.loads((Path(__file__).parents[1] / "bundle/configs/metadata.json").read_text())
    assert f"fetal_mri_head_pose {version['version']}" in page
    # of the file above, by sha256sum
    assert "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c" in page
    assert "not a medical device" in page
    assert re.search(r"Uncertain above\W.*54 degrees", page)
    assert "its turn is expected to be off by 72.0 degrees, more than 54" in page  # a9
    assert "notes.txt" in page  # left aside, with its reason
    assert "no kind of file that is read (.txt)" in page


def test_names_are_text_and_no_markup(made):
    page = (made / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    ("lost", "kept"), [("report.html", "poses.tsv"), ("poses.tsv", "report.html")]
)
def test_one_that_cannot_be_written_is_named_and_the_other_is_there(
    tmp_path, monkeypatch, caplog, lost, kept
):
    """As where the page, which is far larger, fills the disk."""
    replace = os.replace

    def full(source, target):
        if Path(target).name == lost:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    save_head(tmp_path / "in/a.nii.gz")
    run(tmp_path / "in", RunFolder(tmp_path / "out"))
    assert f"{lost} not written: [Errno 28] No space left on device" in caplog.text
    assert f"{kept} not" not in caplog.text
    assert (tmp_path / "out" / kept).exists()
    assert not (tmp_path / "out" / lost).exists()


def test_links_lead_to_the_files(made):
    from urllib.parse import unquote

    page = (made / "report.html").read_text()
    links = [unquote(link) for link in re.findall(r'<a href="([^"#]+)"', page)]
    expected = {p.name for p in made.iterdir() if p.suffix in (".json", ".png")}
    assert set(links) == expected


def test_five_hundred_cases_make_a_page_of_moderate_size(made, tmp_path):
    """Of the pictures, and of all that stands around them."""
    picture = thumbnail(made / "a10_pose.png", WIDTHS[10**9])
    assert picture["width"] == 480
    record = records(made)["a10"]
    found = [(CaseFiles(tmp_path, "case"), record | {"case": f"case {k}"}) for k in range(500)]
    page = report_page(found, RunFolder(tmp_path))
    assert page.count("<article") == 500
    assert len(page) + 500 * len(picture["source"]) < 20e6


def test_the_motion_of_the_run_as_one_series_is_shown_and_not_that_of_an_earlier_run(
    made, tmp_path
):
    shutil.copy(made / "a10_pose.png", tmp_path / "series_motion.png")
    (tmp_path / "series_motion.tsv").write_text("frame")
    folder = RunFolder(tmp_path)
    page = report_page([], folder)
    assert "Motion over the cases" in page
    assert 'href="series_motion.tsv"' in page
    folder.open()
    folder.close()
    assert not list(tmp_path.glob("series*"))
    assert "Motion over the cases" not in report_page([], folder)


def test_a_picture_that_is_none_is_left_out(tmp_path):
    (tmp_path / "p.png").write_bytes(b"no picture")
    assert thumbnail(tmp_path / "p.png", 100) is None
    assert thumbnail(tmp_path / "none.png", 100) is None


# In a browser


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; the tests skip where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with chromedriver (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-background-networking",
        "window-size=1200,900",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    running = webdriver.Chrome(options=options, service=service)
    yield running
    running.quit()


@pytest.fixture
def page(browser, made):
    browser.get((made / "report.html").as_uri())
    return browser


def shown(page) -> list[str]:
    """Names in the rows that can be seen, in their order."""
    script = (
        "return [...document.querySelectorAll('#poses tbody tr')].filter(r => r.offsetHeight)"
        ".map(r => r.cells[0].textContent)"
    )
    return page.execute_script(script)


def cards(page) -> list[str]:
    script = (
        "return [...document.querySelectorAll('.card')].filter(c => c.offsetHeight)"
        ".map(c => c.querySelector('h3').textContent)"
    )
    return page.execute_script(script)


def click(page, selector: str) -> None:
    page.find_element("css selector", selector).click()


def test_the_page_opens_without_errors_and_shows_what_the_records_say(page, made):
    assert page.get_log("browser") == []
    script = (
        "return [...document.querySelectorAll('#poses tbody tr')]"
        ".map(r => [...r.cells].slice(0, 4).map(c => c.textContent.trim()))"
    )
    rows = {row[0]: row[1:] for row in page.execute_script(script)}
    assert rows == {
        case: [r["status"], f"{r['confidence']:.4f}", f"{r['brain_volume_ml']:.1f}"]
        for case, r in records(made).items()
    }
    loaded = "return [...document.images].every(i => i.loading === 'lazy')"
    assert page.execute_script(loaded)
    page.execute_script("document.querySelector('.card img').scrollIntoView()")
    assert page.execute_script("return document.querySelector('.card img').naturalWidth") > 400


def test_it_sorts_by_every_column_and_says_so(page):
    assert shown(page)[0] == NASTY
    click(page, "button[data-key=confidence]")
    assert [CASES.get(name, 0) for name in shown(page)] == [0, 0, 0.6, 0.8, 0.99]
    assert cards(page) == shown(page)
    click(page, "button[data-key=confidence]")
    assert shown(page)[:3] == ["a10", NASTY, "a9"]
    state = "return [...document.querySelectorAll('#poses th[aria-sort]')].map(h => h.ariaSort)"
    assert page.execute_script(state) == ["none", "none", "descending", "none"]
    click(page, "button[data-key=case]")
    names = shown(page)
    assert names.index("a9") < names.index("a10")  # numbers in names count as numbers
    click(page, "button[data-key=status]")
    assert shown(page)[-2:] == ["a9", "text"]


def test_it_filters_by_status_text_confidence_and_volume(page):
    click(page, ".chip[data-status=ok]")
    assert set(shown(page)) == set(cards(page)) == {"a9", "empty", "text"}
    assert page.find_element("id", "shown").text == "3 of 5 cases"
    click(page, "#reset")
    assert len(shown(page)) == 5
    page.find_element("id", "text").send_keys("A1")
    assert shown(page) == ["a10"]
    click(page, "#reset")
    page.find_element("id", "confidence-from").send_keys("0.6")
    page.find_element("id", "confidence-to").send_keys("0.8")
    assert set(shown(page)) == {"a9", NASTY}
    click(page, "#reset")
    page.find_element("id", "volume-from").send_keys("1")
    assert set(shown(page)) == {"a9", "a10", NASTY}


def test_a_keyboard_is_enough(page):
    """Tab reaches the filters, the table's heads and the links; Enter and space work there."""
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(40):
        page.switch_to.active_element.send_keys(Keys.TAB)
        element = page.switch_to.active_element
        name = element.get_attribute("data-key") or element.get_attribute("data-status")
        reached.append(name or element.get_attribute("id") or element.tag_name)
        if name == "ok":
            element.send_keys(Keys.SPACE)
            assert "a10" not in shown(page)
            element.send_keys(Keys.SPACE)
        if name == "volume":
            element.send_keys(Keys.ENTER)
            assert shown(page)[0] in ("empty", "text")
    assert {"ok", "uncertain", "text", "reset", "case", "status", "confidence"} <= set(reached)
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.execute_script(outline) == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(page, scheme):
    """WCAG's contrast of 4.5 for every text of the page, by day and by night."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    worst = page.execute_script(CONTRAST)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert worst[0] >= 4.5, worst


def test_a_phone_scrolls_down_only(page):
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    width = page.execute_script("return document.documentElement.scrollWidth")
    small = page.execute_script(
        "return [...document.querySelectorAll('button, input')].filter(e => e.offsetHeight &&"
        " e.offsetHeight < 40).map(e => e.outerHTML)"
    )
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width <= 360
    assert small == []  # for a finger


CONTRAST = """
const mix = (top, under) => top.slice(0, 3).map((c, k) => c * top[3] + under[k] * (1 - top[3]));
const parse = (text) => {
  const n = text.match(/[0-9.]+/g).map(Number);
  return [n[0], n[1], n[2], n.length > 3 ? n[3] : 1];
};
const behind = (element) => {
  const layers = [];
  for (let e = element; e; e = e.parentElement) {
    layers.push(parse(getComputedStyle(e).backgroundColor));
  }
  return layers.reverse().reduce((under, top) => mix(top, under), [255, 255, 255]);
};
const light = (rgb) => {
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = rgb.map((c) => linear(c / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
let worst = [99, ""];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
  if (!text || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
  const back = behind(element), front = mix(parse(getComputedStyle(element).color), back);
  const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
  const contrast = (a + 0.05) / (b + 0.05);
  if (contrast < worst[0]) worst = [contrast, text];
}
return worst;
"""
