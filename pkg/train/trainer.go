package train

import (
	"context"
	"errors"
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
	Peak   float64 // GFLOP/s that the device is known to reach: probed, and raised by a step that was faster; 0: cannot be measured
	Gain   float64 // mean of the last validation in dB, NaN before one; stored with a state saved in the same step

	device  *bindings.Device
	tape    *tensor.Tape
	net     *model.FluxIR
	vae     *model.VAE
	prompt  *Prompt
	params  []*tensor.Param // trained ones
	groups  []group
	metrics *tensor.Tensor // [3 + 1 + groups] F32: loss, flow, pixel; sums of squared gradients, of all and of each group
	clock   stopwatch
	latents *Latents // nil: every crop is encoded

	processes *Processes     // nil: one
	reducer   *reducer       // of several processes
	figures   *tensor.Tensor // [4] F32, summed with the gradients: loss, flow, pixel, how many processes were asked to stop
	stop      bool           // one of them was

	frozenHash string // FrozenHash at the start
	manifest   string // SHA-256 of the pairs' manifest, "": none
	dry        bool   // on the dry device: no random numbers are needed
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
	tr := &Trainer{Config: c, Gain: math.NaN(), device: d, tape: tensor.NewTape(d), net: net, vae: vae, clock: newStopwatch()}
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
	tr.groups = tr.makeGroups()
	var err error
	if tr.metrics, err = tensor.Empty(arena, bindings.F32, 4+len(tr.groups)); err != nil {
		return nil, err
	}
	return tr, tr.probe()
}

// Join lets the trainer be one of several processes with the same models: each step sums their gradients.
func (tr *Trainer) Join(arena *tensor.Arena, p *Processes) (err error) {
	if p == nil {
		return nil
	}
	tr.processes, tr.reducer = p, &reducer{comm: p.comm, device: tr.device, sent: map[*tensor.Param]bool{}}
	tr.tape.OnGrad(func(param *tensor.Param) { tr.tape.Note("all-reduce", tr.reducer.ready(param)) })
	tr.figures, err = tensor.Empty(arena, bindings.F32, 4)
	return err
}

// probe measures the device's peaks and keeps the best: a probe beside other programs is too low.
func (tr *Trainer) probe() error {
	kinds := []bindings.Probe{bindings.ProbeF32}
	if tr.Config.DType == "bf16" {
		kinds = append(kinds, bindings.ProbeBF16, bindings.ProbeMatrix)
	}
	for _, kind := range kinds {
		rate, err := tr.device.Probe(kind, 50*time.Millisecond)
		if e := (*bindings.Error)(nil); errors.As(err, &e) && e.Status == bindings.StatusUnsupported {
			continue
		}
		if err != nil {
			return err
		}
		tr.Peak = max(tr.Peak, rate)
	}
	return nil
}

// Advance runs one optimizer step on one batch, whatever Accumulate is: for timing.
func (tr *Trainer) Advance(batch *data.Batch) (r Record, err error) {
	if err := tr.begin(); err != nil {
		return r, err
	}
	if err := tr.backward(batch, &r, true); err != nil {
		return r, err
	}
	return r, tr.update(&r)
}

// reduce ends the sums of gradients and losses over the processes, and tells all whether one of them was asked to stop.
func (tr *Trainer) reduce(ctx context.Context, r *Record) error {
	tr.stop = ctx.Err() != nil
	if tr.reducer == nil {
		return nil
	}
	asked := float32(0)
	if tr.stop {
		asked = 1
	}
	if err := tr.figures.Set([]float32{float32(r.Loss), float32(r.Flow), float32(r.Pixel), asked}); err != nil {
		return err
	}
	if err := tr.reducer.finish(tr.params, tr.figures); err != nil {
		return err
	}
	v, err := tr.figures.Host()
	if err != nil {
		return err
	}
	r.Loss, r.Flow, r.Pixel, tr.stop = float64(v[0]), float64(v[1]), float64(v[2]), v[3] > 0
	tr.lap("reduce")
	return nil
}

// stopped tells whether the loop ends here. Several processes have agreed on it in reduce.
func (tr *Trainer) stopped(ctx context.Context) bool {
	if tr.reducer != nil {
		return tr.stop
	}
	return ctx.Err() != nil
}

// begin clears the gradients of the next step.
func (tr *Trainer) begin() error { return tensor.ZeroGrad(tr.device, tr.params) }

