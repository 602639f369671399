"Files written whole, names kept inside, JSON within bounds, and stores of arrays that are looked at before they open."
import json
import os
import pickle
import threading

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellinterp.data.files import parse_json, read_json, safe_join, whole_file, write_atomically
from cellinterp.data.stores import check_array, open_h5, open_zarr, require_chunks


@pytest.fixture
def data():
    import anndata
    from scipy import sparse
    columns = {"label": pd.Categorical(["a", "a", "a", "a"]), "control": False, "well": ["A1", "A2", "A3", "A4"],
               "dose": [0.0, 0.0, 1.0, 2.0], "count": pd.array([1, None, 3, 4], dtype="Int64")}
    uns = {"spec": "text", "nested": {"a": 1.5, "names": np.array(["u", "v"])}}
    return anndata.AnnData(
        np.arange(12, dtype="f4").reshape(4, 3) + 1, obs=pd.DataFrame(columns, index=list("wxyz")),
        obsm={"codes": sparse.eye(4).tocsr()}, uns=uns, layers={"z": np.zeros((4, 3))},
    )


@pytest.mark.parametrize("kind", ["zarr", "h5ad"])
def test_what_anndata_writes_is_opened(data, tmp_path, kind):
    import anndata
    path = tmp_path / f"x.{kind}"
    getattr(data, f"write_{kind}")(path)
    store = open_zarr(path) if kind == "zarr" else open_h5(path)
    np.testing.assert_array_equal(store["X"][...], data.X)
    require_chunks(store["X"])
    if kind == "zarr":
        for _, array in store["obs"].arrays(): check_array(array)
        again = anndata.read_zarr(path)
        assert list(again.obs["label"]) == list(data.obs["label"])


@pytest.mark.parametrize("version", [2, 3])
def test_every_plain_type_and_filter_of_zarr_is_opened(tmp_path, version):
    import zarr
    group = zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=version)
    for i, kind in enumerate(("?", "i1", "u2", "<i4", ">f8", "f2", "c8")):
        group.create_array(f"a{i}", data=np.ones((3, 2), kind))
    if version == 2:
        import numcodecs as nc
        codecs = nc.Zlib(), nc.GZip(), nc.BZ2(), nc.LZMA(), nc.Zstd(), nc.LZ4(), nc.Blosc(shuffle=2), None
        for i, codec in enumerate(codecs):
            group.create_array(f"c{i}", data=np.ones((4, 2), "f4"), compressors=codec, filters=[nc.Delta("f4")])
    store = open_zarr(tmp_path / "x.zarr")
    for name, array in store.arrays():
        assert np.all(array[...] == 1), name
        check_array(array)
        require_chunks(array)


class Harm:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)


PICKLED = [
    dict(dtype="|O", filters=[{"id": "pickle"}]),
    dict(dtype="|O", filters=[{"id": "vlen-utf8"}, {"id": "pickle"}]),
    dict(dtype="|O", filters=[{"id": "pickle"}, {"id": "vlen-utf8"}]),
    dict(dtype="|O", filters=[{"id": "json2"}]),
    dict(dtype="|O", filters=[{"id": "msgpack2"}]),
    dict(dtype="|O", filters=[]),
    dict(dtype="|O", filters=None, compressor={"id": "pickle"}),
    dict(dtype="<f4", filters=[{"id": "pickle"}]),
    dict(dtype="<f4", filters=[{"id": "vlen-array", "dtype": "<i4"}]),
    dict(dtype="<f4", filters=[{"id": ["pickle"]}]),
    dict(dtype="<f4", filters=["pickle"]),
    dict(dtype=[["a", "<f4"], ["b", "|O"]], filters=[{"id": "pickle"}]),
    dict(dtype=[["a", [["c", "|O"]]]], filters=None),
    dict(dtype={"name": "object"}, filters=None),
    dict(dtype="object", filters=None),
    dict(dtype=None, filters=None),
]


