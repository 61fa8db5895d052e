"""The autoencoder: diffusers' AutoencoderKL, fluxir's linear space-to-depth shortcut, or both added."""

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

MIN_LOGVAR, MAX_LOGVAR = -30.0, 20.0


class Autoencoder(nn.Module):
    """Parameters have diffusers' names (encoder.*, decoder.*) and encoder.shortcut, decoder.shortcut."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.latent, self.scale, self.shift = config["latent_channels"], config["scaling_factor"], config["shift_factor"] or 0.0
        channels, f = config["block_out_channels"], config.get("space_to_depth_shortcut", 0)
        self.factor = 2 ** (len(channels) - 1) if channels else f
        self.convolutions, self.shortcut = bool(channels), f > 0
        self.encoder, self.decoder = nn.Module(), nn.Module()
        if channels:
            kl = AutoencoderKL(**{k: v for k, v in config.items() if k != "space_to_depth_shortcut"})
            self.encoder, self.decoder = kl.encoder, kl.decoder
        if f:
            self.encoder.shortcut = nn.Linear(3 * f * f, self.latent)
            self.decoder.shortcut = nn.Linear(self.latent, 3 * f * f)

    def moments(self, x):
        """(mean, logvar) [B,c,h,w] of the unscaled latent; logvar clamped."""
        mean = logvar = None
        if self.convolutions:
            mean, logvar = self.encoder(x).chunk(2, 1)
        if self.shortcut:
            packed = x
            for _ in range(self.factor.bit_length() - 1):  # 2×2 packing, channel order (c, dy, dx), repeated
                packed = F.pixel_unshuffle(packed, 2)
            linear = self.encoder.shortcut(packed.movedim(1, -1)).movedim(-1, 1)
            mean = linear if mean is None else mean + linear
            logvar = torch.full_like(mean, MIN_LOGVAR) if logvar is None else logvar
        return mean, logvar.clamp(MIN_LOGVAR, MAX_LOGVAR)

    def scaled(self, latent):
        return (latent - self.shift) * self.scale

    def decode(self, z):
        """The image of a scaled latent."""
        return self.decode_unscaled(z / self.scale + self.shift)

    def decode_unscaled(self, z):
        image = None
        if self.convolutions:
            image = self.decoder(z)
        if self.shortcut:
            linear = self.decoder.shortcut(z.movedim(1, -1)).movedim(-1, 1)
            for _ in range(self.factor.bit_length() - 1):
                linear = F.pixel_shuffle(linear, 2)
            image = linear if image is None else image + linear
        return image


def build_vae(random, config, bf16=False):
    model = random.fill(Autoencoder(config))
    return model.to(torch.bfloat16).float() if bf16 else model
