package optest

import (
	"fmt"
	"math"

	"github.com/fluxir/fluxir/bindings"
)

// add: y = a + b.
func add(dtype bindings.DType, shape ...int) Case {
	c := Case{
		Op: "add", DType: dtype,
		Args: []Arg{Out("y", dtype, shape...).Alias("a", "b"), In("a", dtype, shape...), In("b", dtype, shape...)},
		Run:  func(d *bindings.Device, t Tensors) error { return d.Add(t["y"], t["a"], t["b"]) },
		Formula: func(p *Prec, v Values) {
			for i := range v["y"] {
				v["y"][i] = p.R(v["a"][i] + v["b"][i])
			}
		},
	}
	c.FLOPs = c.Args[0].Len()
	return c
}

// axpbyForward: y[b,..] = p[b] x[b,..] + q[b] w[b,..], B the first of shape. The case's dtype is that of y.
func axpbyForward(y, x, w bindings.DType, shape ...int) Case {
	out := Out("y", y, shape...)
	if y == x {
		out = out.Alias("x")
	} else if y == w {
		out = out.Alias("w")
	}
	c := Case{
		Op: "axpby_forward", DType: y, Note: fmt.Sprintf("x %v w %v", x, w),
		Args: []Arg{out, In("x", x, shape...), In("w", w, shape...), In("p", bindings.F32, shape[0]), In("q", bindings.F32, shape[0])},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.AxpbyForward(t["y"], t["x"], t["w"], t["p"], t["q"])
		},
		Formula: func(p *Prec, v Values) {
			for i := range v["y"] {
				b := i / (len(v["y"]) / shape[0])
				v["y"][i] = p.R(v["p"][b] * v["x"][i])
				if v["w"] != nil {
					v["y"][i] = p.R(v["y"][i] + p.R(v["q"][b]*v["w"][i]))
				}
			}
		},
	}
	c.FLOPs = 3 * c.Args[0].Len()
	return c
}

// axpbyBackward: dx = p dy, dw = q dy. The case's dtype is that of dx and dw.
func axpbyBackward(dxw, dy bindings.DType, shape ...int) Case {
	forward := axpbyForward(dy, dxw, dxw, shape...)
	c := Case{
		Op: "axpby_backward", DType: dxw, Note: fmt.Sprintf("dy %v", dy), Forward: &forward,
		Args: []Arg{
			Out("dx", dxw, shape...), Out("dw", dxw, shape...), In("dy", dy, shape...), In("p", bindings.F32, shape[0]), In("q", bindings.F32, shape[0]),
		},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.AxpbyBackward(t["dx"], t["dw"], t["dy"], t["p"], t["q"])
		},
		Formula: func(p *Prec, v Values) {
			for i, dy := range v["dy"] {
				b := i / (len(v["dy"]) / shape[0])
				if v["dx"] != nil {
					v["dx"][i] = p.R(v["p"][b] * dy)
				}
				if v["dw"] != nil {
					v["dw"][i] = p.R(v["q"][b] * dy)
				}
			}
		},
	}
	c.FLOPs = 2 * c.Args[0].Len()
	return c
}

// timestepEmbed: y [B,dim] = (cos(a), sin(a)), a_i = factor · t · period^(-i/(dim/2)), angles in float64.
func timestepEmbed(dtype bindings.DType, B, dim int) Case {
	const factor, period = 1000, 10000
	return Case{
		Op: "timestep_embed", DType: dtype, Note: dims(B, dim),
		Args: []Arg{Out("y", dtype, B, dim), In("t", bindings.F32, B).Uniform(0, 1)},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.TimestepEmbed(t["y"], t["t"], factor, period)
		},
		Formula: func(p *Prec, v Values) {
			half := dim / 2
			for b, t := range v["t"] {
				for i := range half {
					a := factor * t * math.Exp(-math.Log(period)*float64(i)/float64(half))
					v["y"][b*dim+i], v["y"][b*dim+half+i] = p.R(p.F(math.Cos(a))), p.R(p.F(math.Sin(a)))
				}
			}
		},
		FLOPs: 40 * B * dim,
	}
}

func elemCases() []Case {
	f32, bf16 := bindings.F32, bindings.BF16
	var cases []Case
	for _, shape := range [][]int{{1}, {15}, {3, 16}, {2, 3, 17}, {2, 3, 1, 33}, {5, 1}, {2, 10007}, {0, 4}} {
		for _, y := range floats {
			cases = append(cases, add(y, shape...))
			for _, x := range floats {
				cases = append(cases, axpbyBackward(y, x, shape...))
			}
		}
		cases = append(cases, axpbyForward(f32, f32, f32, shape...), axpbyForward(bf16, bf16, bf16, shape...),
			axpbyForward(f32, f32, bf16, shape...), axpbyForward(bf16, f32, f32, shape...))
	}
	for _, y := range floats {
		for _, x := range floats {
			for _, w := range floats {
				cases = append(cases, axpbyForward(y, x, w, 3, 2, 18))
			}
		}
		cases = append(cases, axpbyForward(y, f32, f32, 3, 5, 6).Without("w", "q"), axpbyForward(y, bf16, bf16, 3, 5, 6).Without("w", "q"),
			axpbyBackward(y, f32, 3, 5, 6).Without("dw", "q"), axpbyBackward(y, f32, 3, 5, 6).Without("dx", "p"))
		for _, s := range [][2]int{{1, 2}, {3, 16}, {2, 256}, {0, 8}} {
			cases = append(cases, timestepEmbed(y, s[0], s[1]))
		}
	}
	return cases
}

func elemBench() []Bench {
	var rows []Bench
	for _, dtype := range floats {
		rows = append(rows, bench("flux", add(dtype, 1, 1536, 3072), sample(add(dtype, 1, 2, 3072))), bench("vae", add(dtype, 1, 128, 128, 512), sample(add(dtype, 1, 2, 2, 512))))
	}
	return append(rows,
		bench("flux", axpbyForward(bindings.F32, bindings.F32, bindings.F32, 1, 4096, 64)),
		bench("nano", axpbyForward(bindings.F32, bindings.F32, bindings.F32, 16, 32, 32, 12)),
		bench("nano", axpbyBackward(bindings.F32, bindings.F32, 16, 32, 32, 12)))
}
