"""SAELens: TopKTrainingSAE with its own trainer's step. Beside its defaults: warm-up over the first 5 % of the steps,
linear decay over the last 20 %, a dead window that fires within the budget.
"""
import logging
from importlib.metadata import version

import torch
from common import Task, open_package

# its package file imports language-model tools
open_package("sae_lens", __version__=version("sae-lens"), logger=logging.getLogger("sae_lens"))
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import register_sae_class
from sae_lens.saes.matching_pursuit_sae import (
    MatchingPursuitSAE,
    MatchingPursuitSAEConfig,
    MatchingPursuitTrainingSAE,
    MatchingPursuitTrainingSAEConfig,
)
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

register_sae_class("topk", TopKSAE, TopKSAEConfig)
register_sae_class("matching_pursuit", MatchingPursuitSAE, MatchingPursuitSAEConfig)
torch.set_num_threads(1)
task = Task()


def trainer(steps):
    torch.manual_seed(task.seed)
    common = dict(d_in=task.test.shape[1], d_sae=task.n_atoms, dtype="float32", device="cpu")
    if task.method == "sae_lens_mp":
        sae = MatchingPursuitTrainingSAE(
            MatchingPursuitTrainingSAEConfig(
                **common,
                decoder_init_norm=1.0,
                max_iterations=task.k,
                residual_threshold=0.0,
                stop_on_duplicate_support=False
            )
        )
    else: sae = TopKTrainingSAE(TopKTrainingSAEConfig(**common, k=task.k))
    cfg = SAETrainerConfig(
        total_training_samples=steps * task.batch_size,
        train_batch_size_samples=task.batch_size,
        lr=task.learning_rate,
        lr_end=task.learning_rate / 10,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 5,
        dead_feature_window=max(1, task.dead_after // task.batch_size),
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(cfg, sae, data_provider=iter(()))


def step(t, rows):
    t.step(torch.from_numpy(rows))
    t.n_training_steps += 1


timing = trainer(1000)
t = trainer(task.plan(lambda rows: step(timing, rows)))
# centred, as its language-model runner does
with torch.no_grad(): t.sae.b_dec.data = torch.from_numpy(task.rows.mean(0))
for i in task.batches(): step(t, task.rows[i])
sae = t.sae.eval()
with torch.no_grad():
    task.done(
        sae.W_dec.numpy(),
        lambda x: sae.encode(torch.from_numpy(x)).numpy(),
        lambda z: sae.decode(torch.from_numpy(z)).numpy(),
        "sae-lens",
        "torch",
    )
