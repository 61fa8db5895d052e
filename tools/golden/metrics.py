"""Writes the references of pkg/data's metrics, resampling and colour fixes: pkg/data/testdata/reference/.

Usage: python tools/golden/metrics.py pkg/data/testdata/reference
       (numpy 2.4.6, Pillow 13.0.0, scikit-image 0.26.0, piq 0.8.0, torch 2.15.0; seed 7)

Pictures are synthetic: noise with the 1/f spectrum of photographs under hard edges, so that nothing needs a licence.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import piq
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(7)


def scene(w, h):
    f = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None]) + 1 / max(w, h)
    planes = [np.fft.ifft2(np.fft.fft2(rng.standard_normal((h, w))) / f).real for _ in range(3)]
    grey = planes[0] / planes[0].std()
    rgb = np.stack([grey + 0.4 * p / p.std() for p in planes], -1)
    rgb[: h // 2, : w // 3] += 1.2
    rgb[2 * h // 3:, w // 2:] -= 0.8
    return Image.fromarray(np.clip(128 + 45 * rgb, 0, 255).astype(np.uint8))


def jpeg(im, quality):
    b = io.BytesIO()
    im.save(b, "JPEG", quality=quality)
    return Image.open(b).convert("RGB")


def noisy(im, sigma):
    a = np.asarray(im).astype(np.float64) + sigma * rng.standard_normal(np.asarray(im).shape)
    return Image.fromarray(np.clip(np.rint(a), 0, 255).astype(np.uint8))


def metrics(a, b):
    a, b = np.asarray(a) / 255.0, np.asarray(b) / 255.0
    ya, yb = rgb2ycbcr(a)[..., 0] / 255, rgb2ycbcr(b)[..., 0] / 255
    kw = dict(gaussian_weights=True, use_sample_covariance=False, sigma=1.5, data_range=1)
    t = [torch.from_numpy(v.transpose(2, 0, 1).copy())[None] for v in (a, b)]
    return {
        "psnr": peak_signal_noise_ratio(a, b, data_range=1),
        "psnr_y": peak_signal_noise_ratio(ya, yb, data_range=1),
        "ssim": structural_similarity(a, b, channel_axis=-1, **kw),
        "ssim_y": structural_similarity(ya, yb, **kw),
        "gmsd": piq.gmsd(*t).item(),
        "haarpsi": piq.haarpsi(*t).item(),
    }


cases = []
for name, w, h, distort in [
    ("blur", 64, 48, lambda im: im.filter(ImageFilter.GaussianBlur(1.3))),
    ("noise", 61, 47, lambda im: noisy(im, 18)),
    ("jpeg", 40, 57, lambda im: jpeg(im, 25)),
    ("tint", 38, 32, lambda im: Image.fromarray((np.asarray(im) * [0.9, 1.0, 0.75]).astype(np.uint8))),
]:
    a = scene(w, h)
    b = distort(a)
    a.save(out / f"{name}_a.png")
    b.save(out / f"{name}_b.png")
    cases.append({"name": name, **metrics(a, b)})


# resampling of one plane, in Pillow's float mode
def resized(src, w, h, kernel):
    return np.asarray(Image.fromarray(src).resize((w, h), kernel)).ravel().tolist()


plane = rng.random((6, 8)).astype(np.float32)
kernels = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR, "lanczos3": Image.Resampling.LANCZOS}
sizes = [(4, 3), (5, 4), (3, 6), (8, 2), (13, 11), (16, 12), (1, 1)]
resize = [{"kernel": k, "w": w, "h": h, "want": resized(plane, w, h, v)} for k, v in kernels.items() for w, h in sizes]
resize += [{"kernel": "area", "w": w, "h": h, "want": resized(plane, w, h, Image.Resampling.BOX)} for w, h in [(4, 3), (2, 2), (1, 1), (16, 12)]]


# StableSR's colour fixes, in float64
def wavelet_blur(image, radius):
    k = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=image.dtype)[None, None].repeat(3, 1, 1, 1) / 16
    return F.conv2d(F.pad(image, (radius,) * 4, mode="replicate"), k, groups=3, dilation=radius)


def wavelet_decomposition(image, levels=5):
    high = torch.zeros_like(image)
    for i in range(levels):
        low = wavelet_blur(image, 2 ** i)
        high += image - low
        image = low
    return high, low


def adain(content, style):
    def stats(x):
        return x.mean(dim=(2, 3), keepdim=True), (x.var(dim=(2, 3), keepdim=True) + 1e-5).sqrt()
    (cm, cs), (sm, ss) = stats(content), stats(style)
    return (content - cm) / cs * ss + sm


pixels = [rng.random((9, 12, 3)).astype(np.float32) * g for g in (1.0, 0.6)]
content, style = (torch.from_numpy(p.transpose(2, 0, 1).astype(np.float64))[None] for p in pixels)
rows = lambda t: t[0].permute(1, 2, 0).ravel().tolist()
colour = {
    "w": 12, "h": 9, "result": pixels[0].ravel().tolist(), "reference": pixels[1].ravel().tolist(),
    "wavelet": rows(wavelet_decomposition(content)[0] + wavelet_decomposition(style)[1]),
    "adain": rows(adain(content, style)),
}


def rounded(x):
    if isinstance(x, float):
        return float(f"{x:.10g}")
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    return [rounded(v) for v in x] if isinstance(x, list) else x


doc = {"metrics": cases, "plane": {"w": 8, "h": 6, "v": plane.ravel().tolist()}, "resize": resize, "colour": colour}
(out / "reference.json").write_text(json.dumps(rounded(doc), indent=None, separators=(",", ":")) + "\n")
