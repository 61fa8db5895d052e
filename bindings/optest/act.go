package optest

import (
	"math"

	"github.com/fluxir/fluxir/bindings"
)

// actName is the note of a case.
func actName(act bindings.Act) string {
	if act == bindings.ActSiLU {
		return "silu"
	}
	return "gelu_tanh"
}

// sigmoid in f32 steps.
func sigmoid(p *Prec, x float64) float64 { return p.F(1 / p.F(1+p.F(math.Exp(-x)))) }

// actValue is act(x) and its slope in f32 steps. GELU's (1 + tanh u)/2 is written as sigmoid(2u), which keeps its digits for negative x.
func actValue(p *Prec, act bindings.Act, x float64) (y, slope float64) {
	argument, inner := x, 1.0
	if act == bindings.ActGELUTanh {
		root, square := 2*math.Sqrt(2/math.Pi), p.F(x*x)
		argument = p.F(root * p.F(x+p.F(0.044715*p.F(square*x))))
		inner = p.F(root * p.F(1+p.F(3*0.044715*square)))
	}
	s := sigmoid(p, argument)
	return p.F(x * s), p.F(s + p.F(p.F(x*p.F(s*sigmoid(p, -argument)))*inner))
}

// actForward: y = act(x), any shape.
func actForward(dtype bindings.DType, act bindings.Act, shape ...int) Case {
	c := Case{
		Op: "act_forward", DType: dtype, Note: actName(act),
		Args: []Arg{Out("y", dtype, shape...).Alias("x"), In("x", dtype, shape...).Normal(3)},
		Run:  func(d *bindings.Device, t Tensors) error { return d.ActForward(t["y"], t["x"], act) },
		Formula: func(p *Prec, v Values) {
			for i, x := range v["x"] {
				v["y"][i], _ = actValue(p, act, x)
			}
		},
	}
	c.FLOPs = 8 * c.Args[0].Len()
	return c
}

// actBackward: dx = dy · act'(x).
func actBackward(dtype bindings.DType, act bindings.Act, shape ...int) Case {
	forward := actForward(dtype, act, shape...)
	c := Case{
		Op: "act_backward", DType: dtype, Note: actName(act), Forward: &forward,
		Args: []Arg{Out("dx", dtype, shape...).Alias("dy"), In("dy", dtype, shape...), In("x", dtype, shape...).Normal(3)},
		Run:  func(d *bindings.Device, t Tensors) error { return d.ActBackward(t["dx"], t["dy"], t["x"], act) },
		Formula: func(p *Prec, v Values) {
			for i, x := range v["x"] {
				_, slope := actValue(p, act, x)
				v["dx"][i] = p.F(v["dy"][i] * slope)
			}
		},
	}
	c.FLOPs = 15 * c.Args[0].Len()
	return c
}

func actCases() []Case {
	var cases []Case
	for _, act := range []bindings.Act{bindings.ActGELUTanh, bindings.ActSiLU} {
		for _, dtype := range floats {
			for _, shape := range [][]int{{1}, {15}, {3, 16}, {2, 3, 17}, {2, 3, 1, 33}, {7, 1}, {20011}, {0, 4}} {
				cases = append(cases, actForward(dtype, act, shape...), actBackward(dtype, act, shape...))
			}
		}
	}
	return cases
}

// actBench: the MLP's activation where it is a step of its own, in training and in single blocks.
func actBench() []Bench {
	var rows []Bench
	for _, dtype := range floats {
		for _, s := range []struct {
			preset  string
			B, L, C int
		}{{"flux", 1, 1536, 12288}, {"nano", 16, 264, 768}} {
			rows = append(rows, bench(s.preset, actForward(dtype, bindings.ActGELUTanh, s.B, s.L, s.C), sample(actForward(dtype, bindings.ActGELUTanh, 1, 2, s.C))),
				bench(s.preset, actBackward(dtype, bindings.ActGELUTanh, s.B, s.L, s.C), sample(actBackward(dtype, bindings.ActGELUTanh, 1, 2, s.C))))
		}
	}
	return rows
}
