"""Sets larger than memory: what is read is what an eager reader reads, training holds one batch, a folder is read once.
"""
import os
import subprocess
import sys

import numpy as np
import pytest
import zarr
from PIL import Image

from cellinterp.data import LazyImages, load_images

random = np.random.default_rng(0)
PIXELS = random.integers(0, 255, (40, 2, 32, 36)).astype(np.uint8)


def as_zarr(folder):
    store = zarr.open_group(folder / "s.zarr", mode="w")
    store.create_array("images", data=PIXELS.transpose(0, 2, 3, 1), chunks=(7, 32, 36, 2))
    store.create_array("labels", data=np.arange(40) % 2)
    store.attrs["axes"] = "NYXC"
    return folder / "s.zarr"


def as_plate(folder):
    plate = zarr.open_group(folder / "p.zarr", mode="w", zarr_format=2)
    plate.attrs["plate"] = dict(wells=[dict(path=f"A/{k}") for k in (1, 2)])
    axes = [dict(name=a, type={"c": "channel"}.get(a, "space")) for a in "cyx"]
    for k in (1, 2):
        well = plate.create_group(f"A/{k}")
        well.attrs["well"] = dict(images=[dict(path=str(f)) for f in range(20)])
        for f in range(20):
            field = well.create_group(str(f))
            field.create_array("0", data=PIXELS[20 * (k - 1) + f])
            field.attrs["multiscales"] = [dict(version="0.4", axes=axes, datasets=[dict(path="0")])]
    return folder / "p.zarr"


