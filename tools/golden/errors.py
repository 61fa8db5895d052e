"""What a fixture stores of a result: R, of large parameters a part of the rows and the sum of all, and how far N was from it."""

import math

import torch

LARGE = 2048  # elements of a parameter above which row_stride applies


def stored(results, stride):
    """Splits grad.P and final.P that are too large into their kept rows and their sum; other tensors stay whole."""
    out = {}
    for name, v in results.items():
        group, _, rest = name.partition(".")
        if stride > 1 and group in ("grad", "final") and not rest.startswith("in.") and v.dim() >= 2 and v.numel() > LARGE:
            out[name] = v[::stride]
            out[f"{group}sum.{rest}"] = v.double().sum(0)
        else:
            out[name] = v
    return out


def scales(reference, stride):
    """What an error is measured by: max|R|. A parameter's gradient counts at least 0.01 of the largest one, a sum at least the largest column norm, so
    that what is 0 by cancellation has a scale; what is 0 because nothing flows there has none."""
    largest = max((v.abs().max().item() for n, v in reference.items() if n.startswith("grad.") and not n.startswith("grad.in.")), default=0.0)
    out = {}
    for name, v in stored(reference, stride).items():
        group, _, rest = name.partition(".")
        scale = v.abs().max().item()
        if group.endswith("sum"):
            scale = max(scale, reference[f"{group.removesuffix('sum')}.{rest}"].norm(dim=0).max().item())
        elif group == "grad" and not rest.startswith("in.") and scale > 0:
            scale = max(scale, 0.01 * largest)
        out[name] = scale
    return out


def distance(naive, reference):
    """[max|N - R|, rms(N - R)], seven digits."""
    d = naive.double() - reference.double()
    if not torch.isfinite(d).all():
        raise ArithmeticError("a result is not finite")
    return [float(f"{v:.7g}") for v in (d.abs().max().item(), math.sqrt((d**2).mean().item()))]


def envelope(reference, runs, stride):
    """n_err: for every stored tensor its scale and the largest distance over the runs, a list of {precision: results}."""
    whole = stored(reference, stride)
    out = {name: {"scale": s} for name, s in scales(reference, stride).items()}
    for run in runs:
        for precision, results in run.items():
            for name, v in stored(results, stride).items():
                if v.shape != whole[name].shape:
                    raise ValueError(f"{name}: shape {tuple(v.shape)} in {precision}, {tuple(whole[name].shape)} in f64")
                before = out[name].get(precision, [0.0, 0.0])
                out[name][precision] = [max(pair) for pair in zip(before, distance(v, whole[name]))]
    return out
