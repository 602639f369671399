"""eai-sparsify: its SparseCoder (TopK), with either optimiser of its trainer: schedule-free sign descent (its default;
method sparsify) or Adam with warm-up and linear decay (sparsify_adam).
Its trainer wants a language model, so the few lines of its step stand here: centring by the mean of the first batch,
FVU + AuxK / 32, tangent gradients, unit-norm decoder."""
import torch

# asked at import, for an autocast that a CPU never enters
torch.cuda.is_bf16_supported = lambda *a, **k: False
from common import Task
from schedulefree import ScheduleFreeWrapper
from sparsify import SparseCoder, SparseCoderConfig
from sparsify.sign_sgd import SignSGD
from transformers import get_linear_schedule_with_warmup

torch.set_num_threads(1)
task = Task()


def model(steps):
    torch.manual_seed(task.seed)
    sae = SparseCoder(task.test.shape[1], SparseCoderConfig(num_latents=task.n_atoms, k=task.k))
    sae.b_dec.data = torch.from_numpy(task.rows[:task.batch_size].mean(0))
    if task.method == "sparsify":
        optimizer, schedule = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=task.learning_rate), momentum=0.95), None
        optimizer.train()
    else:
        optimizer = torch.optim.Adam(sae.parameters(), lr=task.learning_rate)
        schedule = get_linear_schedule_with_warmup(optimizer, max(1, steps // 20), int(1.02 * steps))
    return sae, optimizer, schedule, torch.zeros(task.n_atoms, dtype=torch.long)


def step(sae, optimizer, schedule, since_fired, rows):
    x = torch.from_numpy(rows)
    sae.set_decoder_norm_to_unit_norm()
    out = sae(x, dead_mask=since_fired > task.dead_after)
    (out.fvu + out.auxk_loss / 32).backward()
    sae.remove_gradient_parallel_to_decoder_directions()
    optimizer.step()
    optimizer.zero_grad()
    if schedule: schedule.step()
    since_fired += len(x)
    since_fired[out.latent_indices.flatten()] = 0


timing = model(1000)
run = model(task.plan(lambda rows: step(*timing, rows)))
for i in task.batches(): step(*run, task.rows[i])
sae, optimizer = run[:2]
# schedule-free: the averaged weights are the answer
if task.method == "sparsify": optimizer.eval()
sae.set_decoder_norm_to_unit_norm()


def encode(x):
    values, columns, pre = sae.encode(torch.from_numpy(x))
    return torch.zeros_like(pre).scatter_(1, columns, values).numpy()


with torch.no_grad():
    task.done(
        sae.W_dec.numpy(),
        encode,
        lambda z: (torch.from_numpy(z) @ sae.W_dec + sae.b_dec).numpy(),
        "eai-sparsify",
        "torch",
    )
