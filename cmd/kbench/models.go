package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/bindings/optest"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
	"github.com/fluxir/fluxir/pkg/train"
)

func decodeBenchmarks() []benchmark {
	var list []benchmark
	for _, dtype := range []bindings.DType{bindings.BF16, bindings.F32} {
		list = append(list, benchmark{
			Preset: "vae", Op: "vae_decode", Shape: "512x512x3", DType: dtype.String(), work: 2.5e12,
			open: func(d *bindings.Device) (subject, error) { return newDecoder(d, dtype, fluxVAE(128, 32, 2), 64) },
		})
	}
	return list
}

// fluxVAE is FLUX.1's autoencoder with 128 channels in the finest level, 32 groups, 2 layers.
func fluxVAE(channels, groups, layers int) weights.VAEConfig {
	return weights.VAEConfig{
		Class: "AutoencoderKL", InChannels: 3, OutChannels: 3, LatentChannels: 16, BlockOutChannels: []int{channels, 2 * channels, 4 * channels, 4 * channels},
		LayersPerBlock: layers, NormNumGroups: groups, MidAttention: true, ActFn: "silu", ScalingFactor: 0.3611, ShiftFactor: 0.1159,
	}
}

// decoder decodes one latent of side × side.
type decoder struct {
	device *bindings.Device
	arena  *tensor.Arena
	tape   *tensor.Tape
	vae    *model.VAE
	z      *tensor.Tensor
	image  *tensor.Tensor // of the last run
}

func newDecoder(d *bindings.Device, dtype bindings.DType, c weights.VAEConfig, side int) (v *decoder, err error) {
	v = &decoder{device: d, arena: tensor.NewArena(d), tape: tensor.NewTape(d)}
	defer func() {
		if err != nil {
			v.free()
			v = nil
		}
	}()
	if v.vae, err = model.NewVAE(v.arena, c, dtype); err != nil {
		return v, err
	}
	if err = drawParams(v.vae.Params.List); err != nil {
		return v, err
	}
	v.z, err = drawTensor(v.arena, dtype, 100, 1, side, side, c.LatentChannels)
	return v, err
}

func drawParams(list []*tensor.Param) error {
	for i, p := range list {
		if err := drawParam(p, uint64(i)); err != nil {
			return err
		}
	}
	return nil
}

func (v *decoder) run() error {
	v.tape.Reset()
	v.image = v.tape.Scope(func() []*tensor.Tensor { return []*tensor.Tensor{v.vae.DecodeUnscaled(v.tape, v.z)} })[0]
	return v.tape.Err()
}

func (v *decoder) flops() int64 { return v.tape.FLOPs() }

func (v *decoder) free() {
	v.tape.Free()
	v.arena.Free()
}

// check holds a narrow copy of the decoder, and a latent of 3 × 3, against the composition of the ops' formulas.
func (v *decoder) check() (float64, error) {
	c := fluxVAE(16, 8, 1)
	small, err := newDecoder(v.device, v.vae.DType, c, 3)
	if err != nil {
		return 0, err
	}
	defer small.free()
	in, err := node(small.z)
	if err != nil {
		return 0, err
	}
	nodes := map[string]*optest.Node{"z": in}
	for _, p := range small.vae.Params.List {
		if nodes[strings.TrimPrefix(p.Name, "decoder.")], err = node(p.Value); err != nil {
			return 0, err
		}
	}
	if err := small.run(); err != nil {
		return 0, err
	}
	image, err := small.image.Host()
	if err != nil {
		return 0, err
	}
	reference := optest.Decoder(len(c.BlockOutChannels), c.LayersPerBlock+1, c.NormNumGroups)
	return reference.Check(v.vae.DType, nodes, nil, optest.Values{"image": wide(image)})
}

func node(x *tensor.Tensor) (*optest.Node, error) {
	values, err := x.Host()
	return &optest.Node{Shape: x.Shape(), X: wide(values)}, err
}

func nanoBenchmarks() []benchmark {
	var list []benchmark
	for _, dtype := range []bindings.DType{bindings.F32, bindings.BF16} {
		c := nanoConfig(dtype)
		list = append(list, benchmark{
			Preset: "nano", Op: "training_step", Shape: fmt.Sprintf("%dx%dx%dx3", c.Batch, c.Size, c.Size), DType: dtype.String(), work: 5e10,
			open: func(d *bindings.Device) (subject, error) { return newTraining(d, c) },
		})
	}
	return list
}

// nanoConfig is the last stage of the embedded model's training: base and adapter together.
func nanoConfig(dtype bindings.DType) train.Config {
	stages := train.NanoStages()
	c := stages[len(stages)-1]
	c.DType = dtype.String()
	return c
}

// training is optimizer steps of the embedded model on one drawn batch.
type training struct {
	device  *bindings.Device
	arena   *tensor.Arena
	net     *model.FluxIR
	vae     *model.VAE
	trainer *train.Trainer
	config  train.Config
	batch   data.Batch
}

