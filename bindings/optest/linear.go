package optest

import (
	"math"

	"github.com/fluxir/fluxir/bindings"
)

// rowsOf are the dimensions [M] or [B,L] with a last one added.
func rowsOf(rows []int, last int) []int { return append(append([]int(nil), rows...), last) }

func product(dims []int) int {
	n := 1
	for _, d := range dims {
		n *= d
	}
	return n
}

// epilogue is what follows the product of a linear case.
type epilogue int

const (
	plain epilogue = iota
	gelu
	silu
	gated // y = residual + gate ⊙ u
)

func (e epilogue) act() bindings.Act {
	return []bindings.Act{bindings.ActNone, bindings.ActGELUTanh, bindings.ActSiLU, bindings.ActNone}[e]
}

func (e epilogue) String() string { return []string{"", "gelu_tanh", "silu", "gate"}[e] }

// linearForward: u = x wᵀ + b; y = u, act(u) or residual + gate_b ⊙ u. rows [M] or [B,L], [B,L] with a gate.
func linearForward(dtype bindings.DType, e epilogue, rows []int, I, O int) Case {
	M, L := product(rows), rows[len(rows)-1]
	c := Case{Op: "linear_forward", DType: dtype, Note: e.String(), FLOPs: 2 * M * I * O}
	c.Args = append(c.Args, Out("y", dtype, rowsOf(rows, O)...))
	if e != plain {
		c.Args = append(c.Args, Out("pre", dtype, rowsOf(rows, O)...))
	}
	c.Args = append(c.Args, In("x", dtype, rowsOf(rows, I)...))
	if e == gated {
		c.Args[0] = c.Args[0].Alias("residual")
		c.Args = append(c.Args, In("residual", dtype, rowsOf(rows, O)...), In("gate", dtype, rows[0], O))
	}
	c.Args = append(c.Args, In("w", dtype, O, I).Normal(1/math.Sqrt(float64(max(1, I)))), In("b", dtype, O))
	c.Run = func(d *bindings.Device, t Tensors) error {
		return d.LinearForward(t["y"], t["pre"], t["x"], t["residual"], t["gate"], t["w"], t["b"], e.act())
	}
	c.Formula = func(p *Prec, v Values) {
		x, w, b := v["x"], v["w"], v["b"]
		for i := range v["y"] {
			m, o := i/O, i%O
			u := p.R(p.Sum(I+len(b)/O, func(k int) float64 { // the bias is one more term
				if k == I {
					return b[o]
				}
				return x[m*I+k] * w[o*I+k]
			}))
			if v["pre"] != nil {
				v["pre"][i] = u
			}
			switch e {
			case gelu, silu:
				u, _ = actValue(p, e.act(), u)
			case gated:
				u = v["residual"][i] + p.R(v["gate"][m/L*O+o]*u)
			}
			v["y"][i] = p.R(u)
		}
	}
	return c
}

// linearBackward: with du = dy, dy ⊙ act'(pre) or gate_b ⊙ dy: dx = du w, dgate = Σ_L dy ⊙ pre, dw += duᵀ x, db += Σ du.
func linearBackward(dtype bindings.DType, e epilogue, accumulate bool, rows []int, I, O int) Case {
	M, L := product(rows), rows[len(rows)-1]
	forward := linearForward(dtype, e, rows, I, O)
	c := Case{Op: "linear_backward", DType: dtype, Note: accumulating(e.String(), accumulate), Forward: &forward, FLOPs: 4*M*I*O + M*O}
	c.Args = append(c.Args, Out("dx", dtype, rowsOf(rows, I)...).Accumulated(accumulate))
	if e == gated {
		c.Args = append(c.Args, Out("dgate", dtype, rows[0], O), In("gate", dtype, rows[0], O))
	}
	c.Args = append(c.Args, Acc("dw", O, I), Acc("db", O), In("dy", dtype, rowsOf(rows, O)...), In("x", dtype, rowsOf(rows, I)...),
		In("w", dtype, O, I).Normal(1/math.Sqrt(float64(max(1, I)))))
	if e != plain {
		c.Args = append(c.Args, In("pre", dtype, rowsOf(rows, O)...))
	}
	c.Run = func(d *bindings.Device, t Tensors) error {
		return d.LinearBackward(t["dx"], t["dgate"], t["dw"], t["db"], t["dy"], t["x"], t["gate"], t["w"], t["pre"], e.act(), accumulate)
	}
	c.Formula = func(p *Prec, v Values) {
		dx, dw, dy, x, w := v["dx"], v["dw"], v["dy"], v["x"], v["w"]
		du := make([]float64, len(dy))
		for i := range du {
			factor := 1.0
			switch e {
			case gelu, silu:
				_, factor = actValue(p, e.act(), v["pre"][i])
			case gated:
				factor = v["gate"][i/O/L*O+i%O]
			}
			du[i] = p.R(dy[i] * factor)
		}
		for i := range dx {
			m, k := i/I, i%I
			dx[i] = p.R(p.Sum(O, func(o int) float64 { return du[m*O+o] * w[o*I+k] }))
		}
		for i := range dw {
			o, k := i/I, i%I
			dw[i] = p.F(p.Sum(M, func(m int) float64 { return du[m*O+o] * x[m*I+k] }))
		}
		for o := range v["db"] {
			v["db"][o] = p.F(p.Sum(M, func(m int) float64 { return du[m*O+o] }))
		}
		for i := range v["dgate"] {
			at := func(l int) int { return (i/O*L+l)*O + i%O }
			v["dgate"][i] = p.R(p.Sum(L, func(l int) float64 { return p.R(dy[at(l)] * v["pre"][at(l)]) }))
		}
	}
	return c
}

