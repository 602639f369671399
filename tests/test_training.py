"""The one loop: exact resume, seeds, balance; and the views, against what they must leave unchanged."""
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cellinterp.training.augment import aligned_crops, background, polar_spectra, random_views, turns
from cellinterp.training.images import ConvBlocks, pad_to
from cellinterp.training.loop import Rows, accelerator, as_tensor, balanced_weights, train


def fit(max_steps=60, checkpoint=None, stop_at=None, **options):
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    x = torch.arange(80.0).view(20, 4) / 80
    def step(module, rows, t):
        if t == stop_at: raise KeyboardInterrupt
        return {"loss": module(x[rows]).square().mean()}
    options = {"random_state": 0, **options}
    return module, train(
        module,
        step,
        20,
        max_steps=max_steps,
        batch_size=6,
        device="cpu",
        checkpoint=checkpoint,
        checkpoint_every=20,
        **options
    )


def weights(module): return torch.cat([p.flatten() for p in module.parameters()])


@pytest.mark.parametrize("schedule", ["constant", "onecycle"])
def test_a_broken_run_resumes_to_the_same_weights(tmp_path, schedule):
    whole, history = fit(schedule=schedule)
    with pytest.raises(KeyboardInterrupt): fit(checkpoint=tmp_path, stop_at=33, schedule=schedule)
    resumed, again = fit(checkpoint=tmp_path, schedule=schedule)
    assert torch.equal(weights(whole), weights(resumed))
    # also the line whose steps lie on both sides of the break
    pd.testing.assert_frame_equal(history, again, check_exact=True)


def test_a_killed_process_resumes_to_the_same_weights(tmp_path):
    "SIGKILL in mid-run, not an exception: only what is on disk counts."
    code = f"""
import sys; sys.path.insert(0, {str(__import__('pathlib').Path(__file__).parent)!r})
import os, signal, test_training as t
t.fit_and_kill({str(tmp_path)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert (tmp_path / "training.pt").exists()
    resumed, _ = fit(checkpoint=tmp_path)
    assert torch.equal(weights(resumed), weights(fit()[0]))


def fit_and_kill(folder):
    import os
    import signal
    x = torch.arange(80.0).view(20, 4) / 80
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    def step(module, rows, t):
        if t == 47: os.kill(os.getpid(), signal.SIGKILL)
        return {"loss": module(x[rows]).square().mean()}
    train(
        module,
        step,
        20,
        max_steps=60,
        batch_size=6,
        device="cpu",
        checkpoint=folder,
        checkpoint_every=20,
        random_state=0,
    )


def test_seeds_and_the_callers_random_state():
    assert torch.equal(weights(fit()[0]), weights(fit()[0]))
    assert not torch.equal(weights(fit()[0]), weights(fit(random_state=1)[0]))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fit(random_state=None)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    # only the module's own initialisation moved it
    assert torch.equal(after, torch.get_rng_state()) and not torch.equal(before, after)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    fit(checkpoint=tmp_path)
    with pytest.raises(ValueError, match="belongs to another run"): fit(max_steps=80, checkpoint=tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b"rubbish",
                                    lambda b: b[:len(b) // 2] + bytes([b[len(b) // 2] ^ 255]) + b[len(b) // 2 + 1:]])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    fit(checkpoint=tmp_path)
    file = tmp_path / "training.pt"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match="training.pt.*delete it to start anew"): fit(checkpoint=tmp_path)


def test_a_pickle_in_place_of_a_checkpoint_runs_nothing(tmp_path):
    import os
    import pickle
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "made"),)
    (tmp_path / "training.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="not one that"): fit(checkpoint=tmp_path)
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_of_other_data_or_arguments_is_refused(tmp_path):
    "Same seed, steps and number of rows: only the data, or one argument, differ."
    from cellinterp.laws import SparseClassifier
    rng = np.random.default_rng(0)
    X, other = rng.normal(size=(2, 60, 4))
    y = np.arange(60) % 2
    options = dict(max_steps=5, dense_only=True, random_state=0, checkpoint=str(tmp_path))
    SparseClassifier(**options).fit(X, y)
    SparseClassifier(**options).fit(X, y)
    for change, data in (
        (dict(), other),
        (dict(learning_rate=1e-4), X),
        (dict(hidden=(8,)), X),
        (dict(batch_size=8), X),
    ):
        with pytest.raises(ValueError, match="belongs to another run"):
            SparseClassifier(**options | change).fit(data, y)


@pytest.mark.parametrize("kind", [np.random.RandomState, np.random.default_rng])
def test_a_generator_may_stand_for_the_random_state(kind):
    a, b = (weights(fit(max_steps=5, random_state=kind(3))[0]) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, weights(fit(max_steps=5, random_state=kind(4))[0]))


def test_divergence_is_an_error():
    module = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="learning_rate"):
        train(
            module,
            lambda m, rows, t: {"loss": m(torch.ones(len(rows), 1)).mean() * float("nan")},
            8,
            max_steps=3,
            device="cpu",
        )


def test_early_stopping_keeps_the_best_weights():
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    seen = []
    def validate():
        seen.append(module.weight.item())
        return -abs(module.weight.item() - 0.5)
    train(
        module,
        lambda m, rows, t: {"loss": m(torch.ones(len(rows), 1)).mean()},
        8,
        max_steps=500,
        learning_rate=0.01,
        device="cpu",
        validate=validate,
        validate_every=5,
        patience=50,
        random_state=0,
    )
    assert module.weight.item() == min(seen, key=lambda w: abs(w - 0.5)) and len(seen) < 100


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 2**31 - 1))
def test_an_epoch_visits_no_row_twice(n, batch, seed):
    rows = Rows(n, batch, seed)
    epoch = torch.cat([rows[t] for t in range(rows.steps_per_epoch)]).tolist()
    assert len(epoch) == len(set(epoch)) and set(epoch) <= set(range(n)) and len(epoch) > n - min(batch, n)
    assert rows[3].tolist() == Rows(n, batch, seed)[3].tolist()


def test_balanced_weights_sum_alike():
    y = np.array([0] * 9 + [1] * 3 + [2])
    w = balanced_weights(y)
    assert np.allclose([w[y == k].sum() for k in range(3)], 1)


@pytest.mark.parametrize(
    "name,value,match",
    [("device", "gpu", "device: 'gpu'"), ("precision", "fp8", "precision: 'fp8'"), ("device", "cuda", "no CUDA")],
)
def test_unknown_device_or_precision(name, value, match):
    if value == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match=match):
        accelerator(**{name: value})


def test_two_processes_train_as_one(tmp_path):
    """accelerate launch on two CPU processes: both end with the same weights, and with those of one process on the same
    rows.
    """
    script = tmp_path / "two.py"
    script.write_text("""
