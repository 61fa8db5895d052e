package weights

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Class names of the configurations that we read, as diffusers writes them.
const (
	fluxClass = "FluxTransformer2DModel"
	vaeClass  = "AutoencoderKL"
)

// What the network's output means, FluxConfig.Prediction.
const (
	PredictVelocity = "velocity" // the output is v = z_1 - z_0
	PredictSample   = "sample"   // the output is z_0
)

// FluxConfig is a flow transformer's config.json. Fields that a file leaves out have diffusers' defaults, those of FLUX.1-dev;
// unknown fields are ignored. Prediction and LQSkip are ours.
type FluxConfig struct {
	Class             string `json:"_class_name"`
	PatchSize         int    `json:"patch_size"`          // 1: packing 2×2 pixels into a token is done before the transformer
	InChannels        int    `json:"in_channels"`         // channels of a packed token, 64
	OutChannels       int    `json:"out_channels"`        // of the velocity; null or 0 in the file means InChannels
	NumLayers         int    `json:"num_layers"`          // double blocks, 19
	NumSingleLayers   int    `json:"num_single_layers"`   // single blocks, 38
	AttentionHeadDim  int    `json:"attention_head_dim"`  // D, 128
	NumAttentionHeads int    `json:"num_attention_heads"` // H, 24
	JointAttentionDim int    `json:"joint_attention_dim"` // width of the text embeddings, 4096
	PooledDim         int    `json:"pooled_projection_dim"`
	GuidanceEmbeds    bool   `json:"guidance_embeds"` // the model takes a guidance strength
	AxesDimsRope      []int  `json:"axes_dims_rope"`  // RoPE dims of (text index, y, x), each even, sum = D

	Prediction string `json:"prediction,omitempty"` // PredictVelocity or PredictSample
	LQSkip     bool   `json:"lq_skip,omitempty"`    // z_lq is added to the output
}

// Hidden returns the width C of the token stream.
func (c *FluxConfig) Hidden() int { return c.AttentionHeadDim * c.NumAttentionHeads }

// ReadFluxConfig reads the configuration of the transformer at path: a config.json, a folder that holds one, or a weight file that one lies beside.
// Errors wrap ErrConfig or the operating system's.
func ReadFluxConfig(path string) (*FluxConfig, error) {
	file, data, err := readConfig(path)
	if err != nil {
		return nil, err
	}
	return ParseFluxConfig(file, data)
}

// ParseFluxConfig reads a transformer's configuration from memory; name stands for the file in messages.
func ParseFluxConfig(name string, data []byte) (*FluxConfig, error) {
	c := &FluxConfig{
		PatchSize: 1, InChannels: 64, NumLayers: 19, NumSingleLayers: 38, AttentionHeadDim: 128, NumAttentionHeads: 24,
		JointAttentionDim: 4096, PooledDim: 768, AxesDimsRope: []int{16, 56, 56},
	}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fail(name, "", ErrConfig, "%v", err)
	}
	if c.OutChannels == 0 {
		c.OutChannels = c.InChannels
	}
	if c.Prediction == "" {
		c.Prediction = PredictVelocity
	}
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// Validate checks that the configuration describes a model that can be built; errors wrap ErrConfig.
func (c *FluxConfig) Validate() error {
	if c.Class != fluxClass {
		return fmt.Errorf("%w: _class_name %q, want %q", ErrConfig, c.Class, fluxClass)
	}
	if c.PatchSize != 1 {
		return fmt.Errorf("%w: patch_size %d, want 1", ErrConfig, c.PatchSize)
	}
	// The bounds are far beyond any model; they keep products of two sizes inside an int.
	err := inRange(
		size{"in_channels", c.InChannels, 1, 1 << 16}, size{"out_channels", c.OutChannels, 1, 1 << 16},
		size{"num_layers", c.NumLayers, 0, 1 << 10}, size{"num_single_layers", c.NumSingleLayers, 0, 1 << 10},
		size{"num_layers + num_single_layers", c.NumLayers + c.NumSingleLayers, 1, 1 << 11},
		size{"attention_head_dim", c.AttentionHeadDim, 2, 1 << 10}, size{"num_attention_heads", c.NumAttentionHeads, 1, 1 << 8},
		size{"joint_attention_dim", c.JointAttentionDim, 1, 1 << 16}, size{"pooled_projection_dim", c.PooledDim, 1, 1 << 16},
	)
	if err != nil {
		return err
	}
	if len(c.AxesDimsRope) != 3 {
		return fmt.Errorf("%w: axes_dims_rope %v, want 3 axes", ErrConfig, c.AxesDimsRope)
	}
	sum := 0
	for _, d := range c.AxesDimsRope {
		if d < 0 || d%2 != 0 || d > c.AttentionHeadDim {
			return fmt.Errorf("%w: axes_dims_rope %v, want even numbers", ErrConfig, c.AxesDimsRope)
		}
		sum += d
	}
	if sum != c.AttentionHeadDim {
		return fmt.Errorf("%w: axes_dims_rope %v sum to %d, attention_head_dim is %d", ErrConfig, c.AxesDimsRope, sum, c.AttentionHeadDim)
	}
	if c.Prediction != PredictVelocity && c.Prediction != PredictSample {
		return fmt.Errorf("%w: prediction %q, want %q or %q", ErrConfig, c.Prediction, PredictVelocity, PredictSample)
	}
	if c.LQSkip && c.InChannels != c.OutChannels {
		return fmt.Errorf("%w: lq_skip adds z_lq to the output, but in_channels is %d and out_channels %d", ErrConfig, c.InChannels, c.OutChannels)
	}
	return nil
}

