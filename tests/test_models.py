"""VAE, black box and sparse network on the installed package: contracts, known answers, bad input."""
import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from cellinterp.data import simulate_nuclei
from cellinterp.explain import law_boundary, margin, strongest, traversals
from cellinterp.factors import VAE, AlignedFrame, Beta, BetaTC, Capacity, Head, describe_factors
from cellinterp.factors.objectives import kl_per_factor, total_correlation
from cellinterp.laws import BlackBoxClassifier, SparseClassifier, head_law
from cellinterp.laws.sparse_network import SparseNetwork
from cellinterp.training import load, save

SMALL = dict(widths=(8, 8, 16, 16), device="cpu", random_state=0)


@pytest.fixture(scope="module")
def cells(): return simulate_nuclei(160, size=48, random_state=0)


@pytest.fixture(scope="module")
def vae(cells):
    return VAE(5, "beta", frame="aligned", head=Head(0.5), hidden=48, max_steps=80, **SMALL).fit(
        cells.images, cells.labels
    )


# objectives

def test_kl_against_monte_carlo():
    torch.manual_seed(0)
    mu, logvar = torch.tensor([[0.7, -1.2]]), torch.tensor([[-1.0, 0.3]])
    z = mu + torch.randn(400_000, 2) * (0.5 * logvar).exp()
    estimate = (-0.5 * ((z - mu) ** 2 / logvar.exp() + logvar) + 0.5 * z**2).mean(0)
    torch.testing.assert_close(kl_per_factor(mu, logvar), estimate, atol=0.01, rtol=0)


def test_total_correlation_against_a_slow_reference():
    "The minibatch-weighted estimate, term by term in numpy (Chen et al. 2018, eq. 5)."
    rng = np.random.default_rng(0)
    mu, logvar, n = rng.normal(size=(7, 3)), rng.normal(size=(7, 3)) * 0.3, 50
    z = mu + np.exp(0.5 * logvar) * rng.normal(size=mu.shape)
    def density(z, m, v):
        return np.exp(-0.5 * (z - m) ** 2 / np.exp(v)) / np.sqrt(2 * np.pi * np.exp(v))
    total = 0
    for i in range(7):
        joint = sum(np.prod([density(z[i, j], mu[k, j], logvar[k, j]) for j in range(3)]) for k in range(7)) / (7 * n)
        alone = [sum(density(z[i, j], mu[k, j], logvar[k, j]) for k in range(7)) / (7 * n) for j in range(3)]
        total += (np.log(joint) - np.sum(np.log(alone))) / 7
    def as_t(a):
        return torch.as_tensor(a)
    assert total_correlation(as_t(z), as_t(mu), as_t(logvar), n).item() == pytest.approx(total, rel=1e-6)


def test_prices_agree_where_they_must():
    torch.manual_seed(0)
    mu, logvar = torch.randn(16, 4), torch.randn(16, 4) * 0.1
    z, kl = mu + torch.randn(16, 4), kl_per_factor(mu, logvar).sum()
    torch.testing.assert_close(Beta(1.0).price(mu, logvar, z), kl)
    # beta = 1: no extra price
    torch.testing.assert_close(BetaTC(1.0).price(mu, logvar, z, n_rows=100), kl)
    # capacity starts at 0
    torch.testing.assert_close(Capacity(gamma=1.0).price(mu, logvar, z, progress=0.0), kl)


@pytest.mark.parametrize("capacity", [4.0, 12.0])
def test_the_capacity_objective_holds_the_kl(cells, capacity):
    model = VAE(6, Capacity(capacity), hidden=32, max_steps=160, learning_rate=6e-3, **SMALL).fit(cells.images)
    assert model.kl_.sum() == pytest.approx(capacity, rel=0.35)


# VAE

