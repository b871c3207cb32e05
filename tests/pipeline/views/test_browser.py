"""The page in a real browser: headless Chromium, if it is installed (Debian: `apt-get install chromium`)."""

import threading
import time

import numpy as np
import pytest

from convnextpose.camera import Intrinsics
from pipeline.labels import person_bgr
from pipeline.status import RunStatus
from pipeline.streams import Pipeline
from pipeline.types import Frame, PosedFrame
from pipeline.views.base import Endpoint
from pipeline.views.web import WebView
from tests.pipeline.test_draw import standing
from tests.pipeline.test_streams import Pictures, stream
from tests.pipeline.views.browser import BINARY, Browser
from tests.pipeline.views.client import Client, port_of, web

pytestmark = pytest.mark.skipif(BINARY is None, reason="no Chromium here: apt-get install chromium")

SHOWN = "Number(document.querySelector('.card')?.dataset.index ?? -1)"


DRAWN = "[...document.querySelectorAll('.picture canvas, #space canvas')].map(canvas => canvas.toDataURL())"

ORANGE = """(() => {
    const canvas = document.querySelector('.picture canvas');
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let count = 0;
    for (let i = 0; i < data.length; i += 4)
        count += data[i] > 230 && data[i + 1] > 130 && data[i + 1] < 180 && data[i + 2] < 100;
    return count;
})()"""


COUNTS = """(canvas, colours) => {
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const data = copy.getImageData(0, 0, canvas.width, canvas.height).data;
    const counts = new Map(colours.map((colour) => [colour.join(), 0]));
    for (let i = 0; i < data.length; i += 4) {
        const colour = `${data[i]},${data[i + 1]},${data[i + 2]}`;
        if (counts.has(colour)) counts.set(colour, counts.get(colour) + 1);
    }
    return [...counts.values()];
}"""
"""Counts the pixels of a canvas with each of these colours."""


class Run:
    """A live run of a walking blob with a page, until it is closed."""

    def __init__(self, port=0, sources=("walk",)):
        streams = [stream(Pictures(100_000, name, live=True, pause_s=0.03)) for name in sources]
        self.view = WebView(Endpoint("127.0.0.1", port), RunStatus(streams))
        self.pipeline = Pipeline(streams, views=[self.view])
        self.thread = threading.Thread(target=self.pipeline.run)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pipeline.stop()
        self.thread.join(20)
        assert not self.thread.is_alive() and self.pipeline.view_threads[0].error is None


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def tab(browser):
    opened = []

    def open_tab(run, **options):
        opened.append(browser.tab(run.view.address, **options))
        return opened[-1]

    yield open_tab
    for each in opened:
        assert not each.complaints, each.complaints
        each.close()


def moves_on(tab, since, by=3):
    return tab.wait(f"{SHOWN} >= {since + by} && {SHOWN}")


def test_it_opens_and_shows_moving_poses_with_their_numbers(tab):
    with Run() as run:
        page = tab(run)
        moves_on(page, 0)
        page.run(f"window.before = {DRAWN}")
        page.wait(f"{DRAWN}.every((drawn, number) => drawn !== before[number])")
        assert page.run(ORANGE) > 50, "the right side's bones are orange"
        page.wait("/in\\s*\\d+\\.\\d/.test(document.querySelector('#numbers').innerText)")
        text = page.run("document.body.innerText")
        for words in ("walk", "connected", "depth is a guess", "received", "infer", "frames/s", "since its arrival"):
            assert words in text
        assert page.run("document.querySelector('.card .state').innerText") == run.pipeline.streams[0].states[-1].state
        page.wait("document.querySelectorAll('.stale').length === 0")  # a busy machine may fall behind for a moment


def test_it_comes_back_after_a_restart_and_greys_what_is_stale_until_then(tab):
    with Run() as run:
        page, port = tab(run), port_of(run.view)
        moves_on(page, 20)
    page.wait("document.querySelector('#link').className === 'bad' && document.querySelectorAll('.card .stale').length === 1")
    assert "old" in page.run("document.querySelector('.badges').innerText")
    page.complaints.clear()  # the browser reports the unreachable server on its console
    with Run(port):
        page.wait("document.querySelector('#link').className === 'good'")
        page.wait(f"{SHOWN} < 20 && document.querySelectorAll('.stale').length === 0")
        moves_on(page, page.run(SHOWN))
    page.wait("document.querySelector('#link').className === 'bad'")
    page.complaints.clear()