func newTraining(d *bindings.Device, c train.Config) (s *training, err error) {
	s = &training{device: d, arena: tensor.NewArena(d), net: &model.FluxIR{}, config: c}
	defer func() {
		if err != nil {
			s.free()
			s = nil
		}
	}()
	dtype := bindings.F32
	if c.DType == "bf16" {
		dtype = bindings.BF16
	}
	if s.net.Base, err = model.NewFlux(s.arena, train.NanoFlux(), dtype); err != nil {
		return s, err
	}
	if s.net.Adapter, err = model.NewAdapter(s.arena, &s.net.Base.Config, train.NanoAdapter(), dtype); err != nil {
		return s, err
	}
	if s.vae, err = model.NewVAE(s.arena, train.NanoVAE(), bindings.F32); err != nil {
		return s, err
	}
	for _, list := range [][]*tensor.Param{s.net.Base.Params.List, s.net.Adapter.Params.List, s.vae.Params.List} {
		if err = drawParams(list); err != nil {
			return s, err
		}
	}
	n := c.Batch * c.Size * c.Size * 3
	s.batch.HQ, s.batch.LQ = make([]float32, n), make([]float32, n)
	optest.Draw(s.batch.HQ, 1, 0.5)
	optest.Draw(s.batch.LQ, 2, 0.5)
	s.trainer, err = train.NewTrainer(d, s.arena, s.net, s.vae, c)
	return s, err
}

func (s *training) run() error {
	_, err := s.trainer.Advance(&s.batch)
	return err
}

func (s *training) flops() int64 { return s.trainer.FLOPs() }

func (s *training) free() {
	if s.trainer != nil {
		s.trainer.Close()
	}
	s.arena.Free()
}

// slopeTolerance of check: the loss is an f32 number, so its differences are good to about a thousandth.
const slopeTolerance = 0.02

// check differentiates: in an f32 copy of the model, the slope of the loss along its gradient, by a central difference, must be the gradient's norm.
func (s *training) check() (float64, error) {
	c := s.config
	c.DType, c.Batch = "f32", 2
	f, err := newTraining(s.device, c)
	if err != nil {
		return 0, err
	}
	defer f.free()
	tape := tensor.NewTape(s.device)
	defer tape.Free()
	params := append(append([]*tensor.Param{}, f.net.Base.Params.List...), f.net.Adapter.Params.List...)
	if _, err := f.loss(tape, true); err != nil {
		return 0, err
	}
	values, gradients, norm := make([][]float32, len(params)), make([][]float32, len(params)), 0.0
	for i, p := range params {
		if values[i], err = p.Value.Host(); err != nil {
			return 0, err
		}
		if gradients[i], err = p.Grad.Host(); err != nil {
			return 0, err
		}
		for _, g := range gradients[i] {
			norm += float64(g) * float64(g)
		}
	}
	norm = math.Sqrt(norm)
	var losses [2]float64
	const change = 1e-2 // of the loss, about
	for k, sign := range []float64{1, -1} {
		for i, p := range params {
			moved := make([]float32, len(values[i]))
			for j, v := range values[i] {
				moved[j] = v + float32(sign*change/2*float64(gradients[i][j])/(norm*norm))
			}
			if err := p.Set(moved); err != nil {
				return 0, err
			}
		}
		if losses[k], err = f.loss(tape, false); err != nil {
			return 0, err
		}
	}
	slope := (losses[0] - losses[1]) * norm / change
	ratio := math.Abs(slope/norm-1) / slopeTolerance
	if !(ratio <= 1) {
		return ratio, fmt.Errorf("the slope of the loss along its gradient is %.4g, the gradient's norm %.4g", slope, norm)
	}
	return ratio, nil
}

// loss of a fixed batch; with gradients, those are in the parameters.
func (s *training) loss(t *tensor.Tape, gradients bool) (float64, error) {
	c, h := s.config, s.config.Size/s.vae.Config.Factor()
	in := train.StepInput{
		Batch: c.Batch, Height: c.Size, Width: c.Size, HQ: s.batch.HQ, LQ: s.batch.LQ, Z1: make([]float32, c.Batch*h*h*s.vae.Config.LatentChannels),
		Time: make([]float32, c.Batch), Crop: train.Window{Height: h, Width: h}, Lambda: 1,
	}
	optest.Draw(in.Z1, 3, 1)
	for i := range in.Time {
		in.Time[i] = float32(i+1) / float32(c.Batch)
	}
	t.Reset()
	if gradients {
		t.Record()
	}
	out, err := train.Losses(t, s.net, s.vae, nil, in, c.Loss)
	if err != nil {
		return 0, err
	}
	value, err := out.Total.Host()
	if err != nil {
		return 0, err
	}
	if gradients {
		return float64(value[0]), t.Backward(out.Total)
	}
	return float64(value[0]), nil
}
