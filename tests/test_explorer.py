"""The explorer: what the page computes against Python, and what a reader does with it, by mouse and keys."""
import csv
import re
import shutil
import time

import numpy as np
import pytest

from cellinterp.data.simulate import simulate_nuclei
from cellinterp.explain.explorer import explorer_data, explorer_page, law_terms
from cellinterp.factors.vae import VAE
from cellinterp.laws import SymbolicClassifier
from cellinterp.laws.ops import OPS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    nuclei = simulate_nuclei(120, size=32, random_state=0)
    vae = VAE(4, "beta", frame="aligned", max_steps=30, random_state=0).fit(nuclei.images)
    Z = vae.transform(nuclei.images)
    law = SymbolicClassifier(max_nodes=9, max_evaluations=600, n_restarts=1, n_edits=5, random_state=0)
    law.fit(Z, nuclei.labels)
    page = tmp_path_factory.mktemp("explorer") / "explorer.html"
    names = [f'=cell "{i}", <b>' for i in range(len(Z))]
    groups, opponent = np.arange(len(Z)) % 3, np.roll(nuclei.labels, 1)
    explorer_page(page, nuclei.images, nuclei.labels, Z, law, vae, ids=names, groups=groups, opponent=opponent)
    return nuclei, vae, Z, law, page


def chromium(folder):
    selenium = pytest.importorskip("selenium.webdriver")
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if browser is None or not shutil.which("chromedriver"): pytest.skip("needs Chromium and its driver")
    options = selenium.ChromeOptions()
    options.binary_location = shutil.which(browser)
    for a in "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage": options.add_argument(a)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(shutil.which("chromedriver")))
    driver.set_window_size(1400, 1000)
    return driver


@pytest.fixture(scope="module")
def driver(made):
    made[-1].with_name("saved").mkdir()
    driver = chromium(made[-1].with_name("saved"))
    yield driver
    driver.quit()


@pytest.fixture
def page(made, driver):
    driver.get(made[-1].as_uri())
    yield driver
    assert not [m for m in driver.get_log("browser") if m["level"] == "SEVERE"]


def test_the_page_is_one_file_and_escaped(made):
    text = made[-1].read_text()
    assert "<b>" not in text and not re.search(r"https?:|<link|<script src|eval\(|innerHTML", text)
    assert len(text) < 1_500_000