// VAEConfig is an autoencoder's config.json. Fields that a file leaves out have diffusers' defaults; unknown fields are ignored.
// SpaceToDepthShortcut is ours.
type VAEConfig struct {
	Class            string   `json:"_class_name"`
	InChannels       int      `json:"in_channels"`        // 3
	OutChannels      int      `json:"out_channels"`       // 3
	LatentChannels   int      `json:"latent_channels"`    // 16
	BlockOutChannels []int    `json:"block_out_channels"` // of the levels, finest first; empty: no convolutions, the shortcut alone
	LayersPerBlock   int      `json:"layers_per_block"`   // residual blocks in a level of the encoder; the decoder has one more
	NormNumGroups    int      `json:"norm_num_groups"`
	MidAttention     bool     `json:"mid_block_add_attention"`
	ScalingFactor    float64  `json:"scaling_factor"` // scaled latent = (latent - ShiftFactor)·ScalingFactor
	ShiftFactor      float64  `json:"shift_factor"`   // null in the file means 0
	ActFn            string   `json:"act_fn"`         // "silu"
	DownBlockTypes   []string `json:"down_block_types"`
	UpBlockTypes     []string `json:"up_block_types"`
	UseQuantConv     bool     `json:"use_quant_conv"`      // must be false
	UsePostQuantConv bool     `json:"use_post_quant_conv"` // must be false

	// SpaceToDepthShortcut is the factor f of a linear map beside the convolutions, from f×f pixels to a latent pixel and back; 0 if there is none.
	SpaceToDepthShortcut int `json:"space_to_depth_shortcut,omitempty"`
}

// Factor returns f, image pixels per latent pixel in each direction.
func (c *VAEConfig) Factor() int {
	if len(c.BlockOutChannels) == 0 {
		return c.SpaceToDepthShortcut
	}
	return 1 << (len(c.BlockOutChannels) - 1)
}

// ReadVAEConfig reads the configuration of the autoencoder at path: a config.json, a folder that holds one, or a weight file that one lies beside.
// Errors wrap ErrConfig or the operating system's.
func ReadVAEConfig(path string) (*VAEConfig, error) {
	file, data, err := readConfig(path)
	if err != nil {
		return nil, err
	}
	return ParseVAEConfig(file, data)
}

// ParseVAEConfig reads an autoencoder's configuration from memory; name stands for the file in messages.
func ParseVAEConfig(name string, data []byte) (*VAEConfig, error) {
	// latents_mean and latents_std, where not null, would replace scaling_factor; no FLUX model has them.
	file := struct {
		VAEConfig
		LatentsMean []float64 `json:"latents_mean"`
		LatentsStd  []float64 `json:"latents_std"`
	}{VAEConfig: VAEConfig{
		InChannels: 3, OutChannels: 3, LatentChannels: 4, LayersPerBlock: 1, NormNumGroups: 32, MidAttention: true,
		ScalingFactor: 0.18215, ActFn: "silu", UseQuantConv: true, UsePostQuantConv: true,
	}}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fail(name, "", ErrConfig, "%v", err)
	}
	if file.LatentsMean != nil || file.LatentsStd != nil {
		return nil, fail(name, "", ErrConfig, "latents_mean and latents_std are not supported")
	}
	c := file.VAEConfig
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &c, nil
}

