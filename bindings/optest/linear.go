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

// linearForward: y = act(x wᵀ + b), rows [M] or [B,L].
func linearForward(dtype bindings.DType, act bindings.Act, rows []int, I, O int) Case {
	M := product(rows)
	note := ""
	if act != bindings.ActNone {
		note = actName(act)
	}
	return Case{
		Op: "linear_forward", DType: dtype, Note: note,
		Args: []Arg{
			Out("y", dtype, rowsOf(rows, O)...),
			In("x", dtype, rowsOf(rows, I)...),
			In("w", dtype, O, I).Normal(1 / math.Sqrt(float64(max(1, I)))),
			In("b", dtype, O),
		},
		Run: func(d *bindings.Device, t Tensors) error { return d.LinearForward(t["y"], t["x"], t["w"], t["b"], act) },
		Formula: func(p *Prec, v Values) {
			y, x, w, b := v["y"], v["x"], v["w"], v["b"]
			for i := range y {
				m, o := i/O, i%O
				y[i] = p.R(p.Sum(I+len(b)/O, func(k int) float64 { // the bias is one more term
					if k == I {
						return b[o]
					}
					return x[m*I+k] * w[o*I+k]
				}))
				if act != bindings.ActNone {
					z, _ := actValue(p, act, y[i])
					y[i] = p.R(z)
				}
			}
		},
		FLOPs: 2 * M * I * O,
	}
}

// linearBackward: dx = dy w, dw += dyᵀ x, db += Σ dy.
func linearBackward(dtype bindings.DType, rows []int, I, O int) Case {
	M := product(rows)
	forward := linearForward(dtype, bindings.ActNone, rows, I, O)
	return Case{
		Op: "linear_backward", DType: dtype, Forward: &forward,
		Args: []Arg{
			Out("dx", dtype, rowsOf(rows, I)...),
			Acc("dw", O, I),
			Acc("db", O),
			In("dy", dtype, rowsOf(rows, O)...),
			In("x", dtype, rowsOf(rows, I)...),
			In("w", dtype, O, I).Normal(1 / math.Sqrt(float64(max(1, I)))),
		},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.LinearBackward(t["dx"], t["dw"], t["db"], t["dy"], t["x"], t["w"])
		},
		Formula: func(p *Prec, v Values) {
			dx, dw, db, dy, x, w := v["dx"], v["dw"], v["db"], v["dy"], v["x"], v["w"]
			for i := range dx {
				m, k := i/I, i%I
				dx[i] = p.R(p.Sum(O, func(o int) float64 { return dy[m*O+o] * w[o*I+k] }))
			}
			for i := range dw {
				o, k := i/I, i%I
				dw[i] = p.F(p.Sum(M, func(m int) float64 { return dy[m*O+o] * x[m*I+k] }))
			}
			for o := range db {
				db[o] = p.F(p.Sum(M, func(m int) float64 { return dy[m*O+o] }))
			}
		},
		FLOPs: 4*M*I*O + M*O,
	}
}

// linearCases: odd sizes, dw in several slices (more than 256 rows) and tiles (more than 512 on an edge), a packed and an unpacked w, rows of
// different images apart, x broadcast over rows or images.
func linearCases() []Case {
	var cases []Case
	for _, dtype := range floats {
		for _, s := range []struct {
			rows []int
			I, O int
		}{
			{[]int{1}, 1, 1}, {[]int{3}, 17, 15}, {[]int{16}, 16, 16}, {[]int{2, 1}, 40, 33}, {[]int{131}, 65, 33}, {[]int{2, 7}, 9, 5}, {[]int{70}, 31, 1},
			{[]int{3, 300}, 6, 5}, {[]int{1100}, 9, 11}, {[]int{5}, 3, 530}, {[]int{5}, 520, 3}, {[]int{4}, 2048, 16}, {[]int{0}, 4, 3}, {[]int{4}, 3, 0},
		} {
			cases = append(cases, linearForward(dtype, bindings.ActNone, s.rows, s.I, s.O), linearBackward(dtype, s.rows, s.I, s.O))
		}
		for _, act := range []bindings.Act{bindings.ActGELUTanh, bindings.ActSiLU} {
			cases = append(cases, linearForward(dtype, act, []int{2, 37}, 48, 19), linearForward(dtype, act, []int{90}, 15, 33).Without("b"))
		}
		backward := linearBackward(dtype, []int{2, 33}, 24, 17)
		cases = append(cases, backward.Without("dx"), backward.Without("dw", "db", "x"), backward.Without("dx", "dw", "x"))
		same := linearForward(dtype, bindings.ActNone, []int{3, 5}, 8, 7)
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
		forward := func(preset string, act bindings.Act, M, I, O int) Bench {
			return bench(preset, linearForward(dtype, act, []int{M}, I, O), sample(linearForward(dtype, act, []int{min(M, 8)}, I, 40)))
		}
		backward := func(preset string, M, I, O int, without ...string) Bench {
			dx := linearBackward(dtype, []int{8}, 40, O).Without("dw", "db", "x")
			dw := linearBackward(dtype, []int{M}, 10, 12).Without("dx", "w")
			full, samples := linearBackward(dtype, []int{M}, I, O), []Sample{sample(dx), sample(dw)}
			if without != nil {
				full, samples = full.Without(without...), samples[:1]
			}
			return bench(preset, full, samples...)
		}
		for _, s := range [][2]int{{3072, 3072}, {3072, 9216}, {12288, 3072}, {3072, 21504}, {15360, 3072}} {
			rows = append(rows, forward("flux", bindings.ActNone, 1536, s[0], s[1]))
		}
		rows = append(rows,
			forward("flux", bindings.ActGELUTanh, 1536, 3072, 12288), forward("flux", bindings.ActNone, 1, 3072, 18432),
			forward("flux", bindings.ActNone, 4608, 3072, 9216), forward("flux", bindings.ActGELUTanh, 4608, 3072, 12288),
			backward("flux", 1536, 3072, 12288), backward("flux", 1536, 3072, 12288, "dw", "db", "x"),
			forward("nano", bindings.ActNone, 4224, 192, 1344), forward("nano", bindings.ActNone, 4224, 960, 192),
			backward("nano", 4224, 192, 1344), backward("nano", 4224, 960, 192))
	}
	return rows
}
