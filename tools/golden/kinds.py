"""The programs behind each kind of fixture with a model: run(fixture, precision) -> {tensor name: value}; the fixture's models have that precision.

Names and formulas are those of testdata/golden/README.md. A value is what the file calls out.X, grad.X or final.X; the writer adds sums and errors.
"""

import contextlib
import dataclasses
import math

import torch
from torch.nn import functional as F

from precision import BF16, F64, OnlyFloat64
from transformer import adapter_file, evaluate


def pack(z):
    """[B,c,h,w] -> [B,(h/2)(w/2),4c], channel order (c, dy, dx)."""
    return F.pixel_unshuffle(z, 2).flatten(2).transpose(1, 2)


def unpack(z, grid):
    return F.pixel_shuffle(z.transpose(1, 2).unflatten(2, grid), 2)


def leaf(x, dtype):
    return x.to(dtype).clone().requires_grad_(True)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def prefixed(prefix, tensors):
    return {prefix + name: v for name, v in tensors.items()}


def run_flux(fx, p):
    """Velocity of the base, and the gradients of sum(v · cotangent)."""
    base, inputs = fx.models["transformer"].requires_grad_(fx.params["grads"]), fx.inputs
    io = p.wide if base.prediction == "sample" else p.dtype
    z = leaf(inputs["hidden_states"], io)
    text, pooled = (leaf(inputs[n], p.dtype) for n in ("encoder_hidden_states", "pooled_projections"))
    v, _, _ = evaluate(base, fx.params["grid"], z, inputs["timestep"], inputs.get("guidance"), p.wide, text, pooled)
    out = {"out.v": v}
    if not fx.params["grads"]:
        return out
    (v * inputs["cotangent"].to(v.dtype)).sum().backward()
    out |= {"grad.in.hidden_states": z.grad, "grad.in.encoder_hidden_states": text.grad, "grad.in.pooled_projections": pooled.grad}
    return out | prefixed("grad.", gradients(base))


def run_vae(fx, p):
    """Encoder, decoder, and the gradients of three scalars."""
    vae = fx.models["vae"]
    image, eps, z, cot_decode, cot_mean = (fx.inputs[n].to(p.dtype) for n in ("image", "eps", "z", "cot_decode", "cot_mean"))
    x, z = leaf(image, p.dtype), leaf(z, p.dtype)
    mean, logvar = vae.moments(x)
    (mean * cot_mean).sum().backward()
    decoded = vae.decode(z)
    (decoded * cot_decode).sum().backward()
    out = {"out.mean": mean, "out.logvar": logvar, "out.sample": vae.scaled(mean + (logvar / 2).exp() * eps), "out.decode": decoded}
    out |= {"grad.in.image": x.grad, "grad.in.z": z.grad}

    vae.requires_grad_(True)
    mean, logvar = vae.moments(image)
    ae_image = vae.decode_unscaled(mean + (logvar / 2).exp() * eps)
    l1 = (ae_image - image).abs().mean()
    kl = (0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum((1, 2, 3))).mean()
    (l1 + 1e-6 * kl).backward()
    out |= {"out.ae_image": ae_image, "out.ae_l1": l1[None], "out.ae_kl": kl[None]}
    return out | prefixed("grad.", gradients(vae))


def run_fluxir(fx, p):
    """One evaluation with the adapter, and the gradients of sum(v · cotangent)."""
    base, adapter = fx.models["transformer"], fx.models["adapter"].requires_grad_(True)
    inputs = fx.inputs
    io = p.wide if base.prediction == "sample" or base.lq_skip else p.dtype
    z_t, z_lq = leaf(inputs["z_t"], io), leaf(inputs["z_lq"], io)
    text, pooled = (inputs[n].to(p.dtype) if n in inputs else None for n in ("prompt_embeds", "pooled"))
    v, f_z, f_p = evaluate(base, fx.params["grid"], z_t, inputs["t"], inputs.get("g"), p.wide, text, pooled, adapter, z_lq, fx.params["lambda"])
    (v * inputs["cotangent"].to(v.dtype)).sum().backward()
    out = {"out.v": v, "out.f_z": f_z, "out.f_p": f_p, "grad.in.z_t": z_t.grad, "grad.in.z_lq": z_lq.grad}
    return out | prefixed("grad.", adapter_file(gradients(adapter)))


