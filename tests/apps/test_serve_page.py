"""The page in a real browser: drawn in, dropped on, spoken to. What it complains of in its console is a failure."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.apps.bundles import mood_bundle
from tests.apps.paper_bundles import STROKES, ear, eye, reader
from tests.browser import Browser
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for make in (eye, ear, reader):
        make(folder / make.__name__)
    for name, hertz in (("low", 300), ("high", 1800)):
        soundfile.write(folder / f"{name}.wav", 0.5 * np.sin(2 * np.pi * hertz * np.arange(16000) / 16000), 16000)
        soundfile.write(folder / f"{name}.flac", 0.5 * np.sin(2 * np.pi * hertz * np.arange(16000) / 16000), 16000)
    return folder


@contextmanager
def served(*bundles: Path) -> Iterator[str]:
    """The address of a server as on another machine: with a token."""
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mst_edge",
            "app",
            "serve",
            *map(str, bundles),
            "--build",
            "all",
            "--port",
            "0",
            "--host",
            "0.0.0.0",
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        line = next(line for line in process.stdout if line.startswith("open "))
        yield line.split()[1]
        process.terminate()


@pytest.fixture(scope="module")
def url(folder):
    with served(*(folder / name for name in ("ear", "eye", "reader"))) as url:
        yield url


@pytest.fixture(scope="module")
def browser(folder, tmp_path_factory):
    voice = f"--use-file-for-fake-audio-capture={folder / 'high.wav'}"
    flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", voice]
    with Browser(tmp_path_factory.mktemp("profile"), flags) as browser:
        yield browser


@pytest.fixture
def page(browser, url):
    browser.problems.clear()
    browser.screen(1100, 900)
    browser.call("Page.navigate", url="about:blank")
    browser.open(url)
    yield browser
    assert browser.problems == []


def _answers(page, count: int = 1) -> list[str]:
    """Labels of the builds side by side, once the history is that long."""
    page.until(f"document.querySelectorAll('#history li').length === {count}")
    assert page.ask("document.getElementById('problem').hidden"), page.ask(
        "document.getElementById('problem').innerText"
    )
    return page.ask("[...document.querySelectorAll('.said b')].map(e => e.textContent)")


def _draw(page, label: str) -> None:
    x, y = page.middle("#pad")
    for stroke in STROKES[label]:
        page.drag([(x - 100 + 200 * across, y - 100 + 200 * down) for across, down in stroke])


def test_the_token_leaves_the_address_bar_and_lasts_for_a_reload(page, url):
    assert "#token=" in url
    assert "token" not in page.ask("location.href")
    page.call("Page.reload")
    page.ready()
    assert page.ask("document.getElementById('summary').textContent") == "6 builds side by side"


def test_a_sound_that_is_dropped_is_shown_and_answered_by_both_builds(page, folder):
    page.drop("#drop", folder / "low.wav")
    assert _answers(page) == ["low", "low"]
    assert page.ask("document.getElementById('agreement').textContent") == "all agree"
    heads = page.ask("[...document.querySelectorAll('.build h3')].map(e => e.textContent)")
    assert heads == ["audio_on_paper: a-fp32", "audio_on_paper: b-int8"]
    assert "gate passed" in page.ask("document.querySelector('.facts').textContent")
    # The spectrogram: brightest where the tone is.
    row = page.ask(
        """(() => {
            const canvas = document.querySelector('.bands'), middle = canvas.width >> 1;
            const pixels = canvas.getContext('2d').getImageData(middle, 0, 1, canvas.height).data;
            const bright = Array.from({length: canvas.height}, (_, y) => pixels[4 * y] + pixels[4 * y + 1]);
            return 1 - bright.indexOf(Math.max(...bright)) / (canvas.height - 1);
        })()"""
    )
    assert row * 4000 == pytest.approx(300, abs=60)
    timing = page.ask("document.getElementById('timing').textContent")
    assert re.fullmatch(r"low\.wav: inference [\d.]+ ms, in the server [\d.]+ ms, there and back [\d.]+ ms", timing)


def test_what_the_browser_can_decode_is_heard(page, folder):
    page.choose("#file", folder / "low.flac")
    assert _answers(page) == ["low", "low"]


def test_a_voice_is_recorded(page):
    page.click("#record")
    page.until("document.getElementById('record-text').textContent === 'Stop'")
    page.until("document.getElementById('level').value > 0.1")
    page.ask("new Promise(done => setTimeout(done, 1200))")
    page.click("#record")
    assert _answers(page) == ["high", "high"]


@pytest.mark.parametrize("label", STROKES)
def test_a_digit_that_is_drawn_grows_bars(page, label):
    page.click("[data-kind=image]")
    _draw(page, label)
    page.until("document.querySelectorAll('.said b')[1].textContent === " + repr(label))
    assert page.ask("document.querySelectorAll('.build .bars li').length") == 2 * len(STROKES)
    page.until("document.querySelector('.best .fill').getBoundingClientRect().width > 100")
    assert page.ask("document.querySelector('.picture canvas').width") == 28


def test_a_text_that_is_typed_is_answered(page):
    page.click("[data-kind=text]")
    page.click("#text")
    page.call("Input.insertText", text="we need water")
    page.click("#say button")
    assert _answers(page) == ["needs help", "needs help"]
    assert page.ask("document.querySelectorAll('.tokens li').length") == len(" we need water")


def test_a_number_on_an_ordinal_scale_is_shown_with_its_class(page, tmp_path):
    with served(mood_bundle(tmp_path)) as url:
        page.open(url)
        page.click("#text")
        page.call("Input.insertText", text="great")
        page.click("#say button")
        assert _answers(page) == ["2.25"]
        assert page.ask("document.querySelector('.said span').textContent") == "class 2"
        assert page.ask("document.querySelector('.build td + td').textContent") == "2.2500 stars"
        assert page.ask("document.querySelector('.scale .best').textContent") == "2"
        # A quarter of the way from the middle of the box of 2 to that of 3, of seven boxes.
        assert float(page.ask("document.querySelector('.needle').style.left")[:-1]) == pytest.approx(100 * 5.75 / 7)
        assert "sentiment 2.250" in page.ask("document.querySelector('#history .labels').textContent")


def test_history_brings_an_answer_back(page, folder):
    for count, name in enumerate(("low", "high"), start=1):
        page.drop("#drop", folder / f"{name}.wav")
        assert _answers(page, count) == [name, name]
    page.click("#history li:last-child button")
    assert _answers(page, 2) == ["low", "low"]
    page.click("#forget")
    assert page.ask("document.getElementById('past').hidden")


def test_what_is_wrong_is_told_on_the_page(page, folder):
    (folder / "bad.wav").write_bytes(b"RIFF and nothing else")
    page.drop("#drop", folder / "bad.wav")
    page.until("!document.getElementById('problem').hidden")
    assert "not a RIFF wave file" in page.ask("document.getElementById('problem').textContent")
    page.drop("#drop", folder / "low.wav")
    assert _answers(page) == ["low", "low"]
    page.problems.clear()  # the browser logs every answer of status 422


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_in_its_width(page, folder, scheme):
    page.screen(360, 740, scheme)
    page.drop("#drop", folder / "low.wav")
    _answers(page)
    for kind in ("audio", "image", "text"):
        page.click(f"[data-kind={kind}]")
        assert page.ask("document.documentElement.scrollWidth <= innerWidth")
    ink, paper = (
        sum(map(int, re.findall(r"\d+", page.ask(f"getComputedStyle(document.body).{name}"))[:3]))
        for name in ("color", "backgroundColor")
    )
    assert (ink < paper) == (scheme == "light")


def test_every_control_has_a_name_and_keys_reach_it(page):
    for kind in ("audio", "image", "text"):
        page.click(f"[data-kind={kind}]")
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        controls = [
            node
            for node in nodes
            if not node["ignored"] and node["role"]["value"] in ("button", "textbox", "checkbox", "image", "meter")
        ]
        assert len(controls) >= 4
        assert [node for node in controls if not node["name"]["value"]] == []
