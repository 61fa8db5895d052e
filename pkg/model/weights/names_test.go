package weights_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/internal/golden"
	"github.com/fluxir/fluxir/pkg/model/weights"
)

// numbered makes a file in memory that has every part of the parameters, values counting up over the file in order of the names.
func numbered(t *testing.T, params []weights.Param) weights.Source {
	var entries []weights.Entry
	next := float32(0)
	for _, p := range params {
		for _, part := range p.Parts {
			n := 1
			for _, d := range part.Shape {
				n *= d
			}
			values := make([]float32, n)
			for i := range values {
				values[i] = next
				next++
			}
			entries = append(entries, weights.Float32Entry(part.Name, weights.F32, part.Shape, values))
		}
	}
	var b bytes.Buffer
	if err := weights.Encode(&b, entries, nil); err != nil {
		t.Fatal(err)
	}
	f, err := weights.Parse("numbered", b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func load(t *testing.T, src weights.Source, p *weights.Param) []float32 {
	t.Helper()
	v, err := p.Load(src)
	if err != nil {
		t.Fatal(err)
	}
	f, err := weights.Float32s(v)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// checkInverse loads every parameter and cuts it back: the parts must be what the file has.
func checkInverse(t *testing.T, src weights.Source, params []weights.Param) {
	t.Helper()
	for i := range params {
		p := &params[i]
		for j, values := range weights.Split(p, load(t, src, p)) {
			v, err := src.Tensor(p.Parts[j].Name)
			if err != nil {
				t.Fatal(err)
			}
			if want, err := weights.Float32s(v); err != nil || !slices.Equal(values, want) {
				t.Errorf("%s cut back to %s differs (%v)", p.Name, p.Parts[j].Name, err)
			}
		}
	}
	if extra := weights.Unused(src, params); len(extra) != 0 {
		t.Errorf("tensors left over: %v", extra)
	}
}

var small = &weights.FluxConfig{
	Class: "FluxTransformer2DModel", PatchSize: 1, InChannels: 3, OutChannels: 2, NumLayers: 2, NumSingleLayers: 1, AttentionHeadDim: 2,
	NumAttentionHeads: 1, JointAttentionDim: 3, PooledDim: 1, GuidanceEmbeds: true, AxesDimsRope: []int{0, 0, 2}, Prediction: weights.PredictVelocity,
}

func TestFluxParams(t *testing.T) {
	if err := small.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, layout := range []weights.Layout{weights.Original, weights.Diffusers} {
		params := weights.FluxParams(small, layout)
		src := numbered(t, params)
		if got, err := weights.DetectFlux(src); err != nil || got != layout {
			t.Errorf("detected %v, %v, want %v", got, err, layout)
		}
		checkInverse(t, src, params)
		for i, p := range weights.FluxParams(small, weights.Original) {
			if params[i].Name != p.Name || !slices.Equal(params[i].Shape, p.Shape) {
				t.Errorf("%v: parameter %d is %s %v, original has %s %v", layout, i, params[i].Name, params[i].Shape, p.Name, p.Shape)
			}
		}
	}
	block := weights.DoubleBlockParams(small, "block.")
	if len(block) != 24 || block[0].Name != "block.img_mod.lin.weight" || block[23].Name != "block.txt_mlp.2.bias" {
		t.Errorf("a double block alone: %v", block)
	}
}

func TestVAEParams(t *testing.T) {
	c := &weights.VAEConfig{Class: "AutoencoderKL", InChannels: 3, OutChannels: 3, LatentChannels: 2, BlockOutChannels: []int{2, 4, 4},
		LayersPerBlock: 2, NormNumGroups: 2, MidAttention: true, ScalingFactor: 1, ActFn: "silu", SpaceToDepthShortcut: 4}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	original := weights.VAEParams(c, weights.Original)
	diffusers := weights.VAEParams(c, weights.Diffusers)
	byName := map[string]string{}
	for i, p := range original {
		if p.Name != diffusers[i].Name || len(p.Parts) != 1 || diffusers[i].Parts[0].Name != p.Name {
			t.Errorf("parameter %d: %s, %s", i, p.Name, diffusers[i].Name)
		}
		byName[p.Name] = p.Parts[0].Name
	}
	// A few by hand from black-forest-labs/flux: src/flux/modules/autoencoder.py.
	for internal, want := range map[string]string{
		"encoder.down_blocks.1.resnets.0.conv_shortcut.weight": "encoder.down.1.block.0.nin_shortcut.weight",
		"encoder.down_blocks.0.downsamplers.0.conv.bias":       "encoder.down.0.downsample.conv.bias",
		"encoder.mid_block.attentions.0.to_out.0.weight":       "encoder.mid.attn_1.proj_out.weight",
		"decoder.mid_block.attentions.0.group_norm.bias":       "decoder.mid.attn_1.norm.bias",
		"decoder.mid_block.resnets.1.norm2.weight":             "decoder.mid.block_2.norm2.weight",
		"decoder.up_blocks.0.resnets.2.conv1.weight":           "decoder.up.2.block.2.conv1.weight",
		"decoder.up_blocks.2.resnets.0.conv_shortcut.weight":   "decoder.up.0.block.0.nin_shortcut.weight",
		"decoder.up_blocks.1.upsamplers.0.conv.weight":         "decoder.up.1.upsample.conv.weight",
		"decoder.conv_norm_out.weight":                         "decoder.norm_out.weight",
		"decoder.shortcut.weight":                              "decoder.shortcut.weight",
	} {
		if byName[internal] != want {
			t.Errorf("%s is %q in the original, want %q", internal, byName[internal], want)
		}
	}
	for _, params := range [][]weights.Param{original, diffusers} {
		checkInverse(t, numbered(t, params), params)
	}
	c.SpaceToDepthShortcut = 0
	for _, layout := range []weights.Layout{weights.Original, weights.Diffusers} {
		if got, err := weights.DetectVAE(numbered(t, weights.VAEParams(c, layout))); err != nil || got != layout {
			t.Errorf("detected %v, %v, want %v", got, err, layout)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	params := weights.FluxParams(small, weights.Diffusers)
	i := slices.IndexFunc(params, func(p weights.Param) bool { return p.Name == "double_blocks.1.img_attn.qkv.weight" })
	qkv := params[i]
	file := func(dtypeV weights.DType, rowsV int) weights.Source {
		var b bytes.Buffer
		err := weights.Encode(&b, []weights.Entry{
			weights.Float32Entry("transformer_blocks.1.attn.to_q.weight", weights.F32, []int{2, 2}, make([]float32, 4)),
			weights.Float32Entry("transformer_blocks.1.attn.to_k.weight", weights.F32, []int{2, 2}, make([]float32, 4)),
			weights.Float32Entry("transformer_blocks.1.attn.to_v.weight", dtypeV, []int{rowsV, 2}, make([]float32, 2*rowsV)),
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		f, err := weights.Parse("x.safetensors", b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if _, err := qkv.Load(file(weights.F32, 2)); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for _, c := range []struct {
		p    *weights.Param
		src  weights.Source
		kind error
	}{
		{&qkv, file(weights.F32, 1), weights.ErrShape},
		{&qkv, file(weights.BF16, 2), weights.ErrDType},
		{&params[0], file(weights.F32, 2), weights.ErrMissingTensor},
	} {
		_, err := c.p.Load(c.src)
		if !errors.Is(err, c.kind) || !strings.HasPrefix(err.Error(), "x.safetensors: tensor ") {
			t.Errorf("got %v, want %v", err, c.kind)
		}
	}
	if _, err := weights.DetectFlux(file(weights.F32, 2)); !errors.Is(err, weights.ErrMissingTensor) {
		t.Errorf("neither layout: %v", err)
	}
}

// openFlux opens a fixture's transformer with its configuration and parameter table.
func openFlux(t *testing.T, path string) (weights.Source, []weights.Param) {
	t.Helper()
	c, err := weights.ReadFluxConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	src, err := weights.OpenSet(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	layout, err := weights.DetectFlux(src)
	if err != nil {
		t.Fatal(err)
	}
	return src, weights.FluxParams(c, layout)
}

// TestGoldenFluxNames loads every transformer of the fixtures: each tensor of the file is used, each parameter found, and cut back.
// A fixture under the original names must hold the very values of the model that it was made from.
func TestGoldenFluxNames(t *testing.T) {
	golden.ForEach(t, []string{"flux"}, func(t *testing.T, f *golden.Fixture) {
		src, params := openFlux(t, f.Model(t, "transformer"))
		checkInverse(t, src, params)
		origin := filepath.Join(f.Dir, filepath.Dir(f.IO), "transformer")
		if filepath.Dir(f.IO) == "." {
			return
		}
		other, otherParams := openFlux(t, origin)
		for i := range params {
			if got, want := load(t, src, &params[i]), load(t, other, &otherParams[i]); !slices.Equal(got, want) {
				t.Errorf("%s differs from %s", params[i].Name, origin)
			}
		}
	})
}

func TestGoldenVAENames(t *testing.T) {
	golden.ForEach(t, []string{"vae"}, func(t *testing.T, f *golden.Fixture) {
		path := f.Model(t, "vae")
		c, err := weights.ReadVAEConfig(path)
		if err != nil {
			t.Fatal(err)
		}
		if want := golden.Param[int](t, f, "vae_factor"); c.Factor() != want {
			t.Errorf("factor %d, want %d", c.Factor(), want)
		}
		src, err := weights.OpenSet(path)
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		layout, err := weights.DetectVAE(src)
		if err != nil {
			t.Fatal(err)
		}
		checkInverse(t, src, weights.VAEParams(c, layout))
	})
}
