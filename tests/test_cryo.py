"""Rotations, glyphs, polycubes, volumes, subtomograms and particles, as installed: conventions against SciPy and by
hand, known answers, bad input.
"""
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cellinterp.data.glyphs import TRAIN_LETTERS, glyph_symmetry, render_glyphs
from cellinterp.data.images import ImageSet
from cellinterp.data.particles import cut_particles, read_particles, relion_angles, relion_rotations, write_star
from cellinterp.data.polycubes import canonical, grow_polycube, polycube_volume, random_polycubes
from cellinterp.data.subtomograms import (
    ctf_curve,
    density_from_pdb,
    find_symmetry,
    read_densities,
    resample,
    rotated,
    simulate_subtomograms,
    true_rotations,
    wavelength,
    wedge_mask,
)
from cellinterp.data.volumes import class_of, load_volumes, read_volume, voxel_size, write_volume
from cellinterp.factors.pose import (
    as_rotations,
    calibration_half,
    fit_gauge,
    geodesic_angle,
    point_group,
    pose_error,
    random_rotations,
    rotation_about_z,
    rotation_from_2d,
    rotation_from_6d,
    rotation_to_6d,
)

angle = st.floats(-180, 180, allow_nan=False)


# --- rotations

@given(angle, st.floats(0, 180), angle)
@settings(max_examples=60, deadline=None)
def test_relion_angles_are_scipys_inverse_zyz_and_come_back(rot, tilt, psi):
    R = relion_rotations([[rot, tilt, psi]])
    assert np.allclose(R[0], Rotation.from_euler("ZYZ", [rot, tilt, psi], degrees=True).inv().as_matrix(), atol=1e-9)
    assert np.allclose(relion_rotations(relion_angles(R)), R, atol=1e-6)


def test_a_tilt_turns_the_reference_as_relion_says():
    """By hand: tilt alone is a rotation about y; it takes the reference's z to −x (RELION's matrix is the transpose of
    an active ZYZ rotation).
    """
    R = relion_rotations([[0, 90, 0]])[0]
    assert np.allclose(R @ [0, 0, 1], [-1, 0, 0], atol=1e-12) and np.allclose(R @ [0, 1, 0], [0, 1, 0], atol=1e-12)


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6))
@settings(max_examples=60, deadline=None)
def test_any_six_numbers_are_a_rotation(six):
    R = rotation_from_6d(np.array(six))
    assert np.allclose(R.T @ R, np.eye(3), atol=1e-6) and np.linalg.det(R) > 0
    assert np.allclose(rotation_from_6d(rotation_to_6d(R)), R, atol=1e-6)


def test_six_numbers_are_the_first_two_columns():
    R = random_rotations(5, 0)
    assert np.allclose(rotation_to_6d(R), np.concatenate([R[..., 0], R[..., 1]], -1)) and np.allclose(
        rotation_from_6d(rotation_to_6d(R)), R
    )


def test_geodesic_angles_against_scipy_and_at_both_ends():
    a, b = Rotation.random(50, random_state=0), Rotation.random(50, random_state=1)
    assert np.allclose(geodesic_angle(a.as_matrix(), b.as_matrix()), np.rad2deg((a.inv() * b).magnitude()), atol=1e-7)
    assert geodesic_angle(np.eye(3), np.eye(3)) == 0
    assert np.isclose(geodesic_angle(np.eye(3), rotation_about_z(1e-7)), 1e-7, rtol=1e-6) and np.isclose(
        geodesic_angle(np.eye(3), rotation_about_z(179.9999)), 179.9999
    )


@pytest.mark.parametrize("name", ["C1", "C3", "C8", "D2", "D7", "T", "O", "I"])
def test_point_groups_are_groups_of_the_right_order(name):
    group = point_group(name)
    assert np.allclose(group[0], np.eye(3))
    theirs = Rotation.create_group(name).as_matrix()
    assert len(group) == len(theirs)
    assert np.allclose(np.sort(geodesic_angle(group, np.eye(3))), np.sort(geodesic_angle(theirs, np.eye(3))), atol=1e-5)
    products = np.einsum("aij,bjk->abik", group, group).reshape(-1, 1, 3, 3)
    assert np.abs(products - group).max((2, 3)).min(1).max() < 1e-6


