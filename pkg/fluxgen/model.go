package fluxgen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/model/nano"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// The two ways to sample without a prompt.
const (
	PriorBase    = "base"    // the plain base with the empty prompt: the paper's
	PriorAdapter = "adapter" // base and adapter with z_lq = 0, which a jointly tuned model was trained for
)

// ModelOptions say what generates and how. Steps, sizes, guidance, prior and batch are part of a set: other values make other pictures.
type ModelOptions struct {
	Model   string // folder of a bundle or of FLUX.1; "" = the embedded model
	Empty   string // safetensors file with the empty prompt's embeddings, text [T,J] and pooled [Y]; "" = zeros, which the embedded base was trained with
	Device  string // cpu, cuda, cuda:N; "" or auto
	Threads int
	DType   string // f32 or bf16; "" = f32
	Sampling
}

// Sampling is the part of a set's configuration that its pictures depend on.
type Sampling struct {
	Seed     uint64  `json:"seed"`
	Width    int     `json:"width"`
	Height   int     `json:"height"`
	Steps    int     `json:"steps"`
	Guidance float64 `json:"guidance"`
	Prior    string  `json:"prior"`
	Batch    int     `json:"batch"` // pictures evaluated together; the last bits of a matrix product may depend on it
	DType    string  `json:"dtype"`
	Model    string  `json:"model"` // SHA-256 of its files
	Empty    string  `json:"empty"` // SHA-256 of the empty prompt's embeddings, "" for zeros
}

// Generator makes pictures first, first+1, ... first+n-1 of a run.
type Generator interface {
	Generate(ctx context.Context, first, n int) ([]*data.Image, error)
}

// Model is a text-to-image model on a device.
type Model struct {
	Sampling
	device *bindings.Device
	arena  *tensor.Arena
	tape   *tensor.Tape
	bundle *model.Bundle
	text   []float32 // [T,J]
	pooled []float32 // [Y]
	shift  bool
}

