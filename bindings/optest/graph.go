package optest

import (
	"fmt"
	"maps"
	"slices"

	"github.com/fluxir/fluxir/bindings"
)

// Node is a value of a Graph and, on the way back, its gradient.
type Node struct {
	Shape []int
	X, D  []float64 // D is nil until a gradient has reached the node
}

// Graph evaluates a composition of the ops' formulas and differentiates it by their backward formulas: what a whole block must compute. Exactly, or
// as the naive program whose every op stores its result in the dtype.
type Graph struct {
	DType bindings.DType
	prec  *Prec
	back  []func()
}

// Block is a composition: from named inputs and weights to named outputs.
type Block func(g *Graph, in map[string]*Node) map[string]*Node

// evaluate runs f on inputs and, where there are cotangents of outputs, back. The result has the outputs and the gradients "d" + input.
func (f Block) evaluate(g *Graph, in map[string]*Node, cotangents Values) Values {
	nodes := map[string]*Node{}
	for name, n := range in {
		nodes[name] = &Node{Shape: n.Shape, X: n.X}
	}
	result := Values{}
	outputs := f(g, nodes)
	for name, y := range outputs {
		result[name] = y.X
		if dy := cotangents["d"+name]; dy != nil {
			g.add(y, dy)
		}
	}
	for _, step := range slices.Backward(g.back) {
		step()
	}
	for name, n := range nodes {
		if n.D != nil {
			result["d"+name] = n.D
		}
	}
	return result
}

// Check holds what a device computed, outputs and gradients by name, against the block by the rule of the ops: two times the naive program's error for
// outputs, three for gradients.
func (f Block) Check(dtype bindings.DType, in map[string]*Node, cotangents, got Values) (ratio float64, err error) {
	want := f.evaluate(&Graph{DType: dtype, prec: &Prec{exact: true}}, in, cotangents)
	bounds := map[string]bound{}
	for order := range orders {
		naive := f.evaluate(&Graph{DType: dtype, prec: &Prec{order: order}}, in, cotangents)
		for name := range got {
			factor := 2.0
			if in[name[1:]] != nil {
				factor = 3
			}
			largest, rms := distance(naive[name], want[name])
			a, b := spacing(want[name], dtype), bounds[name]
			bounds[name] = bound{max(b.max, factor*largest+a), max(b.rms, factor*rms+a)}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if len(want[name]) != len(got[name]) {
			return 0, fmt.Errorf("%s: %d elements, want %d", name, len(got[name]), len(want[name]))
		}
		part, err := bounds[name].check(name, got[name], want[name])
		ratio = max(ratio, part)
		if err != nil {
			return ratio, err
		}
	}
	return ratio, nil
}

// add lets a gradient reach a node; a second one is added as the naive program would.
func (g *Graph) add(n *Node, d []float64) {
	if n.D == nil {
		n.D = slices.Clone(d)
		return
	}
	g.prec.dtype = g.DType
	for i := range d {
		n.D[i] = g.prec.R(n.D[i] + d[i])
	}
}

// apply evaluates a forward case. backward is the case of its gradients, nil where none are asked for.
func (g *Graph) apply(forward Case, backward *Case, in map[string]*Node) *Node {
	v := Values{}
	for name, n := range in {
		v[name] = n.X
	}
	out := forward.evaluate(g.prec, v)
	first := forward.Args[0] // y, o: the output that goes on
	y := &Node{Shape: first.Shape, X: out[first.Name]}
	g.back = append(g.back, func() {
		if y.D == nil || backward == nil {
			return
		}
		maps.Copy(v, out)
		v["d"+first.Name] = y.D
		for name, d := range backward.evaluate(g.prec, v) {
			g.add(in[name[1:]], d)
		}
	})
	return y
}

// part is the elements of n that at names, in a shape of their own.
func (g *Graph) part(n *Node, at []int, shape ...int) *Node {
	y := &Node{Shape: shape, X: make([]float64, len(at))}
	for i, j := range at {
		y.X[i] = n.X[j]
	}
	g.back = append(g.back, func() {
		if y.D == nil {
			return
		}
		d := make([]float64, len(n.X))
		for i, j := range at {
			d[j] = y.D[i]
		}
		g.add(n, d)
	})
	return y
}

// columns low to high of the last dimension.
func (g *Graph) columns(n *Node, low, high int, shape ...int) *Node {
	width := n.Shape[len(n.Shape)-1]
	var at []int
	for row := range len(n.X) / width {
		for c := low; c < high; c++ {
			at = append(at, row*width+c)
		}
	}
	return g.part(n, at, shape...)
}

// tokens low to high of [1,L,...].
func (g *Graph) tokens(n *Node, low, high int, shape ...int) *Node {
	width := len(n.X) / n.Shape[1]
	at := make([]int, (high-low)*width)
	for i := range at {
		at[i] = low*width + i
	}
	return g.part(n, at, shape...)
}

// concat joins [1,L,...] tokens, or columns of rows that are one token each.
func (g *Graph) concat(a, b *Node, shape ...int) *Node {
	y := &Node{Shape: shape, X: append(slices.Clone(a.X), b.X...)}
	g.back = append(g.back, func() {
		if y.D != nil {
			g.add(a, y.D[:len(a.X)])
			g.add(b, y.D[len(a.X):])
		}
	})
	return y
}

// beside joins the columns of a and b, [1,L,...].
func (g *Graph) beside(a, b *Node) *Node {
	L, wa, wb := a.Shape[1], len(a.X)/a.Shape[1], len(b.X)/b.Shape[1]
	y := &Node{Shape: []int{1, L, wa + wb}}
	for l := range L {
		y.X = append(append(y.X, a.X[l*wa:][:wa]...), b.X[l*wb:][:wb]...)
	}
	g.back = append(g.back, func() {
		if y.D == nil {
			return
		}
		var da, db []float64
		for l := range L {
			row := y.D[l*(wa+wb):]
			da, db = append(da, row[:wa]...), append(db, row[wa:][:wb]...)
		}
		g.add(a, da)
		g.add(b, db)
	})
	return y
}
