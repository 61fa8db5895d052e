package bindings

/*
#cgo noescape fx_graph_launch
#cgo nocallback fx_graph_launch
#include "fluxir.h"
*/
import "C"

// Graph is a recorded sequence of ops; see fx_graph in fluxir.h. Call everything of it inside Do.
type Graph struct {
	device *Device
	c      *C.fx_graph
}

// BeginGraph records the ops called until EndGraph instead of running them.
func (d *Device) BeginGraph() error { return d.check(C.fx_graph_begin(d.ctx)) }

// EndGraph ends the recording, also after an op of it has failed.
func (d *Device) EndGraph() (*Graph, error) {
	g := &Graph{device: d}
	if err := d.check(C.fx_graph_end(d.ctx, &g.c)); err != nil {
		return nil, err
	}
	return g, nil
}

// Launch runs the recorded ops again, on the same addresses.
func (g *Graph) Launch() error { return g.device.check(C.fx_graph_launch(g.c)) }

// Free releases the graph. Idempotent.
func (g *Graph) Free() {
	C.fx_graph_destroy(g.c)
	g.c = nil
}
