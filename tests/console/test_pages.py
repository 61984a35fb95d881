"""Every page of the program in a real browser: nothing is loaded, all is drawn, nothing is wider than a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from eagle3cli.cli.main import main
from eagle3cli.console.chart import DARK, LIGHT
from eagle3cli.console.tokens import Style, html
from eagle3cli.data.inspect.show import Piece, RowView, View
from eagle3cli.runs.session import write_report
from eagle3cli.runtime.report import Silent
from tests.browser import Browser, started
from tests.commands.test_report import make_bench, make_chain
from tests.runs.made import make_run

BOXES = "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect()).map(r => [r.width, r.height])"
NOT_DRAWN = (
    "[...document.querySelectorAll('polyline, circle, rect')].filter(s => !(s.points && s.points.length == 1))"
    ".filter(s => s.getBoundingClientRect().width <= 0).length"
)
WIDE = (
    "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && "
    "e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5).map(e => e.outerHTML.slice(0, 99))"
)
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
STROKES = "[...new Set([...document.querySelectorAll('polyline')].map(p => getComputedStyle(p).stroke))]"
TALL = "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of every kind, by name."""
    folder = tmp_path_factory.mktemp("pages")
    long_value = {"data": {"train_path": "a/very/long/" + "path/" * 40 + "train.jsonl"}}
    run = make_run(folder / "run", **long_value)
    write_report(run, Silent())
    write_report(make_run(folder / "begun", steps=10), Silent())
    made = [run / "report.html", folder / "begun" / "report.html", folder / "all.html"]
    chain, bench = make_chain(folder / "chain", unfinished="bench"), make_bench(folder / "results.jsonl")
    other = make_run(folder / "another run with a long name of many words", speed=700.0)
    assert main(["report", str(chain)]) == main(["report", str(bench)]) == 0
    assert main(["report", str(run), str(other), str(bench), str(chain), "--output-path", str(made[2])]) == 0
    made += [chain / "report.html", bench.with_suffix(".html")]
    return dict(zip(("train", "begun", "comparison", "chain", "bench"), made, strict=True))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("profile")) as found:
        yield found


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("name", ["train", "begun", "comparison", "chain", "bench"])
def test_a_page_is_whole_by_itself(pages: dict[str, Path], browser: Browser, name: str, width: int, dark: bool) -> None:
    browser.open(pages[name], width=width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].as_uri()]
    boxes = browser.ask(BOXES)
    assert len(boxes) >= 4
    assert all(250 < wide <= width and high > 25 for wide, high in boxes)
    assert browser.ask(NOT_DRAWN) == 0
    assert browser.ask(OVERFLOW) <= 0
    assert browser.ask(WIDE) == []
    assert min(browser.ask(TALL)) > 9.5
    colours = DARK if dark else LIGHT
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == rgb(colours["page"])
    assert browser.ask("getComputedStyle(document.body).color") == rgb(colours["ink"])
    strokes = browser.ask(STROKES)
    assert strokes
    assert set(strokes) <= {rgb(colours[f"c{i}"]) for i in range(1, 9)}


def test_the_pointer_reads_a_chart(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["train"], width=1200)
    point = (
        "(s => { const r = s.getBoundingClientRect(); s.dispatchEvent(new PointerEvent('pointermove', "
        "{clientX: r.right - 15, clientY: r.top + 80})); return s.nextSibling.textContent; })"
        "(document.querySelector('svg[data-x]'))"
    )
    told = browser.ask(point)
    assert told.startswith("400: k = 1 1.")
    assert told.count("k = ") == 4
    best = float(told.rsplit(" ", 1)[1])
    assert best == pytest.approx(1 + 1.2 * (1 - 2.718281828**-2), abs=0.01)


def test_without_its_script_a_page_is_whole_too(pages: dict[str, Path], browser: Browser) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(pages["train"], width=360)
        assert browser.driver.find_elements("css selector", ".read") == []
        assert len(browser.driver.find_elements("css selector", "svg polyline")) == 27
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_of_eagle3_view_is_whole_by_itself(browser: Browser, tmp_path: Path, dark: bool) -> None:
    text = "A word, <script>alert(1)</script> and " + "averylongwordwithoutanyblank" * 8
    pieces = tuple(Piece((i,), word + " ", i > 3, i != 5, "user") for i, word in enumerate(text.split() * 9))
    page = tmp_path / "rows.html"
    page.write_text(html(View("a/path/" * 30, 9, (RowView(1, "a", 1, 9, 5, False, 1, pieces),)), Style()))
    browser.open(page, width=360, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.ask(OVERFLOW) <= 0
    colour = browser.ask("getComputedStyle(document.querySelector('.t')).color")
    assert colour == ("rgb(95, 215, 132)" if dark else "rgb(23, 125, 47)")