def test_vae_contract(cells, vae):
    Z = vae.transform(cells.images)
    assert Z.shape == (160, 5) and Z.dtype == np.float32 and np.isfinite(Z).all()
    assert vae.inverse_transform(Z).shape == cells.images.shape
    plain = [{k: v for k, v in m.get_params().items() if not hasattr(v, "get_params")} for m in (vae, clone(vae))]
    assert plain[0] == plain[1] and len(plain[0]) > 14                    # those of head and frame among them
    assert set(vae.history_.columns) >= {"step", "loss", "reconstruction", "kl", "cross_entropy"}
    again = clone(vae).fit(cells.images, cells.labels)
    # same seed, same model
    assert np.array_equal(again.transform(cells.images), Z)
    assert vae.describe(cells.images).columns.tolist() == [
        "factor",
        "kl",
        "property",
        "r",
        "r_second",
        "second",
        "name",
        "guided",
    ]
    assert 0 <= vae.reconstruction_percentile(cells.images).min()


def test_vae_draws_in_the_images_own_range():
    rng = np.random.default_rng(0)
    images = (20000 + 3000 * rng.normal(size=(60, 1, 40, 40))).astype(np.uint16)
    model = VAE(3, max_steps=150, hidden=16, learning_rate=1e-2, **SMALL).fit(images)
    assert model.inverse_transform(model.transform(images)).mean() == pytest.approx(20000, rel=0.03)


def test_noise_is_unlike_the_training_cells(cells, vae):
    noise = np.random.default_rng(0).integers(0, 255, cells.images.shape).astype(np.uint8)
    # training cells: 50, by construction
    assert np.median(vae.reconstruction_percentile(noise)) > 90


def test_orientation_is_not_in_aligned_factors(cells):
    """What a random turn moves is small against the distance between cells, and smaller than for a VAE that draws the
    cell as it lies.
    """
    def moved(model):
        Z, turned = model.transform(cells.images), model.transform(np.rot90(cells.images, axes=(2, 3)).copy())
        return np.linalg.norm(Z - turned, axis=1).mean() / np.linalg.norm(Z[:-1] - Z[1:], axis=1).mean()
    options = dict(hidden=32, max_steps=80, **SMALL)
    aligned, plain = (VAE(5, "beta", frame=f, **options).fit(cells.images) for f in ("aligned", "image"))
    assert moved(aligned) < 1e-3 < moved(plain)


def test_two_views_of_a_cell_come_nearer(cells):
    """With the contrast, factors of random views of a cell lie nearer together, against the distance between cells; the
    same seed without it is the baseline.
    """
    def apart(model):
        a, b = model.augmented(cells.images, n_views=2)
        def unit(z):
            return z / np.linalg.norm(z, axis=1, keepdims=True)
        similar = unit(a) @ unit(b).T
        # how often a view finds its partner
        return (similar.argmax(1) == np.arange(len(a))).mean()
    options = dict(hidden=32, max_steps=80, **SMALL)
    with_contrast, without = (AlignedFrame(contrast=c) for c in (0.1, 0.0))
    assert apart(VAE(5, "beta", frame=with_contrast, **options).fit(cells.images)) > 1.5 * apart(
        VAE(5, "beta", frame=without, **options).fit(cells.images)
    )
    with pytest.raises(ValueError, match="contrast: -1.0"): VAE(5, frame=AlignedFrame(contrast=-1.0)).fit(cells.images)


def test_without_a_spectrum_only_the_crop_is_drawn(cells, monkeypatch):
    "The loss is then the crop's alone, and nothing of the spectrum's head is left to save."
    bare, whole = (
        VAE(5, "beta", frame=AlignedFrame(n_spectra=n), hidden=32, max_steps=60, **SMALL).fit(cells.images)
        for n in (0, 4)
    )
    assert bare.module_.spectrum is None and whole.module_.spectrum is not None
    assert bare.history_["reconstruction"].iloc[0] < whole.history_["reconstruction"].iloc[0]           # one error less
    assert bare.score(cells.images) > 0
    with pytest.raises(ValueError, match="n_spectra"): VAE(5, frame=AlignedFrame(n_spectra=-1)).fit(cells.images)
    from cellinterp.factors import drawing as module
    # of many images: no spectrum a batch either
    monkeypatch.setattr(module, "KEEP", 100)
    calls, made = [], module.polar_spectra
    monkeypatch.setattr(module, "polar_spectra", lambda x: calls.append(len(x)) or made(x))
    VAE(5, "beta", frame=AlignedFrame(n_spectra=0), hidden=8, max_steps=3, **SMALL).fit(cells.images)
    # the statistics before training
    assert len(calls) == 1


