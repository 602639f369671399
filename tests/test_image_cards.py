"""Image cards: recall and its U test against counting pairs, correlations against scipy, and a page that needs nothing
else.
"""
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from cellinterp.concepts.selectivity import selectivity_scores
from cellinterp.explain.image_cards import concept_cards, correlates, feature_recall, top_crops

rng = np.random.default_rng(0)


@pytest.mark.parametrize("share, other", [(.9, .1), (.3, .3), (1.0, 0.0)])
def test_recall_and_u_are_what_counting_gives(share, other):
    kind = np.arange(90) < 30
    z = np.where(kind, rng.random(90) < share, rng.random(90) < other) * rng.integers(1, 4, 90)            # ties
    r, a, b = feature_recall(z, kind), z[kind], z[~kind]
    assert r["recall"] == (a > 0).mean() and r["false_positive_rate"] == (b > 0).mean()
    assert np.isclose(r["u"], sum((x > y) + 0.5 * (x == y) for x in a for y in b)) and np.isclose(
        r["auroc"], r["u"] / (30 * 60)
    )
    assert np.isclose(r["p"], stats.mannwhitneyu(a, b).pvalue) and r["recall_low"] <= r["recall"] <= r["recall_high"]
    assert (r["p"] < 1e-6) == (share > .5)


def test_correlates_is_spearman():
    Z, m = rng.normal(size=(60, 3)).round(1), pd.DataFrame(
        dict(area=rng.normal(size=60).round(1), name="x", bright=rng.normal(size=60))
    )
    Z[:, 1] = 0
    table = correlates(sparse.csr_array(Z), m)
    assert list(table.columns) == ["area", "bright"] and table.loc[1].isna().all()
    for j in (0, 2): assert np.isclose(table.area[j], stats.spearmanr(Z[:, j], m.area)[0])


def test_top_crops_takes_no_more_than_two_of_a_well():
    z, wells = np.arange(10.), np.array(list("aaaaabbccd"))
    assert (
        top_crops(z, 4, wells).tolist() == [9, 8, 7, 6]
        and top_crops(z, 4, np.repeat(["x", "y"], 5)).tolist() == [9, 8, 4, 3]
        and top_crops(-z, 3).tolist() == []
    )


def test_the_page_is_whole_and_escaped(tmp_path):
    images, labels = rng.integers(0, 255, (40, 2, 32, 32)).astype(np.uint8), np.array(["<b>a", "c"] * 20)
    codes = sparse.csr_array(np.maximum(rng.normal(size=(40, 5)) + (labels == "c")[:, None], 0))
    codes = sparse.csr_array(codes.toarray() * (np.arange(5) < 4))
    scores = selectivity_scores(codes, labels, n_bootstrap=20, n_permutations=20)
    asked = []
    def heat(m, rows):
        asked.append((m, len(rows)))
        return rng.normal(size=(len(rows), 4, 4))
    page = concept_cards(
        tmp_path / "deep" / "cards.html",
        images,
        codes,
        scores,
        heat,
        labels=labels,
        kind=labels == "c",
        measures=pd.DataFrame(dict(area=rng.normal(size=40))),
        n=3,
    ).read_text()
    assert (
        page.count("<article") == 5
        and "never positive" in page
        and page.count("<img") == 2 * sum(k for _, k in asked)
        and max(k for _, k in asked) == 3
    )
    for outside in ("http:", "https:", "<script src", "<link", "<b>a"): assert outside not in page
    with pytest.raises(ValueError, match="came for 40 rows"):
        concept_cards(tmp_path / "x.html", images[:3], codes, scores, heat)
    with pytest.raises(ValueError, match="the codes have 4"):
        concept_cards(tmp_path / "x.html", images, codes[:, :4], scores, heat)
    with pytest.raises(ValueError, match="no cell is of the kind"): feature_recall(codes[:, [0]], labels == "z")
