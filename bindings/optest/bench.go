package optest

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"

	"github.com/fluxir/fluxir/bindings"
)

// Bench is a case at a size that matters for speed. It is too large for its formula, so parts of its outputs are checked.
type Bench struct {
	Preset  string // the model whose shape it is: flux, nano or vae
	Case    Case
	Samples []Sample // none: the whole case is checked
}

// Sample is a small case inside a large one. Its arguments are the middles of the large case's: of a dimension N of which the sample has n, the elements
// from (N-n)/2. Outputs names those of its outputs that do not depend on what was cut off; none means all.
type Sample struct {
	Case    Case
	Outputs []string
}

// Shape is the case's name without the dtype.
func (c *Case) Shape() string { return strings.TrimPrefix(c.String(), c.DType.String()+"_") }

// bench is a row of a preset.
func bench(preset string, c Case, samples ...Sample) Bench { return Bench{preset, c, samples} }

// without is the row with NULL for the named arguments.
func (b Bench) without(names ...string) Bench {
	b.Case = b.Case.Without(names...)
	for i := range b.Samples {
		b.Samples[i].Case = b.Samples[i].Case.Without(names...)
	}
	return b
}

// sample is a part of a large case.
func sample(c Case, outputs ...string) Sample { return Sample{c, outputs} }

// period of the values in a large tensor, a prime: drawing each of them would take longer than the benchmark.
const period = 1<<20 - 3

// Place puts the case on a device, ready for Check and Run; a backward case gets what it needs of the forward pass from the device's own. Free it. Call
// inside Do.
func (b *Bench) Place(d *bindings.Device) (*Call, error) { return b.Case.place(d) }

func (c *Case) place(d *bindings.Device) (*Call, error) {
	saved := map[string][]byte{}
	if c.Forward != nil {
		forward, err := c.Forward.place(d)
		if err != nil {
			return nil, err
		}
		defer forward.Free()
		if err := forward.Run(); err != nil {
			return nil, err
		}
		for i := range c.Args {
			if a := &c.Args[i]; c.savedBy(a) {
				if saved[a.Name], err = forward.bytes(a.Name); err != nil {
					return nil, err
				}
			}
		}
	}
	call := &Call{c: c, d: d, slots: map[string]*slot{}, tensors: Tensors{}}
	for i := range c.Args {
		a := &c.Args[i]
		var s *slot
		switch {
		case saved[a.Name] != nil:
			s = newSlot(a, nil, false)
			copy(s.initial, saved[a.Name])
		case !a.reads():
			s = newSlot(a, nil, false)
		case a.from != nil:
			s = newSlot(a, a.fill(call.initialValues()), false)
		default:
			s = newSlot(a, nil, false)
			a.repeat(s.initial[s.base : len(s.initial)-guardAfter])
		}
		if err := call.add(s); err != nil {
			call.Free()
			return nil, err
		}
	}
	return call, call.Reset()
}

// bytes is the whole buffer of an argument as it is now.
func (call *Call) bytes(name string) ([]byte, error) {
	s := call.slots[name]
	raw := make([]byte, len(s.initial))
	if err := call.d.Sync(); err != nil {
		return nil, err
	}
	return raw, bindings.CopyToHost(call.d, raw, s.buffer.Data())
}

// initialValues are the values of the inputs placed so far.
func (call *Call) initialValues() Values {
	v := Values{}
	for name, s := range call.slots {
		if s.arg.reads() {
			v[name] = s.middle(s.initial, s.arg.Shape)
		}
	}
	return v
}

// repeat fills raw with drawn values, over and over.
func (a *Arg) repeat(raw []byte) {
	size := a.DType.Size()
	short := *a
	short.Shape = []int{min(len(raw)/size, period)}
	for i, x := range short.fill(nil) {
		put(raw[i*size:], encode(x, a.DType), size)
	}
	for done := short.Shape[0] * size; done < len(raw); done *= 2 {
		copy(raw[done:], raw[:done])
	}
}

// middle is the middle box of the given shape out of the slot's tensor, whose buffer holds raw.
func (s *slot) middle(raw []byte, shape []int) []float64 {
	part := Arg{Shape: shape}
	x, size, at := make([]float64, part.Len()), s.arg.DType.Size(), s.base
	for k, n := range shape {
		at += (s.arg.Shape[k] - n) / 2 * int(s.tensor.Strides[k]) * size
	}
	index := make([]int, len(shape))
	for i := range x {
		x[i] = decode(get(raw[at:], size), s.arg.DType)
		for k := len(shape) - 1; k >= 0; k-- {
			stride := int(s.tensor.Strides[k]) * size
			at += stride
			if index[k]++; index[k] < shape[k] {
				break
			}
			at -= shape[k] * stride
			index[k] = 0
		}
	}
	return x
}

// Check runs the case once and holds its samples against the formula. ratio is the largest error as a part of what is allowed.
func (call *Call) Check(samples []Sample) (ratio float64, err error) {
	if len(samples) == 0 {
		samples = []Sample{{Case: *call.c}}
	}
	if err := call.Reset(); err != nil {
		return 0, err
	}
	if err := call.Run(); err != nil {
		return 0, err
	}
	for i := range samples {
		part, err := call.checkSample(&samples[i])
		ratio = max(ratio, part)
		if err != nil {
			return ratio, err
		}
	}
	return ratio, nil
}

func (call *Call) checkSample(sample *Sample) (float64, error) {
	in, got := Values{}, Values{}
	for i := range sample.Case.Args {
		a := &sample.Case.Args[i]
		s := call.slots[a.Name]
		if a.reads() {
			in[a.Name] = s.middle(s.initial, a.Shape)
		}
		if a.writes() {
			raw, err := call.bytes(a.Name)
			if err != nil {
				return 0, err
			}
			got[a.Name] = s.middle(raw, a.Shape)
		}
	}
	ref, err := newReference(&sample.Case, in)
	if err != nil {
		return 0, err
	}
	ref.only(sample.Outputs)
	return ref.Check(got)
}

func put(raw []byte, u uint32, size int) {
	if size == 4 {
		binary.LittleEndian.PutUint32(raw, u)
	} else {
		binary.LittleEndian.PutUint16(raw, uint16(u))
	}
}

func get(raw []byte, size int) uint32 {
	if size == 4 {
		return binary.LittleEndian.Uint32(raw)
	}
	return uint32(binary.LittleEndian.Uint16(raw))
}

// Draw fills values with normal numbers of the given deviation, repeating with the benchmarks' period: weights of whole blocks.
func Draw(values []float32, seed uint64, deviation float64) {
	r := rand.New(rand.NewPCG(seed, 0))
	n := min(len(values), period)
	for i := range n {
		values[i] = float32(deviation * r.NormFloat64())
	}
	for done := n; done < len(values); done *= 2 {
		copy(values[done:], values[:done])
	}
}