@pytest.mark.parametrize("bad", ["C0", "", "E3", "D", "T2", np.zeros((2, 3, 3)), np.eye(3)])
def test_what_is_no_point_group_is_refused(bad):
    with pytest.raises(ValueError, match="point group"): point_group(bad)


@pytest.mark.parametrize("group", ["C1", "C2", "D3", "O"])
def test_pose_error_undoes_the_gauge_and_the_symmetry(group):
    """Predictions that are exact but for a frame of the model's own and a symmetric copy each have no error; a wrong
    direction of the gauge has.
    """
    S, random = point_group(group), np.random.default_rng(0)
    true, G = random_rotations(60, 1), random_rotations(1, 2)[0]
    predicted = true @ S[random.integers(len(S), size=60)] @ G.T
    e = pose_error(predicted, true, ["x"] * 60, {"x": group})
    assert np.isfinite(e).sum() == 30 and np.nanmax(e) < 1e-3
    # a turn on the other side is no gauge
    assert np.nanmedian(pose_error(G.T @ predicted, true, ["x"] * 60, {"x": group})) > 5


def test_pose_error_of_guesses_is_that_of_chance():
    """Unrelated rotations: the density of the angle is (1 − cos d)/π, its median 132.3°; a gauge fitted on 500 guesses
    takes off a few degrees at most.
    """
    d = np.linspace(0, np.pi, 100001)
    median = np.rad2deg(d[np.searchsorted((d - np.sin(d)) / np.pi, .5)])
    e = pose_error(random_rotations(1000, 3), random_rotations(1000, 4), ["x"] * 1000)
    assert median - 8 < np.nanmedian(e) < median + 4


def test_the_gauge_survives_wild_predictions():
    true, G = random_rotations(100, 1), random_rotations(1, 2)[0]
    predicted = true @ G.T
    predicted[:40] = random_rotations(40, 9)
    assert geodesic_angle(fit_gauge(predicted, true), G) < 1


def test_the_calibration_half_is_half_of_every_class():
    labels = np.repeat(["a", "b", "c"], [10, 7, 1])
    half = calibration_half(labels)
    assert [half[labels == c].sum() for c in "abc"] == [5, 3, 0]
    with pytest.raises(ValueError, match="class 'c' has 1 images and none in the calibration half"):
        pose_error(random_rotations(18), random_rotations(18), labels)


def test_poses_of_every_shape():
    t = np.array([10., -100])
    same = [
        rotation_about_z(t),
        t,
        np.deg2rad(t)[:, None],
        np.stack([np.cos(np.deg2rad(t)), np.sin(np.deg2rad(t))], 1) * 3,
        rotation_to_6d(rotation_about_z(t)),
    ]
    for pose in same: assert np.allclose(as_rotations(pose), same[0], atol=1e-9)
    with pytest.raises(ValueError, match="expected"): as_rotations(np.zeros((4, 5)))
    assert np.allclose(rotation_from_2d([0., 1]) @ [1, 0, 0], [0, 1, 0])


# --- glyphs and polycubes

def test_glyphs_are_the_same_by_seed_and_in_the_box():
    a, b = render_glyphs(n=40, size=32, seed=1), render_glyphs(n=40, size=32, seed=1)
    assert (
        (a.images == b.images).all()
        and (a.factors.angle == b.factors.angle).all()
        and (a.images != render_glyphs(n=40, size=32, seed=2).images).any()
    )
    assert (
        a.class_names == list(TRAIN_LETTERS)
        and a.images.dtype == np.float32
        and a.factors.angle.between(-180, 180).all()
    )
    wide = render_glyphs("WMm@", 8, angle=45, size=32)
    assert wide.images[:, :, [0, -1]].max() == 0


