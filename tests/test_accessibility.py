"""Ten pages before axe-core: no serious finding, and no code wider than its box."""
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from test_explorer import chromium

from cellinterp.data.images import ImageSet
from cellinterp.explain.explorer import explorer_page
from cellinterp.explain.look import look
from cellinterp.laws import SymbolicClassifier

ROOT = Path(__file__).resolve().parents[1]
PAGES = """index guides/getting_started guides/how_do_i guides/faq guides/glossary guides/gallery explain/explorer
explain/sentences""".split()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    sys.path.insert(0, str(ROOT / "tools"))
    import build_docs
    folder = tmp_path_factory.mktemp("ten")
    nbs = folder / "nbs"
    for page in PAGES:
        (nbs / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "nbs" / f"{page}.ipynb", nbs / f"{page}.ipynb")
    shutil.copy(ROOT / "nbs/references.bib", nbs)
    shutil.copytree(ROOT / "nbs/images", nbs / "images")
    listed = "\n".join(f"      - {page}.ipynb" for page in PAGES)
    website = f"website:\n  title: ten\n  sidebar:\n    contents:\n{listed}\n"
    (nbs / "_quarto.yml").write_text("project: {type: website}\nbibliography: references.bib\n" + website)
    build_docs.build_site(nbs, folder / "_docs", engine="pandoc", draft=True)
    rng = np.random.default_rng(0)
    cells = ImageSet(rng.integers(0, 255, (12, 1, 32, 32)).astype(np.uint8), list("ab" * 6))
    look(cells, folder / "_docs/look.html")
    Z = rng.normal(size=(12, 2)).astype(np.float32)
    law = SymbolicClassifier(max_nodes=5, max_evaluations=100, n_restarts=1, n_edits=2, random_state=0)
    law.fit(Z, np.where(Z[:, 0] > 0, "a", "b"))
    explorer_page(folder / "_docs/play.html", cells.images, cells.labels, Z, law)
    return folder / "_docs"


@pytest.fixture(scope="module")
def driver(site):
    pytest.importorskip("axe_core_python")
    driver = chromium(site)
    yield driver
    driver.quit()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", [*PAGES, "look", "play"])
def test_no_serious_finding(site, driver, page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get((site / f"{page}.html").as_uri())
    driver.execute_script((files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = driver.execute_async_script("axe.run().then(arguments[0])")["violations"]
    serious = [
        (rule["id"], node["html"][:200], node["failureSummary"][:300])
        for rule in found if rule["impact"] in ("serious", "critical") for node in rule["nodes"][:3]
    ]
    assert not serious, "\n".join(map(str, serious))


@pytest.mark.browser
@pytest.mark.parametrize("page", PAGES)
def test_no_code_is_wider_than_its_box(site, driver, page):
    driver.set_window_size(1400, 1000)
    driver.get((site / f"{page}.html").as_uri())
    wide = driver.execute_script(
        "document.querySelectorAll('details').forEach(d => { d.open = true });"
        "return [...document.querySelectorAll('pre')].filter(p => p.querySelector('code'))"
        ".filter(p => p.scrollWidth > p.clientWidth + 1).length"
    )
    assert wide == 0
