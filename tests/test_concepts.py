"""Reading embeddings: whitening from controls, averaging, selectivity, probes, profiles; against slow references and
answers known by hand.
"""
import os
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from cellinterp.concepts import (
    ControlWhitening,
    aggregate,
    atoms_table,
    held_out_selectivity,
    name_atoms,
    quantile_active,
)
from cellinterp.concepts.probes import (
    expected_ap,
    explained_cosine,
    nearest_label,
    probe,
    replicate_map,
    stability,
)
from cellinterp.concepts.selectivity import (
    active,
    auroc,
    benjamini_hochberg,
    information,
    selectivity_scores,
)
from cellinterp.data.embeddings import load_profiles, simulate_profiles
from cellinterp.training.saving import load, save

pytestmark = pytest.mark.filterwarnings("ignore:ControlWhitening")


@parametrize_with_checks(
    [
        ControlWhitening(),
        ControlWhitening("zca", shrinkage="ledoit_wolf"),
        ControlWhitening("center", standardize=True, normalize=False),
    ]
)
def test_scikit_learn_contract(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def screen(n=300, d=20, decades=4, offset=1e3, seed=0):
    "Rows (n, d) of very unequal spread in rotated directions, far from the origin; the first half are controls."
    r = np.random.default_rng(seed)
    X = offset + (r.normal(size=(n, d)) * np.logspace(0, -decades, d)) @ np.linalg.qr(r.normal(size=(d, d)))[0]
    return X, np.arange(n) < n // 2


# whitening -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["pca", "zca"])
@pytest.mark.parametrize("options", [{}, dict(standardize=True), dict(block_size=7), dict(block_size=1)])
def test_whitened_controls_have_identity_covariance(method, options):
    X, controls = screen()
    white = ControlWhitening(method, normalize=False, **options).fit(X, controls=controls)
    Z = white.transform(X)
    assert np.abs(np.cov(Z[controls].T) - np.eye(20)).max() < 1e-6
    assert np.abs(Z[controls].mean(0)).max() < 1e-6
    assert np.abs(white.inverse_transform(Z) - X).max() < 1e-9
    # from the controls, not from all rows
    assert np.abs(Z[~controls].mean(0)).max() > 1e-3


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(3, 40),
    d=st.integers(1, 12),
    offset=st.sampled_from([0, 1, -1e4]),
    decades=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_identity_on_the_kept_subspace_whatever_the_shape(n, d, offset, decades, seed):
    X, _ = screen(2 * n, d, decades, offset, seed)
    controls = np.arange(2 * n) < n
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        white = ControlWhitening(normalize=False).fit(X, controls=controls)
    assert white.rank_ == min(n - 1, d)
    Z = white.transform(X[controls])
    assert np.abs(Z.T @ Z / (n - 1) - np.eye(white.rank_)).max() < 1e-6
    # controls lie in the kept subspace
    assert np.abs(white.inverse_transform(Z) - X[controls]).max() < 1e-9 * max(1, abs(offset))


def test_against_the_textbook():
    "Whitening by the eigenvectors of np.cov, and the Mahalanobis distance, which no rotation changes."
    X, controls = screen(decades=2, offset=3)
    S, mean = np.cov(X[controls].T), X[controls].mean(0)
    expected = np.einsum("nd,de,ne->n", X - mean, np.linalg.inv(S), X - mean)
    for method in ("pca", "zca"):
        Z = ControlWhitening(method, normalize=False).fit(X, controls=controls).transform(X)
        assert np.allclose((Z ** 2).sum(1), expected, rtol=1e-6)
    values, V = np.linalg.eigh(S)
    root = (V / np.sqrt(values)) @ V.T
    assert np.allclose(
        ControlWhitening("zca", normalize=False).fit(X, controls=controls).whitening_,
        root,
        rtol=1e-6,
        atol=1e-8 * np.abs(root).max(),
    )


def test_ledoit_wolf_is_that_of_scikit_learn():
    X, _ = screen(30, 12, 2, 5)
    controls = np.arange(30) < 9
    white = ControlWhitening("zca", shrinkage="ledoit_wolf", normalize=False, block_size=4).fit(X, controls=controls)
    reference = LedoitWolf().fit(X[controls])
    assert np.isclose(white.shrinkage_, reference.shrinkage_)
    covariance = white.dewhitening_ @ white.dewhitening_.T
    assert np.allclose(covariance, reference.covariance_ * 9 / 8, rtol=1e-8)          # ours divides by n − 1
    assert white.transform(X).shape == (30, 12) and np.isfinite(white.transform(X)).all()


def test_too_few_controls_are_told_and_never_blow_up():
    X, _ = screen(200, 20, 0, 0)
    few = np.arange(200) < 8
    with pytest.warns(UserWarning, match="span 7 of 20"): white = ControlWhitening(normalize=False).fit(X, controls=few)
    assert white.transform(X).shape == (200, 7) and np.abs(white.transform(X)).max() < 100
    with pytest.raises(ValueError, match="span 7 of 20"): ControlWhitening(n_components=8).fit(X, controls=few)
    zca = ControlWhitening("zca", normalize=False).fit(X, controls=few).transform(X)
    assert zca.shape == (200, 20) and np.linalg.matrix_rank(zca) == 7


def test_a_duplicated_column_of_float32_is_no_direction():
    "Rounding of float32 input must not be whitened into a component of its own."
    r = np.random.default_rng(0)
    X = r.normal(size=(200, 5)).astype(np.float32)
    X = np.c_[X, X[:, 0] + X[:, 1]] + np.float32(10)
    white = ControlWhitening(normalize=False).fit(X, controls=np.arange(200) < 150)
    assert white.rank_ == 5 and np.abs(white.transform(X)).max() < 10
    assert white.transform(X).dtype == np.float32


def test_constant_column_half_precision_and_integers():
    X, controls = screen(decades=0, offset=0)
    constant = np.c_[X, np.full(300, 0.1)]
    for standardize in (False, True):
        white = ControlWhitening("zca", normalize=False, standardize=standardize).fit(constant, controls=controls)
        assert white.rank_ == 20 and np.abs(white.transform(constant)).max() < 100
    whole = np.round(X * 100).astype(int)
    assert (
        np.abs(
            np.cov(ControlWhitening(normalize=False).fit(whole, controls=controls).transform(whole)[controls].T)
            - np.eye(20)
        ).max()
        < 1e-6
    )
    half = X.astype(np.float16)
    Z = ControlWhitening(normalize=False).fit(half, controls=controls).transform(half)
    assert Z.dtype == np.float64 and np.abs(np.cov(Z[controls].T) - np.eye(20)).max() < 1e-6


def test_z_scores_are_those_of_the_controls():
    X, controls = screen(decades=2, offset=7)
    Z = (
        ControlWhitening("center", standardize=True, normalize=False, block_size=9)
        .fit(X, controls=controls)
        .transform(X)
    )
    assert np.allclose(Z, (X - X[controls].mean(0)) / X[controls].std(0, ddof=1))


def test_atoms_travel_both_ways():
    X, controls = screen(decades=1)
    r = np.random.default_rng(1)
    for method, k in (("pca", 12), ("zca", None)):
        white = ControlWhitening(method, k, normalize=False).fit(X, controls=controls)
        C = r.normal(size=(4, white.whitening_.shape[0]))
        Z = white.transform(X)
        assert np.allclose(white.readout(C) @ (X - white.mean_).T, C @ Z.T)
        # adding an atom to the input adds it to the whitened row
        moved = white.transform(X + white.atoms_to_input(C)[0])
        assert np.allclose(moved - Z, C[0], atol=1e-8)


def test_unit_length_and_zero_rows():
    X, controls = screen(decades=0)
    white = ControlWhitening().fit(X, controls=controls)
    Z = white.transform(np.r_[X, white.mean_[None]])
    assert np.allclose(np.linalg.norm(Z[:-1], axis=1), 1) and not Z[-1].any()


def test_by_batch():
    X, _ = screen(400, 8, 1, 0)
    plate = np.repeat(np.array(["P1", "P2"]), 200)
    controls = np.arange(400) % 4 == 0
    shifted = X * np.where(plate == "P1", 1, 3)[:, None] + np.where(plate == "P1", 0, 100)[:, None]
    centred = ControlWhitening(by_batch="center", normalize=False).fit(shifted, controls=controls, batch=plate)
    Z = centred.transform(shifted, batch=plate)
    for p in ("P1", "P2"): assert np.abs(Z[controls & (plate == p)].mean(0)).max() < 1e-9
    assert np.abs(Z[controls].T @ Z[controls] / (100 - 2) - np.eye(8)).max() < 1e-6
    own = ControlWhitening("zca", by_batch="whiten", normalize=False).fit(shifted, controls=controls, batch=plate)
    Z = own.transform(shifted, batch=plate)
    for p in ("P1", "P2"): assert np.abs(np.cov(Z[controls & (plate == p)].T) - np.eye(8)).max() < 1e-6
    for white in (centred, own):
        assert np.allclose(white.inverse_transform(white.transform(shifted, batch=plate), batch=plate), shifted)
    assert own.atoms_to_input(np.eye(8), batch="P2").shape == (8, 8)
    with pytest.raises(ValueError, match="say batch="): own.atoms_to_input(np.eye(8))
    with pytest.raises(ValueError, match="P3"): centred.transform(shifted[:1], batch=np.array(["P3"]))
    with pytest.raises(ValueError, match="P1"):
        ControlWhitening(by_batch="center").fit(shifted, controls=plate == "P2", batch=plate)
    with pytest.raises(ValueError, match="zca"):
        ControlWhitening(by_batch="whiten").fit(shifted, controls=controls, batch=plate)


def test_a_median_centre_ignores_a_failed_well():
    X, controls = screen(decades=0, offset=0)
    X[0] = 1e4
    mean, median = (
        ControlWhitening("center", normalize=False, center=c).fit(X, controls=controls).mean_
        for c in ("mean", "median")
    )
    assert np.abs(mean).min() > 50 and np.abs(median).max() < 1
    assert np.allclose(median, np.median(X[controls], axis=0))


def test_where_controls_come_from():
    X, controls = screen()
    y = np.where(controls, "DMSO", "drug")
    by_mask, by_label = ControlWhitening().fit(X, controls=controls), ControlWhitening(control_label="DMSO").fit(X, y)
    assert np.array_equal(by_mask.whitening_, by_label.whitening_)
    with pytest.warns(UserWarning, match="every row"): every = ControlWhitening().fit(X, y)
    assert np.allclose(every.mean_, X.mean(0))
    with warnings.catch_warnings():
        # without labels there is nothing to warn of
        warnings.simplefilter("error")
        ControlWhitening().fit(X)
    for bad, message in (
        (np.ones(300, bool), "every row is a control"),
        (np.zeros(300, bool), "no control row"),
        (controls[:5], r"\(5,\)"),
        (np.linspace(0, 1, 300), "boolean"),
    ):
        with pytest.raises(ValueError, match=message):
            ControlWhitening().fit(X, controls=bad)
    with pytest.raises(ValueError, match="no control row"): ControlWhitening(control_label="water").fit(X, y)
    with pytest.raises(ValueError, match="control rows are all the same"):
        ControlWhitening().fit(np.ones((6, 3)), controls=np.arange(6) < 3)


@pytest.mark.parametrize("routing", [False, True])
def test_controls_by_metadata_routing(routing):
    import sklearn
    screen_ = simulate_profiles(random_state=1)
    X, y, controls, plate = (
        screen_.X,
        screen_.obs.moa.to_numpy(str),
        screen_.obs.control.to_numpy(),
        screen_.obs.plate.to_numpy(str),
    )
    with sklearn.config_context(enable_metadata_routing=routing):
        pipeline = make_pipeline(ControlWhitening(), LogisticRegression(max_iter=50))
        name = "controls" if routing else "controlwhitening__controls"
        scores = cross_val_score(pipeline, X, y, params={name: controls}, cv=3)
        expected = cross_val_score(
            make_pipeline(ControlWhitening(control_label="DMSO"), LogisticRegression(max_iter=50)), X, y, cv=3
        )
        assert np.allclose(scores, expected)
        # batch is routed to transform as well
        if routing:
            model = make_pipeline(ControlWhitening(by_batch="center"), LogisticRegression(max_iter=50)).fit(
                X, y, controls=controls, batch=plate
            )
            assert model.predict(X, batch=plate).shape == y.shape


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(method="zca", by_batch="whiten"),
        dict(method="center"),
        dict(center="median", by_batch="center"),
        dict(shrinkage="ledoit_wolf"),
    ],
)
def test_saved_models_are_the_same_to_the_bit(options, tmp_path):
    X, controls = screen(decades=1)
    plate = np.array(["A", "B"])[np.arange(300) % 2]
    batch = dict(batch=plate) if "by_batch" in options else {}
    model = ControlWhitening(**options).fit(X, controls=controls, **batch)
    again = load(save(model, tmp_path / "m"))
    assert np.array_equal(model.transform(X, **batch), again.transform(X, **batch))
    assert list(again.get_feature_names_out()) == list(model.get_feature_names_out())
    clone(again).fit(X, controls=controls, **batch)


