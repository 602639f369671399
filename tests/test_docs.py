"""The docs site and the reports: built from a small site made here, then looked at in a headless browser."""
import html
import json
import re
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import build_docs
import write_readme
from check_links import check_site

from cellinterp.data.escape import clean_html
from cellinterp.explain.pages import plain
from cellinterp.runs import outputs, pandoc, report

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAoAAAAKCAIAAAACUFjqAAAAEUlEQVR42mNgGAWjYBQMPQAAAxgAAWn9bVUAAAAASUVORK5CYII="
BIB = "@misc{darwin1859,\n  author = {Darwin, Charles},\n  title = {On the origin of species},\n  year = {1859},\n}\n"
CONFIG = """project: {type: website}
bibliography: references.bib
website:
  title: small
  sidebar:
    contents:
      - index.ipynb
      - section: Laws
        contents: [laws/demo.ipynb]
"""

INDEX = """# A small site
> with everything in it

Species change [@darwin1859]; see @fig-dot, @eq-law and [the demo](laws/demo.ipynb#api-margin). `margin(z)` is exported, `x @ y` is code.

## Words {#words}

$$f = z_{29}\\,(z_{17}^2 + z_{21}^2) - e^{e^{z_3}}$$ {#eq-law}

| a very long heading of a column | another very long heading of a column | and a third one that is long |
|---|---|---|
| antidisestablishmentarianism | pneumonoultramicroscopic | hippopotomonstrosesquippedaliophobia |

::: {.callout-warning title="Take care"}
Cells are alive.
:::

```python
a_line_of_code = that_is(much, wider, than, the, screen, of, any, phone, that, a, reader, could, be, holding, in, one, hand, today)
```

![A dot](dot.png){#fig-dot}
"""

EXPORT = '''#| export
def margin(z, scale: float = 1.0):
    """The margin of a law, |z| * scale.

    Parameters
    ----------
    z : ndarray
        The factors, (N, n_factors) in units of a_b.
    scale : float
        What it is multiplied by.

    Returns
    -------
    ndarray
        (N,)
    """
    return abs(z) * scale'''


def demo():
    image = new_output("display_data", data={"image/png": PIXEL, "text/plain": "<Figure>"})
    table = new_output(
        "execute_result",
        data={
            "text/html": (
                '<table border="1" class="dataframe"><tr>'
                + "<td>123456789</td>" * 40
                + "</tr></table><script>bad()</script>"
            )
        },
    )
    bar = new_output("stream", name="stderr", text="  1%|\r 50%|\r100%|##| \x1b[32mdone\x1b[0m\n")
    return new_notebook(
        cells=[
            new_markdown_cell("# Demo of `laws`\n> one module\n\nThe word quokka stands here only."),
            new_code_cell("#| default_exp laws.demo"),
            new_code_cell("#| hide\nsecret_cell = 1"),
            new_code_cell("#| export\nimport numpy as np"),
            new_code_cell(EXPORT),
            new_code_cell("assert margin(-1) == 1"),
            new_code_cell("#| echo: false\nunseen_code()", outputs=[table]),
            new_markdown_cell("## Pictures\n\nAs in @fig-plot."),
            new_code_cell("#| label: fig-plot\n#| fig-cap: A plot of $x$\nplot()", outputs=[image, bar]),
            new_code_cell(
                "1/0",
                outputs=[
                    new_output(
                        "error",
                        ename="ZeroDivisionError",
                        evalue="no",
                        traceback=["\x1b[31mZeroDivisionError\x1b[0m: no"],
                    )
                ],
            ),
        ]
    )


def write_site(folder, index=INDEX, config=CONFIG):
    nbs = folder / "nbs"
    (nbs / "laws").mkdir(parents=True)
    (nbs / "_quarto.yml").write_text(config)
    (nbs / "references.bib").write_text(BIB)
    import base64
    (nbs / "dot.png").write_bytes(base64.b64decode(PIXEL))
    nbformat.write(new_notebook(cells=[new_markdown_cell(index)]), nbs / "index.ipynb")
    nbformat.write(demo(), nbs / "laws" / "demo.ipynb")
    return nbs


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    nbs = write_site(folder)
    problems = build_docs.build_site(nbs, folder / "_docs", engine="pandoc")
    assert problems == []
    return folder / "_docs"


