package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/bindings/optest"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// What a block's benchmark runs.
const (
	forward      = "forward"
	inputGrads   = "forward_inputgrad"  // and the gradients of the inputs: frozen weights
	weightGrads  = "forward_weightgrad" // and those of the weights
	textTokens   = 512
	checkHeads   = 2 // in the check
	checkText    = 11
	checkImage   = 18
	blockHeads   = 24
	blockHeadDim = 128
)

// blockBenchmarks are FLUX's blocks at its width, the autoencoder's decoder, a training step of the embedded model.
func blockBenchmarks() []benchmark {
	var list []benchmark
	for _, kind := range []string{"double_block", "single_block"} {
		for _, dtype := range []bindings.DType{bindings.BF16, bindings.F32} {
			for _, mode := range []string{forward, inputGrads, weightGrads} {
				for _, tokens := range []int{256, 1024, 4096} {
					if tokens == 4096 && mode != forward {
						continue
					}
					s := blockSpec{kind: kind, mode: mode, dtype: dtype, heads: blockHeads, text: textTokens, image: tokens}
					list = append(list, benchmark{
						Preset: "flux", Op: kind + "_" + mode, Shape: fmt.Sprintf("%d+%dx%d", tokens, textTokens, blockHeads*blockHeadDim),
						DType: dtype.String(), open: s.open, work: s.work(),
					})
				}
			}
		}
	}
	return append(append(list, decodeBenchmarks()...), nanoBenchmarks()...)
}

// blockSpec is one block at one size.
type blockSpec struct {
	kind, mode         string
	dtype              bindings.DType
	heads, text, image int
}

func (s blockSpec) width() int { return s.heads * blockHeadDim }

// work: 12 width² multiply-adds a token in the matrices, and the attention; a way back costs as much for the inputs and again for the weights.
func (s blockSpec) work() float64 {
	tokens, width := float64(s.text+s.image), float64(s.width())
	passes := map[string]float64{forward: 1, inputGrads: 2.2, weightGrads: 3.2}[s.mode]
	return passes * (24*width*width*tokens + 4*width*tokens*tokens)
}

func (s blockSpec) config() weights.FluxConfig {
	c := weights.FluxConfig{
		Class: "FluxTransformer2DModel", PatchSize: 1, InChannels: 64, OutChannels: 64, AttentionHeadDim: blockHeadDim, NumAttentionHeads: s.heads,
		JointAttentionDim: 64, PooledDim: 64, AxesDimsRope: []int{16, 56, 56}, Prediction: weights.PredictVelocity,
	}
	if s.kind == "double_block" {
		c.NumLayers = 1
	} else {
		c.NumSingleLayers = 1
	}
	return c
}

// prefix of the block's parameters.
func (s blockSpec) prefix() string { return s.kind + "s.0." }