def test_margins_and_drawings_are_those_of_python(made, page):
    _, vae, Z, law, _ = made
    margins = page.execute_script(
        "return [...Array(N).keys()].map(i => marginsOf(data.law, home(i)).map(row => row.value))"
    )
    wanted = law.decision_function(Z)
    np.testing.assert_allclose(np.array(margins), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    asked = np.array([[0.5, -1, 0.3, 2], [0, 0, 0, 0]], dtype=np.float32) * vae.factor_std_
    drawn = page.execute_script(
        "return arguments[0].map(z => Array.from(drawn(Float32Array.from(z))))", asked.tolist()
    )
    right = vae.draw(asked).reshape(2, -1)
    assert np.abs(np.array(drawn) - right).max() < 0.01 * np.ptp(right)


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_function_of_a_law_is_that_of_numpy(page, name):
    values = np.array([-7.3, -2.5, -1.0, -0.4, 0.2, 0.5, 1.0, 1.5, 2.6, 4.0])
    op = OPS[name]
    columns = [values] if op.arity == 1 else [values, np.roll(values, 3)]
    tree = [name, *[str(k) for k in range(len(columns))]]
    said = page.execute_script(
        "return arguments[1].map(z => String(evaluate(arguments[0], z)))", tree, np.transpose(columns).tolist()
    )
    with np.errstate(all="ignore"): wanted = op.value(*columns)
    np.testing.assert_allclose([float(s.replace("Infinity", "inf")) for s in said], wanted, rtol=1e-9, atol=1e-12)


def test_keys_move_a_factor_over_the_boundary_and_back(made, page):
    Z, law = made[2:4]
    assert page.find_element("id", "verdict").text == f"The law says: {law.predict(Z[:1])[0]}."
    before = page.execute_script("return find('moved').toDataURL()")
    for j in (law.names_.index(n) for n in law.used_):
        for key in "\ue00e", "\ue00f":                                   # page up, page down
            page.find_element("id", "reset").click()
            for _ in range(8): page.find_element("id", f"f{j}").send_keys(key)
            time.sleep(0.1)
            if "Over the boundary" in page.find_element("id", "verdict").text: break
        else: continue
        break
    z = np.array(page.execute_script("return Array.from(z)"))
    assert page.find_element("id", "verdict").text.endswith(f"→ {law.predict(z[None])[0]}.")
    assert page.execute_script("return find('moved').toDataURL()") != before
    assert page.find_elements("css selector", ".terms .up, .terms .down")
    assert "standard deviations" in page.find_element("id", f"f{j}").get_attribute("aria-valuetext")
    page.find_element("id", "reset").click()
    assert page.execute_script("return find('moved').toDataURL()") == before


def test_the_smallest_change_is_over_the_boundary(made, page):
    Z, law = made[2:4]
    page.find_element("id", "cross").click()
    z = np.array(page.execute_script("return Array.from(z)"))
    assert law.predict(z[None])[0] != law.predict(Z[:1])[0] and page.find_element("id", "cross-text").text
    assert "Over the boundary" in page.find_element("id", "verdict").text


def test_click_lasso_and_csv(made, page):
    nuclei, _, Z, law, path = made
    from selenium.webdriver.common.action_chains import ActionChains
    canvas = page.find_element("id", "map")
    at = np.array(page.execute_script(
        "const b = find('map').getBoundingClientRect(), s = b.width / 640;"
        "return [...Array(N).keys()].map(i => [map.x[i] * s, map.y[i] * s])"
    ))
    x, y = at[7] - [canvas.size["width"] / 2, canvas.size["height"] / 2]
    ActionChains(page).move_to_element_with_offset(canvas, round(x), round(y)).click().perform()
    chosen = page.execute_script("return at")
    assert np.hypot(*(at[chosen] - at[7])) < 6 and f'cell "{chosen}"' in page.find_element("id", "who").text
    w, h = canvas.size["width"] / 2 - 3, canvas.size["height"] / 2 - 3
    drag = ActionChains(page, duration=20).move_to_element_with_offset(canvas, -w, -h).click_and_hold()
    for dx, dy in (w, 0), (0, 2 * h), (-w, 0), (0, -2 * h): drag = drag.move_by_offset(dx, dy)
    drag.release().perform()
    left = {i for i in range(len(Z)) if at[i, 0] < w}
    found = set(page.execute_script("return [...selected]"))
    assert len(found ^ left) <= 2 and 0 < len(found) < len(Z)
    assert len(page.find_elements("css selector", "#sheet button")) == min(60, len(found))
    page.find_element("id", "save").click()
    for _ in range(50):
        if (path.with_name("saved") / "cells.csv").is_file(): break
        time.sleep(0.1)
    rows = list(csv.DictReader((path.with_name("saved") / "cells.csv").open(newline="")))
    assert len(rows) == len(found) and rows[0]["cell"].startswith("'=cell")
    i = min(found)
    assert rows[0]["law"] == law.predict(Z[i:i + 1])[0] and rows[0]["label"] == nuclei.labels[i]
    assert np.isclose(float(rows[0]["z1"]), Z[i, 1], rtol=1e-5)
    page.find_element("id", "drop").click()
    assert page.find_element("id", "list").get_attribute("value") == ""


def test_filters_and_keys_on_the_map(made, page):
    from selenium.webdriver.support.ui import Select
    nuclei, _, Z, law, _ = made
    said = law.predict(Z)
    Select(page.find_element("id", "by-error")).select_by_value("wrong")
    assert page.find_element("id", "shown").text.startswith(f"{(said != nuclei.labels).sum()} of 120")
    Select(page.find_element("id", "by-group")).select_by_visible_text("2")
    wanted = (said != nuclei.labels) & (np.arange(120) % 3 == 2)
    assert page.find_element("id", "shown").text.startswith(f"{wanted.sum()} of 120")
    page.find_element("id", "take").click()
    assert page.execute_script("return selected.size") == wanted.sum()
    Select(page.find_element("id", "by-error")).select_by_value("")
    Select(page.find_element("id", "by-group")).select_by_value("")
    page.find_element("css selector", "#key button").click()
    hidden = (nuclei.labels == law.classes_[0]).sum()
    assert page.find_element("id", "shown").text.startswith(f"{120 - hidden} of 120")
    page.find_element("id", "drop").click()
    canvas = page.find_element("id", "map")
    before = page.execute_script("return at")
    canvas.send_keys("\ue014")                                          # arrow to the right
    after = page.execute_script("return at")
    assert page.execute_script(f"return map.x[{after}] > map.x[{before}]")
    canvas.send_keys(" ")
    assert page.execute_script("return [...selected]") == [after]
    page.find_element("id", "go").send_keys('=cell "5", <b>\n')
    assert page.execute_script("return at") == 5


def test_it_fits_a_phone_and_every_control_has_a_name(page):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", dict(width=390, height=844, deviceScaleFactor=1, mobile=True)
    )
    assert page.execute_script("return document.documentElement.scrollWidth <= 390")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    named = "return [...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels.length).length"
    assert page.execute_script(named) == 0