class Restorer:
    """Base, adapter and autoencoder of one precision, with latents in the wide type."""

    def __init__(self, fx, p):
        self.p, self.strength, self.g = p, fx.params["lambda"], fx.inputs.get("g")
        self.base, self.adapter, self.vae = (fx.models[n] for n in ("transformer", "adapter", "vae"))

    def encode(self, x, eps=None):
        """The scaled latent: a sample where eps is given, else the mean."""
        mean, logvar = (m.to(self.p.wide) for m in self.vae.moments(x.to(self.p.dtype)))
        return self.vae.scaled(mean if eps is None else mean + (logvar / 2).exp() * eps)

    def decode(self, z):
        return self.vae.decode_unscaled((z / self.vae.scale + self.vae.shift).to(self.p.dtype)).to(self.p.wide)

    def velocity(self, z_t, z_lq, t):
        grid = (z_t.shape[2] // 2, z_t.shape[3] // 2)
        v, _, _ = evaluate(self.base, grid, pack(z_t), t, self.g, self.p.wide, adapter=self.adapter, z_lq=pack(z_lq), strength=self.strength)
        return unpack(v.to(self.p.wide), grid)


DISTANCES = {"l1": lambda e: e.abs(), "l2": lambda e: e**2, "charbonnier": lambda e: (e**2 + 1e-6).sqrt()}


def losses(r, fx):
    """Spec section 4 on one batch: everything that the fixture stores of a step."""
    inputs = {n: v.to(r.p.wide) for n, v in fx.inputs.items()}
    params, t = fx.params, inputs["t"]
    at = t[:, None, None, None]
    with torch.no_grad():  # autoencoder frozen, images constant
        z_0, z_lq = r.encode(inputs["x_hq"], inputs["eps"]), r.encode(inputs["x_lq"])
    z_t = (1 - at) * z_0 + at * inputs["z_1"]
    v = r.velocity(z_t, z_lq, t)
    z0_hat = z_t - at * v

    y, x, height, width = params["crop"]
    margin, f = params["margin"], params["vae_factor"]
    top, left = max(0, y - margin), max(0, x - margin)
    region = z0_hat[:, :, top : y + height + margin, left : x + width + margin]
    rows, columns = slice(f * (y - top), f * (y - top + height)), slice(f * (x - left), f * (x - left + width))
    crop = r.decode(region)[:, :, rows, columns]
    error = crop - inputs["x_hq"][:, :, f * y : f * (y + height), f * x : f * (x + width)]
    weight = (1 - t) ** params["gamma"]
    pixel = {name: (weight * rho(error).mean((1, 2, 3))).mean() for name, rho in DISTANCES.items()}
    flow = ((v - (inputs["z_1"] - z_0)) ** 2).mean()
    loss = flow + params["lambda_px"] * pixel[params["px_loss"]]
    values = {"z_0": z_0, "z_lq": z_lq, "z_t": z_t, "v": v, "z0_hat": z0_hat, "decoded_crop": crop, "L_fm": flow[None],
              "L_px": pixel[params["px_loss"]][None], "loss": loss[None], "L_px_l1_l2_charbonnier": torch.stack(list(pixel.values()))}
    return loss, prefixed("out.", values)


class AdamW:
    """torch.optim.AdamW keeps its step count in f32, which the float64 reference must not; the arithmetic is the same."""

    def __init__(self, parameters, lr, betas, eps, weight_decay):
        self.parameters, self.lr, self.betas, self.eps, self.decay, self.step_count = parameters, lr, betas, eps, weight_decay, 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]

    @torch.no_grad()
    def step(self):
        self.step_count += 1
        b1, b2 = self.betas
        c1, c2 = 1 - b1**self.step_count, 1 - b2**self.step_count
        for p, (m, v) in zip(self.parameters, self.moments):
            p.mul_(1 - self.lr * self.decay)
            m.lerp_(p.grad, 1 - b1)
            v.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
            p.addcdiv_(m, v.sqrt() / math.sqrt(c2) + self.eps, value=-self.lr / c1)


