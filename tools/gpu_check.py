"""Measure this package on one GPU and write one JSON file that the page *What the GPU files cost* reads.

    python tools/gpu_check.py --device cuda --out gpu_check.json
    python tools/gpu_check.py --device cpu --toy --out gpu_check.json      # the same steps at toy size

Each part is measured by itself and written as soon as it is there: a part that fails leaves its reason, not an empty
file. Rates are taken between a short and a longer fit, so that setting up does not count.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
PEAK_BYTES = 4.3e12                         # bytes a second that an H200 moves at best
PEAK_FLOP = {"fp32": 60e12, "bf16": 790e12}  # its products a second


def wait(device: str):
    if device == "cuda": torch.cuda.synchronize()


def seconds(fit, device: str) -> float:
    wait(device)
    start = time.perf_counter()
    fit()
    wait(device)
    return time.perf_counter() - start


def per_step(make, X, device: str, few: int, many: int) -> float:
    "Seconds of one step: the difference of two fits, after one that warms up."
    make(few).fit(X)
    short, long = (seconds(lambda n=n: make(n).fit(X), device) for n in (few, many))
    return max(long - short, 1e-9) / (many - few)


def computing(fit, device: str) -> float | None:
    "Share of the time from the first to the last kernel in which the GPU computes."
    if device != "cuda": return None
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CUDA]) as seen: fit()
    spans = sorted((e.time_range.start, e.time_range.end) for e in seen.events() if e.device_type.name == "CUDA")
    covered, reached = 0.0, spans[0][0]
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered / (reached - spans[0][0])


def peak_gb(device: str) -> float | None:
    if device != "cuda": return None
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak


def training(device: str, toy: bool) -> dict:
    "Images a second of a VAE step, and the share of the time that the device computes."
    from cellinterp.data import simulate_nuclei
    from cellinterp.factors import VAE
    images = simulate_nuclei(64 if toy else 4096, 64, random_state=0).images
    found = {}
    widths = (4, 4, 4, 4) if toy else (16, 32, 64, 128)
    for batch in (16,) if toy else (64, 256, 1024):
        def make(n, batch=batch):
            return VAE(10, max_steps=n, batch_size=batch, widths=widths, device=device, random_state=0)
        step = per_step(make, images, device, *((2, 4) if toy else (20, 120)))
        found[f"vae_{batch}_images_a_second"] = batch / step
        found[f"vae_{batch}_gpu_computes"] = computing(lambda: make(2 if toy else 100).fit(images), device)
    found["vae_peak_gb"] = peak_gb(device)
    return found


def dictionaries(device: str, toy: bool) -> dict:
    "Tokens a second of ICFL and TopK steps, against what memory and products allow."
    from cellinterp.concepts import ICFL, TopKSAE
    n, d, m, k = (256, 16, 64, 4) if toy else (262_144, 1024, 8192, 100)
    rows = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    batch, found = (64 if toy else 8192), {}
    for name, kind in (("icfl", ICFL), ("topk", TopKSAE)):
        def make(steps, kind=kind):
            return kind(m, k, max_steps=steps, batch_size=batch, device=device, random_state=0)
        step = per_step(make, rows, device, *((2, 4) if toy else (3, 13)))
        found[f"{name}_tokens_a_second"] = batch / step
        found[f"{name}_peak_gb"] = peak_gb(device)
    # the floor of a pursuit: a token's scores, and the rows of the Gram matrix of the atoms it picks
    floor = max(2 * d * m / PEAK_FLOP["fp32"], 4 * k * m / PEAK_BYTES)
    found["icfl_roofline_tokens_a_second"] = 1 / floor
    found["icfl_share_of_roofline"] = found["icfl_tokens_a_second"] * floor
    return found


def sharded(device: str, toy: bool) -> dict:
    "Tokens a second where rows come from a store on disk, shuffled chunk by chunk."
    import zarr

    from cellinterp.concepts import ICFL
    n, d, m, k = (512, 16, 64, 4) if toy else (262_144, 1024, 8192, 100)
    batch = 64 if toy else 8192
    with tempfile.TemporaryDirectory() as folder:
        store = zarr.open_array(f"{folder}/rows.zarr", mode="w", shape=(n, d), chunks=(n // 8, d), dtype="float32")
        for i in range(0, n, n // 8):
            store[i:i + n // 8] = np.random.default_rng(i).standard_normal((n // 8, d), dtype=np.float32)
        def make(steps):
            return ICFL(m, k, max_steps=steps, batch_size=batch, device=device, random_state=0)
        step = per_step(make, f"{folder}/rows.zarr", device, *((2, 4) if toy else (3, 13)))
    return {"icfl_from_disk_tokens_a_second": batch / step, "icfl_from_disk_peak_gb": peak_gb(device)}


def a_tenth(device: str, toy: bool) -> dict:
    "The file `images_to_law_gpu.yaml` with a tenth of its steps, as `cellinterp run` makes it."
    from cellinterp.runs.execute import read_parameters
    from cellinterp.runs.sweep import read_experiment
    experiment = read_experiment(ROOT / "nbs" / "experiments" / "images_to_law_gpu.yaml")
    params = {**experiment.runs[0], "device": device}
    known = read_parameters(experiment.notebook)
    share = 0.1
    for key in [k for k in params if k.endswith("_steps")]: params[key] = max(2, int(params[key] * share))
    if toy: params = {"device": device, "quick": True}
    with tempfile.TemporaryDirectory() as folder:
        given = [x for key, value in params.items() if key in known for x in ("-p", f"{key}={value}")]
        command = [sys.executable, "-c", "import cellinterp.runs.cli as c; c.main()", "run", experiment.notebook.stem]
        start = time.perf_counter()
        done = subprocess.run([*command, *given, "--out", f"{folder}/out"], capture_output=True, text=True)
        if done.returncode: raise RuntimeError(done.stderr[-500:])
        result = json.loads((Path(folder) / "out" / "result.json").read_text())
    return {"a_tenth_seconds": time.perf_counter() - start, "a_tenth_metrics": result["metrics"]}


PARTS = (training, dictionaries, sharded, a_tenth)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="toy size: what it measures means nothing")
    parser.add_argument("--out", default="gpu_check.json")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part is begun after this")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available(): parser.error("--device cuda: torch sees no GPU")
    name = torch.cuda.get_device_name(0) if args.device == "cuda" else "cpu"
    report, start = {
        "device": name,
        "torch": torch.__version__.split("+")[0],
        "toy": args.toy,
        "failed": {},
    }, time.time()
    for part in PARTS:
        if time.time() - start > 60 * args.minutes:
            report["failed"][part.__name__] = "not begun: the time was up"
            continue
        begin = time.time()
        try: report |= part(args.device, args.toy)
        except Exception as error: report["failed"][part.__name__] = f"{type(error).__name__}: {error}"[:500]
        report[f"{part.__name__}_took_seconds"] = round(time.time() - begin, 1)
        partial = Path(f"{args.out}.part")
        partial.write_text(json.dumps(report, indent=1))
        os.replace(partial, args.out)
        print(part.__name__, report["failed"].get(part.__name__, "done"), f"{time.time() - begin:.0f} s", flush=True)
    return 1 if report["failed"] else 0


if __name__ == "__main__": sys.exit(main())
