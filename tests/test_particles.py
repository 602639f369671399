"""Particle files of RELION 3.0 to 5, Warp, Dynamo and of anybody: read right or refused, and written back as they were.
"""
import os
import struct

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cellinterp.data import (
    cut_particles,
    dynamo_angles,
    dynamo_rotations,
    load_volumes,
    read_densities,
    read_particles,
    read_star,
    read_volume,
    relion_angles,
    relion_rotations,
    write_dynamo,
    write_star,
    write_volume,
)
from cellinterp.data.star import star_text

XYZ = ["rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ"]


def star(path, particles, optics=None, name="particles", **others):
    "A .star file by the package starfile."
    blocks = {**others, **({} if optics is None else {"optics": pd.DataFrame(optics)}), name: pd.DataFrame(particles)}
    starfile.write(blocks, path)
    return path


def at(*values, **more):
    "Particles on the diagonal."
    return {**{c: list(map(float, values)) for c in XYZ}, **more}


# --- positions

OPTICS = dict(rlnOpticsGroup=[1, 2], rlnOpticsGroupName=["a", "b"])


@pytest.mark.parametrize(
    "particles, optics, pixel_size, expected",
    [
        # RELION 3.0: pixels from the detector (µm) and the magnification, origins in pixels
        (at(32, rlnOriginX=[2.0], rlnDetectorPixelSize=[4.0], rlnMagnification=[10000.0]), None, None, [30]),
        (at(32, rlnOriginX=[2.0], rlnDetectorPixelSize=[4.0], rlnMagnification=[10000.0]), None, 8.0, [15]),
        (at(32, rlnOriginX=[2.0]), None, None, [30]),
        # RELION 3.1: each row by its own optics group
        (
            at(20, 30, rlnOriginXAngst=[8.0, 8], rlnOpticsGroup=[1, 2]),
            {**OPTICS, "rlnImagePixelSize": [2.0, 4.0]},
            None,
            [16, 28],
        ),
        (
            at(20, 30, rlnOriginXAngst=[8.0, 8], rlnOpticsGroup=[2, 1]),
            {**OPTICS, "rlnImagePixelSize": [2.0, 4.0]},
            4.0,
            [18, 13],
        ),
        # images binned by 4, coordinates not
        (
            at(20, rlnOriginXAngst=[8.0], rlnOpticsGroup=[1]),
            dict(rlnOpticsGroup=[1], rlnTomoTiltSeriesPixelSize=[2.0], rlnImagePixelSize=[8.0]),
            None,
            [16],
        ),
        (
            at(20, rlnOriginXAngst=[8.0], rlnOpticsGroup=[1]),
            dict(rlnOpticsGroup=[1], rlnMicrographOriginalPixelSize=[2.0], rlnImagePixelSize=[8.0]),
            None,
            [16],
        ),
        (
            at(20, rlnOriginXAngst=[8.0], rlnOpticsGroup=[1]),
            dict(rlnOpticsGroup=[1], rlnTomoSubtomogramBinning=[4.0], rlnImagePixelSize=[8.0]),
            None,
            [16],
        ),
        # one optics group and no column that says so
        (at(20, rlnOriginXAngst=[8.0]), dict(rlnOpticsGroup=[1], rlnImagePixelSize=[2.0]), None, [16]),
        # a header that rounds 8 Å
        (at(4000, rlnOpticsGroup=[1]), dict(rlnOpticsGroup=[1], rlnTomoTiltSeriesPixelSize=[2.0]), 8.003, [1000]),
    ],
)
def test_a_row_lies_where_its_optics_group_says(tmp_path, particles, optics, pixel_size, expected):
    table = read_particles(star(tmp_path / "p.star", particles, optics), pixel_size=pixel_size)
    assert np.allclose(table.x, expected)


def test_relion_5_counts_from_the_middle(tmp_path):
    centred = {f"rlnCenteredCoordinate{a}Angst": [10.0] for a in "XYZ"}
    optics = dict(rlnOpticsGroup=[1], rlnTomoTiltSeriesPixelSize=[2.0], rlnTomoSubtomogramBinning=[4.0])
    path = star(tmp_path / "p.star", {**centred, "rlnOpticsGroup": [1], "rlnOriginXAngst": [6.0]}, optics)
    assert read_particles(path, shape=(40, 60, 80))[["x", "y", "z"]].to_numpy().tolist() == [[42, 35, 25]]
    assert read_particles(path, 8.0, (10, 15, 20)).x[0] == 10.5
    assert len(read_particles(path, need=())) == 1
    with pytest.raises(ValueError, match="from the middle of the tomogram"): read_particles(path)


