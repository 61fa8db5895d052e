package tensor

import (
	"fmt"
	"unsafe"

	"github.com/fluxir/fluxir/bindings"
)

// Tape runs ops and, while recording, remembers how to go back through them. Ops allocate from the current arena; Scope and
// Checkpoint switch to a deeper one and so bound the memory of what they run.
type Tape struct {
	device *bindings.Device
	arenas []*Arena // by depth
	depth  int
	nodes  []node
	record bool
	err    error
	flops  int64
	frees  int // calls of Free

	onGrad  func(p *Param)  // see OnGrad
	seen    map[*Param]bool // trained parameters that the step has read
	fresh   []*Param        // those read first by the step being recorded now
	replays bool            // inside Checkpoint: what is read now is gone back through later
}

// node is one recorded step. back reads the outputs' gradients and contributes to the inputs'; afterwards the memory the step owns is reused.
type node struct {
	op    string
	out   *Tensor // nil: back always runs; else it is skipped when no gradient has reached out
	back  func() error
	owned []*storage
	first []*Param // parameters that no step before has read: their gradients are complete after back
}

// NewTape returns a tape that does not record.
func NewTape(d *bindings.Device) *Tape {
	return &Tape{device: d, arenas: []*Arena{NewArena(d)}}
}

// Device is the device the tape runs on.
func (t *Tape) Device() *bindings.Device { return t.device }

// Arena is where ops allocate now.
func (t *Tape) Arena() *Arena { return t.arenas[t.depth] }

// Record starts recording, for a step that will call Backward.
func (t *Tape) Record() { t.record = true }

// Recording tells whether the tape records.
func (t *Tape) Recording() bool { return t.record }

// Err is the first failure of an op since the last Reset.
func (t *Tape) Err() error { return t.err }

// OnGrad lets f know, on the way back, of each trained parameter whose gradient is complete: no step that is still to be gone back through has read it. Of parameters
// that the forward pass has not read it says nothing.
func (t *Tape) OnGrad(f func(p *Param)) { t.onGrad, t.seen = f, map[*Param]bool{} }

// FLOPs is the number of multiplications and additions of the matrix products, convolutions and attention run since the last Reset, recomputation
// included.
func (t *Tape) FLOPs() int64 { return t.flops }

// Note lets a caller between ops report a failure of its own, which sticks like an op's; nil is ignored.
func (t *Tape) Note(what string, err error) { t.fail(what, err) }

// Reset ends a step: recorded nodes, the sticky error and all tensors of the step are forgotten, their memory is kept for the next one.
func (t *Tape) Reset() {
	for _, a := range t.arenas {
		a.Reset()
	}
	t.nodes, t.err, t.record, t.depth, t.flops, t.fresh = t.nodes[:0], nil, false, 0, 0, nil
	clear(t.seen)
}

// Free returns the tape's memory to the device. The tape may be used again.
func (t *Tape) Free() {
	t.Reset()
	t.frees++
	for _, a := range t.arenas {
		a.Free()
	}
}

// Bytes is the memory held by the tape's arenas.
func (t *Tape) Bytes() int64 {
	n := int64(0)
	for _, a := range t.arenas {
		n += a.Bytes()
	}
	return n
}

// fail keeps the first error.
func (t *Tape) fail(op string, err error) {
	if err != nil && t.err == nil {
		t.err = fmt.Errorf("%s: %w", op, err)
	}
}

// New allocates a tensor from the current arena, contents undefined: the destination of the …To ops, whose parts may be written by several ops. A tape
// in error returns a tensor of that shape that must not be read.
func (t *Tape) New(dtype bindings.DType, shape ...int) *Tensor {
	x := t.alloc(dtype, shape...)
	if t.record {
		t.nodes = append(t.nodes, node{op: "new", owned: []*storage{x.root}})
	}
	return x
}

func (t *Tape) alloc(dtype bindings.DType, shape ...int) *Tensor {
	if t.err != nil {
		s := &storage{dtype: dtype, shape: append([]int(nil), shape...), arena: t.Arena()}
		return s.whole()
	}
	x, err := newTensor(t.Arena(), dtype, shape...)
	t.fail("alloc", err)
	return x
}

// allocLike allocates the output of an op on x: x's shape and dtype, contiguous.
func (t *Tape) allocLike(x *Tensor) *Tensor { return t.alloc(x.DType(), x.Shape()...) }

// Upload makes a tensor of host values in the current arena. It is a leaf: no gradient flows to it unless Input says so.
func (t *Tape) Upload(values []float32, dtype bindings.DType, shape ...int) *Tensor {
	x := t.New(dtype, shape...)
	if t.err == nil {
		t.fail("upload", x.Set(values))
	}
	return x
}