def read(path): return path.read_text(encoding="utf-8")


# ---- the pages

def test_text_page(site):
    page = read(site / "index.html")
    assert "<title>A small site</title>" in page and "with everything in it" in page
    assert page.count("<math") == 1 and '<span class="eqno">(1)</span>' in page
    assert (
        'href="#eq-law">Equation 1</a>' in page
        and 'href="#fig-dot">Figure 1</a>' in page
        and "<strong>Figure 1.</strong> A dot" in page
    )
    assert "Darwin" in page and 'id="ref-darwin1859"' in page
    assert 'class="callout callout-warning"><p class="callout-title">Take care' in page
    assert '<div class="scroll"><table' in page and 'class="sourceCode python"' in page
    assert 'href="laws/demo.html#api-margin"><code>margin(z)</code></a>' in page and "<code>x @ y</code>" in page
    assert '<a href="#words">Words</a>' in page and (site / "dot.png").is_file()


def test_module_page(site):
    page = read(site / "laws" / "demo.html")
    assert "secret_cell" not in page and "unseen_code" not in page and "default_exp" not in page
    assert "import</span> numpy" not in page  # imports alone are no reading
    assert (
        re.search(r'<h3[^>]*id="api-margin"', page) and "<td><code>scale</code></td>" in page and "units of a_b" in page
    )
    assert "<summary>Source</summary>" in page and "<summary>Checks</summary>" in page
    assert '<div class="scroll"><table class="dataframe">' in page and "bad()" not in page
    assert "100%|##| done" in page and "50%" not in page
    assert (
        '<figure id="fig-plot">' in page
        and "data:image/png;base64" in page
        and "<strong>Figure 1.</strong> A plot of" in page
    )
    assert '<pre class="error">ZeroDivisionError: no</pre>' in page
    assert "<p>Laws</p>" in page and 'href="../laws/demo.html" aria-current=page>Demo of <code>laws</code>' in page


def test_search_index(site):
    entries = json.loads(read(site / "site" / "index.js").removeprefix("window.SEARCH="))
    assert {"laws/demo.html", "laws/demo.html#api-margin", "index.html#words"} <= {entry["u"] for entry in entries}
    assert [entry["u"] for entry in entries if "quokka" in entry["x"]] == ["laws/demo.html"]


