"""The page of a report: in a browser, as a reader uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ccfnet_tf.evaluation.evaluation import Evaluation
from ccfnet_tf.evaluation.read_image_table import read_rows
from ccfnet_tf.report.gallery import LAYERS, SORTINGS, gallery
from ccfnet_tf.report.read_evaluation_json import Evaluated
from ccfnet_tf.report.run_report import report_page
from tests.report.browser import Browser
from tests.report.conftest import HOSTILE, IMAGES, TAXONOMY, Drawn, load, samples, write_evaluated

STATE = """(() => {
  const stage = document.getElementById("stage");
  return {
    at: getComputedStyle(stage).getPropertyValue("--at"),
    clip: getComputedStyle(stage.querySelector("img.left")).clipPath,
    name: document.getElementById("name").textContent,
    left: document.getElementById("left-layer").value,
    right: document.getElementById("right-layer").value,
    shown: stage.querySelector("img.right").src,
    pressed: [...document.querySelectorAll("#strip [aria-pressed=true]")].map(b => b.value),
    film: [...document.querySelectorAll("#film button")].map(b => b.title),
  };
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, evaluation: Evaluation) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_evaluated(folder, evaluation)
    rows = read_rows(folder / "images.csv")
    entries = gallery(Drawn(), zip(samples(), rows, strict=True), load, TAXONOMY)
    evaluated = Evaluated.read(folder / "evaluation.json")
    text = report_page(
        evaluated, TAXONOMY, title=HOSTILE, run=folder, entries=entries, images=len(rows)
    )
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    browser.look(width=1200)
    browser.open(page)
    return browser


def state(browser: Browser) -> dict[str, Any]:
    return dict(browser.run(STATE))


def test_nothing_is_complained_of_and_nothing_is_asked_for(opened: Browser, page: Path) -> None:
    opened.run("new Promise(done => setTimeout(done, 300))")
    assert opened.complaints == []
    assert opened.requests == [page.as_uri()]


def test_the_policy_stops_other_scripts_and_requests(opened: Browser, page: Path) -> None:
    opened.run(
        """(() => {
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script, Object.assign(new Image(), {src: "http://127.0.0.1:9/x"}));
          return new Promise(done => setTimeout(done, 300));
        })()"""
    )
    assert opened.run("window.ran") is None
    assert len(opened.complaints) == 2
    assert all("Content Security Policy" in each for each in opened.complaints)


def test_names_are_shown_as_they_are(opened: Browser) -> None:
    text = opened.run("document.body.innerText")
    for name in TAXONOMY.names:
        assert name in text
    assert opened.run("document.querySelector('h1').textContent") == HOSTILE
    assert set(state(opened)["film"]) == set(IMAGES)
    assert opened.run("document.querySelectorAll('img[src=x]').length") == 0


def test_all_layers_of_all_images_have_sizes(opened: Browser) -> None:
    found = opened.run(
        """Promise.all(JSON.parse(document.getElementById("data").textContent).images.map(
          image => Promise.all(image.layers.map(async source => {
            const picture = Object.assign(new Image(), {src: source});
            await picture.decode();
            return [picture.naturalWidth === image.width, picture.naturalHeight === image.height];
          }))))"""
    )
    assert [len(layers) for layers in found] == [len(LAYERS)] * len(IMAGES)
    assert all(fits for layers in found for sizes in layers for fits in sizes)
    box = opened.run(
        "(() => {const b = document.getElementById('stage').getBoundingClientRect();"
        "return [b.width, b.height]})()"
    )
    assert min(box) > 100


def test_the_line_follows_the_mouse(opened: Browser) -> None:
    assert state(opened)["at"] == "50%"
    left, top, width, height = opened.run(
        "(() => {const stage = document.getElementById('stage');"
        "stage.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const b = stage.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]})()"
    )
    middle = top + height / 2
    opened.drag((left + width / 2, middle), (left + width / 4, middle))
    found = state(opened)
    assert found["at"] in ("24%", "25%", "26%")
    assert found["at"][:-1] in found["clip"] or str(100 - int(found["at"][:-1])) in found["clip"]


def test_keys_move_the_line_and_change_image_and_layers(opened: Browser) -> None:
    opened.run("document.getElementById('wipe').focus()")
    before = state(opened)
    opened.press("ArrowLeft", "ArrowLeft")
    assert state(opened)["at"] == "48%"
    opened.press("ArrowRight", "ArrowRight")
    opened.press("ArrowRight", "ArrowRight")
    assert state(opened)["at"] == "52%"
    opened.press("ArrowDown", "ArrowDown")
    assert state(opened)["name"] == before["film"][1]
    opened.press("ArrowUp", "ArrowUp")
    assert state(opened)["name"] == before["film"][0]
    opened.press("6", "Digit6")
    opened.press("@", "Digit2", shift=True)
    found = state(opened)
    assert (found["left"], found["right"]) == ("label", "risk")
    assert found["pressed"] == ["risk"]
    assert found["shown"] != before["shown"]
    ring = opened.run("getComputedStyle(document.getElementById('stage')).outlineStyle")
    assert ring == "solid"


def test_a_click_chooses_layer_and_image(opened: Browser) -> None:
    opened.run("document.querySelector('#strip button[value=errors]').click()")
    opened.run("document.querySelectorAll('#film button')[2].click()")
    found = state(opened)
    assert found["right"] == "errors"
    assert found["name"] == found["film"][2]


def test_every_sorting_has_its_order(opened: Browser, page: Path) -> None:
    rows = read_rows(page.parent / "images.csv")
    orders = []
    for name, (_, key) in SORTINGS.items():
        opened.run(f"document.querySelector('input[name=order][value={name}]').click()")
        expected = [row.name for row in sorted(rows, key=lambda row: -key(row))]
        assert state(opened)["film"] == expected
        orders.append(expected)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("width", [390, 1400])
def test_no_page_is_wider_than_its_window(opened: Browser, width: int) -> None:
    opened.look(width=width)
    assert opened.run("document.documentElement.scrollWidth") <= width


def test_names_of_rows_are_not_cut_on_a_narrow_page(opened: Browser) -> None:
    opened.look(width=390)
    cut = opened.run(
        "[...document.querySelectorAll('tbody th')].filter(th => th.scrollWidth > th.clientWidth)"
        ".map(th => th.textContent)"
    )
    assert cut == []
    widths = opened.run("[...document.querySelectorAll('tbody th')].map(th => th.clientWidth)")
    assert max(widths) < 200


def test_dark_and_light_differ_and_paper_shows_layers(opened: Browser) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    opened.look(width=1200, dark=True)
    dark = opened.run(colour)
    opened.look(width=1200)
    assert dark != opened.run(colour) == "rgb(255, 255, 255)"
    shown = "getComputedStyle(document.getElementById('{}')).display"
    assert opened.run(shown.format("paper")) == "none"
    opened.look(width=800, media="print")
    assert opened.run(shown.format("paper")) == "block"
    assert opened.run(shown.format("view")) == "none"
    images = opened.run("document.querySelectorAll('#paper img').length")
    assert images == len(IMAGES) * len(LAYERS)


def test_figures_alone_make_a_page_without_a_script(
    browser: Browser, page: Path, tmp_path: Path
) -> None:
    evaluated = Evaluated.read(page.parent / "evaluation.json")
    path = tmp_path / "figures.html"
    path.write_text(report_page(evaluated, TAXONOMY, title="figures"), encoding="utf-8")
    browser.open(path)
    assert browser.complaints == []
    text = browser.run("document.body.innerText")
    assert "shows no images" in text
    assert browser.run("document.scripts.length") == 0


def test_the_page_says_what_evaluation_json_says(opened: Browser, page: Path) -> None:
    tree = json.loads((page.parent / "evaluation.json").read_text())
    tiles = opened.run("[...document.querySelectorAll('.tiles b')].map(b => b.textContent)")
    assert tiles[0] == f"{100 * tree['refine']['pixel_accuracy']:.1f}\u00a0%"
    cells = opened.run(
        "[...document.querySelectorAll('.matrix tbody tr')].map(r => r.cells[1].title)"
    )
    count = tree["refine"]["confusion"][0][0]
    assert cells[0].endswith(f"{count:,} pixels")