def test_a_glyph_turns_x_towards_y():
    "The mass of an L-shaped letter, turned by 90°, is that of the array turned from x (columns) to y (rows)."
    for letter in "Lj7":
        upright, turned = (render_glyphs(letter, 1, angle=a, size=32).images[0, 0] for a in (0, 90))
        assert np.corrcoef(np.rot90(upright, -1).ravel(), turned.ravel())[0, 1] > .99


def test_symmetry_of_letters():
    assert glyph_symmetry("z") == 2 and glyph_symmetry("b") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(letters=["ab"]), "single characters"),
        (dict(letters="\t"), "seen"),
        (dict(letters="漢"), "DejaVu"),
        (dict(n=3), "at least one"),
        (dict(noise=-1), "noise"),
        (dict(size=8), "size"),
        (dict(angle=(5, 4)), "angle"),
    ],
)
def test_glyphs_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        render_glyphs(**arguments)


def test_polycubes_are_classes_up_to_rotation_only():
    random = np.random.default_rng(0)
    cells = grow_polycube(6, random)
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert canonical(cells @ turn.T - 7) == canonical(cells)
    assert len({canonical(grow_polycube(4, random)) for _ in range(400)}) == 8                 # OEIS A000162
    sets = random_polycubes(6, cells=4, size=32)
    assert len(set(sets.labels)) == 6 and sets.images.shape == (6, 1, 32, 32, 32)
    assert np.isclose(polycube_volume([[0, 0, 0], [0, 0, 1]], edge=6).sum(), 2 * 6**3, rtol=.03)


# --- volumes

def test_classes_are_compared_whole(tmp_path):
    for name in ("1b2_1", "1b23_1", "x1b2_1", "1B2_1"): write_volume(tmp_path / f"{name}.mrc", np.zeros((4, 4, 4)), 8)
    assert load_volumes(tmp_path, classes="1b2").metadata.file.tolist() == ["1b2_1.mrc"]
    assert (
        class_of("folder/1b23_1-2-3.mrc.gz") == "1b23"
        and class_of("plain.map") == "plain"
        and class_of("a-b.mrc", "-") == "a"
    )
    with pytest.raises(ValueError, match="no volume of 'b2'"): load_volumes(tmp_path, classes=["1b2", "b2"])


def test_written_volumes_come_back(tmp_path):
    v = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    write_volume(tmp_path / "v.mrc", v, 13.48)
    array, size = read_volume(tmp_path / "v.mrc")
    assert (array == v).all() and np.isclose(size, 13.48)
    write_volume(tmp_path / "s.mrcs", v, 2)
    assert load_volumes(tmp_path / "s.mrcs").images.shape == (5, 1, 6, 7)
    np.savez(tmp_path / "d.npz", a=v, b=v)
    with pytest.raises(ValueError, match="expected one called"): read_volume(tmp_path / "d.npz")
    with pytest.raises(ValueError, match="expected .mrc"): read_volume(_touch(tmp_path / "v.txt"))
    with pytest.raises(FileNotFoundError): read_volume(tmp_path / "none.mrc")
    import mrcfile
    with mrcfile.new(tmp_path / "flat.mrc", v) as m: m.voxel_size = (1, 1, 2)
    with pytest.raises(ValueError, match="expected cubes"): read_volume(tmp_path / "flat.mrc")


def _touch(path):
    path.write_text("x")
    return path


def test_a_csv_names_the_classes_and_must_name_all(tmp_path):
    for name in "ab": write_volume(tmp_path / f"{name}.mrc", np.zeros((4, 4, 4)), 10)
    table = pd.DataFrame({"file": ["b.mrc", "a.mrc"], "label": ["second", "first"]})
    volumes = load_volumes(tmp_path, labels=table)
    assert volumes.labels.tolist() == ["first", "second"] and np.isclose(voxel_size(volumes), 10)
    with pytest.raises(ValueError, match="no row for b.mrc"): load_volumes(tmp_path, labels=table[1:])


