package optest

import "github.com/fluxir/fluxir/bindings"

// gateAlpha is that of the cases; blocks have 1.
const gateAlpha = 0.75

// gateForward: y = x + alpha · gate_b ⊙ r on [B,L,C]; gate [B,C] may be F32 in a bf16 case.
func gateForward(dtype, gateDType bindings.DType, B, L, C int) Case {
	return gateForwardBy(gateAlpha, dtype, gateDType, B, L, C)
}

func gateForwardBy(alpha float64, dtype, gateDType bindings.DType, B, L, C int) Case {
	return Case{
		Op: "gate_forward", DType: dtype, Note: "gate " + gateDType.String(),
		Args: []Arg{
			Out("y", dtype, B, L, C).Alias("x"),
			In("x", dtype, B, L, C),
			In("gate", gateDType, B, C),
			In("r", dtype, B, L, C),
		},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.GateForward(t["y"], t["x"], t["gate"], t["r"], float32(alpha))
		},
		Formula: func(p *Prec, v Values) {
			y, x, gate, r := v["y"], v["x"], v["gate"], v["r"]
			for i := range y {
				b, c := i/(L*C), i%C
				y[i] = p.R(x[i] + p.R(p.R(alpha*gate[b*C+c])*r[i]))
			}
		},
		FLOPs: 3 * B * L * C,
	}
}

// gateBackward: dr = alpha · gate ⊙ dy, or +=; dgate = alpha · sum over L of dy ⊙ r.
func gateBackward(dtype, gateDType bindings.DType, accumulate bool, B, L, C int) Case {
	return gateBackwardBy(gateAlpha, dtype, gateDType, accumulate, B, L, C)
}

func gateBackwardBy(alpha float64, dtype, gateDType bindings.DType, accumulate bool, B, L, C int) Case {
	forward := gateForwardBy(alpha, dtype, gateDType, B, L, C)
	return Case{
		Op: "gate_backward", DType: dtype, Note: accumulating("gate "+gateDType.String(), accumulate), Forward: &forward,
		Args: []Arg{
			Out("dr", dtype, B, L, C).Accumulated(accumulate),
			Out("dgate", gateDType, B, C),
			In("dy", dtype, B, L, C),
			In("gate", gateDType, B, C),
			In("r", dtype, B, L, C),
		},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.GateBackward(t["dr"], t["dgate"], t["dy"], t["gate"], t["r"], float32(alpha), accumulate)
		},
		Formula: func(p *Prec, v Values) {
			dr, dgate, dy, gate, r := v["dr"], v["dgate"], v["dy"], v["gate"], v["r"]
			for i := range dr {
				b, c := i/(L*C), i%C
				dr[i] = p.R(p.R(alpha*gate[b*C+c]) * dy[i])
			}
			for i := range dgate {
				b, c := i/C, i%C
				at := func(l int) int { return (b*L+l)*C + c }
				dgate[i] = p.R(alpha * p.R(p.Sum(L, func(l int) float64 { return p.R(dy[at(l)] * r[at(l)]) })))
			}
		},
		FLOPs: 5 * B * L * C,
	}
}

func gateCases() []Case {
	var cases []Case
	for _, s := range [][3]int{{1, 1, 1}, {1, 3, 15}, {2, 5, 16}, {3, 33, 17}, {2, 65, 131}, {1, 0, 8}} {
		for _, dtype := range floats {
			cases = append(cases, gateForward(dtype, dtype, s[0], s[1], s[2]), gateBackward(dtype, dtype, s[1] == 5, s[0], s[1], s[2]))
		}
	}
	mixed := gateBackward(bindings.BF16, bindings.F32, true, 2, 33, 48)
	return append(cases, gateForward(bindings.BF16, bindings.F32, 2, 33, 48), mixed, mixed.Without("dr"), mixed.Without("dgate", "r"))
}

// gateBench: residuals of FLUX and of the embedded model, and the adapter's broadcast, whose gate is F32.
func gateBench() []Bench {
	var rows []Bench
	add := func(preset string, dtype, gate bindings.DType, B, L, C int) {
		rows = append(rows, bench(preset, gateForward(dtype, gate, B, L, C), sample(gateForward(dtype, gate, 1, 2, C))),
			bench(preset, gateBackward(dtype, gate, false, B, L, C), sample(gateBackward(dtype, gate, false, 1, L, 32))))
	}
	for _, dtype := range floats {
		add("flux", dtype, dtype, 1, 1536, 3072)
		add("flux", dtype, dtype, 1, 4608, 3072)
		add("nano", dtype, dtype, 16, 264, 192)
	}
	add("flux", bindings.BF16, bindings.F32, 1, 1536, 3072)
	add("nano", bindings.BF16, bindings.F32, 16, 264, 192)
	return rows
}
