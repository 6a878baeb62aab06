"""The report page as it behaves in a browser."""

import json
import time

import pytest

from stnet.inference.report import REPORT_NAME
from tests.inference.browser import CHROMIUM, Browser
from tests.inference.report_pages import HOSTILE, add_video, end, finish, page, pictures


@pytest.fixture
def browse(tmp_path):
    """Opens a page of two videos, one of them short and damaged, and a still."""
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    report = page(tmp_path, videos=3, threshold=0.296)  # no multiple of what the slider moves by
    add_video(report, HOSTILE, pictures(20), explained=True)
    add_video(report, "second", pictures(4), "truncated")
    add_video(report, "still", pictures(1))
    end(report, "lost", "unreadable", "lost: no such file")
    finish(report, tmp_path)
    address = (tmp_path / REPORT_NAME).as_uri()
    opened = []

    def start(width: int = 1280, height: int = 900) -> Browser:
        opened.append(Browser(tmp_path / f"profile{len(opened)}", address, width, height))
        return opened[-1]

    yield start
    for browser in opened:
        browser.close()


STATE = """(() => {
    const section = document.querySelectorAll("section.video")[%d];
    return {
        frame: Number(section.dataset.frame),
        place: section.querySelector('[data-part="place"]').textContent,
        slider: Number(section.querySelector('[data-part="slider"]').value),
        marker: Number(section.querySelector(".marker").getAttribute("x1")),
        picture: section.querySelector(".screen img").src.slice(-400),
        boxes: section.querySelectorAll(".screen .box").length,
        text: section.querySelector(".screen .label text")?.textContent ?? null,
    };
})()"""
SLIDE = """(() => {
    const slider = document.querySelectorAll('[data-part="slider"]')[0];
    slider.value = %d;
    slider.dispatchEvent(new Event("input"));
})()"""


@pytest.mark.timeout(120)
def test_page_in_a_browser(browse):
    browser = browse()
    first = browser.js(STATE % 0)
    assert first["frame"] == 10 and first["boxes"] == 1 and first["text"] == "#1 malignant 0.90"

    browser.js(SLIDE % 3)
    moved = browser.js(STATE % 0)
    assert (moved["frame"], moved["slider"]) == (3, 3) and moved["place"] == "Frame 4 of 20 · 0.30 s"
    assert moved["marker"] < first["marker"] and moved["picture"] != first["picture"]
    assert moved["marker"] == pytest.approx(42 + (472 - 42) * 3 / 19)

    browser.key("ArrowRight")
    assert browser.js(STATE % 0)["frame"] == 4
    browser.key("ArrowLeft")
    browser.key("ArrowLeft")
    assert browser.js(STATE % 0)["frame"] == 2
    browser.key("End")
    assert browser.js(STATE % 0)["frame"] == 19
    browser.key("ArrowLeft", modifiers=8)
    assert browser.js(STATE % 0)["frame"] == 9
    browser.key("Home")
    assert browser.js(STATE % 0)["frame"] == 0

    browser.js("document.querySelector('.strongest button').click()")
    assert browser.js(STATE % 0)["frame"] == 10
    browser.js("document.querySelector('[data-part=\"slider\"]').focus()")
    browser.key("ArrowRight")
    assert browser.js(STATE % 0)["frame"] == 11  # once, not by the slider and by the page

    assert browser.js("document.querySelectorAll('section.video')[0].querySelectorAll('.card').length") == 1
    looked = "players[0].section.querySelector('.looked')"
    assert browser.js(f"[...{looked}.querySelectorAll('.tiles .text')].map((one) => one.textContent)") == [
        "own frame 11: 40 %",
        "frame 3: 40 %",
        "frame 20: 40 %",
    ]
    assert browser.js(f"{looked}.querySelectorAll('circle').length") == 6  # nobody could see the third point
    assert browser.js(f"[...{looked}.querySelectorAll('.tiles .edge.unsure')].length") == 1
    browser.js(f"{looked}.querySelector('[data-points=\"encoder\"]').click()")
    assert browser.js(f"{looked}.querySelectorAll('.points.own circle').length") == 1
    assert "10 % of the weight" in browser.js(f"{looked}.querySelector('p').textContent")
    browser.js(f"{looked}.querySelectorAll('.tiles button')[2].click()")
    assert browser.js(STATE % 0)["frame"] == 19
    assert browser.js("players[1].section.querySelector('.looked').hidden")
    seen = "[...players[%d].section.querySelectorAll('.moving')].filter((one) => one.offsetParent).length"
    assert browser.js(seen % 1) == 5 and browser.js(seen % 2) == 0  # nothing to play in a still
    assert "per second" not in browser.js("players[2].section.textContent")
    browser.js("document.querySelectorAll('.film button')[1].click()")
    assert browser.js(STATE % 0)["frame"] == 3
    assert browser.js("players[0].section.querySelectorAll('.film button[aria-current=\"true\"]').length") == 1
    browser.js("document.querySelector('.card [data-part=\"best\"]').click()")
    assert browser.js(STATE % 0)["frame"] == 10
    browser.js(SLIDE % 11)
    browser.js("document.querySelector('[data-part=\"show\"]').click()")
    assert browser.js(STATE % 0)["boxes"] == 0
    browser.js("document.querySelectorAll('[data-part=\"slider\"]')[1].focus()")
    browser.key("Home")
    assert browser.js(STATE % 1)["frame"] == 0 and browser.js(STATE % 0)["frame"] == 11
    browser.js("document.activeElement.blur()")
    browser.key(" ")
    deadline = time.monotonic() + 10
    while browser.js(STATE % 1)["frame"] < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert browser.js(STATE % 1)["frame"] == 3

    assert browser.js("document.querySelectorAll('section.video h2')[0].textContent") == HOSTILE
    assert browser.js("document.querySelectorAll('#overview tbody tr').length") == 4
    assert browser.js("getComputedStyle(document.querySelectorAll('.columns')[3]).display") == "none"
    assert browser.js("fetch('https://example.org').then(() => 1, () => 0)") is not None  # refused by the policy
    browser.js("document.title")
    refused = [c for c in browser.complaints if "Content Security Policy" in json.dumps(c)]
    assert refused and browser.complaints == refused
    assert not [url for url in browser.requests if not url.startswith(("file:", "data:"))]


