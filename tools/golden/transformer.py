"""The base transformer (diffusers' modules), the FluxIR adapter, and their names in files.

The blocks are diffusers' own. What surrounds them is written out here, because the adapter reaches between the blocks, and because the published code
casts to f32 in the sinusoid and in RoPE where the float64 reference must not.
"""

import math
from unittest import mock

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers import transformer_flux
from torch import nn
from torch.nn import functional as F

MIN_TIME = 0.05  # bound of the division that makes a velocity of a predicted sample


def rotate(x, table, sequence_dim=1):
    """RoPE of pairs (2i, 2i+1). x [B,L,H,D], table = (cos, sin) each [L,D], both of the type that the rotation is computed in."""
    cos, sin = (v[None, :, None] for v in table)
    wide = x.to(cos.dtype)
    turned = torch.stack([-wide[..., 1::2], wide[..., 0::2]], -1).flatten(-2)
    return (wide * cos + turned * sin).to(x.dtype)


published_rotate = transformer_flux.apply_rotary_emb
transformer_flux.apply_rotary_emb = rotate


def rope_table(axes, text_tokens, grid, wide):
    """(cos, sin) [T + N, D] of ids (0, 0, 0) for text and (0, y, x) for image tokens, from float64 angles."""
    rows, columns = grid
    ids = torch.zeros(text_tokens + rows * columns, 3, dtype=torch.float64)
    ids[text_tokens:, 1] = torch.arange(rows).repeat_interleave(columns)
    ids[text_tokens:, 2] = torch.arange(columns).repeat(rows)
    angles = []
    for axis, dim in enumerate(axes):
        frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / max(dim, 1))
        angles.append((ids[:, axis, None] * frequency).repeat_interleave(2, 1))
    angles = torch.cat(angles, 1)
    return angles.cos().to(wide), angles.sin().to(wide)


def sinusoid(value, wide):
    """[B] -> [B,256]: cosines, then sines, of 1000·value."""
    half = 128
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=wide) / half)
    angle = (value.to(wide) * 1000)[:, None] * frequency[None]
    return torch.cat([angle.cos(), angle.sin()], -1)


def build_flux(random, config, bf16=False):
    """A random transformer in f32; bf16: its values are bf16 numbers. config may hold prediction and lq_skip, which are fluxir's own."""
    ours = ("prediction", "lq_skip")
    model = random.fill(FluxTransformer2DModel(**{k: v for k, v in config.items() if k not in ours}))
    model.prediction, model.lq_skip = config.get("prediction", "velocity"), config.get("lq_skip", False)
    return model.to(torch.bfloat16).float() if bf16 else model


class SqueezeExcite(nn.Module):
    """a = gain · sigmoid(w2 silu(w1 mean(f) + b1) + b2), computed in dtype, where that is not None, else in f's type."""

    dtype = None

    def __init__(self, width, reduction):
        super().__init__()
        hidden = max(1, width // reduction)
        self.w1, self.b1 = nn.Parameter(torch.empty(hidden, width)), nn.Parameter(torch.empty(hidden))
        self.w2, self.b2 = nn.Parameter(torch.empty(width, hidden)), nn.Parameter(torch.empty(width))
        self.gain = nn.Parameter(torch.empty(width))

    def forward(self, f):
        w1, b1, w2, b2, gain = (p.to(self.dtype or f.dtype) for p in (self.w1, self.b1, self.w2, self.b2, self.gain))
        mean = f.mean(1, dtype=w1.dtype)
        return (gain * torch.sigmoid(F.linear(F.silu(F.linear(mean, w1, b1)), w2, b2))).to(f.dtype)


class Adapter(nn.Module):
    """FluxIR for a base: its own double block and, for every block of the base and both streams, a squeeze-and-excitation layer."""

    def __init__(self, base, text_tokens, reduction=32):
        super().__init__()
        c = base.config
        width = c.num_attention_heads * c.attention_head_dim
        self.lq_in = nn.Linear(c.in_channels, width)
        self.theta_p = nn.Parameter(torch.empty(text_tokens, c.joint_attention_dim))
        self.theta_y = nn.Parameter(torch.empty(c.pooled_projection_dim))
        self.block = transformer_flux.FluxTransformerBlock(width, c.num_attention_heads, c.attention_head_dim)
        count = c.num_layers + c.num_single_layers
        self.se_z = nn.ModuleList(SqueezeExcite(width, reduction) for _ in range(count))
        self.se_p = nn.ModuleList(SqueezeExcite(width, reduction) for _ in range(count))


def build_adapter(random, base, text_tokens):
    adapter = random.fill(Adapter(base, text_tokens))
    with torch.no_grad():  # embeddings of size 1, not matrices
        adapter.theta_p.copy_(random.normal(*adapter.theta_p.shape))
        adapter.theta_y.copy_(random.normal(*adapter.theta_y.shape))
        for se in (*adapter.se_z, *adapter.se_p):
            se.gain.copy_(random.normal(*se.gain.shape, scale=0.5))
    return adapter


def vector(base, t, g, pooled, wide):
    """The conditioning vector [B,C]."""
    embed, dtype = base.time_text_embed, pooled.dtype
    vec = embed.timestep_embedder(sinusoid(t, wide).to(dtype))
    if base.config.guidance_embeds:
        vec = vec + embed.guidance_embedder(sinusoid(g, wide).to(dtype))
    return vec + embed.text_embedder(pooled)


def evaluate(base, grid, z_t, t, g, wide, text=None, pooled=None, adapter=None, z_lq=None, strength=1.0):
    """(v, f_z, f_p). z_t, z_lq [B,N,in] packed; text [B,T,J] and pooled [B,Y]: the prompt, or None for the adapter's theta. Without an adapter f is None."""
    dtype, batch = base.proj_out.weight.dtype, z_t.shape[0]
    img = base.x_embedder(z_t.to(dtype))
    f_z = f_p = None
    if adapter is not None:
        theta_y = adapter.theta_y.expand(batch, -1)
        theta = base.context_embedder(adapter.theta_p.expand(batch, -1, -1))
        table = rope_table(base.config.axes_dims_rope, theta.shape[1], grid, wide)
        h_z = img + adapter.lq_in(z_lq.to(dtype))
        f_p, f_z = adapter.block(h_z, theta, vector(base, t, g, theta_y, wide), table)
        gains = [(z(f_z), p(f_p)) for z, p in zip(adapter.se_z, adapter.se_p)]
    txt = theta if text is None else base.context_embedder(text)
    vec = vector(base, t, g, theta_y if pooled is None else pooled, wide)
    table = rope_table(base.config.axes_dims_rope, txt.shape[1], grid, wide)
    for i, block in enumerate([*base.transformer_blocks, *base.single_transformer_blocks]):
        if adapter is not None:
            img = img + strength * (gains[i][0][:, None] * f_z)
            txt = txt + strength * (gains[i][1][:, None] * f_p)
        txt, img = block(img, txt, vec, table)
    out = base.proj_out(base.norm_out(img, vec))
    return velocity(base, out, z_t, z_lq, t, wide), f_z, f_p


def velocity(base, out, z_t, z_lq, t, wide):
    """What the network's output means. Skip and division are of the wide type, on latents that were not rounded."""
    if base.lq_skip and z_lq is not None:
        out = out.to(wide) + z_lq
    if base.prediction == "velocity":
        return out
    return (z_t - out.to(wide)) / t.to(wide).clamp(min=MIN_TIME)[:, None, None]


@torch.no_grad()
def published(base, grid, z_t, t, g, text, pooled):
    """The network's output by diffusers' own forward, in f32."""
    rows, columns = grid
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1], ids[..., 2] = torch.arange(rows)[:, None], torch.arange(columns)
    with mock.patch.object(transformer_flux, "apply_rotary_emb", published_rotate):
        return base(z_t, text, pooled, t, ids.flatten(0, 1), torch.zeros(text.shape[1], 3), g, return_dict=False)[0]