def test_every_source_gives_the_same(tmp_path):
    zarr = pytest.importorskip("zarr")
    data = simulate_profiles(random_state=2)
    X, controls = data.X, data.obs.control.to_numpy()
    expected = ControlWhitening("zca").fit(X, controls=controls).transform(X)
    np.save(tmp_path / "x.npy", X)
    data.write_h5ad(tmp_path / "x.h5ad")
    pd.DataFrame(X, columns=data.var_names).to_parquet(tmp_path / "x.parquet")
    sources = [
        tmp_path / "x.npy",
        tmp_path / "x.h5ad",
        str(tmp_path / "x.parquet"),
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        zarr.array(X),
        pd.DataFrame(X, columns=data.var_names),
    ]
    for source in sources:
        white = ControlWhitening("zca", block_size=50).fit(source, controls=controls)
        assert np.allclose(white.transform(source), expected, atol=1e-9), source
    assert np.allclose(ControlWhitening("zca").fit_transform(data), expected)         # AnnData knows its controls
    assert list(ControlWhitening().fit(tmp_path / "x.parquet", controls=controls).feature_names_in_[:2]) == [
        "feature_0",
        "feature_1",
    ]
    broken = X.copy()
    broken[7, 3] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    with pytest.raises(ValueError, match="NaN"): ControlWhitening().fit(tmp_path / "nan.npy", controls=controls)
    pd.DataFrame(X).assign(name="well").rename(columns=str).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="name"): ControlWhitening().fit(tmp_path / "text.parquet", controls=controls)
    with pytest.raises(ValueError, match="plate_number"): ControlWhitening().fit(data, controls="plate_number")