# --- subtomograms

@pytest.fixture(scope="module")
def densities():
    "Two lopsided stars of Gaussians, 20 Å wide, at 10 Å a voxel."
    out = []
    for seed in (0, 1):
        c = np.random.default_rng(seed).normal(0, 4, (6, 3))
        c -= c.mean(0)
        r = np.arange(32) - 15.5
        out.append(sum(np.exp(-((r[:, None, None] - z)**2 + (r[:, None] - y)**2 + (r - x)**2) / 8) for x, y, z in c))
    return ImageSet(np.stack(out)[:, None].astype(np.float32), ["p", "q"], pixel_size=1e-3)


def test_simulation_places_the_density_by_its_stated_pose(densities):
    clean = simulate_subtomograms(densities, 6, snr=None, shift=2, seed=3)
    R = true_rotations(clean)
    for i, label in enumerate(clean.labels):
        again = rotated(
            densities.images["pq".index(label), 0],
            R[[i]],
            clean.factors[["shift_x", "shift_y", "shift_z"]].to_numpy()[[i]],
        )[0]
        assert np.corrcoef(again.ravel(), clean.images[i].ravel())[0, 1] > .98
        wrong = rotated(densities.images["pq".index(label), 0], R[[i]].transpose(0, 2, 1))[0]
        # the inverse is not the pose
        assert np.corrcoef(wrong.ravel(), clean.images[i].ravel())[0, 1] < .9


def test_rotation_is_a_slow_lookup(densities):
    "Against the definition: the particle at x is the density at Rᵀ x, voxel by voxel, with the same spline."
    from scipy.ndimage import map_coordinates
    d, R = densities.images[0, 0], random_rotations(1, 5)[0]
    r = np.arange(32) - 15.5
    z, y, x = np.meshgrid(r, r, r, indexing="ij")
    back = R.T @ np.stack([x.ravel(), y.ravel(), z.ravel()])
    slow = map_coordinates(d.astype(float), back[::-1] + 15.5, order=3).reshape(d.shape)
    assert np.abs(rotated(d, R[None])[0] - slow).max() < 1e-4 * d.max()


@pytest.mark.parametrize("snr", [.05, 1.])
def test_snr_is_what_was_asked(densities, snr):
    clean, noisy = (simulate_subtomograms(densities, 20, snr=s, seed=1).images.reshape(20, -1) for s in (None, snr))
    r2 = [np.corrcoef(a, b)[0, 1]**2 for a, b in zip(clean, noisy)]
    assert np.isclose(np.mean(r2), snr / (1 + snr), rtol=.1)


def test_the_wedge_is_empty_and_the_rest_is_not(densities):
    v = simulate_subtomograms(densities, 2, snr=1, missing_wedge=50, seed=0).images[:, 0].astype(float)
    power, mask = (np.abs(np.fft.rfftn(v, axes=(1, 2, 3)))**2).mean(0), wedge_mask(32, 50)
    assert power[mask == 0].max() < 1e-8 * power.max() and np.median(power[(mask == 1)]) > 1e-4 * power.mean()
    angle = np.rad2deg(np.arctan2(np.abs(np.fft.fftfreq(32))[:, None], np.fft.rfftfreq(32)[None]))
    assert (mask[:, 5][angle > 51] == 0).all() and (mask[:, 5][angle < 49] == 1).all()         # (kz, kx) at any ky


def test_ctf_against_numbers_worked_out_by_hand():
    assert np.isclose(wavelength(300), .019687, atol=2e-6) and np.isclose(wavelength(200), .025079, atol=2e-6)
    # χ = πλΔz k² − π/2 Cs λ³ k⁴ at 2 µm, 2.7 mm
    k = .05
    chi = np.pi * .0196875 * 2e4 * k**2 - np.pi / 2 * 2.7e7 * .0196875**3 * k**4
    assert np.isclose(
        ctf_curve(k**2, 2.0, amplitude_contrast=0.07),
        np.sqrt(1 - 0.07**2) * np.sin(chi) + 0.07 * np.cos(chi),
        atol=1e-4,
    )
    assert np.isclose(ctf_curve(.01, 1.0, b_factor=100) / ctf_curve(.01, 1.0), np.exp(-.25))


