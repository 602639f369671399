"""Affinity metrics and pictures, as installed: known answers, slow references, chance, and bad input."""
import json
import re

import numpy as np
import pandas as pd
import pytest

from cellinterp.explain.affinity import (
    class_colours,
    embed,
    flat,
    interactive_map,
    isosurfaces,
    similarity_beside,
    slices,
)
from cellinterp.factors.affinity_metrics import (
    KnownRegions,
    affinity_agreement,
    affinity_report,
    class_scores,
    class_similarity,
    cluster_scores,
    novelty_scores,
    pose_r2,
    pose_scores,
    pose_target,
    rejection_curve,
    rotation_invariance,
    smooth_r2,
    turned_images,
)
from cellinterp.factors.pose import point_group, random_rotations, rotation_about_z


@pytest.fixture(scope="module")
def code():
    "Eight classes on a sphere, five trained on, 50 images each; factors, labels, train."
    random = np.random.default_rng(0)
    means = np.linalg.qr(random.normal(size=(8, 8)))[0]
    labels = np.repeat(np.array(list("abcdefgh")), 50)
    factors = np.repeat(means, 50, 0) + random.normal(0, .08, (400, 8))
    return factors, labels, np.isin(labels, list("abcde")) & (random.random(400) < .7)


def test_a_clean_code_scores_one_and_a_shuffled_one_chance(code):
    factors, labels, train = code
    good = class_scores(factors, labels, train) | cluster_scores(factors, labels)
    assert (
        min(
            good[k]
            for k in (
                "knn_seen",
                "logistic_seen",
                "knn_unseen",
                "logistic_unseen",
                "knn_unseen_among_all",
                "ari",
                "nmi",
            )
        )
        > 0.97
        and good["silhouette"] > 0.8
    )
    random = np.random.default_rng(1)
    blind = class_scores(random.permutation(factors), labels, train)
    # 75 votes among five classes, 75 among three: chance ± 3 standard errors
    assert abs(blind["knn_seen"] - 1 / 5) < 3 * np.sqrt(0.2 * 0.8 / 75) and abs(
        blind["knn_unseen"] - 1 / 3
    ) < 3 * np.sqrt(2 / 9 / 75)


def test_unseen_neighbours_are_fitted_on_a_half_and_scored_on_the_rest(code):
    "If images were scored on themselves, one neighbour would always be right: unrelated labels must stay at chance."
    factors, labels, train = code
    random = np.random.default_rng(2)
    labels = np.where(np.isin(labels, list("fgh")), random.choice(list("fgh"), len(labels)), labels)
    score = class_scores(random.normal(size=factors.shape), labels, train, n_neighbors=1)["knn_unseen"]
    assert abs(score - 1 / 3) < 3 * np.sqrt(2 / 9 / 75)


def test_unseen_among_all_is_the_harder_question(code):
    factors, labels, train = code
    moved = factors.copy()
    # an unseen class that lies on a known one
    moved[labels == "f"] = factors[labels == "a"]
    s = class_scores(moved, labels, train)
    assert s["knn_unseen"] > .97 and s["knn_unseen_among_all"] < .9


def test_class_similarity_is_the_mean_over_pairs(code):
    factors, labels, _ = code
    unit = factors / np.linalg.norm(factors, axis=1, keepdims=True)
    C, S = unit @ unit.T, class_similarity(factors, labels)
    assert np.isclose(S.loc["a", "c"], C[np.ix_(labels == "a", labels == "c")].mean())
    own = C[np.ix_(labels == "b", labels == "b")]
    assert np.isclose(S.loc["b", "b"], (own.sum() - 50) / (50 * 49))
    with pytest.raises(ValueError, match="no image"): class_similarity(factors, labels, ["a", "q"])