def test_the_nuisance_goes_and_the_mechanism_stays():
    """The reason for all this: with a loud nuisance shared by controls, only whitening finds compounds of one mechanism
    next to each other.
    """
    data = simulate_profiles(random_state=0)
    treated = ~data.obs.control.to_numpy()
    def accuracy(Z):
        means, keys = aggregate(Z[treated], data.obs.loc[treated, ["compound", "moa"]])
        return nearest_label(means, keys.moa, exclude=keys["compound"]).mean()
    white = ControlWhitening(by_batch="center").fit(data, batch="batch").transform(data, batch="batch")
    assert accuracy(white) > accuracy(data.X) + .2 and accuracy(white) > .95


# aggregate -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["mean", "median"])
def test_aggregate_is_groupby(how):
    r = np.random.default_rng(0)
    X, a, b = r.normal(size=(60, 3)), r.integers(0, 4, 60), r.choice(["u", "v"], 60)
    got, table = aggregate(X, [pd.Series(a, name="a"), pd.Series(b, name="b")], how)
    expected = getattr(pd.DataFrame(X).groupby([a, b], sort=False), how)()
    assert np.allclose(got, expected) and list(zip(table.a, table.b)) == list(expected.index)
    assert np.array_equal(table.n, pd.DataFrame(X).groupby([a, b], sort=False).size())
    codes, _ = aggregate(sparse.csr_array(np.where(X > 1, X, 0)), [a], how)
    assert sparse.issparse(codes) == (how == "mean")
    assert np.allclose(codes.toarray() if how == "mean" else codes, aggregate(np.where(X > 1, X, 0), [a], how)[0])