def test_nothing_from_another_host(site):
    assert check_site(site) == []
    for path in site.rglob("*.html"):
        page = read(path)
        assert (
            not re.search(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="(?:https?:)?//', page)
            and "url(http" not in page
        )


@pytest.mark.parametrize("text, complaint", [
    ("[gone](laws/gone.ipynb)", "laws/gone.html does not exist"),
    ("[gone](laws/demo.ipynb#gone)", "#gone has no such anchor"),
    ("See @fig-gone.", "#fig-gone has no such anchor"),
    ("![gone](gone.png)", "gone.png does not exist"),
    ("As in [@gone2020].", "citation gone2020 not found"),
    (r"$\notacommand{$", "Could not convert TeX math"),
    ("![far](https://example.org/a.png)", "loads https://example.org/a.png from another host"),
    ("```{=html}\n<script src=\"//example.org/a.js\"></script>\n```", "from another host"),
    ("```{=html}\n<p style=\"background:url(https://example.org/a.png)\">\n```", "https://example.org/a.png"),
])
def test_fault_fails_the_build(tmp_path, text, complaint):
    nbs = write_site(tmp_path, index=f"# Title\n\n{text}")
    problems = build_docs.build_site(nbs, tmp_path / "_docs", engine="pandoc")
    assert any(complaint in problem and "index" in problem for problem in problems), problems


def test_listed_page_must_exist_and_unlisted_is_named(tmp_path, capsys):
    nbs = write_site(tmp_path, config=CONFIG.replace("[laws/demo.ipynb]", "[laws/gone.ipynb]"), index="# Title")
    problems = build_docs.build_site(nbs, tmp_path / "_docs", engine="pandoc")
    assert problems == ["_quarto.yml lists laws/gone.ipynb, which does not exist"]
    assert "laws/demo.ipynb is not listed" in capsys.readouterr().err
    assert build_docs.build_site(nbs, tmp_path / "_docs", engine="pandoc", draft=True) == []
    assert "Laws" not in read(tmp_path / "_docs" / "index.html")  # a section without pages is not shown


def test_second_build_renders_nothing_and_clears_old_files(tmp_path, monkeypatch):
    nbs = write_site(tmp_path)
    build_docs.build_site(nbs, tmp_path / "_docs", engine="pandoc")
    first = read(tmp_path / "_docs" / "index.html")
    (tmp_path / "_docs" / "old.html").write_text("<a href='gone.html'>")
    monkeypatch.setattr(build_docs, "markdown_to_html", lambda *a: pytest.fail("rendered again"))
    assert build_docs.build_site(nbs, tmp_path / "_docs", engine="pandoc") == []
    assert not (tmp_path / "_docs" / "old.html").exists() and read(tmp_path / "_docs" / "index.html") == first


def test_quarto_gets_the_same_notebooks(tmp_path, monkeypatch):
    nbs = write_site(tmp_path)
    (tmp_path / "bin").mkdir()
    quarto = tmp_path / "bin" / "quarto"
    quarto.write_text(
        '#!/bin/sh\n[ "$1 $3" = "render --no-execute" ] || exit 3\nmkdir "$2/_site" && echo "<p>by quarto</p>" >'
        ' "$2/_site/index.html"\n'
    )
    quarto.chmod(quarto.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert build_docs.build_site(nbs, tmp_path / "_docs", work=tmp_path / "_proc") == []
    assert "by quarto" in read(tmp_path / "_docs" / "index.html")
    cells = nbformat.read(tmp_path / "_proc" / "quarto" / "laws" / "demo.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells)
    assert cells[0].source.startswith("---\ntitle: Demo of `laws`") and "secret_cell" not in text
    assert "### `margin` {#api-margin .api}" in text and '#| code-fold: true\n#| code-summary: "Source"' in text


# ---- docstrings and text

def test_docstring_characters_stand_for_themselves():
    lines = [
        "f = z29*(z17**2 + z21**2) - exp(exp(z3))",
        "|KL - C| < 2 and a_b_c > _d_",
        "x^2^ ~y~ C:\\beta",
        "# not a heading",
        "an e-mail @ a sign",
    ]
    html, warnings = pandoc.markdown_to_html("\n\n".join(build_docs.prose(line) for line in lines))
    assert warnings == [] and [plain(p) for p in re.findall("<p>(.*?)</p>", html)] == lines
    assert build_docs.prose("the `a_b*c` of $x_1^2$ [@darwin1859]") == "the `a_b*c` of $x_1^2$ [@darwin1859]"


def test_signatures():
    code = (
        "class Law(Base):\n    'A law.'\n    def __init__(self, first=1, *, second='two', third=None, fourth=(1, 2, 3),"
        " fifth=0.5, sixth=1e-3): pass\n    def fit(self, X, y=None, *, groups=None) -> 'Law':\n        'Learn it.'\n  "
        "  def _hidden(self):\n        'No.'\ndef _private(): pass\ndef scale(\n    x,  # what is scaled\n    by: float"
        " = 2,  # how much\n): 'Scaled.'"
    )
    text = build_docs.api_markdown(code)
    assert (
        "Law(\n    first=1,\n    *,\n    second='two'," in text
        and "Law.fit(X, y=None, *, groups=None) -> 'Law'" in text
    )
    assert "_hidden" not in text and "_private" not in text
    command = build_docs.api_markdown("def run(n: Annotated[int, typer.Option(help='How many.')] = 3): 'Run.'")
    assert "run(n: int=3)" in command and "| `n` |  |  | How many. |" in command
    assert "| `x` |  |  | what is scaled |" in text and "| `by` | float |  | how much |" in text


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from(list("ab \n\r\b\x1b[31m%"))))
def test_clean_text_has_no_control_characters(text):
    clean = outputs.clean_text(text)
    assert not set(clean) & set("\r\b") and outputs.clean_text(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "<script>x</script>",
        "<SCRIPT src=a></SCRIPT >",
        "<style>@import 'x'</style>",
        "<iframe src='x'></iframe>",
        "<a onclick='x'>t</a>",
        "<img src='//h/x.png'>",
        "<link href='x'>",
        '<a href="javascript:x">t</a>',
    ],
)
def test_outputs_lose_what_could_run_or_load(text):
    assert not re.search(
        r"(?i)script|style|iframe|onclick|//h|link", clean_html(f"<b>kept</b>{text}")
    ) and "kept" in clean_html(f"<b>kept</b>{text}")


