package optest

import (
	"fmt"
	"math"

	"github.com/fluxir/fluxir/bindings"
)

const gaussianShift, gaussianScale = 0.1159, 0.3611 // FLUX's

// moments [B,Y,X,2C] = (mean, logvar): normal, or, wide, uniform past both bounds of logvar.
func moments(dtype bindings.DType, wide bool, B, Y, X, C int) Arg {
	a := In("moments", dtype, B, Y, X, 2*C)
	if wide {
		return a.Uniform(-45, 30)
	}
	return a
}

// moment is mean and logvar of element i of z; inside is 1 where the clamp of logvar does nothing, else 0.
func moment(v Values, i, C int) (mean, logvar, inside float64) {
	at := i/C*2*C + i%C
	mean, logvar = v["moments"][at], v["moments"][at+C]
	if clamped := min(max(logvar, -30), 20); clamped != logvar {
		return mean, clamped, 0
	}
	return mean, logvar, 1
}

func gaussianNote(z, eps bindings.DType, wide bool) string {
	note := fmt.Sprintf("z %v eps %v", z, eps)
	if wide {
		note += " wide"
	}
	return note
}

// gaussianForward: z = (mean + exp(logvar/2) ⊙ eps − shift) · scale.
func gaussianForward(z, m, eps bindings.DType, wide bool, B, Y, X, C int) Case {
	return Case{
		Op: "gaussian_forward", DType: z, Note: gaussianNote(m, eps, wide),
		Args: []Arg{Out("z", z, B, Y, X, C), moments(m, wide, B, Y, X, C), In("eps", eps, B, Y, X, C)},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.GaussianForward(t["z"], t["moments"], t["eps"], gaussianShift, gaussianScale)
		},
		Formula: func(p *Prec, v Values) {
			shift, scale := float64(float32(gaussianShift)), float64(float32(gaussianScale))
			for i := range v["z"] {
				x, logvar, _ := moment(v, i, C)
				if v["eps"] != nil {
					x = p.R(x + p.R(p.R(math.Exp(p.R(0.5*logvar)))*v["eps"][i]))
				}
				v["z"][i] = p.R(p.R(x-shift) * scale)
			}
		},
		FLOPs: 12 * B * Y * X * C,
	}
}

// gaussianBackward: dmean = scale · dz; dlogvar = ½ scale · dz ⊙ eps ⊙ exp(logvar/2) inside the bounds of logvar, 0 outside.
func gaussianBackward(m, z, eps bindings.DType, wide bool, B, Y, X, C int) Case {
	forward := gaussianForward(z, m, eps, wide, B, Y, X, C)
	return Case{
		Op: "gaussian_backward", DType: m, Note: gaussianNote(z, eps, wide), Forward: &forward,
		Args: []Arg{Out("dmoments", m, B, Y, X, 2*C), In("dz", z, B, Y, X, C), moments(m, wide, B, Y, X, C), In("eps", eps, B, Y, X, C)},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.GaussianBackward(t["dmoments"], t["dz"], t["moments"], t["eps"], gaussianScale)
		},
		Formula: func(p *Prec, v Values) {
			scale := float64(float32(gaussianScale))
			for i, dz := range v["dz"] {
				at := i/C*2*C + i%C
				_, logvar, inside := moment(v, i, C)
				g := p.R(scale * dz)
				v["dmoments"][at] = g
				if v["eps"] != nil {
					v["dmoments"][at+C] = inside * p.R(0.5*p.R(p.R(g*v["eps"][i])*p.R(math.Exp(p.R(0.5*logvar)))))
				}
			}
		},
		FLOPs: 12 * B * Y * X * C,
	}
}