def test_aggregate_keeps_what_is_constant():
    data = simulate_profiles()
    data.obsm["concepts"] = sparse.csr_array(np.abs(data.X) * (data.X > 3))
    wells = aggregate(data, ["plate", "compound"])
    treatments = aggregate(wells, ["compound"])
    assert (
        treatments.n_obs == data.obs["compound"].nunique()
        and {"moa", "control"} <= set(treatments.obs)
        and "plate" not in treatments.obs
    )
    assert np.allclose(
        treatments.X[0], data.X[(data.obs["compound"] == treatments.obs["compound"].iloc[0]).to_numpy()].mean(0)
    ) and treatments.obsm["concepts"].shape[0] == len(treatments)
    with pytest.raises(ValueError, match="not a column"): aggregate(data, ["donor"])
    with pytest.raises(ValueError, match="missing"): aggregate(np.ones((2, 1)), [np.array(["a", None], dtype=object)])
    with pytest.raises(ValueError, match="how"): aggregate(data, ["plate"], how="max")


# selectivity ---------------------------------------------------------------------------------------------------------

def slow_selectivity(Z, labels, positive):
    "The two definitions, one sample after the other."
    names = sorted(set(labels) - {""})
    on = (lambda z: z > 0) if positive else (lambda z: z != 0)
    average, maximum = np.empty((2, len(names), Z.shape[1]))
    def fraction(rows, m):
        return np.mean([on(Z[i, m]) for i in rows])
    for m in range(Z.shape[1]):
        P = [fraction([i for i, l in enumerate(labels) if l == name], m) for name in names]
        for k, name in enumerate(names):
            average[k, m] = P[k] - fraction([i for i, l in enumerate(labels) if l not in (name, "")], m)
            maximum[k, m] = P[k] - max(p for j, p in enumerate(P) if j != k)
    return average, maximum


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), K=st.integers(2, 5), positive=st.booleans())
def test_selectivity_is_the_definition(seed, K, positive):
    r = np.random.default_rng(seed)
    Z = r.normal(size=(40, 6)) * (r.random((40, 6)) < .4)
    labels = np.r_[np.arange(K), r.integers(-1, K, 40 - K)]
    labels = np.array(["" if l < 0 else f"l{l}" for l in labels])
    got = selectivity_scores(sparse.csr_array(Z), labels, positive=positive, n_bootstrap=0, n_permutations=0)
    average, maximum = slow_selectivity(Z, labels.tolist(), positive)
    assert np.allclose(got.average, average, atol=1e-6) and np.allclose(got.maximum, maximum, atol=1e-6)
    use = labels != ""
    assert np.allclose(got.auroc, [[roc_auc_score(labels[use] == n, Z[use, m]) for m in range(6)] for n in got.labels])
    assert np.allclose(
        selectivity_scores(Z, labels, positive=positive, n_bootstrap=0, n_permutations=0).average, got.average
    )


