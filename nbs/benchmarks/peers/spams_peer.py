"""SPAMS: online dictionary learning with an L1 penalty (method spams; learning_rate is its lambda) or with at most k
atoms a row by OMP (spams_omp). Rows of the data start it.
It is asked for a number of iterations at a time, so that the budget can be kept; its own statistics carry over.
Encoding: its OMP with k atoms for both."""
import time

import numpy as np
import spams
from common import Task

task = Task()
X = np.asfortranarray(task.rows.T)                                    # (d, n), one column a row
start = np.random.default_rng(task.seed).choice(X.shape[1], task.n_atoms, replace=False)
D = X[:, start] / np.linalg.norm(X[:, start], axis=0)
mode = dict(mode=3, lambda1=task.k) if task.method == "spams_omp" else dict(mode=2, lambda1=task.learning_rate)
batch, chunk, model = 512, 20 if task.method == "spams_omp" else 4, None
task.started = time.process_time()
while time.process_time() - task.started < task.budget:
    i = task.rng.integers(X.shape[1], size=chunk * batch)
    more = dict(model=model) if model else {}
    D, model = spams.trainDL(
        np.asfortranarray(X[:, i]),
        return_model=True,
        D=np.asfortranarray(D),
        K=task.n_atoms,
        iter=chunk,
        batchsize=batch,
        numThreads=1,
        verbose=False,
        **more,
        **mode
    )
    task.steps += chunk
task.batch_size = batch
length = np.linalg.norm(D, axis=0)
unit = np.asfortranarray(D / np.where(length > 0, length, 1))
def encode(x):
    return spams.omp(np.asfortranarray(x.T), unit, L=task.k, eps=0.0, numThreads=1).T.toarray()
task.done(unit.T, encode, lambda z: z @ unit.T, "spams-bin")