// backward adds the gradients of one of the step's batches, each weighing 1/Accumulate, and its losses to r. In the last one the processes sum them.
func (tr *Trainer) backward(batch *data.Batch, r *Record, last bool) error {
	t, c := tr.tape, tr.Config
	t.Reset()
	t.Record()
	in := tr.input(batch)
	in.Lap = tr.lap
	out, err := Losses(t, tr.net, tr.vae, tr.prompt, in, c.Loss)
	if err != nil {
		return err
	}
	share := 1 / float64(c.Accumulate*tr.processes.Size())
	cotangent := t.Upload([]float32{float32(share)}, bindings.F32, 1)
	t.CopyTo(tr.metrics.Slice(0, 0, 1), out.Total)
	t.CopyTo(tr.metrics.Slice(0, 1, 2), out.Flow)
	if out.Pixel != nil {
		t.CopyTo(tr.metrics.Slice(0, 2, 3), out.Pixel)
	} else {
		t.Fill(tr.metrics.Slice(0, 2, 3), 0)
	}
	v, err := tr.metrics.Slice(0, 0, 3).Host()
	if err := errors.Join(t.Err(), err); err != nil {
		return err
	}
	if !finite(float64(v[0])) {
		return tr.notFinite(fmt.Sprintf("loss %g (flow %g, pixel %g)", v[0], v[1], v[2]), out)
	}
	r.Loss, r.Flow, r.Pixel = r.Loss+share*float64(v[0]), r.Flow+share*float64(v[1]), r.Pixel+share*float64(v[2])
	if tr.reducer != nil {
		tr.reducer.open = last
	}
	err = t.BackwardFrom([]*tensor.Tensor{out.Total}, []*tensor.Tensor{cotangent})
	tr.lap("backward")
	r.flops += t.FLOPs()
	return err
}

// lap books the time of device work to a part of the step. Inside Device.Do.
func (tr *Trainer) lap(part string) {
	tr.tape.Note("sync", tr.device.Sync())
	tr.clock.lap(part)
}

// update changes the weights by the gradients of the step, unless they are not finite.
func (tr *Trainer) update(r *Record) error {
	c, next := tr.Config, tr.Step+1
	norm := tr.metrics.Slice(0, 3, 4)
	if err := tensor.SumSquares(tr.device, norm, tr.params); err != nil {
		return err
	}
	logged := next%c.LogEvery == 0
	var before [][][]float32
	for i, g := range tr.groups {
		if !logged {
			break
		}
		if err := tensor.SumSquares(tr.device, tr.metrics.Slice(0, 4+i, 5+i), g.params); err != nil {
			return err
		}
		values, err := g.masters()
		if err != nil {
			return err
		}
		before = append(before, values)
	}
	v, err := tr.metrics.Host()
	if err != nil {
		return err
	}
	r.Stage, r.Step, r.GradNorm, r.LR = c.Stage, next, math.Sqrt(float64(v[3])), c.learningRate(next)
	if !finite(r.GradNorm) {
		return tr.notFinite(fmt.Sprintf("gradient norm %g", r.GradNorm), StepOutput{})
	}
	for _, g := range tr.groups {
		args := tensor.AdamW{LR: float32(r.LR * g.rate), Beta1: 0.9, Beta2: float32(c.Beta2), Eps: 1e-8, WeightDecay: float32(c.WeightDecay),
			Clip: float32(c.Clip), EMADecay: float32(c.emaDecay(next)), Step: next}
		if err := tensor.StepAdamW(tr.device, g.params, norm, args); err != nil {
			return err
		}
	}
	tr.Step = next
	if logged {
		r.Groups = map[string]GroupRecord{}
		for i, g := range tr.groups {
			change, err := g.change(before[i])
			if err != nil {
				return err
			}
			r.Groups[g.name] = GroupRecord{GradNorm: math.Sqrt(float64(v[4+i])), Change: change}
		}
	}
	tr.lap("optimizer")
	return tr.tape.Err()
}

