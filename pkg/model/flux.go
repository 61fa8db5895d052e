package model

import (
	"fmt"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

const (
	timeDim    = 256     // width of the sinusoids
	timeFactor = 1000    // t and g are multiplied by it
	maxPeriod  = 10000   // of the sinusoids
	ropeTheta  = 10000.0 // of the rotary embedding
)

// Flux is the FLUX transformer: the frozen prior of a restoration, or the model in training.
type Flux struct {
	Config weights.FluxConfig
	Params *Params
	DType  bindings.DType

	imgIn, txtIn                 linear
	timeIn, vectorIn, guidanceIn embedder
	stream                       *tensor.Stream // of the blocks' weights; nil: they are on the device
	double                       []doubleBlock
	single                       []singleBlock
	final                        finalLayer
}

// NewFlux allocates a transformer in a, weights undefined.
func NewFlux(a *tensor.Arena, c weights.FluxConfig, dtype bindings.DType) (*Flux, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	ps, stream, err := fluxParams(a, &c, dtype)
	if err != nil {
		return nil, err
	}
	f := &Flux{
		Config: c, Params: ps, DType: dtype, stream: stream,
		imgIn: ps.linear("img_in"), txtIn: ps.linear("txt_in"), timeIn: ps.embedder("time_in"), vectorIn: ps.embedder("vector_in"),
		final: finalLayer{ps.linear("final_layer.adaLN_modulation.1"), ps.linear("final_layer.linear")},
	}
	if c.GuidanceEmbeds {
		f.guidanceIn = ps.embedder("guidance_in")
	}
	for i := range c.NumLayers {
		f.double = append(f.double, ps.doubleBlock(fmt.Sprintf("double_blocks.%d.", i), c.NumAttentionHeads))
	}
	for i := range c.NumSingleLayers {
		f.single = append(f.single, ps.singleBlock(fmt.Sprintf("single_blocks.%d.", i), c.NumAttentionHeads))
	}
	return f, nil
}

// fluxParams allocates the parameters: all on the device, or the blocks' in host memory where the arena has slots.
func fluxParams(a *tensor.Arena, c *weights.FluxConfig, dtype bindings.DType) (*Params, *tensor.Stream, error) {
	specs, blocks := weights.FluxParams(c, weights.Original), c.NumLayers+c.NumSingleLayers
	if a.Slots == 0 || blocks == 0 {
		ps, err := newParams(a, specs, dtype)
		return ps, nil, err
	}
	return streamedParams(a, specs, dtype, blocks, func(name string) int {
		var i int
		if _, err := fmt.Sscanf(name, "double_blocks.%d.", &i); err == nil {
			return i
		}
		if _, err := fmt.Sscanf(name, "single_blocks.%d.", &i); err == nil {
			return c.NumLayers + i
		}
		return -1
	})
}

// LoadFlux allocates a transformer and reads its weights, under either naming, converting them to dtype.
func LoadFlux(a *tensor.Arena, src weights.Source, c weights.FluxConfig, dtype bindings.DType) (*Flux, error) {
	layout, err := weights.DetectFlux(src)
	if err != nil {
		return nil, err
	}
	f, err := NewFlux(a, c, dtype)
	if err != nil {
		return nil, err
	}
	return f, f.Params.load(src, weights.FluxParams(&c, layout))
}

// Positions is the rotation table for nTxt text tokens, at (0,0,0), followed by a grid of rows × columns image tokens, at (0,y,x).
func (f *Flux) Positions(t *tensor.Tape, nTxt, rows, columns int) *tensor.Tensor {
	ids := make([]float32, 3*(nTxt+rows*columns))
	for i := range rows * columns {
		ids[3*(nTxt+i)+1], ids[3*(nTxt+i)+2] = float32(i/columns), float32(i%columns)
	}
	axes := f.Config.AxesDimsRope
	return t.RopeTable(t.Upload(ids, bindings.F32, nTxt+rows*columns, 3), [3]int{axes[0], axes[1], axes[2]}, ropeTheta)
}

// vec is the modulation's input [B,C]: time_in(1000·t) + guidance_in(1000·g) + vector_in(y). time, guidance [B] F32; y [B,Y].
func (f *Flux) vec(t *tensor.Tape, time, guidance, y *tensor.Tensor) *tensor.Tensor {
	v := f.timeIn.forward(t, t.TimestepEmbed(time, timeDim, timeFactor, maxPeriod, f.DType))
	if f.Config.GuidanceEmbeds {
		v = t.Add(v, f.guidanceIn.forward(t, t.TimestepEmbed(guidance, timeDim, timeFactor, maxPeriod, f.DType)))
	}
	return t.Add(v, f.vectorIn.forward(t, y))
}

// Broadcast is what an adapter adds before block i: lambda · gains[i] ⊙ features, for each stream (spec §3.5).
type Broadcast struct {
	Lambda           float32
	Img, Txt         *tensor.Tensor   // features f_z [B,N,C], f_p [B,T,C]
	GainImg, GainTxt []*tensor.Tensor // a_i [B,C] F32, one per block in order of execution; nil: nothing is added there
}

// Forward is the velocity (or what the configuration says the output is) from the embedded tokens. img [B,N,C] = img_in(z_t), txt [B,T,C] = txt_in(prompt),
// vec [B,C], pe of Positions, extra the adapter's broadcast or nil. Result [B,N,out channels].
func (f *Flux) Forward(t *tensor.Tape, img, txt, vec, pe *tensor.Tensor, extra *Broadcast, recompute bool) *tensor.Tensor {
	siluVec := t.Act(vec, bindings.ActSiLU)
	for i, b := range f.double {
		in := append([]*tensor.Tensor{img, txt, siluVec}, extra.inputs(i)...)
		out := runBlock(t, recompute, in, func(x []*tensor.Tensor) []*tensor.Tensor {
			f.stream.Use(t, i)
			img, txt := x[0], x[1]
			if extra != nil {
				img, txt = extra.add(t, img, x[5], x[3]), extra.add(t, txt, x[6], x[4])
			}
			img, txt = b.forward(t, img, txt, x[2], pe)
			return []*tensor.Tensor{img, txt}
		})
		f.stream.UseOnWayBack(t, i)
		if i > 0 { // the first block's inputs are the caller's
			t.Release(img, txt)
		}
		img, txt = out[0], out[1]
	}
	nTxt := txt.Dim(1)
	x := t.Concat(txt, img)
	if len(f.double) > 0 {
		t.Release(img, txt)
	}
	for i, b := range f.single {
		in := append([]*tensor.Tensor{x, siluVec}, extra.inputs(len(f.double)+i)...)
		y := runBlock(t, recompute, in, func(in []*tensor.Tensor) []*tensor.Tensor {
			f.stream.Use(t, len(f.double)+i)
			x := in[0]
			if extra != nil && in[4] != nil {
				y := t.New(x.DType(), x.Shape()...)
				extra.addTo(t, y.Slice(1, 0, nTxt), x.Slice(1, 0, nTxt), in[5], in[3])
				extra.addTo(t, y.Slice(1, nTxt, x.Dim(1)), x.Slice(1, nTxt, x.Dim(1)), in[4], in[2])
				x = y
			}
			return []*tensor.Tensor{b.forward(t, x, in[1], pe)}
		})[0]
		f.stream.UseOnWayBack(t, len(f.double)+i)
		t.Release(x)
		x = y
	}
	return f.final.forward(t, x.Slice(1, nTxt, x.Dim(1)), siluVec)
}

// DoubleBlock runs double block i alone: img [B,N,C], txt [B,T,C], siluVec [B,C] (SiLU of vec), pe of Positions. For benchmarks.
func (f *Flux) DoubleBlock(t *tensor.Tape, i int, img, txt, siluVec, pe *tensor.Tensor) (imgOut, txtOut *tensor.Tensor) {
	f.stream.Use(t, i)
	return f.double[i].forward(t, img, txt, siluVec, pe)
}

// SingleBlock runs single block i alone: x [B,T+N,C], the rest as for DoubleBlock.
func (f *Flux) SingleBlock(t *tensor.Tape, i int, x, siluVec, pe *tensor.Tensor) *tensor.Tensor {
	f.stream.Use(t, len(f.double)+i)
	return f.single[i].forward(t, x, siluVec, pe)
}

// add is h + lambda · gain ⊙ features; h itself where gain is nil.
func (e *Broadcast) add(t *tensor.Tape, h, gain, features *tensor.Tensor) *tensor.Tensor {
	if gain == nil {
		return h
	}
	return t.Gate(h, gain, features, e.Lambda)
}

// addTo is add into y, a view of a tensor from New.
func (e *Broadcast) addTo(t *tensor.Tape, y, h, gain, features *tensor.Tensor) {
	if gain == nil {
		t.CopyTo(y, h)
		return
	}
	t.GateTo(y, h, gain, features, e.Lambda)
}

// inputs are the broadcast's tensors for block i: f_z, f_p, a_z, a_p; none without an adapter.
func (e *Broadcast) inputs(i int) []*tensor.Tensor {
	if e == nil {
		return nil
	}
	return []*tensor.Tensor{e.Img, e.Txt, e.GainImg[i], e.GainTxt[i]}
}

// runBlock runs one block: with its memory bounded when restoring, recomputed on the way back when recompute asks for it, else plainly recorded.
func runBlock(t *tensor.Tape, recompute bool, in []*tensor.Tensor, f func([]*tensor.Tensor) []*tensor.Tensor) []*tensor.Tensor {
	if recompute || !t.Recording() {
		return t.Checkpoint(in, f)
	}
	return f(in)
}