def test_agreement_is_spearmans_and_knows_the_unseen_pairs(code):
    from scipy.stats import spearmanr
    factors, labels, _ = code
    names = list("abcdefgh")
    random = np.random.default_rng(0)
    A = random.uniform(-1, 1, (8, 8))
    A = pd.DataFrame((A + A.T) / 2, names, names)
    S = class_similarity(factors, labels).to_numpy()
    pairs = [(i, j) for i in range(8) for j in range(i + 1, 8)]
    slow = spearmanr([S[p] for p in pairs], [A.to_numpy()[p] for p in pairs]).statistic
    fresh = [p for p in pairs if p[1] >= 5]
    slow_unseen = spearmanr([S[p] for p in fresh], [A.to_numpy()[p] for p in fresh]).statistic
    got = affinity_agreement(factors, labels, A, "fgh")
    assert np.isclose(got["affinity_spearman"], slow) and np.isclose(got["affinity_spearman_unseen"], slow_unseen)
    assert np.isclose(affinity_agreement(factors, labels, pd.DataFrame(S, names, names))["affinity_spearman"], 1)


def test_invariance_against_the_loop(code):
    factors = code[0][:40]
    turned = factors + np.random.default_rng(0).normal(0, .1, factors.shape)
    between = np.mean([np.linalg.norm(a - b) for i, a in enumerate(factors) for j, b in enumerate(factors) if i != j])
    assert np.isclose(rotation_invariance(factors, turned), np.linalg.norm(factors - turned, axis=1).mean() / between)
    with pytest.raises(ValueError, match="expected the same"): rotation_invariance(factors, turned[:5])


@pytest.mark.parametrize("shape", [(5, 1, 33, 33), (5, 2, 17, 17, 17)])
def test_turned_images_turn_by_the_stated_rotation(shape):
    images = np.zeros(shape, np.float32)
    middle = shape[-1] // 2
    step = middle // 2
    images[(..., *[middle] * (len(shape) - 3), middle + step)] = 1                              # along x
    there, R = turned_images(images, seed=3)
    for v, r in zip(there[:, 0], R):
        at = np.array(np.unravel_index(v.argmax(), v.shape))[::-1] - middle
        assert np.linalg.norm(at - (r @ [step, 0, 0])[:len(at)]) < 1.3


# --- pose

def test_pose_r2_of_a_known_noise():
    """Noise of variance s² a coordinate on (cos, sin), whose variance is ½ each, leaves R² ≈ ½ / (½ + s²) for the best
    linear guess; a regression must come close.
    """
    random = np.random.default_rng(0)
    t = random.uniform(-np.pi, np.pi, 800)
    told = np.stack([np.cos(t), np.sin(t)], 1) + random.normal(0, .5, (800, 2))
    r2 = pose_r2(told, np.rad2deg(t), ["x"] * 800)
    assert .5 / .75 - .04 < r2 < .85
    # half of it tells half
    assert pose_r2(told[:, 0], np.rad2deg(t), ["x"] * 800) < r2 - .2


def test_leakage_of_nothing_is_nothing():
    random = np.random.default_rng(0)
    assert abs(pose_r2(random.normal(size=(600, 8)), random.uniform(-180, 180, 600), np.repeat(["a", "b"], 300))) < .05
    assert abs(pose_r2(random.normal(size=(600, 8)), random_rotations(600, 1), np.repeat(["a", "b"], 300))) < .05