def others_move_on(run, frames=10):
    """Another client, with no screen; returns the newest frame that it saw."""
    with Client(run.view) as client:
        for _ in range(frames):
            newest = client.frames()[-1]["index"]
            client.say("ack")
    return newest


def test_a_paused_page_stands_still_and_goes_on_with_the_newest(tab):
    with Run() as run:
        page = tab(run)
        moves_on(page, 0)
        page.press(" ")
        page.wait("document.querySelector('.badges').innerText.includes('paused')")
        time.sleep(0.5)  # for frames in transit
        still, newest = page.run(SHOWN), others_move_on(run)
        assert page.run(SHOWN) == still < newest and page.run("document.querySelectorAll('.stale').length") == 0
        page.press(" ")
        assert moves_on(page, still, 1) >= newest
        page.press(" ")
        page.wait("document.querySelector('.badges').innerText.includes('paused')")
    page.wait("document.querySelectorAll('.card .stale').length === 1")  # paused, but its run has ended
    page.complaints.clear()


def test_frigate_6038_a_hidden_page_takes_nothing_and_goes_on_with_the_newest(tab, browser):
    with Run() as run:
        page = tab(run)
        moves_on(page, 0)
        front = browser.tab()  # hides the other
        page.wait("document.hidden")
        time.sleep(0.5)
        still, newest = page.run(SHOWN), others_move_on(run)
        assert page.run(SHOWN) == still < newest
        front.close()
        page.show()
        page.wait(f"{SHOWN} > {still}")
        assert moves_on(page, still, 1) >= newest


def test_several_people_have_colours_and_labels_apart_and_room_in_the_3d_view(browser):
    camera = Intrinsics(320, 320, 160, 120)
    places = [(-600, 0, 4000), (-590, 0, 4001), (-580, 0, 4002), (3000, 0, 9000), (-3000, 0, 9000)]
    people = tuple(standing(at_mm=at, camera=camera, track_id=track_id) for track_id, at in enumerate(places))
    picture = np.full((240, 320, 3), 128, np.uint8)
    colours = [list(person_bgr(track_id)[::-1]) for track_id in range(len(people))]
    with web() as view:
        view.show(PosedFrame(Frame(picture, "walk.mp4", 0, 0.0), people, camera))
        page = browser.tab(view.address)
        page.wait(f"{SHOWN} === 0")
        for canvas in (".picture canvas", "#space canvas"):
            counts = page.run(f"({COUNTS})(document.querySelector('{canvas}'), {colours})")
            assert min(counts) > 150, "a label's background without its text"
        assert "farther away" not in page.run("document.querySelector('#scale').innerText")
        far = (*people, standing(at_mm=(-60_000, 0, 9000), camera=camera, track_id=5))
        view.show(PosedFrame(Frame(picture, "walk.mp4", 1, 0.1), far, camera))
        page.wait("document.querySelector('#scale').innerText.includes('farther away')")
        assert not page.complaints
        page.close()


def test_keys_choose_turn_and_change_the_theme(tab):
    with Run(sources=("a", "b")) as run:
        page = tab(run)
        page.wait("document.querySelectorAll('.card[data-index]').length === 2")
        page.press("2")
        page.wait("document.querySelector('#numbers h2').innerText === 'b'")
        assert page.run("[...document.querySelectorAll('.card')].map(card => card.ariaCurrent).join()") == "false,true"
        page.press(" ")
        before = page.run("document.querySelector('#space canvas').toDataURL()")
        page.press("ArrowLeft")
        assert page.run("document.querySelector('#space canvas').toDataURL()") != before
        page.press("0")
        light = page.run("getComputedStyle(document.body).backgroundColor")
        page.press("t")
        page.press("t")
        assert page.run("document.documentElement.dataset.theme") == "dark"
        assert page.run("getComputedStyle(document.body).backgroundColor") != light
        page.press("t")
        assert page.run("getComputedStyle(document.body).backgroundColor") == light


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone(tab, theme):
    with Run(sources=("a camera with quite a long name", "b", "c")) as run:
        page = tab(run, width=390, height=844, scale=2, mobile=True, theme=theme)
        page.wait("document.querySelectorAll('.card[data-index]').length === 3")
        page.wait("document.querySelector('#numbers table') !== null")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        dark = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128")
        assert dark is (theme == "dark")
