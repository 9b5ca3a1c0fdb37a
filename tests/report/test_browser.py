"""The report in a real Chromium, as readers use it: by pointer, by keyboard, on a phone, in the dark, on paper."""

import base64
import os
import shutil
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from tests.report.made_up import page

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
    "--force-device-scale-factor=1",
    "--window-size=1280,900",
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        if os.environ.get("CI") == "true":
            pytest.fail("chromium and chromedriver are missing, which .ci/run installs")
        pytest.skip("no chromium and chromedriver here; apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="session")
def file(folders, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(*folders, images=4))
    return path


@pytest.fixture
def opened(browser, file):
    """The report, freshly opened at the width of a desktop and as the system's theme is light."""
    emulate(browser, 1280, 900, "light")
    browser.get(file.as_uri())
    browser.execute_script("localStorage.clear()")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(file.as_uri())
    return browser


def emulate(browser, width, height, theme):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    asked = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in asked.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def one(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def rows(browser):
    """The heads of the rows that are seen."""
    shown = browser.find_elements(By.CSS_SELECTOR, "#table tbody tr")
    return [row.find_element(By.TAG_NAME, "th").text.replace("\n", ", ") for row in shown if row.is_displayed()]


def test_it_renders_without_an_error_and_asks_for_nothing(opened):
    assert one(opened, "h1").text == "MLP, MLPN, CNN-AN"
    assert opened.get_log("browser") == []
    log = [entry["message"] for entry in opened.get_log("performance")]
    asked = [m for m in log if '"Network.requestWillBeSent"' in m and '"url":"data:' not in m]
    assert len(asked) == 1  # the page itself
    assert "report.html" in asked[0]
    broken = "return [...document.images].filter((image) => !image.complete || !image.naturalWidth).length"
    assert opened.execute_script(broken) == 0
    charts = opened.find_elements(By.CSS_SELECTOR, ".plot > svg")
    assert len(charts) == 3 + 4 + 3 + 2  # eps, corruptions, training, and sigma of two noisy networks
    assert all(chart.size["width"] > 250 and chart.size["height"] > 150 for chart in charts)


def test_the_table_filters_by_words_state_and_run(opened):
    assert rows(opened) == ["MLP, mnist-5k, 2 seeds", "MLPN, mnist-5k", "CNN-AN, mnist-5k"]
    one(opened, "#filter").send_keys("cnn")
    assert rows(opened) == ["CNN-AN, mnist-5k"]
    assert one(opened, "#count").text == "1 of 9 rows"
    one(opened, "#filter").send_keys(Keys.CONTROL + "a", Keys.DELETE)
    Select(one(opened, "#state")).select_by_visible_text("vote")
    assert rows(opened) == ["MLPN, mnist-5k", "CNN-AN, mnist-5k"]
    Select(one(opened, "#state")).select_by_visible_text("as deployed")
    one(opened, "#each").click()
    assert rows(opened) == [
        "MLP, mnist-5k, 2 seeds",
        "seed 0, MLP",
        "seed 1, MLP",
        "MLPN, mnist-5k",
        "CNN-AN, mnist-5k",
    ]


def test_the_table_sorts_by_a_figure_and_by_name(opened):
    def figures(column):
        cells = opened.find_elements(By.CSS_SELECTOR, f"#table tbody tr:not([hidden]) > :nth-child({column})")
        return [float(cell.get_attribute("data-value")) for cell in cells]

    head = one(opened, "#table thead th:nth-child(3)")
    button = head.find_element(By.TAG_NAME, "button")
    before = figures(3)
    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert figures(3) == sorted(before, reverse=True)
    button.send_keys(Keys.ENTER)  # by keyboard
    assert head.get_attribute("aria-sort") == "ascending"
    assert figures(3) == sorted(before)
    one(opened, "#table thead th:nth-child(1) button").click()
    assert head.get_attribute("aria-sort") == "none"
    assert [row.partition(",")[0] for row in rows(opened)] == ["CNN-AN", "MLP", "MLPN"]


def test_a_warning_leads_from_its_figure_to_its_sentence(opened):
    mark = next(m for m in opened.find_elements(By.CSS_SELECTOR, "#table a.doubt") if m.is_displayed())
    target = mark.get_attribute("href").partition("#")[2]
    mark.click()
    assert opened.execute_script("return document.querySelector(':target').id") == target
    assert one(opened, f"#{target}").is_displayed()


def test_a_chart_tells_its_values_to_the_pointer(opened):
    plot = one(opened, "#eps .plot")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", plot)
    tip = plot.find_element(By.CSS_SELECTOR, ".tip")
    assert not tip.is_displayed()
    ActionChains(opened).move_to_element_with_offset(plot, plot.size["width"] // 2 - 25, 0).perform()
    assert tip.is_displayed()
    told = tip.text.splitlines()
    table = opened.execute_script(
        "const r = [...arguments[0].closest('.chart').querySelectorAll('tbody tr')].at(-1);"
        "return [...r.cells].map((cell) => cell.textContent)",
        plot,
    )
    assert told[0] == table[0] == "50/255"
    assert all(value in tip.text for value in table[1:])
    ActionChains(opened).move_to_element(one(opened, "#eps h2")).perform()
    assert not tip.is_displayed()


def test_a_chart_tells_its_values_to_the_keyboard_and_aloud(opened):
    plot = one(opened, "#training .plot")
    opened.execute_script("arguments[0].focus()", plot)
    tip = plot.find_element(By.CSS_SELECTOR, ".tip")
    for key, head in ((Keys.ARROW_RIGHT, "epoch 1"), (Keys.ARROW_RIGHT, "epoch 2"), (Keys.END, "epoch 3")):
        plot.send_keys(key)
        assert tip.text.splitlines()[0] == head
        assert one(opened, "#live").get_attribute("textContent").startswith(f"{head}, MLP 0.")
    plot.send_keys(Keys.ARROW_LEFT)
    assert tip.text.splitlines()[0] == "epoch 2"
    plot.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()


def test_a_legend_hides_a_line_in_every_chart_of_its_panel(opened):
    key = one(opened, '#training .key[data-name="MLPN"]')
    key.send_keys(Keys.SPACE)
    assert key.get_attribute("aria-pressed") == "false"
    shown = opened.find_elements(By.CSS_SELECTOR, '#training .series[data-name="MLPN"]')
    assert len(shown) == 3
    assert not any(line.is_displayed() for line in shown)
    elsewhere = opened.find_elements(By.CSS_SELECTOR, '#corruptions .series[data-name="MLPN"] .line')
    assert all(line.is_displayed() for line in elsewhere)


def test_examples_and_pairs_are_chosen(opened):
    for section, count in (("examples", 3), ("comparison", 3)):
        choices = opened.find_elements(By.CSS_SELECTOR, f"#{section} .choice")
        assert [choice.is_displayed() for choice in choices] == [True] + [False] * (count - 1)
        Select(one(opened, f"#{section} .chooser")).select_by_index(2)
        assert [choice.is_displayed() for choice in choices] == [False] * (count - 1) + [True]


def test_everything_that_acts_is_reached_by_tab_and_has_a_name(opened):
    seen = []
    for _ in range(200):
        ActionChains(opened).send_keys(Keys.TAB).perform()
        seen.append(
            opened.execute_script(
                "const e = document.activeElement; return e === document.body ? null :"
                "[e.tagName + '.' + e.className + '#' + e.id,"
                " e.ariaLabel || e.textContent.trim() || e.closest('label')?.textContent, e.checkVisibility()]"
            )
        )
        if seen[-1] is None:
            break
    reached = [entry[0] for entry in seen if entry]
    assert reached[0] == "A.skip#"
    assert all(name and visible for _, name, visible in filter(None, seen))
    for wanted in ("BUTTON.#theme", "INPUT.#filter", "SELECT.#state", "INPUT.#each", "DIV.plot#", "SUMMARY.#"):
        assert wanted in reached
    assert sum(entry == "DIV.plot#" for entry in reached) == 12


def luminance(colour):
    """Relative luminance, WCAG 2.1."""
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 :].rstrip(")").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def colour(browser, selector, name):
    return browser.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, name
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_lines_are_readable_in_both_themes(opened, theme):
    emulate(opened, 1280, 900, theme)
    page_colour = colour(opened, "body", "backgroundColor")
    assert (luminance(page_colour) > 0.5) == (theme == "light")
    for selector in ("body", ".caption", "small", ".doubt", "nav a", "#table thead button", ".lead a"):
        assert contrast(colour(opened, selector, "color"), page_colour) >= 4.5, selector
    assert contrast(colour(opened, ".plot .tick", "fill"), page_colour) >= 4.5
    for number in range(1, 8):
        probe = (
            "const e = document.body.appendChild(document.createElement('i')); e.className = 'line c' + arguments[0];"
        )
        line = opened.execute_script(probe + "return getComputedStyle(e).stroke", number)
        assert contrast(line, page_colour) >= 3, number


def test_the_switch_goes_against_the_system_and_is_remembered(opened):
    light = colour(opened, "body", "backgroundColor")
    button = one(opened, "#theme")
    button.click()
    assert button.text == "Theme: light"
    button.send_keys(Keys.ENTER)
    assert button.text == "Theme: dark"
    dark = colour(opened, "body", "backgroundColor")
    assert luminance(dark) < 0.1 < luminance(light)
    opened.refresh()
    assert colour(opened, "body", "backgroundColor") == dark
    one(opened, "#theme").click()
    assert colour(opened, "body", "backgroundColor") == light


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_needs_no_scrolling_sideways_and_reads_text_of_nine_pixels(opened, width):
    emulate(opened, width, 800, "light")
    assert opened.execute_script("return document.documentElement.scrollWidth") == width
    scale = opened.execute_script(
        "const s = document.querySelector('.plot > svg');"
        "return s.getBoundingClientRect().width / s.viewBox.baseVal.width"
    )
    assert 11.5 * scale >= 9
    for plot in opened.find_elements(By.CSS_SELECTOR, "#eps .plot"):
        plot.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        inside = (
            "const [p, t] = [arguments[0], arguments[0].querySelector('.tip')].map((e) => e.getBoundingClientRect());"
        )
        inside += "return t.width > 50 && p.left <= t.left && t.right <= p.right + 0.5"
        assert opened.execute_script(inside, plot)
    for section in ("accuracy", "eps", "examples", "runs"):
        box = opened.execute_script(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect(); return [b.left, b.right]",
            f"#{section}",
        )
        assert 0 <= box[0] < box[1] <= width


def test_it_prints(opened):
    pdf = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"])
    assert pdf.startswith(b"%PDF")
    emulate(opened, 717, 1000, "light")  # A4 less its margins
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        root = "document.documentElement"
        assert opened.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
        for hidden in ("nav", "#theme", ".controls"):
            assert not one(opened, hidden).is_displayed()
        for shown in ("#accuracy", ".plot > svg", "#runs .command"):
            assert one(opened, shown).is_displayed()
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_without_script_all_is_there(browser, file):
    emulate(browser, 1280, 900, "light")
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(file.as_uri())
        assert len(rows(browser)) == 9
        assert all(choice.is_displayed() for choice in browser.find_elements(By.CSS_SELECTOR, ".choice"))
        one(browser, "#training summary").click()
        assert one(browser, "#training .figures td").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_names_from_runs_do_nothing(browser, tmp_path):
    from tests.report.made_up import make_run

    name = "<img src=x onerror=alert(1)>"
    path = tmp_path / "report.html"
    path.write_text(
        page(make_run(tmp_path / name, change=lambda s: s["model"].update(name="<script>alert(2)<_script>")))
    )
    browser.get_log("browser")
    browser.get(path.as_uri())  # an alert would end the next command with an error
    assert one(browser, "h1").text == "<script>alert(2)<_script>"
    assert name in one(browser, "#runs summary").text
    assert browser.get_log("browser") == []


def test_a_grid_of_thirty_runs_opens_within_a_second(browser, grid):
    """In processor time of the page's main thread: the machine may be busy with other things."""
    emulate(browser, 1280, 900, "light")
    browser.get("about:blank")
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    browser.get(grid.as_uri())
    assert len(rows(browser)) == 10
    spent = {m["name"]: m["value"] for m in browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]}
    browser.execute_cdp_cmd("Performance.disable", {})
    assert 0 < spent["TaskDuration"] < 1