// Validate checks that the configuration describes a model that can be built; errors wrap ErrConfig.
func (c *VAEConfig) Validate() error {
	if c.Class != vaeClass {
		return fmt.Errorf("%w: _class_name %q, want %q", ErrConfig, c.Class, vaeClass)
	}
	levels := len(c.BlockOutChannels)
	err := inRange(
		size{"in_channels", c.InChannels, 1, 1 << 10}, size{"out_channels", c.OutChannels, 1, 1 << 10},
		size{"latent_channels", c.LatentChannels, 1, 1 << 10}, size{"levels of block_out_channels", levels, 0, 8},
		size{"layers_per_block", c.LayersPerBlock, 1, 64}, size{"norm_num_groups", c.NormNumGroups, 1, 1 << 10},
		size{"space_to_depth_shortcut", c.SpaceToDepthShortcut, 0, 128},
	)
	if err != nil {
		return err
	}
	for _, ch := range c.BlockOutChannels {
		if ch < 1 || ch > 1<<14 || ch%c.NormNumGroups != 0 {
			return fmt.Errorf("%w: block_out_channels %v, want multiples of norm_num_groups %d", ErrConfig, c.BlockOutChannels, c.NormNumGroups)
		}
	}
	switch s := c.SpaceToDepthShortcut; {
	case levels == 0 && s == 0:
		return fmt.Errorf("%w: neither block_out_channels nor space_to_depth_shortcut", ErrConfig)
	case levels > 0 && s > 0 && s != c.Factor():
		return fmt.Errorf("%w: space_to_depth_shortcut %d, but %d levels have factor %d", ErrConfig, s, levels, c.Factor())
	case c.UseQuantConv || c.UsePostQuantConv:
		return fmt.Errorf("%w: quant convolutions are not supported (use_quant_conv, use_post_quant_conv)", ErrConfig)
	case c.ActFn != "silu":
		return fmt.Errorf("%w: act_fn %q, want \"silu\"", ErrConfig, c.ActFn)
	case !(c.ScalingFactor > 0): // JSON has neither NaN nor infinity, but a caller may
		return fmt.Errorf("%w: scaling_factor %v, want > 0", ErrConfig, c.ScalingFactor)
	}
	return checkBlockTypes(levels, c.DownBlockTypes, "DownEncoderBlock2D", c.UpBlockTypes, "UpDecoderBlock2D")
}

// checkBlockTypes accepts plain convolution levels only; a file may leave the lists out.
func checkBlockTypes(levels int, down []string, wantDown string, up []string, wantUp string) error {
	for _, l := range []struct {
		got  []string
		want string
	}{{down, wantDown}, {up, wantUp}} {
		if len(l.got) != 0 && len(l.got) != levels {
			return fmt.Errorf("%w: %d block types for %d levels of block_out_channels", ErrConfig, len(l.got), levels)
		}
		if i := slices.IndexFunc(l.got, func(s string) bool { return s != l.want }); i >= 0 {
			return fmt.Errorf("%w: block type %q, want %q", ErrConfig, l.got[i], l.want)
		}
	}
	return nil
}

// size is a configuration number and its allowed range, both ends included.
type size struct {
	name      string
	v, lo, hi int
}

func inRange(sizes ...size) error {
	for _, s := range sizes {
		if s.v < s.lo || s.v > s.hi {
			return fmt.Errorf("%w: %s is %d, want %d to %d", ErrConfig, s.name, s.v, s.lo, s.hi)
		}
	}
	return nil
}

// readConfig finds and reads the config.json that belongs to path.
func readConfig(path string) (file string, data []byte, err error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", nil, err
	case info.IsDir():
		path = filepath.Join(path, "config.json")
	case filepath.Ext(path) != ".json":
		path = filepath.Join(filepath.Dir(path), "config.json")
	}
	data, err = os.ReadFile(path)
	return path, data, err
}