// Input marks a leaf whose gradient is wanted.
func (t *Tape) Input(x *Tensor) *Tensor {
	x.root.needsGrad, x.root.input = true, true
	return x
}

// run calls an op unless an earlier one failed.
func (t *Tape) run(op string, f func() error) {
	if t.err == nil {
		t.fail(op, f())
	}
}

// grads tells whether an op must be recorded: a recording tape and an input that needs a gradient.
func (t *Tape) grads(inputs ...*Tensor) bool {
	if t.onGrad != nil && (t.record || t.replays) {
		t.reads(inputs)
	}
	if !t.record {
		return false
	}
	for _, x := range inputs {
		if x.NeedsGrad() {
			return true
		}
	}
	return false
}

// reads notes the trained parameters among inputs that are read for the first time.
func (t *Tape) reads(inputs []*Tensor) {
	for _, x := range inputs {
		if x == nil || x.root.param == nil || !x.NeedsGrad() || t.seen[x.root.param] {
			continue
		}
		t.seen[x.root.param] = true
		t.fresh = append(t.fresh, x.root.param)
	}
}

// push records a step with output y. owned: storages to reuse once the step has been gone back through (y's own, when the op allocated it, and
// what it saved). saved may hold nil.
func (t *Tape) push(op string, y *Tensor, owned []*Tensor, back func() error) {
	y.root.needsGrad = true
	n := node{op: op, out: y, back: back, first: t.fresh}
	t.fresh = nil
	for _, o := range owned {
		if o != nil {
			n.owned = append(n.owned, o.root)
		}
	}
	t.nodes = append(t.nodes, n)
}

// Mark records a point of the forward pass: f runs when the way back comes to it. For timing.
func (t *Tape) Mark(f func()) {
	if t.record {
		t.nodes = append(t.nodes, node{op: "mark", back: func() error { f(); return nil }})
	}
}

// FirstNotFinite names the first recorded output, in the order of the forward pass, that holds a NaN or an infinity; "" if there is none. It reads all of
// them back from the device: for a step that has gone wrong.
func (t *Tape) FirstNotFinite() (string, error) {
	for i, n := range t.nodes {
		outputs := n.owned
		if n.out != nil {
			outputs = []*storage{n.out.root}
		}
		for _, s := range outputs {
			if s.data == nil {
				continue
			}
			x := s.whole()
			finite, err := x.Finite()
			if err != nil {
				return "", err
			}
			if !finite {
				return fmt.Sprintf("output of op %d, %s, %v", i, n.op, s.shape), nil
			}
		}
	}
	return "", nil
}

// Backward computes the gradients of loss, one F32 element, with respect to every parameter (added to Param.Grad) and Input recorded so far, and
// forgets the recording. Values of intermediate tensors are gone afterwards.
func (t *Tape) Backward(loss *Tensor) error {
	if t.err != nil {
		return t.err
	}
	if loss.Len() != 1 {
		panic("tensor: Backward: want one element")
	}
	one := t.alloc(loss.DType(), 1)
	t.run("backward", func() error { return one.Set([]float32{1}) })
	return t.BackwardFrom([]*Tensor{loss}, []*Tensor{one})
}

// BackwardFrom is Backward for outputs with given cotangents, of the outputs' shapes and dtypes.
func (t *Tape) BackwardFrom(outputs, cotangents []*Tensor) error {
	for i, y := range outputs {
		if y.NeedsGrad() {
			t.run("backward", func() error { return t.contributeCopy(y, cotangents[i].view) })
		}
	}
	t.record = false
	nodes := t.nodes
	for i := len(nodes) - 1; i >= 0 && t.err == nil; i-- {
		n := &nodes[i]
		if n.back != nil && (n.out == nil || n.out.hasGrad()) {
			if n.out != nil {
				t.run(n.op, func() error { return t.cover(n.out) })
			}
			t.run(n.op+" backward", n.back)
		}
		for _, p := range n.first {
			t.onGrad(p)
		}
		for _, s := range n.owned {
			s.recycle()
		}
		*n = node{}
	}
	t.nodes = nodes[:0]
	return t.err
}

// recycle gives a storage and its gradient back to the arena.
func (s *storage) recycle() {
	if s.input {
		return
	}
	if s.data != nil {
		s.arena.release(s.data, s.bytes())
	}
	if s.grad != nil {
		s.arena.release(s.grad, s.bytes())
	}
	s.data, s.grad, s.written = nil, nil, nil
}