@pytest.mark.parametrize("group", ["C2", "C4", "D2", "O"])
def test_pose_targets_are_the_same_for_copies_and_differ_otherwise(group):
    R, S = random_rotations(30, 0), point_group(group)
    t = pose_target(R, group)
    for s in S[[-1, len(S) // 2]]: assert np.allclose(pose_target(R @ s, group), t)
    assert np.abs(pose_target(R @ rotation_about_z(25), group) - t).max() > 1e-3


def test_symmetry_can_be_a_number_in_the_plane():
    t = np.random.default_rng(0).uniform(-180, 180, 200)
    doubled = np.stack([np.cos(2 * np.deg2rad(t)), np.sin(2 * np.deg2rad(t))], 1)
    assert pose_r2(doubled, t, ["z"] * 200, {"z": 2}) > .98 > .3 > pose_r2(doubled, t, ["z"] * 200)


def test_pose_scores_and_their_chance():
    R, random = random_rotations(300, 0), np.random.default_rng(0)
    six = R[:, :, :2].transpose(0, 2, 1).reshape(300, 6)
    good, bad = pose_scores(six, R, ["p"] * 300), pose_scores(random.normal(size=(300, 6)), R, ["p"] * 300)
    assert good["pose_error_deg"] < 1e-3 and good["pose_within_30"] == 1 and 120 < good["pose_chance_deg"] < 137
    assert abs(bad["pose_error_deg"] - bad["pose_chance_deg"]) < 12 and abs(bad["pose_r2"]) < .05
    # three numbers are no rotation
    assert set(pose_scores(random.normal(size=(300, 3)), R, ["p"] * 300)) == {"pose_r2"}


def test_smooth_r2_fits_only_what_it_is_shown():
    random = np.random.default_rng(0)
    X = random.uniform(-2, 2, (200, 1))
    Y = np.sin(2 * X)
    fit = np.arange(200) < 100
    residual, total = smooth_r2(X, Y, fit)
    assert residual < .01 * total
    # what is scored must not be fitted
    changed = Y.copy()
    changed[~fit] = 0
    assert smooth_r2(X, changed, fit)[0] > .3 * np.square(Y[~fit]).sum()


# --- novelty

def test_novelty_is_mahalanobis_to_the_nearest_class(code):
    from scipy.spatial.distance import cdist
    factors, labels, train = code
    regions = KnownRegions(.9).fit(factors[train], labels[train])
    assert np.allclose(
        regions.novelty(factors), cdist(factors, regions.means_, "mahalanobis", VI=regions.precision_).min(1)
    )
    assert abs((regions.predict(factors[train]) == "").mean() - .1) < .02
    assert (regions.predict(factors[train]) == labels[train])[
        regions.novelty(factors[train]) <= regions.threshold_
    ].mean() > 0.99
    scaled = KnownRegions(.9).fit(factors[train] * [1e3, 1, 1, 1, 1, 1, 1, 1e-3], labels[train])
    # units do not matter
    assert np.allclose(scaled.novelty(factors * [1e3, 1, 1, 1, 1, 1, 1, 1e-3]), regions.novelty(factors), rtol=1e-6)


def test_auroc_far_and_inside(code):
    factors, labels, train = code
    assert novelty_scores(factors, labels, train)["novelty_auroc"] > .99
    inside = factors.copy()
    inside[labels == "f"], inside[labels == "g"], inside[labels == "h"] = (
        factors[labels == "a"],
        factors[labels == "b"],
        factors[labels == "c"],
    )
    assert abs(novelty_scores(inside, labels, train)["novelty_auroc"] - .5) < .15
    curve = rejection_curve(factors, labels, train)
    assert (
        curve.kept.iloc[-1] == 1
        and curve.kept.is_monotonic_increasing
        and curve.rejected.is_monotonic_decreasing
        and curve.accuracy.min() > 0.95
    )


# --- the report and bad input

def test_the_report_has_the_houses_names(code):
    factors, labels, train = code
    t = np.random.default_rng(0).uniform(-180, 180, 400)
    pose = np.stack([np.cos(np.deg2rad(t)), np.sin(np.deg2rad(t))], 1)
    names = list("abcdefgh")
    report = affinity_report(
        factors,
        labels,
        train,
        pose=pose,
        truth=t,
        affinity=pd.DataFrame(np.eye(8), names, names),
        turned_factors=factors,
    )
    assert {
        "knn_seen",
        "knn_unseen",
        "silhouette",
        "rotation_invariance",
        "pose_r2",
        "pose_error_deg",
        "leakage_r2",
        "leakage_class",
        "novelty_auroc",
    } <= set(report)
    assert (
        report["rotation_invariance"] == 0
        and report["pose_error_deg"] < 1e-3
        and all(isinstance(v, float) for v in report.values())
    )
    bare = affinity_report(factors, labels, train)
    assert "pose_r2" not in bare and bare["knn_seen"] == report["knn_seen"]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(factors=np.zeros(5)), "factors"),
        (dict(labels=["a"] * 3), "labels, train"),
        (dict(train=np.zeros(400, dtype=bool)), "no row"),
        (dict(labels=[""] * 400), "missing"),
        (dict(factors=np.full((400, 2), np.nan)), "NaN"),
    ],
)
def test_the_report_refuses(code, change, message):
    arguments = {**dict(factors=code[0], labels=code[1], train=code[2]), **change}
    with pytest.raises(ValueError, match=message):
        affinity_report(**arguments)