def test_no_pandoc_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "pypandoc", None)
    with pytest.raises(RuntimeError, match="pip install pypandoc_binary"): pandoc.find_pandoc()


# ---- the README

def test_readme(tmp_path):
    nbs = write_site(tmp_path)
    text = write_readme.readme(nbs / "index.ipynb")
    assert "![A dot](nbs/dot.png)\n\n*Figure 1. A dot*" in text and "[the demo](nbs/laws/demo.ipynb#api-margin)" in text
    assert "{#" not in text and ":::" not in text and "> **Warning**\n>\n> Cells are alive." in text
    assert "(Darwin 1859); see Figure 1, Equation 1 and" in text and "`x @ y`" in text and "z_{29}" in text
    (nbs / "references.bib").write_text(BIB.replace("1859}", "1859},\n  doi = {10.1/x}"))
    assert "([Darwin 1859](https://doi.org/10.1/x))" in write_readme.readme(nbs / "index.ipynb")


def test_readme_is_up_to_date():
    assert read(ROOT / "README.md") == write_readme.readme(
        ROOT / "nbs" / "index.ipynb"
    ), "run python tools/write_readme.py"


# ---- reports

@pytest.fixture(scope="module")
def a_report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    nb = demo()
    nb.cells[1:1] = [
        new_code_cell("n = 10\nname = 'a'", metadata={"tags": ["parameters"]}),
        new_code_cell("n = 99", metadata={"tags": ["injected-parameters"]}),
        new_markdown_cell(
            "$$x^2$$\n\n[elsewhere](../index.ipynb) ![far](https://example.org/a.png) ![near](dot.png) [@darwin1859]"
        ),
    ]
    nb.metadata["papermill"] = {"start_time": "2026-01-02T03:04:05.6", "duration": 61.7}
    write_site(folder)
    nbformat.write(nb, folder / "nbs" / "run.ipynb")
    return report.notebook_to_html(
        folder / "nbs" / "run.ipynb", tmp_path_factory.mktemp("alone") / "sub" / "report.html"
    )


def test_report_is_one_file(a_report):
    page = read(a_report)
    assert [path.name for path in a_report.parent.iterdir()] == ["report.html"]
    assert not re.search(r'<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)="(?!data:)', page) and not re.search(
        r"url\((?!data:)|@import", page
    )
    assert "default-src 'none'" in html.unescape(page) and page.count("data:image/png;base64") == 2
    assert (
        "[picture far is not in this file]" in page
        and "../index" not in page
        and "elsewhere" in page
        and "Darwin" in page
    )
    assert "<strong><code>99</code></strong>" in page and "2026-01-02 03:04 UTC · 62 s" in page and "<math" in page
    assert "<details class=\"code\"><summary>" in page and "<details class=\"code\" open>" not in page


# ---- in the browser