// OpenModel loads a model and fills in what the options leave open.
func OpenModel(o ModelOptions) (*Model, error) {
	d, err := bindings.OpenDevice(deviceName(o.Device), o.Threads)
	if err != nil {
		return nil, err
	}
	m := &Model{Sampling: o.Sampling, device: d}
	err = d.Do(func() error {
		m.arena, m.tape = tensor.NewArena(d), tensor.NewTape(d)
		return m.load(o)
	})
	if err == nil {
		err = m.settle()
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func deviceName(name string) string {
	if name != "" && name != "auto" {
		return name
	}
	if d, err := bindings.OpenDevice("cuda", 0); err == nil {
		d.Close()
		return "cuda"
	}
	return "cpu"
}

// load reads bundle and embeddings.
func (m *Model) load(o ModelOptions) (err error) {
	dtype := bindings.F32
	if m.DType == "" {
		m.DType = "f32"
	}
	if m.DType == "bf16" {
		dtype = bindings.BF16
	}
	if o.Model == "" {
		if m.bundle, err = nano.Load(m.arena, dtype); err != nil {
			return err
		}
		m.Sampling.Model, err = model.HashBundle(nano.Files())
	} else {
		read := func() (*model.Bundle, error) { return model.LoadBundle(m.arena, o.Model, "", dtype, bindings.F32) }
		if _, err := os.Stat(filepath.Join(o.Model, "adapter.safetensors")); errors.Is(err, os.ErrNotExist) {
			read = func() (*model.Bundle, error) { return model.LoadBase(m.arena, o.Model, dtype, bindings.F32) }
		}
		if m.bundle, err = read(); err != nil {
			return err
		}
		m.Sampling.Model, err = model.HashBundle(os.DirFS(o.Model))
	}
	if err != nil {
		return err
	}
	return m.loadText(o.Empty)
}

// loadText reads the empty prompt's embeddings, or takes zeros where the base was trained with them.
func (m *Model) loadText(file string) error {
	c, ad := m.bundle.Net.Base.Config, m.bundle.Net.Adapter
	if file == "" {
		if c.Prediction == weights.PredictSample && ad != nil {
			m.text = make([]float32, ad.Config.TextTokens*c.JointAttentionDim)
			m.pooled = make([]float32, c.PooledDim)
		}
		return nil
	}
	src, err := weights.OpenSet(file)
	if err != nil {
		return err
	}
	defer src.Close()
	read := func(name string, width, rank int) []float32 {
		var t weights.Tensor
		if err == nil {
			t, err = src.Tensor(name)
		}
		if err == nil && (len(t.Shape) != rank || t.Shape[rank-1] != width) {
			err = fmt.Errorf("%s: %s has shape %v, want %d numbers a row", file, name, t.Shape, width)
		}
		var values []float32
		if err == nil {
			values, err = weights.Float32s(t)
		}
		return values
	}
	m.text, m.pooled = read("text", c.JointAttentionDim, 2), read("pooled", c.PooledDim, 1)
	if err == nil {
		m.Sampling.Empty, err = hashFile(file)
	}
	return err
}

// settle fills in the family's defaults and checks the sampling.
func (m *Model) settle() error {
	c, ad := m.bundle.Net.Base.Config, m.bundle.Net.Adapter
	side, steps, batch, prior := 1024, 20, 1, PriorBase
	m.shift = true
	switch {
	case c.Prediction == weights.PredictSample:
		side, steps, batch, prior = 128, 30, 4, PriorAdapter
	case !c.GuidanceEmbeds: // schnell
		steps, m.shift = 4, false
	}
	m.Width, m.Height = or(m.Width, side), or(m.Height, side)
	m.Steps, m.Batch, m.Prior = or(m.Steps, steps), or(m.Batch, batch), or(m.Prior, prior)
	m.Guidance = or(m.Guidance, 3.5)
	unit := 2 * m.bundle.VAE.Config.Factor()
	switch {
	case m.Width%unit != 0 || m.Height%unit != 0 || m.Width < unit || m.Height < unit:
		return fmt.Errorf("size: got %dx%d, want multiples of %d pixels", m.Width, m.Height, unit)
	case m.Width*m.Height > data.DefaultMaxPixels:
		return fmt.Errorf("size: %dx%d pixels are more than %d", m.Width, m.Height, data.DefaultMaxPixels)
	case m.Steps < 1 || m.Steps > 1000:
		return fmt.Errorf("steps: got %d, want 1 to 1000", m.Steps)
	case m.Batch < 1 || m.Batch > 1024:
		return fmt.Errorf("batch: got %d, want 1 to 1024", m.Batch)
	case m.Prior != PriorBase && m.Prior != PriorAdapter:
		return fmt.Errorf("prior: got %q, want %s or %s", m.Prior, PriorBase, PriorAdapter)
	case m.Prior == PriorAdapter && ad == nil:
		return fmt.Errorf("prior: the model has no adapter; want %s", PriorBase)
	case m.Prior == PriorAdapter && ad.Config.BaseText != model.TextLearned && m.text == nil, m.Prior == PriorBase && m.text == nil:
		return fmt.Errorf("the model needs the empty prompt's embeddings: name a safetensors file with text [T,%d] and pooled [%d] (--empty-prompt)",
			c.JointAttentionDim, c.PooledDim)
	}
	return nil
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// Close frees the model and the device.
func (m *Model) Close() {
	m.device.Do(func() error {
		if m.tape != nil {
			m.tape.Free()
			m.arena.Free()
		}
		return nil
	})
	m.device.Close()
}

// Generate samples n pictures from first on. Picture i has noise of key data.Mix(Seed, i) and stream i. Always Batch items are evaluated, so that a picture's
// bits do not depend on how many are asked for; first is a multiple of Batch and n at most Batch.
func (m *Model) Generate(ctx context.Context, first, n int) ([]*data.Image, error) {
	v := m.bundle.VAE.Config
	shape := []int{m.Batch, m.Height / v.Factor(), m.Width / v.Factor(), v.LatentChannels}
	size := shape[1] * shape[2] * shape[3]
	noise := make([]float32, m.Batch*size)
	for k := range m.Batch {
		i := uint64(first + k)
		model.Noise(noise[k*size:(k+1)*size], data.Mix(m.Seed, i), i, 0)
	}
	var out []*data.Image
	err := m.device.Do(func() error {
		t := m.tape
		t.Reset()
		o := model.SampleOptions{Steps: m.Steps, Start: 1, Shift: m.shift, Guidance: float32(m.Guidance)}
		if m.text != nil {
			o.Prompt = t.Repeat(t.Upload(m.text, bindings.F32, len(m.text)/m.bundle.Net.Base.Config.JointAttentionDim, m.bundle.Net.Base.Config.JointAttentionDim), m.Batch, bindings.F32)
			o.Pooled = t.Repeat(t.Upload(m.pooled, bindings.F32, len(m.pooled)), m.Batch, bindings.F32)
		}
		net := &model.FluxIR{Base: m.bundle.Net.Base}
		var condition *tensor.Tensor
		if m.Prior == PriorAdapter {
			net.Adapter = m.bundle.Net.Adapter
			o.Lambda = float32(net.Adapter.Config.Lambda)
			condition = t.Fill(t.New(bindings.F32, shape...), 0)
		}
		z, err := net.Sample(ctx, t, t.Upload(noise, bindings.F32, shape...), condition, o, nil)
		if err != nil {
			return err
		}
		for k := range n {
			if err := ctx.Err(); err != nil {
				return err
			}
			pixels := t.Scope(func() []*tensor.Tensor {
				return []*tensor.Tensor{m.bundle.VAE.Decode(t, t.Copy(z.Slice(0, k, k+1)))}
			})[0]
			values, err := pixels.Host()
			if err != nil {
				return err
			}
			img := data.New(m.Width, m.Height)
			for j, v := range values {
				img.Pix[j] = v/2 + 0.5
			}
			out = append(out, img)
		}
		return t.Err()
	})
	return out, err
}