def test_ctf_of_the_simulation_is_on_the_signal(densities):
    clean, seen = (
        simulate_subtomograms(densities, 2, snr=None, ctf=c, seed=2).images[0, 0].astype(float)
        for c in (None, dict(defocus=4.0))
    )
    a, b = np.fft.rfftn(clean), np.fft.rfftn(seen)
    k = np.array([[0, 0, 2], [0, 3, 0], [4, 0, 0], [2, 2, 2]])
    ratio = np.array([(b / a)[tuple(i)].real for i in k])
    expected = ctf_curve(np.square(k / 320).sum(1), 4.0)
    assert np.allclose(ratio / ratio[0], expected / expected[0], atol=.02)


def test_resampling_keeps_the_middle_and_the_mass(densities):
    d = densities.images[0, 0]
    coarse = resample(d, 10, 20)
    def centre(v):
        return (np.average(np.indices(v.shape).reshape(3, -1), axis=1, weights=np.clip(v, 0, None).ravel())
            - (len(v) - 1) / 2)
    assert (
        coarse.shape == (16,) * 3
        and np.allclose(centre(coarse) * 2, centre(d), atol=0.3)
        and np.isclose(coarse.sum() * 8, d.sum(), rtol=0.03)
    )


def test_an_atom_is_a_gaussian_of_the_resolution(tmp_path):
    (tmp_path / "one.pdb").write_text(
        "ATOM      1  CA  ALA A   1      11.000  22.000  33.000  1.00 20.00           C\nEND\n"
    )
    d = density_from_pdb(tmp_path / "one.pdb", resolution=40, voxel_size=10)
    r = (np.arange(len(d)) - (len(d) - 1) / 2) * 10
    second = np.average(r**2, weights=d.sum((1, 2)))
    # carbon; σ = r / (π√2); spreading onto the grid adds to it
    assert np.isclose(np.sqrt(second), 40 / (np.pi * 2**.5), rtol=.06) and np.isclose(d.sum(), 6, rtol=.02)
    with pytest.raises(ValueError, match="at least two voxels"): density_from_pdb(tmp_path / "one.pdb", 15, 10)
    (tmp_path / "none.pdb").write_text("END\n")
    with pytest.raises(ValueError, match="no atoms"): density_from_pdb(tmp_path / "none.pdb", 40, 10)
    mixed = read_densities([tmp_path / "one.pdb"], voxel_size=10, resolution=40)
    assert mixed.labels.tolist() == ["one"] and np.isclose(mixed.pixel_size, 1e-3)


