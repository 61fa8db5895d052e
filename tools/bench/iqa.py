"""Times NIQE, SSIM and MS-SSIM of the shipped photograph: pkg/iqa beside pyiqa, both on all cores.

Usage: python tools/bench/iqa.py IQA.test [SECONDS]
       IQA.test  go test -c -o IQA.test ./pkg/iqa
       (numpy, torch, pillow, pyiqa 0.1.16 and what its metrics import)

SECONDS (2) are for each metric and program. pyiqa runs in float32, SSIM and MS-SSIM on the Y channel as its defaults do; NIQE's model is pkg/iqa's, the same numbers.
"""

import importlib
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
for name in ("pyiqa", "pyiqa.archs", "pyiqa.utils"):  # without the __init__s, which import every network
    module = types.ModuleType(name)
    module.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
    sys.modules[name] = module
niqe_arch = importlib.import_module("pyiqa.archs.niqe_arch")
ssim_arch = importlib.import_module("pyiqa.archs.ssim_arch")

binary, seconds = Path(sys.argv[1]).resolve(), float((sys.argv[2:] or [2])[0])
torch.set_num_threads(len(os.sched_getaffinity(0)))
model = json.loads((ROOT / "pkg/iqa/model/niqe.json").read_text())
mean, covariance = (torch.tensor(model[k], dtype=torch.float64)[None] for k in ("mean", "covariance"))
clean, bad = (torch.from_numpy((np.asarray(Image.open(ROOT / "testdata/photo" / f).convert("RGB")) / 255.0).transpose(2, 0, 1).copy()).float()[None]
              for f in ("castle_clean.jpg", "castle.jpg"))
ssim, ms_ssim = ssim_arch.SSIM(), ssim_arch.MS_SSIM()
theirs = {
    "niqe": lambda: niqe_arch.calculate_niqe(bad, mu_pris_param=mean, cov_pris_param=covariance),
    "ssim": lambda: ssim(bad, clean),
    "ms-ssim": lambda: ms_ssim(bad, clean),
}
print("| metric | pkg/iqa, ms | pyiqa, ms | ratio |\n|---|---|---|---|")
for name, f in theirs.items():
    f()
    times, begun = [], time.time()
    while time.time() - begun < seconds:
        t = time.time()
        f()
        times.append(1e3 * (time.time() - t))
    out = subprocess.run([binary, "-test.run", "^$", "-test.bench", f"^BenchmarkScore$/^{name}$", "-test.benchtime", f"{seconds}s"],
                         cwd=ROOT / "pkg/iqa", capture_output=True, text=True, check=True).stdout
    ours = float(re.search(r"([\d.]+) ns/op", out)[1]) / 1e6
    print(f"| {name} | {ours:.1f} | {statistics.median(times):.0f} | {statistics.median(times) / ours:.1f} |")