def test_auroc_of_signed_tied_codes():
    r = np.random.default_rng(0)
    Z = r.integers(-2, 3, (100, 4)).astype(float)
    codes = r.integers(-1, 3, 100)
    use = codes >= 0
    assert np.allclose(
        auroc(Z, codes, 3), [[roc_auc_score(codes[use] == k, Z[use, j]) for j in range(4)] for k in range(3)]
    )


def test_information_of_known_tables():
    P, n = np.array([[1.0, .5, 0], [0.0, .5, 0]]), np.array([50, 50])
    assert np.allclose(information(P, n), [1, 0, 0])                                  # one bit, nothing, never active


def test_intervals_cover_the_truth():
    """95 % intervals by group hold the true difference in about 95 of 100 repetitions, also with wells of different
    rates; those by cell do not.
    """
    r, inside = np.random.default_rng(0), []
    well = np.repeat(np.arange(24), 20)
    label = np.where(well < 12, "drug", "DMSO")
    for i in range(60):
        rate = r.beta(3, 6, 24) + .3 * (np.arange(24) < 12)
        Z = (r.random((480, 1)) < rate[well][:, None]) * 1.0
        spans = [selectivity_scores(Z, label, groups=g, n_permutations=0, random_state=i) for g in (well, None)]
        inside.append([s.low[1, 0] <= .3 <= s.high[1, 0] for s in spans])
    by_well, by_cell = np.mean(inside, 0)
    # 60 repetitions: 95 % ± 3; few groups cost some coverage
    assert by_well > .82 and by_cell < by_well - .1


