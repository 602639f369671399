"""tools/gpu_check.sh at toy size on the processor: every part measures something, and a part that fails says why."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import gpu_check


@pytest.mark.slow
def test_the_check_runs_at_toy_size(tmp_path):
    out = tmp_path / "gpu.json"
    env = {**os.environ, "DEVICE": "cpu", "TOY": "1", "PYTHON": sys.executable, "WHEELS": str(tmp_path / "none")}
    done = subprocess.run(["bash", str(ROOT / "tools/gpu_check.sh"), str(out)], capture_output=True, text=True, env=env)
    report = json.loads(out.read_text())
    assert done.returncode == 0 and not report["failed"], (report["failed"], done.stderr[-2000:])
    assert report["toy"] and report["device"] == "cpu"
    for key in (
        "vae_16_images_a_second",
        "icfl_tokens_a_second",
        "topk_tokens_a_second",
        "icfl_from_disk_tokens_a_second",
    ):
        assert report[key] > 0, key
    assert 0 < report["icfl_share_of_roofline"] < 1 and report["a_tenth_metrics"]


def test_a_part_that_fails_leaves_its_reason(tmp_path, monkeypatch):
    def broken(device, toy): raise RuntimeError("out of memory")
    def whole(device, toy): return {"rate": 1.0}
    monkeypatch.setattr(gpu_check, "PARTS", (broken, whole))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cpu", "--toy", "--out", str(tmp_path / "g.json")])
    assert gpu_check.main() == 1
    report = json.loads((tmp_path / "g.json").read_text())
    assert report["failed"] == {"broken": "RuntimeError: out of memory"} and report["rate"] == 1.0