@pytest.mark.parametrize("model", ["vae", "blackbox"])
def test_save_and_load(tmp_path, cells, vae, model):
    fitted = vae if model == "vae" else BlackBoxClassifier(max_steps=5, **SMALL).fit(cells.images, cells.labels)
    save(fitted, tmp_path / "m")
    back = load(tmp_path / "m")
    f = (lambda m: m.transform(cells.images)) if model == "vae" else (lambda m: m.predict_proba(cells.images))
    assert np.array_equal(f(fitted), f(back))


@pytest.mark.parametrize(
    "change,match",
    [
        (dict(objective="gamma"), "objective"),
        (dict(frame="polar"), "frame"),
        (dict(n_factors=0), "n_factors"),
        (dict(head=Head(-1)), "weight"),
    ],
)
def test_vae_refuses_bad_arguments(cells, change, match):
    with pytest.raises(ValueError, match=match):
        VAE(**{**dict(max_steps=1), **change}).fit(cells.images, cells.labels)


@pytest.mark.parametrize("frame", ["image", "aligned"])
def test_images_that_do_not_vary_are_refused_by_name(frame):
    black = np.zeros((20, 1, 32, 32), np.float32)
    one = np.repeat(np.random.default_rng(0).random((1, 1, 32, 32)).astype(np.float32), 20, 0)
    for images in (black, one, one[:1]):
        with pytest.raises(ValueError, match="images: all .* are the same"):
            VAE(2, frame=frame, max_steps=3).fit(images)
    levels = np.arange(20, dtype=np.float32)[:, None, None, None] + black
    # without an object there is no frame of its own: such images are drawn as they lie, and that is said
    if frame == "aligned":
        with pytest.warns(UserWarning, match="show no object"): VAE(2, frame=frame, max_steps=3).fit(levels)


def nan(x):
    x = x.astype(np.float32)
    x[0, 0, 3, 3] = np.nan
    return x
def inf(x):
    x = x.astype(np.float32)
    x[0, 0, 3, 3] = np.inf
    return x


@pytest.mark.parametrize("estimator", [VAE(4, head=Head(1.0), max_steps=1), BlackBoxClassifier(max_steps=1)])
@pytest.mark.parametrize(
    "spoil,match",
    [
        (lambda x, y: (nan(x), y), "(?i)nan"),
        (lambda x, y: (inf(x), y), "(?i)inf"),
        (lambda x, y: (x, np.full(len(y), "a")), "(?i)class"),
        (lambda x, y: (x, y[:-1]), "labels"),
        (lambda x, y: (x[:, :, :20, :20], y), "32"),
        (lambda x, y: (x[0, 0], y), "images"),
        (lambda x, y: (x[:0], y[:0]), "images"),
    ],
)
def test_bad_images_are_refused_before_work_starts(cells, estimator, spoil, match):
    x, y = spoil(cells.images, cells.labels)
    with pytest.raises(ValueError, match=match):
        clone(estimator).fit(x, y)


def test_a_fitted_model_refuses_other_sizes(cells, vae):
    with pytest.raises(ValueError, match="was fitted on"): vae.transform(cells.images[..., :40])
    with pytest.raises(ValueError, match="factors: shape"): vae.draw(np.zeros((1, 9)))


# black box