def test_a_box_turned_in_its_tomogram_turns_pose_and_origin(tmp_path):
    "RELION's pose is A_box · A_particle, and its origin lies along the box's axes."
    angles = {f"rlnTomoSubtomogram{a}": [v] for a, v in zip(("Rot", "Tilt", "Psi"), (30.0, 40, 50))}
    own = {f"rlnAngle{a}": [v] for a, v in zip(("Rot", "Tilt", "Psi"), (-10.0, 70, 20))}
    path = star(tmp_path / "p.star", {**at(50), **angles, **own, "rlnOriginXAngst": [4.0], "rlnPixelSize": [2.0]})
    table = read_particles(path)
    box, pose = (Rotation.from_euler("ZYZ", a, degrees=True).inv() for a in ([30, 40, 50], [-10, 70, 20]))
    assert np.allclose(relion_rotations(table[["rot", "tilt", "psi"]])[0], (box * pose).as_matrix())
    assert np.allclose(table[["x", "y", "z"]], 50 - box.apply([2, 0, 0]))
    R = Rotation.random(1, random_state=0).as_matrix()
    write_star(path, R, table=table, overwrite=True)
    back = read_particles(path)
    assert np.allclose(relion_rotations(back[["rot", "tilt", "psi"]]), R, atol=1e-6) and np.allclose(back.x, table.x)


@pytest.mark.parametrize(
    "particles, optics, message",
    [
        (at(5, rlnOriginXAngst=[3.0]), None, "row 0 has origins in Å and no pixel size"),
        (at(5, rlnOriginXAngst=[3.0], rlnDetectorPixelSize=[5.0]), None, "no pixel size"),
        (at(5, rlnOpticsGroup=[3]), {**OPTICS}, "optics group 3"),
        (at(5), {**OPTICS}, "2 optics groups"),
        (at(5, rlnOpticsGroup=[1]), dict(rlnOpticsGroup=[1, 1], rlnImagePixelSize=[1.0, 2.0]), "twice"),
        ({"rlnCoordinateX": ["here"], "rlnCoordinateY": [1], "rlnCoordinateZ": [1]}, None, "rlnCoordinateX: text"),
    ],
)
def test_what_cannot_be_known_is_refused(tmp_path, particles, optics, message):
    with pytest.raises(ValueError, match=message): read_particles(star(tmp_path / "p.star", particles, optics))


# --- cutting

def tomogram(path, spot, shape=(40, 40, 40), voxel_size=2):
    v = np.zeros(shape, np.float32)
    v[spot] = 1
    mrcfile.write(path, v, voxel_size=voxel_size)
    return path


@pytest.mark.parametrize(
    "names", [["TS1", "TS2", "TS10"], ["a/TS1.mrc.tomostar", "a/TS2.mrc.tomostar", "TS10"], ["ts1", "ts2", "x"]]
)
@pytest.mark.parametrize("file", ["TS1.mrc", "rec_TS1_8.00Apx.mrc"])
def test_only_rows_of_the_tomogram_are_cut(tmp_path, names, file):
    path = star(tmp_path / "p.star", at(20, 20, 25, rlnTomoName=names))
    cut = cut_particles(tomogram(tmp_path / file, (20, 20, 20)), path, size=8)
    assert cut.metadata.tomogram.tolist() == names[:1] and cut.metadata.particle.tolist() == [0]


def test_another_tomogram_is_refused(tmp_path):
    path = star(tmp_path / "p.star", at(20, 20, rlnTomoName=["TS1", "TS2"]))
    for file in ("TS3.mrc", "TS1_TS2.mrc"):
        with pytest.raises(ValueError, match="expected name="):
            cut_particles(tomogram(tmp_path / file, 0), path, size=8)
    with pytest.raises(ValueError, match="2 tomograms"): cut_particles(np.zeros((40,) * 3), path, size=8)
    assert len(cut_particles(np.zeros((40,) * 3), path, size=8, name="TS2")) == 1
    one = star(tmp_path / "one.star", at(20, rlnTomoName=["TS2"]))
    with pytest.raises(ValueError, match="no particle is of it"):
        cut_particles(tomogram(tmp_path / "TS1.mrc", 0), one, size=8)


