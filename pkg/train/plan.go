package train

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/monitor"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// ErrMemory is wrapped by the refusal of a run that cannot fit.
var ErrMemory = errors.New("not enough memory")

// Plan is the memory of the device that a stage takes, in bytes (in one of several processes, each with its share of a batch), found by running one step and one validation of it on the dry device (bindings).
type Plan struct {
	Config      Config
	Weights     int64 // working copies: base, adapter
	Autoencoder int64 // its weights
	Gradients   int64 // F32
	Optimizer   int64 // masters (where the working copy is not F32), two moments, average
	Activations int64 // arenas of the tape: activations, their gradients, latents
	Workspace   int64 // of the ops
	Peak        int64
	FLOPs       int64 // of one step

	free int64 // what the run may take
}

// MakePlan plans the stage of s. Where the images alone are more than most bytes, Peak is only their size and the rest 0.
func MakePlan(s Settings, most int64) (Plan, error) {
	p := Plan{Config: s.Config, Peak: 2 * 3 * 4 * int64(s.Batch/s.processes.Size()) * int64(s.Size) * int64(s.Size)}
	if p.Peak > most {
		return p, nil
	}
	d, err := bindings.OpenDevice("dry", s.Threads)
	if err != nil {
		return p, err
	}
	defer d.Close()
	return p, d.Do(func() error { return p.run(s, d) })
}

func (p *Plan) run(s Settings, d *bindings.Device) error {
	c := s.Config
	_, c.Batch = s.processes.share(c.Batch)
	arena := s.arena(d)
	defer arena.Free()
	b, err := s.shapes(arena)
	if err != nil {
		return err
	}
	tr, err := NewTrainer(d, arena, b.Net, b.VAE, c)
	if err != nil {
		return err
	}
	defer tr.Close()
	tr.dry = true
	n := c.Batch * c.Size * c.Size * 3
	r, err := tr.Advance(&data.Batch{HQ: make([]float32, n), LQ: make([]float32, n)})
	if err != nil {
		return err
	}
	if c.Stage != StageBase {
		if _, err := tr.restore(make([]float32, 3*validationSize*validationSize), validationSize, 0); err != nil {
			return err
		}
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	p.Peak, p.FLOPs, p.Activations = info.Peak, r.flops*int64(c.Accumulate*s.processes.Size()), tr.tape.Bytes()
	p.Workspace, p.Weights = p.Peak-p.Activations-arena.Bytes(), arena.SlotBytes()
	bytes := func(t *tensor.Tensor) int64 { return int64(t.Len() * t.DType().Size()) }
	for _, x := range b.VAE.Params.List {
		p.Autoencoder += bytes(x.Value)
	}
	for _, x := range append(append([]*tensor.Param(nil), b.Net.Base.Params.List...), b.Net.Adapter.Params.List...) {
		if !x.Streamed() {
			p.Weights += bytes(x.Value)
		}
		if !x.Trained() {
			continue
		}
		p.Gradients += bytes(x.Grad)
		for _, state := range states(x) {
			if state != x.Value {
				p.Optimizer += bytes(state)
			}
		}
	}
	return nil
}

// arena is for the weights of a stage.
func (s Settings) arena(d *bindings.Device) *tensor.Arena {
	a := tensor.NewArena(d)
	if s.Stream && s.Stage == StageAdapter {
		a.Slots = tensor.StreamSlots
	}
	return a
}

// shapes are the networks of a stage without their weights.
func (s Settings) shapes(arena *tensor.Arena) (*model.Bundle, error) {
	folder := s.Warm
	if folder == "" {
		folder = s.Model
	}
	config := model.DefaultAdapterConfig()
	if folder == "" || folder == ModelNano {
		config = NanoAdapter()
	}
	config.Routing = s.Adapter
	if folder == "" || folder == ModelNano {
		return model.NewBundle(arena, NanoFlux(), NanoVAE(), config, s.dtype(), bindings.F32)
	}
	if s.Warm != "" {
		var err error
		if config, err = model.ReadAdapterConfig(folder); err != nil {
			return nil, err
		}
	}
	return model.ShapeBundle(arena, folder, config, s.dtype(), bindings.F32)
}

// Print writes the plan as a table; of one that was not made because the images alone are too much it writes nothing.
func (p Plan) Print(w io.Writer) {
	if p.FLOPs == 0 {
		return
	}
	fmt.Fprintf(w, "| memory of %s, batch %d, %d pixels, %s%s | MB |\n|---|---|\n", p.Config.Stage, p.Config.Batch, p.Config.Size, p.Config.DType,
		map[bool]string{true: ", recompute"}[p.Config.Recompute])
	for _, row := range []struct {
		name  string
		bytes int64
	}{
		{"weights of base and adapter", p.Weights}, {"weights of the autoencoder", p.Autoencoder}, {"gradients", p.Gradients},
		{"optimizer: masters, moments, average", p.Optimizer}, {"activations, the autoencoder's too", p.Activations}, {"workspace of ops", p.Workspace},
		{"unused ends of the arenas' blocks", p.Peak - p.Weights - p.Autoencoder - p.Gradients - p.Optimizer - p.Activations - p.Workspace},
		{"predicted peak", p.Peak},
	} {
		fmt.Fprintf(w, "| %s | %.1f |\n", row.name, float64(row.bytes)/1e6)
	}
	if p.free < math.MaxInt64 {
		fmt.Fprintf(w, "| may be taken | %.1f |\n", float64(p.free)/1e6)
	}
	fmt.Fprintf(w, "\n%.3g TFLOP a step\n", float64(p.FLOPs)/1e12)
}

// CheckMemory plans s and refuses it where its peak is above the memory that it may take, naming changes with which it would fit.
func CheckMemory(s Settings) (Plan, error) {
	free, ok := monitor.Free(s.Device)
	if !ok {
		free = math.MaxInt64
	} else if s.Device == "cpu" {
		free /= int64(s.processes.local())
	}
	if limit := int64(s.Memory * 1e6); limit > 0 {
		free = min(free, limit)
	}
	p, err := MakePlan(s, free)
	p.free = free
	if err != nil || p.Peak <= free {
		return p, err
	}
	hint := "no option makes it fit"
	var changes []string
	for _, option := range []func(c *Config) string{
		func(c *Config) string { c.Recompute = true; return "--recompute" },
		func(c *Config) string { c.DType = "bf16"; return "--dtype bf16" },
		func(c *Config) string {
			least := s.processes.Size()
			c.Accumulate, c.Batch = c.Accumulate*c.Batch/least, least
			return fmt.Sprintf("--batch %d --accumulate %d", c.Batch, c.Accumulate)
		},
		func(c *Config) string { s.Stream = c.Stage == StageAdapter; return "--stream" },
	} {
		before, streamed := s.Config, s.Stream
		if name := option(&s.Config); before == s.Config && streamed == s.Stream {
			continue
		} else {
			changes = append(changes, name)
		}
		if smaller, err := MakePlan(s, free); err == nil && smaller.Peak <= free {
			hint = fmt.Sprintf("it would with %s: %.1f MB", strings.Join(changes, " "), float64(smaller.Peak)/1e6)
			break
		}
	}
	return p, fmt.Errorf("%w: stage %s takes %.1f MB of %.1f MB on %s; %s", ErrMemory, p.Config.Stage, float64(p.Peak)/1e6, float64(free)/1e6, s.Device, hint)
}
