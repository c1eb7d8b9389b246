"""The page in a real browser (Debian's Chromium, headless): nothing breaks, nothing is fetched, everything fits."""

import json
import shutil
from pathlib import Path

import pytest

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here")

WIDTHS = (1280, 400)
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def index(reported, tmp_path_factory):
    """A report whose only file is the page, so that nothing can come from beside it."""
    return Path(shutil.copy(reported[2][0], tmp_path_factory.mktemp("alone")))


@pytest.fixture(scope="module")
def browser(index, tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.set_script_timeout(60)
        driver.get_log("performance")  # what the empty start page did
        driver.get(index.as_uri())
        yield driver
    finally:
        driver.quit()


def resize(browser, width):
    """The viewport, which a window's size is not; returns after plots have followed it."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_async_script("setTimeout(arguments[0], 800)")


def run(browser, script, *arguments):
    return browser.execute_script(script, *arguments)


def test_nothing_is_fetched_and_nothing_is_complained_of(browser, index):
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    fetched = [url for url in urls if not url.startswith(("data:", "blob:", "chrome:", "chrome-untrusted:"))]
    assert fetched == [index.as_uri()]
    assert browser.get_log("browser") == []


def fold(browser, opened):
    """Opens or closes all that is folded up; returns when every plot in sight is drawn."""
    run(browser, "document.querySelectorAll('details').forEach((each) => { each.open = arguments[0] })", opened)
    script = """const done = arguments[0]; const look = () => [...document.querySelectorAll(".plot")].every(
        (plot) => plot.closest("details:not([open])") || plot.querySelector(".main-svg")) ? setTimeout(done, 300) : setTimeout(look, 50);
        setTimeout(look, 50)"""
    browser.execute_async_script(script)


def test_what_is_folded_is_drawn_when_it_is_opened(browser):
    script = (
        "return [...document.querySelectorAll('.plot')].map((plot) => plot.querySelectorAll('.main-svg').length > 0)"
    )
    assert 0 < sum(run(browser, script)) < len(run(browser, script))
    fold(browser, True)
    assert all(run(browser, script))


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_everything_fits(browser, width, opened):
    resize(browser, width)
    fold(browser, opened)
    page = run(browser, "const e = document.documentElement; return [innerWidth, e.clientWidth, e.scrollWidth]")
    assert page[0] == width and page[2] <= page[1]
    script = """return [...document.querySelectorAll("figure, .plot, .plot .main-svg, .picture img")].map(
        (e) => { const box = e.getBoundingClientRect(); return [e.id || e.alt || e.className, box.width, box.height] })"""
    sizes = [size for size in run(browser, script) if opened or size[1]]  # what is folded has no size
    assert len(sizes) > (50 if opened else 25)
    assert all(across > 100 and down > 50 for _, across, down in sizes), sizes
    spilt = """return [...document.querySelectorAll("main *")].filter((e) => !e.closest("svg, .scroll, .picture, pre, nav")
        && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 200))"""
    assert run(browser, spilt) == []
    fonts = run(
        browser,
        """return [...document.querySelectorAll("body *")].filter((e) => e.childNodes.length
        && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && e.closest("svg") === null
        && !["SCRIPT", "STYLE", "NOSCRIPT"].includes(e.tagName)).map((e) => parseFloat(getComputedStyle(e).fontSize))""",
    )
    assert min(fonts) >= 10


@pytest.mark.parametrize("width", WIDTHS)
def test_the_contents_stay_in_sight(browser, width):
    resize(browser, width)
    run(browser, "scrollTo({top: 4000, behavior: 'instant'})")
    box = run(
        browser, "const b = document.querySelector('nav').getBoundingClientRect(); return [b.top, b.bottom, b.right]"
    )
    assert abs(box[0]) < 1 and box[1] > 30 and box[2] <= width
    assert run(browser, "return scrollY") > 3000
    run(browser, "scrollTo({top: 0, behavior: 'instant'})")


def test_names_of_rows_stay_in_sight_on_a_narrow_screen(browser):
    resize(browser, 400)
    fold(browser, True)
    script = """return [...document.querySelectorAll("table.named")].map((table) => {
        const box = table.closest(".scroll"); box.scrollLeft = 10000; const edge = box.getBoundingClientRect().left;
        const rows = [...table.rows].filter((row) => row.cells[1]?.matches(".word"));
        const spans = rows.map((row) => [...row.cells].slice(0, 3).map((cell) => cell.getBoundingClientRect()));
        return [table.closest("figure").id, box.scrollLeft, rows.length, box.clientWidth, spans.map(
            ([a, b, c]) => [a.left - edge, b.left - a.right, b.right - edge])] })"""
    found = {name: rest for name, *rest in run(browser, script)}
    assert {"table3-table", "speakers-table", "recall-table", "tests-models-table", "runs-table"} <= set(found)
    for name, (scrolled, rows, across, places) in found.items():
        assert rows > 2 and (scrolled > 0 or name == "counts-table"), name
        for left, gap, right in places:
            assert abs(left) < 2 and abs(gap) < 1 and right < 0.55 * across, name


def test_pictures_are_decoded(browser):
    sizes = run(browser, "return [...document.images].map((i) => [i.complete, i.naturalWidth])")
    assert len(sizes) == 2 and all(complete and across > 100 for complete, across in sizes)


def test_points_can_be_hovered(browser):
    resize(browser, 1280)
    script = """const plot = document.querySelector("#fig4-rounds .plot");
        Plotly.Fx.hover(plot, [{curveNumber: plot.data.findIndex((t) => t.text), pointNumber: 3}]);
        return plot.querySelector(".hoverlayer").textContent"""
    text = run(browser, script)
    assert "nature, mean" in text and "round 16: " in text and " %" in text


def visible(browser, figure):
    script = """return [...document.querySelectorAll(`#${arguments[0]} .plot`)].flatMap((plot) =>
        plot.data.filter((t) => t.visible === true).map((t) => `${t.meta.model}/${t.meta.curve}`))"""
    return set(run(browser, script, figure))


def click(browser, selector):
    run(browser, "document.querySelector(arguments[0]).click()", selector)


def test_curves_can_be_chosen_by_model_and_run(browser):
    models = ("nature", "AT-FGSM", "AT-PGD", "AT-DeepFool")
    mean = "mean over seeds"
    assert visible(browser, "fig5-conditions") == {f"{model}/{mean}" for model in models}
    click(browser, '#fig4-rounds [data-model="AT-PGD"]')
    click(browser, '#fig4-rounds [data-curve="seed 1"]')
    kept = [model for model in models if model != "AT-PGD"]
    expected = {f"{model}/{curve}" for model in kept for curve in (mean, "seed 1")}
    assert visible(browser, "fig4-rounds") == visible(browser, "fig5-conditions") == expected
    assert visible(browser, "budget-curves") == {f"{model}/" for model in kept}
    click(browser, '#speakers-strip [data-model="AT-PGD"]')
    click(browser, '#fig5-conditions [data-curve="seed 1"]')
    assert visible(browser, "fig5-conditions") == {f"{model}/{mean}" for model in models}


def column(browser, table, place):
    script = "return [...document.querySelectorAll(`#${arguments[0]} tbody tr:not([hidden])`)].map((r) => r.cells[%d].textContent)"
    return run(browser, script % place, table)


def test_tables_are_sorted_by_a_click_and_back_by_a_second(browser):
    before = column(browser, "matrix-adversarial-table", 2)
    values = [float(text.split(" ±")[0]) for text in before]
    click(browser, "#matrix-adversarial-table th:nth-child(3) button")
    after = [float(text.split(" ±")[0]) for text in column(browser, "matrix-adversarial-table", 2)]
    assert after == sorted(values) != values
    click(browser, "#matrix-adversarial-table th:nth-child(3) button")
    after = [float(text.split(" ±")[0]) for text in column(browser, "matrix-adversarial-table", 2)]
    assert after == sorted(values, reverse=True)
    assert run(browser, "return document.querySelectorAll('[aria-sort=descending]').length") == 1


def test_what_is_missing_is_sorted_last_either_way(browser):
    place = 1 + run(
        browser,
        """return [...document.querySelectorAll("#matrix-adversarial-table th")].findIndex(
        (head) => head.textContent === "AutoAttack")""",
    )
    for _ in range(2):
        click(browser, f"#matrix-adversarial-table th:nth-child({place}) button")
        shown = column(browser, "matrix-adversarial-table", place - 1)
        assert shown[1:] == ["–"] * 3 and shown[0] != "–"


def test_rows_are_filtered_by_words(browser):
    script = """const box = document.querySelector("#tests-defence-table input.filter");
        box.value = arguments[0]; box.dispatchEvent(new Event("input"))"""
    run(browser, script, "at-pgd DeepFool oblivious")
    assert set(column(browser, "tests-defence-table", 0)) == {"AT-PGD, DeepFool"}
    assert column(browser, "tests-defence-table", 1) == ["with, oblivious", "with, adaptive"]
    run(browser, script, "")
    assert len(column(browser, "tests-defence-table", 1)) > 40


COLOURS = """const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => { const [r, g, b] = channels(colour); return 0.3 * r + 0.59 * g + 0.11 * b };
    const grounds = (e) => { for (; e; e = e.parentElement) { const found = getComputedStyle(e).backgroundColor;
        const parts = channels(found); if (parts.length < 4 || parts[3] > 0.5) return light(found) } return light("0,0,0") };
    return [...document.querySelectorAll("h1, h2, p, li, td, th, dt, dd, figcaption, summary, a, .plot text")]
        .filter((e) => e.getClientRects().length && e.textContent.trim() && !e.closest(".hoverlayer"))
        .map((e) => [e.tagName, Math.abs(light(getComputedStyle(e)[e.matches("text") ? "fill" : "color"]) - grounds(e))])"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_and_its_charts_follow_the_colour_scheme(browser, scheme):
    """Every text is seen on its ground, and what is black in the charts by day is not by night."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.execute_async_script("setTimeout(arguments[0], 1500)")
    ground = run(browser, "return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 28)"}[scheme]
    contrasts = run(browser, COLOURS)
    assert len(contrasts) > 500 and {"text", "TD", "LI"} <= {tag for tag, _ in contrasts}
    assert min(contrast for _, contrast in contrasts) > 60
    nature = run(browser, "return document.querySelector('#fig4-rounds .plot').data[1].line.color")
    assert nature == {"light": "#333333", "dark": "#d9dce0"}[scheme]


def test_no_error_came_up_meanwhile(browser):
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
