"""Loading, checking and splitting images, on the installed package. Round trips compare with arrays made here; errors
are compared with what they must name.
"""
import json
import os
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellinterp.data.axes import as_nchw, check_images, guess_axes
from cellinterp.data.images import ImageSet, concat
from cellinterp.data.masks import crops_from_masks
from cellinterp.data.public import PUBLIC_SETS, find_set, load_data, public_sets, subsample
from cellinterp.data.readers import load_images
from cellinterp.data.splits import folds, permuted_by_group, split

RANDOM = np.random.default_rng(0)


def pixels(*shape, dtype=np.uint16):
    return RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


# ---- axes

@settings(max_examples=60, deadline=None)
@given(st.data())
def test_as_nchw_puts_every_pixel_where_its_axes_say(data):
    kept = "".join(a for a in "NCZ" if data.draw(st.booleans())) + "YX"
    axes = "".join(data.draw(st.permutations(kept)))
    sizes = {a: data.draw(st.integers(1, 4)) for a in axes}
    array = RANDOM.normal(size=[sizes[a] for a in axes])
    out = as_nchw(array, axes)
    order = "NCZYX" if "Z" in axes else "NCYX"
    assert out.shape == tuple(sizes.get(a, 1) for a in order)
    for index in np.ndindex(*array.shape):                        # the slow reference: pixel by pixel, by letter
        where = dict(zip(axes, index))
        assert out[tuple(where.get(a, 0) for a in order)] == array[index]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(9, 3000),
    c=st.integers(1, 8),
    size=st.lists(st.integers(9, 300), min_size=2, max_size=3),
    last=st.booleans(),
)
def test_a_stack_with_one_short_axis_is_guessed(n, c, size, last):
    letters = "ZYX"[-len(size) :]
    assert guess_axes((n, *size, c) if last else (n, c, *size)) == ("N" + letters + "C" if last else "NC" + letters)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(9, 300), min_size=4, max_size=4))
def test_four_long_axes_are_never_guessed(shape):
    with pytest.raises(ValueError, match='ambiguous.*"NZYX"'): guess_axes(tuple(shape))


@pytest.mark.parametrize(
    "shape, likely",
    [
        ((42, 64, 64, 64), "NZYX"),
        ((4, 3, 64, 64), "NCYX"),
        ((3, 64, 64), '"NYX" or "CYX"'),
        ((64, 64), "YX"),
        ((7, 5), "NYXC"),
    ],
)
def test_ambiguous_axes_show_the_likely_ones(shape, likely):
    with pytest.raises(ValueError, match="axes=") as error:
        load_images(np.zeros(shape))
    assert likely in str(error.value) and str(shape) in str(error.value)


def test_the_lab_set_and_a_set_of_volumes():
    assert load_images(np.zeros((20, 80, 80, 1), np.uint8)).images.shape == (20, 1, 80, 80)
    assert load_images(np.zeros((4, 64, 64, 64), np.uint8), axes="NZYX").images.shape == (4, 1, 64, 64, 64)


@pytest.mark.parametrize("axes", ["NYX", "NYYX", "NCQX", "NCZX", ""])
def test_axes_that_do_not_fit(axes):
    with pytest.raises(ValueError, match="axes="): as_nchw(np.zeros((2, 3, 4, 5)), axes)


def test_more_than_eight_channels_must_be_said():
    stack = np.zeros((2, 12, 40, 40), np.uint8)
    with pytest.raises(ValueError, match="12 channels.*channels="): load_images(stack, axes="NCYX")
    with pytest.raises(ValueError, match="channels= says 3"): load_images(stack, axes="NCYX", channels=3)
    assert load_images(stack, axes="NCYX", channels=12).images.shape == stack.shape
    assert load_images(stack, axes="NCYX", channels=[f"c{i}" for i in range(12)]).channels[11] == "c11"
    with pytest.raises(ValueError, match='axes="NZYX"'): check_images(np.zeros((4, 64, 64, 64)))


# ---- checks

GOOD = np.zeros((6, 1, 32, 32), np.float32)


def poisoned(value):
    images = np.zeros((600, 1, 32, 32), np.float32)
    images[300, 0, 3, 4] = value
    return images


@pytest.mark.parametrize("images, labels, message", [
    (poisoned(np.nan), None, r"images: 1 NaN or infinite pixels came in images\[300\]; expected finite"),
    (poisoned(np.inf), None, r"images\[300\]"),
    (GOOD[:, 0], None, r"images: an array of shape \(6, 32, 32\) came; expected \(N, C, H, W\)"),
    (GOOD[0, 0], None, "expected .N, C, H, W"),
    (np.zeros((6, 1, 31, 40)), None, "images: 31 x 40 pixels came; expected at least 32"),
    (np.zeros((6, 1, 20, 64, 64)), None, "20 x 64 x 64 pixels"),
    (np.zeros((90, 80, 80, 1)), None, 'axes="NYXC"'),
    (GOOD[:0], None, "images: an empty array"),
    (GOOD.astype(str), None, "images: dtype <U"),
    (GOOD.astype(complex), None, "images: dtype complex"),
    ([np.zeros((1, 32, 32)), np.zeros((1, 40, 40))], None, r"mixed sizes: images\[0\] is \(1, 32, 32\), images\[1\]"),
    (ImageSet(GOOD), None, "pass .images"),
    (GOOD, ["a", "b"], "labels: 2 labels came for 6 images"),
    (GOOD, ["a"] * 6, "labels: a single class, 'a', came; expected at least 2"),
    (GOOD, [1] * 6, "a single class, '1'"),
    (GOOD, ["a", "", "", "", "", ""], "a single class, 'a'"),
    (GOOD, [""] * 6, "no labels came"),
    (GOOD, np.zeros((6, 2)), "one dimension"),
])
def test_bad_images_name_the_argument_what_came_and_what_was_expected(images, labels, message):
    with pytest.raises(ValueError, match=message): check_images(images, labels)


def test_good_images_pass_unchanged():
    assert check_images(GOOD) is GOOD
    images, labels = check_images(GOOD, pd.Series(list("aabbcc")))
    assert images is GOOD and labels.dtype.kind == "U"
    assert check_images(GOOD > 0).dtype == np.uint8
    assert check_images(GOOD.astype(">f4")).dtype.isnative
    assert check_images(np.zeros((1, 1, 16, 16)), min_size=16).shape == (1, 1, 16, 16)


# ---- the image set

def test_subset_and_select_keep_rows_together():
    cells = ImageSet(
        pixels(6, 1, 4, 4),
        list("abcabc"),
        groups=list("uvwxyz"),
        metadata=pd.DataFrame({"row": range(6)}),
        factors=pd.DataFrame({"f": np.arange(6.0)}),
        pixel_size=0.3,
    )
    part = cells.select("c,a")
    assert (
        part.class_names == ["c", "a"]
        and part.metadata.row.tolist() == [0, 2, 3, 5]
        and part.factors.f.tolist() == [0, 2, 3, 5]
    )
    assert (
        (part.images == cells.images[[0, 2, 3, 5]]).all()
        and list(part.groups) == list("uwxz")
        and part.pixel_size == 0.3
    )
    again = cells.subset([5, 0])
    assert (
        again.metadata.row.tolist() == [5, 0]
        and again.metadata.index.tolist() == [0, 1]
        and again.class_names == list("abc")
    )
    assert len(concat([part, again])) == 6
    with pytest.raises(ValueError, match="'d' came; expected some of a, b, c"): cells.select(["a", "d"])
    with pytest.raises(ValueError, match="pixel_size"): concat([cells, ImageSet(cells.images)])


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(labels=["a"]), "labels: 1 came for 6"),
        (dict(groups=["a"]), "groups: 1"),
        (dict(metadata=pd.DataFrame({"a": [1]})), "metadata: 1"),
        (dict(labels=list("aabbcc"), class_names=["a"]), "class_names"),
        (dict(channels=["a", "b"]), "channels: 2 names came for 1"),
        (dict(pixel_size=0), "pixel_size: 0"),
        (dict(images=np.zeros(3)), "images"),
    ],
)
def test_an_image_set_that_does_not_fit(wrong, message):
    with pytest.raises(ValueError, match=message):
        ImageSet(**{"images": GOOD, **wrong})


def test_none_and_nan_are_no_label():
    assert ImageSet(GOOD, ["a", None, np.nan, "b", "", "a"]).labels.tolist() == ["a", "", "", "b", "", "a"]