import sys, torch
from torch import nn
from cellinterp.training.loop import train
torch.manual_seed(0); module = nn.Linear(3, 1); x = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
def step(m, rows, t): return {"loss": (m(x[rows]) - 1).square().mean()}
train(module, step, 32, max_steps=12, batch_size=8, learning_rate=.05, device="cpu", random_state=0)
import os; torch.save(module.state_dict(), f"{sys.argv[1]}/{os.environ.get('RANK', 'one')}.pt")
""")
    import os
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, env=env, timeout=120)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        f"--master_port={port}",
        str(script),
        str(tmp_path),
    ]
    done = subprocess.run(
        launch, env={**env, "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, a, b = (torch.load(tmp_path / f"{k}.pt", weights_only=True)["weight"] for k in ("one", "0", "1"))
    assert torch.equal(a, b)
    torch.testing.assert_close(a, one, rtol=1e-4, atol=1e-5)


def cell(n=64):
    yy, xx = torch.meshgrid(*[torch.linspace(-1, 1, n)] * 2, indexing="ij")
    return (torch.exp(-((xx / .5)**2 + (yy / .22)**2)**2) * (1 + .7 * xx + .8 * yy))[None, None]


@pytest.mark.parametrize("size", [33, 64, 100])
def test_aligned_crops_undo_turns_and_mirrors(size):
    x = cell(size)
    crops = aligned_crops(torch.cat(turns(x)))
    assert (crops - crops[:1]).square().mean() / crops[0].var() < .01
    other = aligned_crops(x.transpose(2, 3) * 0 + torch.roll(cell(size), 0) ** 4)
    assert (other - crops[:1]).square().mean() / crops[0].var() > .05                 # and another cell is another crop


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_spectra_do_not_see_the_angle(seed):
    torch.manual_seed(seed)
    x = cell()
    views = random_views(x.repeat(4, 1, 1, 1), scale=0, shift=0, gain=0)
    moved = (polar_spectra(views) - polar_spectra(x)).norm(dim=1).max()
    stretched = (polar_spectra(cell() ** 3) - polar_spectra(x)).norm()
    assert moved < .5 * stretched


def test_background_ignores_a_neighbour_at_the_edge():
    x = torch.full((1, 1, 64, 64), 7.0)
    x[..., :20, :12] = 100
    assert background(x).item() == 7


def test_dead_pixels_of_padding():
    x = torch.arange(35.0).view(1, 1, 5, 7)
    padded = pad_to(x, 4)
    assert padded.shape == (1, 1, 8, 8) and torch.equal(padded[..., 1:6, 0:7], x)
    assert ConvBlocks(1)(torch.zeros(1, 1, 50, 64)).shape == (1, 128, 4, 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16, np.float32, np.float64])
def test_every_dtype_keeps_its_numbers(dtype):
    a = np.array([[0, 1], [200, 100]], dtype=dtype)
    assert as_tensor(a)[torch.tensor([1])].tolist() == a[1:].tolist()
