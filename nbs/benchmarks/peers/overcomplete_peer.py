"""overcomplete: TopKSAE (linear encoder with batch norm, its default) or MpSAE, its TopK auxiliary loss for TopK, Adam,
its gradient clipping and a cosine schedule.
Its package file imports vision models (timm, torchvision) that no dictionary needs; it is left out."""
import torch
from common import Task, open_package

open_package("overcomplete")
from overcomplete.sae.losses import top_k_auxiliary_loss
from overcomplete.sae.topk_sae import TopKSAE

torch.set_num_threads(1)
task = Task()


def model(steps):
    torch.manual_seed(task.seed)
    sae = TopKSAE(task.test.shape[1], nb_concepts=task.n_atoms, top_k=task.k, device="cpu").train()
    optimizer = torch.optim.Adam(sae.parameters(), lr=task.learning_rate)
    return (
        sae,
        optimizer,
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=task.learning_rate / 100),
    )


def step(sae, optimizer, schedule, rows):
    x = torch.from_numpy(rows)
    optimizer.zero_grad()
    z_pre, z, x_hat = sae(x)
    top_k_auxiliary_loss(x, x_hat, z_pre, z, sae.get_dictionary()).backward()
    torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
    optimizer.step()
    if schedule.last_epoch < schedule.T_max: schedule.step()


timing = model(1000)
sae, optimizer, schedule = model(task.plan(lambda rows: step(*timing, rows)))
for i in task.batches(): step(sae, optimizer, schedule, task.rows[i])
sae.eval()
with torch.no_grad():
    task.done(
        sae.get_dictionary().detach().numpy(),
        lambda x: sae.encode(torch.from_numpy(x))[1].numpy(),
        lambda z: sae.decode(torch.from_numpy(z)).numpy(),
        "overcomplete",
        "torch",
    )
