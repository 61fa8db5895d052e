package optest

import (
	"math"

	"github.com/fluxir/fluxir/bindings"
)

// seSqueezeForward: m = mean over L of x [B,L,C].
func seSqueezeForward(dtype bindings.DType, B, L, C int) Case {
	return Case{
		Op: "se_squeeze_forward", DType: dtype,
		Args: []Arg{Out("m", bindings.F32, B, C).Packed(), In("x", dtype, B, L, C)},
		Run:  func(d *bindings.Device, t Tensors) error { return d.SESqueezeForward(t["m"], t["x"]) },
		Formula: func(p *Prec, v Values) {
			for i := range v["m"] {
				v["m"][i] = p.F(p.Sum(L, func(l int) float64 { return v["x"][(i/C*L+l)*C+i%C] }) / float64(L))
			}
		},
		FLOPs: B * L * C,
	}
}

// seSqueezeBackward: dx = dm / L.
func seSqueezeBackward(dtype bindings.DType, B, L, C int) Case {
	forward := seSqueezeForward(dtype, B, L, C)
	return Case{
		Op: "se_squeeze_backward", DType: dtype, Note: dims(B, L, C), Forward: &forward,
		Args: []Arg{Out("dx", dtype, B, L, C), In("dm", bindings.F32, B, C).Packed()},
		Run:  func(d *bindings.Device, t Tensors) error { return d.SESqueezeBackward(t["dx"], t["dm"]) },
		Formula: func(p *Prec, v Values) {
			for i := range v["dx"] {
				v["dx"][i] = p.R(v["dm"][i/(L*C)*C+i%C] / float64(L))
			}
		},
		FLOPs: B * C,
	}
}

// seWeights are the parameters of an excitation, in dtype.
func seWeights(dtype bindings.DType, C, R int) (w1, b1, w2, b2, gain Arg) {
	return In("w1", dtype, R, C).Normal(1 / math.Sqrt(float64(C))).Packed(), In("b1", dtype, R),
		In("w2", dtype, C, R).Normal(1 / math.Sqrt(float64(R))).Packed(), In("b2", dtype, C), In("gain", dtype, C)
}

// seExciteForward: u = w1 m + b1, s = sigmoid(w2 silu(u) + b2), a = gain ⊙ s. dtype is that of the parameters; everything else is F32, and so are the
// naive program's steps.
func seExciteForward(dtype bindings.DType, B, C, R int) Case {
	w1, b1, w2, b2, gain := seWeights(dtype, C, R)
	return Case{
		Op: "se_excite_forward", DType: dtype,
		Args: []Arg{
			Out("a", bindings.F32, B, C).Packed(), Out("u", bindings.F32, B, R).Packed(), Out("s", bindings.F32, B, C).Packed(),
			In("m", bindings.F32, B, C).Packed(), w1, b1, w2, b2, gain,
		},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.SEExciteForward(t["a"], t["u"], t["s"], t["m"], t["w1"], t["b1"], t["w2"], t["b2"], t["gain"])
		},
		Formula: func(p *Prec, v Values) {
			for b := range B {
				u, hidden := v["u"][b*R:][:R], make([]float64, R)
				for r := range u {
					u[r] = p.F(p.Sum(C, func(c int) float64 { return p.F(v["w1"][r*C+c] * v["m"][b*C+c]) }) + v["b1"][r])
					hidden[r] = p.F(u[r] * sigmoid(p, u[r]))
				}
				for c := range C {
					s := sigmoid(p, p.F(p.Sum(R, func(r int) float64 { return p.F(v["w2"][c*R+r] * hidden[r]) })+v["b2"][c]))
					v["s"][b*C+c], v["a"][b*C+c] = s, p.F(v["gain"][c]*s)
				}
			}
		},
		FLOPs: 4 * B * C * R,
	}
}