def test_black_box_learns_and_does_not_see_the_angle(cells):
    two = cells.select(["interphase", "metaphase"])
    model = BlackBoxClassifier(max_steps=120, **SMALL).fit(two.images, two.labels)
    fresh = simulate_nuclei(200, size=48, random_state=1).select(["interphase", "metaphase"])
    assert balanced_accuracy_score(fresh.labels, model.predict(fresh.images)) > 0.9
    P = model.predict_proba(fresh.images)
    assert np.allclose(P.sum(1), 1, atol=1e-5)
    assert np.allclose(P, model.predict_proba(np.rot90(fresh.images, axes=(2, 3)).copy()), atol=1e-3)
    logits = model.module_(torch.zeros(2, 1, 48, 48))
    # a plain module: x -> logits
    assert logits.shape == (2, 2)


def test_the_black_box_goes_on_while_held_out_groups_gain(cells, monkeypatch):
    "Cycles end where one brings nothing, whole groups are held out, and the last cycle sees every image."
    from cellinterp.laws import blackbox as module
    split, seen = module.inner_split, []
    def spy(y, groups=None, **k):
        seen.append((split(y, groups, **k), groups))
        return seen[-1][0]
    monkeypatch.setattr(module, "inner_split", spy)
    monkeypatch.setattr(module, "auto_steps", lambda steps, *a: 12 if steps == "auto" else steps)
    groups = np.repeat(np.arange(40), 4)
    model = BlackBoxClassifier(**SMALL).fit(cells.images, cells.labels, groups=groups)
    (fit, held), given = seen[0]
    assert given is groups and not set(groups[fit]) & set(groups[held])
    scores = model.history_.validation.dropna().to_numpy()
    # the first that is no better than all before it ends it, or eight cycles do
    assert (
        len(scores) == 8 or scores[-1] <= scores[:-1].max() and (np.diff(np.maximum.accumulate(scores[:-1])) > 0).all()
    )
    assert model.n_steps_ == 12 * (len(scores) + 1)
    with pytest.raises(ValueError, match="widths: 'huge'"): BlackBoxClassifier("huge").fit(cells.images, cells.labels)


# sparse networks

def test_counts_and_clean_against_brute_force():
    "A weight counts if zeroing it can change an output."
    torch.manual_seed(0)
    for _ in range(20):
        net = SparseNetwork(5, (4, 3), 2)
        for k, mask in enumerate(net.masks()): mask.copy_((torch.rand_like(mask) < .45).float())
        reach = [m.numpy() for m in net.masks()]
        forward = [np.ones(5, bool)]
        for m in reach: forward.append((m * forward[-1]).sum(1) > 0)
        backward = [np.ones(2, bool)]
        for m in reach[::-1]: backward.insert(0, (m * backward[0][:, None]).sum(0) > 0)
        expected = sum(int((m * forward[k] * backward[k + 1][:, None]).sum()) for k, m in enumerate(reach))
        x = torch.randn(6, 5)
        before = net(x)
        net.clean()
        assert int(sum(m.sum() for m in net.masks())) == expected
        torch.testing.assert_close(net(x), before)


def test_sparse_finds_what_matters_in_a_product():
    rng = np.random.default_rng(1)
    Z = rng.normal(size=(2500, 12)).astype(np.float32)
    y = np.where((Z[:, 1] * Z[:, 7] + Z[:, 4] > 0) ^ (rng.random(2500) < .02), "on", "off")
    model = SparseClassifier(random_state=0).fit(Z[:2000], y[:2000])
    dense = SparseClassifier(dense_only=True, random_state=0).fit(Z[:2000], y[:2000])
    assert {1, 4, 7} <= set(model.kept_) and len(model.kept_) <= 6
    assert model.score(Z[2000:], y[2000:]) >= .97 * dense.score(Z[2000:], y[2000:])
    assert model.n_weights_ < dense.n_weights_ / 5
    assert model.path_.chosen.sum() == 1