def test_the_contact_sheet_names_each_class_and_its_source():
    cells = ImageSet(pixels(6, 2, 32, 32), list("aaabb") + [""], pixel_size=.5, attribution="Someone et al.")
    figure = cells.plot(n=2)
    assert [a.get_ylabel() for a in figure.axes] == ["a\n(3)", "b\n(2)", "no label\n(1)"]
    assert "Someone" in figure.get_supxlabel() and "5 µm" in figure.axes[0].get_title(loc="left")
    assert ImageSet(np.zeros((2, 1, 8, 32, 32))).plot().axes


# ---- files

def write_folder(folder, stack, labels, save):
    for i, (image, label) in enumerate(zip(stack, labels)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        save(folder / label / f"{i:02}", image)
    (folder / "notes.txt").write_text("not an image")
    (folder / "b" / ".hidden.png").write_text("not an image either")
    return folder


def png(path, image):
    from skimage.io import imsave
    imsave(f"{path}.png", image, check_contrast=False)


def tiff(path, image, **options):
    import tifffile
    tifffile.imwrite(f"{path}.tif", image, **options)


@pytest.mark.parametrize(
    "stack, save, expected",
    [
        (pixels(4, 40, 48, dtype=np.uint8), png, lambda s: s[:, None]),
        # 16 bit
        (pixels(4, 40, 48), png, lambda s: s[:, None]),
        # RGB: 3 channels
        (pixels(4, 40, 48, 3, dtype=np.uint8), png, lambda s: s.transpose(0, 3, 1, 2)),
        # opacity is left out
        (pixels(4, 40, 48, 4, dtype=np.uint8), png, lambda s: s[..., :3].transpose(0, 3, 1, 2)),
        (pixels(4, 40, 48), tiff, lambda s: s[:, None]),
        (pixels(4, 40, 48).astype(np.float32), tiff, lambda s: s[:, None]),
        (pixels(4, 40, 48), lambda p, i: tiff(p, i, byteorder=">"), lambda s: s[:, None]),
        (
            pixels(4, 40, 48, 3, dtype=np.uint8),
            lambda p, i: tiff(p, i, photometric="rgb"),
            lambda s: s.transpose(0, 3, 1, 2),
        ),
        (pixels(4, 5, 40, 48), lambda p, i: tiff(p, i, imagej=True, metadata=dict(axes="CYX")), lambda s: s),
        # a stack in depth
        (pixels(4, 12, 40, 48), lambda p, i: tiff(p, i, imagej=True, metadata=dict(axes="ZYX")), lambda s: s[:, None]),
        (
            pixels(4, 12, 2, 40, 48),
            lambda p, i: tiff(p, i, imagej=True, metadata=dict(axes="ZCYX")),
            lambda s: s.transpose(0, 2, 1, 3, 4),
        ),
    ],
    ids=[
        "png",
        "png16",
        "rgb",
        "rgba",
        "tiff16",
        "tifffloat",
        "bigendian",
        "tiffrgb",
        "imagej",
        "imagejz",
        "imagejzc",
    ],
)
def test_a_folder_comes_back_as_saved(tmp_path, stack, save, expected):
    labels = list("abab")
    cells = load_images(write_folder(tmp_path, stack, labels, save))
    # a, a, b, b
    order = [0, 2, 1, 3]
    assert cells.images.dtype == stack.dtype and cells.images.dtype.isnative
    np.testing.assert_array_equal(cells.images, expected(stack)[order])
    assert cells.labels.tolist() == list("aabb") and cells.class_names == ["a", "b"]
    assert [f.split(".")[0] for f in cells.metadata.file] == ["a/00", "a/02", "b/01", "b/03"]


@pytest.mark.parametrize("unit, per", [("µm", 1), ("nm", 1e-3), ("mm", 1e3)])
def test_ome_says_axes_channels_and_pixel_size(tmp_path, unit, per):
    stack = pixels(2, 2, 40, 48)
    ome = dict(axes="CYX", PhysicalSizeX=325, PhysicalSizeXUnit=unit, Channel=dict(Name=["DNA", "actin & <x>"]))
    cells = load_images(write_folder(tmp_path, stack, "ab", lambda p, i: tiff(f"{p}.ome", i, metadata=ome)))
    np.testing.assert_array_equal(cells.images, stack)
    assert cells.pixel_size == pytest.approx(325 * per) and cells.channels == ["DNA", "actin & <x>"]
    # what the caller says wins
    assert load_images(tmp_path, pixel_size=.1).pixel_size == .1


def test_imagej_says_its_pixel_size(tmp_path):
    def save(p, i):
        return tiff(p, i, imagej=True, resolution=(4, 4), metadata=dict(unit="um"))
    assert load_images(write_folder(tmp_path, pixels(2, 40, 48), "ab", save)).pixel_size == pytest.approx(.25)


def test_a_tiff_stack_is_a_stack_of_images(tmp_path):
    stack = pixels(20, 40, 48)
    tiff(tmp_path / "stack", stack, photometric="minisblack")
    np.testing.assert_array_equal(load_images(tmp_path / "stack.tif").images, stack[:, None])
    np.testing.assert_array_equal(load_images(tmp_path / "stack.tif", axes="ZYX").images, stack[None, None])


def test_npz_comes_back_as_saved(tmp_path):
    stack = pixels(6, 2, 40, 48)
    np.savez(tmp_path / "a.npz", images=stack, labels=list("aabbcc"), groups=list("uvuvuv"), pixel_size=.2)
    cells = load_images(tmp_path / "a.npz")
    np.testing.assert_array_equal(cells.images, stack)
    assert (
        cells.labels.tolist() == list("aabbcc") and cells.groups.tolist() == list("uvuvuv") and cells.pixel_size == 0.2
    )
    np.savez(tmp_path / "b.npz", images=stack, labels=np.array([0, 0, 1, 1, 1, 0], np.uint8), classes=["dead", "alive"])
    assert load_images(tmp_path / "b.npz").labels.tolist() == ["dead"] * 2 + ["alive"] * 3 + ["dead"]
    assert load_images(tmp_path / "b.npz").class_names == ["dead", "alive"]
    # one array a class
    np.savez(tmp_path / "c.npz", dead=stack[:2, 0], alive=stack[2:, 0])
    cells = load_images(tmp_path / "c.npz")
    np.testing.assert_array_equal(cells.images[:, 0], stack[[2, 3, 4, 5, 0, 1], 0])
    assert cells.labels.tolist() == ["alive"] * 4 + ["dead"] * 2
    np.save(tmp_path / "d.npy", stack)
    np.testing.assert_array_equal(load_images(tmp_path / "d.npy", axes="NCYX").images, stack)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_comes_back_as_saved(tmp_path, version):
    import zarr
    stack = pixels(6, 40, 48, 1)
    group = zarr.open_group(tmp_path / "classes", mode="w", zarr_format=version)
    # the lab's layout
    for k, name in enumerate(["anaphase", "metaphase"]): group.create_array(name, data=stack[3 * k:3 * k + 3])
    cells = load_images(tmp_path / "classes")
    np.testing.assert_array_equal(cells.images, stack.transpose(0, 3, 1, 2))
    assert cells.labels.tolist() == ["anaphase"] * 3 + ["metaphase"] * 3
    group = zarr.open_group(
        tmp_path / "pair.zarr",
        mode="w",
        zarr_format=version,
        attributes=dict(classes=["x", "y"], pixel_size=0.4, channels=["DNA"]),
    )
    group.create_array("images", data=stack)
    group.create_array("labels", data=np.array([0, 1] * 3))
    cells = load_images(tmp_path / "pair.zarr")
    assert cells.labels.tolist() == ["x", "y"] * 3 and cells.pixel_size == .4 and cells.channels == ["DNA"]
    zarr.create_array(tmp_path / "one.zarr", data=stack[..., 0], zarr_format=version)
    np.testing.assert_array_equal(load_images(tmp_path / "one.zarr", axes="NYX").images[:, 0], stack[..., 0])


def test_labels_of_any_zarr_string_type(tmp_path):
    import zarr
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("images", data=pixels(4, 40, 48))
    group.create_array("labels", shape=(4,), dtype=str)[:] = np.array(list("abab"), dtype=object)
    assert load_images(tmp_path / "a.zarr").labels.tolist() == list("abab")


@pytest.mark.parametrize(
    "codecs",
    [
        dict(filters=[dict(id="pickle", protocol=5)]),
        dict(dtype="|O", fill_value="", filters=[dict(id="vlen-utf8"), dict(id="pickle", protocol=5)]),
        dict(dtype="|O", fill_value="", filters=[dict(id="vlen-utf8")], compressor=dict(id="pickle", protocol=5)),
    ],
)
def test_a_hostile_zarr_store_executes_nothing(tmp_path, codecs, monkeypatch):
    numcodecs_pickles = pytest.importorskip("numcodecs.pickles")
    # as if the library let it pass
    monkeypatch.setattr(numcodecs_pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)

    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    array = tmp_path / "a.zarr" / "images"
    array.mkdir(parents=True)
    (tmp_path / "a.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    (array / ".zarray").write_text(
        json.dumps(
            dict(
                dict(
                    zarr_format=2,
                    shape=[4, 40, 40],
                    chunks=[4, 40, 40],
                    dtype="|u1",
                    compressor=None,
                    fill_value=0,
                    order="C",
                    filters=None,
                ),
                **codecs
            )
        )
    )
    (array / "0.0.0").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match="pickle"):
        load_images(tmp_path / "a.zarr", axes="NYX")
    assert not (tmp_path / "executed").exists()