@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = (next((found for name in names if (found := shutil.which(name))), None)
                        for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)))
    if not (chromium and driver): pytest.skip("headless Chromium and chromedriver are not installed")
    profile = tempfile.mkdtemp()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()
    shutil.rmtree(profile, ignore_errors=True)


def open_page(browser, path, width=1280, theme="light"):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", dict(features=[dict(name="prefers-color-scheme", value=theme)])
    )
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(address := path.resolve().as_uri())
    # not the page before, nor one without its style yet
    assert wait(
        lambda: browser.execute_script(
            "return location.href === arguments[0] && document.readyState === 'complete'", address
        )
    )


def wait(condition, seconds=10):
    end = time.time() + seconds
    while time.time() < end:
        if condition(): return True
        time.sleep(0.05)
    return False


def requests(browser):
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def background(browser): return browser.execute_script("return getComputedStyle(document.body).backgroundColor")


@pytest.mark.browser
@pytest.mark.parametrize("page", ["index.html", "laws/demo.html"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_phone_does_not_scroll_sideways(browser, site, page, theme):
    open_page(browser, site / page, width=390, theme=theme)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert browser.execute_script(
        "return [...document.querySelectorAll('main *')].every(e => e.closest('pre,.scroll,.formula') ||"
        " e.getBoundingClientRect().right <= 391)"
    )
    assert background(browser) == ("rgb(255, 255, 255)" if theme == "light" else "rgb(21, 25, 28)")
    side = "return getComputedStyle(document.querySelector('.side')).display"
    assert browser.execute_script(side) == "none"
    browser.execute_script("document.querySelector('.menu').click()")
    assert browser.execute_script(side) == "block"


@pytest.mark.browser
def test_search_finds_and_leads(browser, site):
    from selenium.webdriver.common.keys import Keys
    open_page(browser, site / "index.html")
    field = browser.find_element("css selector", ".search input")
    field.send_keys("quokka")
    assert wait(lambda: browser.find_elements("css selector", ".results a"))
    assert [a.get_attribute("textContent").split(" ›")[0] for a in browser.find_elements("css selector", ".results a")][
        0
    ].startswith("Demo of laws")
    assert browser.find_element("css selector", ".results mark").text == "quokka"
    field.send_keys(Keys.ENTER)
    assert wait(lambda: browser.current_url.endswith("laws/demo.html"))
    field = browser.find_element("css selector", ".search input")
    field.send_keys("margin")
    assert wait(
        lambda: any(
            a.get_attribute("href").endswith("laws/demo.html#api-margin")
            for a in browser.find_elements("css selector", ".results a")
        )
    )
    field.send_keys(Keys.ESCAPE)
    field.send_keys("<b>xyzzy")
    assert wait(lambda: "Nothing found" in browser.find_element("css selector", ".results").text)


@pytest.mark.browser
def test_theme_button_is_remembered(browser, site):
    open_page(browser, site / "index.html")
    assert background(browser) == "rgb(255, 255, 255)"
    browser.execute_script("document.querySelector('.theme-toggle').click()")
    assert background(browser) == "rgb(21, 25, 28)"
    # the browser hands a choice to the next page's process in its own time
    def next_page():
        open_page(browser, site / "laws" / "demo.html")
        return background(browser) == "rgb(21, 25, 28)"
    assert wait(next_page)
    browser.execute_script("localStorage.clear()")


@pytest.mark.browser
def test_code_button_opens_every_fold(browser, site):
    open_page(browser, site / "laws" / "demo.html")
    opened = "return [...document.querySelectorAll('details.code')].map(d => d.open)"
    assert browser.execute_script(opened) == [False, False]
    browser.execute_script("document.querySelector('.code-toggle').click()")
    assert browser.execute_script(opened) == [True, True]


@pytest.mark.browser
def test_pages_ask_no_other_host_and_draw_formulas(browser, site):
    open_page(browser, site / "index.html")
    browser.find_element("css selector", ".search input").send_keys("a")
    assert wait(lambda: browser.execute_script("return !!window.SEARCH"))
    asked = requests(browser)
    assert asked and all(url.startswith(("file:", "data:")) for url in asked), asked
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    # A browser that knows MathML raises the exponent; one that doesn't sets it in line.
    assert (
        browser.execute_script(
            "const [a, b] = document.querySelector('msup').children; return a.getBoundingClientRect().bottom -"
            " b.getBoundingClientRect().bottom"
        )
        > 2
    )


@pytest.mark.browser
def test_report_opens_by_double_click(browser, a_report):
    open_page(browser, a_report, width=390)
    asked = [url for url in requests(browser) if not url.startswith("data:")]
    assert asked == [a_report.resolve().as_uri()]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    browser.execute_script("document.querySelector('.code-toggle').click()")
    assert browser.execute_script("return [...document.querySelectorAll('details.code')].every(d => d.open)")


# ---- hostile names, and scripts that came in by another way

HOSTILE = [
    "<script>document.title='PWNED'</script>",
    "\"><img src=x onerror=document.title='PWNED'>",
    "<svg/onload=document.title='PWNED'>",
    "</script><script>document.title='PWNED'</script>",
    "' onmouseover=document.title='PWNED' x='",
    "<a id=bait href=javascript:document.title='PWNED'>x</a>",
    "a$$ <img src=\"data:,\"onerror=\"document.title='PWNED'\"> $$b",
    "```{=html}\n</div></main><img src=x onerror=document.title='PWNED'>\n",
    "{{7*7}} $\\frac{",
]


def visit_all(browser, path):
    "Open a page, go over and click everything on it; the title it has then."
    open_page(browser, path)
    browser.execute_script(
        "for (const e of document.querySelectorAll('*'))"
        " for (const kind of ['mouseover', 'focus', 'load', 'error']) e.dispatchEvent(new Event(kind));"
        "for (const a of document.querySelectorAll('a[href^=\"javascript\"]')) a.click()"
    )
    time.sleep(0.2)
    return browser.title


@pytest.mark.browser
def test_no_name_runs_a_script_in_a_report(browser, tmp_path):
    shown = []
    for name in HOSTILE:
        data = [{"text/html": f"<table><tr><td>{name}</td></tr></table>"}, {"text/markdown": f"**{name}**: $x$"},
                {"text/plain": name}, {"text/markdown": rf"$$\text{{{name}}}:\quad x$$"}]
        shown += [new_output("display_data", data=d) for d in data] + [new_output("stream", name="stdout", text=name)]
    cells = [
        new_markdown_cell("# Title\n\n<!--output 99-->\n\n![x](output/99)"),
        new_code_cell("show()", outputs=shown),
        new_code_cell(f"c = {HOSTILE[0]!r}", metadata={"tags": ["parameters"]}),
        new_markdown_cell("## Last\n\nThe end."),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "run.ipynb")
    result = {"metrics": {"law_balanced_accuracy": 0.9, HOSTILE[0]: 1.0}, "parameters": {}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    import pandas as pd
    pd.DataFrame(dict(label=HOSTILE, equation=HOSTILE)).to_csv(tmp_path / "equations.csv", index=False)
    pd.DataFrame(dict(factor="z0", name=HOSTILE)).to_csv(tmp_path / "factors.csv", index=False)
    (tmp_path / "javascript:document.title='PWNED'.html").write_text("")
    page = report.notebook_to_html(tmp_path / "run.ipynb", tmp_path / "report.html")
    assert visit_all(browser, page) == "Title"
    assert browser.execute_script("return document.querySelectorAll('main').length") == 1
    text = browser.execute_script("return document.querySelector('main').innerText")
    assert "The end." in text and HOSTILE[0] in text and "{{7*7}}" in text


@pytest.mark.browser
def test_no_name_runs_a_script_in_cards_and_maps(browser, tmp_path):
    import numpy as np
    import pandas as pd

    from cellinterp.concepts.selectivity import selectivity_scores
    from cellinterp.explain.affinity import interactive_map
    from cellinterp.explain.concepts import feature_cards
    from cellinterp.explain.image_cards import concept_cards
    rng = np.random.default_rng(0)
    images, labels = rng.random((36, 1, 16, 16)).astype("f4"), np.array(HOSTILE)[np.arange(36) % len(HOSTILE)]
    codes = np.maximum(rng.normal(size=(36, 4)), 0)
    scores = selectivity_scores(codes, labels, n_bootstrap=5, n_permutations=5)
    pages = {name: tmp_path / f"{name}.html" for name in ("map", "features", "concepts")}
    interactive_map(
        pages["map"], rng.random((36, 2)), images, labels, text=labels, unseen=HOSTILE[:1], title=HOSTILE[3]
    )
    obs = pd.DataFrame({HOSTILE[0]: labels, "b": labels})
    feature_cards(
        pages["features"], codes, scores, obs, labels=labels, names=HOSTILE[:4], title=HOSTILE[1], images=images
    )
    concept_cards(
        pages["concepts"],
        images,
        codes,
        scores,
        lambda m, rows: rng.random((len(rows), 4, 4)),
        labels=labels,
        names=HOSTILE[:4],
        title=HOSTILE[2],
        measures=pd.DataFrame({HOSTILE[1]: rng.random(36)}),
    )
    for name, page in pages.items():
        assert "PWNED" != visit_all(browser, page), name
        assert browser.title.strip() in HOSTILE, name
        assert [r for r in requests(browser) if not r.startswith(("file:", "data:"))] == []


@pytest.mark.browser
def test_the_policy_stops_a_script_that_is_not_of_the_page(browser, tmp_path):
    from cellinterp.explain.pages import page_html
    bad = "<script>document.title='PWNED'</script><img src=x onerror=\"document.title='PWNED'\">"
    (tmp_path / "a.html").write_text(page_html("Title", bad))
    assert visit_all(browser, tmp_path / "a.html") == "Title"
    # the same page without its policy: the check itself can fail
    (tmp_path / "b.html").write_text(re.sub("<meta http-equiv[^>]*>", "", page_html("Title", bad)))
    assert visit_all(browser, tmp_path / "b.html") == "PWNED"


def test_a_picture_is_described_by_the_sentence_before_it(tmp_path):
    image = new_output("display_data", data={"image/png": PIXEL, "text/plain": "<Figure size 640x480 with 1 Axes>"})
    cells = [new_markdown_cell("# T\n\nWords. What moves when *z3* moves:"), new_code_cell("plot()", outputs=[image])]
    nbformat.write(new_notebook(cells=cells), tmp_path / "run.ipynb")
    page = read(report.notebook_to_html(tmp_path / "run.ipynb", tmp_path / "report.html"))
    assert 'alt="What moves when z3 moves"' in page and "Figure size" not in page


def test_names_are_listed_and_the_notebook_can_be_taken_along(site):
    page = read(site / "names.html")
    assert (
        re.search(r'href="laws/demo.html#api-margin"[^>]*><code>margin</code>', page) and "The margin of a law" in page
    )
    assert (site / "laws" / "demo.ipynb").is_file() and 'href="demo.ipynb" download' in read(
        site / "laws" / "demo.html"
    )
    assert 'class="skip" href="#text"' in page and 'href="names.html" aria-current=page' in page


def test_the_recipe_of_the_front_page_can_be_built(tmp_path, monkeypatch):
    "Every line of it but the fit: names that moved and arguments that are gone would stop it."
    import numpy as np
    from skimage.io import imsave
    for k in range(4):
        folder = tmp_path / "my_folder" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        imsave(folder / f"{k}.png", np.full((16, 16), 40 * k, np.uint8), check_contrast=False)
    code = re.search(r"```python\n(.*?)model\.fit", read(ROOT / "README.md"), re.S)[1]
    monkeypatch.chdir(tmp_path)
    made = {}
    exec(code, made)
    assert len(made["cells"].images) == 4 and [name for name, _ in made["model"].steps][0] == "vae"
    assert made["model"].get_params()["vae__head"] is not None
