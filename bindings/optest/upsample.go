package optest

import "github.com/fluxir/fluxir/bindings"

// upsampleForward: y[b,i,j] = x[b,i/2,j/2].
func upsampleForward(dtype bindings.DType, B, Y, X, C int) Case {
	return Case{
		Op: "upsample_forward", DType: dtype, Exact: true,
		Args: []Arg{Out("y", dtype, B, 2*Y, 2*X, C), In("x", dtype, B, Y, X, C)},
		Run:  func(d *bindings.Device, t Tensors) error { return d.UpsampleForward(t["y"], t["x"]) },
		Formula: func(_ *Prec, v Values) {
			y, x := v["y"], v["x"]
			for i := range y {
				c, j, row := i%C, i/C%(2*X), i/C/(2*X)
				b, k := row/(2*Y), row%(2*Y)
				y[i] = x[((b*Y+k/2)*X+j/2)*C+c]
			}
		},
	}
}

// upsampleBackward: dx = the sum of the four pixels of dy.
func upsampleBackward(dtype bindings.DType, B, Y, X, C int) Case {
	forward := upsampleForward(dtype, B, Y, X, C)
	return Case{
		Op: "upsample_backward", DType: dtype, Forward: &forward,
		Args: []Arg{Out("dx", dtype, B, Y, X, C), In("dy", dtype, B, 2*Y, 2*X, C)},
		Run:  func(d *bindings.Device, t Tensors) error { return d.UpsampleBackward(t["dx"], t["dy"]) },
		Formula: func(p *Prec, v Values) {
			dx, dy := v["dx"], v["dy"]
			for i := range dx {
				c, j, row := i%C, i/C%X, i/C/X
				b, k := row/Y, row%Y
				dx[i] = p.R(p.Sum(4, func(n int) float64 { return dy[((b*2*Y+2*k+n/2)*2*X+2*j+n%2)*C+c] }))
			}
		},
		FLOPs: 3 * B * Y * X * C,
	}
}

func upsampleCases() []Case {
	var cases []Case
	for _, s := range [][4]int{{1, 1, 1, 1}, {2, 3, 5, 15}, {1, 4, 2, 16}, {3, 5, 7, 17}, {1, 0, 2, 3}} {
		for _, dtype := range floats {
			cases = append(cases, upsampleForward(dtype, s[0], s[1], s[2], s[3]), upsampleBackward(dtype, s[0], s[1], s[2], s[3]))
		}
	}
	return cases
}

func upsampleBench() []Bench {
	return []Bench{
		bench("vae", upsampleForward(bindings.BF16, 1, 128, 128, 512), sample(upsampleForward(bindings.BF16, 1, 8, 8, 512))),
		bench("vae", upsampleBackward(bindings.BF16, 1, 128, 128, 512), sample(upsampleBackward(bindings.BF16, 1, 8, 8, 512))),
	}
}
