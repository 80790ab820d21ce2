"""scan/console.py: the page in headless Chromium while a session runs."""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.request

import numpy as np
import pytest

pytest.importorskip("ismrmrd", reason="the extra `scan` is not installed")

import service_stub as stub
from conftest import head_pose, landmark_volume, make_affine
from scripts.scan.console import Console
from scripts.scan.navigators import Navigator
from scripts.scan.pose_job import Found
from scripts.scan.session_options import SessionOptions
from scripts.scan.stack_session import StackSession

SHAPE = (40, 40, 32)


@pytest.fixture
def console():
    found = Console(0)
    yield found
    found.close()


class Scan:
    """Tells a console of navigators as a session would."""

    def __init__(self, console):
        self.console, self.stack, self.count = console, StackSession(SessionOptions()), 0
        self.affine = make_affine("LAS", (6.0, 6.0, 6.0), 10.0, SHAPE)
        console.started(self.stack.options)

    def tell(self, status="ok", move_mm=0.0, message=""):
        pose = head_pose()
        pose[0, 3] += move_mm
        values = landmark_volume(pose, self.affine, SHAPE)
        navigator = Navigator(self.count, values, self.affine, 2.5 * self.count, 0)
        found = Found(status, pose, 0.98, stub.EXTENT_MM, 6.0, 4.0, 0.01)
        if status == "no_head":
            found = Found(status, message="no head found (no_head)")
        self.stack.started(navigator)
        self.stack.learn(self.count, found)
        answer = self.stack.answer(navigator, found, navigator.received_s + 0.23, message)
        self.console.answered(navigator, found, answer)
        self.count += 1
        return answer


def get(console, path="", **headers):
    request = urllib.request.Request(console.url + path, headers=headers)
    return urllib.request.urlopen(request, timeout=10)


def events(console, count):
    """The first states that a page is sent."""
    with get(console, "events") as stream:
        found = []
        while len(found) < count:
            line = stream.readline()
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
        return found


def test_a_page_that_comes_late_is_told_everything(console):
    scan = Scan(console)
    for k in range(3):
        answer = scan.tell(move_mm=2.0 * k)
    seen, state = -1, {}
    while "planes_of" not in state or state["planes_of"] != 2:
        seen, state = console.next_state(seen)
    (told,) = events(console, 1)
    assert told["answer"] == json.loads(json.dumps(answer))
    assert told["done"] == [0, 4, 8]
    assert [point["status"] for point in told["trace"]] == ["ok"] * 3
    assert set(told["planes"]) == {"sagittal", "coronal", "axial"}


def test_only_this_machine_under_its_own_name_is_answered(console):
    assert b"<title>" in get(console).read()
    for path, headers, code in (
        ("", {"Host": "evil.example"}, 403),
        ("secret", {}, 404),
        ("../../service.py", {}, 404),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(console, path, **headers)
        assert refused.value.code == code
    assert get(console).headers["Content-Security-Policy"].startswith("default-src 'none'")
    with pytest.raises(urllib.error.HTTPError):  # read-only
        urllib.request.urlopen(console.url, data=b"x", timeout=10)


def test_nothing_comes_from_outside():
    from scripts.scan.console import PAGE

    page = PAGE.read_text()
    assert "http" not in page
    assert "not a medical device" in page


@pytest.fixture
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--window-size=1280,900", "--disable-dev-shm-usage",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(driver)
    found = webdriver.Chrome(options=options, service=service)
    yield found
    found.quit()


def test_a_radiographer_sees_the_session(console, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, 30)

    def text(name):
        return browser.find_element("id", name).text

    browser.get(console.url)
    wait.until(lambda _: text("word") == "WAITING")
    scan = Scan(console)
    for k in range(12):
        answer = scan.tell("no_head" if k in (4, 5) else "ok", move_mm=np.sin(k) * 8)
    wait.until(lambda _: text("word") == "OK")
    wait.until(lambda _: text("navigator") == "11")
    assert text("latency") == "230"
    assert text("slice") == f"12 / {answer['slice']['of']}"
    assert "12 asked for" in text("counts")
    wait.until(
        lambda _: browser.find_element("id", "sagittal").get_attribute("naturalWidth") != "0"
    )
    marks = browser.find_elements("css selector", "#slices u.done, #slices u.last")
    assert len(marks) == 12
    _shot(browser, "ok")
    scan.tell("no_head")
    wait.until(lambda _: text("word") == "PREDICTED")
    assert text("text") == "no head found (no_head)"
    scan.tell("uncertain", message="<b>unlike the track</b>")
    wait.until(lambda _: text("word") == "UNCERTAIN")
    assert text("text") == "<b>unlike the track</b>"  # as text, not as a tag
    _shot(browser, "uncertain")
    console.ended("closed by the client")
    wait.until(lambda _: text("word") == "ENDED")
    console.close()
    wait.until(lambda _: text("word") == "LOST")
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    # once the service is gone, and nothing before
    assert all("events" in entry["message"] and "ERR_" in entry["message"] for entry in severe)


def _shot(browser, name):
    """For people who want to look: CONSOLE_SHOTS names a folder."""
    if folder := os.environ.get("CONSOLE_SHOTS"):
        browser.save_screenshot(f"{folder}/console_{name}.png")
