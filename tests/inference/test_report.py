"""The page stands alone, says what was found, and works in a browser."""

import re
import shutil
from html import unescape

import numpy as np
import pytest
import xarray as xr

import quincunx as qx
from quincunx.cli import main, report
from quincunx.inference.report import html, plots
from quincunx.inference.report.page import _weights
from tests.inference.test_compare import with_posterior
from tests.scenarios import SCHOOLS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def pages(schools, tmp_path_factory):
    """Pages of a fit and of a comparison, with what they are made from."""
    folder = tmp_path_factory.mktemp("pages")
    fresh = schools.posterior.copy(deep=True)
    fresh.attrs.pop("explanation", None)  # as before it was ever saved
    right = with_posterior(schools, fresh)
    half = schools.posterior.copy(deep=True)
    half["mu"].values[:] = 0.5 * half["mu"].values - 4.0
    wrong = with_posterior(schools, half)
    compared = qx.compare({"nuts": right, "<wrong>": wrong}, reference="nuts")
    compared.save(folder / "compared.nc")
    schools.save(folder / "fit.nc")
    return folder, schools.report(folder / "fit.html"), compared.report(folder / "compared.html")


def test_a_fit_has_its_parts(pages, schools):
    text = pages[1].read_text("utf-8")
    for part in ("The model, as compiled", "Parameters", "Plots", "Costs", "To make it again"):
        assert f"<h2>{part}</h2>" in text
    assert "eight_schools by nuts" in text
    assert f'class="verdict {schools.verdict.status}"' in text
    assert text.count("<img") == 5
    assert "theta[A]" in text
    assert "data plate" in text
    assert "jaxlib" in text
    for name, value in (("num warmup", 500), ("num samples", 500), ("num chains", 4)):
        assert f'<th scope="row">{name}</th><td class="text">{value}</td>' in text
    assert '<th scope="row">init</th><td class="text">left to the method</td>' in text
    for reason in schools.verdict.reasons:
        assert reason.split("'")[0] in text


def test_nothing_is_fetched(pages):
    for page in pages[1:]:
        text = page.read_text("utf-8")
        assert not re.search(r"""(?:src|href)=["'](?!data:)""", text)
        assert not re.search(r"@import|url\(", text)
        assert page.stat().st_size < 3e6


def test_a_comparison_names_what_is_wrong(pages):
    text = pages[2].read_text("utf-8")
    assert "&lt;wrong&gt;" in text
    assert "<wrong>" not in text
    assert "The mean of &#x27;mu&#x27; is off" in text
    assert "blind to the weights" in text
    assert text.count("differs") >= 1
    for column in ("ESS bulk", "mean error", "KSD p", "ESS / second"):
        assert re.search(f'<th scope="col" title="[a-z][^"]+">{column}</th>', text)
        assert f'<tr><th scope="row">{column}</th>' in text


@pytest.fixture
def without_plots(monkeypatch):
    monkeypatch.setattr(plots, "of_chains", lambda *_: [])


def test_a_saved_comparison_has_the_model_as_compiled(pages, tmp_path, without_plots):
    again = qx.Comparison.load(pages[0] / "compared.nc")
    assert again.fits["nuts"].density is None
    text = again.report(tmp_path / "again.html").read_text("utf-8")
    assert "eight_schools: methods side by side" in text
    assert "<h2>The model, as compiled</h2>" in text


def test_a_printed_comparison_fits_the_terminal(pages, capsys, monkeypatch):
    compared = qx.Comparison.load(pages[0] / "compared.nc")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    report.show(compared)
    text = capsys.readouterr().out
    assert "<wrong>: The mean of 'mu' is off" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, plain.splitlines())) <= 80


def test_methods_that_are_not_drawn_are_named(schools, tmp_path, without_plots):
    lost = schools.posterior.copy(deep=True)
    lost["mu"].values[1, 3] = np.nan
    compared = qx.compare({"right": schools, "lost": with_posterior(schools, lost)})
    text = html_text(compared.report(tmp_path / "page.html"))
    assert "lost is not drawn: its draws of 'mu' are not all finite." in text
    text = html_text(compared.fits["lost"].report(tmp_path / "fit.html"))
    assert "Some draws of 'mu' are not finite: their figures mean nothing, and they are not" in text


def html_text(page):
    return unescape(page.read_text("utf-8"))


def test_parameters_are_picked_by_their_names(schools):
    matrix = schools.posterior["theta"].values.reshape(4, 500, 2, 4)
    variables = {
        "a": (("chain", "draw", "i", "j"), matrix),
        "b[0]": (("chain", "draw"), matrix[..., 1, 2]),
    }
    fit = with_posterior(schools, xr.Dataset(variables, attrs=schools.posterior.attrs))
    tree = plots.some(fit, ["b[0]", "a[0, 3]", "a[1, 2]"], 100)
    np.testing.assert_array_equal(tree["posterior"]["a[0, 3]"], matrix[:, ::5, 0, 3])
    np.testing.assert_array_equal(tree["posterior"]["a[1, 2]"], matrix[:, ::5, 1, 2])
    np.testing.assert_array_equal(tree["posterior"]["b[0]"], matrix[:, ::5, 1, 2])


def test_the_evidence_has_its_digits(schools):
    density = qx.compile(schools.density.program.model, SCHOOLS)
    z = np.random.default_rng(0).normal(size=(400, density.dim))
    weights = np.random.default_rng(1).normal(size=400) * 0.1 - 1523.47
    fit = qx.Fit.weighted(density, z, weights, method=schools.method, costs={})
    fit.tree["posterior"].attrs["kind"] = "WEIGHTED"
    value, error = fit.log_evidence
    assert f'<td class="text">{value:.2f} ± {error:.1g}</td>' in _weights(fit)
    assert value < -1520


