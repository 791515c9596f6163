"""The page of a suite in a real browser: it loads, answers, leads somewhere, and can be used by everybody."""

import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import records
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from pocketrec import report
from pocketrec.report import statistics

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no chromium: apt-get install chromium")]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def built(suite, tmp_path_factory) -> Path:
    copy = shutil.copytree(suite, tmp_path_factory.mktemp("browser") / "quick")
    report.convert(copy, jobs=2, progress=False)
    return report.index(copy)


class Visit:
    """A page that notes what it asks for and what goes wrong."""

    def __init__(self, browser, path: Path, view: str = "", **context):
        self.page = browser.new_context(**context).new_page()
        self.asked, self.wrong = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.goto(f"{path.as_uri()}{view}")

    def texts(self, selector: str) -> list[str]:
        return [" ".join(text.split()) for text in self.page.locator(selector).all_text_contents()]

    def rows(self, column: int = 1) -> list[str]:
        return self.texts(f"#numbers tbody tr td:nth-child({column})")


@pytest.fixture
def visit(browser, built):
    opened = []

    def go(view: str = "", path: Path = built, **context) -> Visit:
        opened.append(Visit(browser, path, view, **context))
        return opened[-1]

    yield go
    for one in opened:
        assert one.wrong == []
        assert len(one.asked) == 1  # the page itself
        one.page.context.close()


def test_it_loads_without_error_or_request(visit):
    page = visit().page
    assert page.locator("#numbers tbody tr").count() == 10
    assert page.locator("#bytes-picture .point").count() == 9  # one cell is infeasible
    assert page.locator("#learning-picture .line").count() == 4


def test_sorting(visit, built):
    shown = visit("#dataset=planted")
    shown.page.locator("[data-sort=auc]").click()
    runs = report.summary(report.load_results(built.parent)).query("dataset == 'planted'").dropna(subset="auc")
    rising = runs.sort_values("auc")
    assert shown.rows()[:9] == rising["method"].tolist()
    assert shown.rows()[9] == "hashing"  # crashed: no number, so last
    shown.page.locator("[data-sort=auc]").click()
    assert shown.rows()[:9] == rising["method"].tolist()[::-1]
    assert shown.page.locator("th[aria-sort=descending]").inner_text().startswith("AUC")


def test_filtering(visit):
    shown = visit("#dataset=planted")
    shown.page.locator("#search").fill("robe 100×")
    assert (shown.rows(), shown.rows(2)) == (["robe"], ["100×"])
    shown.page.locator("#search").fill("crashed")
    assert shown.rows() == ["hashing"]
    shown.page.locator("#search").fill("")
    shown.page.locator("#methods label", has_text="robe").click()
    assert set(shown.rows()) == {"full", "hashing", "low_dim"}
    assert "robe" not in " ".join(shown.texts("#map-picture th"))
    shown.page.get_by_role("button", name="none").click()
    assert shown.rows() == []


@pytest.mark.parametrize(("megabytes", "milliseconds"), [("1", ""), ("", "0.35"), ("1", "0.35"), ("100", "")])
def test_the_budget_names_the_best_that_fits(visit, built, megabytes, milliseconds):
    shown = visit("#dataset=planted")
    shown.page.locator("#megabytes").fill(megabytes)
    shown.page.locator("#milliseconds").fill(milliseconds)
    cells = report.summary(report.load_results(built.parent)).query("dataset == 'planted'")
    fits = cells[cells["inference_bytes"] / 1e6 <= float(megabytes or "inf")]
    fits = fits[fits["latency_p99_ms"] <= float(milliseconds or "inf")]
    best = fits.loc[fits["validation_auc"].idxmax()]
    (ratio,) = statistics.ratios(best.to_frame().T)
    name = "full" if best["method"] == "full" else f"{best['method']} {ratio.rpartition(' ')[2]}"
    assert shown.page.locator("#answer b").inner_text() == name
    assert f"{best['auc']:.4f}" in shown.page.locator("#answer").inner_text()


def test_a_mean_over_the_seeds_that_survived_says_so(visit):
    shown = visit("#dataset=planted&search=robe")
    assert shown.rows()[1] == "robe" and "(2 of 3 seeds)" in shown.texts("#numbers tbody tr")[1]
    assert "seeds)" not in shown.texts("#numbers tbody tr")[0]


def test_the_best_stays_the_best_when_it_is_hidden(visit):
    shown = visit("#dataset=planted&without=robe")
    assert shown.page.locator("#numbers td.best").count() == 0


def test_what_was_never_timed_takes_no_room(visit, tmp_path):
    shown = visit(path=report.index(records.write(tmp_path, [records.quality("robe", "planted", 10, 0)])))
    assert not shown.page.locator("#latency").is_visible() and not shown.page.locator("#milliseconds").is_visible()
    assert shown.page.locator("#untimed").is_visible()
    assert not any("Latency" in head for head in shown.texts("#numbers th") + shown.texts("#metric option"))


def test_a_line_under_the_pointer_stands_out(visit):
    page = visit("#dataset=planted").page
    line, other = page.locator("#learning-picture .line").nth(0), page.locator("#learning-picture .line").nth(1)
    opacity = "(line) => getComputedStyle(line).opacity"
    assert (line.evaluate(opacity), other.evaluate(opacity)) == ("1", "1")
    line.locator("text").hover()
    assert (line.evaluate(opacity), float(other.evaluate(opacity)) < 0.5) == ("1", True)


def test_a_budget_that_nothing_meets(visit):
    shown = visit("#dataset=planted&megabytes=0.0001")
    assert (
        shown.page.locator("#answer").inner_text() == "Nothing of 9 finished configurations on planted fits 0.0001 MB."
    )