def test_the_null_keeps_its_error_rate():
    """Random labels: a run with any discovery at FDR 5 % is rare. Labels that only differ between plates are not
    discovered either.
    """
    r, label, plate = np.random.default_rng(1), np.array(list("ABCD"))[np.arange(120) % 4], np.arange(120) // 12
    wrong = [
        selectivity_scores(
            (r.random((120, 100)) < 0.1) * 1.0, r.permutation(label), batch=plate, n_bootstrap=0, random_state=i
        ).q.min()
        <= 0.05
        for i in range(40)
    ]
    # binomial(40, 0.05): more than 7 in one of 3000
    assert sum(wrong) <= 7
    # features of plates; drug on half of the plates only
    confounded = (plate[:, None] == np.arange(10)) * 1.0
    drug = np.where(plate < 5, "drug", "DMSO")
    assert selectivity_scores(confounded, drug, batch=plate, n_bootstrap=0).p.min() == 1
    # without the batches the plates look like biology
    assert selectivity_scores(confounded, drug, n_bootstrap=0).q.min() < .05


def test_groups_are_exchanged_whole():
    "Every well has its own habit: with cells as units false positives abound, with wells they do not."
    r = np.random.default_rng(2)
    well = np.repeat(np.arange(16), 40)
    label = np.where(well < 8, "drug", "DMSO")
    Z = (r.random((640, 60)) < r.beta(1, 4, (16, 60))[well]) * 1.0
    by_cell, by_well = (selectivity_scores(Z, label, groups=g, n_bootstrap=0) for g in (None, well))
    assert (by_cell.q <= .05).mean() > .15 and (by_well.q <= .05).mean() <= .05


def test_planted_selectivity_is_found_and_reported_on_held_out_groups():
    r = np.random.default_rng(3)
    label = np.array(list("ABC"))[np.arange(180) % 3]
    group = np.arange(180) // 3
    Z = (r.random((180, 300)) < .1) * 1.0
    Z[:, 7] = (label == "B") & (r.random(180) < .9)
    found = selectivity_scores(Z, label, groups=group)
    assert found.table().feature[1] == 7 and found.q[1, 7] < .02 and found.low[1, 7] > .7
    assert (found.q <= .05).sum() <= 3 and found.n_selective(.5) == 1
    held = held_out_selectivity(Z, label, group)
    assert (held[held.label == "B"].feature == 7).all() and held[held.label == "B"].held_out.mean() > .75
    chance = held[held.label == "A"]
    assert chance.held_out.mean() < chance.train.mean() - .08                         # the optimism of the best of 300


def test_benjamini_hochberg_is_that_of_scipy():
    from scipy.stats import false_discovery_control
    p = np.random.default_rng(0).random((5, 7)) ** 3
    assert np.allclose(benjamini_hochberg(p).ravel(), false_discovery_control(p.ravel()))


def test_quantiles_and_names():
    X = np.random.default_rng(0).normal(size=(500, 3))
    A = quantile_active(X, .1)
    assert np.allclose(A.toarray().mean(0), .1) and A.shape == (500, 6)
    assert A.toarray()[X[:, 1].argmax()].tolist()[2:4] == [0, 1]
    with pytest.raises(ValueError, match="alpha"): quantile_active(X, .7)
    data = simulate_profiles()
    white = ControlWhitening().fit(data)
    # an atom that adds to two columns of equal spread
    direction = np.zeros((1, 60))
    direction[0, [4, 9]] = 5, -2
    atom = direction @ white.whitening_.T
    spread = data.X[data.obs.control].std(0)
    assert name_atoms(atom, list(data.var_names), white, top=2)[0] == (
        "+feature_4, −feature_9" if 5 / spread[4] > 2 / spread[9] else "−feature_9, +feature_4"
    )
    table = atoms_table(np.eye(60), whitening=white, feature_names=data.var_names)
    assert table.shape == (60, 60) and table.obsm["input_direction"].shape == (60, 60) and "name" in table.obs


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(Z=np.full((4, 2), np.nan)), "NaN"),
        (dict(labels=np.array(["a"] * 4)), "at least 2"),
        (dict(labels=np.array(["a", "b"])), r"\(2,\)"),
        (dict(groups=np.arange(3)), "groups"),
        (dict(batch=np.arange(5)), "batch"),
    ],
)
def test_bad_input(bad, message):
    with pytest.raises(ValueError, match=message):
        selectivity_scores(**{**dict(Z=np.eye(4, 2), labels=np.array(list("abab"))), **bad})


