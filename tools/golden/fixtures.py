"""What the set holds: configurations, shapes, seeds. Every size that a kernel might round up is odd somewhere."""

from dataclasses import dataclass, field

import torch

from autoencoder import build_vae
from precision import Random
from transformer import build_adapter, build_flux

SEED = 20250415

FLUX_A = dict(in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=3, joint_attention_dim=20,
              pooled_projection_dim=12, guidance_embeds=True, axes_dims_rope=(4, 4, 8))
FLUX_B = dict(in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=64, num_attention_heads=1, joint_attention_dim=24,
              pooled_projection_dim=9, guidance_embeds=False, axes_dims_rope=(8, 24, 32))
# Of the embedded family: no double blocks, no text axis in RoPE, 12 latent channels, the network predicts z_0 - z_lq.
FLUX_NANO = dict(in_channels=48, num_layers=0, num_single_layers=2, attention_head_dim=16, num_attention_heads=1, joint_attention_dim=10,
                 pooled_projection_dim=6, guidance_embeds=False, axes_dims_rope=(0, 8, 8), prediction="sample", lq_skip=True)


def vae_config(channels, latent, scaling, shift, **more):
    n = len(channels)
    return dict(block_out_channels=channels, latent_channels=latent, scaling_factor=scaling, shift_factor=shift, down_block_types=("DownEncoderBlock2D",) * n,
                up_block_types=("UpDecoderBlock2D",) * n, use_quant_conv=False, use_post_quant_conv=False) | more


VAE_A = vae_config((8, 8, 16), 16, 0.55, -0.08, norm_num_groups=4, layers_per_block=1)
VAE_B = vae_config((8, 24), 8, 0.3611, 0.1159, norm_num_groups=4, layers_per_block=2)
VAE_MIXED = vae_config((8, 8), 4, 1.25, None, norm_num_groups=2, layers_per_block=1, mid_block_add_attention=False, space_to_depth_shortcut=2)
VAE_NANO = vae_config((), 12, 1.6, 0.03, space_to_depth_shortcut=4)


@dataclass
class Fixture:
    name: str
    kind: str
    description: str
    models: dict  # role -> module
    paths: dict  # role -> path relative to the folder
    params: dict
    inputs: dict
    row_stride: int = 1
    io: str = "io.safetensors"
    seed: int = SEED
    configs: dict = field(default_factory=dict)  # of the models that this folder holds


def flux_inputs(random, config, batch, grid, tokens, t, g=None):
    n, channels = grid[0] * grid[1], config["in_channels"]
    inputs = {
        "hidden_states": random.normal(batch, n, channels), "encoder_hidden_states": random.normal(batch, tokens, config["joint_attention_dim"]),
        "pooled_projections": random.normal(batch, config["pooled_projection_dim"]), "cotangent": random.normal(batch, n, channels), "timestep": values(t),
    }
    return inputs | ({"guidance": values(g)} if g else {})


def values(v):
    return torch.tensor(v, dtype=torch.float32)


def flux_fixtures(models):
    out = []
    for name, config, batch, grid, tokens, t, g, stride, what in (
        ("flux_a", FLUX_A, 2, (3, 7), 5, (0.37, 0.91), (3.5, 1.25), 8, "F32"),
        ("flux_b", FLUX_B, 3, (5, 3), 1, (0.004, 0.0011, 0.02), None, 16, "BF16 in two shards"),
        ("flux_nano", FLUX_NANO, 2, (2, 5), 3, (0.03, 0.8), None, 8, "predicts the sample, no double blocks, unconditional"),
    ):
        random = Random(SEED, name + " inputs")
        text = f"FLUX transformer, {config['num_attention_heads']} x {config['attention_head_dim']}, {config['num_layers']} double + " \
               f"{config['num_single_layers']} single blocks, {what}"
        out.append(Fixture(name, "flux", text, {"transformer": models[name]}, {"transformer": "transformer"}, {"grid": grid, "grads": True},
                           flux_inputs(random, config, batch, grid, tokens, t, g), stride, configs={"transformer": config}))
    out.append(Fixture("bfl_flux_a", "flux", "the weights of flux_a under the original names, one file, F32", {"transformer": models["flux_a"]},
                       {"transformer": "flux.safetensors"}, {"grid": (3, 7), "grads": False}, out[0].inputs, io="../flux_a/io.safetensors",
                       configs={"transformer": FLUX_A}))
    return out


def vae_fixtures(models):
    out = []
    for name, config, batch, latent, stride in (("vae_a", VAE_A, 2, (3, 5), 8), ("vae_b", VAE_B, 1, (7, 3), 8), ("vae_mixed", VAE_MIXED, 1, (5, 4), 8),
                                                ("vae_nano", VAE_NANO, 2, (3, 4), 1)):
        random, vae = Random(SEED, name + " inputs"), models[name]
        (h, w), f = latent, vae.factor
        parts = ["channels " + ", ".join(map(str, config["block_out_channels"]))] * vae.convolutions + ["a linear space-to-depth map"] * vae.shortcut
        out.append(Fixture(name, "vae", f"AutoencoderKL f={f}, {vae.latent} latent channels: " + " and ".join(parts), {"vae": vae}, {"vae": "vae"},
                           {"vae_factor": f}, {
                               "image": random.image(batch, f * h, f * w), "eps": random.normal(batch, vae.latent, h, w),
                               "z": random.normal(batch, vae.latent, h, w), "cot_decode": random.normal(batch, 3, f * h, f * w),
                               "cot_mean": random.normal(batch, vae.latent, h, w)}, stride, configs={"vae": config}))
    return out


def adapter_roles(models, base, home):
    return ({"transformer": models[base], "adapter": models[base + " adapter"]},
            {"transformer": f"../{base}/transformer", "adapter": f"../{home}/adapter.safetensors"})