def original_block(tensors, prefix):
    """A double block's tensors (diffusers' names, weights or gradients) under the original names."""
    out = {}
    streams = {
        "img": ("norm1", ("to_q", "to_k", "to_v"), "norm_q", "norm_k", "to_out.0", "ff"),
        "txt": ("norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "norm_added_q", "norm_added_k", "to_add_out", "ff_context"),
    }
    for stream, (mod, qkv, norm_q, norm_k, proj, mlp) in streams.items():
        p = f"{prefix}{stream}_"
        for kind in ("weight", "bias"):
            out[f"{p}mod.lin.{kind}"] = tensors[f"{mod}.linear.{kind}"]
            out[f"{p}attn.qkv.{kind}"] = torch.cat([tensors[f"attn.{n}.{kind}"] for n in qkv])
            out[f"{p}attn.proj.{kind}"] = tensors[f"attn.{proj}.{kind}"]
            out[f"{p}mlp.0.{kind}"] = tensors[f"{mlp}.net.0.proj.{kind}"]
            out[f"{p}mlp.2.{kind}"] = tensors[f"{mlp}.net.2.{kind}"]
        out[f"{p}attn.norm.query_norm.scale"] = tensors[f"attn.{norm_q}.weight"]
        out[f"{p}attn.norm.key_norm.scale"] = tensors[f"attn.{norm_k}.weight"]
    return out


def original_flux(tensors, config):
    """A whole transformer's tensors under the original names."""
    out = {}

    def part(prefix):
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    def linear(old, new):
        for kind in ("weight", "bias"):
            out[f"{new}.{kind}"] = tensors[f"{old}.{kind}"]

    linear("x_embedder", "img_in")
    linear("context_embedder", "txt_in")
    for old, new in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance")):
        if f"time_text_embed.{old}_embedder.linear_1.weight" in tensors:
            linear(f"time_text_embed.{old}_embedder.linear_1", f"{new}_in.in_layer")
            linear(f"time_text_embed.{old}_embedder.linear_2", f"{new}_in.out_layer")
    for i in range(config["num_layers"]):
        out.update(original_block(part(f"transformer_blocks.{i}."), f"double_blocks.{i}."))
    for i in range(config["num_single_layers"]):
        old, new = f"single_transformer_blocks.{i}.", f"single_blocks.{i}."
        linear(old + "norm.linear", new + "modulation.lin")
        linear(old + "proj_out", new + "linear2")
        for kind in ("weight", "bias"):
            names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
            out[f"{new}linear1.{kind}"] = torch.cat([tensors[f"{old}{n}.{kind}"] for n in names])
        out[new + "norm.query_norm.scale"] = tensors[old + "attn.norm_q.weight"]
        out[new + "norm.key_norm.scale"] = tensors[old + "attn.norm_k.weight"]
    for kind in ("weight", "bias"):  # diffusers has (scale, shift), the original (shift, scale)
        scale, shift = tensors[f"norm_out.linear.{kind}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    linear("proj_out", "final_layer.linear")
    return out


def adapter_file(tensors):
    """An adapter's tensors (weights or gradients by parameter name) under the names of its file."""
    out = {k: v for k, v in tensors.items() if not k.startswith("block.")}
    out.update(original_block({k.removeprefix("block."): v for k, v in tensors.items() if k.startswith("block.")}, "block."))
    return out