def test_active():
    Z = np.array([[1.0, 0], [-1, 2]])
    assert active(Z).toarray().tolist() == [[1, 0], [1, 1]] and active(Z, positive=True).toarray().tolist() == [
        [1, 0],
        [0, 1],
    ]
    assert active(Z > 0).toarray().tolist() == [[1, 0], [0, 1]]
    codes = sparse.csr_array(Z)
    active(codes, positive=True)
    # the caller's codes are left alone
    assert codes.toarray().tolist() == Z.tolist()


# probes --------------------------------------------------------------------------------------------------------------

def test_average_precision_is_that_of_scikit_learn():
    r = np.random.default_rng(0)
    X = r.normal(size=(12, 5))
    t = np.array(list("aaabbbcccccc"))
    plate = np.arange(12) % 3
    table = replicate_map(X, t).set_index("treatment")
    U = X / np.linalg.norm(X, axis=1, keepdims=True)
    for name in "abc":
        expected = [
            average_precision_score((t == name)[np.arange(12) != i], (U @ U[i])[np.arange(12) != i])
            for i in np.flatnonzero(t == name)
        ]
        assert np.isclose(table.mean_ap[name], np.mean(expected))
    assert set(replicate_map(X, t, negatives=t == "c").treatment) == {"a", "b"}
    assert len(replicate_map(X, t, batch=plate)) == 3
    with pytest.raises(ValueError, match="second replicate"): replicate_map(X[:2], np.array(["a", "b"]))


def test_expected_ap_of_a_random_order():
    r = np.random.default_rng(0)
    for P, T in ((1, 5), (3, 7)):
        draws = [r.permutation(np.arange(T) < P) for _ in range(4000)]
        simulated = [(np.cumsum(h)[h] / (np.flatnonzero(h) + 1)).mean() for h in draws]
        assert abs(np.mean(simulated) - expected_ap(P, T)) < 5 * np.std(simulated) / 4000 ** .5


def test_ties_count_with_the_mean_over_their_orders():
    "An embedding without information scores what a random order does, wherever the controls stand in the file."
    from cellinterp.concepts.probes import average_precision
    r = np.random.default_rng(0)
    similarity, hit = np.array([3.0, 1, 1, 1, 1, 0, 0]), np.array([0, 1, 0, 1, 0, 1, 0], bool)
    def broken(order): return average_precision_score(hit[order], similarity[order] - 1e-4 * np.arange(7))
    orders = [broken(r.permutation(7)) for _ in range(3000)]
    assert abs(average_precision(similarity, hit) - np.mean(orders)) < 5 * np.std(orders) / 3000 ** .5
    t = np.r_[np.repeat([f"t{i}" for i in range(20)], 4), np.full(40, "DMSO")]
    Z = np.zeros((120, 400))
    Z[np.arange(120)[:, None], r.integers(0, 400, (120, 3))] = 1
    for X in (np.ones((120, 8)), np.zeros((120, 8)), Z, np.ones((120, 8)) * 1e-9 + 1e6):
        for order in (slice(None), slice(None, None, -1)):
            table = replicate_map(X[order], t[order], negatives=(t == "DMSO")[order])
            assert abs(table.mean_ap.mean() - table.random.mean()) < .03
            assert (table.q > .05).all()
    y = np.repeat(["a", "b", "c"], 4)
    assert np.allclose(nearest_label(np.ones((12, 3)), y), 3 / 11)


def test_the_null_of_replicates_is_uniform():
    "Under no effect p is uniform: Kolmogorov and Smirnov at 1e-3, over 150 treatments."
    from scipy.stats import kstest
    r = np.random.default_rng(1)
    t = np.r_[np.repeat([f"t{i}" for i in range(150)], 3), np.full(30, "DMSO")]
    p = replicate_map(r.normal(size=(480, 40)), t, negatives=t == "DMSO").p
    assert kstest(p, "uniform").pvalue > 1e-3
    strong = np.r_[np.repeat(r.normal(size=(150, 40)), 3, 0) * 3, np.zeros((30, 40))] + r.normal(size=(480, 40))
    assert (replicate_map(strong, t, negatives=t == "DMSO").q < .05).mean() > .9


MISSING = [None, float("nan"), "", pd.NA, pd.NaT]


