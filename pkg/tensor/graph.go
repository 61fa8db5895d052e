package tensor

import (
	"errors"
	"slices"
	"unsafe"

	"github.com/fluxir/fluxir/bindings"
)

// Graphs runs pieces of steps that come again and again with the same shapes. On a device with graphs the first run of a piece is plain, the second is
// recorded, and all later ones are one call; elsewhere every run is plain. The results are the same bits.
type Graphs struct {
	Replays int // runs that were one call

	recorded map[string]*recording
	off      bool // the device has none, or a piece could not be recorded
}

// recording is one piece.
type recording struct {
	inputs        []unsafe.Pointer
	before, after place
	graph         *bindings.Graph // nil after the first run
	out           *Tensor
	flops         int64
}

// place is where a tape allocates next, and with it where everything of a piece will lie.
type place struct {
	data  unsafe.Pointer // of the arena's block
	block int
	used  int64
	depth int
	frees int
}

// place is where t is.
func (t *Tape) place() place {
	a := t.Arena()
	p := place{block: a.block, used: a.used, depth: t.depth, frees: t.frees}
	if a.block < len(a.blocks) {
		p.data = a.blocks[a.block].Data()
	}
	return p
}

// tidy tells whether no released memory waits to be handed out again, so that place says it all.
func (a *Arena) tidy() bool {
	for _, list := range a.free {
		if len(list) > 0 {
			return false
		}
	}
	return true
}

// goTo makes the arena allocate from p on.
func (t *Tape) goTo(p place) {
	a := t.Arena()
	a.block, a.used = p.block, p.used
	clear(a.free)
}

// Run runs f, or what has been recorded of it, and returns f's result. key names the piece: shapes, and every number that f gives to ops. f reads
// parameters, inputs, and tensors that the step has made just before Run, in the same order each time; it uploads and reads back nothing. Nil inputs
// are ignored. Nothing is recorded while the tape records a step for Backward, nor by a nil receiver.
func (g *Graphs) Run(t *Tape, key string, inputs []*Tensor, f func() *Tensor) *Tensor {
	if g == nil || g.off || t.record || t.err != nil || !t.Arena().tidy() {
		return f()
	}
	now := &recording{before: t.place()}
	for _, x := range inputs {
		if x != nil {
			now.inputs = append(now.inputs, x.view.Data)
		}
	}
	r := g.recorded[key]
	if r == nil || r.before != now.before || !slices.Equal(r.inputs, now.inputs) { // what a piece needs is allocated and prepared in a plain run
		g.drop(key)
		y := f()
		if t.err == nil {
			g.remember(key, now)
		}
		return y
	}
	if r.graph == nil && !r.record(t, f) {
		g.off = true
		return f()
	}
	err := r.graph.Launch()
	var status *bindings.Error
	if errors.As(err, &status) && status.Status == bindings.StatusInvalid { // another op has made the workspace grow
		g.drop(key)
		return f()
	}
	t.fail("graph", err)
	g.Replays++
	t.goTo(r.after)
	t.flops += r.flops
	return r.out
}

// record runs f once, recording, and leaves the tape as it was; false where that cannot be done.
func (r *recording) record(t *Tape, f func() *Tensor) bool {
	if t.device.BeginGraph() != nil {
		return false
	}
	flops := t.flops
	r.out = f()
	var err error
	r.graph, err = t.device.EndGraph()
	r.after = t.place()
	r.flops = t.flops - flops
	failed := t.err != nil || err != nil
	t.err, t.flops = nil, flops
	t.goTo(r.before)
	if failed && r.graph != nil {
		r.graph.Free()
	}
	return !failed
}

func (g *Graphs) remember(key string, r *recording) {
	if g.recorded == nil {
		g.recorded = map[string]*recording{}
	}
	g.recorded[key] = r
}

func (g *Graphs) drop(key string) {
	if r := g.recorded[key]; r != nil && r.graph != nil {
		r.graph.Free()
	}
	delete(g.recorded, key)
}

// Free releases what has been recorded, before the tapes' memory is. Call inside Do.
func (g *Graphs) Free() {
	if g == nil {
		return
	}
	for key := range g.recorded {
		g.drop(key)
	}
}