def test_a_binned_tomogram_scales_the_list(tmp_path):
    optics = dict(rlnOpticsGroup=[1], rlnTomoTiltSeriesPixelSize=[2.0])
    path = star(tmp_path / "p.star", at(32, 20, rlnOpticsGroup=[1, 1]), optics)
    file = tomogram(tmp_path / "bin4.mrc", (8, 8, 8), voxel_size=8)
    cut = cut_particles(file, path, size=8)
    assert cut.images[0, 0, 4, 4, 4] == 1 and np.isclose(cut.pixel_size, 8e-4)
    assert cut_particles(file, read_particles(path), size=8).images[0, 0, 4, 4, 4] == 1
    with pytest.raises(ValueError, match="none of 2 boxes"): cut_particles(file, path, size=8, pixel_size=.1)
    # what comes of it goes back in the file's own pixels
    write_star(tmp_path / "o.star", classes=["a", "b"], table=cut.metadata)
    assert read_star(tmp_path / "o.star")["particles"].rlnCoordinateX.tolist() == [32, 20]


def test_boxes_left_out_are_counted():
    with pytest.warns(UserWarning, match="1 of 2 boxes"):
        cut_particles(np.zeros((20,) * 3), pd.DataFrame({"x": [10, 1], "y": 10, "z": 10}), 8)


# --- the same file again

def blocks_of(kind):
    common = at(
        20.123456789012345, 30, 1e-7, rlnAngleRot=[1.0, 2, 3], rlnAngleTilt=[4.0, 5, 6], rlnAnglePsi=[7.0, 8, 9]
    )
    names = {
        "rlnTomoName": ["TS 1", "001", "nan"],
        "wrpNote": ["a'b", "x#y", "ü"],
        "rlnCtfImage": ["c.mrc", "", "None"],
    }
    if kind == "3.0":
        return {
            "": pd.DataFrame(
                {**common, **names, "rlnOriginX": [1.0, 0, 2], "rlnMagnification": 10000.0, "rlnDetectorPixelSize": 2.0}
            )
        }
    optics = pd.DataFrame(
        {**OPTICS, "rlnImagePixelSize": [2.0, 4.0], "rlnVoltage": 300.0, "rlnOddZernike": ["[0,1]", "[2]"]}
    )
    p = pd.DataFrame({"rlnOpticsGroup": [2, 1, 2], **names, **common, "rlnOriginXAngst": [8.0, 0, -8]})
    if kind == "3.1": return {"optics": optics, "particles": p}
    if kind == "4":
        return {"optics": optics.assign(rlnTomoTiltSeriesPixelSize=1.0, rlnTomoSubtomogramBinning=2.0), "particles": p}
    p = p.drop(columns=XYZ).assign(**{f"rlnCenteredCoordinate{a}Angst": [1.5, -300, 0] for a in "XYZ"})
    return {
        "general": {"rlnTomoSubTomosAre2DStacks": 1},
        "optics": optics.assign(rlnTomoTiltSeriesPixelSize=1.0),
        "particles": p,
    }


@pytest.mark.parametrize("kind", ["3.0", "3.1", "4", "5"])
def test_a_file_read_and_written_is_the_same_file(tmp_path, kind):
    blocks = blocks_of(kind)
    (tmp_path / "in.star").write_text(star_text(blocks))
    table = read_particles(tmp_path / "in.star", shape=(100, 100, 100) if kind == "5" else None)
    write_star(tmp_path / "out.star", table=table)
    back = read_star(tmp_path / "out.star")
    assert list(back) == list(blocks)
    for name, block in blocks.items():
        if isinstance(block, dict): assert back[name] == block
        else: pd.testing.assert_frame_equal(back[name], block)
    # a third of the rows, in another order, with classes: their own rows and nothing else
    write_star(tmp_path / "part.star", classes=["b"], table=table.iloc[[2]])
    part = read_star(tmp_path / "part.star")[list(blocks)[-1]]
    pd.testing.assert_frame_equal(
        part[list(blocks[list(blocks)[-1]])], blocks[list(blocks)[-1]].iloc[[2]].reset_index(drop=True)
    )
    assert part.cellinterpClassName.tolist() == ["b"]
    # a move is a move
    table["x"] += 2
    write_star(tmp_path / "moved.star", table=table)
    moved = read_particles(tmp_path / "moved.star", shape=(100, 100, 100) if kind == "5" else None)
    assert np.allclose(moved.x, table.x) and np.allclose(moved.y, table.y)