def test_sparse_keeps_identity_of_columns():
    rng = np.random.default_rng(0)
    Z = sparse.random_array((300, 30), density=.3, rng=rng, format="csr", dtype=np.float32)
    y = (Z.toarray()[:, 11] > 0).astype(int)
    model = SparseClassifier(random_state=0).fit(Z, y)
    out = model.transform(Z)
    assert isinstance(out, sparse.csr_array) and out.shape == Z.shape
    assert np.array_equal(np.unique(out.nonzero()[1]), np.intersect1d(model.kept_, np.unique(Z.nonzero()[1])))
    assert np.array_equal(out.toarray()[:, 11], Z.toarray()[:, 11]) and 11 in model.kept_


def test_groups_stay_whole_in_the_inner_split(monkeypatch):
    import cellinterp.data.splits as splits
    seen = []
    real = splits.inner_split
    monkeypatch.setattr(
        splits,
        "inner_split",
        lambda labels, groups=None, **k: seen.append((real(labels, groups, **k), groups)) or seen[-1][0],
    )
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(200, 4)).astype(np.float32)
    g = np.repeat(np.arange(20), 10).astype(str)
    SparseClassifier(max_steps=10, random_state=0).fit(Z, np.where(Z[:, 0] > 0, "a", "b"), groups=g)
    (a, b), groups = seen[0]
    assert np.array_equal(groups, g) and not set(g[a]) & set(g[b])


# a row of weight 2 is drawn twice as often, not at the same steps as two rows would be
DRAWN = {
    f"check_sample_weight_equivalence_on_{kind}_data": "rows are drawn at random in proportion to their weights"
    for kind in ("dense", "sparse")
}


@parametrize_with_checks([SparseClassifier(random_state=0)], expected_failed_checks=lambda estimator: DRAWN)
def test_sparse_check_estimator(estimator, check): check(estimator)


def test_units_and_offsets_do_not_change_the_sparse_network():
    "Every column scaled by 1e-9 to 1e9, or shifted by 1e6: the same decisions, and the same columns in use."
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(400, 4))
    y = np.where(Z[:, 0] * Z[:, 2] > 0, "on", "off")
    def made(move):
        model = SparseClassifier(max_steps=60, random_state=0).fit(move(Z[:300]), y[:300])
        return model.predict(move(Z[300:])), model.kept_.tolist()
    said, kept = made(lambda z: z)
    for move in (
        lambda z: z * 1e-9,
        lambda z: z * 1e9,
        lambda z: z * 10.0 ** np.array([-9, 9, 0, 4]),
        lambda z: z + 1e6,
    ):
        other, others = made(move)
        assert np.array_equal(other, said) and others == kept


def test_a_weight_of_zero_is_no_row_and_weights_move_the_decision():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(300, 3))
    y, flipped = (Z[:, 0] > 0).astype(int), rng.random(300) < .5
    y[flipped] = 1 - y[flipped]
    weight = np.where(flipped, 0.0, 1.0)
    model = SparseClassifier(max_steps=60, random_state=0).fit(Z, y, sample_weight=weight)
    alone = SparseClassifier(max_steps=60, random_state=0).fit(Z[~flipped], y[~flipped])
    assert np.array_equal(model.predict(Z), alone.predict(Z)) and model.score(Z, Z[:, 0] > 0) > .95
    # half of the labels are wrong: without weights there is nothing to learn
    assert SparseClassifier(max_steps=60, random_state=0).fit(Z, y).score(Z, Z[:, 0] > 0) < .8
    with pytest.raises(ValueError, match="(?i)negative"): SparseClassifier().fit(Z, y, sample_weight=-np.ones(300))


def test_pipeline_end_to_end(cells, tmp_path):
    from cellinterp.laws import SymbolicClassifier
    pipe = make_pipeline(
        VAE(4, "beta", frame="aligned", head=Head(0.5), hidden=32, max_steps=60, **SMALL),
        SparseClassifier(max_steps=40, random_state=0),
        SymbolicClassifier(max_evaluations=2000, n_restarts=1, n_edits=10, random_state=0),
    ).fit(cells.images, cells.labels)
    save(pipe, tmp_path / "m")
    assert np.array_equal(load(tmp_path / "m").predict(cells.images), pipe.predict(cells.images))
    assert pipe.score(cells.images, cells.labels) > .5                                                # chance is .2