// gaussianKLForward: kl = mean over B of ½ Σ (mean² + exp(logvar) − 1 − logvar), in f32.
func gaussianKLForward(dtype bindings.DType, wide bool, B, Y, X, C int) Case {
	return Case{
		Op: "gaussian_kl_forward", DType: dtype, Note: gaussianNote(bindings.F32, bindings.F32, wide),
		Args: []Arg{Out("kl", bindings.F32, 1), moments(dtype, wide, B, Y, X, C)},
		Run:  func(d *bindings.Device, t Tensors) error { return d.GaussianKLForward(t["kl"], t["moments"]) },
		Formula: func(p *Prec, v Values) {
			v["kl"][0] = 0.5 / float64(B) * p.Sum(B*Y*X*C, func(i int) float64 {
				mean, logvar, _ := moment(v, i, C)
				return p.F(p.F(mean*mean) + p.F(p.F(p.F(math.Exp(logvar))-1)-logvar))
			})
		},
		FLOPs: 12 * B * Y * X * C,
	}
}

// gaussianKLBackward: dmean = dkl/B · mean; dlogvar = dkl/2B · (exp(logvar) − 1) inside the bounds of logvar, 0 outside.
func gaussianKLBackward(dtype bindings.DType, wide bool, B, Y, X, C int) Case {
	forward := gaussianKLForward(dtype, wide, B, Y, X, C)
	return Case{
		Op: "gaussian_kl_backward", DType: dtype, Note: forward.Note, Forward: &forward,
		Args: []Arg{Out("dmoments", dtype, B, Y, X, 2*C), In("dkl", bindings.F32, 1), moments(dtype, wide, B, Y, X, C)},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.GaussianKLBackward(t["dmoments"], t["dkl"], t["moments"])
		},
		Formula: func(p *Prec, v Values) {
			factor := p.F(v["dkl"][0] / float64(B))
			for i := range B * Y * X * C {
				at := i/C*2*C + i%C
				mean, logvar, inside := moment(v, i, C)
				v["dmoments"][at] = p.R(factor * mean)
				v["dmoments"][at+C] = inside * p.R(p.F(0.5*factor)*p.R(p.R(math.Exp(logvar))-1))
			}
		},
		FLOPs: 10 * B * Y * X * C,
	}
}

// withoutBoth takes arguments off a backward case and its forward case.
func withoutBoth(c Case, names ...string) Case {
	forward := c.Forward.Without(names...)
	c = c.Without(names...)
	c.Forward = &forward
	return c
}

func gaussianCases() []Case {
	f32, bf16 := bindings.F32, bindings.BF16
	var cases []Case
	for _, s := range [][4]int{{1, 1, 1, 1}, {2, 3, 5, 15}, {1, 2, 3, 16}, {3, 2, 7, 17}, {0, 3, 3, 4}} {
		for _, dtype := range floats {
			cases = append(cases,
				gaussianForward(dtype, dtype, dtype, false, s[0], s[1], s[2], s[3]), gaussianBackward(dtype, dtype, dtype, false, s[0], s[1], s[2], s[3]),
				gaussianKLForward(dtype, false, s[0], s[1], s[2], s[3]), gaussianKLBackward(dtype, false, s[0], s[1], s[2], s[3]))
		}
	}
	for _, z := range floats {
		for _, m := range floats {
			for _, eps := range floats {
				cases = append(cases, gaussianForward(z, m, eps, true, 2, 5, 3, 18), gaussianBackward(m, z, eps, true, 2, 5, 3, 18))
			}
		}
		cases = append(cases, gaussianForward(z, f32, z, false, 2, 3, 3, 4).Without("eps"), gaussianForward(z, bf16, z, false, 2, 3, 3, 4).Without("eps"),
			withoutBoth(gaussianBackward(z, f32, z, false, 2, 3, 3, 4), "eps"),
			gaussianKLForward(z, true, 2, 5, 3, 18), gaussianKLBackward(z, true, 2, 5, 3, 18), gaussianKLForward(z, false, 2, 70, 9, 16))
	}
	return cases
}

func gaussianBench() []Bench {
	return []Bench{
		bench("vae", gaussianForward(bindings.F32, bindings.F32, bindings.F32, false, 1, 128, 128, 16)),
		bench("vae", gaussianBackward(bindings.F32, bindings.F32, bindings.F32, false, 1, 128, 128, 16)),
	}
}