@pytest.mark.parametrize("change", PICKLED, ids=lambda c: str(c)[:70])
@pytest.mark.parametrize("where", ["array", "group", "deep", "consolidated"])
def test_objects_in_zarr_are_refused_and_run_nothing(tmp_path, change, where):
    store, harm = tmp_path / "x.zarr", tmp_path / "harm"
    at = store / dict(array=".", group="X", deep="obs/label/codes", consolidated="X")[where]
    plain = {"zarr_format": 2, "shape": [1], "chunks": [1], "compressor": None, "fill_value": None, "order": "C"}
    meta = {**plain, **change}
    at.mkdir(parents=True)
    for folder in at.parents:
        if folder == tmp_path: break
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
    (at / "0").write_bytes(pickle.dumps(Harm(harm)))
    good = {**meta, "dtype": "<f4", "filters": None, "compressor": None}
    (at / ".zarray").write_text(json.dumps(good if where == "consolidated" else meta))
    if where == "consolidated":
        whole = {".zgroup": {"zarr_format": 2}, "X/.zarray": meta}
        (store / ".zmetadata").write_text(json.dumps({"zarr_consolidated_format": 1, "metadata": whole}))
    with pytest.raises(ValueError, match="not opened"): open_zarr(store)
    assert not harm.exists()


def test_a_store_that_is_no_store_says_so(tmp_path):
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "file.zarr").write_text("x")
    for name, says in ("empty.zarr", "not a zarr store"), ("file.zarr", "not a folder"):
        with pytest.raises(ValueError, match=f"{name}: {says}"): open_zarr(tmp_path / name)
    with pytest.raises(FileNotFoundError): open_zarr(tmp_path / "none.zarr")
    (tmp_path / "loop.zarr").mkdir()
    (tmp_path / "loop.zarr/.zgroup").write_text('{"zarr_format": 2}')
    os.symlink(tmp_path / "loop.zarr", tmp_path / "loop.zarr/again")
    with pytest.raises(ValueError, match="levels"): open_zarr(tmp_path / "loop.zarr")
    (tmp_path / "pipe.zarr").mkdir()
    os.mkfifo(tmp_path / "pipe.zarr/.zarray")
    with pytest.raises(ValueError, match="regular"): open_zarr(tmp_path / "pipe.zarr")


KEYS = st.sampled_from(["id", "name", "configuration", "codecs", "chunk_shape", "metadata", "node_type", "a"])
TREES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                     lambda v: st.lists(v, max_size=4) | st.dictionaries(KEYS, v, max_size=4), max_leaves=12)


@given(doc=st.dictionaries(st.sampled_from(["zarr_format", "shape", "chunks", "dtype", "filters", "compressor", "order",
                                            "data_type", "codecs", "chunk_grid", "node_type", "consolidated_metadata",
                                            "storage_transformers", "metadata", "fill_value"]), TREES),
       name=st.sampled_from([".zarray", ".zgroup", ".zmetadata", "zarr.json"]))
def test_no_description_ends_in_another_error(doc, name, tmp_path_factory):
    store = tmp_path_factory.mktemp("z") / "x.zarr"
    store.mkdir()
    (store / name).write_text(json.dumps(doc))
    try: open_zarr(store)
    except ValueError: pass


@given(text=st.text(max_size=40) | st.binary(max_size=40) | TREES.map(json.dumps))
def test_json_gives_a_value_or_a_value_error(text):
    try: parse_json(text)
    except ValueError as error: assert len(str(error)) < 400


@given(names=st.lists(st.text(st.sampled_from("ab./\\:~ \0\nC"), max_size=8), min_size=1, max_size=3))
def test_no_name_leaves_the_folder(names, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "stay"
    try: path = safe_join(folder, *names)
    except ValueError: return
    assert os.path.realpath(path).startswith(os.path.realpath(folder))


def test_readers_never_see_half_a_file(tmp_path):
    path, seen, stop = tmp_path / "x.json", set(), threading.Event()
    write_atomically(path, "a" * 200_000)

    def look():
        while not stop.is_set(): seen.add(len(path.read_text()))
    reader = threading.Thread(target=look)
    reader.start()
    for i in range(30): write_atomically(path, "ab"[i % 2] * (200_000 + i % 2))
    stop.set()
    reader.join()
    assert seen <= {200_000, 200_001}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "x.csv"
    write_atomically(path, "old")
    with pytest.raises(RuntimeError), whole_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    with pytest.raises(UnicodeEncodeError): write_atomically(path, "\ud800")
    with pytest.raises(FileExistsError, match="is there already"): write_atomically(path, "new", overwrite=False)
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["x.csv"])


def test_json_files_are_checked_as_records(tmp_path):
    for text, says in ("[1]", "a record"), ("{", "not JSON"), ("", "not"), ("\0", "not JSON"), ("1e999", "a float"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=f"x.json: .*{says}"): read_json(tmp_path / "x.json", dict)
    with pytest.raises(FileNotFoundError): read_json(tmp_path / "none.json")
    with pytest.raises(ValueError, match="regular"): read_json("/dev/zero")