def test_metadata_joins_by_file_and_by_row(tmp_path):
    folder = write_folder(tmp_path / "cells", pixels(4, 40, 48), "abab", tiff)
    table = pd.DataFrame(
        {
            "file": ["b/03.tif", "a/00.tif", "b/01.tif", "a/02.tif"],
            "plate": ["p1", "p1", "p2", "p2"],
            "well": ["005", "006", "005", "006"],
            "state": list("wxyz"),
        }
    )
    table.to_csv(tmp_path / "t.csv", index=False)
    cells = load_images(folder, metadata=tmp_path / "t.csv", group_column=["plate", "well"], label_column="state")
    # 005 keeps its zeros
    assert cells.groups.tolist() == ["p1_006", "p2_006", "p2_005", "p1_005"] and cells.labels.tolist() == list("xzyw")
    # found by itself
    table.rename(columns=dict(plate="group")).to_csv(folder / "metadata.csv", index=False)
    assert load_images(folder).groups.tolist() == ["p1", "p2", "p2", "p1"]
    more = pd.concat(
        [pd.DataFrame({"file": ["0/elsewhere.tif"], "group": ["p9"]}), pd.read_csv(folder / "metadata.csv")]
    )
    # rows of other files are left out
    assert load_images(folder, metadata=more).groups.tolist() == ["p1", "p2", "p2", "p1"]
    np.savez(tmp_path / "a.npz", images=pixels(4, 40, 48), labels=list("abab"))
    pd.DataFrame({"group": ["001", "002", "001", "002"]}).to_csv(tmp_path / "a.csv", index=False)
    assert load_images(tmp_path / "a.npz").groups.tolist() == ["001", "002", "001", "002"]
    flat = tmp_path / "flat"
    flat.mkdir()
    tiff(flat / "1", pixels(40, 48))
    tiff(flat / "2", pixels(40, 48))
    assert load_images(flat).labels.tolist() == ["", ""]
    assert load_images(
        flat, metadata=pd.DataFrame({"file": ["2.tif", "1.tif"], "label": ["two", "one"]})
    ).labels.tolist() == ["one", "two"]


def broken(tmp_path, kind):
    "A source with one thing wrong, and the arguments to load it with."
    folder = tmp_path / "cells"
    if kind in ("npz_objects", "npz_labels", "npz_text", "npz_garbage", "npz_classes"):
        path = tmp_path / "a.npz"
        if kind == "npz_classes":
            np.savez(path, images=pixels(4, 40, 48), labels=[0, 1, 2, 0], classes=["dead", "alive"])
        elif kind == "npz_garbage":
            path.write_bytes(b"PK\3\4 and no more")
        else:
            np.savez(
                path,
                images=pixels(4, 40, 48).astype(str) if kind == "npz_text" else pixels(4, 40, 48),
                labels=np.array([{}] * 4) if kind == "npz_objects" else list("aab" if kind == "npz_labels" else "aabb"),
            )
        return path, {}
    if kind == "zarr_garbage":
        (tmp_path / "a.zarr").mkdir()
        (tmp_path / "a.zarr/zarr.json").write_text("{")
        return tmp_path / "a.zarr", {}
    if kind == "suffix":
        (tmp_path / "a.czi").touch()
        return tmp_path / "a.czi", {}
    if kind == "missing": return tmp_path / "nowhere", {}
    if kind == "no_images":
        folder.mkdir()
        return folder, {}
    if kind == "pixel_sizes":
        sizes = iter([.2, .3])
        return (
            write_folder(
                folder,
                pixels(2, 40, 48),
                "ab",
                lambda p, i: tiff(f"{p}.ome", i, metadata=dict(axes="YX", PhysicalSizeX=next(sizes))),
            ),
            {},
        )
    write_folder(folder, pixels(4, 40, 48), "abab", png)
    if kind == "mixed": png(folder / "b" / "99", pixels(40, 50))
    if kind == "mixed_channels": png(folder / "b" / "99", pixels(40, 48, 3, dtype=np.uint8))
    if kind == "truncated":
        f = folder / "b/03.png"
        f.write_bytes(f.read_bytes()[:300])
    if kind == "no_png": (folder / "b/99.png").write_text("hello")
    if kind == "empty_tif": (folder / "b/99.tif").touch()
    if kind == "empty_class": (folder / "c").mkdir()
    if kind == "loose": png(folder / "99", pixels(40, 48))
    tables = dict(
        rows=pd.DataFrame({"x": [1]}),
        unknown_file=pd.DataFrame({"file": ["a/00.png"]}),
        twice=pd.DataFrame({"file": ["a/00.png"] * 4}),
        column=pd.DataFrame({"x": range(4), "file": ["a/00.png", "a/02.png", "b/01.png", "b/03.png"]}),
    )
    return folder, dict(
        metadata=tables.get(kind, tmp_path / "no.csv" if kind == "no_table" else None),
        group_column="well" if kind in ("column", "orphan") else None,
    )


@pytest.mark.parametrize(
    "kind, names",
    [
        ("mixed", ["mixed sizes", "a/00.png", "b/99.png", "(1, 40, 48)", "(1, 40, 50)"]),
        ("mixed_channels", ["a/00.png", "b/99.png", "(3, 40, 48)"]),
        ("truncated", ["cannot read b/03.png"]),
        ("no_png", ["cannot read b/99.png"]),
        ("empty_tif", ["cannot read b/99.tif"]),
        ("empty_class", ["no images in cells/c"]),
        ("loose", ["99.png", "sub-folder"]),
        ("no_images", ["no images in cells", ".png"]),
        ("missing", ["does not exist", "expected a folder"]),
        ("suffix", ["a.czi", "bioio"]),
        ("npz_objects", ["never unpickled"]),
        ("npz_labels", ["3 came for 4"]),
        ("npz_classes", ["class number 2", "2 names"]),
        ("pixel_sizes", ["mixed pixel sizes", "a/00.ome.tif", "0.2 µm", "0.3 µm"]),
        ("npz_text", ["dtype <U"]),
        ("npz_garbage", ["cannot read a.npz"]),
        ("zarr_garbage", ["cannot read a.zarr"]),
        ("rows", ["1 rows came for 4 images"]),
        ("unknown_file", ["no row for a/02.png"]),
        ("twice", ["a/00.png has several rows"]),
        ("column", ["'well' came", "x"]),
        ("orphan", ["group_column", "well"]),
        ("no_table", ["no.csv does not exist"]),
    ],
)
def test_a_broken_source_is_named(tmp_path, kind, names):
    source, options = broken(tmp_path, kind)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_images(source, **options)
    for name in names:
        assert name in str(error.value)


# ---- masks

def field():
    masks = np.zeros((60, 80), np.int64)
    masks[10:20, 30:50] = 7                             # 10 x 20 pixels, centroid (14.5, 39.5)
    masks[30:35, 60:65] = 3                             # 5 x 5, centroid (32, 62)
    masks[57:60, 0:3] = 10 ** 9                         # in the corner, centroid (58, 1)
    return pixels(2, 60, 80), masks