# pictures

def test_boundary_is_drawn_over_the_two_strongest(cells, vae):
    from sklearn.linear_model import LogisticRegression
    Z = vae.transform(cells.images)
    law = LogisticRegression(max_iter=500).fit(Z * np.array([0, 1, 0, 5, 0]), cells.labels)
    scaled = type(
        "Law",
        (),
        dict(
            classes_=law.classes_,
            decision_function=lambda self, X: law.decision_function(np.asarray(X) * np.array([0, 1, 0, 5, 0])),
        ),
    )()
    order, moves = strongest(margin(scaled, "metaphase", "interphase"), Z)
    assert set(order[:2]) == {1, 3} and np.allclose(moves[2:], 0)
    figure = law_boundary(scaled, vae, Z, cells.labels, "metaphase", "interphase")
    # map, colour bar, seven cells an axis
    assert len(figure.axes) == 2 + 14
    assert len(traversals(vae, [0, 2], n_steps=5).axes) == 10
    with pytest.raises(ValueError, match="unknown class"): margin(law, "telophase")


def test_names_hold_up_under_chance():
    rng = np.random.default_rng(0)
    import pandas as pd
    shape = pd.DataFrame(rng.normal(size=(400, 3)), columns=["area", "solidity", "texture"])
    Z = np.c_[-shape.area + .2 * rng.normal(size=400), rng.normal(size=(400, 60))]
    table = describe_factors(Z, shape)
    assert table.name[0].startswith("area, r = −0.9") and set(table.name[1:]) == {"unnamed"}


def test_of_many_images_the_aligned_targets_are_made_for_each_batch_and_are_the_same(monkeypatch):
    from cellinterp.factors import drawing
    images = simulate_nuclei(60, size=48, random_state=0).images
    model = VAE(3, "beta", frame="aligned", max_steps=3, hidden=8, widths=(4, 4, 4, 4), device="cpu", random_state=0)
    model._learn_scale(images)
    def made():
        targets = AlignedFrame().targets(images, model._scaled, model._pixels(images))
        for name, value in targets.learnt.items(): setattr(model, name, value)
        return targets(rows, None)
    rows = torch.tensor([3, 50, 7])
    crops, spectra = made()
    np.testing.assert_allclose(spectra, _whitened(model, images[rows]), atol=1e-3)
    # statistics of 20 images, targets of 60
    monkeypatch.setattr(drawing, "KEEP", 20)
    crops_anew, spectra_anew = made()
    assert torch.equal(crops, crops_anew) and len(model.spectrum_axes_) == 19
    np.testing.assert_allclose(spectra_anew, _whitened(model, images[rows]), atol=1e-3)
    assert np.isfinite(model.fit(images).history_.loss).all()


def _whitened(model, images):
    from cellinterp.training.augment import polar_spectra
    return (
        polar_spectra(model._scaled(torch.as_tensor(images.astype(np.float32)))).numpy() - model.spectrum_mean_
    ) @ model.spectrum_axes_.T


def test_a_factor_is_named_after_what_its_traversal_changes_at_every_step():
    from cellinterp.factors import traversal_names
    Z = np.random.default_rng(0).normal(size=(50, 3))
    def draw(Z, wobble=0.0):
        r = np.hypot(*np.mgrid[-24:24, -24:24])
        edge = (12 + 2 * Z[:, 0] + wobble * np.sin(9 * Z[:, 0]))[:, None, None, None]
        return (100 - 10 * Z[:, 1])[:, None, None, None] / (1 + np.exp(r - edge))
    named = traversal_names(draw, Z)
    assert (
        named.along.tolist() == ["area", "intensity", "unnamed"]
        and named.change[0] > 2
        and named.change[1] < -2
        and named.change[2] == 0
    )
    # it grows, but not at every step
    assert traversal_names(lambda Z: draw(Z, 4.0), Z, properties=["area"]).along[0] == "unnamed"
    assert traversal_names(draw, Z, properties=["area"], least=100).along.tolist() == ["unnamed"] * 3