@pytest.mark.timeout(120)
def test_labels_do_not_cover_each_other_and_dashes_tell_what_is_not_sure(browse):
    browser = browse()
    boxes = [[10, 10, 40, 30, 0.9, 2, 1], [10, 10, 40, 30, 0.4, 1, None], [10, 10, 41, 30, 0.8, 1, 2]]
    boxes += [[12, 10, 40, 30, None, 1, 3], [11, 11, 40, 31, 0.1, 1, 4], [11, 11, 40, 31, 0.05, 2, None]]
    browser.js(f"drawBoxes(players[0].overlay, players[0].video, {json.dumps(boxes)}, run.threshold)")
    labels = browser.js("[...players[0].overlay.querySelectorAll('.label')].map((label) => label.textContent)")
    assert labels == ["#1 malignant 0.90, benign 0.40", "#2 benign 0.80", "#3 benign", "#4 benign 0.10"]
    sides = "['x', 'y', 'width', 'height'].map((name) => Number(one.getAttribute(name)))"
    rectangles = browser.js(f"[...players[0].overlay.querySelectorAll('.label rect')].map((one) => {sides})")
    for number, (x, y, wide, high) in enumerate(rectangles):
        assert x >= 0 and y >= 0 and x + wide <= 64.01 and y + high <= 48.01
        for left, top, width, height in rectangles[:number]:
            assert x >= left + width or left >= x + wide or y >= top + height or top >= y + high
    edges = browser.js(
        "[...players[0].overlay.querySelectorAll('.edge')].map((one) => one.classList.contains('unsure'))"
    )
    assert edges[::-1] == [False, False, True, True]


@pytest.mark.timeout(120)
def test_a_picture_without_room_causes_no_complaint(browse):
    browser = browse()
    browser.js("document.querySelector('.screen').style.height = 0")  # as before the first picture is there
    browser.js(SLIDE % 3)
    assert browser.js(STATE % 0)["boxes"] == 0
    browser.js("document.querySelector('.screen').style.height = ''")
    browser.js(SLIDE % 3)
    assert browser.js(STATE % 0)["boxes"] == 1 and browser.complaints == []
    # From the run's threshold on boxes are drawn, with a lesion that was missed, until somebody moves the slider.
    boxes = [[10, 10, 30, 30, 0.297, 1, None], [34, 10, 50, 30, None, 1, 3], [51, 10, 60, 30, 0.295, 1, None]]
    browser.js(f"players[0].video.boxes[0] = {json.dumps(boxes)}")
    browser.js(SLIDE % 0)
    assert browser.js(STATE % 0)["boxes"] == 2
    line = "Number(players[0].section.querySelector('.chart .threshold').getAttribute('y1'))"
    assert browser.js(line) == pytest.approx(166 - (166 - 8) * 0.296)
    browser.js(
        "players[0].part('threshold').value = 0.4; players[0].part('threshold').dispatchEvent(new Event('input'))"
    )
    assert browser.js(STATE % 0)["boxes"] == 0 and browser.js(line) == pytest.approx(166 - (166 - 8) * 0.4)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_page_fits_screens(browse, width):
    browser = browse(width, 800)
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
    assert browser.js("document.documentElement.scrollWidth") <= width
    picture = browser.js("document.querySelector('.screen').getBoundingClientRect().width")
    assert picture >= min(0.85 * width - 20, 500)
    buttons = (
        "[...document.querySelectorAll('section.video')[0].querySelectorAll('.controls button, .looked .row button')]"
    )
    heights = browser.js(f"{buttons}.map((b) => b.offsetHeight)")
    assert len(heights) == 5 and min(heights) >= 40
    assert browser.complaints == []