def test_masks_give_known_centroids_and_areas():
    image, masks = field()
    cells = crops_from_masks(image, masks, 16, pixel_size=.5, channels=["DNA", "actin"], source="A01")
    table = cells.metadata
    assert (
        table.label.tolist() == [3, 7, 10**9]
        and table.area.tolist() == [25, 200, 9]
        and table.area_um2.tolist() == [6.25, 50, 2.25]
    )
    assert table.centroid_y.tolist() == [32, 14.5, 58] and table.centroid_x.tolist() == [62, 39.5, 1]
    assert table.touches_edge.tolist() == [False, False, True] and table.padded.tolist() == [False, False, True]
    assert (
        set(table.source) == set(cells.groups) == {"A01"}
        and cells.pixel_size == 0.5
        and cells.channels == ["DNA", "actin"]
    )
    np.testing.assert_array_equal(cells.images[0], image[:, 24:40, 54:70])
    np.testing.assert_array_equal(cells.images[1], image[:, 7:23, 32:48])
    wide = np.pad(image, [(0, 0), (16, 16), (16, 16)], mode="reflect")
    np.testing.assert_array_equal(cells.images[2], wide[:, 66:82, 9:25])
    # channels last
    np.testing.assert_array_equal(crops_from_masks(image.transpose(1, 2, 0), masks, 16).images, cells.images)


@settings(max_examples=30, deadline=None)
@given(h=st.integers(2, 12), w=st.integers(2, 12), size=st.integers(2, 40), data=st.data())
def test_any_window_is_the_reflected_field(h, w, size, data):
    masks = np.zeros((h, w), np.uint8)
    y, x = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    masks[y, x] = 1
    assert crops_from_masks(masks, masks, size).metadata.touches_edge[0] == (y in (0, h - 1) or x in (0, w - 1))
    image = RANDOM.integers(0, 255, (h, w), dtype=np.uint8)
    wide = np.pad(image, size, mode="reflect")
    corner = y + size - size // 2, x + size - size // 2
    np.testing.assert_array_equal(
        crops_from_masks(image, masks, size).images[0, 0],
        wide[corner[0] : corner[0] + size, corner[1] : corner[1] + size],
    )


def test_masks_of_volumes_and_of_several_fields():
    masks = np.zeros((12, 20, 20), np.int32)
    masks[4:6, 8:12, 8:12] = 1
    volume = pixels(12, 20, 20)
    cells = crops_from_masks(volume, masks, 8, pixel_size=.5)
    assert (
        cells.images.shape == (1, 1, 8, 8, 8)
        and cells.metadata.volume_um3[0] == 4
        and cells.metadata.centroid_z[0] == 4.5
    )
    np.testing.assert_array_equal(cells.images[0, 0], volume[1:9, 6:14, 6:14])
    image, masks = field()
    cells = crops_from_masks([image, image], [masks, masks], 16, source=["A01", "A02"])
    assert cells.groups.tolist() == ["A01"] * 3 + ["A02"] * 3 and cells.metadata.index.tolist() == list(range(6))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i, m: (i, m * 0, 16), "labels: no object"),
        (lambda i, m: (i, m / 1, 16), "labels: dtype float64"),
        (lambda i, m: (i, m > 0, 16), "labels: dtype bool"),
        (lambda i, m: (i[:, :9], m, 16), "image: shape"),
        (lambda i, m: (i, -m, 16), "labels: -"),
        (lambda i, m: (i, m, 0), "size: 0"),
        (lambda i, m: (i, m, 7.5), "size: 7.5"),
        (lambda i, m: (i, m[0], 16), "labels: an array of shape"),
        (lambda i, m: ([i, i], [m], 16), "2 images, 1 label images"),
        (lambda i, m: (np.repeat(i, 5, 0), m, 16), "10 channels"),
    ],
)
def test_masks_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        crops_from_masks(*change(*field()))


# ---- splits

def labelled(draw):
    n_groups = draw(st.integers(12, 30))
    random = np.random.default_rng(draw(st.integers(0, 2 ** 20)))
    groups = np.concatenate([np.repeat(g, random.integers(2, 9)) for g in range(n_groups)])
    labels = random.choice(["a", "b", "c"], len(groups), p=[.5, .3, .2])
    # each class in at least four groups
    for k, c in enumerate("abc"): labels[np.flatnonzero(np.diff(groups, prepend=-1))[k::3]] = c
    return labels, groups


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(0, 3))
def test_groups_never_straddle_a_split(data, seed):
    labels, groups = labelled(data.draw)
    parts = folds(labels, groups, n_splits=4, seed=seed) + [split(labels, groups, .3, seed)]
    for a, b in parts:
        assert not set(groups[a]) & set(groups[b])
        assert sorted([*a, *b]) == list(range(len(labels)))
    assert sorted(np.concatenate([b for _, b in parts[:4]])) == list(range(len(labels)))
    a, b = parts[-1]
    assert set(labels[a]) == set(labels[b]) == set("abc")


def test_folds_change_with_the_seed_and_are_about_as_even_as_those_of_scikit_learn():
    """Wells of many sizes and mixtures, for which scikit-learn's seed changes next to nothing; without groups the folds
    are scikit-learn's.
    """
    from sklearn.model_selection import StratifiedGroupKFold
    random = np.random.default_rng(0)
    sizes = random.integers(3, 60, 50)
    groups = np.repeat(np.arange(50), sizes)
    labels = np.concatenate([random.choice(list("abc"), n, p=random.dirichlet([2, 1, .5])) for n in sizes])
    total = np.array([(labels == c).sum() for c in "abc"])
    def uneven(parts): return np.std([[(labels[b] == c).sum() for c in "abc"] / total for _, b in parts], axis=0).sum()
    def partition(parts):
        return frozenset(frozenset(groups[b]) for _, b in parts)
    ours = [folds(labels, groups, seed=s) for s in range(6)]
    theirs = [
        list(StratifiedGroupKFold(5, shuffle=True, random_state=s).split(labels, labels, groups)) for s in range(6)
    ]
    assert len({partition(p) for p in ours}) == 6 > len({partition(p) for p in theirs})
    assert np.mean([uneven(p) for p in ours]) < 2 * np.mean([uneven(p) for p in theirs])
    assert partition(ours[3]) == partition(folds(labels, groups, seed=3))
    for (a, b), (c, d) in zip(
        folds(labels, seed=3),
        StratifiedGroupKFold(5, shuffle=True, random_state=3).split(labels, labels, np.arange(len(labels))),
    ):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


def test_split_holds_out_the_fraction_of_every_class():
    labels, groups = np.array(list("aaab") * 100), np.repeat(np.arange(100), 4)
    for seed in range(3):
        _, held = split(labels, groups, .2, seed)
        assert len(held) == 80 and (labels[held] == "b").sum() == 20
        _, held = split(labels, None, .25, seed)
        assert len(held) == 100 and (labels[held] == "b").sum() == 25
    assert not np.array_equal(split(labels, groups, .2, 0)[1], split(labels, groups, .2, 1)[1])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(1, 5), st.integers(2, 12), st.randoms(use_true_random=False))
def test_wells_of_one_size_change_places_whole(n_wells, size, n_tries, random):
    """In whatever order the cells come, a well's cells read the same labels as some well's did, in order; every label
    stays as often as it was.
    """
    wells = np.repeat(np.arange(n_wells), size).tolist()
    random.shuffle(wells)
    wells = np.array(wells)
    labels = np.array(["a", "b"] + [random.choice("abc") for _ in range(n_wells * size - 2)])
    def of(values):
        return sorted("".join(values[wells == w]) for w in range(n_wells))
    moved = [permuted_by_group(labels, wells, seed) for seed in range(n_tries)]
    for m in moved: assert of(m) == of(labels)
    np.testing.assert_array_equal(moved[0], permuted_by_group(labels, wells, 0))


