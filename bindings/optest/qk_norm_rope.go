package optest

import (
	"math"

	"github.com/fluxir/fluxir/bindings"
)

const qkNormEps = 1e-6

// ropeTable: pe[l, i] = (cos, sin) of ids[l,axis] · theta^(-2i/axes[axis]). All of it is one rounding of a float64.
func ropeTable(L int, axes [3]int32, theta float64) Case {
	pairs := int(axes[0]+axes[1]+axes[2]) / 2
	return Case{
		Op: "rope_table", DType: bindings.F32,
		Args: []Arg{
			Out("pe", bindings.F32, L, pairs, 2).Packed(),
			In("ids", bindings.F32, L, 3).From(func(_ Values, x []float64) {
				for i := range x {
					x[i] = float64(i * 37 % 1000)
				}
			}),
		},
		Run: func(d *bindings.Device, t Tensors) error { return d.RopeTable(t["pe"], t["ids"], axes, theta) },
		Formula: func(p *Prec, v Values) {
			pe := v["pe"]
			for l := range L {
				at := l * pairs * 2
				for axis, dim := range axes {
					for i := range int(dim / 2) {
						angle := v["ids"][l*3+axis] / math.Pow(theta, float64(2*i)/float64(dim))
						pe[at], pe[at+1] = p.F(math.Cos(angle)), p.F(math.Sin(angle))
						at += 2
					}
				}
			}
		},
		FLOPs: 3 * L * pairs,
	}
}

// qkNormRope says which parts of the op a case has: the norm, the rotation.
type qkNormRope struct {
	B, L, H, D int
	norm, rope bool
}

func (s qkNormRope) note() string {
	switch {
	case !s.rope:
		return "norm"
	case !s.norm:
		return "rope"
	}
	return ""
}

// parameters are weight and pe, as far as the case has them.
func (s qkNormRope) parameters(dtype bindings.DType) []Arg {
	var args []Arg
	if s.norm {
		args = append(args, In("weight", dtype, s.D).Packed())
	}
	if s.rope {
		args = append(args, In("pe", bindings.F32, s.L, s.D/2, 2).Packed().From(func(_ Values, x []float64) {
			for i := 0; i < len(x); i += 2 {
				x[i], x[i+1] = math.Cos(float64(i)), math.Sin(float64(i))
			}
		}))
	}
	return args
}

// rotate turns the pairs of a row of token l; direction -1 is the inverse.
func (s qkNormRope) rotate(p *Prec, v Values, l int, row []float64, direction float64) {
	pe := v["pe"]
	if pe == nil {
		return
	}
	for i := 0; i < s.D; i += 2 {
		c, sin := pe[l*s.D+i], direction*pe[l*s.D+i+1]
		row[i], row[i+1] = p.R(p.F(c*row[i])-p.F(sin*row[i+1])), p.R(p.F(sin*row[i])+p.F(c*row[i+1]))
	}
}

func qkNormRopeForward(dtype bindings.DType, s qkNormRope) Case {
	args := []Arg{Out("y", dtype, s.B, s.L, s.H, s.D).Alias("x")}
	if s.norm {
		args = append(args, Out("rstd", bindings.F32, s.B, s.L, s.H).Packed())
	}
	return Case{
		Op: "qk_norm_rope_forward", DType: dtype, Note: s.note(),
		Args: append(append(args, In("x", dtype, s.B, s.L, s.H, s.D)), s.parameters(dtype)...),
		Run: func(d *bindings.Device, t Tensors) error {
			return d.QKNormRopeForward(t["y"], t["rstd"], t["x"], t["weight"], t["pe"], qkNormEps)
		},
		Formula: s.forward,
		FLOPs:   7 * s.B * s.L * s.H * s.D,
	}
}

func (s qkNormRope) forward(p *Prec, v Values) {
	for i := range s.B * s.L * s.H {
		x, y := v["x"][i*s.D:][:s.D], v["y"][i*s.D:][:s.D]
		copy(y, x)
		if s.norm {
			squares := p.Sum(s.D, func(c int) float64 { return x[c] * x[c] })
			rstd := p.F(1 / math.Sqrt(p.F(squares/float64(s.D)+qkNormEps)))
			if v["rstd"] != nil {
				v["rstd"][i] = rstd
			}
			for c := range y {
				y[c] = p.R(p.R(x[c]*rstd) * v["weight"][c])
			}
		}
		s.rotate(p, v, i/s.H%s.L, y, 1)
	}
}