// seExciteBackward: with e the argument of the sigmoid, de = da ⊙ gain ⊙ s (1 − s), du = (de w2) ⊙ silu'(u), dm = du w1; dw2, db2, dw1, db1 the usual
// products, dgain = Σ_b da ⊙ s.
func seExciteBackward(dtype bindings.DType, B, C, R int) Case {
	forward := seExciteForward(dtype, B, C, R)
	w1, _, w2, _, gain := seWeights(dtype, C, R)
	return Case{
		Op: "se_excite_backward", DType: dtype, Forward: &forward,
		Args: []Arg{
			Out("dm", bindings.F32, B, C).Packed(), Acc("dw1", R, C), Acc("db1", R), Acc("dw2", C, R), Acc("db2", C), Acc("dgain", C),
			In("da", bindings.F32, B, C).Packed(), In("m", bindings.F32, B, C).Packed(), In("u", bindings.F32, B, R).Packed(),
			In("s", bindings.F32, B, C).Packed(), w1, w2, gain,
		},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.SEExciteBackward(t["dm"], t["dw1"], t["db1"], t["dw2"], t["db2"], t["dgain"], t["da"], t["m"], t["u"], t["s"], t["w1"], t["w2"], t["gain"])
		},
		Formula: func(p *Prec, v Values) {
			de, du, hidden := make([]float64, B*C), make([]float64, B*R), make([]float64, B*R)
			for i := range de {
				s := v["s"][i]
				de[i] = p.F(p.F(v["da"][i]*v["gain"][i%C]) * p.F(s*p.F(1-s)))
			}
			for i := range du {
				b, r := i/R, i%R
				var slope float64
				hidden[i], slope = actValue(p, bindings.ActSiLU, v["u"][i])
				du[i] = p.F(p.Sum(C, func(c int) float64 { return p.F(de[b*C+c] * v["w2"][c*R+r]) }) * slope)
			}
			for i := range v["dm"] {
				b, c := i/C, i%C
				v["dm"][i] = p.Sum(R, func(r int) float64 { return p.F(du[b*R+r] * v["w1"][r*C+c]) })
			}
			overBatch := func(out []float64, f func(b, i int) float64) {
				for i := range out {
					out[i] = p.Sum(B, func(b int) float64 { return p.F(f(b, i)) })
				}
			}
			overBatch(v["dw1"], func(b, i int) float64 { return du[b*R+i/C] * v["m"][b*C+i%C] })
			overBatch(v["db1"], func(b, i int) float64 { return du[b*R+i] })
			overBatch(v["dw2"], func(b, i int) float64 { return de[b*C+i/R] * hidden[b*R+i%R] })
			overBatch(v["db2"], func(b, i int) float64 { return de[b*C+i] })
			overBatch(v["dgain"], func(b, i int) float64 { return v["da"][b*C+i] * v["s"][b*C+i] })
		},
		FLOPs: 8 * B * C * R,
	}
}

func seCases() []Case {
	var cases []Case
	for _, dtype := range floats {
		for _, s := range [][3]int{{1, 1, 1}, {1, 3, 15}, {2, 5, 16}, {3, 33, 17}, {2, 70, 300}, {0, 3, 8}} {
			cases = append(cases, seSqueezeForward(dtype, s[0], s[1], s[2]), seSqueezeBackward(dtype, s[0], s[1], s[2]))
		}
		for _, s := range [][3]int{{1, 1, 1}, {1, 15, 1}, {2, 16, 17}, {3, 33, 16}, {2, 300, 15}, {0, 8, 2}} {
			cases = append(cases, seExciteForward(dtype, s[0], s[1], s[2]), seExciteBackward(dtype, s[0], s[1], s[2]))
		}
		cases = append(cases, seExciteBackward(dtype, 2, 48, 3).Without("dw1", "db1", "dw2", "db2", "dgain"))
	}
	return cases
}

func seBench() []Bench {
	var rows []Bench
	for _, dtype := range floats {
		for _, s := range []struct {
			preset     string
			B, L, C, R int
		}{{"flux", 1, 1536, 3072, 96}, {"nano", 16, 256, 192, 24}} {
			rows = append(rows, bench(s.preset, seSqueezeForward(dtype, s.B, s.L, s.C), sample(seSqueezeForward(dtype, 1, s.L, 32))),
				bench(s.preset, seSqueezeBackward(dtype, s.B, s.L, s.C)),
				bench(s.preset, seExciteForward(dtype, s.B, s.C, s.R)), bench(s.preset, seExciteBackward(dtype, s.B, s.C, s.R)))
		}
	}
	return rows
}