# --- pictures

def test_a_class_keeps_its_colour():
    assert class_colours(["1bxn", "4cr2"])["1bxn"] == class_colours(["1bxn"])["1bxn"]
    assert len(set(class_colours([f"c{i}" for i in range(20)]).values())) == 20


def test_the_map_is_one_file_without_outside_hosts(tmp_path, code):
    factors, labels, _ = code
    images = np.random.default_rng(0).normal(size=(400, 1, 8, 8, 8))
    n = interactive_map(
        tmp_path / "m.html", embed(factors, "pca"), images, labels, images, unseen=["h"], title="<script>", n_most=100
    )
    page = (tmp_path / "m.html").read_text()
    assert (
        n == 100
        and not re.search(r"https?:|src=\"//|<link|@import", page)
        and "<script><" not in page.replace("&lt;", "")
    )
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    assert len(data["xy"]) == 100 and data["names"] == list("abcdefgh") and data["unseen"][-1] and not data["unseen"][0]
    import base64
    from io import BytesIO

    from PIL import Image
    assert Image.open(BytesIO(base64.b64decode(data["images"]))).size == (80, 80)


def test_pictures_of_volumes_draw_and_refuse(code):
    import matplotlib

    matplotlib.use("Agg")
    v = np.zeros((2, 1, 12, 12, 12))
    v[:, :, 4:8, 4:8, 3:9] = 1
    assert len(slices(v, ["a", "b"]).axes) == 6 and len(isosurfaces(v).axes) == 2
    assert flat(v, "slice").shape == (2, 12, 12) and np.isclose(flat(v).max(), 4 / 12)
    with pytest.raises(ValueError, match="level"): isosurfaces(v, level=2)
    with pytest.raises(ValueError, match="at least 2"):
        similarity_beside(code[0], code[1], pd.DataFrame([[1.0]], ["q"], ["q"]))
    with pytest.raises(ValueError, match="'umap', 'tsne' or 'pca'"): embed(code[0], "mds")


# --- frames

def _blobs(n, n_axes, size=24, channels=1, seed=0):
    "Smooth random images with random content in the middle."
    random, r = np.random.default_rng(seed), np.arange(size) - (size - 1) / 2
    grid = np.meshgrid(*[r] * n_axes, indexing="ij")[::-1]
    out = np.zeros((n, channels, *[size] * n_axes), np.float32)
    for i in range(n):
        for c in range(channels):
            for point in random.normal(0, size / 9, (6, n_axes)):
                out[i, c] += np.exp(-sum((g - p) ** 2 for g, p in zip(grid, point)) / (2 * (size / 14) ** 2))
    return out


@pytest.mark.parametrize("n_axes, channels, size", [(2, 1, 33), (2, 3, 64), (3, 1, 24), (3, 2, 40)])
def test_a_frame_turns_with_the_image(n_axes, channels, size):
    "What is left is the interpolation of the turned image."
    import torch

    from cellinterp.factors.frames import principal_frame
    from cellinterp.factors.pose import as_rotations, geodesic_angle
    x = _blobs(6, n_axes, size, channels)
    there, T = turned_images(x, seed=1)
    before, after = (as_rotations(principal_frame(torch.from_numpy(v)).numpy()) for v in (x, there))
    assert np.median(geodesic_angle(after, T @ before)) < 6 and np.median(geodesic_angle(after, before)) > 40
    # a shift changes nothing but what the pooling cuts
    moved = np.roll(x, 1, -1)
    assert np.median(geodesic_angle(as_rotations(principal_frame(torch.from_numpy(moved)).numpy()), before)) < 6