// Release gives tensors that no later op reads back to the arena, so that a long forward pass keeps two blocks' worth of activations and not all of them. While
// recording it does nothing: the way back needs them.
func (t *Tape) Release(xs ...*Tensor) {
	if t.record {
		return
	}
	for _, x := range xs {
		x.root.recycle()
	}
}

// ---- gradients of activations ----

// gradView is x's view on its storage's gradient.
func (x *Tensor) gradView() bindings.Tensor {
	v := *x.view
	v.Data = unsafe.Add(x.root.grad, uintptr(x.view.Data)-uintptr(x.root.data))
	return v
}

// hasGrad tells whether any gradient has reached x.
func (x *Tensor) hasGrad() bool { return x.box.overlapsAny(x.root.written) }

// grad is the gradient of an output, for the op's backward. The tape has covered it.
func (x *Tensor) grad() *bindings.Tensor {
	v := x.gradView()
	return &v
}

// cover fills the parts of x's gradient that nothing has reached with zeros.
func (t *Tape) cover(x *Tensor) error {
	s := x.root
	if err := t.ensureGrad(s); err != nil {
		return err
	}
	whole := bindings.NewTensor(s.grad, s.dtype, s.shape...)
	for _, b := range x.box.uncovered(s.written) {
		part := whole
		for i := 0; i < b.rank; i++ {
			part.Data = unsafe.Add(part.Data, int64(b.low[i])*whole.Strides[i]*int64(s.dtype.Size()))
			part.Shape[i] = int64(b.size[i])
		}
		if err := t.device.Fill(&part, 0); err != nil {
			return err
		}
		s.written = append(s.written, b)
	}
	return nil
}

func (t *Tape) ensureGrad(s *storage) error {
	if s.grad != nil {
		return nil
	}
	p, err := s.arena.alloc(s.bytes())
	s.grad = p
	return err
}

// contribute lets write overwrite a gradient for x: the gradient itself when nothing has reached that part yet, else a temporary that is then added.
// With x nil or not needing a gradient, write is not called.
func (t *Tape) contribute(x *Tensor, write func(dx *bindings.Tensor) error) error {
	if !x.NeedsGrad() {
		return nil
	}
	s := x.root
	if err := t.ensureGrad(s); err != nil {
		return err
	}
	dx := x.gradView()
	if !x.hasGrad() {
		s.written = append(s.written, x.box)
		return write(&dx)
	}
	if err := t.cover(x); err != nil {
		return err
	}
	bytes := int64(x.Len()) * int64(s.dtype.Size())
	p, err := t.Arena().alloc(bytes)
	if err != nil {
		return err
	}
	defer t.Arena().release(p, bytes)
	temporary := bindings.NewTensor(p, s.dtype, x.Shape()...)
	if err := write(&temporary); err != nil {
		return err
	}
	return t.device.Add(&dx, &dx, &temporary)
}

// contributeAdding is contribute for an op that can add to a gradient itself. write is called in any case, with nil where x needs no gradient.
func (t *Tape) contributeAdding(x *Tensor, write func(dx *bindings.Tensor, accumulate bool) error) error {
	if !x.NeedsGrad() {
		return write(nil, false)
	}
	s := x.root
	if err := t.ensureGrad(s); err != nil {
		return err
	}
	dx := x.gradView()
	if !x.hasGrad() {
		s.written = append(s.written, x.box)
		return write(&dx, false)
	}
	if err := t.cover(x); err != nil {
		return err
	}
	return write(&dx, true)
}

// contributeAll is contribute for an op that writes several gradients at once; the unwanted ones are nil.
func (t *Tape) contributeAll(xs []*Tensor, write func(dxs []*bindings.Tensor) error) error {
	dxs := make([]*bindings.Tensor, len(xs))
	var next func(i int) error
	next = func(i int) error {
		if i == len(xs) {
			return write(dxs)
		}
		if !xs[i].NeedsGrad() {
			return next(i + 1)
		}
		return t.contribute(xs[i], func(dx *bindings.Tensor) error {
			dxs[i] = dx
			return next(i + 1)
		})
	}
	return next(0)
}

// contributeCopy adds a finished gradient to x's.
func (t *Tape) contributeCopy(x *Tensor, dx *bindings.Tensor) error {
	if !x.NeedsGrad() {
		return nil
	}
	if !x.hasGrad() {
		return t.contribute(x, func(slot *bindings.Tensor) error { return t.device.Layout(slot, dx) })
	}
	if err := t.cover(x); err != nil {
		return err
	}
	slot := x.gradView()
	return t.device.Add(&slot, &slot, dx)
}