def test_permuted_by_group_is_right_by_chance_and_keeps_wells_together():
    """Pure wells of many sizes: a cell keeps its label as often as two cells share one; a well's cells stay alike,
    which they do not without groups.
    """
    random = np.random.default_rng(0)
    wells = np.repeat(np.arange(40), random.integers(10, 30, 40))
    labels = np.array(list("abcde"))[wells % 5]
    moved = [permuted_by_group(labels, wells, s) for s in range(300)]
    kept = np.array([np.mean(m == labels) for m in moved])
    share = np.bincount(wells % 5) / len(wells)
    # a well stays where it is once in 40
    assert abs(kept.mean() - np.square(share).sum()) < 4 * kept.std() / np.sqrt(len(kept)) + 1 / 40
    def alike(m):
        return np.mean(m[1:] == m[:-1])
    assert min(map(alike, moved)) > .9 > .5 > alike(permuted_by_group(labels, None, 0))
    for m in moved[:5]: assert sorted(m) == sorted(labels)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: folds(["a"] * 10), "labels: a single class, 'a'"),
        (lambda: split(["a"] * 10), "labels: a single class, 'a'"),
        (lambda: folds([]), "no labels"),
        (lambda: folds(["a"] * 10 + ["b"] * 4), "labels: class 'b' came in 4 samples; expected at least 5"),
        (lambda: folds(["a", "b"] * 10, np.arange(20) // 5), "groups: class 'a' came in 4 groups; expected at least 5"),
        (lambda: folds(["a", "b"] * 10, [1, 2]), "groups: 2 came for 20 labels"),
        (lambda: folds(["a", "b"] * 10, n_splits=1), "n_splits: 1"),
        (lambda: split(["a", "b"] * 10, fraction=1.5), "fraction: 1.5"),
        (lambda: split(["a", "b"] * 10, ["w"] * 20), "class 'a' came in 1 groups"),
        (lambda: permuted_by_group(["a", "b"] * 10, [1, 2]), "groups: 2 came for 20 labels"),
        (lambda: permuted_by_group(["a"] * 4, [1, 1, 2, 2]), "labels: a single class"),
    ],
)
def test_splits_that_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- public sets

def test_every_public_set_says_licence_citation_and_how():
    table = public_sets()
    assert (
        list(table.columns[:6]) == ["name", "kind", "what", "licence", "citation", "how"]
        and len(table) == len(PUBLIC_SETS) == 6
    )
    assert table.drop(columns="found").map(lambda v: isinstance(v, str) and len(v) > 3).all(axis=None)
    assert table.how.str.startswith("by hand").all() and table.how.str.contains("[0-9a-f]{40}").all()


def test_a_set_that_is_not_here_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CELLINTERP_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="mitocheck_cells was not found.*by hand.*images.npz.*CELLINTERP_DATA"):
        load_data("mitocheck_cells")
    monkeypatch.delenv("CELLINTERP_DATA")
    with pytest.raises(FileNotFoundError, match="CELLINTERP_DATA is not set"): find_set("mitocheck_cells")
    with pytest.raises(ValueError, match="expected one of mitocheck_cells"): find_set("mitochek")
    with pytest.raises(FileNotFoundError, match="'mitochek' came; expected one of simulated_nuclei, mitocheck_cells"):
        load_data("mitochek")


def test_load_data_reads_paths_classes_and_groups(tmp_path):
    np.savez(tmp_path / "a.npz", images=pixels(20, 1, 32, 32), labels=["one", "Two"] * 10)
    pd.DataFrame({"plate": ["p1", "p2"] * 10, "well": list("ABCD") * 5}).to_csv(tmp_path / "a.csv", index=False)
    cells = load_data(tmp_path / "a.npz", classes="two", groups="plate,well", n=4)
    assert cells.class_names == ["Two"] and len(cells) == 4 and set(cells.groups) <= {"p2_B", "p2_D"}
    assert load_data(str(tmp_path / "a.npz"), groups="none").groups is None
    with pytest.raises(ValueError, match="'three' came; expected some of Two, one"):
        load_data(tmp_path / "a.npz", classes=["three"])
    with pytest.raises(ValueError, match="groups: dish came; expected columns of the metadata: plate, well"):
        load_data(tmp_path / "a.npz", groups="dish")
    with pytest.raises(ValueError, match="n: 0"): load_data(tmp_path / "a.npz", n=0)


def test_load_data_simulates():
    cells = load_data("simulated_nuclei", n=25, seed=1, size=32)
    assert cells.images.shape == (25, 1, 32, 32) and cells.factors is not None and len(cells.class_names) == 5
    np.testing.assert_array_equal(cells.images, load_data("simulated_nuclei", n=25, seed=1, size=32).images)
    assert load_data("simulated_nuclei", classes="anaphase, metaphase", n=10, size=32).class_names == [
        "anaphase",
        "metaphase",
    ]


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=6), fraction=st.floats(0, 1), seed=st.integers(0, 5))
def test_a_subsample_keeps_every_class_and_its_share(counts, fraction, seed):
    cells = ImageSet(np.zeros((sum(counts), 1, 1, 1)), np.repeat([f"c{k}" for k in range(len(counts))], counts))
    n = len(counts) + int(fraction * (sum(counts) - len(counts)))
    part = subsample(cells, n, seed)
    got = np.array([(part.labels == c).sum() for c in cells.class_names])
    assert len(part) == n and (got >= 1).all() and (got <= counts).all()
    assert (np.abs(got - np.array(counts) * n / sum(counts)) <= len(counts)).all()


def real(name):
    if not os.environ.get("CELLINTERP_DATA"):
        pytest.skip("CELLINTERP_DATA is unset: the real sets are not on this machine")
    try: return find_set(name)
    except FileNotFoundError: pytest.skip(f"{name} is not in the folder that CELLINTERP_DATA names")


def test_mitocheck_cells():
    real("mitocheck_cells")
    cells = load_data("mitocheck_cells")
    assert cells.images.shape == (1232, 1, 64, 64) and cells.images.dtype == np.uint8 and cells.pixel_size is None
    assert cells.class_names == ["interphase", "prometaphase", "metaphase", "anaphase", "apoptosis"]
    # SOURCE.md
    assert [(cells.labels == c).sum() for c in cells.class_names] == [420, 345, 74, 85, 308]
    assert (
        cells.metadata.plate + "_" + cells.metadata.well == cells.groups
    ).all() and cells.metadata.well.str.len().eq(3).all()
    every = load_data("mitocheck_cells", classes="all")
    assert (
        len(every) == 3277
        and len(every.class_names) == 16
        and len(set(every.groups)) == 77
        and "Neumann" in every.attribution
    )
    assert load_data("mitocheck_cells", classes="Metaphase, anaphase", n=50).class_names == ["metaphase", "anaphase"]
    for train, test in folds(cells.labels, cells.groups):
        assert not set(cells.groups[train]) & set(cells.groups[test]) and len(set(cells.labels[test])) == 5


@pytest.mark.parametrize(
    "name, shape, classes",
    [
        ("affinity_alphanum", (132, 1, 64, 64), 12),
        ("affinity_subtomo", (42, 1, 64, 64, 64), 6),
        ("shrec_densities", (11, 1, 48, 48, 48), 11),
    ],
)
def test_the_other_sets_of_images(name, shape, classes):
    real(name)
    cells = load_data(name, size=48)
    assert cells.images.shape == shape and len(cells.class_names) == classes and cells.attribution
    assert check_images(cells.images) is not None


@pytest.mark.parametrize("size", [32, 47, 96])
def test_density_maps_stay_in_the_middle(size):
    real("shrec_densities")
    from scipy.ndimage import center_of_mass
    for volume in load_data("shrec_densities", size=size).images[:, 0].clip(0):
        # voxels
        assert np.abs(np.array(center_of_mass(volume)) - (size - 1) / 2).max() < 2.5


def test_density_boxes_are_no_smaller_than_models_take():
    real("shrec_densities")
    with pytest.raises(ValueError, match="size: 20 came"): load_data("shrec_densities", size=20)


def test_profiles_are_no_images():
    real("bbbc021_profiles")
    with pytest.raises(ValueError, match="profiles"): load_data("bbbc021_profiles")


# ---- kinds of files that were read wrong: each right value

def grey(seed=0, shape=(40, 36)): return np.random.default_rng(seed).integers(0, 200, shape).astype(np.uint8)


