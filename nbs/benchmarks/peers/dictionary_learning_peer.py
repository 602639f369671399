"""dictionary-learning: TopKTrainer (TopK with AuxK) or MatryoshkaBatchTopKTrainer. Beside its defaults: warm-up over 5
% of the steps, decay over the last 20 %, and a dead threshold that fires within
the budget (its own, 10 million samples, never would). Its package file imports language-model tools that no dictionary
needs; it is left out."""
import torch
from common import Task, open_package

open_package("dictionary_learning")
from dictionary_learning.trainers.top_k import TopKTrainer

torch.set_num_threads(1)
task = Task()


def trainer(steps):
    t = TopKTrainer(
        steps=steps,
        activation_dim=task.test.shape[1],
        dict_size=task.n_atoms,
        k=task.k,
        layer=0,
        lm_name="none",
        lr=task.learning_rate,
        warmup_steps=max(1, steps // 20),
        decay_start=int(0.8 * steps),
        threshold_start_step=steps // 2,
        seed=task.seed,
        device="cpu",
    )
    t.dead_feature_threshold = task.dead_after
    return t


timing, count = trainer(1000), iter(range(1000))
steps = task.plan(lambda rows: timing.update(next(count), torch.from_numpy(rows)))
t = trainer(steps)
for s, i in enumerate(task.batches()):
    # the schedule ends at rate 0: whatever budget is left is spent at the last rate above it
    if s >= steps: t.scheduler.last_epoch = steps - 2
    t.update(s, torch.from_numpy(task.rows[i]))
ae = t.ae.eval()
with torch.no_grad():
    task.done(
        ae.decoder.weight.T.numpy(),
        lambda x: ae.encode(torch.from_numpy(x)).numpy(),
        lambda z: ae.decode(torch.from_numpy(z)).numpy(),
        "dictionary-learning",
        "torch",
    )