func (s blockSpec) open(d *bindings.Device) (subject, error) {
	b, err := s.build(d)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// block is a block with its inputs, ready to run.
type block struct {
	spec         blockSpec
	device       *bindings.Device
	arena        *tensor.Arena
	tape         *tensor.Tape
	flux         *model.Flux
	names        []string // of the inputs img, txt, vec; a single block has its tokens in img
	inputs       []*tensor.Tensor
	pe           *tensor.Tensor
	cotangents   []*tensor.Tensor
	leaves       []*tensor.Tensor // of the last run: the inputs, or copies with a gradient
	outputs      []*tensor.Tensor // of the last run
	outputsNames []string
}

// build allocates a block with drawn weights. An error leaves nothing allocated.
func (s blockSpec) build(d *bindings.Device) (b *block, err error) {
	b = &block{spec: s, device: d, arena: tensor.NewArena(d), tape: tensor.NewTape(d)}
	defer func() {
		if err != nil {
			b.free()
		}
	}()
	if b.flux, err = model.NewFlux(b.arena, s.config(), s.dtype); err != nil {
		return nil, err
	}
	if err = drawParams(b.blockParams()); err != nil {
		return nil, err
	}
	for _, p := range b.blockParams() {
		if s.mode == weightGrads {
			if err = p.Train(b.arena, false); err != nil {
				return nil, err
			}
		}
	}
	c := s.width()
	add := func(list *[]*tensor.Tensor, seed uint64, shape ...int) {
		if err == nil {
			var x *tensor.Tensor
			x, err = drawTensor(b.arena, s.dtype, seed, shape...)
			*list = append(*list, x)
		}
	}
	if s.kind == "double_block" {
		b.names, b.outputsNames = []string{"img", "txt", "vec"}, []string{"img", "txt"}
		add(&b.inputs, 101, 1, s.image, c)
		add(&b.inputs, 102, 1, s.text, c)
		add(&b.cotangents, 104, 1, s.image, c)
		add(&b.cotangents, 105, 1, s.text, c)
	} else {
		b.names, b.outputsNames = []string{"img", "vec"}, []string{"img"}
		add(&b.inputs, 101, 1, s.text+s.image, c)
		add(&b.cotangents, 104, 1, s.text+s.image, c)
	}
	add(&b.inputs, 103, 1, c)
	if err != nil {
		return nil, err
	}
	side := int(math.Ceil(math.Sqrt(float64(s.image))))
	if b.pe, err = keep(b.arena, b.flux.Positions(b.tape, s.text, 1, side*side).Slice(0, 0, s.text+s.image)); err != nil {
		return nil, err
	}
	return b, b.tape.Err()
}

// keep copies a tape's tensor into an arena.
func keep(a *tensor.Arena, x *tensor.Tensor) (*tensor.Tensor, error) {
	values, err := x.Host()
	if err != nil {
		return nil, err
	}
	return tensor.FromHost(a, values, x.DType(), x.Shape()...)
}

func drawTensor(a *tensor.Arena, dtype bindings.DType, seed uint64, shape ...int) (*tensor.Tensor, error) {
	n := 1
	for _, s := range shape {
		n *= s
	}
	values := make([]float32, n)
	optest.Draw(values, seed, 1)
	return tensor.FromHost(a, values, dtype, shape...)
}

// drawParam gives a matrix N(0, 1/in), a norm's scale values around 1, a bias small ones.
func drawParam(p *tensor.Param, seed uint64) error {
	values, shape := make([]float32, p.Value.Len()), p.Value.Shape()
	deviation := 0.1
	if len(shape) > 1 {
		deviation = 1 / math.Sqrt(float64(p.Value.Len()/shape[0]))
	}
	optest.Draw(values, seed, deviation)
	if len(shape) == 1 && strings.HasSuffix(p.Name, "scale") || strings.Contains(p.Name, "norm") && strings.HasSuffix(p.Name, "weight") {
		for i := range values {
			values[i]++
		}
	}
	return p.Set(values)
}

func (b *block) blockParams() []*tensor.Param {
	var list []*tensor.Param
	for _, p := range b.flux.Params.List {
		if strings.HasPrefix(p.Name, b.spec.prefix()) {
			list = append(list, p)
		}
	}
	return list
}

func (b *block) flops() int64 { return b.tape.FLOPs() }

func (b *block) free() {
	b.tape.Free()
	b.arena.Free()
}

// run is one pass, as a step of inference or of training would make it; gradients of weights are added to what is there.
func (b *block) run() error {
	t := b.tape
	t.Reset()
	b.leaves = b.inputs
	if b.spec.mode != forward {
		t.Record()
		b.leaves = nil
		for _, x := range b.inputs { // a leaf keeps its gradient: a new one for each pass
			b.leaves = append(b.leaves, t.Input(t.Copy(x)))
		}
	}
	vec := b.leaves[len(b.leaves)-1]
	if b.spec.kind == "double_block" {
		img, txt := b.flux.DoubleBlock(t, 0, b.leaves[0], b.leaves[1], vec, b.pe)
		b.outputs = []*tensor.Tensor{img, txt}
	} else {
		b.outputs = []*tensor.Tensor{b.flux.SingleBlock(t, 0, b.leaves[0], vec, b.pe)}
	}
	if b.spec.mode == forward {
		return t.Err()
	}
	return t.BackwardFrom(b.outputs, b.cotangents)
}

// check holds a narrow copy of the block, two heads and few tokens, against the composition of the ops' formulas.
func (b *block) check() (float64, error) {
	small := b.spec
	small.heads, small.text, small.image = checkHeads, checkText, checkImage
	c, err := small.build(b.device)
	if err != nil {
		return 0, err
	}
	defer c.free()
	in, cotangents, err := c.nodes()
	if err != nil {
		return 0, err
	}
	got, err := c.results()
	if err != nil {
		return 0, err
	}
	if small.mode == forward {
		cotangents = nil
	}
	reference := optest.SingleBlock(checkHeads)
	if small.kind == "double_block" {
		reference = optest.DoubleBlock(checkHeads)
	}
	return reference.Check(small.dtype, in, cotangents, got)
}

// nodes are the block's inputs and weights as the reference names them, and the cotangents of its outputs.
func (b *block) nodes() (map[string]*optest.Node, optest.Values, error) {
	in, cotangents := map[string]*optest.Node{}, optest.Values{}
	add := func(name string, x *tensor.Tensor) (err error) {
		in[name], err = node(x)
		return err
	}
	for i, x := range append(b.inputs, b.pe) {
		if err := add(append(b.names, "pe")[i], x); err != nil {
			return nil, nil, err
		}
	}
	for _, p := range b.blockParams() {
		if err := add(strings.TrimPrefix(p.Name, b.spec.prefix()), p.Value); err != nil {
			return nil, nil, err
		}
	}
	for i, x := range b.cotangents {
		values, err := x.Host()
		if err != nil {
			return nil, nil, err
		}
		cotangents["d"+b.outputsNames[i]] = wide(values)
	}
	return in, cotangents, nil
}

// results runs the block and reads outputs and gradients. A way back ends the outputs' life, so they are read from a pass of their own.
func (b *block) results() (optest.Values, error) {
	got, mode := optest.Values{}, b.spec.mode
	b.spec.mode = forward
	err := b.run()
	b.spec.mode = mode
	if err != nil {
		return nil, err
	}
	for i, y := range b.outputs {
		values, err := y.Host()
		if err != nil {
			return nil, err
		}
		got[b.outputsNames[i]] = wide(values)
	}
	if mode == forward {
		return got, nil
	}
	if err := b.run(); err != nil {
		return nil, err
	}
	for i, x := range b.leaves {
		values, err := x.Grad()
		if err != nil {
			return nil, err
		}
		got["d"+b.names[i]] = wide(values)
	}
	for _, p := range b.blockParams() {
		if !p.Trained() {
			continue
		}
		values, err := p.Grad.Host()
		if err != nil {
			return nil, err
		}
		got["d"+strings.TrimPrefix(p.Name, b.spec.prefix())] = wide(values)
	}
	return got, nil
}

func wide(values []float32) []float64 {
	x := make([]float64, len(values))
	for i, v := range values {
		x[i] = float64(v)
	}
	return x
}