def numbered(folder, n=12):
    from PIL import Image
    for i in range(1, n + 1): Image.fromarray(np.full((40, 36), i, np.uint8)).save(folder / f"cell_{i}.png")
    return {i: "control" if i <= n // 2 else "drug" for i in range(1, n + 1)}


@pytest.mark.parametrize(
    "column", ["file", "File", "filename", "image", "path", "Image_FileName_DNA", "Metadata_FileName", "what"]
)
@pytest.mark.parametrize("form", ["{}.png", "{}", "/data/plate/{}.png", "plate\\{}.png", "./{}.png"])
def test_a_table_is_joined_by_the_column_that_names_the_images(tmp_path, column, form):
    truth = numbered(tmp_path)
    rows = [{column: form.format(f"cell_{i}"), "label": truth[i]} for i in range(12, 0, -1)]
    pd.DataFrame(rows).to_csv(tmp_path / "metadata.csv", index=False)
    cells = load_images(tmp_path)
    assert [truth[int(v)] for v in cells.images[:, 0, 0, 0]] == cells.labels.tolist()
    assert any(f"joined by the column {column}" in line for line in cells.notes)


def test_rows_are_joined_by_order_on_request_alone(tmp_path):
    truth = numbered(tmp_path)
    table = pd.DataFrame({"label": list(truth.values())})
    with pytest.raises(ValueError, match="no column names the files.*row order"): load_images(tmp_path, metadata=table)
    assert len(load_images(tmp_path, metadata=table, key="row order")) == 12
    # a number of the row, where the images have no names
    np.savez(tmp_path / "a.npz", images=np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((1, 40, 36), np.uint8))
    cells = load_images(
        tmp_path / "a.npz", axes="NYX", metadata=pd.DataFrame({"index": [3, 2, 1, 0], "label": list("dcba")})
    )
    assert cells.labels.tolist() == list("abcd")


@pytest.mark.parametrize("mark", [",", ";", "\t", ", ", "|", "sep=;"])
@pytest.mark.parametrize("label", ["label", "Label", "class"])
@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_in_any_dialect(tmp_path, mark, label, coding):
    png(tmp_path / "a", grey())
    png(tmp_path / "b", grey(1))
    first, mark = ("sep=;\n", ";") if mark == "sep=;" else ("", mark)
    rows = [
        ["file", label, "group", "dose"],
        ["a.png", "None", "001", "0.5"],
        ["b.png", "NA", "1e3", ""],
        ["", "", "", ""],
    ]
    (tmp_path / "metadata.csv").write_text(first + "\n".join(mark.join(r) for r in rows), encoding=coding)
    cells = load_images(tmp_path)
    assert cells.labels.tolist() == ["None", "NA"] and cells.groups.tolist() == ["001", "1e3"]
    assert cells.metadata.dose.tolist()[0] == .5 and np.isnan(cells.metadata.dose[1])


def test_missing_labels_of_pandas_are_no_class(tmp_path):
    for i in range(3): png(tmp_path / str(i), grey(i))
    table = pd.DataFrame({"file": [f"{i}.png" for i in range(3)], "label": ["a", None, "b"], "plate": [1.0, None, 2.0]})
    for t in (table, table.convert_dtypes()):
        cells = load_images(tmp_path, metadata=t, group_column="plate")
        assert cells.labels.tolist() == ["a", "", "b"] and cells.groups.tolist() == ["1", "", "2"]


def test_minus_one_is_not_the_last_class(tmp_path):
    np.savez(
        tmp_path / "a.npz", images=np.zeros((4, 40, 40), np.uint8), labels=[-1, 0, 1, 0], classes=["dead", "alive"]
    )
    assert load_images(tmp_path / "a.npz").labels.tolist() == ["", "dead", "alive", "dead"]
    np.savez(
        tmp_path / "b.npz", images=np.zeros((4, 40, 40), np.uint8), labels=[-2, 0, 1, 0], classes=["dead", "alive"]
    )
    with pytest.raises(ValueError, match="class number -2"): load_images(tmp_path / "b.npz")


def acquisition(folder):
    "Two channels and three times in six OME-TIFF files that know of each other."
    import tifffile
    blocks = "".join(
        f'<TiffData FirstC="{c}" FirstT="{t}" FirstZ="0" IFD="0" PlaneCount="1"><UUID FileName="c{c}t{t}.ome.tif">'
        f"urn:uuid:{c}{t}</UUID></TiffData>"
        for c in range(2)
        for t in range(3)
    )
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image'
        ' ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="36" SizeY="40" SizeZ="1"'
        ' SizeC="2" SizeT="3">'
        + "".join(f'<Channel ID="Channel:0:{c}" SamplesPerPixel="1"/>' for c in range(2))
        + blocks
        + "</Pixels></Image></OME>"
    )
    for c in range(2):
        for t in range(3):
            tifffile.imwrite(
                folder / f"c{c}t{t}.ome.tif",
                np.full((40, 36), 1 + 10 * c + t, np.uint8),
                description=xml,
                metadata=None,
            )


def test_files_of_one_acquisition_are_read_once_and_whole(tmp_path):
    acquisition(tmp_path)
    cells = load_images(tmp_path)
    assert cells.images[:, :, 0, 0].tolist() == [[1, 11], [2, 12], [3, 13]] and any(
        "6 OME-TIFF files" in n for n in cells.notes
    )
    (tmp_path / "c1t2.ome.tif").unlink()
    with pytest.raises(ValueError, match="c1t2.ome.tif.*black"): load_images(tmp_path)


def test_scenes_are_all_read_or_one_is_chosen(tmp_path):
    import tifffile
    with tifffile.TiffWriter(tmp_path / "scenes.ome.tif", ome=True) as t:
        for k in range(3): t.write(np.full((40, 36), k + 1, np.uint8), metadata=dict(axes="YX", Name=f"field {k}"))
    cells = load_images(tmp_path / "scenes.ome.tif")
    assert cells.images[:, 0, 0, 0].tolist() == [1, 2, 3] and cells.metadata.scene.tolist() == [
        "field 0",
        "field 1",
        "field 2",
    ]
    assert load_images(tmp_path / "scenes.ome.tif", scene="field 1").images.max() == 2
    with tifffile.TiffWriter(tmp_path / "two.tif") as t:
        t.write(np.full((50, 48), 9, np.uint8), metadata=None)
        t.write(np.full((400, 360), 1, np.uint8), metadata=None)
    with pytest.raises(ValueError, match="scene="): load_images(tmp_path / "two.tif")
    assert load_images(tmp_path / "two.tif", scene=1).images.shape[2:] == (400, 360)
    with tifffile.TiffWriter(tmp_path / "thumb.tif") as t:
        t.write(np.full((400, 360), 1, np.uint8), metadata=None)
        t.write(np.full((50, 48), 9, np.uint8), subfiletype=1, metadata=None)
    cells = load_images(tmp_path / "thumb.tif")
    assert cells.images.shape[2:] == (400, 360) and any("reduced" in n for n in cells.notes)


def test_pages_mean_the_same_by_path_and_in_a_folder(tmp_path):
    import tifffile
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((3, 40, 36), np.uint8), photometric="minisblack", metadata=None)
    for source in (tmp_path, tmp_path / "s.tif"):
        with pytest.raises(ValueError, match='axes="NYX" reads 3 images, "CYX" 3 channels'): load_images(source)
        assert load_images(source, axes="NYX").images.shape == (3, 1, 40, 36)
        assert load_images(source, axes="CYX").images.shape == (1, 3, 40, 36)


