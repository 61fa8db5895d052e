package optest

import (
	"fmt"
	"math"

	"github.com/fluxir/fluxir/bindings"
)

const groupNormEps = 1e-6

// groupNormForward: z = (x − mean)·rstd·w + b over the pixels and channels of a group; y = z or silu(z). offset is the mean of x.
func groupNormForward(dtype bindings.DType, silu bool, groups int, offset float64, B, Y, X, C int) Case {
	args := bindings.GroupNormArgs{Groups: groups, SiLU: silu, Eps: groupNormEps}
	P := Y * X
	return Case{
		Op: "groupnorm_forward", DType: dtype, Note: fmt.Sprintf("%d groups silu %t mean %g", groups, silu, offset),
		Args: []Arg{
			Out("y", dtype, B, Y, X, C),
			Out("mean", bindings.F32, B, groups).Packed(),
			Out("rstd", bindings.F32, B, groups).Packed(),
			In("x", dtype, B, Y, X, C).Uniform(offset-2, offset+2),
			In("w", dtype, C).Uniform(0.5, 1.5),
			In("b", dtype, C).Normal(0.5),
		},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.GroupNormForward(t["y"], t["mean"], t["rstd"], t["x"], t["w"], t["b"], args)
		},
		Formula: func(p *Prec, v Values) {
			y, x, w, b := v["y"], v["x"], v["w"], v["b"]
			for i := range B * groups {
				width, n := C/groups, P*C/groups
				at := func(k int) int { return (i/groups*P+k/width)*C + i%groups*width + k%width }
				mean := p.F(p.Sum(n, func(k int) float64 { return x[at(k)] }) / float64(n))
				variance := p.F(p.Sum(n, func(k int) float64 { return math.Pow(p.F(x[at(k)]-mean), 2) }) / float64(n))
				rstd := p.F(1 / math.Sqrt(variance+groupNormEps))
				if v["mean"] != nil {
					v["mean"][i], v["rstd"][i] = mean, rstd
				}
				for k := range n {
					j := at(k)
					z := p.R(p.F(p.F(p.F(x[j]-mean)*rstd)*w[j%C]) + b[j%C])
					if silu {
						a, _ := actValue(p, bindings.ActSiLU, z)
						z = p.R(a)
					}
					y[j] = z
				}
			}
		},
		FLOPs: 9 * B * P * C,
	}
}

// groupNormBackward: with xhat = (x − mean)·rstd and g = dy or dy·silu'(z): dw += Σ g·xhat, db += Σ g,
// dx = rstd (w g − mean(w g) − xhat mean(w g xhat)), means over the group.
func groupNormBackward(dtype bindings.DType, silu bool, groups int, offset float64, B, Y, X, C int) Case {
	forward := groupNormForward(dtype, silu, groups, offset, B, Y, X, C)
	args := bindings.GroupNormArgs{Groups: groups, SiLU: silu, Eps: groupNormEps}
	P := Y * X
	return Case{
		Op: "groupnorm_backward", DType: dtype, Note: forward.Note, Forward: &forward,
		Args: []Arg{
			Out("dx", dtype, B, Y, X, C),
			Acc("dw", C),
			Acc("db", C),
			In("dy", dtype, B, Y, X, C),
			In("x", dtype, B, Y, X, C).Uniform(offset-2, offset+2),
			In("mean", bindings.F32, B, groups).Packed(),
			In("rstd", bindings.F32, B, groups).Packed(),
			In("w", dtype, C).Uniform(0.5, 1.5),
			In("b", dtype, C).Normal(0.5),
		},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.GroupNormBackward(t["dx"], t["dw"], t["db"], t["dy"], t["x"], t["mean"], t["rstd"], t["w"], t["b"], args)
		},
		Formula: func(p *Prec, v Values) {
			dx, dw, db, dy, x, mean, rstd, w, b := v["dx"], v["dw"], v["db"], v["dy"], v["x"], v["mean"], v["rstd"], v["w"], v["b"]
			xhat, g := make([]float64, len(x)), make([]float64, len(x))
			width, n := C/groups, P*C/groups
			for j := range x {
				i := j/(P*C)*groups + j%C/width
				xhat[j] = p.F(p.F(x[j]-mean[i]) * rstd[i])
				g[j] = dy[j]
				if silu {
					z := p.R(p.F(xhat[j]*w[j%C]) + b[j%C])
					e := p.F(1 / (1 + math.Exp(-z)))
					g[j] = p.R(dy[j] * p.F(e*p.F(1+p.F(z*p.F(1-e)))))
				}
			}
			for i := range B * groups {
				at := func(k int) int { return (i/groups*P+k/width)*C + i%groups*width + k%width }
				wg := func(k int) float64 { return p.F(w[at(k)%C] * g[at(k)]) }
				first := p.F(p.Sum(n, wg) / float64(n))
				second := p.F(p.Sum(n, func(k int) float64 { return p.F(wg(k) * xhat[at(k)]) }) / float64(n))
				for k := range n {
					j := at(k)
					dx[j] = p.R(p.F(rstd[i] * p.F(p.F(wg(k)-first)-p.F(xhat[j]*second))))
				}
			}
			for c := range dw {
				db[c] = p.F(p.Sum(B*P, func(k int) float64 { return g[k*C+c] }))
				dw[c] = p.F(p.Sum(B*P, func(k int) float64 { return p.F(g[k*C+c] * xhat[k*C+c]) }))
			}
		},
		FLOPs: 20 * B * P * C,
	}
}

// groupNormCases: groups narrower and wider than a vector, images of several chunks (8192 / C pixels), a mean far above the deviation.
func groupNormCases() []Case {
	var cases []Case
	for _, dtype := range floats {
		for _, s := range []struct{ groups, B, Y, X, C int }{
			{1, 1, 2, 2, 1}, {3, 2, 3, 5, 15}, {4, 1, 4, 4, 16}, {17, 2, 3, 3, 17}, {2, 1, 7, 9, 34}, {32, 1, 5, 5, 128}, {2, 1, 1, 5, 8200}, {5, 2, 45, 41, 10}, {2, 1, 0, 3, 4},
		} {
			for _, silu := range []bool{false, true} {
				cases = append(cases, groupNormForward(dtype, silu, s.groups, 0, s.B, s.Y, s.X, s.C),
					groupNormBackward(dtype, silu, s.groups, 0, s.B, s.Y, s.X, s.C))
			}
		}
		cases = append(cases,
			groupNormForward(dtype, true, 2, 0, 2, 3, 3, 16).Without("mean", "rstd"),
			groupNormBackward(dtype, true, 2, 0, 2, 3, 3, 16).Without("dw", "db"))
	}
	return append(cases, groupNormForward(bindings.F32, false, 4, 8, 1, 24, 25, 16), groupNormBackward(bindings.F32, false, 4, 8, 1, 24, 25, 16))
}

// groupNormBench: the decoder's, with SiLU; two of the 32 groups are checked.
func groupNormBench() []Bench {
	var rows []Bench
	for _, dtype := range floats {
		for _, s := range [][2]int{{64, 512}, {128, 512}, {256, 128}, {256, 256}} {
			rows = append(rows, bench("vae", groupNormForward(dtype, true, 32, 0, 1, s[0], s[0], s[1]), sample(groupNormForward(dtype, true, 2, 0, 1, s[0], s[0], s[1]/16))))
		}
		rows = append(rows, bench("vae", groupNormBackward(dtype, true, 32, 0, 1, 128, 128, 128), sample(groupNormBackward(dtype, true, 2, 0, 1, 128, 128, 8))))
	}
	return rows
}