def run_train(fx, p):
    """One step's tensors and gradients; in f64 and f32 also the optimiser's steps."""
    r = Restorer(fx, p)
    r.adapter.requires_grad_(True)
    loss, out = losses(r, fx)
    loss.backward()
    out |= prefixed("grad.", adapter_file({n: g.clone() for n, g in gradients(r.adapter).items()}))
    if p is BF16:
        return out
    a = fx.params["adamw"]
    parameters = list(r.adapter.parameters())
    optimizer = AdamW(parameters, a["lr"], a["betas"], a["eps"], a["weight_decay"])
    values, norms = [loss.detach()], []
    for _ in range(a["steps"]):
        norm = torch.stack([(q.grad**2).sum() for q in parameters]).sum().sqrt()
        norms.append(norm)
        for q in parameters:
            q.grad.mul_((a["clip"] / (norm + 1e-6)).clamp(max=1))
        optimizer.step()
        r.adapter.zero_grad()
        loss, _ = losses(r, fx)
        loss.backward()
        values.append(loss.detach())
    out |= {"out.losses": torch.stack(values), "out.grad_norms": torch.stack(norms)}
    return out | prefixed("final.", adapter_file({n: q.detach() for n, q in r.adapter.named_parameters()}))


def shift_mu(tokens):
    return 0.5 + 0.65 * (tokens - 256) / 3840


def sigmas(steps, start, mu):
    """steps + 1 times from start to 0, even in unshifted time."""
    k = math.exp(mu)
    first = start / (k - (k - 1) * start)
    rest = (first * (1 - i / steps) for i in range(1, steps + 1))
    return [start] + [k * u / (1 + (k - 1) * u) for u in rest]


@torch.no_grad()
def run_sample(fx, p):
    """Restoring: Euler steps from noise or from a noised z_lq."""
    r, params = Restorer(fx, p), fx.params
    z_1, x_lq = fx.inputs["z_1"].to(p.wide), fx.inputs["x_lq"].to(p.wide)
    tokens = z_1.shape[2] * z_1.shape[3] // 4
    times = torch.tensor(sigmas(params["steps"], params["start"], shift_mu(tokens)), dtype=torch.float64).to(p.wide)
    z_lq = r.encode(x_lq)
    z = (1 - times[0]) * z_lq + times[0] * z_1
    path = [z]
    for now, then in zip(times, times[1:]):
        z = z + (then - now) * r.velocity(z, z_lq, now.expand(len(z)))
        path.append(z)
    image = r.decode(z)
    out = {"out.sigmas": times, "out.z_lq": z_lq, "out.z_path": torch.stack(path), "out.image": image}
    if p is F64:
        out["u8.image"] = torch.round(255 * (image / 2 + 0.5).clamp(0, 1)).to(torch.uint8)
    return out


RUN = {"flux": run_flux, "vae": run_vae, "fluxir": run_fluxir, "train": run_train, "sample": run_sample}


def run(fx, p):
    """Runs a fixture in one precision; values detached. The float64 reference must not touch a narrower float."""
    fx = dataclasses.replace(fx, models={role: p.model(m) for role, m in fx.models.items()})
    with OnlyFloat64() if p is F64 else contextlib.nullcontext():
        out = RUN[fx.kind](fx, p)
    return {name: v.detach() for name, v in out.items()}
