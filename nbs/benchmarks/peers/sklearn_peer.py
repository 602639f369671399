"""scikit-learn: MiniBatchDictionaryLearning by partial_fit (learning_rate is its alpha), started from rows of the data.
Encoding: its OMP with k atoms.
"""
import numpy as np
from common import Task
from sklearn.decomposition import MiniBatchDictionaryLearning

task = Task()
task.batch_size = 256
start = task.rows[task.rng.choice(len(task.rows), task.n_atoms, replace=False)]
model = MiniBatchDictionaryLearning(
    task.n_atoms,
    alpha=task.learning_rate,
    batch_size=task.batch_size,
    fit_algorithm="cd",
    transform_algorithm="omp",
    transform_n_nonzero_coefs=task.k,
    dict_init=start / np.linalg.norm(start, axis=1, keepdims=True),
    transform_max_iter=100,
    random_state=task.seed,
)
for i in task.batches(): model.partial_fit(task.rows[i])
task.done(model.components_, model.transform, lambda z: z @ model.components_, "scikit-learn", rows=10_000)
