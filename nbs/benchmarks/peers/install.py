"""Make the venv of one peer, or of all: `CELLINTERP_PEERS=~/peers python install.py sae_lens`. Peers never enter the
project's own environment.
"""
import os
import subprocess
import sys
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
PEERS = {
    "sae_lens": ["sae-lens==6.54.12", TORCH],
    "dictionary_learning": [TORCH, "numpy", "einops", "tqdm"],
    "overcomplete": [TORCH, "einops", "tqdm", "scipy", "scikit-learn", "pillow", "matplotlib", "scikit-image"],
    "sparsify": ["eai-sparsify==1.3.3", TORCH],
    "spams": ["spams-bin==2.6.14", "numpy", "scipy"],
    "sklearn": ["scikit-learn==1.9.1"],
}
# their dependencies hold language and vision models that no dictionary needs
ALONE = {"dictionary_learning": "dictionary-learning==0.1.0", "overcomplete": "overcomplete==0.3.0"}

for name in sys.argv[1:] or PEERS:
    folder = Path(os.environ["CELLINTERP_PEERS"]) / name
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *PEERS[name]], check=True)
    if name in ALONE: subprocess.run([*pip, "--no-deps", ALONE[name]], check=True)
    print(f"{name}: {folder}")