def test_what_is_missing_is_no_class():
    r = np.random.default_rng(0)
    X, t = r.normal(size=(60, 6)), np.repeat(["a", "b", "c"], 20).astype(object)
    kept = np.arange(60) % 4 > 0
    for missing in MISSING:
        m = t.copy()
        m[~kept] = missing
        want = replicate_map(X[kept], t[kept])
        pd.testing.assert_frame_equal(replicate_map(X, m), want)
        assert set(selectivity_scores(X > 1, m, n_bootstrap=0, n_permutations=0).labels) == {"a", "b", "c"}
        near = nearest_label(X, m)
        assert np.isnan(near[~kept]).all()
        np.testing.assert_array_equal(near[kept], nearest_label(X[kept], t[kept]))
        assert probe(X, m, seeds=(1,)).n_test.sum() == kept.sum()
        for call in (
            lambda: selectivity_scores(X > 1, t, groups=m),
            lambda: selectivity_scores(X > 1, t, batch=m),
            lambda: replicate_map(X, t, batch=m),
            lambda: nearest_label(X, t, exclude=m),
        ):
            with pytest.raises(ValueError, match="15 of 60 are missing"): call()
    X[:4] = np.nan
    for call in (
        lambda: replicate_map(X, t),
        lambda: nearest_label(X, t),
        lambda: explained_cosine(X, X),
        lambda: stability(X, X),
    ):
        with pytest.raises(ValueError, match="NaN or infinity came in 4 rows, the first is 0"): call()


def test_stability():
    A = np.random.default_rng(0).normal(size=(12, 6))
    assert np.allclose(stability(A, -A[::-1], absolute=True), 1) and stability(A, A[:5]).shape == (5,)
    with pytest.raises(ValueError, match="dimensions"): stability(A, A[:, :3])


def test_nearest_label_needs_somebody_else():
    with pytest.raises(ValueError, match="exclude"):
        nearest_label(np.eye(2), np.array(["a", "b"]), exclude=np.array(["c", "c"]))


# profiles ------------------------------------------------------------------------------------------------------------

real = pytest.mark.skipif("CELLINTERP_DATA" not in os.environ, reason="CELLINTERP_DATA is not set: no real data")


@real
def test_published_marks_of_the_bbbc021_profiles():
    """1-NN mechanism accuracy, same compound excluded: 89 of 103 z-scored on DMSO, 90 of 103 with 100 whitened
    components.
    """
    data = load_profiles("bbbc021_profiles")
    treated = ~data.obs.control.to_numpy()
    assert data.shape == (632, 516) and (~treated).sum() == 330
    z = ControlWhitening("center", standardize=True, normalize=False).fit_transform(data)
    white = ControlWhitening(n_components=100, standardize=True).fit_transform(data)
    for Z, right in ((z, 89), (white, 90)):
        means, keys = aggregate(Z[treated], data.obs.loc[treated, ["treatment", "compound", "moa"]])
        assert nearest_label(means, keys.moa, exclude=keys["compound"]).sum() == right


@real
def test_the_lincs_plate():
    plate = load_profiles("lincs_a549_plate")
    assert plate.shape == (384, 454) and plate.obs.control.sum() == 24
    treated = plate.obs[~plate.obs.control.to_numpy()]
    assert treated["compound"].nunique() == 58 and treated.treatment.nunique() == 56 * 6 + 2


def test_own_tables(tmp_path):
    pd.DataFrame(dict(Metadata_plate=["a", "a"], drug=["DMSO", "x"], f1=[1, 2], f2=[3.5, 4])).to_parquet(
        tmp_path / "t.parquet"
    )
    data = load_profiles(tmp_path / "t.parquet", controls="drug=DMSO")
    assert (
        data.obs.control.tolist() == [True, False]
        and list(data.obs) == ["plate", "drug", "control"]
        and data.X.tolist() == [[1, 3.5], [2, 4]]
    )
    data.write_h5ad(tmp_path / "t.h5ad")
    assert load_profiles(tmp_path / "t.h5ad").obs.control.tolist() == [True, False]
    with pytest.raises(ValueError, match="column=value"): load_profiles(tmp_path / "t.parquet", controls="dmso")
    with pytest.raises(FileNotFoundError, match="bbbc021_profiles"): load_profiles("nothing_here")
