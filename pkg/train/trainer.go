package train

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// Trainer runs one stage. Everything random in step i depends on the seed and on i alone, so that a resumed run is the run that was not stopped.
type Trainer struct {
	Config Config
	Step   int64   // finished optimizer steps
	Peak   float64 // GFLOP/s of a large matrix product on this device, probed by NewTrainer

	device  *bindings.Device
	arena   *tensor.Arena
	tape    *tensor.Tape
	net     *model.FluxIR
	vae     *model.VAE
	prompt  *Prompt
	params  []*tensor.Param // trained ones
	metrics *tensor.Tensor  // [4] F32: loss, flow, pixel, sum of squared gradients
}

// Metrics of one step.
type Metrics struct {
	Step              int64
	Loss, Flow, Pixel float64
	GradNorm          float64 // before clipping
	LR                float64
	Elapsed           time.Duration // of the step
}

// NewTrainer prepares a stage on models that the caller has loaded or initialised into arena. It is called inside Device.Do, as are all methods
// of Trainer except Run.
func NewTrainer(d *bindings.Device, arena *tensor.Arena, net *model.FluxIR, vae *model.VAE, c Config) (*Trainer, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	unit := 2 * vae.Config.Factor()
	if c.Size%unit != 0 {
		return nil, fmt.Errorf("%w: size %d, want a multiple of %d, two latent pixels", ErrConfig, c.Size, unit)
	}
	tr := &Trainer{Config: c, device: d, arena: arena, tape: tensor.NewTape(d), net: net, vae: vae}
	tr.net.Recompute = c.Recompute
	switch c.Stage {
	case StageBase:
		tr.net = &model.FluxIR{Base: net.Base, Recompute: c.Recompute}
		tr.params = net.Base.Params.List
		tr.prompt = &Prompt{}
		var err error
		f := net.Base.Config
		if tr.prompt.Text, err = tensor.FromHost(arena, make([]float32, net.Adapter.Config.TextTokens*f.JointAttentionDim), bindings.F32,
			net.Adapter.Config.TextTokens, f.JointAttentionDim); err != nil {
			return nil, err
		}
		if tr.prompt.Pooled, err = tensor.FromHost(arena, make([]float32, f.PooledDim), bindings.F32, f.PooledDim); err != nil {
			return nil, err
		}
	case StageAdapter:
		tr.params = net.Adapter.Params.List
	case StageTune:
		tr.params = append(append(tr.params, net.Base.Params.List...), net.Adapter.Params.List...)
	}
	for _, p := range tr.params {
		if err := p.Train(arena, c.Average); err != nil {
			return nil, err
		}
	}
	var err error
	if tr.metrics, err = tensor.Empty(arena, bindings.F32, 4); err != nil {
		return nil, err
	}
	tr.Peak, err = probePeak(tr.tape, c.dtype())
	return tr, err
}

// probePeak times a product of matrices that fills the caches and returns the best GFLOP/s: what the step's share of the peak refers to.
func probePeak(t *tensor.Tape, dtype bindings.DType) (float64, error) {
	defer t.Reset()
	const n = 1024
	x, w := t.Fill(t.New(dtype, n, n), 0.5), t.Fill(t.New(dtype, n, n), 0.25)
	best := 0.0
	for range 6 {
		start := time.Now()
		t.Linear(x, w, nil)
		if err := t.Err(); err != nil {
			return 0, err
		}
		if err := t.Device().Sync(); err != nil {
			return 0, err
		}
		best = max(best, 2*n*n*n/1e9/time.Since(start).Seconds())
	}
	return best, nil
}

// Advance runs one optimizer step on a batch.
func (tr *Trainer) Advance(batch *data.Batch) (Metrics, error) {
	t, c := tr.tape, tr.Config
	next := tr.Step + 1
	t.Reset()
	if err := tensor.ZeroGrad(tr.device, tr.params); err != nil {
		return Metrics{}, err
	}
	t.Record()
	out, err := Losses(t, tr.net, tr.vae, tr.prompt, tr.input(batch), c.Loss)
	if err != nil {
		return Metrics{}, err
	}
	t.CopyTo(tr.metrics.Slice(0, 0, 1), out.Total)
	t.CopyTo(tr.metrics.Slice(0, 1, 2), out.Flow)
	if out.Pixel != nil {
		t.CopyTo(tr.metrics.Slice(0, 2, 3), out.Pixel)
	} else {
		t.Fill(tr.metrics.Slice(0, 2, 3), 0)
	}
	if err := t.Backward(out.Total); err != nil {
		return Metrics{}, err
	}
	norm := tr.metrics.Slice(0, 3, 4)
	if err := tensor.SumSquares(tr.device, norm, tr.params); err != nil {
		return Metrics{}, err
	}
	lr := c.learningRate(next)
	args := tensor.AdamW{LR: float32(lr), Beta1: 0.9, Beta2: float32(c.Beta2), Eps: 1e-8, WeightDecay: float32(c.WeightDecay),
		Clip: float32(c.Clip), EMADecay: float32(c.emaDecay(next)), Step: next}
	m, err := tr.read(next, lr)
	if err != nil {
		return m, err
	}
	if err := tensor.StepAdamW(tr.device, tr.params, norm, args); err != nil {
		return m, err
	}
	tr.Step = next
	return m, nil
}