def fluxir_fixtures(models):
    out = []
    for name, base, home, strength, text, grid, t, stride in (
        ("fluxir_1", "flux_a", "fluxir_1", 1.0, "learned", (5, 2), (0.12, 0.77), 8), ("fluxir_07", "flux_a", "fluxir_1", 0.7, "learned", (5, 2), (0.12, 0.77), 16),
        ("fluxir_0", "flux_a", "fluxir_1", 0.0, "learned", (5, 2), (0.12, 0.77), 16), ("fluxir_prompt", "flux_a", "fluxir_1", 1.0, "prompt", (5, 2), (0.12, 0.77), 16),
        ("fluxir_nano", "flux_nano", "fluxir_nano", 0.8, "learned", (3, 3), (0.03, 0.64), 1),
    ):
        random, config = Random(SEED, home + " inputs"), FLUX_A if base == "flux_a" else FLUX_NANO
        shape = (2, grid[0] * grid[1], config["in_channels"])
        inputs = {"z_t": random.normal(*shape), "z_lq": random.normal(*shape), "cotangent": random.normal(*shape), "t": values(t)}
        inputs |= {"g": values((3.5, 2.0))} if config["guidance_embeds"] else {}
        roles, paths = adapter_roles(models, base, home)
        if text == "prompt":
            inputs |= {"prompt_embeds": random.normal(2, *roles["adapter"].theta_p.shape), "pooled": random.normal(2, config["pooled_projection_dim"])}
        out.append(Fixture(name, "fluxir", f"FluxIR on {base}, lambda {strength}, base_text {text}", roles, paths,
                           {"grid": grid, "lambda": strength, "base_text": text, "r": 32}, inputs, stride))
    return out


def restoring_fixtures(models):
    """Training and sampling. h, w: latent sizes, even. g is there for every base, and read by those with guidance."""
    out = []
    for name, base, home, vae, batch, (h, w), t, g, more in (
        ("train", "flux_a", "fluxir_1", "vae_a", 2, (6, 8), (0.83, 0.29), (3.5, 3.5),
         dict(crop=(1, 4, 3, 4), margin=1, gamma=1.5, px_loss="charbonnier", lambda_px=0.25)),
        ("train_nano", "flux_nano", "fluxir_nano", "vae_nano", 3, (4, 6), (0.5, 1.0, 0.21), (1.0, 1.0, 1.0),
         dict(crop=(0, 1, 4, 5), margin=2, gamma=1.0, px_loss="l1", lambda_px=0.1)),
    ):
        random = Random(SEED, name + " inputs")
        f, c = models[vae].factor, models[vae].latent
        x_hq = random.image(batch, f * h, f * w)
        inputs = {"x_hq": x_hq, "x_lq": (x_hq + random.normal(*x_hq.shape, scale=0.2)).clamp(-1, 1), "eps": random.normal(batch, c, h, w),
                  "z_1": random.normal(batch, c, h, w), "t": values(t), "g": values(g)}
        roles, paths = adapter_roles(models, base, home)
        optimizer = dict(lr=2e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.03, clip=0.5, steps=5)
        out.append(Fixture(name, "train", f"one training set-up on {base} and {vae}, and {optimizer['steps']} AdamW steps on the same batch",
                           roles | {"vae": models[vae]}, paths | {"vae": f"../{vae}/vae"},
                           more | {"vae_factor": f, "lambda": 0.9, "base_text": "learned", "adamw": optimizer}, inputs, 8))
    for name, base, home, vae, batch, (h, w), start, steps, g in (
        ("sample_noise", "flux_a", "fluxir_1", "vae_a", 1, (6, 10), 1.0, 4, (3.5,)), ("sample_start", "flux_a", "fluxir_1", "vae_a", 2, (4, 6), 0.45, 3, (3.0, 3.0)),
        ("sample_nano", "flux_nano", "fluxir_nano", "vae_nano", 1, (6, 4), 1.0, 4, (1.0,)),
    ):
        random = Random(SEED, name + " inputs")
        f, c = models[vae].factor, models[vae].latent
        inputs = {"x_lq": random.image(batch, f * h, f * w), "z_1": random.normal(batch, c, h, w), "g": values(g)}
        roles, paths = adapter_roles(models, base, home)
        out.append(Fixture(name, "sample", f"restoring with {base} and {vae} in {steps} Euler steps, start {start}", roles | {"vae": models[vae]},
                           paths | {"vae": f"../{vae}/vae"}, {"steps": steps, "start": start, "lambda": 1.0, "vae_factor": f, "base_text": "learned"}, inputs))
    return out


def all_fixtures():
    """Every fixture with a model. The same in every process: nothing here depends on the processor."""
    models = {
        "flux_a": build_flux(Random(SEED, "flux_a"), FLUX_A), "flux_b": build_flux(Random(SEED, "flux_b"), FLUX_B, bf16=True),
        "flux_nano": build_flux(Random(SEED, "flux_nano"), FLUX_NANO), "vae_a": build_vae(Random(SEED, "vae_a"), VAE_A),
        "vae_b": build_vae(Random(SEED, "vae_b"), VAE_B, bf16=True), "vae_mixed": build_vae(Random(SEED, "vae_mixed"), VAE_MIXED),
        "vae_nano": build_vae(Random(SEED, "vae_nano"), VAE_NANO),
    }
    for base, tokens in (("flux_a", 6), ("flux_nano", 2)):
        models[base + " adapter"] = build_adapter(Random(SEED, base + " adapter"), models[base], tokens)
    return flux_fixtures(models) + vae_fixtures(models) + fluxir_fixtures(models) + restoring_fixtures(models)