def test_a_frame_by_slow_loops():
    "Moments of one image, a pixel at a time, with numpy's eigenvectors; the signs by the skews."
    import torch
    from scipy.ndimage import gaussian_filter

    from cellinterp.factors.frames import principal_frame
    x = _blobs(1, 3, 20, seed=7)[0, 0].astype(float)
    # torch's median is the lower one
    b = gaussian_filter(x, 0.75, mode="constant", radius=2)
    b -= np.median(b) if b.size % 2 else np.sort(b.ravel())[b.size // 2 - 1]
    at = [(np.array(i)[::-1] - 9.5) / 10 for i in np.ndindex(b.shape)]
    w = np.array([max(0, v) if p @ p < 1 else 0 for p, v in zip(at, b.ravel())])
    w = np.maximum(w / w.max() - 0.2, 0) * [p @ p < 1 for p in at]
    w /= w.sum()
    centre = sum(wi * p for wi, p in zip(w, at))
    M = sum(wi * np.outer(p - centre, p - centre) for wi, p in zip(w, at))
    spread, u = np.linalg.eigh(M)
    u = u[:, ::-1]
    skew = np.array(
        [sum(wi * ((p - centre) @ a) ** 3 for wi, p in zip(w, at)) / s**1.5 for a, s in zip(u.T, spread[::-1])]
    )
    u = u * np.sign(skew)
    if np.linalg.det(u) < 0: u[:, np.abs(skew).argmin()] *= -1
    np.testing.assert_allclose(
        principal_frame(torch.from_numpy(x[None, None]).float())[0].numpy(), u[:, :2].T.ravel(), atol=2e-3
    )


def test_a_two_fold_particle_has_a_frame_too():
    "Two of its skews are nothing, and either sign is the same pose."
    import torch

    from cellinterp.factors.frames import principal_frame
    from cellinterp.factors.pose import as_rotations, pose_error
    half = _blobs(1, 3, 24, seed=5)
    # 180° about z: (x, y) → (−x, −y)
    particle = half + half[..., ::-1, ::-1]
    x, T = turned_images(np.repeat(particle, 60, 0), seed=2)
    told = as_rotations(principal_frame(torch.from_numpy(x)).numpy())
    assert np.nanmedian(pose_error(told, T, ["p"] * 60, {"p": "C2"})) < 6


def test_a_framed_model_knows_poses_in_noise():
    "Chance is a median of 132°."
    from cellinterp.data.images import ImageSet
    from cellinterp.data.subtomograms import simulate_subtomograms, true_rotations
    from cellinterp.factors.frames import FramedAffinityVAE
    from cellinterp.factors.pose import pose_error
    models = ImageSet(_blobs(2, 3, 32, seed=3), ["p", "q"], pixel_size=1e-3)
    particles = simulate_subtomograms(models, 80, snr=1.0, seed=1)
    vae = FramedAffinityVAE(
        4,
        gamma=0,
        decoder="splats",
        n_splats=16,
        depth=3,
        capacity=4,
        hidden=16,
        max_steps=2,
        batch_size=8,
        random_state=0,
        device="cpu",
    ).fit(particles.images)
    assert np.nanmedian(pose_error(vae.pose(particles.images), true_rotations(particles), particles.labels)) < 15


def test_frames_refuse_other_poses():
    from cellinterp.factors.frames import FramedAffinityVAE
    with pytest.raises(ValueError, match="n_pose='auto'"):
        FramedAffinityVAE(4, n_pose=0).fit(np.zeros((4, 1, 32, 32, 32)) + np.arange(32))
