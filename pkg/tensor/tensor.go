// Package tensor has the tensors, the tape (reverse-mode differentiation over the ops of bindings) and the arenas of fluxir.
//
// A model's forward pass is a sequence of Tape methods, one per op, that read like the published layers. Run-time failures stick to the
// tape: the first one wins, later ops do nothing, and Err or Backward reports it. Shape mistakes are bugs and panic with a "tensor: " prefix.
// Everything is called inside Device.Do.
package tensor

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"

	"github.com/fluxir/fluxir/bindings"
)

// Tensor is a view of device memory: a box of a storage (rows, columns, tokens of it), possibly under another shape. Views share the storage's
// values and its gradient, so splitting and joining tensors costs nothing.
type Tensor struct {
	view *bindings.Tensor // an object of its own: cgo forbids Go pointers beside it
	root *storage
	box  box
}

// storage is one piece of device memory and, while a tape records, its gradient, which has the same layout.
type storage struct {
	data      unsafe.Pointer
	dtype     bindings.DType
	shape     []int
	arena     *Arena
	needsGrad bool
	input     bool   // a leaf whose gradient is read after Backward: kept until Reset
	param     *Param // set for parameters: their gradient is F32 and lives there
	grad      unsafe.Pointer
	written   []box // parts of grad that hold values, disjoint
	home      *home // of a streamed parameter: where its values are, which data holds only while its group is used
}

func (s *storage) bytes() int64 { return int64(numel(s.shape)) * int64(s.dtype.Size()) }

