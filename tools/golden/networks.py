"""Writes the references of pkg/iqa/network: scores of photographs by pyiqa's networks with random weights.

Usage: python tools/golden/networks.py [NAME... | --full FOLDER]
       (numpy 2.4.6, torch 2.15.0, torchvision 0.29.2, timm 1.0.31, einops, openai-clip, safetensors, pyiqa 0.1.16)

Writes pkg/iqa/network/testdata/NAME.json: every tensor's name, shape, centre and half width, and the scores in float64 and float32. A tensor's values
come from splitmix64, begun at FNV-1a of its name: centre + half width * (2 u - 1), u the upper 24 bits / 2^24. The test makes the same ones, so no weights are stored.
Transformers are narrow, everything that the code fixes is as published. --full: networks of the published size, their weights as FOLDER/NAME.safetensors and
the scores of the castle, whole, for a comparison by hand with evaluate score --weights FOLDER.
"""

import importlib
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import iqa_weights  # noqa: E402


def package(name):
    """Makes submodules importable without running the package's __init__, which wants every network's dependencies."""
    module = types.ModuleType(name)
    module.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
    sys.modules[name] = module


package("pyiqa")
package("pyiqa.archs")
for name in ("alexnet", "vgg16"):  # they would download
    plain = getattr(torchvision.models, name)
    setattr(torchvision.models, name, lambda weights=None, plain=plain: plain())
lpips, musiq, clipiqa, clip_model, maniqa = (importlib.import_module("pyiqa.archs." + n) for n in ("lpips_arch", "musiq_arch", "clipiqa_arch", "clip_model", "maniqa_arch"))
clip_model.LayerNorm.forward = torch.nn.LayerNorm.forward  # without the cast to float32

FULL = "--full" in sys.argv


def make_lpips(net):
    return lpips.LPIPS(pretrained=False, net=net)


def make_musiq():
    size = {} if FULL else dict(hidden_size=96, mlp_dim=160, num_layers=3)
    return musiq.MUSIQ(pretrained=False, **size)


def make_clip():
    size = (1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12) if FULL else (40, 224, (1, 2, 1, 1), 8, None, 77, 49408, 64, 1, 2)
    clipiqa.load = lambda *args: clip_model.CLIP(*size).eval()
    return clipiqa.CLIPIQA()


def make_maniqa():
    create = maniqa.timm.create_model
    size = {} if FULL else dict(embed_dim=64, num_heads=1)
    maniqa.timm.create_model = lambda name, pretrained: create(name, pretrained=False, **size)
    net = maniqa.MANIQA(pretrained=False, scale=0.8, **({} if FULL else dict(embed_dim=64, dim_mlp=96)))
    maniqa.timm.create_model = create
    return net


NETWORKS = {"lpips-alex": lambda: make_lpips("alex"), "lpips-vgg": lambda: make_lpips("vgg"), "clip-iqa": make_clip, "musiq": make_musiq, "maniqa": make_maniqa}


def splitmix(name, n):
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = ((h ^ b) * 0x100000001B3) % (1 << 64)
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / (1 << 24)


def spread(name, shape):
    """Centre and half width of a tensor's values: such that activations neither vanish nor grow."""
    if name == "logit_scale":
        return math.log(20), 0
    if name.startswith("lin"):
        return 0.5, 0.5
    if name.endswith("running_var"):
        return 1, 0.3
    if len(shape) == 1 and name.endswith("weight"):
        return (0.5, 0.2) if name.endswith("bn3.weight") else (1, 0.3)
    if len(shape) == 1:
        return 0.05, 0.2
    if "emb" in name or "cls" in name:
        return 0, 0.5
    fan = math.prod(shape[1:]) if name != "text_projection" else shape[0]
    half = math.sqrt((6 if len(shape) == 4 else 3) / fan)
    return 0, half / 4 if "c_q" in name or "c_k" in name else half  # large ones would leave one channel to each: chaos


def fill(net, clip):
    """Gives the network its values; returns the tensors that pkg/iqa reads."""
    state = (net.clip_model[0] if clip else net).state_dict()
    rows = []
    for name, t in state.items():
        if not iqa_weights.wanted(name) or not t.is_floating_point():
            continue
        centre, half = spread(name, t.shape)
        u = splitmix(name, t.numel())
        t.copy_(torch.from_numpy((centre + half * (2 * u - 1)).astype(np.float32).reshape(t.shape)))
        rows.append([name, list(t.shape), centre, half])
    return rows, state


def degraded(a):
    """Mean of 3x3 pixels, rounded down."""
    p = np.pad(a.astype(np.int64), ((1, 1), (1, 1), (0, 0)), mode="edge")
    h, w = a.shape[:2]
    return (sum(p[dy:dy + h, dx:dx + w] for dy in range(3) for dx in range(3)) // 9).astype(np.uint8)


def tensor(a, dtype):
    return torch.from_numpy((a.astype(np.float32) / np.float32(255)).transpose(2, 0, 1).copy())[None].to(dtype)


def scores(net, pictures, clip, pair):
    out = []
    for dtype in (torch.float64, torch.float32):
        net.to(dtype)
        if clip:
            net.clip_model[0].to(dtype)
        with torch.no_grad():
            out.append([net(*([tensor(degraded(a), dtype), tensor(a, dtype)] if pair else [tensor(a, dtype)])).item() for a in pictures])
    return out


torch.set_default_dtype(torch.float32)
castle = np.asarray(Image.open(ROOT / "pkg/iqa/testdata/castle.png").convert("RGB"))
tiled = np.tile(castle, (2, 2, 1))
# [x, y, width, height] of the pictures of the small networks, in four castles
CROPS = {"maniqa": [[30, 20, 260, 230], [60, 40, 150, 97]]}
BOXES = [[0, 0, 131, 117], [100, 50, 64, 64], [40, 60, 210, 93]]

for name, make in NETWORKS.items():
    if not FULL and sys.argv[1:] and name not in sys.argv[1:]:
        continue
    torch.manual_seed(0)
    net, clip, pair = make().eval(), name == "clip-iqa", name.startswith("lpips")
    with torch.no_grad():
        rows, state = fill(net, clip)
    boxes = [[0, 0, castle.shape[1], castle.shape[0]]] if FULL else CROPS.get(name, BOXES)
    pictures = [tiled[y:y + h, x:x + w] for x, y, w, h in boxes]
    exact, single = scores(net, pictures, clip, pair)
    print(name, sum(math.prod(r[1]) for r in rows), "values", exact, [abs(a - b) for a, b in zip(exact, single)])
    if FULL:
        net.float()
        iqa_weights.write(name, [net.clip_model[0].float().state_dict() if clip else state], Path(sys.argv[-1]) / (name + ".safetensors"))
        continue
    out = ROOT / "pkg/iqa/network/testdata" / (name + ".json")
    out.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(r) for r in rows)
    out.write_text(f'{{"boxes": {json.dumps(boxes)}, "scores": {json.dumps(exact)}, "float32": {json.dumps(single)}, "tensors": [\n{lines}\n]}}\n')
