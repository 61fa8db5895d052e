"""Fixtures that are tables: values.json for philox, schedule and time_sampling."""

import math
from statistics import NormalDist

import mpmath
import numpy as np

from kinds import shift_mu, sigmas

MASK32, MASK64 = 2**32 - 1, 2**64 - 1


def philox_block(key, counter):
    """The four words of Philox4x32-10 (Salmon et al. 2011). key: 2, counter: 4 words."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & MASK32, (a >> 32) ^ c3 ^ k1, a & MASK32
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def normals(words):
    """Box-Muller of four words with 50 digits, rounded to f32."""
    out = []
    for a, b in (words[:2], words[2:]):
        u, v = ((mpmath.mpf(x) + 0.5) / 2**32 for x in (a, b))
        radius, angle = mpmath.sqrt(-2 * mpmath.log(u)), 2 * mpmath.pi * v
        out += [radius * mpmath.cos(angle), radius * mpmath.sin(angle)]
    return [np.float32(float(x)) for x in out]


def philox():
    mpmath.mp.dps = 50
    cases = []
    for seed, stream, offset, count in (
        (7, 0, 0, 12), (2**40 + 9, 1, 0, 21), (20250415, 2**33 + 5, 1, 1), (0xDEADBEEFCAFEF00D, MASK64, 6, 19), (3, 11, 2**34 - 2, 9),
    ):
        first, last = offset // 4, (offset + count - 1) // 4
        key, high = (seed & MASK32, seed >> 32), (stream & MASK32, stream >> 32)
        blocks = [philox_block(key, (i & MASK32, i >> 32, *high)) for i in range(first, last + 1)]
        values = [x for block in blocks for x in normals(block)][offset - 4 * first :][:count]
        cases.append({
            "seed": hex(seed), "stream": hex(stream), "offset": hex(offset), "count": count, "first_block": hex(first),
            "words": [f"{w:08x}" for block in blocks for w in block], "normals": [float(x) for x in values],
            "normal_bits": [f"{int(x.view(np.uint32)):08x}" for x in values],
        })
    known = "".join(f"{w:08x}" for w in philox_block((0, 0), (0, 0, 0, 0)))
    if known != "6627e8d5e169c58dbc57ac4c9b00dbd8":
        raise ArithmeticError(f"philox of zeros is {known}")
    return cases


def schedule():
    cases = []
    for tokens, steps, start, shifted in (
        (15, 3, 1.0, True), (15, 2, 0.45, True), (640, 7, 1.0, True), (640, 20, 0.3, True), (2304, 1, 0.9, True), (3600, 50, 1.0, True), (9216, 12, 0.75, True),
        (1024, 5, 0.8, False), (4096, 1, 1.0, False),
    ):
        mu = shift_mu(tokens) if shifted else None
        cases.append({"tokens": tokens, "steps": steps, "start": start, "mu": mu, "sigmas": sigmas(steps, start, mu or 0.0)})
    return cases


def training_time(kind, m, s, u):
    """t before the shift as a function of u in (0, 1), rising."""
    if kind == "uniform":
        return u
    if kind == "mode":
        return u - s * (math.cos(math.pi / 2 * (1 - u)) ** 2 - u)
    return 1 / (1 + math.exp(-(m + s * NormalDist().inv_cdf(u))))


def time_sampling():
    """Moments by quadrature: Gauss-Legendre over u, for logit_normal the trapezoid rule over n, both exact to rounding here."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    quantiles = (0.002, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 0.998)
    cases = []
    for kind, m, s, mu in (
        ("logit_normal", 0.0, 1.0, 0.3), ("logit_normal", -0.7, 0.8, 0.0), ("logit_normal", 0.2, 1.7, 0.9), ("uniform", 0.0, 0.0, 0.8), ("uniform", 0.0, 0.0, 0.0),
        ("mode", 0.0, 1.29, 0.65), ("mode", 0.0, 0.5, 0.0), ("mode", 0.0, -0.6, 1.0),
    ):
        k = math.exp(mu)

        def shifted(t):
            return k * t / (1 + (k - 1) * t)

        if kind == "logit_normal":
            n = np.linspace(-12, 12, 4801)
            density = np.exp(-(n**2) / 2) / math.sqrt(2 * math.pi) * (n[1] - n[0])
            t = shifted(1 / (1 + np.exp(-(m + s * n))))
        else:
            density = weights / 2
            t = shifted(np.array([training_time(kind, m, s, u) for u in (nodes + 1) / 2]))
        mean = float((density * t).sum())
        cases.append({
            "kind": kind, "m": m, "s": s, "mu": mu, "mean": mean, "variance": float((density * (t - mean) ** 2).sum()),
            "quantiles": {str(q): shifted(training_time(kind, m, s, q)) for q in quantiles},
        })
    return cases


TABLES = {"philox": (philox, "Philox4x32-10 words and normals"), "schedule": (schedule, "FLUX's shifted schedule"),
          "time_sampling": (time_sampling, "training times: mean, variance, quantiles")}