// linearCases: odd sizes, few rows (up to 8), dw in several slices (more than 256 rows), tiles (more than 768 rows or 384 columns), sums of several blocks
// (more than 256 or 512 terms), a packed and an unpacked w, rows of
// different images apart, x broadcast over rows or images; every epilogue across tiles and items, with and without what is optional.
func linearCases() []Case {
	var cases []Case
	for _, dtype := range floats {
		for _, s := range []struct {
			rows []int
			I, O int
		}{
			{[]int{1}, 1, 1}, {[]int{3}, 17, 15}, {[]int{16}, 16, 16}, {[]int{2, 1}, 40, 33}, {[]int{131}, 65, 33}, {[]int{2, 7}, 9, 5}, {[]int{70}, 31, 1},
			{[]int{3, 300}, 6, 5}, {[]int{1100}, 9, 11}, {[]int{5}, 3, 530}, {[]int{5}, 520, 3}, {[]int{4}, 2048, 16}, {[]int{7}, 33, 70}, {[]int{41}, 1045, 50}, {[]int{37}, 20, 1045}, {[]int{0}, 4, 3}, {[]int{4}, 3, 0},
		} {
			cases = append(cases, linearForward(dtype, plain, s.rows, s.I, s.O), linearBackward(dtype, plain, false, s.rows, s.I, s.O))
		}
		for _, e := range []epilogue{gelu, silu, gated} {
			for _, s := range []struct {
				rows []int
				I, O int
			}{{[]int{2, 37}, 48, 19}, {[]int{3, 190}, 7, 21}, {[]int{2, 3}, 5, 530}} {
				cases = append(cases, linearForward(dtype, e, s.rows, s.I, s.O), linearBackward(dtype, e, s.rows[1] == 37, s.rows, s.I, s.O))
			}
			inference := linearForward(dtype, e, []int{2, 45}, 15, 33)
			cases = append(cases, inference.Without("pre"), inference.Without("pre", "b"))
			frozen := linearBackward(dtype, e, true, []int{2, 33}, 24, 17)
			cases = append(cases, frozen.Without("dw", "db", "x", "dgate"), frozen.Without("dx", "dw", "x"), frozen.Without("dx", "db"))
		}
		cases = append(cases, linearForward(dtype, silu, []int{90}, 15, 33), linearBackward(dtype, silu, false, []int{90}, 15, 33))
		backward := linearBackward(dtype, plain, true, []int{2, 33}, 24, 17)
		cases = append(cases, backward, backward.Without("dx"), backward.Without("dw", "db", "x"), backward.Without("dx", "dw", "x"))
		same := linearForward(dtype, plain, []int{3, 5}, 8, 7)
		same.Note = "x broadcast"
		same.Args[1] = same.Args[1].From(func(_ Values, x []float64) {
			for i := range x {
				x[i] = float64(i%8)/4 - 1
			}
		}).Strided(0, 0, 1)
		cases = append(cases, same)
	}
	return cases
}

// linearBench: every layer of a FLUX block at 512x512 pixels and text, the widest at 1024x1024, a modulation of one row; the embedded model's.
func linearBench() []Bench {
	var rows []Bench
	for _, dtype := range floats {
		forward := func(preset string, e epilogue, L, I, O int) Bench {
			return bench(preset, linearForward(dtype, e, []int{1, L}, I, O), sample(linearForward(dtype, e, []int{1, min(L, 8)}, I, 40)))
		}
		backward := func(preset string, e epilogue, L, I, O int, without ...string) Bench {
			dx := linearBackward(dtype, e, false, []int{1, 8}, 40, O).Without("dw", "db", "x", "dgate")
			dw := linearBackward(dtype, e, false, []int{1, L}, 10, 12).Without("dx", "w")
			full, samples := linearBackward(dtype, e, false, []int{1, L}, I, O), []Sample{sample(dx), sample(dw)}
			if without != nil {
				full, samples = full.Without(without...), samples[:1]
			}
			return bench(preset, full, samples...)
		}
		for _, s := range [][2]int{{3072, 9216}, {3072, 21504}} {
			rows = append(rows, forward("flux", plain, 1536, s[0], s[1]))
		}
		rows = append(rows,
			forward("flux", plain, 1536, 3072, 3072), forward("flux", gated, 1536, 3072, 3072), forward("flux", gated, 1536, 12288, 3072),
			forward("flux", gated, 1536, 15360, 3072), forward("flux", gelu, 1536, 3072, 12288).without("pre"), forward("flux", gelu, 1536, 3072, 12288),
			forward("flux", plain, 1, 3072, 18432), forward("flux", plain, 4608, 3072, 9216), forward("flux", gelu, 4608, 3072, 12288).without("pre"),
			backward("flux", gelu, 1536, 3072, 12288), backward("flux", gelu, 1536, 3072, 12288, "dw", "db", "x"),
			backward("flux", gated, 1536, 12288, 3072), forward("nano", plain, 4224, 192, 576), forward("nano", gelu, 4224, 192, 768),
			forward("nano", gated, 4224, 960, 192), backward("nano", plain, 4224, 192, 576), backward("nano", gelu, 4224, 192, 768),
			backward("nano", gated, 4224, 960, 192))
	}
	return rows
}