func numel(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

// newTensor allocates from a; the contents are undefined.
func newTensor(a *Arena, dtype bindings.DType, shape ...int) (*Tensor, error) {
	s := &storage{dtype: dtype, shape: append([]int(nil), shape...), arena: a}
	data, err := a.alloc(max(s.bytes(), 1))
	s.data = data
	return s.whole(), err
}

// whole is the tensor of all of s.
func (s *storage) whole() *Tensor {
	view := bindings.NewTensor(s.data, s.dtype, s.shape...)
	return &Tensor{view: &view, root: s, box: fullBox(s.shape)}
}

// Empty allocates a tensor from a, contents undefined.
func Empty(a *Arena, dtype bindings.DType, shape ...int) (*Tensor, error) {
	return newTensor(a, dtype, shape...)
}

// FromHost allocates a tensor from a and fills it with values, converted to dtype with round to nearest even.
func FromHost(a *Arena, values []float32, dtype bindings.DType, shape ...int) (*Tensor, error) {
	if len(values) != numel(shape) {
		panic(fmt.Sprintf("tensor: %d values for shape %v", len(values), shape))
	}
	t, err := newTensor(a, dtype, shape...)
	if err != nil {
		return nil, err
	}
	return t, t.Set(values)
}

// Set overwrites a contiguous tensor with values from the host.
func (t *Tensor) Set(values []float32) error {
	t.mustBeWhole("Set")
	if len(values) != t.Len() {
		panic(fmt.Sprintf("tensor: Set: %d values for shape %v", len(values), t.Shape()))
	}
	if t.DType() == bindings.F32 {
		return overwrite(t, values)
	}
	half := make([]uint16, len(values))
	for i, v := range values {
		half[i] = bfloat16(v)
	}
	return overwrite(t, half)
}

// overwrite gives t the values, which are of its dtype.
func overwrite[E any](t *Tensor, values []E) error {
	if h := t.root.home; h != nil && len(values) > 0 {
		return h.write(unsafe.Slice((*byte)(unsafe.Pointer(&values[0])), len(h.bytes)))
	}
	return bindings.CopyToDevice(t.root.arena.device, t.view.Data, values)
}

// Host reads the tensor, any view, as float32 values in row-major order.
func (t *Tensor) Host() ([]float32, error) {
	if t.root.home != nil {
		return t.hostHome()
	}
	return t.root.arena.hostCopy(*t.view)
}

// hostHome is Host for a streamed parameter.
func (t *Tensor) hostHome() ([]float32, error) {
	t.mustBeWhole("Host")
	out, bytes := make([]float32, t.Len()), t.root.home.bytes
	for i := range out {
		if t.DType() == bindings.F32 {
			out[i] = math.Float32frombits(binary.NativeEndian.Uint32(bytes[4*i:]))
		} else {
			out[i] = math.Float32frombits(uint32(binary.NativeEndian.Uint16(bytes[2*i:])) << 16)
		}
	}
	return out, nil
}

// Finite tells whether no value is a NaN or an infinity.
func (t *Tensor) Finite() (bool, error) {
	values, err := t.Host()
	for _, v := range values {
		if v-v != 0 {
			return false, err
		}
	}
	return true, err
}

// Grad reads the gradient after Tape.Backward: zeros where none arrived; F32 of a parameter, else the gradient of this view.
func (t *Tensor) Grad() ([]float32, error) {
	if p := t.root.param; p != nil {
		return p.Grad.Host()
	}
	if t.root.grad == nil || len(t.root.written) == 0 {
		return make([]float32, t.Len()), nil
	}
	return t.root.arena.hostCopy(t.gradView())
}

// hostCopy reads a view as F32: contiguous memory directly, anything else gathered on the device first.
func (a *Arena) hostCopy(view bindings.Tensor) ([]float32, error) {
	shape := viewShape(view)
	out := make([]float32, numel(shape))
	if len(out) == 0 {
		return out, nil
	}
	flat := bindings.NewTensor(view.Data, view.DType, shape...)
	if view == flat && view.DType == bindings.F32 {
		return out, bindings.CopyToHost(a.device, out, view.Data)
	}
	if view == flat && view.DType == bindings.BF16 {
		half := make([]uint16, len(out))
		err := bindings.CopyToHost(a.device, half, view.Data)
		for i, h := range half {
			out[i] = math.Float32frombits(uint32(h) << 16)
		}
		return out, err
	}
	bytes := int64(len(out)) * 4
	staging, err := a.alloc(bytes)
	if err != nil {
		return nil, err
	}
	defer a.release(staging, bytes)
	flat = bindings.NewTensor(staging, bindings.F32, shape...)
	if err := a.device.Layout(&flat, &view); err != nil {
		return nil, err
	}
	return out, bindings.CopyToHost(a.device, out, staging)
}

func viewShape(v bindings.Tensor) []int {
	shape := make([]int, v.Rank)
	for i := range shape {
		shape[i] = int(v.Shape[i])
	}
	return shape
}

// Shape is the list of extents, outermost first.
func (t *Tensor) Shape() []int { return viewShape(*t.view) }

// Dim is the extent of dimension i.
func (t *Tensor) Dim(i int) int { return int(t.view.Shape[i]) }

// Rank is the number of dimensions.
func (t *Tensor) Rank() int { return int(t.view.Rank) }

// Len is the number of elements.
func (t *Tensor) Len() int { return numel(t.Shape()) }

// DType is the storage type.
func (t *Tensor) DType() bindings.DType { return t.view.DType }

// NeedsGrad tells whether a gradient flows to this tensor.
func (t *Tensor) NeedsGrad() bool { return t != nil && t.root.needsGrad }

// Slice is the view of [low, high) in dimension dim. It is taken before View, not after.
func (t *Tensor) Slice(dim, low, high int) *Tensor {
	if t.Rank() != len(t.root.shape) || low < 0 || high > t.Dim(dim) || low > high {
		panic(fmt.Sprintf("tensor: Slice: [%d,%d) of dimension %d of %v", low, high, dim, t.Shape()))
	}
	for i, d := range t.Shape() {
		if d != t.box.size[i] {
			panic("tensor: Slice after View")
		}
	}
	s, view := *t, *t.view
	s.view = &view
	s.view.Data = unsafe.Add(t.view.Data, int64(low)*t.view.Strides[dim]*int64(t.DType().Size()))
	s.view.Shape[dim] = int64(high - low)
	s.box.low[dim] += low
	s.box.size[dim] = high - low
	return &s
}

// View is the same elements under another shape; dimensions are split or merged, never copied. It panics where strides forbid it.
func (t *Tensor) View(shape ...int) *Tensor {
	if numel(shape) != t.Len() {
		panic(fmt.Sprintf("tensor: View: %v as %v", t.Shape(), shape))
	}
	s, view := *t, bindings.NewTensor(t.view.Data, t.DType(), shape...)
	s.view = &view
	if !splitStrides(s.view, *t.view) {
		panic(fmt.Sprintf("tensor: View: %v with strides %v as %v", t.Shape(), t.view.Strides[:t.view.Rank], shape))
	}
	return &s
}

// splitStrides sets new's strides so that it walks old's elements in order; false where that is impossible.
func splitStrides(new *bindings.Tensor, old bindings.Tensor) bool {
	if numel(viewShape(old)) == 0 {
		return true
	}
	n := int(new.Rank) - 1
	for o := int(old.Rank) - 1; o >= 0; o-- {
		run, base := old.Shape[o], old.Strides[o] // a run of old dimensions that is contiguous in itself
		for o > 0 && (old.Shape[o-1] == 1 || old.Strides[o-1] == old.Strides[o]*old.Shape[o]) {
			if old.Shape[o-1] == 1 {
				old.Strides[o-1] = old.Strides[o] * old.Shape[o]
			}
			o--
			run *= old.Shape[o]
		}
		stride := base
		for n >= 0 && run > 1 {
			if run%new.Shape[n] != 0 {
				return false
			}
			new.Strides[n] = stride
			stride *= new.Shape[n]
			run /= new.Shape[n]
			n--
		}
		if run != 1 {
			return false
		}
	}
	for ; n >= 0; n-- {
		if new.Shape[n] != 1 {
			return false
		}
	}
	return true
}

func (t *Tensor) mustBeWhole(op string) {
	if !t.box.equal(fullBox(t.root.shape)) {
		panic("tensor: " + op + ": want a whole tensor, got a view of a part")
	}
}

// bfloat16 rounds to nearest even; NaN stays NaN.
func bfloat16(v float32) uint16 {
	u := math.Float32bits(v)
	if u&0x7fffffff > 0x7f800000 {
		return uint16(u>>16) | 0x40
	}
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}

// SetRaw overwrites a contiguous tensor with bytes that are already in its dtype, little endian.
func (t *Tensor) SetRaw(data []byte) error {
	t.mustBeWhole("SetRaw")
	if len(data) != t.Len()*t.DType().Size() {
		panic(fmt.Sprintf("tensor: SetRaw: %d bytes for shape %v of %v", len(data), t.Shape(), t.DType()))
	}
	return overwrite(t, data)
}
