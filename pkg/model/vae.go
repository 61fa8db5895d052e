package model

import (
	"fmt"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

const (
	groupNormEps = 1e-6
	minLogVar    = -30 // of an autoencoder that has no noise: a shortcut alone
)

// VAE is the AutoencoderKL: FLUX.1's, or the embedded family's, which has a linear space-to-depth map beside the convolutions or in their place. Images are
// [B,Y,X,3] in [-1,1], latents [B,h,w,c].
type VAE struct {
	Config weights.VAEConfig
	Params *Params
	DType  bindings.DType

	encoder, decoder     *vaeNet // nil without convolutions
	shortcutIn, shortcut linear  // of encoder and decoder, with Config.SpaceToDepthShortcut
}

// vaeNet is the convolutional encoder or decoder.
type vaeNet struct {
	convIn, convOut linear
	normOut         linear
	levels          []vaeLevel
	middle          vaeMiddle
}

type vaeLevel struct {
	blocks   []resnetBlock
	resample *linear // the convolution of a down- or upsampler; nil in the last level
}

type vaeMiddle struct {
	first, second    resnetBlock
	norm, q, k, v, o *linear // nil without attention
}

type resnetBlock struct {
	norm1, conv1, norm2, conv2 linear
	shortcut                   *linear // 1×1, where the channels change
}

// NewVAE allocates an autoencoder in a, weights undefined.
func NewVAE(a *tensor.Arena, c weights.VAEConfig, dtype bindings.DType) (*VAE, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	ps, err := newParams(a, weights.VAEParams(&c, weights.Diffusers), dtype)
	if err != nil {
		return nil, err
	}
	v := &VAE{Config: c, Params: ps, DType: dtype}
	if len(c.BlockOutChannels) > 0 {
		v.encoder = ps.vaeNet("encoder.", "down_blocks.%d.", "downsamplers.0.conv", c, c.LayersPerBlock)
		v.decoder = ps.vaeNet("decoder.", "up_blocks.%d.", "upsamplers.0.conv", c, c.LayersPerBlock+1)
	}
	if c.SpaceToDepthShortcut > 0 {
		v.shortcutIn, v.shortcut = ps.linear("encoder.shortcut"), ps.linear("decoder.shortcut")
	}
	return v, nil
}

// LoadVAE allocates an autoencoder and reads its weights, converting them to dtype.
func LoadVAE(a *tensor.Arena, src weights.Source, c weights.VAEConfig, dtype bindings.DType) (*VAE, error) {
	layout, err := weights.DetectVAE(src)
	if err != nil {
		return nil, err
	}
	v, err := NewVAE(a, c, dtype)
	if err != nil {
		return nil, err
	}
	return v, v.Params.load(src, weights.VAEParams(&c, layout))
}

func (ps *Params) vaeNet(side, level, resample string, c weights.VAEConfig, layers int) *vaeNet {
	n := &vaeNet{convIn: ps.linear(side + "conv_in"), convOut: ps.linear(side + "conv_out"), normOut: ps.linear(side + "conv_norm_out")}
	n.middle = vaeMiddle{first: ps.resnetBlock(side + "mid_block.resnets.0"), second: ps.resnetBlock(side + "mid_block.resnets.1")}
	if c.MidAttention {
		at := side + "mid_block.attentions.0."
		n.middle.norm, n.middle.q, n.middle.k = ps.optionalLinear(at+"group_norm"), ps.optionalLinear(at+"to_q"), ps.optionalLinear(at+"to_k")
		n.middle.v, n.middle.o = ps.optionalLinear(at+"to_v"), ps.optionalLinear(at+"to_out.0")
	}
	for i := range c.BlockOutChannels {
		prefix := side + fmt.Sprintf(level, i)
		l := vaeLevel{resample: ps.optionalLinear(prefix + resample)}
		for j := range layers {
			l.blocks = append(l.blocks, ps.resnetBlock(fmt.Sprintf("%sresnets.%d", prefix, j)))
		}
		n.levels = append(n.levels, l)
	}
	return n
}

func (ps *Params) resnetBlock(prefix string) resnetBlock {
	return resnetBlock{
		norm1: ps.linear(prefix + ".norm1"), conv1: ps.linear(prefix + ".conv1"), norm2: ps.linear(prefix + ".norm2"),
		conv2: ps.linear(prefix + ".conv2"), shortcut: ps.optionalLinear(prefix + ".conv_shortcut"),
	}
}

// optionalLinear is a layer's weight and bias, nil where the configuration has no such layer.
func (ps *Params) optionalLinear(name string) *linear {
	if ps.Get(name+".weight") == nil {
		return nil
	}
	l := ps.linear(name)
	return &l
}

// Moments encodes an image: (mean, logvar) [B,h,w,2c] of the unscaled latent.
func (v *VAE) Moments(t *tensor.Tape, x *tensor.Tensor) *tensor.Tensor {
	x = t.Cast(x, v.DType)
	c, f := v.Config.LatentChannels, v.Config.Factor()
	var moments *tensor.Tensor
	if v.encoder != nil {
		moments = v.encoder.encode(t, x, v.Config)
	}
	if v.Config.SpaceToDepthShortcut == 0 {
		return moments
	}
	mean := v.shortcutIn.forward(t, spaceToDepth(t, x, f)).View(x.Dim(0), x.Dim(1)/f, x.Dim(2)/f, c)
	sum := t.New(v.DType, mean.Dim(0), mean.Dim(1), mean.Dim(2), 2*c)
	if moments == nil {
		t.CopyTo(sum.Slice(3, 0, c), mean)
		t.Fill(sum.Slice(3, c, 2*c), minLogVar)
	} else {
		t.AddTo(sum.Slice(3, 0, c), moments.Slice(3, 0, c), mean)
		t.CopyTo(sum.Slice(3, c, 2*c), moments.Slice(3, c, 2*c))
	}
	return sum
}

// Latent is the scaled latent (mean + exp(logvar/2)·eps − shift)·scale of moments, F32; eps nil for the mean.
func (v *VAE) Latent(t *tensor.Tape, moments, eps *tensor.Tensor) *tensor.Tensor {
	return t.Gaussian(moments, eps, float32(v.Config.ShiftFactor), float32(v.Config.ScalingFactor), bindings.F32)
}

// Decode is the image of a scaled latent, not clamped, in the autoencoder's dtype.
func (v *VAE) Decode(t *tensor.Tape, z *tensor.Tensor) *tensor.Tensor {
	batch := z.Dim(0)
	p := t.Fill(t.New(bindings.F32, batch), float32(1/v.Config.ScalingFactor))
	one := t.Fill(t.New(bindings.F32, batch), 1)
	shift := t.Fill(t.New(bindings.F32, z.Shape()...), float32(v.Config.ShiftFactor))
	return v.DecodeUnscaled(t, t.Axpby(z, shift, p, one, v.DType))
}

// DecodeUnscaled is the image of a latent without shift and scale.
func (v *VAE) DecodeUnscaled(t *tensor.Tape, z *tensor.Tensor) *tensor.Tensor {
	z = t.Cast(z, v.DType)
	var image *tensor.Tensor
	if v.decoder != nil {
		image = v.decoder.decode(t, z, v.Config)
	}
	if v.Config.SpaceToDepthShortcut == 0 {
		return image
	}
	f := v.Config.Factor()
	flat := v.shortcut.forward(t, z.View(z.Dim(0), z.Dim(1)*z.Dim(2), z.Dim(3)))
	linear := depthToSpace(t, flat, z.Dim(1), z.Dim(2), f)
	if image == nil {
		return linear
	}
	return t.Add(image, linear)
}

// spaceToDepth packs f×f pixels into channels by repeated 2×2 packing: [B,Y,X,c] -> [B,(Y/f)(X/f),c·f²].
func spaceToDepth(t *tensor.Tape, x *tensor.Tensor, f int) *tensor.Tensor {
	for h, w := x.Dim(1), x.Dim(2); f > 1; f /= 2 {
		h, w = h/2, w/2
		x = t.Pack(x).View(x.Dim(0), h, w, 4*x.Dim(3))
	}
	return x.View(x.Dim(0), x.Dim(1)*x.Dim(2), x.Dim(3))
}

// depthToSpace is the inverse, from h × w tokens.
func depthToSpace(t *tensor.Tape, x *tensor.Tensor, h, w, f int) *tensor.Tensor {
	for ; f > 1; f /= 2 {
		h, w = 2*h, 2*w
		x = t.Unpack(x, h, w)
		if f > 2 {
			x = x.View(x.Dim(0), h*w, x.Dim(3))
		}
	}
	return x
}

func (n *vaeNet) encode(t *tensor.Tape, x *tensor.Tensor, c weights.VAEConfig) *tensor.Tensor {
	x = conv3(t, x, n.convIn)
	for _, l := range n.levels {
		for _, b := range l.blocks {
			x = b.forward(t, x, c.NormNumGroups)
		}
		if l.resample != nil {
			x = t.Conv2D(x, l.resample.w, l.resample.b, tensor.Conv2DArgs{Stride: 2, PadBottom: 1, PadRight: 1})
		}
	}
	x = n.middle.forward(t, x, c.NormNumGroups)
	return conv3(t, norm(t, x, n.normOut, c.NormNumGroups, true), n.convOut)
}

func (n *vaeNet) decode(t *tensor.Tape, z *tensor.Tensor, c weights.VAEConfig) *tensor.Tensor {
	x := n.middle.forward(t, conv3(t, z, n.convIn), c.NormNumGroups)
	for _, l := range n.levels {
		for _, b := range l.blocks {
			x = b.forward(t, x, c.NormNumGroups)
		}
		if l.resample != nil {
			x = conv3(t, t.Upsample(x), *l.resample)
		}
	}
	return conv3(t, norm(t, x, n.normOut, c.NormNumGroups, true), n.convOut)
}

func (b resnetBlock) forward(t *tensor.Tape, x *tensor.Tensor, groups int) *tensor.Tensor {
	h := conv3(t, norm(t, x, b.norm1, groups, true), b.conv1)
	h = conv3(t, norm(t, h, b.norm2, groups, true), b.conv2)
	if b.shortcut != nil {
		x = t.Conv2D(x, b.shortcut.w, b.shortcut.b, tensor.Conv2DArgs{Stride: 1})
	}
	return t.Add(x, h)
}

func (m vaeMiddle) forward(t *tensor.Tape, x *tensor.Tensor, groups int) *tensor.Tensor {
	x = m.first.forward(t, x, groups)
	if m.q != nil {
		x = t.Add(x, m.attention(t, norm(t, x, *m.norm, groups, false)))
	}
	return m.second.forward(t, x, groups)
}

// attention of one head over all pixels.
func (m vaeMiddle) attention(t *tensor.Tape, x *tensor.Tensor) *tensor.Tensor {
	batch, h, w, c := x.Dim(0), x.Dim(1), x.Dim(2), x.Dim(3)
	tokens := x.View(batch, h*w, c)
	heads := [3]*tensor.Tensor{}
	for i, l := range []*linear{m.q, m.k, m.v} {
		heads[i] = byHead(l.forward(t, tokens), 1)
	}
	o := t.New(x.DType(), batch, h*w, c)
	t.AttentionTo(byHead(o, 1), heads[0], heads[1], heads[2], nil, attentionScale(c))
	return m.o.forward(t, o).View(batch, h, w, c)
}

func conv3(t *tensor.Tape, x *tensor.Tensor, l linear) *tensor.Tensor {
	return t.Conv2D(x, l.w, l.b, tensor.Conv2DArgs{Stride: 1, PadTop: 1, PadLeft: 1, PadBottom: 1, PadRight: 1})
}

func norm(t *tensor.Tape, x *tensor.Tensor, l linear, groups int, silu bool) *tensor.Tensor {
	return t.GroupNorm(x, l.w, l.b, tensor.GroupNormArgs{Groups: groups, SiLU: silu, Eps: groupNormEps})
}
