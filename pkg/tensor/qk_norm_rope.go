package tensor

import "github.com/fluxir/fluxir/bindings"

// RopeTable is the rotation table [L, D/2, 2] F32 of position ids [L,3] (F32), for head dims split over three axes. A leaf.
func (t *Tape) RopeTable(ids *Tensor, axes [3]int, theta float64) *Tensor {
	pe := t.New(bindings.F32, ids.Dim(0), (axes[0]+axes[1]+axes[2])/2, 2)
	t.run("rope_table", func() error {
		return t.device.RopeTable(pe.view, ids.view, [3]int32{int32(axes[0]), int32(axes[1]), int32(axes[2])}, theta)
	})
	return pe
}