@pytest.mark.browser
def test_fifty_thousand_cells_answer_in_time(made, tmp_path, driver):
    nuclei, vae, Z, law, _ = made
    rng = np.random.default_rng(0)
    many = rng.integers(0, len(Z), 50_000)
    noisy = Z[many] + 0.2 * rng.normal(size=(50_000, Z.shape[1])).astype(np.float32)
    page = tmp_path / "many.html"
    explorer_page(page, nuclei.images[many], nuclei.labels[many], noisy, law, vae, max_pictures=200)
    driver.get(page.as_uri())
    times = driver.execute_script("""
        const clock = f => {
            const start = performance.now();
            f();
            pen(find("map")).getImageData(0, 0, 1, 1);
            return performance.now() - start;
        };
        const square = [[0, 0], [640, 0], [640, 460], [0, 460]];
        const least = f => Math.min(...[1, 2, 3].map(() => clock(f)));
        return {choose: least(() => choose(9)), filter: least(filter), lasso: least(() => map.inside(square)),
                move: least(() => { z[0] += 0.1; show(); }), axes: least(axes)};
    """)
    assert max(times.values()) < 200, times
    assert driver.execute_script("return map.inside([[-9, -9], [999, -9], [999, 999], [-9, 999]]).length") == 50_000


def test_two_classes_cells_without_a_label_and_no_decoder(made, tmp_path, driver):
    nuclei, _, Z, _, _ = made
    two = np.isin(nuclei.labels, ["interphase", "metaphase"])
    y, Z, images = nuclei.labels[two].copy(), Z[two], nuclei.images[two]
    law = SymbolicClassifier(max_nodes=7, max_evaluations=300, n_restarts=1, n_edits=5, random_state=0).fit(Z, y)
    y[:4], y[4] = "", "something else"
    data = explorer_data(images, y, Z, law)
    assert len(data["law"]) == 1 and data["decoder"] is None and sum(data["wrong"][:5]) + sum(data["right"][:5]) == 0
    driver.get(explorer_page(tmp_path / "two.html", images, y, Z, law).as_uri())
    assert driver.find_element("id", "verdict").text == f"The law says: {law.predict(Z[:1])[0]}."
    assert not driver.find_elements("id", "drawing") and "no label" in driver.find_element("id", "who").text
    assert not [m for m in driver.get_log("browser") if m["level"] == "SEVERE"]


def test_refusals_and_terms(made, tmp_path):
    nuclei, vae, Z, law, _ = made
    for bad, message in ((Z[:, :2], r"factors: shape \(120, 2\)"), (Z[:5], "images: 120 came")):
        with pytest.raises(ValueError, match=message):
            explorer_page(tmp_path / "x.html", nuclei.images, nuclei.labels, bad, law)
    with pytest.raises(ValueError, match="groups: 3 came"):
        explorer_data(nuclei.images, nuclei.labels, Z, law, vae, groups=[1, 2, 3])
    assert [m["label"] for m in law_terms(law)] == list(law.classes_)
