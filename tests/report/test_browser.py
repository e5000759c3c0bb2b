"""The page in a real browser: what a reader does with it, and what must not happen. Skipped where there is none."""

import re

import pytest

from budgetlm.records import append_record
from budgetlm.report import live
from budgetlm.report.page import page
from budgetlm.report.pictures import find_browser, sandbox, write_pictures
from tests.conftest import record
from tests.report.made import evil_facts, facts

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (`pip install playwright`)")
if not find_browser():
    pytest.skip("there is no Chromium here (`apt install chromium`)", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as player:
        found = player.chromium.launch(executable_path=find_browser(), args=sandbox())
        yield found
        found.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = tmp_path_factory.mktemp("page") / "page.html"
    made.write_text(page(facts(60)))
    return made


@pytest.fixture
def complaints():
    return []


@pytest.fixture
def open_page(browser, complaints):
    """Opens a page without a network; whatever its console says is a complaint."""
    opened = []

    def opener(path, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
        window = context.new_page()
        window.on("console", lambda message: complaints.append(message.text))
        window.on("pageerror", lambda error: complaints.append(str(error)))
        window.on(
            "request", lambda request: None if re.match("file:|data:|blob:", request.url) else complaints.append(request.url)
        )
        window.goto(path.as_uri())
        window.wait_for_selector("body[data-ready=yes]")
        opened.append(context)
        return window

    yield opener
    for context in opened:
        context.close()
    assert complaints == []


def column(window, key):
    place = window.evaluate(
        "key => [...document.querySelectorAll('table.trials thead th')].findIndex(th => th.dataset.key === key)", key
    )
    return window.evaluate(
        "place => [...document.querySelectorAll('table.trials tbody tr[data-trial]')].map(tr => tr.children[place].textContent)",
        place,
    )


@pytest.mark.parametrize("width", [390, 1280, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_at_any_width_without_a_network_and_without_complaints(open_page, path, width, scheme):
    window = open_page(path, width, scheme)
    assert window.query_selector("[data-failed]") is None
    drawn = {
        f.get_attribute("data-figure") for f in window.query_selector_all("figure:not([hidden])") if f.query_selector("svg")
    }
    assert drawn >= {
        "verdict",
        "spending",
        "timeline",
        "ladder",
        "history",
        "worth",
        "importances",
        "effects",
        "rate_by_batch",
    }
    assert drawn >= {"depth_by_width", "parallel", "compare", "oracle", "receipts", "final", "throughput"}
    assert "share of the device's ceiling" in window.text_content("#figure-throughput")
    assert window.evaluate("document.documentElement.scrollWidth") <= width


def test_trials_are_sorted_by_a_click_and_the_other_way_by_another(open_page, path):
    window = open_page(path)
    for way in (1, -1):
        window.click("th[data-key=bpb] button")
        losses = [float(text) for text in column(window, "bpb")]
        assert losses == sorted(losses, reverse=way < 0)
        assert len(set(losses)) > 1
    assert window.get_attribute("th[data-key=bpb]", "aria-sort") == "descending"


def test_trials_are_filtered_by_words_and_comparisons(open_page, path):
    window = open_page(path)
    window.fill("#trial-filter", "diverged")
    assert set(column(window, "state")) == {"diverged"}
    window.fill("#trial-filter", "width>=96 depth=2")
    assert column(window, "trial")
    assert all(int(width) >= 96 for width in column(window, "recipe.width"))
    assert set(column(window, "recipe.depth")) == {"2"}
    window.fill("#trial-filter", "nothing like it")
    assert "0 of 60" in window.inner_text("#trial-count")


def test_a_trial_opens_to_its_curves_rungs_cost_and_failure_by_keyboard_too(open_page, path):
    window = open_page(path)
    window.fill("#trial-filter", "trial 7")
    window.focus("tr[data-trial='7'] button.open")
    window.keyboard.press("Enter")
    said = window.inner_text("tr.details")
    assert "the loss stopped being finite" in said
    assert "Runs of trial 7" in said
    assert "train 14.1 s" in said
    assert len(window.query_selector_all("tr.details svg")) == 4
    assert window.get_attribute("tr[data-trial='7'] button.open", "aria-expanded") == "true"


def test_a_click_on_the_ladder_opens_the_trial(open_page, path):
    window = open_page(path)
    box = window.query_selector("#figure-ladder svg").bounding_box()
    window.evaluate("document.querySelector('#figure-ladder').scrollIntoView({behavior: 'instant'})")
    dots = window.evaluate(
        """() => { const d = document.querySelector('#figure-ladder .dots.chosen').getAttribute('d').match(/M([\\d.]+),([\\d.]+)/); return [+d[1], +d[2]]; }"""
    )
    box = window.query_selector("#figure-ladder svg").bounding_box()
    window.mouse.move(box["x"] + dots[0], box["y"] + dots[1])
    assert "trial" in window.inner_text("#tip")
    window.mouse.click(box["x"] + dots[0], box["y"] + dots[1])
    assert window.query_selector("tr.details") is not None


def test_brushing_an_axis_keeps_its_trials_in_the_table_and_on_the_ladder(open_page, path):
    window = open_page(path)
    window.evaluate("document.querySelector('#figure-parallel').scrollIntoView({behavior: 'instant', block: 'center'})")
    box = window.query_selector("g.brush[data-axis=depth] .overlay").bounding_box()
    x = box["x"] + box["width"] / 2
    window.mouse.move(x, box["y"] + 2)
    window.mouse.down()
    window.mouse.move(x, box["y"] + 0.2 * box["height"], steps=4)
    window.mouse.up()
    assert set(column(window, "recipe.depth")) == {"4"}
    assert "of 60 trials are kept" in window.inner_text("#figure-parallel")
    assert window.get_attribute("#figure-ladder .dots.dim", "d")
    window.click("#figure-parallel .count button")
    assert "60 of 60" in window.inner_text("#trial-count")


def test_selected_trials_are_overlaid_against_what_is_asked_for(open_page, path):
    window = open_page(path)
    for box in window.query_selector_all("table.trials tbody input")[:3]:
        box.check()
    assert len(window.query_selector_all("#figure-compare .legend li")) == 3
    assert len(window.query_selector_all("#figure-ladder .line.picked, #figure-ladder .line.chosen")) >= 3
    before = window.get_attribute("#figure-compare .line.curve0", "d")
    for across in ("tokens", "flops", "step"):
        window.select_option("[data-choice=across]", across)
        after = window.get_attribute("#figure-compare .line.curve0", "d")
        assert after
    window.select_option("[data-choice=key]", "gradient_norm")
    assert window.get_attribute("#figure-compare .line.curve0", "d") != before


def test_the_switch_turns_light_into_dark_and_back(open_page, path):
    window = open_page(path)
    back = "getComputedStyle(document.body).backgroundColor"
    light = window.evaluate(back)
    window.click("#theme")
    assert window.evaluate(back) != light
    window.click("#theme")
    assert window.evaluate(back) == light


def test_on_paper_it_is_light_without_what_can_be_clicked(open_page, path):
    window = open_page(path, scheme="dark")
    window.emulate_media(media="print")
    assert window.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for place in ("nav", "#theme", ".tools", ".filter"):
        assert window.evaluate("place => getComputedStyle(document.querySelector(place)).display", place) == "none"
    assert len(window.pdf()) > 10_000


def test_the_numbers_behind_a_figure_are_a_table(open_page, path):
    window = open_page(path)
    window.click("#figure-spending summary")
    assert "evaluate" in window.inner_text("#figure-spending table")


def test_names_that_are_scripts_show_as_text(open_page, tmp_path):
    made = tmp_path / "evil.html"
    made.write_text(page(evil_facts()))
    window = open_page(made)
    assert window.inner_text("h1") == '<script>alert("x")</script>'
    window.fill("#trial-filter", "trial 77")
    window.click("tr[data-trial='77'] button.open")
    assert '<script>alert("x")</script>' in window.inner_text("tr.details .error")
    assert window.evaluate("document.querySelectorAll('script').length") == 2
    window.wait_for_timeout(50)


def test_a_figure_that_fails_is_replaced_by_its_error(open_page, path):
    window = open_page(path)
    window.evaluate(
        "budgetlm.figures.spending.draw = () => { throw new Error('ours'); }; budgetlm.draw('spending'); budgetlm.draw('timeline');"
    )
    assert "This figure failed" in window.inner_text("#figure-spending")
    assert "ours" in window.inner_text("#figure-spending")
    assert len(window.query_selector_all("[data-failed]")) == 1


def test_the_page_obeys_no_script_that_is_not_its_own(browser, path, tmp_path):
    injected = tmp_path / "injected.html"
    injected.write_text(
        path.read_text().replace(
            "</body>", "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\"></body>"
        )
    )
    context = browser.new_context()
    window = context.new_page()
    window.goto(injected.as_uri())
    window.wait_for_selector("body[data-ready=yes]")
    assert window.title() == "tiny - budgetlm"
    context.close()


def test_a_live_page_follows_its_study_and_keeps_what_its_reader_was_at(browser, searched, monkeypatch, server):
    monkeypatch.setattr(live, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(live, "COST_SHARE", 0.0)
    context = browser.new_context()
    window = context.new_page()
    window.clock.install()
    window.goto(f"http://{live.HERE}:{server.server_address[1]}/")
    window.wait_for_selector("body[data-ready=yes]")
    window.fill("#trial-filter", "trial>=900")
    assert column(window, "trial") == []
    append_record(searched.folder, record(900, 0, 1.0, 1.5))
    window.clock.run_for(60_000)
    window.wait_for_selector("tr[data-trial='900']", timeout=180_000)
    assert window.input_value("#trial-filter") == "trial>=900"
    assert column(window, "trial") == ["900"]
    server.shutdown()
    server.server_close()
    window.clock.run_for(60_000)
    window.wait_for_selector("header .lost", timeout=180_000)
    assert "no longer live" in window.inner_text("header")
    context.close()


def test_figures_become_pictures(path, tmp_path, monkeypatch):
    import threading

    found = []
    worker = threading.Thread(target=lambda: found.extend(write_pictures(path, tmp_path)))  # a player is running in this one
    worker.start()
    worker.join()
    names = {p.name for p in found}
    assert {"ladder.png", "ladder.svg", "parallel.png"} <= names
    assert (tmp_path / "ladder.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "ladder.svg").read_text().startswith("<svg")
