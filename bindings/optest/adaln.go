package optest

import (
	"math"

	"github.com/fluxir/fluxir/bindings"
)

const adalnEps = 1e-6

// adalnForward: y = layernorm(x) · (1 + scale_b) + shift_b on [B,L,C]. center moves x away from 0: the variance must not suffer.
func adalnForward(dtype bindings.DType, center float64, B, L, C int) Case {
	note := ""
	if center != 0 {
		note = "off center"
	}
	return Case{
		Op: "adaln_forward", DType: dtype, Note: note,
		Args: []Arg{
			Out("y", dtype, B, L, C),
			Out("mean", bindings.F32, B, L).Packed(),
			Out("rstd", bindings.F32, B, L).Packed(),
			In("x", dtype, B, L, C).Uniform(center-2, center+2),
			In("shift", dtype, B, C),
			In("scale", dtype, B, C).Normal(0.5),
		},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.AdaLNForward(t["y"], t["mean"], t["rstd"], t["x"], t["shift"], t["scale"], adalnEps)
		},
		Formula: func(p *Prec, v Values) {
			for row := range B * L {
				b, x, y := row/L, v["x"][row*C:][:C], v["y"][row*C:][:C]
				mean := p.F(p.Sum(C, func(c int) float64 { return x[c] }) / float64(C))
				variance := p.F(p.Sum(C, func(c int) float64 { return p.F(p.F(x[c]-mean) * p.F(x[c]-mean)) }) / float64(C))
				rstd := p.F(1 / p.F(math.Sqrt(p.F(variance+adalnEps))))
				for c := range y {
					normal := p.R(p.F(x[c]-mean) * rstd)
					y[c] = p.R(p.R(normal*p.R(1+v["scale"][b*C+c])) + v["shift"][b*C+c])
				}
				if v["mean"] != nil {
					v["mean"][row], v["rstd"][row] = mean, rstd
				}
			}
		},
		FLOPs: 8 * B * L * C,
	}
}

// adalnBackward: with xhat the normalised x and g = dy (1 + scale), dx = rstd (g − mean(g) − xhat · mean(g · xhat)), or +=, dshift = Σ_l dy,
// dscale = Σ_l dy · xhat.
func adalnBackward(dtype bindings.DType, center float64, accumulate bool, B, L, C int) Case {
	forward := adalnForward(dtype, center, B, L, C)
	return Case{
		Op: "adaln_backward", DType: dtype, Note: accumulating(forward.Note, accumulate), Forward: &forward,
		Args: []Arg{
			Out("dx", dtype, B, L, C).Accumulated(accumulate),
			Out("dshift", dtype, B, C),
			Out("dscale", dtype, B, C),
			In("dy", dtype, B, L, C),
			In("x", dtype, B, L, C).Uniform(center-2, center+2),
			In("mean", bindings.F32, B, L).Packed(),
			In("rstd", bindings.F32, B, L).Packed(),
			In("scale", dtype, B, C).Normal(0.5),
		},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.AdaLNBackward(t["dx"], t["dshift"], t["dscale"], t["dy"], t["x"], t["mean"], t["rstd"], t["scale"], accumulate)
		},
		Formula: func(p *Prec, v Values) {
			dx, dy, normal := v["dx"], v["dy"], make([]float64, B*L*C)
			for row := range B * L {
				b, rstd, at := row/L, v["rstd"][row], row*C
				for i := at; i < at+C; i++ {
					normal[i] = p.R(p.F(v["x"][i]-v["mean"][row]) * rstd)
				}
				g := func(c int) float64 { return p.R(dy[at+c] * p.R(1+v["scale"][b*C+c])) }
				a := p.F(p.Sum(C, g) / float64(C))
				e := p.F(p.Sum(C, func(c int) float64 { return p.F(g(c) * normal[at+c]) }) / float64(C))
				for c := range C {
					dx[at+c] = p.R(rstd * p.F(p.F(g(c)-a)-p.F(normal[at+c]*e)))
				}
			}
			for i := range v["dshift"] {
				at := func(l int) int { return (i/C*L+l)*C + i%C }
				v["dshift"][i] = p.Sum(L, func(l int) float64 { return dy[at(l)] })
				v["dscale"][i] = p.Sum(L, func(l int) float64 { return p.R(dy[at(l)] * normal[at(l)]) })
			}
		},
		FLOPs: 14 * B * L * C,
	}
}

func adalnCases() []Case {
	var cases []Case
	for _, dtype := range floats {
		for _, s := range [][3]int{{1, 1, 3}, {1, 3, 15}, {2, 5, 16}, {3, 33, 17}, {2, 65, 131}, {1, 2, 600}, {1, 0, 8}} {
			cases = append(cases, adalnForward(dtype, 0, s[0], s[1], s[2]), adalnBackward(dtype, 0, s[1] == 5, s[0], s[1], s[2]))
		}
		// Of one channel only the value: dx is 0 there, and what is left of it rounding errors times 1/√eps.
		cases = append(cases, adalnForward(dtype, 0, 2, 3, 1), adalnForward(dtype, 12, 2, 3, 333), adalnBackward(dtype, 12, false, 2, 3, 333),
			adalnForward(dtype, 0, 2, 3, 48).Without("mean", "rstd"), adalnBackward(dtype, 0, true, 2, 3, 48).Without("dshift", "dscale"))
	}
	return cases
}

func adalnBench() []Bench {
	var rows []Bench
	for _, dtype := range floats {
		for _, s := range []struct {
			preset  string
			B, L, C int
		}{{"flux", 1, 1536, 3072}, {"flux", 1, 4608, 3072}, {"nano", 16, 264, 192}} {
			rows = append(rows,
				bench(s.preset, adalnForward(dtype, 0, s.B, s.L, s.C), sample(adalnForward(dtype, 0, 1, 2, s.C))),
				bench(s.preset, adalnBackward(dtype, 0, false, s.B, s.L, s.C), sample(adalnBackward(dtype, 0, false, 1, 2, s.C), "dx"),
					sample(adalnBackward(dtype, 0, false, 1, s.L, 32), "dshift", "dscale")))
		}
	}
	return rows
}
