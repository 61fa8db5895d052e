package weights

import "fmt"

// DetectVAE tells which names an autoencoder's file uses; ErrMissingTensor if it is neither. A model that is a shortcut alone has our names only.
func DetectVAE(src Source) (Layout, error) {
	if _, err := src.Tensor(shortcutName); err == nil {
		return Diffusers, nil
	}
	return detect(src, "encoder.norm_out.weight", "encoder.conv_norm_out.weight")
}

const shortcutName = "encoder.shortcut.weight"

// VAEParams returns the autoencoder's parameters, encoder first, in order of execution, with the tensors of a file in the given layout.
// Names are diffusers' (AutoencoderKL); the original side is black-forest-labs/flux, src/flux/modules/autoencoder.py, where attention
// is made of 1×1 convolutions, read here as matrices, and the decoder's levels are numbered from the finest.
// Convolutions are [out, in, 3, 3], linear layers [out, in].
//
// With SpaceToDepthShortcut f there are also encoder.shortcut (weight [latent, in·f·f], bias) and decoder.shortcut
// (weight [out·f·f, latent], bias), under these names in either layout.
func VAEParams(c *VAEConfig, layout Layout) []Param {
	v := vaeNames{rename{layout: layout}}
	f := c.SpaceToDepthShortcut
	if len(c.BlockOutChannels) > 0 {
		v.encoder(c)
	}
	if f > 0 {
		v.linear("encoder.shortcut", "encoder.shortcut", c.LatentChannels, c.InChannels*f*f)
	}
	if len(c.BlockOutChannels) > 0 {
		v.decoder(c)
	}
	if f > 0 {
		v.linear("decoder.shortcut", "decoder.shortcut", c.OutChannels*f*f, c.LatentChannels)
	}
	return v.params
}

type vaeNames struct{ rename }

func (v *vaeNames) encoder(c *VAEConfig) {
	ch := c.BlockOutChannels
	v.conv("encoder.conv_in", "encoder.conv_in", ch[0], c.InChannels, 3)
	in := ch[0]
	for i, out := range ch {
		o, d := fmt.Sprintf("encoder.down.%d.", i), fmt.Sprintf("encoder.down_blocks.%d.", i)
		for j := range c.LayersPerBlock {
			v.resnet(fmt.Sprintf("%sblock.%d", o, j), fmt.Sprintf("%sresnets.%d", d, j), out, in)
			in = out
		}
		if i < len(ch)-1 {
			v.conv(o+"downsample.conv", d+"downsamplers.0.conv", out, out, 3)
		}
	}
	v.middle("encoder.", in, c.MidAttention)
	v.norm("encoder.norm_out", "encoder.conv_norm_out", in)
	v.conv("encoder.conv_out", "encoder.conv_out", 2*c.LatentChannels, in, 3)
}

func (v *vaeNames) decoder(c *VAEConfig) {
	ch := c.BlockOutChannels
	last := len(ch) - 1
	in := ch[last]
	v.conv("decoder.conv_in", "decoder.conv_in", in, c.LatentChannels, 3)
	v.middle("decoder.", in, c.MidAttention)
	for i := range ch {
		out := ch[last-i]
		o, d := fmt.Sprintf("decoder.up.%d.", last-i), fmt.Sprintf("decoder.up_blocks.%d.", i)
		for j := range c.LayersPerBlock + 1 {
			v.resnet(fmt.Sprintf("%sblock.%d", o, j), fmt.Sprintf("%sresnets.%d", d, j), out, in)
			in = out
		}
		if i < last {
			v.conv(o+"upsample.conv", d+"upsamplers.0.conv", out, out, 3)
		}
	}
	v.norm("decoder.norm_out", "decoder.conv_norm_out", in)
	v.conv("decoder.conv_out", "decoder.conv_out", c.OutChannels, in, 3)
}

func (v *vaeNames) middle(side string, ch int, attention bool) {
	o, d := side+"mid.", side+"mid_block."
	v.resnet(o+"block_1", d+"resnets.0", ch, ch)
	if attention {
		v.norm(o+"attn_1.norm", d+"attentions.0.group_norm", ch)
		for _, n := range [][2]string{{"q", "to_q"}, {"k", "to_k"}, {"v", "to_v"}, {"proj_out", "to_out.0"}} {
			v.linear(o+"attn_1."+n[0], d+"attentions.0."+n[1], ch, ch)
			if v.layout == Original {
				v.params[len(v.params)-2].Parts[0].Shape = []int{ch, ch, 1, 1}
			}
		}
	}
	v.resnet(o+"block_2", d+"resnets.1", ch, ch)
}

func (v *vaeNames) resnet(o, d string, out, in int) {
	v.norm(o+".norm1", d+".norm1", in)
	v.conv(o+".conv1", d+".conv1", out, in, 3)
	v.norm(o+".norm2", d+".norm2", out)
	v.conv(o+".conv2", d+".conv2", out, out, 3)
	if in != out {
		v.conv(o+".nin_shortcut", d+".conv_shortcut", out, in, 1)
	}
}

func (v *vaeNames) conv(o, d string, out, in, k int) {
	v.add(o+".weight", d+".weight", Diffusers, out, in, k, k)
	v.add(o+".bias", d+".bias", Diffusers, out)
}

func (v *vaeNames) linear(o, d string, out, in int) {
	v.add(o+".weight", d+".weight", Diffusers, out, in)
	v.add(o+".bias", d+".bias", Diffusers, out)
}

func (v *vaeNames) norm(o, d string, ch int) {
	v.add(o+".weight", d+".weight", Diffusers, ch)
	v.add(o+".bias", d+".bias", Diffusers, ch)
}
