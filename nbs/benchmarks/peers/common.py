"""What every peer's script shares. A peer is run as `python <peer>.py FOLDER` by an interpreter of its own venv; it
needs numpy (and what its library needs), never cellinterp.

FOLDER holds rows.npy (n, d) to learn from, test.npy (m, d), and task.json: n_atoms, k, learning_rate (or lambda),
budget (CPU-seconds), batch_size, dead_after, seed.
The script leaves atoms.npy (n_atoms, d), bias.npy (d,), test_hat.npy (m, d: the library's own reconstruction of test)
and report.json (steps, samples, cpu_seconds, l0, dead_fraction, versions).
"""
import importlib.util
import json
import sys
import time
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np


def open_package(name, **attributes):
    """Make `import name.part` work without running name/__init__.py, where that file imports far more than the part
    needs.
    """
    folders = list(importlib.util.find_spec(name).submodule_search_locations)
    sys.modules[name] = package = types.ModuleType(name)
    package.__path__ = folders
    package.__dict__.update(attributes)


class Task:
    """The task in a folder, its clock and its batches. The clock counts the process's CPU time; it starts when the fit
    starts, after imports and reading.
    """

    def __init__(self, folder=None):
        self.folder = Path(folder or sys.argv[1])
        self.__dict__.update(json.loads((self.folder / "task.json").read_text()))
        self.rows, self.test = np.load(self.folder / "rows.npy"), np.load(self.folder / "test.npy")
        self.rng, self.started, self.steps = np.random.default_rng(self.seed), None, 0

    def batches(self):
        "Batches of row numbers, epoch after epoch, each epoch in a new order; ends when the budget is spent."
        self.started = time.process_time()
        while True:
            order = self.rng.permutation(len(self.rows))
            for i in range(0, len(order) - self.batch_size + 1, self.batch_size):
                if time.process_time() - self.started >= self.budget: return
                yield order[i:i + self.batch_size]
                self.steps += 1

    def plan(self, step, warm=5, timed=15):
        """Steps that fit into the budget, for learning-rate schedules: a throw-away model's step(batch) is timed before
        the clock starts.
        """
        for i in range(warm + timed):
            if i == warm: start = time.process_time()
            step(self.rows[i * self.batch_size:(i + 1) * self.batch_size])
        return max(1, int(self.budget * timed / (time.process_time() - start)))

    def done(self, atoms, encode, decode, *packages, rows=20_000):
        """Scores that need the library's own encoder. encode(rows) -> dense codes (b, n_atoms); decode(codes) -> rows,
        both numpy.

        A feature is dead if it is never active in the first `rows` training rows (of encoders that are slow: fewer).
        """
        spent = time.process_time() - self.started
        active = np.zeros(len(atoms), np.int64)
        for i in range(0, rows, 5000): active += (encode(self.rows[i:i + 5000]) != 0).sum(0)
        np.save(self.folder / "atoms.npy", np.asarray(atoms, np.float32))
        np.save(self.folder / "bias.npy", decode(np.zeros((1, len(atoms)), np.float32))[0])
        np.save(
            self.folder / "test_hat.npy",
            np.concatenate([decode(encode(self.test[i : i + 5000])) for i in range(0, len(self.test), 5000)]).astype(
                np.float32
            ),
        )
        (self.folder / "report.json").write_text(json.dumps(dict(
            steps=self.steps, samples=self.steps * self.batch_size, cpu_seconds=round(spent, 2), l0=active.sum() / rows,
            dead_fraction=float((active == 0).mean()), versions={p: version(p) for p in packages})))