@pytest.mark.slow
def test_the_command_line_makes_the_same_pages(pages, capsys):
    folder = pages[0]
    for name in ("fit", "compared"):
        target = folder / f"{name}_again.html"
        assert main(["report", str(folder / f"{name}.nc"), "--html", str(target)]) == 0
        again = target.read_text("utf-8")
        assert "The model, as compiled" in again
        table = re.compile(r"<table.*?</table>", re.DOTALL)
        made = (folder / f"{name}.html").read_text("utf-8")
        assert table.findall(again)[:2] == table.findall(made)[:2]
    assert "written" in capsys.readouterr().out


def test_comparing_from_the_command_line(tmp_path, capsys):
    page = tmp_path / "out.html"
    words = ["compare", "eight_schools", "--methods", "elliptical_slice", "--html", str(page)]
    short = ["--num-warmup", "200", "--num-samples", "100", "--quiet"]
    assert main([*words, *short, "--reference", "eight_schools"]) == 0
    out = capsys.readouterr().out
    assert "elliptical_slice" in out
    assert page.exists()
    assert main(["compare", "eight_schools", "--methods", "nots"]) == 2
    assert main(["compare", "eight_schools", "--html", str(tmp_path / "x.txt")]) == 2
    assert main(["report", str(tmp_path / "none.nc")]) == 2
    (tmp_path / "damaged.nc").write_text("no fit")
    assert main(["report", str(tmp_path / "damaged.nc")]) == 2
    assert "damaged.nc' cannot be read" in capsys.readouterr().err


def test_another_suffix_is_refused(schools, tmp_path):
    with pytest.raises(qx.QuincunxError, match=r"\.html"):
        schools.report(tmp_path / "fit.pdf")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, where there is one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, page, width, **options):
    """A page from disk, with everything that its console says and all that it asks for."""
    tab = browser.new_page(viewport={"width": width, "height": 900}, **options)
    told, asked = [], []
    tab.on("console", lambda message: told.append(message.text))
    tab.on("pageerror", lambda error: told.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    return tab, told, [url for url in asked if not url.startswith("data:")]


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("index", [1, 2], ids=["fit", "comparison"])
def test_it_opens_without_errors_and_fits_the_screen(browser, pages, index, width):
    tab, told, asked = opened(browser, pages[index], width)
    assert told == []
    assert asked == [pages[index].as_uri()]
    sizes = tab.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth])")
    assert len(sizes) >= 5
    assert all(complete and natural > 100 for complete, natural in sizes)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    hidden = (
        "[...document.querySelectorAll('p, li, h1, h2')].filter(e => e.scrollWidth > innerWidth)"
    )
    assert tab.evaluate(f"{hidden}.length") == 0
    size = tab.evaluate("parseFloat(getComputedStyle(document.querySelector('p')).fontSize)")
    assert size >= 14
    tab.close()


def test_a_table_is_sorted_by_its_headings(browser, pages):
    tab, told, _ = opened(browser, pages[1], 1400)
    table = tab.locator("section", has=tab.get_by_role("heading", name="Parameters")).locator(
        "table"
    )
    heading = table.get_by_role("button", name="ess_bulk", exact=True)
    column = table.locator("thead th").all_text_contents().index("ess_bulk")
    read = f"(t) => [...t.tBodies[0].rows].map(r => Number(r.cells[{column}].dataset.value))"
    before = table.evaluate(read)
    heading.click()
    up = table.evaluate(read)
    heading.click()
    down = table.evaluate(read)
    assert up == sorted(before)
    assert down == sorted(before, reverse=True)
    assert up != before
    assert table.locator('th[aria-sort="descending"]').count() == 1
    assert told == []
    tab.close()


def test_infinities_are_sorted_as_numbers_and_missing_figures_last(browser, tmp_path):
    values = [3.0, float("inf"), float("nan"), -float("inf"), 12_000.0, 0.5, -2e-9]
    rows = [[html.Cell(f"row {index}"), html.number(value)] for index, value in enumerate(values)]
    page = tmp_path / "table.html"
    page.write_text(html.page("Sorted", html.table(["name", "value"], rows)), "utf-8")
    tab, told, _ = opened(browser, page, 1400)
    table, read = (
        tab.locator("table"),
        "(t) => [...t.tBodies[0].rows].map(r => r.cells[1].innerText)",
    )
    heading = table.get_by_role("button", name="value", exact=True)
    heading.click()
    assert table.evaluate(read) == ["-inf", "-2e-09", "0.5", "3", "12,000", "inf", "n/a"]
    heading.click()
    assert table.evaluate(read) == ["inf", "12,000", "3", "0.5", "-2e-09", "-inf", "n/a"]
    table.get_by_role("button", name="name", exact=True).click()
    assert table.evaluate(read)[0] == "3"
    assert told == []
    tab.close()


def test_it_reads_without_scripts_and_in_print(browser, pages):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(pages[2].as_uri())
    text = tab.inner_text("body")
    assert "The mean of 'mu' is off" in text
    assert "ESS bulk" in text
    context.close()
    tab, _, _ = opened(browser, pages[2], 1400)
    tab.emulate_media(media="print")
    assert len(tab.pdf()) > 20_000
    assert tab.evaluate("getComputedStyle(document.querySelector('.wide')).overflowX") == "visible"
    tab.close()


def test_wide_plots_can_be_read_on_a_phone(browser, pages):
    tab, _, _ = opened(browser, pages[1], 360)
    widths = tab.evaluate("[...document.images].map(i => i.getBoundingClientRect().width)")
    assert np.min(widths) > 500
    tab.close()