PICTURES = {
    "L png": lambda g, p: g.save(p / "a.png"),
    "bmp": lambda g, p: g.save(p / "a.bmp"),
    "gif": lambda g, p: g.save(p / "a.gif"),
    "palette png": lambda g, p: g.convert("P").save(p / "a.png"),
    "alpha png": lambda g, p: g.convert("LA").save(p / "a.png"),
    "grey tif": lambda g, p: g.save(p / "a.tif"),
    "palette tif": lambda g, p: g.convert("P").save(p / "a.tif"),
    "lzw": lambda g, p: g.save(p / "a.tif", compression="tiff_lzw"),
    "zstd": lambda g, p: g.save(p / "a.tif", compression="zstd"),
    "white is zero": lambda g, p: tiff(p / "a", 255 - np.asarray(g), photometric="miniswhite"),
    "npy": lambda g, p: np.save(p / "a.npy", np.asarray(g)),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_one_picture_has_one_meaning_whatever_its_file(tmp_path, kind):
    from PIL import Image
    PICTURES[kind](Image.fromarray(grey()), tmp_path)
    np.testing.assert_array_equal(load_images(tmp_path).images[0, 0], grey())


def test_colour_keeps_its_bits_and_leaves_opacity_and_ink_out(tmp_path):
    import imagecodecs
    import tifffile
    from PIL import Image
    deep = pixels(40, 36, 3)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.png").write_bytes(imagecodecs.png_encode(deep))
    np.testing.assert_array_equal(load_images(tmp_path / "deep").images[0], deep.transpose(2, 0, 1))
    rgb = np.stack([grey(k) for k in range(3)], -1)
    rgba = np.dstack([rgb, np.full((40, 36), 255, np.uint8)])
    (tmp_path / "rgba").mkdir()
    tifffile.imwrite(tmp_path / "rgba" / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(load_images(tmp_path / "rgba").images[0], rgb.transpose(2, 0, 1))
    ink = np.dstack([255 - rgb, np.zeros((40, 36), np.uint8)])
    for ending in ("tif", "jpg"):
        (tmp_path / ending).mkdir()
        Image.fromarray(ink, mode="CMYK").save(tmp_path / ending / f"a.{ending}", quality=95)
        close = load_images(tmp_path / ending).images[0].astype(int) - rgb.transpose(2, 0, 1)
        assert np.abs(close).mean() < (0.1 if ending == "tif" else 40) and any(
            "CMYK" in n for n in load_images(tmp_path / ending).notes
        )


def test_mixed_kinds_of_numbers_are_refused_or_scaled(tmp_path):
    for name, other in [("16", grey().astype(np.uint16) * 257), ("f", (grey() / 255).astype(np.float32))]:
        folder = tmp_path / name
        folder.mkdir()
        tiff(folder / "0", grey())
        tiff(folder / "1", other)
        with pytest.raises(ValueError, match='mixed kinds of numbers.*depth="scale"'): load_images(folder)
        a, b = load_images(folder, depth="scale").images
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: x.replace("µm", "&#181;m"),
        lambda x: x.replace('"', "'"),
        lambda x: x.replace("<", "<OME:")
        .replace("<OME:/", "</OME:")
        .replace("xmlns=", "xmlns:OME=")
        .replace("<OME:?", "<?"),
    ],
)
def test_ome_is_read_in_any_spelling(tmp_path, change):
    import tifffile

    xml = change(
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image'
        ' ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="36" SizeY="40" SizeZ="1"'
        ' SizeC="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeXUnit="µm" PhysicalSizeY="500"'
        ' PhysicalSizeYUnit="nm"><Channel ID="Channel:0:0" Name="DAPI"'
        ' SamplesPerPixel="1"/><TiffData/></Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 36), np.uint8), description=xml.encode(), metadata=None)
    cells = load_images(tmp_path / "a.tif")
    assert cells.pixel_size == pytest.approx(0.5) and cells.channels == ["DAPI"]
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((40, 36), np.uint8), description=xml.replace("0.5", "INF").encode(), metadata=None
    )
    cells = load_images(tmp_path / "a.tif")
    assert cells.pixel_size is None and any("inf" in n for n in cells.notes)


def test_pixels_that_are_no_cubes_are_carried(tmp_path):
    import tifffile

    from cellinterp.data.images import resample
    tifffile.imwrite(tmp_path / "z.ome.tif", np.zeros((12, 40, 36), np.uint8), ome=True,
                     metadata=dict(axes="ZYX", PhysicalSizeX=0.1, PhysicalSizeY=0.1, PhysicalSizeZ=0.2))
    cells = load_images(tmp_path)
    assert cells.pixel_size == (.2, .1, .1) and "0.2 x 0.1 x 0.1 µm" in repr(cells)
    assert resample(cells).images.shape == (1, 1, 24, 40, 36) and resample(cells).pixel_size == .1
    tifffile.imwrite(tmp_path / "z.ome.tif", np.zeros((40, 36), np.uint8), ome=True,
                     metadata=dict(axes="YX", PhysicalSizeX=0.2, PhysicalSizeY=0.8))
    assert load_images(tmp_path).spacing == (.8, .2)


def ngff(path, version, shapes, axes, scale, **more):
    import zarr
    group = zarr.open_group(path, mode="w", zarr_format=version)
    for k, shape in enumerate(shapes): group.create_array(str(k), shape=shape, dtype="u2")[...] = k + 1
    kinds = dict(c="channel", t="time")
    said = [
        dict(
            version="0.4",
            axes=[
                dict(name=a, type=kinds.get(a, "space"), **({"unit": "micrometer"} if a in "zyx" else {})) for a in axes
            ],
            datasets=[
                dict(path=str(k), coordinateTransformations=[dict(type="scale", scale=scale)])
                for k in range(len(shapes))
            ],
        )
    ]
    group.attrs.update(
        dict(ome=dict(version="0.5", multiscales=said, **more)) if version == 3 else dict(multiscales=said, **more)
    )
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr_is_read_by_its_metadata(tmp_path, version):
    one = ngff(
        tmp_path / "a.zarr",
        version,
        [(2, 64, 64), (2, 32, 32)],
        "cyx",
        [1, 0.5, 0.5],
        omero=dict(channels=[dict(label="DNA"), dict(label="ER")]),
    )
    cells = load_images(one)
    assert cells.images.shape == (1, 2, 64, 64) and cells.pixel_size == .5 and cells.channels == ["DNA", "ER"]
    assert load_images(one, level=1).images.shape == (1, 2, 32, 32)
    volume = ngff(tmp_path / "b.zarr", version, [(12, 64, 64)] * 2, "zyx", [2, .5, .5])
    assert load_images(volume).images.shape == (1, 1, 12, 64, 64) and load_images(volume).pixel_size == (2, .5, .5)
    times = ngff(tmp_path / "c.zarr", version, [(3, 2, 1, 64, 64)], "tczyx", [1, 1, 3, .5, .5])
    assert load_images(times).images.shape == (3, 2, 64, 64) and load_images(times).pixel_size == .5


def test_a_plate_gives_its_fields_with_their_wells(tmp_path):
    import zarr
    plate = zarr.open_group(tmp_path / "plate.zarr", mode="w", zarr_format=2)
    plate.attrs["plate"] = dict(name="P1", wells=[dict(path="A/1"), dict(path="B/12")])
    for well in ("A/1", "B/12"):
        plate.create_group(well).attrs["well"] = dict(images=[dict(path="0"), dict(path="1")])
        for f in "01": ngff(tmp_path / "plate.zarr" / well / f, 2, [(2, 64, 64)], "cyx", [1, .5, .5])
    cells = load_images(tmp_path / "plate.zarr")
    assert cells.images.shape == (4, 2, 64, 64) and cells.groups.tolist() == ["P1_A01", "P1_A01", "P1_B12", "P1_B12"]


def test_what_is_left_out_of_a_folder_is_said(tmp_path):
    for c in "ab":
        (tmp_path / c / "plate2").mkdir(parents=True)
        png(tmp_path / c / "0", grey())
        png(tmp_path / c / "plate2" / "1", grey())
        (tmp_path / c / "2.czi").touch()
        (tmp_path / c / "9.png").symlink_to("/nonexistent/x.png")
    (tmp_path / "@eaDir").mkdir()
    cells = load_images(tmp_path)
    said = "\n".join(cells.notes)
    assert (
        len(cells) == 2
        and "2 files left out: links" in said
        and "2 images in deeper folders" in said
        and ".czi" in said
    )
    assert len(load_images(tmp_path, nested=True)) == 4


def test_names_of_arrays_are_no_labels(tmp_path):
    stack = np.zeros((12, 40, 40), np.uint8)
    np.savez(tmp_path / "a.npz", stack)
    assert set(load_images(tmp_path / "a.npz").labels) == {""}
    np.savez(tmp_path / "b.npz", x_train=stack, y_train=np.arange(12) % 2)
    assert load_images(tmp_path / "b.npz").labels.tolist() == ["0", "1"] * 6
    np.savez(
        tmp_path / "c.npz",
        train_images=stack,
        train_labels=np.ones((12, 1), int),
        test_images=stack,
        test_labels=np.zeros((12, 1), int),
    )
    cells = load_images(tmp_path / "c.npz")
    assert (
        cells.metadata.split.tolist() == ["train"] * 12 + ["test"] * 12
        and cells.labels.tolist() == ["1"] * 12 + ["0"] * 12
    )
    np.savez(tmp_path / "d.npz", images=stack, well=[f"A{i:02}" for i in range(12)], odd=np.zeros(3))
    cells = load_images(tmp_path / "d.npz")
    assert cells.metadata.well[1] == "A01" and any("odd" in n for n in cells.notes)


