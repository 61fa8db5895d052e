package optest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"unsafe"

	"github.com/fluxir/fluxir/bindings"
)

// Variant is one way to lay out a case's tensors in memory.
type Variant struct {
	Name    string
	padded  bool   // gaps between rows, images and so on, and a base that is aligned to one element only
	out, in string // out shares the storage of in
}

// Variants of a case: packed, padded and one for each allowed alias.
func (c *Case) Variants() []Variant {
	variants := []Variant{{Name: "packed"}, {Name: "padded", padded: true}}
	for i := range c.Args {
		for _, in := range c.Args[i].alias {
			if c.arg(in) != nil {
				variants = append(variants, Variant{Name: c.Args[i].Name + " is " + in, out: c.Args[i].Name, in: in})
			}
		}
	}
	return variants
}

const (
	guard    = 256    // bytes before each tensor
	sentinel = 0xffe5 // fills what is no input: NaN in bf16 and f16, and twice in f32
)

// slot is one tensor on the device: guard band, elements with gaps, guard band. Whatever is no input holds the sentinel, so
// that reading it spoils the result, and everything except the outputs' elements must be found unchanged.
type slot struct {
	arg     *Arg
	buffer  *bindings.Buffer
	tensor  *bindings.Tensor // apart from the slot: cgo refuses memory that holds Go pointers
	base    int              // bytes before the first element
	initial []byte           // the whole buffer before the call
	written bool             // an output, or an input that shares its storage
}

// Call is a case placed on a device, ready to run any number of times. All methods must be called inside Do of its device.
type Call struct {
	c       *Case
	d       *bindings.Device
	slots   map[string]*slot
	tensors Tensors
}

// NewCall allocates the tensors of a case and fills them from in. Free it.
func NewCall(d *bindings.Device, c *Case, in Values, variant Variant) (*Call, error) {
	call := &Call{c: c, d: d, slots: map[string]*slot{}, tensors: Tensors{}}
	for i := range c.Args {
		a := &c.Args[i]
		if a.Name == variant.out {
			continue
		}
		if err := call.add(newSlot(a, in[a.Name], variant.padded)); err != nil {
			call.Free()
			return nil, err
		}
	}
	if variant.out != "" {
		s := call.slots[variant.in]
		s.written = true
		call.slots[variant.out] = s
		call.tensors[variant.out] = s.tensor
	}
	return call, call.Reset()
}

// add allocates a slot's memory.
func (call *Call) add(s *slot) (err error) {
	if s.buffer, err = call.d.NewBuffer(int64(len(s.initial))); err != nil {
		return err
	}
	s.tensor.Data = unsafe.Add(s.buffer.Data(), s.base)
	call.slots[s.arg.Name] = s
	call.tensors[s.arg.Name] = s.tensor
	return nil
}

// newSlot lays out one tensor and fills its initial bytes.
func newSlot(a *Arg, x []float64, padded bool) *slot {
	s := &slot{arg: a, base: guard, written: a.writes(), tensor: &bindings.Tensor{DType: a.DType, Rank: int32(len(a.Shape))}}
	size := a.DType.Size()
	if padded {
		s.base += size
	}
	extent, stride := 1, int64(1)
	for i := len(a.Shape) - 1; i >= 0; i-- {
		s.tensor.Shape[i], s.tensor.Strides[i] = int64(a.Shape[i]), stride
		if a.strides != nil {
			s.tensor.Strides[i] = int64(a.strides[i])
		}
		extent += max(0, a.Shape[i]-1) * int(s.tensor.Strides[i])
		stride *= int64(a.Shape[i])
		if padded && !a.packed {
			stride += int64(3 + i)
		}
	}
	s.initial = make([]byte, s.base+extent*size+guardAfter)
	for i := 0; i+1 < len(s.initial); i += 2 {
		binary.LittleEndian.PutUint16(s.initial[i:], sentinel)
	}
	if x != nil {
		for i, at := range s.elements() {
			put(s.initial[at:], encode(x[i], a.DType), size)
		}
	}
	return s
}

// elements yields the index of each element, row-major, and where in the buffer it lies.
func (s *slot) elements() iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		size := s.arg.DType.Size()
		var index [bindings.MaxRank]int64
		at := s.base
		for i := range s.arg.Len() {
			if !yield(i, at) {
				return
			}
			for k := int(s.tensor.Rank) - 1; k >= 0; k-- {
				at += int(s.tensor.Strides[k]) * size
				if index[k]++; index[k] < s.tensor.Shape[k] {
					break
				}
				at -= int(s.tensor.Shape[k]*s.tensor.Strides[k]) * size
				index[k] = 0
			}
		}
	}
}

// Reset puts all tensors back to what the op is to find.
func (call *Call) Reset() error {
	for _, s := range call.slots {
		if err := bindings.CopyToDevice(call.d, s.buffer.Data(), s.initial); err != nil {
			return err
		}
	}
	return nil
}

// Run calls the op; on a CUDA device it may return before the work is done.
func (call *Call) Run() error { return call.c.Run(call.d, call.tensors) }

// Outputs reads the results back. It fails if the op wrote anywhere but into the elements of its outputs.
func (call *Call) Outputs() (Values, error) {
	if err := call.d.Sync(); err != nil {
		return nil, err
	}
	out := Values{}
	for name, s := range call.slots {
		now := make([]byte, len(s.initial))
		if err := bindings.CopyToHost(call.d, now, s.buffer.Data()); err != nil {
			return nil, err
		}
		if s.written {
			x, size := make([]float64, s.arg.Len()), s.arg.DType.Size()
			for i, at := range s.elements() {
				x[i] = decode(get(now[at:], size), s.arg.DType)
			}
			for _, at := range s.elements() {
				copy(now[at:at+size], s.initial[at:])
			}
			out[name] = x
		}
		if !bytes.Equal(now, s.initial) {
			at := 0
			for now[at] == s.initial[at] {
				at++
			}
			return nil, fmt.Errorf("%s: byte %d, counted from the first element, was overwritten", name, at-s.base)
		}
	}
	return out, nil
}

// Free releases the tensors.
func (call *Call) Free() {
	for _, s := range call.slots {
		s.buffer.Free()
	}
}
