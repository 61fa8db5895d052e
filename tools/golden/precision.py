"""The three programs of a fixture and the random numbers they start from.

R, the reference, computes everything in float64. N, the naive program, runs in f32 or in bf16; the bf16 one keeps times, guidance, latents and losses
in f32 ("wide"). The same model code serves all three.
"""

import copy
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Precision:
    name: str
    dtype: torch.dtype  # of the models
    wide: torch.dtype  # of what stays wider than a bf16 model

    def model(self, module):
        """A copy of a module in this precision, gradients of its parameters off."""
        return copy.deepcopy(module).to(self.dtype).requires_grad_(False)


F64 = Precision("f64", torch.float64, torch.float64)
F32 = Precision("f32", torch.float32, torch.float32)
BF16 = Precision("bf16", torch.bfloat16, torch.float32)


class OnlyFloat64(TorchDispatchMode):
    """Fails on any operation, backward included, that makes a float narrower than float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64:
                raise TypeError(f"{func} made {leaf.dtype} in the float64 reference")
        return out


class Random:
    """Random inputs of one fixture or model. NumPy's generator gives the same bits on every processor; torch.randn does not."""

    def __init__(self, seed, name):
        self.rng = np.random.default_rng([seed, zlib.crc32(name.encode())])

    def normal(self, *shape, scale=1.0):
        return torch.from_numpy((scale * self.rng.standard_normal(shape)).astype(np.float32))

    def image(self, batch, height, width):
        """Pixels [B,3,H,W] in [-1, 1]: a gradient and noise."""
        y, x = np.mgrid[0:height, 0:width]
        phase = self.rng.uniform(0, 6, (batch, 3, 1, 1))
        smooth = np.sin(2 * y / height + 3 * x / width + phase)
        pixels = 0.6 * smooth + 0.3 * self.rng.standard_normal((batch, 3, height, width))
        return torch.from_numpy(np.clip(pixels, -1, 1).astype(np.float32))

    def fill(self, module):
        """Gives every parameter random values: matrices keep the variance of what they multiply, norms stay near 1."""
        for name, p in module.named_parameters():
            if p.dim() == 1 and name.endswith("weight"):
                value = 1 + self.normal(*p.shape, scale=0.2)
            elif p.dim() == 1:
                value = self.normal(*p.shape, scale=0.1)
            else:
                value = self.normal(*p.shape, scale=p[0].numel() ** -0.5)
            with torch.no_grad():
                p.copy_(value)
        return module
