"""Converts the published weights of a quality network for pkg/iqa.

Usage: python tools/iqa_weights.py lpips-alex alexnet-owt-7be5be79.pth LPIPS_v0.1_alex-df73285e.pth data/iqa/lpips-alex.safetensors
       python tools/iqa_weights.py lpips-vgg vgg16-397923af.pth LPIPS_v0.1_vgg-a78928a0.pth data/iqa/lpips-vgg.safetensors
       python tools/iqa_weights.py clip-iqa RN50.pt data/iqa/clip-iqa.safetensors
       python tools/iqa_weights.py musiq musiq_koniq_ckpt-e95806b9.pth data/iqa/musiq.safetensors
       python tools/iqa_weights.py maniqa ckpt_koniq10k.pt data/iqa/maniqa.safetensors [--scale 0.8]
       (torch, safetensors, numpy)

The first two files come from download.pytorch.org/models and pyiqa's hub (huggingface.co/chaofengc/IQA-PyTorch-Weights), RN50.pt from OpenAI's CLIP.
The tensors keep the names that they have in pyiqa's modules. --scale is MANIQA's factor of a layer's output: 0.8 of the KonIQ and KADID weights, 0.13 of
PIPAL's; it is not in the file of weights. Files are read with torch's weights_only: nothing in them is run.
"""

import argparse
import re
from pathlib import Path

# The convolutions of torchvision's features by slice, as LPIPS cuts them.
SLICES = {"lpips-alex": [[0], [3], [6], [8], [10]], "lpips-vgg": [[0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28]]}


def wanted(name):
    """Leaves out what is computed or a second name of a tensor, and what only training or other heads need."""
    return not re.search(r"^lins\.|^scaling_layer\.|attn_mask|relative_position_index|num_batches_tracked|^vit\.(norm|head|fc_norm)|downsample\.(weight|bias)$"
                         r"|^vit\.blocks\.1\d|^visual\.attnpool\.positional_embedding", name)


def state(path):
    """The state dict in a file: plain, wrapped by a training script, or a TorchScript archive."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        content = torch.jit.load(path, map_location="cpu").state_dict()
    for key in ("params", "state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
    return {k.removeprefix("module."): v for k, v in content.items()}


def renamed(kind, name):
    """torchvision's features.N is net.sliceK.N of LPIPS; the linear layers are lin0.model.1 in one release and lin0.1 in another."""
    if kind in SLICES:
        if m := re.match(r"features\.(\d+)\.(weight|bias)$", name):
            for k, layers in enumerate(SLICES[kind]):
                if int(m[1]) in layers:
                    return f"net.slice{k + 1}.{m[1]}.{m[2]}"
            return None
        if name.startswith("classifier."):
            return None
    return name if wanted(name) else None


def write(kind, states, path, scale=None):
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for s in states:
        for name, t in s.items():
            new = renamed(kind, name)
            if new and torch.is_tensor(t) and t.is_floating_point():
                tensors[new] = t.detach().clone().contiguous()
    if not tensors:
        raise SystemExit(f"{path}: no tensors of {kind} in these files")
    metadata = {"network": kind, "format": "pt"}
    if scale is not None:
        metadata["scale"] = repr(scale)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata)
    partial.rename(path)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("kind", choices=["lpips-alex", "lpips-vgg", "clip-iqa", "musiq", "maniqa"])
    p.add_argument("files", nargs="+", help="published files, then the file to write")
    p.add_argument("--scale", type=float, default=0.8)
    a = p.parse_args()
    if len(a.files) < 2:
        p.error("want the published files and the file to write")
    write(a.kind, [state(f) for f in a.files[:-1]], a.files[-1], a.scale if a.kind == "maniqa" else None)


if __name__ == "__main__":
    main()