// read fetches the step's figures and refuses a step that is not finite, before it touches the weights.
func (tr *Trainer) read(step int64, lr float64) (Metrics, error) {
	v, err := tr.metrics.Host()
	if err != nil {
		return Metrics{}, err
	}
	m := Metrics{Step: step, Loss: float64(v[0]), Flow: float64(v[1]), Pixel: float64(v[2]), GradNorm: math.Sqrt(float64(v[3])), LR: lr}
	if math.IsNaN(m.Loss+m.GradNorm) || math.IsInf(m.Loss+m.GradNorm, 0) {
		return m, fmt.Errorf("train: step %d: loss %g, gradient norm %g: not finite; the last checkpoint is intact", step, m.Loss, m.GradNorm)
	}
	return m, nil
}

// input draws the random numbers of the next step.
func (tr *Trainer) input(batch *data.Batch) StepInput {
	c, f := tr.Config, tr.vae.Config.Factor()
	h, channels := c.Size/f, tr.vae.Config.LatentChannels
	n := h * h * channels
	in := StepInput{Batch: c.Batch, Height: c.Size, Width: c.Size, HQ: batch.HQ, LQ: batch.LQ, Lambda: 1, Z1: make([]float32, c.Batch*n)}
	first := uint64(tr.Step) * uint64(c.Batch) // index in the run of the batch's first item
	noise := func(values []float32, purpose uint64) {
		for b := range c.Batch {
			bindings.PhiloxNormal(values[b*n:(b+1)*n], c.Seed^purpose, first+uint64(b), 0)
		}
	}
	noise(in.Z1, 0)
	if len(tr.vae.Config.BlockOutChannels) > 0 {
		in.Eps = make([]float32, c.Batch*n)
		noise(in.Eps, 1<<63)
	}
	rng := rand.NewPCG(c.Seed, uint64(tr.Step))
	in.Time = c.Time.Draw(rng, c.Batch, model.ShiftMu(h/2*(h/2)))
	draw := rand.New(rng)
	if c.Stage != StageBase {
		in.Keep = make([]float32, c.Batch)
		in.Guidance = make([]float32, c.Batch)
		for b := range in.Keep {
			if draw.Float64() >= c.Dropout {
				in.Keep[b] = 1
			}
			in.Guidance[b] = float32(tr.net.Adapter.Config.Guidance)
		}
	}
	in.Crop = Window{0, 0, h, h}
	if s := c.Loss.Crop; s > 0 && s < h {
		in.Crop = Window{draw.IntN(h - s + 1), draw.IntN(h - s + 1), s, s}
	}
	return in
}

// Hooks are what the loop calls; nil ones are skipped.
type Hooks struct {
	Log      func(r Record) error // every Config.LogEvery steps
	Save     func() error         // called inside Device.Do
	Validate func() error         // called inside Device.Do, after Save
}

// Run trains until the stage's last step or until ctx ends, in which case the current step is finished. The state is saved every Config.SaveEvery steps and
// at the end. Not called inside Device.Do.
func (tr *Trainer) Run(ctx context.Context, loader *data.PatchLoader, hooks Hooks) error {
	if err := loader.SeekTo(tr.Step); err != nil {
		return err
	}
	mark, since, flops := tr.Step, time.Now(), int64(0)
	for tr.Step < tr.Config.Steps && ctx.Err() == nil {
		batch, err := loader.Next()
		if err != nil {
			return err
		}
		var m Metrics
		err = tr.device.Do(func() error {
			if m, err = tr.Advance(batch); err != nil {
				return err
			}
			flops += tr.tape.FLOPs()
			if tr.Step%tr.Config.SaveEvery != 0 {
				return nil
			}
			return tr.save(hooks)
		})
		if err != nil {
			return err
		}
		if hooks.Log != nil && tr.Step%tr.Config.LogEvery == 0 {
			seconds := time.Since(since).Seconds()
			r := Record{Stage: tr.Config.Stage, Step: m.Step, Loss: m.Loss, Flow: m.Flow, Pixel: m.Pixel, GradNorm: m.GradNorm, LR: m.LR,
				Images: (tr.Step - mark) * int64(tr.Config.Batch), Seconds: seconds, GFLOPs: float64(flops) / 1e9 / seconds}
			r.PeakShare = r.GFLOPs / tr.Peak
			if err := hooks.Log(r); err != nil {
				return err
			}
			mark, since, flops = tr.Step, time.Now(), 0
		}
	}
	if tr.Step%tr.Config.SaveEvery == 0 {
		return nil
	}
	return tr.device.Do(func() error { return tr.save(hooks) })
}

func (tr *Trainer) save(hooks Hooks) error {
	for _, f := range []func() error{hooks.Save, hooks.Validate} {
		if f == nil {
			continue
		}
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// FLOPs is the number of multiplications and additions in the matrix products, convolutions and attention of the last step.
func (tr *Trainer) FLOPs() int64 { return tr.tape.FLOPs() }

// Close frees the tape's memory; the weights are the caller's.
func (tr *Trainer) Close() { tr.tape.Free() }