// qkNormRopeBackward, with g = dy rotated back and n = x · rstd: dweight = sum of g · n, dx = rstd · (g · weight - n · mean(g · weight · n)).
func qkNormRopeBackward(dtype bindings.DType, s qkNormRope) Case {
	forward := qkNormRopeForward(dtype, s)
	args := []Arg{Out("dx", dtype, s.B, s.L, s.H, s.D).Alias("dy"), In("dy", dtype, s.B, s.L, s.H, s.D)}
	if s.norm {
		args = append(args, Acc("dweight", s.D), In("x", dtype, s.B, s.L, s.H, s.D), In("rstd", bindings.F32, s.B, s.L, s.H).Packed())
	}
	return Case{
		Op: "qk_norm_rope_backward", DType: dtype, Note: s.note(), Forward: &forward,
		Args: append(args, s.parameters(dtype)...),
		Run: func(d *bindings.Device, t Tensors) error {
			return d.QKNormRopeBackward(t["dx"], t["dweight"], t["dy"], t["x"], t["rstd"], t["weight"], t["pe"])
		},
		Formula: s.backward,
		FLOPs:   12 * s.B * s.L * s.H * s.D,
	}
}

func (s qkNormRope) backward(p *Prec, v Values) {
	rows := s.B * s.L * s.H
	products := make([]float64, rows*s.D) // g · n
	for i := range rows {
		g := v["dx"][i*s.D:][:s.D]
		copy(g, v["dy"][i*s.D:])
		s.rotate(p, v, i/s.H%s.L, g, -1)
		if !s.norm {
			continue
		}
		x, rstd, weight := v["x"][i*s.D:], v["rstd"][i], v["weight"]
		n := func(c int) float64 { return p.R(x[c] * rstd) }
		for c := range g {
			products[i*s.D+c] = p.R(g[c] * n(c))
			g[c] = p.R(g[c] * weight[c])
		}
		mean := p.F(p.Sum(s.D, func(c int) float64 { return g[c] * n(c) }) / float64(s.D))
		for c := range g {
			g[c] = p.R(rstd * p.R(g[c]-p.R(n(c)*mean)))
		}
	}
	for c := range v["dweight"] {
		v["dweight"][c] = p.F(p.Sum(rows, func(i int) float64 { return products[i*s.D+c] }))
	}
}

func qkNormRopeCases() []Case {
	cases := []Case{
		ropeTable(1, [3]int32{2, 0, 0}, 100), ropeTable(17, [3]int32{4, 14, 14}, 10000), ropeTable(33, [3]int32{16, 56, 56}, 10000),
		ropeTable(0, [3]int32{4, 14, 14}, 10000),
	}
	for _, s := range []qkNormRope{
		{1, 1, 5, 2, true, true}, {1, 15, 3, 16, true, true}, {2, 17, 1, 24, true, true}, {3, 33, 6, 32, true, true}, {1, 5, 2, 128, true, true},
		{2, 7, 3, 30, true, false}, {2, 7, 3, 34, false, true}, {1, 0, 2, 32, true, true},
	} {
		for _, dtype := range floats {
			cases = append(cases, qkNormRopeForward(dtype, s), qkNormRopeBackward(dtype, s))
		}
	}
	s := qkNormRope{2, 9, 2, 48, true, true}
	return append(cases, qkNormRopeForward(bindings.F32, s).Without("rstd"), qkNormRopeBackward(bindings.F32, s).Without("dweight"))
}

func qkNormRopeBench() []Bench {
	var rows []Bench
	for _, dtype := range floats {
		for _, s := range []struct {
			preset string
			qkNormRope
		}{{"flux", qkNormRope{1, 1536, 24, 128, true, true}}, {"flux", qkNormRope{1, 4608, 24, 128, true, true}}, {"nano", qkNormRope{16, 264, 3, 64, true, true}}} {
			few := qkNormRope{1, 4, 2 - s.H%2, s.D, true, true}
			rows = append(rows, bench(s.preset, qkNormRopeForward(dtype, s.qkNormRope), sample(qkNormRopeForward(dtype, few))))
			backward := bench(s.preset, qkNormRopeBackward(dtype, s.qkNormRope))
			if s.preset == "flux" { // dweight sums over everything: checked where that is not too long
				backward.Samples = []Sample{sample(qkNormRopeBackward(dtype, few), "dx")}
			}
			rows = append(rows, backward)
		}
	}
	return rows
}