// passOn contributes y's gradient, which is not needed any more, to x: by handing over the memory where both are whole, else by a copy.
func (t *Tape) passOn(x, y *Tensor) error {
	if !x.NeedsGrad() {
		return nil
	}
	xs, ys := x.root, y.root
	if xs.grad == nil && xs.arena == ys.arena && xs.dtype == ys.dtype && xs.bytes() == ys.bytes() &&
		x.box.equal(fullBox(xs.shape)) && y.box.equal(fullBox(ys.shape)) && xs.param == nil {
		xs.grad, xs.written = ys.grad, []box{fullBox(xs.shape)}
		ys.grad, ys.written = nil, nil
		return nil
	}
	return t.contributeCopy(x, y.grad())
}

// paramGrad is the F32 gradient of a trainable parameter or of a slice of one, nil for a frozen one: the ABI adds to it.
func (x *Tensor) paramGrad() *bindings.Tensor {
	if x == nil || x.root.param == nil || !x.root.needsGrad {
		return nil
	}
	g := *x.view
	elements := (uintptr(x.view.Data) - uintptr(x.root.data)) / uintptr(x.DType().Size())
	g.Data, g.DType = unsafe.Add(x.root.param.Grad.view.Data, elements*4), bindings.F32
	return &g
}

// ---- memory ----

// deeper runs f with allocations in the next arena, which is empty before and after.
func (t *Tape) deeper(f func()) {
	t.depth++
	if t.depth == len(t.arenas) {
		t.arenas = append(t.arenas, NewArena(t.device))
	}
	defer func() {
		t.arenas[t.depth].Reset()
		t.depth--
	}()
	f()
}

// Scope runs f without recording and returns copies of its results; all memory that f used is free again. For restoring.
func (t *Tape) Scope(f func() []*Tensor) []*Tensor {
	var kept []*Tensor
	t.deeper(func() {
		record := t.record
		t.record = false
		defer func() { t.record = record }()
		for _, y := range f() {
			kept = append(kept, t.keep(y))
		}
	})
	return kept
}

// keep copies a result of a deeper arena one level up.
func (t *Tape) keep(y *Tensor) *Tensor {
	t.depth--
	defer func() { t.depth++ }()
	up := t.alloc(y.DType(), y.Shape()...)
	t.run("keep", func() error { return t.device.Layout(up.view, y.view) })
	return up
}

// Checkpoint runs f on inputs and keeps only its results: on the way back f runs again, recorded, so activations inside it are never all alive at
// once. f must be a function of its inputs and of parameters only. Without recording it is Scope.
func (t *Tape) Checkpoint(inputs []*Tensor, f func(inputs []*Tensor) []*Tensor) []*Tensor {
	outer := t.replays
	t.replays = t.record || outer
	outputs := t.Scope(func() []*Tensor { return f(inputs) })
	t.replays = outer
	if !t.record {
		return outputs
	}
	for _, y := range outputs {
		y.root.needsGrad = true
	}
	n := node{op: "checkpoint", back: func() error { return t.replay(inputs, outputs, f) }, first: t.fresh}
	t.fresh = nil
	for _, y := range outputs {
		n.owned = append(n.owned, y.root)
	}
	t.nodes = append(t.nodes, n)
	return outputs
}

// replay is Checkpoint's way back.
func (t *Tape) replay(inputs, outputs []*Tensor, f func([]*Tensor) []*Tensor) error {
	saved := t.nodes
	t.nodes = nil
	defer func() { t.nodes = saved }()
	t.deeper(func() {
		leaves := make([]*Tensor, len(inputs))
		for i, x := range inputs {
			leaves[i] = x.detached(t.Arena())
		}
		t.record = true
		again := f(leaves)
		var ys, cotangents []*Tensor
		for i, y := range outputs {
			if y.hasGrad() && again[i].NeedsGrad() {
				t.run("checkpoint", func() error { return t.cover(y) })
				g := y.gradView()
				ys, cotangents = append(ys, again[i]), append(cotangents, &Tensor{view: &g})
			}
		}
		if t.BackwardFrom(ys, cotangents) != nil {
			return
		}
		for i, x := range inputs {
			if leaves[i] != nil && leaves[i].root.param == nil && leaves[i].NeedsGrad() && leaves[i].hasGrad() {
				t.run("checkpoint", func() error {
					if err := t.cover(leaves[i]); err != nil {
						return err
					}
					return t.contributeCopy(x, leaves[i].grad())
				})
			}
		}
	})
	return t.err
}

// detached is x's values as a leaf of a, with a gradient of its own. Parameters stay themselves.
func (x *Tensor) detached(a *Arena) *Tensor {
	if x == nil || x.root.param != nil {
		return x
	}
	s := *x.root
	s.arena, s.grad, s.written = a, nil, nil
	leaf := *x
	leaf.root = &s
	return &leaf
}