def test_a_view_can_be_sent(visit):
    first = visit()
    first.page.locator("#datasets label", has_text="planted").click()
    first.page.locator("#over").select_option("seconds")
    first.page.locator("#ratio").select_option("100")
    second = visit("#" + first.page.url.partition("#")[2])
    assert second.texts("figcaption") == first.texts("figcaption")
    assert " 100× climbs" in second.texts("#learning figcaption")[0]
    assert "Time in training (s)" in second.texts("#learning-picture text")


def test_every_point_leads_to_its_runs_by_keyboard(visit, built):
    page = visit("#dataset=planted").page
    page.locator("#bytes-picture .point[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    name = page.evaluate("document.activeElement.getAttribute('aria-label')").split(":")[0]
    page.keyboard.press("Enter")
    assert page.locator("#cell h3").inner_text().strip() == f"{name} on planted"
    links = page.locator("#cell a").evaluate_all("links => links.map((link) => link.href)")
    assert len(links) == 12  # notebook, record and log of three seeds and of the timed run
    assert all(Path(unquote(urlparse(link).path)).is_file() for link in links)
    page.keyboard.press("Escape")
    assert not page.locator("#cell").is_visible()


def test_all_runs_are_listed(visit):
    page = visit().page
    page.locator("summary", has_text="planted · robe").click()
    assert page.locator("details[open] tbody tr").count() == 12


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_accessible_and_no_wider_than_the_screen(visit, width, scheme):
    page = visit("#dataset=planted", viewport={"width": width, "height": 800}, color_scheme=scheme).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.locator("#bytes-picture .point").first.click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


OVERLAPS = """[...document.querySelectorAll("figure svg[role]")].flatMap((svg) => {
    const texts = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
    const aside = (p, q) => p.right - 1 <= q.left || q.right - 1 <= p.left;
    const over = (p, q) => p.bottom - 3 <= q.top || q.bottom - 3 <= p.top;
    return texts.flatMap(([a, p], i) =>
        texts.slice(i + 1).filter(([, q]) => !aside(p, q) && !over(p, q)).map(([b]) => `${a} / ${b}`));
})"""


@pytest.mark.parametrize("dataset", records.FULL)
@pytest.mark.parametrize("width", [360, 1280])
def test_labels_do_not_overlap(visit, width, dataset):
    page = visit(f"#dataset={dataset}", viewport={"width": width, "height": 800}).page
    assert page.locator("figure svg[role] text").count() > 20
    assert page.evaluate(OVERLAPS) == []


@pytest.mark.parametrize(
    "found",
    [
        [records.failed("oom", "MemoryError: <4 GB>", "robe", "planted", 10, 0)],
        [records.quality("robe", "planted", 10, 0)],
        [records.quality("full", "planted", 1, 0), records.timed("full", "planted", 1)],
    ],
    ids=["only a failure", "a single run", "only the full table"],
)
def test_little_to_show(visit, tmp_path, found):
    shown = visit(path=report.index(records.write(tmp_path, found)))
    assert len(shown.rows()) == 1
    assert Axe().run(shown.page).violations_count == 0


def test_published_scores_are_lines(visit, tmp_path, monkeypatch):
    monkeypatch.setattr("pocketrec.paths.PARAMS", tmp_path)
    (tmp_path / "published").mkdir()
    (tmp_path / "published/mine.yaml").write_text(
        "title: A grid\nsource: a paper\ndataset: planted\n"
        "budgets: [5]\nrows: 100\nmethods: {full: [0.8], robe: [0.71]}\n"
    )
    shown = visit(path=report.index(records.write(tmp_path / "mine", [records.quality("robe", "planted", 10, 0)])))
    assert "robe, published" in shown.texts("#learning-picture text")
    assert "full, published" not in shown.texts("#learning-picture text")  # it has not run


def test_only_a_search_so_far(visit, tmp_path):
    found = [records.quality("robe", "planted", 10, 0, kind="search", run="robe/planted/r10-search-table_lr0.1")]
    page = visit(path=report.index(records.write(tmp_path, found))).page
    assert "no training run has ended yet" in page.inner_text("main")
    assert not page.locator("#choose").is_visible()
    assert page.locator("summary").inner_text() == "planted · robe1 of 1 search done"


def test_times_of_two_machines_are_not_mixed(visit, tmp_path):
    found = [records.quality(method, "planted", 10, seed) for method in ("robe", "hashing") for seed in range(2)]
    timed = [records.timed(method, "planted", 10) for method in ("robe", "hashing")]
    timed[1]["environment"] = records.ENVIRONMENT | {"cpu": "Intel Xeon 8480"}
    page = visit(path=report.index(records.write(tmp_path, found + timed))).page
    assert page.locator("#latency-picture .point").count() == 1
    page.locator("#machine").select_option("Intel Xeon 8480, 2 cores, 23.4 GB")
    assert "hashing" in page.locator("#latency-picture .point").get_attribute("aria-label")


def test_five_thousand_records_stay_usable(visit, tmp_path):
    methods = ["robe", "hashing", "low_dim", "tt_rec", "mlet", "cce", "cafe", "dhe", "dpq", "pss"]
    ratios = [10 * 1.15**power for power in range(50)]
    found = [records.quality(m, "planted", r, s) for m in methods for r in ratios for s in range(10)]
    page = visit(path=report.index(records.write(tmp_path, found, notebooks=False))).page
    spent = page.evaluate("() => { const start = performance.now(); show(); return performance.now() - start; }")
    assert page.locator("#numbers tbody tr").count() == 500
    assert spent < 3000  # milliseconds for a choice; 300 on an idle core


def test_an_executed_notebook_asks_for_nothing(visit, built):
    page = visit(path=built.parent / "runs/robe/planted/r10-s0/run.html").page
    assert "step 100" in page.inner_text("main")