def test_a_thinned_head_is_a_law(cells, tmp_path):
    """As many weights as asked for, the same decisions as the head, also after saving; and with a checkpoint the
    training goes on where it was.
    """
    options = dict(frame="aligned", hidden=32, max_steps=40, **SMALL)
    thin = VAE(5, "beta", head=Head(terms=7), **options).fit(cells.images, cells.labels)
    law = head_law(thin, digits=12)
    assert int(thin.module_.head.mask.sum()) == 7 == sum(e.count("*z") for e in law.expressions_)
    np.testing.assert_allclose(
        law.predict_proba(thin.transform(cells.images)), thin.head_proba(cells.images), atol=1e-5
    )
    save(thin, tmp_path / "thin")
    np.testing.assert_array_equal(head_law(load(tmp_path / "thin")).expressions_, head_law(thin).expressions_)
    full = VAE(5, "beta", head=Head(), **options).fit(cells.images, cells.labels)
    assert sum(e.count("*z") for e in head_law(full).expressions_) == 5 * len(full.classes_)
    two = cells.labels == cells.labels[0]
    pair = VAE(3, "beta", head=Head(terms=2), **options).fit(cells.images, np.where(two, "this", "other"))
    np.testing.assert_allclose(
        head_law(pair, digits=12).predict_proba(pair.transform(cells.images)), pair.head_proba(cells.images), atol=1e-5
    )
    for wrong, message in (
        (dict(terms=3, hidden=(4,)), "linear head"),
        (dict(terms=0), "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            VAE(3, head=Head(**wrong)).fit(cells.images, cells.labels)
    hidden = VAE(3, "beta", head=Head(hidden=(6,)), **options).fit(cells.images, cells.labels)
    assert hidden.head_proba(cells.images).shape == (len(cells.images), len(hidden.classes_))
    with pytest.raises(ValueError, match="linear head"): head_law(hidden)


@pytest.mark.parametrize("harmonic", [1, 2, 3])
def test_pairs_that_turn_with_the_image_are_found_wherever_they_are(harmonic):
    """Two planted circles of different centres among still and noisy factors; their norms are the radii whatever the
    angle.
    """
    from cellinterp.factors.naming import pair_norms, turning_pairs
    rng = np.random.default_rng(harmonic)
    places = rng.permutation(7)
    phase, radius, still, centre = (
        rng.uniform(0, 2 * np.pi, (2, 80)),
        rng.gamma(3, 1, (2, 80)),
        rng.normal(size=(80, 7)),
        rng.normal(size=7),
    )
    turned = []
    for a in range(8):
        # what turning changes by accident
        Z = still + rng.normal(size=(80, 7)) * .1
        for k in range(2):
            t = harmonic * 2 * np.pi * a / 8 + phase[k]
            for place, wave in zip(places[2 * k : 2 * k + 2], (np.cos(t), np.sin(t))):
                Z[:, place] = centre[place] + radius[k] * wave
        turned.append(Z)
    turned = np.stack(turned)
    pairs = turning_pairs(turned)
    assert {frozenset(p) for p in pairs} == {frozenset(map(int, places[:2])), frozenset(map(int, places[2:4]))}
    norms = pair_norms(turned[5], pairs, centre)
    for i, j in pairs:
        k = int(i in places[2:4])
        np.testing.assert_allclose(norms[f"|z{i}, z{j}|"], radius[k], rtol=1e-9)
    assert norms.shape == (80, 5) and turning_pairs(turned[:, :, places[4:]]) == []
