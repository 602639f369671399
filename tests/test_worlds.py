"""Hard worlds: what they are, what the scores say of the truth and of known failures, pursuit that stops by itself."""
import numpy as np
import pytest
from scipy import sparse

from cellinterp.concepts.pursuit import omp, to_csr
from cellinterp.concepts.worlds import World, hard_world, match_atoms, mcc, oracle_codes, world_scores


@pytest.fixture(scope="module")
def world(): return hard_world(8_000, random_state=3)


def test_children_fire_with_their_parent_and_alone(world):
    on = (world.codes > 0).toarray()
    child = np.flatnonzero(world.parent >= 0)
    assert len(world.parent) == 672 and (world.parent == -1).sum() == 32
    assert not (on[:, child] & ~on[:, world.parent[child]]).any()
    assert all(on[:, world.parent == p].sum(1).max() <= 1 for p in range(32))
    assert abs(world.l0 - 5.25) < .3
    np.testing.assert_allclose(np.linalg.norm(world.atoms, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(world.rows, world.codes @ world.atoms, atol=1e-4)


def test_roots_are_correlated_as_asked():
    def dependence(c):
        on = (hard_world(20_000, roots=16, depth=0, l0=5, correlation=c, rank=2, random_state=0).codes > 0).toarray()
        return np.abs(np.corrcoef(on.T)[np.triu_indices(16, 1)]).mean()
    assert dependence(.6) > 5 * dependence(0) and dependence(0) < .02


def test_the_truth_scores_one_and_failures_are_seen(world):
    right = world_scores(world.atoms[::-1], world.codes[:, ::-1], world, world.codes @ world.atoms)
    for name in ("mcc", "f1", "precision", "recall", "found_09"): assert right[name] > 1 - 1e-6
    for name in ("hedging", "absorption", "splitting", "fvu"): assert abs(right[name]) < 1e-6
    codes, atoms = world.codes.toarray(), world.atoms.copy()
    children = np.flatnonzero(world.parent == 0)
    codes[(codes[:, children] > 0).any(1), 0] = 0                                       # silent where a child fires
    atoms[0] += atoms[children].sum(0)                                                  # leans towards its children
    wrong = world_scores(np.r_[atoms, atoms[:1]], sparse.csr_array(np.c_[codes, codes[:, :1] * 0]), world)
    assert wrong["absorption"] > 1 / 200 and wrong["hedging"] > 1e-4 and wrong["splitting"] > 0
    assert wrong["mcc"] < 1 and wrong["recall"] < 1


def test_an_atom_counts_once(world):
    twice = np.r_[world.atoms[:1], world.atoms[:1]]
    assert len(match_atoms(twice, world.atoms)[0]) == 2 and mcc(twice, world.atoms) < .8


def test_pursuit_that_stops_by_itself_finds_what_a_fixed_number_cannot(world):
    """With the true atoms, codes whose number follows from the row have a far better F1 than a fixed number at the same
    mean: rows carry from none to a dozen features.
    """
    part = World(world.rows[:2000], world.atoms, world.codes[:2000], world.parent)
    fixed, free = (oracle_codes(part, *options) for options in ((5, 0.0), (12, 0.3)))
    scores = [world_scores(world.atoms, Z, part, Z @ world.atoms) for Z in (fixed, free)]
    assert abs(scores[1]["l0"] / world.l0 - 1) < .1
    assert scores[1]["f1"] > scores[0]["f1"] + .2 and scores[1]["fvu"] < scores[0]["fvu"] / 3


@pytest.mark.parametrize("selection", ["signed", "absolute", "nonnegative"])
def test_the_tolerance_is_relative_and_the_same_in_both_engines(world, selection):
    X, W = world.rows[:60].astype(float), world.atoms.astype(float)
    def codes(scale, engine):
        return to_csr(*omp(X * scale, W, 8, selection=selection, tolerance=.3, engine=engine), 672).toarray() / scale
    want = codes(1, "numba")
    assert 2 < (want != 0).sum(1).mean() < 8
    for scale in (1e-9, 1, 1e9):
        for engine in ("numba", "torch"): np.testing.assert_allclose(codes(scale, engine), want, atol=1e-5)