def test_a_table_that_has_lost_its_memory_keeps_groups(tmp_path):
    """Filters and joins of pandas drop attrs: optics columns find their way back, and moved particles are not lost
    silently.
    """
    (tmp_path / "in.star").write_text(star_text(blocks_of("3.1")))
    table = read_particles(tmp_path / "in.star")
    table.attrs = {}
    write_star(tmp_path / "out.star", table=table)
    back = read_star(tmp_path / "out.star")
    assert back["particles"].rlnOpticsGroup.tolist() == [2, 1, 2] and back["optics"].rlnVoltage.tolist() == [300, 300]
    assert "rlnVoltage" not in back["particles"] and back["particles"].wrpNote.tolist() == ["a'b", "x#y", "ü"]
    with pytest.raises(ValueError, match="other places"):
        write_star(tmp_path / "x.star", table=table.assign(x=table.x + 1))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(
            st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs"))
            | st.just(" ")
            | st.sampled_from("#_'\";[$"),
            max_size=8,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_name_comes_back_or_is_refused(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("n") / "p.star"
    try:
        write_star(path, classes=names)
    except ValueError as error:
        assert "one kind of quotes" in str(error) and not path.exists()
        return
    assert read_particles(path, need=()).label.tolist() == names


def test_relion_stays_readable_by_starfile(tmp_path):
    R = Rotation.random(5, random_state=1).as_matrix()
    table = pd.DataFrame({"x": [1.0, 2, 3, 4, 5], "y": 2.0, "z": 3.0, "tomogram": "TS 1"})
    write_star(tmp_path / "p.star", R, list("abcba"), table=table, pixel_size=10, comments=["symmetry a D3"])
    back = starfile.read(tmp_path / "p.star")
    angles = back["particles"][["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()
    assert (
        np.allclose(relion_rotations(angles), R, atol=1e-6) and back["particles"].rlnTomoName.tolist() == ["TS 1"] * 5
    )
    assert back["particles"].rlnClassNumber.tolist() == [1, 2, 3, 2, 1] and back[
        "optics"
    ].rlnImagePixelSize.tolist() == [10]


def test_what_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_star(tmp_path / "w.star", classes=["a"])
    old = (tmp_path / "w.star").read_text()
    with pytest.raises(ValueError): write_star(tmp_path / "w.star", classes=["a\nb"], overwrite=True)
    def full(*a): raise OSError("no space")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError): write_star(tmp_path / "w.star", classes=["c"], overwrite=True)
    assert (tmp_path / "w.star").read_text() == old and len(list(tmp_path.iterdir())) == 1


def test_images_of_a_stack_have_relions_names(tmp_path):
    mrcfile.write(tmp_path / "stack.mrcs", np.zeros((3, 8, 8), np.float32), voxel_size=2)
    s = load_volumes(tmp_path / "stack.mrcs")
    out = write_star(tmp_path / "o.star", classes=["a", "b", "a"], table=s.metadata)
    assert out.rlnImageName.tolist() == ["000001@stack.mrcs", "000002@stack.mrcs", "000003@stack.mrcs"]
    labels = pd.DataFrame({"file": out.rlnImageName[::-1], "label": ["x", "y", "z"]})
    assert load_volumes(tmp_path / "stack.mrcs", labels=labels).labels.tolist() == ["z", "y", "x"]


# --- other programs

def test_dynamo_there_and_back(tmp_path):
    "Dynamo's angles are the extrinsic zxz angles of the inverse; narot turns the reference about its own axis."
    R = Rotation.random(20, random_state=2)
    assert np.allclose(dynamo_angles(R.as_matrix()), R.inv().as_euler("zxz", degrees=True))
    assert np.allclose(dynamo_rotations([[0, 0, 25.0]])[0], Rotation.from_euler("z", -25, degrees=True).as_matrix())
    table = pd.DataFrame({"x": np.arange(20) + .5, "y": 3.0, "z": 4.0, "tomogram": ["b", "a"] * 10})
    write_dynamo(tmp_path / "p.tbl", R.as_matrix(), ["k"] * 19 + [""], table=table)
    back = read_particles(tmp_path / "p.tbl")
    assert np.allclose(relion_rotations(back[["rot", "tilt", "psi"]]), R.as_matrix(), atol=1e-6)
    assert (
        np.allclose(back.x, table.x)
        and back.tomogram.tolist() == ["1", "2"] * 10
        and back.label.tolist() == ["1"] * 19 + ["0"]
    )


def test_poles_have_angles():
    R = relion_rotations([[10, 0, 30], [10, 180, 30]])
    assert np.allclose(relion_rotations(relion_angles(R)), R) and np.allclose(relion_angles(R)[:, 0], 0)


def test_names_in_a_csv_stay_names(tmp_path):
    (tmp_path / "p.csv").write_text("x;y;z;label;tomogram\n1;2;3;NA;001\n1;2;;None;002\n")
    table = read_particles(tmp_path / "p.csv")
    assert table.label.tolist() == ["NA", "None"] and table.tomogram.tolist() == ["001", "002"] and np.isnan(table.z[1])


# --- mrc headers

def test_headers_decide_what_a_file_holds(tmp_path):
    write_volume(tmp_path / "map.mrc", np.zeros((20, 24, 28)), voxel_size=5)
    assert load_volumes(tmp_path / "map.mrc").images.shape == (1, 1, 20, 24, 28)
    with mrcfile.new(tmp_path / "images.mrc", np.zeros((5, 8, 8), np.float32)) as m: m.set_image_stack()
    assert load_volumes(tmp_path / "images.mrc").images.shape == (5, 1, 8, 8)
    with pytest.raises(ValueError, match="expected one kind"): load_volumes(tmp_path)
    stacks = tmp_path / "stacks"
    stacks.mkdir()
    for i in range(3): mrcfile.write(stacks / f"mic{i}.mrcs", np.full((5, 8, 8), i, np.float32), voxel_size=2)
    s = load_volumes(stacks)
    assert s.images.shape == (15, 1, 8, 8) and s.metadata.file[5] == "mic1.mrcs#0" and s.images[5].max() == 1
    labels = pd.DataFrame({"file": ["mic2.mrcs", "mic0.mrcs", "mic1.mrcs"], "label": ["c", "a", "b"]})
    assert load_volumes(stacks, labels=labels).labels.tolist() == ["a"] * 5 + ["b"] * 5 + ["c"] * 5


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("flags, value", [(0, 200), (1, -56), (2, 200)])
def test_imods_bytes(tmp_path, order, flags, value):
    mrcfile.write(tmp_path / "t.mrc", np.full((8, 8, 8), -56, np.int8), voxel_size=10)
    raw = bytearray((tmp_path / "t.mrc").read_bytes())
    if order == ">":
        raw[:1024] = np.frombuffer(bytes(raw[:1024]), "<i4").byteswap().tobytes()
        raw[208:216] = b"MAP " + bytes([0x11, 0x11, 0, 0])
    raw[152:160] = struct.pack(f"{order}2i", 1146047817, flags)
    (tmp_path / "t.rec").write_bytes(raw)
    v, size = read_volume(tmp_path / "t.rec")
    assert v.max() == v.min() == value and np.isclose(size, 10)


def test_the_whole_stem_is_the_class_of_a_map(tmp_path):
    for name in ("4v4r_30S.mrc", "4v4r_50S.mrc"): write_volume(tmp_path / name, np.ones((8, 8, 8)), voxel_size=10)
    assert read_densities(tmp_path).labels.tolist() == ["4v4r_30S", "4v4r_50S"]
    with pytest.raises(ValueError, match="several files of class '4v4r'"): read_densities(tmp_path, separator="_")
