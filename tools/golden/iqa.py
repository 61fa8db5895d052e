"""Writes the references of pkg/iqa: scores of photographs by established implementations.

Usage: python tools/golden/iqa.py OUT.json PHOTO...
       (numpy 2.4.6, opencv-python-headless, scikit-image, torch 2.15.0, piq 0.8.0, pyiqa 0.1.16, basicsr at 8d56e3a, brisque 0.2.0; pyiqa and brisque are run with NIQE's and BRISQUE's models of
       pkg/iqa/model, because the first downloads its own)

Every photograph is cut to its centre of at most SIDE pixels. The full-reference metrics compare it with degraded(), whole numbers that any language
repeats exactly.
NIQE is basicsr's. It and BRISQUE count pixels on either side of their surroundings' mean, which in flat parts is decided by the last bit of a sum. The
references take flat parts as equal to their mean, as pkg/iqa does, for which NIQE's picture is halved in float64; published_* are the scores without these
changes, pyiqa_* and opencv_* those of the two.
"""

import importlib
import json
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import piq
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

SIDE = 384
BORDER = 4


def package(name):
    """Makes submodules importable without running the package's __init__, which wants every network's dependencies."""
    spec = importlib.util.find_spec(name)
    module = types.ModuleType(name)
    module.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = module


for name in ("pyiqa", "pyiqa.archs", "pyiqa.utils", "basicsr", "basicsr.metrics"):
    package(name)
niqe = importlib.import_module("basicsr.metrics.niqe")
niqe_arch = importlib.import_module("pyiqa.archs.niqe_arch")
ssim_arch = importlib.import_module("pyiqa.archs.ssim_arch")
brisque = importlib.import_module("brisque")

model = json.loads((Path(__file__).parents[2] / "pkg/iqa/model/niqe.json").read_text())
WINDOW = np.outer(*2 * [np.exp(-(np.arange(-3, 4) * 6 / 7) ** 2 / 2)])
WINDOW /= WINDOW.sum()
MEAN = torch.tensor(model["mean"], dtype=torch.float64)[None]
COVARIANCE = torch.tensor(model["covariance"], dtype=torch.float64)[None]


FLAT = [False]  # whether differences that rounding leaves count as none


def settled(v):
    return np.where(np.abs(v) < 1e-9, 0, v) if FLAT[0] else v


class Evaluator(brisque.BRISQUE):
    """Some features are arrays of one number, which numpy 2 does not turn into floats."""

    def scale_features(self, features):
        return super().scale_features([np.asarray(f).item() for f in features])

    def calculate_mscn_coefficients(self, *args, **kwargs):
        return settled(super().calculate_mscn_coefficients(*args, **kwargs))


SVM = Evaluator()
halve = niqe.imresize


def halve64(img, **kw):
    """basicsr's halving in float64: in float32 it leaves flat parts on either side of their mean by 1e-5."""
    if not FLAT[0]:
        return halve(img, **kw)
    single = torch.FloatTensor, torch.Tensor.float
    torch.FloatTensor, torch.Tensor.float = torch.DoubleTensor, torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        return halve(img, **kw)
    finally:
        torch.FloatTensor, torch.Tensor.float = single
        torch.set_default_dtype(torch.float32)


niqe.imresize = halve64
features = niqe.compute_feature
niqe.compute_feature = lambda block: features(settled(block))


def centre(a):
    h, w = min(SIDE, a.shape[0]), min(SIDE, a.shape[1])
    y, x = (a.shape[0] - h) // 2, (a.shape[1] - w) // 2
    return a[y:y + h, x:x + w]


def degraded(a):
    """Mean of 3x3 pixels, rounded down."""
    p = np.pad(a.astype(np.int64), ((1, 1), (1, 1), (0, 0)), mode="edge")
    h, w = a.shape[:2]
    total = sum(p[dy:dy + h, dx:dx + w] for dy in range(3) for dx in range(3))
    return (total // 9).astype(np.uint8)


def tensor(a):
    return torch.from_numpy((a / 255.0).transpose(2, 0, 1).copy())[None]


def full(a, b):
    """PSNR and SSIM by scikit-image, MS-SSIM by piq, and pyiqa's SSIM and MS-SSIM of the same planes."""
    kw = dict(gaussian_weights=True, use_sample_covariance=False, sigma=1.5, data_range=1)
    fa, fb = a / 255.0, b / 255.0
    ya, yb = rgb2ycbcr(a)[..., 0] / 255, rgb2ycbcr(b)[..., 0] / 255
    ty = [torch.from_numpy(v)[None, None] for v in (ya, yb)]
    out = {
        "psnr": peak_signal_noise_ratio(fa, fb, data_range=1), "psnr_y": peak_signal_noise_ratio(ya, yb, data_range=1),
        "ssim": structural_similarity(fa, fb, channel_axis=-1, **kw), "ssim_y": structural_similarity(ya, yb, **kw),
        "opencv_psnr": cv2.PSNR(a, b), "pyiqa_ssim_y": ssim_arch.ssim(*ty).item(),
    }
    if min(a.shape[:2]) > 160:
        out["ms-ssim"] = piq.multi_scale_ssim(tensor(a), tensor(b)).item()
        out["ms-ssim_y"] = piq.multi_scale_ssim(*ty).item()
        out["pyiqa_ms-ssim_y"] = ssim_arch.ms_ssim(*ty).item()
    return out


def blind(m):
    luma = np.rint(16 + (m / 255.0) @ np.array([65.481, 128.553, 24.966]))
    out = {"pyiqa_niqe": niqe_arch.niqe(torch.from_numpy(luma)[None, None], MEAN, COVARIANCE).item()}
    for prefix, flat in (("published_", False), ("", True)):
        FLAT[0] = flat
        out[prefix + "niqe"] = niqe.niqe(luma, MEAN[0].numpy(), COVARIANCE[0].numpy(), WINDOW)
        out[prefix + "brisque"] = float(SVM.score(m / 255.0))
    return out


def row(path):
    a = centre(np.asarray(Image.open(path).convert("RGB")))
    b = degraded(a)
    out = {"file": path.name, "plain": full(a, b), "border": full(a[BORDER:-BORDER, BORDER:-BORDER], b[BORDER:-BORDER, BORDER:-BORDER])}
    for name, m in (("clean", a), ("degraded", b)):
        out[name] = blind(m)
    return out


out = Path(sys.argv[1])
rows = [row(Path(p)) for p in sys.argv[2:]]
out.write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