// input draws the random numbers that go with this process's share of a batch: those of the whole batch, of which it takes its own.
func (tr *Trainer) input(batch *data.Batch) StepInput {
	c, f := tr.Config, tr.vae.Config.Factor()
	h, channels := c.Size/f, tr.vae.Config.LatentChannels
	n := h * h * channels
	low, count := tr.processes.share(c.Batch)
	in := StepInput{Batch: count, Height: c.Size, Width: c.Size, HQ: batch.HQ, LQ: batch.LQ, Lambda: 1, Latents: tr.latents, Z1: make([]float32, count*n)}
	first := uint64(batch.Step)*uint64(c.Batch) + uint64(low) // index in the run of the share's first item
	noise := func(values []float32, purpose uint64) {
		if tr.dry {
			return
		}
		for b := range count {
			bindings.PhiloxNormal(values[b*n:(b+1)*n], c.Seed^purpose, first+uint64(b), 0)
		}
	}
	noise(in.Z1, 0)
	if len(tr.vae.Config.BlockOutChannels) > 0 {
		in.Eps = make([]float32, count*n)
		noise(in.Eps, 1<<63)
	}
	rng := rand.NewPCG(c.Seed, uint64(batch.Step))
	in.Time = c.Time.Draw(rng, c.Batch, model.ShiftMu(h/2*(h/2)))[low : low+count]
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
		in.Keep, in.Guidance = in.Keep[low:low+count], in.Guidance[low:low+count]
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
	Validate func() error         // every Config.SampleEvery steps and after the last, inside Device.Do
	Save     func() error         // every Config.SaveEvery steps and at the end, inside Device.Do, after Validate
}

// Run trains until the stage's last step or until ctx ends, in which case the current step is finished and the state saved. Not called inside Device.Do.
func (tr *Trainer) Run(ctx context.Context, loader *data.PatchLoader, hooks Hooks) error {
	accumulate := int64(tr.Config.Accumulate)
	if err := loader.SeekTo(tr.Step * accumulate); err != nil {
		return err
	}
	mark, since, flops := tr.Step, time.Now(), int64(0)
	tr.clock = newStopwatch()
	for tr.Step < tr.Config.Steps && !tr.stopped(ctx) {
		r, err := tr.step(ctx, loader)
		if err != nil {
			return err
		}
		flops += r.flops
		if err := tr.device.Do(func() error { return tr.atStep(ctx, hooks) }); err != nil {
			return err
		}
		if hooks.Log != nil && tr.Step%tr.Config.LogEvery == 0 {
			now := time.Now() // logging counts in the next record, in its seconds as in its energy
			r.Seconds = now.Sub(since).Seconds()
			r.Images = (tr.Step - mark) * int64(tr.Config.Batch) * accumulate
			rate := float64(flops) / 1e9 / r.Seconds
			tr.Peak = max(tr.Peak, rate)
			r.PeakShare, r.GFLOPs = rate/tr.Peak, rate*float64(tr.processes.Size())
			r.Parts, r.DataRate = tr.clock.take(), loader.Rate()
			if err := hooks.Log(r); err != nil {
				return err
			}
			mark, since, flops = tr.Step, now, 0
			tr.clock.lap("logging")
		}
	}
	return nil
}

// step runs one optimizer step.
func (tr *Trainer) step(ctx context.Context, loader *data.PatchLoader) (r Record, err error) {
	for i := range tr.Config.Accumulate {
		batch, err := loader.Next()
		if err != nil {
			return r, err
		}
		tr.clock.lap("data")
		err = tr.device.Do(func() error {
			if i == 0 {
				if err := tr.begin(); err != nil {
					return err
				}
			}
			return tr.backward(batch, &r, i == tr.Config.Accumulate-1)
		})
		if err != nil {
			return r, err
		}
	}
	return r, tr.device.Do(func() error {
		if err := tr.reduce(ctx, &r); err != nil {
			return err
		}
		return tr.update(&r)
	})
}

// atStep validates and saves where it is time. A run that is being stopped does not wait for a validation.
func (tr *Trainer) atStep(ctx context.Context, hooks Hooks) error {
	end := tr.Step == tr.Config.Steps
	tr.Gain = math.NaN()
	if hooks.Validate != nil && (end || tr.Step%tr.Config.SampleEvery == 0) && !tr.stopped(ctx) {
		if err := hooks.Validate(); err != nil {
			return err
		}
		tr.clock.lap("validation")
	}
	if hooks.Save != nil && (end || tr.Step%tr.Config.SaveEvery == 0 || tr.stopped(ctx)) {
		if err := hooks.Save(); err != nil {
			return err
		}
		tr.clock.lap("saving")
		return tr.probe()
	}
	return nil
}

// FLOPs is the number of multiplications and additions in the matrix products, convolutions and attention of the last batch.
func (tr *Trainer) FLOPs() int64 { return tr.tape.FLOPs() }

// Close frees the tape's memory; the weights are the caller's.
func (tr *Trainer) Close() { tr.tape.Free() }
