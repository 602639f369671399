"""Planted dictionaries: rows are what their formula says, scores have known answers."""
import numpy as np
import pytest

from cellinterp.concepts.synthetic import atoms_found, best_cosines, fvu, mmcs, planted_dictionary, pursuit_fvu

SMALL = dict(d=32, n_atoms=64, k=4)


def test_rows_are_codes_times_atoms_plus_noise_of_the_stated_size():
    truth = planted_dictionary(4000, **SMALL, noise=0.1, seed=3)
    rest = truth.rows - truth.codes @ truth.atoms
    assert abs(rest.std() - 0.1) < 0.002 and abs(rest.mean()) < 0.002
    np.testing.assert_allclose(np.linalg.norm(truth.atoms, axis=1), 1, rtol=1e-5)


def test_every_row_has_k_different_atoms_of_equal_frequency():
    codes = planted_dictionary(20_000, **SMALL, seed=0).codes
    assert all(len(set(codes.indices[codes.indptr[i]:codes.indptr[i + 1]])) == 4 for i in range(2000))
    times = np.bincount(codes.indices, minlength=64)
    expected = 20_000 * 4 / 64
    # chi-square with about 63 degrees, five deviations above
    assert ((times - expected)**2 / expected).sum() < 64 + 5 * np.sqrt(2 * 64)


def test_supports_are_drawn_without_replacement_by_frequency():
    "Two of three atoms at weights 1, 1/2, 1/3: the probability of each pair has a closed form."
    codes = planted_dictionary(60_000, d=4, n_atoms=3, k=2, frequencies="zipf", seed=1).codes
    p = np.array([6, 3, 2]) / 11
    missing = np.bincount(3 - codes.indices.reshape(-1, 2).sum(1), minlength=3) / 60_000
    def pair(a, b):
        return p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b])
    np.testing.assert_allclose(missing, [pair(1, 2), pair(0, 2), pair(0, 1)], atol=0.01)


@pytest.mark.parametrize("law", ["uniform", "heavy"])
def test_both_laws_of_codes_have_the_same_mean_square(law):
    z = planted_dictionary(200_000, d=2, n_atoms=4, k=2, codes=law, seed=0).codes.data.astype(np.float64)
    assert (z > 0).all()
    assert abs((z**2).mean() / (13 / 12) - 1) < (0.005 if law == "uniform" else 0.05)


def test_correlated_atoms_have_the_stated_cosine_in_groups_and_none_across():
    atoms = planted_dictionary(1, d=512, n_atoms=64, k=1, correlation=0.6, group=4, seed=0).atoms
    cosines = atoms @ atoms.T
    same = np.kron(np.eye(16), np.ones((4, 4))).astype(bool) & ~np.eye(64, dtype=bool)
    assert abs(cosines[same].mean() - 0.6) < 0.02 and abs(cosines[~same & ~np.eye(64, dtype=bool)].mean()) < 0.01


def test_controls_share_the_nuisance_and_carry_no_atom():
    truth = planted_dictionary(6000, **SMALL, nuisance_rank=3, nuisance_std=(5, 1), noise=0.05, n_controls=4000, seed=0)
    assert (
        truth.controls.sum() == 4000
        and truth.codes[truth.controls].nnz == 0
        and truth.codes[~truth.controls].nnz == 24_000
    )
    inside = truth.rows[truth.controls] @ truth.nuisance.T
    np.testing.assert_allclose(inside.std(0), [5, 3, 1], rtol=0.06)
    outside = truth.rows[truth.controls] - inside @ truth.nuisance
    assert np.linalg.norm(outside, axis=1).mean() < 0.05 * np.sqrt(32) * 1.05


def test_the_same_seed_gives_the_same_truth_for_any_number_of_rows():
    a, b, other = (
        planted_dictionary(50, **SMALL, seed=4),
        planted_dictionary(200, **SMALL, seed=4),
        planted_dictionary(50, **SMALL, seed=5),
    )
    np.testing.assert_array_equal(a.atoms, b.atoms)
    assert mmcs(other.atoms, a.atoms) < 0.8
    np.testing.assert_array_equal(a.rows, planted_dictionary(50, **SMALL, seed=4).rows)


def test_scores_by_hand():
    atoms = np.eye(3)
    found = np.array([[2.0, 0, 0], [0, -1, 1], [0, 0, 0]])
    np.testing.assert_allclose(best_cosines(found, atoms), [1, np.sqrt(0.5), np.sqrt(0.5)])
    assert atoms_found(found, atoms) == pytest.approx(1 / 3) and mmcs(
        np.tile(atoms[0], (100, 1)), atoms
    ) == pytest.approx(1 / 3)
    X = np.random.default_rng(0).normal(3, 1, (100, 5))
    assert fvu(X, X) == 0 and fvu(X, np.tile(X.mean(0), (100, 1))) == pytest.approx(1)


def test_the_oracle_explains_all_but_the_noise_and_other_atoms_less():
    truth = planted_dictionary(1000, d=128, n_atoms=128, k=3, noise=0.05, seed=2)
    share = 0.05**2 * 125 / truth.rows.var(0).sum()
    assert pursuit_fvu(truth.rows, truth.atoms, 3) == pytest.approx(share, rel=0.06)
    assert pursuit_fvu(truth.rows, -truth.atoms[::-1] * np.linspace(0.2, 5, 128)[:, None], 3) == pytest.approx(
        pursuit_fvu(truth.rows, truth.atoms, 3), rel=1e-4
    )
    assert pursuit_fvu(truth.rows, truth.atoms[:100], 3) > 2 * share
    assert pursuit_fvu(truth.rows, np.vstack([truth.atoms, np.zeros((3, 128))]), 3) == pytest.approx(share, rel=0.06)


@pytest.mark.parametrize(
    "bad",
    [
        dict(k=65),
        dict(k=0),
        dict(n=0),
        dict(n=2.5),
        dict(noise=-0.1),
        dict(correlation=1.0),
        dict(correlation=-0.1),
        dict(codes="gamma"),
        dict(frequencies="rare"),
        dict(nuisance_rank=33),
        dict(nuisance_rank=-1),
    ],
)
def test_bad_arguments_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        planted_dictionary(**{**dict(n=10), **SMALL, **bad})


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match=r"one d"): mmcs(np.ones((3, 4)), np.ones((3, 5)))
    with pytest.raises(ValueError, match="no variance"): fvu(np.ones((3, 2)), np.ones((3, 2)))
