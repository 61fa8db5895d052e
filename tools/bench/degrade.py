"""Times Real-ESRGAN's second-order degradation: fluxir's chain (preset seesr) beside OpenCV, numpy and BasicSR's functions, on the same cores.

Usage: python tools/bench/degrade.py BASICSR DATA.test [SECONDS [ROUNDS]]
       BASICSR   checkout of XPixelGroup/BasicSR (8d56e3a), whose basicsr/data/degradations.py makes kernels, noise and JPEG
       DATA.test go test -c -o DATA.test ./pkg/data
       (numpy, scipy, torch, torchvision, opencv-python-headless)

Both degrade the same 512x512 photograph to the same size with fresh draws, as many at once as there are cores, each on one thread, in turns; the medians of the rounds are
compared. The Python chain is Real-ESRGAN's training pipeline with its blurs by cv2.filter2D, its resizes by cv2.resize and the CPU versions of its noises, through a
quarter of the size and back; like there, kernels are padded to 21 taps and a pulse stands in for an absent final sinc.
"""

import math
import multiprocessing
import os
import random
import re
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[2]
KINDS = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
CHANCES = [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
SIZES = range(7, 22, 2)


def load_basicsr(path):
    module = types.ModuleType("basicsr")
    module.__path__ = [str(Path(path) / "basicsr")]
    sys.modules["basicsr"] = module
    package = types.ModuleType("basicsr.data")
    package.__path__ = [str(Path(path) / "basicsr/data")]
    sys.modules["basicsr.data"] = package
    import basicsr.data.degradations as degradations

    return degradations


def kernel(d, sigma):
    size = random.choice(SIZES)
    if np.random.uniform() < 0.1:
        k = d.circular_lowpass_kernel(np.random.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi), size, pad_to=False)
    else:
        k = d.random_mixed_kernels(KINDS, CHANCES, size, sigma, sigma, [-math.pi, math.pi], [0.5, 4], [1, 2], noise_range=None)
    return np.pad(k, (21 - size) // 2)


def resize(m, w, h):
    return cv2.resize(m, (w, h), interpolation=random.choice([cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC]))


def order(d, m, side, chances, scales, sigma, blur, noise, poisson):
    k = kernel(d, sigma)
    if np.random.uniform() < blur:
        m = cv2.filter2D(m, -1, k)
    way = random.choices(["up", "down", "keep"], chances)[0]
    scale = np.random.uniform(1, scales[1]) if way == "up" else np.random.uniform(scales[0], 1) if way == "down" else 1
    m = resize(m, int(side * scale), int(side * scale))
    if np.random.uniform() < 0.5:
        return d.random_add_gaussian_noise(m, noise, gray_prob=0.4, clip=True, rounds=False)
    return d.random_add_poisson_noise(m, poisson, gray_prob=0.4, clip=True, rounds=False)


def degrade(d, m):
    side = m.shape[0]
    m = order(d, m, side, [0.2, 0.7, 0.1], [0.15, 1.5], [0.2, 3], 1, [1, 30], [0.05, 3])
    m = d.add_jpg_compression(np.clip(m, 0, 1).astype(np.float32), int(np.random.uniform(30, 95)))
    m = order(d, m, side // 4, [0.3, 0.4, 0.3], [0.3, 1.2], [0.2, 1.5], 0.8, [1, 25], [0.05, 2.5])
    sinc = np.zeros((21, 21))
    sinc[10, 10] = 1
    if np.random.uniform() < 0.8:
        sinc = d.circular_lowpass_kernel(np.random.uniform(np.pi / 3, np.pi), random.choice(SIZES), pad_to=21)

    def settle(m):
        return cv2.filter2D(resize(m, side // 4, side // 4), -1, sinc)

    def compress(m):
        return d.add_jpg_compression(np.clip(m, 0, 1).astype(np.float32), int(np.random.uniform(30, 95)))

    m = compress(settle(m)) if np.random.uniform() < 0.5 else settle(compress(m))
    return np.clip((resize(m, side, side) * 255).round(), 0, 255).astype(np.uint8)


def work(args):
    path, pictures, seconds, seed = args
    d = load_basicsr(path)
    cv2.setNumThreads(0)
    random.seed(seed)
    np.random.seed(seed)
    degrade(d, pictures[0])
    begun, done = time.time(), 0
    while time.time() - begun < seconds:
        degrade(d, pictures[done % len(pictures)])
        done += 1
    return done / (time.time() - begun)


def main():
    path, binary = sys.argv[1], Path(sys.argv[2]).resolve()
    seconds, rounds = float((sys.argv[3:] or [2])[0]), int((sys.argv[4:] or [3])[0])
    castle = cv2.imread(str(ROOT / "testdata/photo/castle_clean.jpg")).astype(np.float32) / 255
    castle = cv2.copyMakeBorder(castle, 0, max(0, 512 - castle.shape[0]), 0, max(0, 512 - castle.shape[1]), cv2.BORDER_REFLECT_101)
    pictures = [castle[:512, :512]]
    cores = len(os.sched_getaffinity(0))
    ours, python = [], []
    with multiprocessing.Pool(cores) as pool:
        pool.map(work, [(path, pictures, 0, i) for i in range(cores)])
        for r in range(rounds):
            python.append(sum(pool.map(work, [(path, pictures, seconds, cores * r + i) for i in range(cores)])))
            out = subprocess.run([binary, "-test.run", "^$", "-test.bench", "^BenchmarkSeeSR512$", "-test.benchtime", f"{seconds}s"],
                                 cwd=ROOT / "pkg/data", capture_output=True, text=True, check=True).stdout
            ours.append(1e9 / float(re.search(r"([\d.]+) ns/op", out)[1]))
    print("rounds: fluxir", [round(v, 1) for v in ours], "Python", [round(v, 1) for v in python])
    a, b = statistics.median(ours), statistics.median(python)
    print(f"512x512, {cores} cores: fluxir {a:.1f} pictures/s, Python {b:.1f}, ratio {a / b:.2f}")


if __name__ == "__main__":
    main()