def test_crops_of_different_sizes(tmp_path):
    for k, n in enumerate((30, 50, 80)): png(tmp_path / str(k), np.full((n, n + 4), 10 * k + 5, np.uint8))
    with pytest.raises(ValueError, match='3 sizes in all.*fit="pad"'): load_images(tmp_path)
    cells = load_images(tmp_path, size=64, pixel_size=.5)
    assert cells.images.shape == (3, 1, 64, 64) and (cells.images == np.array([5, 15, 25])[:, None, None, None]).all()
    assert cells.pixel_size == .5 and any("2 padded" in n and "1 cropped" in n for n in cells.notes)
    with pytest.raises(ValueError, match="less than size=64"): load_images(tmp_path, size=64, fit="crop")
    assert load_images(tmp_path, size=64, fit="resize").images.shape == (3, 1, 64, 64)


def test_a_pattern_a_list_and_one_image(tmp_path):
    for i in range(3): png(tmp_path / f"c{i}", grey(i))
    (tmp_path / "notes.txt").write_text("no image")
    assert len(load_images(str(tmp_path / "c*.png"))) == 3
    assert load_images([tmp_path / "c2.png", tmp_path / "c0.png"]).metadata.file.tolist() == ["c2.png", "c0.png"]
    assert load_images(tmp_path / "c1.png").images.shape == (1, 1, 40, 36)
    with pytest.raises(ValueError, match="no image matches"): load_images(str(tmp_path / "*.txt"))


def test_a_folder_of_red_cells_loads_as_it_is():
    folder = os.path.join(os.environ.get("CELLINTERP_DATA", ""), "chula_rbc", "images")
    if not os.path.isdir(folder): pytest.skip("chula_rbc is not in the folder that CELLINTERP_DATA names")
    cells = load_data(folder, groups="smear")
    assert cells.images.shape == (2750, 3, 72, 72) and len(cells.class_names) == 11 and len(set(cells.groups)) > 100


def test_identifiers_are_no_features(tmp_path):
    from cellinterp.concepts.stream import open_rows
    from cellinterp.data import load_profiles
    (tmp_path / "Cells.csv").write_text(
        "ImageNumber,ObjectNumber,Metadata_Well,Parent_Nuclei,Location_Center_X,AreaShape_Area\n"
        "1,1,A01,1,3,300\n1,2,A01,2,4,310\n"
    )
    cells = load_profiles(tmp_path / "Cells.csv")
    assert list(cells.var_names) == ["AreaShape_Area"] and cells.obs.Well.tolist() == ["A01", "A01"]
    (tmp_path / "p.csv").write_text(
        "Image_Metadata_Plate,compound,replicate,concentration,f1\n1,None,1,0.5,1\n1,NA,2,5,2\n"
    )
    cells = load_profiles(tmp_path / "p.csv", controls="compound=None")
    assert list(cells.var_names) == ["f1"] and cells.obs.control.tolist() == [True, False] and cells.uns["notes"]
    table = pd.DataFrame({"a": [1., 2], "Metadata_Site": [1, 2]}, index=pd.Index([1003, 1000], name="cell_id"))
    table.to_parquet(tmp_path / "e.parquet")
    assert open_rows(tmp_path / "e.parquet").columns == ["a"]
    assert list(load_profiles(tmp_path / "e.parquet").obs_names) == ["1003", "1000"]
    pd.DataFrame({"embedding": [[.1, .2], [.3, .4]], "well": ["A01", "A02"]}).to_parquet(tmp_path / "l.parquet")
    assert load_profiles(tmp_path / "l.parquet").shape == (2, 2)


def test_tables_of_embeddings_in_parts_nullable_old_and_dense(tmp_path):
    import anndata
    import h5py

    from cellinterp.concepts.stream import open_rows
    d = pd.DataFrame(np.arange(12.).reshape(6, 2), columns=list("ab"))
    d.assign(plate=["x", "y"] * 3).to_parquet(tmp_path / "set.parquet", partition_cols=["plate"])
    assert sorted(open_rows(tmp_path / "set.parquet").read(0, 6)[:, 0]) == d.a.tolist()
    np.testing.assert_array_equal(open_rows(d.astype("Float64")).read(0, 6), d)
    np.savez(tmp_path / "a.npz", d.to_numpy())
    np.testing.assert_array_equal(open_rows(tmp_path / "a.npz").read(0, 6), d)
    anndata.AnnData(d.to_numpy(np.float32)).write_h5ad(tmp_path / "old.h5ad")
    with h5py.File(tmp_path / "old.h5ad", "r+") as f:
        for k in ("encoding-type", "encoding-version"): del f.attrs[k]
    assert open_rows(tmp_path / "old.h5ad").shape == (6, 2)


def test_what_was_known_of_a_cell_stands_beside_what_is_predicted():
    from cellinterp.runs.predict import _identity
    table = pd.DataFrame({"row": ["r1", "r2"], "decision": ["x", "y"], "mixed": [1, "two"], "label": ["7", "8"]})
    known = _identity(ImageSet(np.zeros((2, 1, 4, 4)), ["a", "b"], metadata=table), {"decision"})
    assert (
        known.row.tolist() == [0, 1] and known.row_given.tolist() == ["r1", "r2"] and known.label.tolist() == ["a", "b"]
    )
    assert (
        known.label_given.tolist() == ["7", "8"]
        and known.decision_given.tolist() == ["x", "y"]
        and known.mixed.tolist() == ["1", "two"]
    )


def test_predict_chooses_classes_and_numbers_with_any_table(tmp_path):
    from cellinterp.runs.predict import _load
    class Model: steps = []
    for c in "ab":
        (tmp_path / c).mkdir()
        for i in range(10): png(tmp_path / c / str(i), grey(i, (64, 64)))
    table = pd.DataFrame({"file": [f"{c}/{i}.png" for c in "ab" for i in range(10)]})
    assert len(_load(str(tmp_path), Model, None, 4, 0, None, table)) == 4
    assert len(_load(str(tmp_path), Model, "a", None, 0, "NYX", None)) == 10


def test_pixels_of_another_kind_than_in_training_are_refused():
    from types import SimpleNamespace

    from cellinterp.runs.training_facts import check_range
    encoder, cells = SimpleNamespace(image_low_=np.array([0.0]), image_high_=np.array([250.0])), pixels(
        20, 1, 32, 32, dtype=np.uint8
    )
    check_range(encoder, cells)
    for other in ((cells / 255).astype(np.float32), cells.astype(np.uint16) * 257):
        with pytest.raises(ValueError, match="expected about 0 to 250 in training"): check_range(encoder, other)


# ---- crops on disk, and a look at them

def test_crops_of_fields_come_back_with_their_wells(tmp_path):
    from cellinterp.data.crops import write_crops
    (tmp_path / "fields").mkdir()
    (tmp_path / "masks").mkdir()
    field, mask = pixels(120, 100), np.zeros((120, 100), np.uint8)
    mask[20:30, 20:30], mask[60:80, 50:60], mask[:5, :5] = 255, 255, 255
    for well in ("A01", "B02"):
        tiff(tmp_path / "fields" / f"p1_{well}_s1", field)
        tiff(tmp_path / "masks" / f"p1_{well}_s1_mask", mask)
    n = write_crops(
        tmp_path / "fields", tmp_path / "masks", tmp_path / "c.zarr", 32, pixel_size=0.5, edges=False, progress=False
    )
    cells = load_images(tmp_path / "c.zarr")
    assert n == len(cells) == 4 and cells.groups.tolist() == ["p1_A01"] * 2 + ["p1_B02"] * 2 and cells.pixel_size == .5
    np.testing.assert_array_equal(cells.images[0, 0], field[9:41, 9:41])
    assert (
        cells.metadata.well.tolist() == ["A01", "A01", "B02", "B02"] and cells.metadata.area.tolist() == [100, 200] * 2
    )
    (tmp_path / "masks" / "p1_B02_s1_mask.tif").unlink()
    with pytest.raises(ValueError, match="1 files without a partner .p1_B02_s1.tif"):
        write_crops(tmp_path / "fields", tmp_path / "masks", tmp_path / "d.zarr", 32, progress=False)


def test_a_look_names_what_is_odd_and_what_was_said(tmp_path):
    from cellinterp.explain.look import look
    images = np.random.default_rng(0).normal(100, 3, (4, 1, 32, 32)).astype(np.uint8)
    images[1], images[3] = 0, images[0]
    images[2, 0, 10:20, 10:20] = 255
    cells = ImageSet(images, list("aabb"), notes=["3 <b>files</b> left out"])
    page = look(cells, tmp_path / "look.html").read_text()
    assert "1 empty, 1 saturated, 1 twice" in page and "3 &lt;b&gt;files" in page and "a 2, b 2" in page