def test_symmetry_is_found_where_it_is():
    ring = np.array([[5 * np.cos(a), 5 * np.sin(a), 0] for a in np.arange(3) * 2 * np.pi / 3])
    R, r = random_rotations(1, 7)[0], np.arange(24) - 11.5
    def ball(points):
        return sum(
            np.exp(-((r[:, None, None] - z) ** 2 + (r[:, None] - y) ** 2 + (r - x) ** 2) / 6)
            for x, y, z in points @ R.T
        )
    assert find_symmetry(ball(ring), n_axes=120, orders=(4, 3, 2))[0] == "D3"
    name, group, r_low = find_symmetry(
        ball(np.concatenate([ring, 0.4 * ring + [0, 0, 5]])), n_axes=120, orders=(4, 3, 2)
    )
    assert name == "C3" and r_low > .97 and np.allclose(np.abs(group[1] @ R[:, 2]), np.abs(R[:, 2]), atol=.05)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(n=1), "at least one"),
        (dict(snr=-1), "snr"),
        (dict(missing_wedge=120), "missing_wedge"),
        (dict(ctf=dict(cs=1, focus=2)), "focus"),
        (dict(size=4), "size"),
        (dict(rotations=np.eye(3)), "rotations"),
        (dict(ctf=dict(defocus=(3, 2))), "defocus"),
    ],
)
def test_simulation_refuses(densities, arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate_subtomograms(densities, **{**dict(n=4), **arguments})


# --- particles

def test_a_star_round_trip_keeps_poses_classes_and_coordinates(tmp_path):
    R, classes = random_rotations(9, 0), np.array(list("abcabcabc"))
    table = pd.DataFrame({"x": np.arange(9) + .25, "y": 5., "z": 7., "tomogram": "T", "rlnAngleRot": 1e9})
    write_star(tmp_path / "p.star", R, classes, table=table, pixel_size=10, prior=True)
    back = read_particles(tmp_path / "p.star", need=("x", "rot", "label", "tomogram"))
    assert np.allclose(relion_rotations(back[["rot", "tilt", "psi"]].to_numpy(float)), R, atol=1e-6)
    assert (
        back.label.tolist() == list(classes)
        and back.rlnClassNumber.tolist() == [1, 2, 3] * 3
        and np.allclose(back.x, table.x)
    )
    assert np.allclose(back.rlnAngleTiltPrior, back.tilt) and back.attrs["pixel_size"] == 10


def test_a_star_without_its_columns_is_a_clear_error(tmp_path):
    write_star(tmp_path / "p.star", random_rotations(2))
    with pytest.raises(
        ValueError, match="p.star lacks rlnCoordinateX, rlnCoordinateY, rlnCoordinateZ; it has rlnAngleRot"
    ):
        read_particles(tmp_path / "p.star")
    (tmp_path / "empty.star").write_text("data_\n\n_rlnKey value\n")
    with pytest.raises(ValueError, match="holds no table|lacks"): read_particles(tmp_path / "empty.star")
    (tmp_path / "c.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match="c.csv lacks z; it has"): read_particles(tmp_path / "c.csv")


def test_boxes_are_cut_where_they_lie(tmp_path):
    tomogram = np.arange(20 * 30 * 40, dtype=np.float32).reshape(20, 30, 40)
    at = pd.DataFrame({"x": [20, 2], "y": [15, 15], "z": [10, 10]})
    cut = cut_particles(tomogram, at, 8)
    assert (cut.images[0, 0] == tomogram[6:14, 11:19, 16:24]).all() and cut.metadata.particle.tolist() == [0]
    filled = cut_particles(tomogram, at, 8, edge="fill").images[1, 0]
    inside = tomogram[6:14, 11:19, 0:6]
    assert (filled[:, :, 2:] == inside).all() and np.allclose(filled[:, :, :2], inside.mean())
    with pytest.raises(ValueError, match="none of 2 boxes"): cut_particles(tomogram, at + 500, 8)
    with pytest.raises(ValueError, match="edge"): cut_particles(tomogram, at, 8, edge="wrap")
    with pytest.raises(ValueError, match="no finite coordinates"): cut_particles(tomogram, at.assign(x=[np.nan, 1]), 8)


@pytest.mark.skipif(
    not os.environ.get("CELLINTERP_DATA"), reason="CELLINTERP_DATA is not set: the SHREC densities are not here"
)
def test_shrec_densities_from_maps_and_from_atoms():
    from cellinterp.data.public import find_set, load_data

    maps = load_data("shrec_densities", size=64)
    particles = simulate_subtomograms(maps, 11, seed=0)
    assert particles.images.shape == (11, 1, 32, 32, 32) and sorted(particles.labels) == sorted(maps.labels)
    atoms = density_from_pdb(
        find_set("shrec_densities") / "pdb" / sorted(os.listdir(find_set("shrec_densities") / "pdb"))[0],
        resolution=25,
        voxel_size=10,
    )
    assert atoms.max() > 0 and atoms.shape[0] >= 8