def as_folder(folder):
    for k, image in enumerate(PIXELS):
        (folder / "f" / "ab"[k // 20]).mkdir(parents=True, exist_ok=True)
        colour = np.concatenate([image, image[:1]]).transpose(1, 2, 0)
        Image.fromarray(colour).save(folder / f"f/{'ab'[k // 20]}/{k:02}.png")
    return folder / "f"


def as_numpy(folder):
    np.save(folder / "n.npy", PIXELS)
    return folder / "n.npy"


@pytest.mark.parametrize("write", [as_zarr, as_plate, as_folder, as_numpy])
def test_lazy_is_what_eager_reads(write, tmp_path):
    source = write(tmp_path)
    axes = dict(axes="NCYX") if write is as_numpy else {}
    lazy, eager = load_images(source, lazy=True, **axes), load_images(source, cache=False, **axes)
    assert isinstance(lazy.images, LazyImages) and isinstance(eager.images, np.ndarray)
    assert lazy.images.shape == eager.images.shape and lazy.images.dtype == eager.images.dtype
    rows = np.array([39, 3, 3, 17])
    assert np.array_equal(lazy.images[rows], eager.images[rows])
    assert np.array_equal(lazy.images, eager.images)
    assert np.array_equal(lazy.images[5], eager.images[5]) and np.array_equal(lazy.images[:, 0], eager.images[:, 0])
    assert np.array_equal(lazy.labels, eager.labels) and lazy.class_names == eager.class_names
    assert np.array_equal(lazy.groups, eager.groups) and str(lazy.metadata) == str(eager.metadata)
    part = lazy.subset(np.arange(40) % 3 == 0)
    assert isinstance(part.images, LazyImages) and np.array_equal(part.images, eager.images[::3])
    assert np.array_equal(load_images(source, lazy=True, size=20, fit="crop", **axes).images,
                          load_images(source, size=20, fit="crop", cache=False, **axes).images)


def test_a_kept_folder_follows_its_files(tmp_path):
    folder = as_folder(tmp_path)
    before = load_images(folder, cache=True)
    kept = tmp_path / ".f.cellinterp.zarr"
    assert kept.is_dir() and not list(tmp_path.glob("*.part"))
    made = kept.stat().st_mtime_ns
    assert np.array_equal(load_images(folder, cache=True).images, before.images) and kept.stat().st_mtime_ns == made
    Image.fromarray(np.full((32, 36, 3), 9, np.uint8)).save(folder / "a/00.png")
    (folder / "b/39.png").unlink()
    after = load_images(folder, cache=True)
    assert len(after) == 39 and kept.stat().st_mtime_ns != made
    assert np.array_equal(after.images, load_images(folder, cache=False).images)


def test_a_folder_of_the_user_is_never_taken_for_a_kept_one(tmp_path):
    folder = as_folder(tmp_path)
    own = zarr.open_group(tmp_path / "mine.zarr", mode="w")
    own.create_array("images", data=np.ones((2, 2)))
    with pytest.raises(ValueError, match="no store of ours"): load_images(folder, cache=tmp_path / "mine.zarr")
    assert zarr.open_group(tmp_path / "mine.zarr", mode="r")["images"].shape == (2, 2)


def test_a_damaged_kept_folder_is_made_again(tmp_path):
    folder = as_folder(tmp_path)
    before = load_images(folder, cache=True)
    (tmp_path / ".f.cellinterp.zarr/rows.parquet").unlink()
    assert np.array_equal(load_images(folder, cache=True).images, before.images)


@pytest.mark.parametrize("model", ["black box", "vae"])
def test_a_lazy_set_trains_the_same_model(model, tmp_path):
    from cellinterp.data import simulate_nuclei
    from cellinterp.factors.vae import VAE
    from cellinterp.laws.blackbox import BlackBoxClassifier
    cells = simulate_nuclei(60, size=32, random_state=0)
    store = zarr.open_group(tmp_path / "s.zarr", mode="w")
    store.create_array("images", data=cells.images, chunks=(8, 1, 32, 32))
    lazy = load_images(tmp_path / "s.zarr", axes="NCYX", lazy=True).images
    settings = dict(max_steps=3, batch_size=16, random_state=0, device="cpu")
    if model == "vae":
        a, b = (VAE(4, "beta", **settings).fit(x).transform(cells.images) for x in (lazy, cells.images))
    else:
        fitted = [BlackBoxClassifier(**settings).fit(x, cells.labels) for x in (lazy, cells.images)]
        a, b = (model.predict_proba(cells.images) for model in fitted)
    assert np.allclose(a, b, atol=1e-5)


FLAT = """
import resource, sys
import numpy as np
from cellinterp.data import load_images
from cellinterp.laws.blackbox import BlackBoxClassifier
cells = load_images(sys.argv[1], axes="NCYX", lazy=True)
y = np.array(["a", "b"])[np.arange(len(cells)) % 2]
warm = load_images(sys.argv[1], axes="NCYX", lazy=True).images[:64]
BlackBoxClassifier(max_steps=2, batch_size=16, device="cpu").fit(np.asarray(warm), y[:64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
BlackBoxClassifier(max_steps=8, batch_size=16, device="cpu").fit(cells.images, y)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3, cells.images.nbytes / 1e6)
"""


def test_training_does_not_hold_the_set(tmp_path):
    "A set of 400 MB in blocks that compress well: what training adds is the sample for the scale, not the set."
    store = zarr.open_group(tmp_path / "s.zarr", mode="w")
    images = store.create_array("images", shape=(25_000, 1, 64, 64), chunks=(100, 1, 64, 64), dtype="f4")
    for start in range(0, 25_000, 5_000):
        grey = np.arange(5_000, dtype="f4")[:, None, None, None] % 17
        images[start:start + 5_000] = grey * np.ones((1, 1, 64, 64), "f4")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FLAT, str(tmp_path / "s.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    added, whole = map(float, done.stdout.split()[-2:])
    assert whole > 400 and added < whole / 2


def test_a_set_says_what_it_is(tmp_path):
    "The report of an eager set and of a lazy one, before anything is trained."
    source = as_zarr(tmp_path)
    eager, lazy = load_images(source).report(), load_images(source, lazy=True).report()
    assert eager["images"] == "40" and eager["size"] == "32 x 36 pixels, 2 channels"
    assert eager["classes"] == "0 20, 1 20"
    assert lazy.drop("odd images").equals(eager.drop("odd images"))
    assert lazy["odd images"].startswith(eager["odd images"]) and "40 of them" in lazy["odd images"]


def test_what_a_model_remembers_is_held_against_new_images(tmp_path):
    """Held-out cells set the limit; another pixel size is refused, other channels are put in order; blocks change
    nothing.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    import cellinterp.runs.predict as room
    from cellinterp.data import ImageSet, simulate_nuclei
    from cellinterp.factors.vae import VAE
    from cellinterp.runs.training_facts import training_facts
    from cellinterp.training.saving import save
    cells = simulate_nuclei(160, size=32, random_state=0)
    fit, held = np.arange(40), np.arange(40, 160)
    model = make_pipeline(VAE(4, "beta", max_steps=30, random_state=0, device="cpu"), LogisticRegression())
    model.fit(cells.images[fit], cells.labels[fit])
    save(model, tmp_path / "m", extra=dict(training=training_facts(model, cells, fit, held)))
    fresh = simulate_nuclei(400, size=32, random_state=1)
    table = room.predict(tmp_path / "m", fresh)
    low, high = table.attrs["unlike"]["interval"]
    spread = 3 * (high * (1 - high) / len(fresh)) ** 0.5
    assert table.unlike_training.mean() <= high + spread
    errors = model[0].reconstruction_error(fresh.images)
    assert (
        table.unlike_training.equals(table.unlike_training.where(errors > 0)) and table.attrs["unlike"]["n_held"] == 120
    )
    room.BLOCK, whole = 64, room.BLOCK
    try: assert np.allclose(room.predict(tmp_path / "m", fresh).filter(like="p_"), table.filter(like="p_"), atol=1e-5)
    finally: room.BLOCK = whole
    other = ImageSet(fresh.images, pixel_size=cells.pixel_size / 2)
    with pytest.raises(ValueError, match="pixel; expected the training's"): room.predict(tmp_path / "m", other)
    with pytest.raises(ValueError, match="same kind of numbers"):
        room.predict(tmp_path / "m", ImageSet((fresh.images / 255).astype(np.float32)))
