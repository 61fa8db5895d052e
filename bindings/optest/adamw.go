package optest

import (
	"fmt"
	"math"

	"github.com/fluxir/fluxir/bindings"
)

// gradSumSquares: out = Σ grad² over parameters of the given sizes.
func gradSumSquares(sizes ...int) Case {
	c := Case{Op: "grad_sum_squares", DType: bindings.F32, Args: []Arg{Out("out", bindings.F32, 1)}}
	total := 0
	for i, n := range sizes {
		c.Args = append(c.Args, In(fmt.Sprint("grad", i), bindings.F32, n))
		total += n
	}
	c.FLOPs = 2 * total
	c.Run = func(d *bindings.Device, t Tensors) error {
		params := make([]bindings.AdamWParam, len(sizes))
		for i, n := range sizes {
			params[i] = bindings.AdamWParam{Grad: t[fmt.Sprint("grad", i)].Data, N: int64(n)}
		}
		return d.GradSumSquares(t["out"], params)
	}
	c.Formula = func(p *Prec, v Values) {
		var all []float64
		for i := range sizes {
			all = append(all, v[fmt.Sprint("grad", i)]...)
		}
		v["out"][0] = p.Sum(len(all), func(i int) float64 { return p.F(all[i] * all[i]) })
	}
	return c
}

// single is the constant as C receives it.
func single(x float32) float64 { return float64(x) }

// adamwSettings are those of the cases: large steps, so that no term hides behind another.
func adamwSettings(clip float32, step int64) bindings.AdamWArgs {
	return bindings.AdamWArgs{LR: 0.1, Beta1: 0.9, Beta2: 0.99, Eps: 1e-3, WeightDecay: 0.5, Clip: clip, EMADecay: 0.75, Step: step}
}

// adamwUpdate is one parameter's step in f32; param is nil where the model reads master itself, ema where there is no average.
func adamwUpdate(p *Prec, a *bindings.AdamWArgs, scale float64, param, master, m, v, grad, ema []float64) {
	beta1, beta2, lr := single(a.Beta1), single(a.Beta2), single(a.LR)
	step1, root2 := p.F(1-math.Pow(beta1, float64(a.Step))), p.F(math.Sqrt(1-math.Pow(beta2, float64(a.Step))))
	for i := range master {
		g := p.F(scale * grad[i])
		m[i] = p.F(p.F(beta1*m[i]) + p.F(p.F(1-beta1)*g))
		v[i] = p.F(p.F(beta2*v[i]) + p.F(p.F(p.F(1-beta2)*g)*g))
		decayed := p.F(master[i] * p.F(1-lr*single(a.WeightDecay)))
		divisor := p.F(p.F(p.F(math.Sqrt(v[i]))/root2) + single(a.Eps))
		master[i] = p.F(decayed - p.F(p.F(lr/step1)*p.F(m[i]/divisor)))
		if param != nil {
			param[i] = p.R(master[i])
		}
		if ema != nil {
			ema[i] = p.F(p.F(single(a.EMADecay)*ema[i]) + p.F(p.F(1-single(a.EMADecay))*master[i]))
		}
	}
}

// adamwStep updates parameters of the given sizes; those at odd places have an average. With dtype F32 the model reads master itself, else it has a working
// copy. norm² is what sum_squares holds.
func adamwStep(dtype bindings.DType, clip float32, norm float64, step int64, sizes ...int) Case {
	settings := adamwSettings(clip, step)
	c := Case{Op: "adamw_step", DType: dtype, Note: fmt.Sprintf("clip %v step %d", clip, step)}
	name := func(what string, i int) string { return fmt.Sprint(what, i) }
	for i, n := range sizes {
		if dtype != bindings.F32 {
			c.Args = append(c.Args, Out(name("param", i), dtype, n))
		}
		c.Args = append(c.Args, InOut(name("master", i), bindings.F32, n), InOut(name("m", i), bindings.F32, n),
			InOut(name("v", i), bindings.F32, n).Uniform(0, 2), In(name("grad", i), bindings.F32, n))
		c.FLOPs += 16 * n
		if i%2 == 1 {
			c.Args = append(c.Args, InOut(name("ema", i), bindings.F32, n))
			c.FLOPs += 3 * n
		}
	}
	if clip != 0 {
		c.Args = append(c.Args, In("sum_squares", bindings.F32, 1).From(func(_ Values, x []float64) { x[0] = norm * norm }))
	}
	c.Run = func(d *bindings.Device, t Tensors) error {
		params := make([]bindings.AdamWParam, len(sizes))
		for i, n := range sizes {
			master, m, v, grad := t[name("master", i)], t[name("m", i)], t[name("v", i)], t[name("grad", i)]
			params[i] = bindings.AdamWParam{Param: master.Data, Master: master.Data, M: m.Data, V: v.Data, Grad: grad.Data, N: int64(n)}
			if param := t[name("param", i)]; param != nil {
				params[i].Param, params[i].DType = param.Data, dtype
			}
			if ema := t[name("ema", i)]; ema != nil {
				params[i].EMA = ema.Data
			}
		}
		return d.AdamWStep(params, t["sum_squares"], &settings)
	}
	c.Formula = func(p *Prec, v Values) {
		scale := 1.0
		if clip != 0 {
			scale = min(1, p.F(single(clip)/p.F(p.F(math.Sqrt(v["sum_squares"][0]))+1e-6)))
		}
		for i := range sizes {
			adamwUpdate(p, &settings, scale, v[name("param", i)], v[name("master", i)], v[name("m", i)], v[name("v", i)], v[name("grad", i)],
				v[name("ema", i)])
		}
	}
	return c
}

func adamwCases() []Case {
	cases := []Case{
		gradSumSquares(1), gradSumSquares(15, 16, 17), gradSumSquares(16384, 1, 16385, 33), gradSumSquares(5, 0, 3),
	}
	for _, dtype := range floats {
		cases = append(cases,
			adamwStep(dtype, 0, 0, 1, 1), adamwStep(dtype, 0, 0, 7, 15, 16, 17), adamwStep(dtype, 1, 2.5, 3, 16385, 5, 33),
			adamwStep(dtype, 10, 2.5, 100000, 48), adamwStep(dtype, 0, 0, 1, 4, 0, 9))
	}
	return cases
}

// adamwBench: a 3072 x 3072 matrix of FLUX, and as many parameters as the embedded model has.
func adamwBench() []Bench {
	var rows []Bench
	for _, s := range []struct {
		preset string
		n      int
	}{{"flux", 3072 * 3072}, {"nano", 8 << 20}} {
		for _, dtype := range floats {
			rows = append(rows, bench(s.preset, adamwStep(dtype, 1, 2, 5, s.n), sample(adamwStep(dtype, 1, 2, 5, 4096))))
		}
		rows = append(rows, bench(s.preset, gradSumSquares(s.n)),
			bench(s.preset, adamwStep(bindings.F32, 1, 2, 5, 16, s.n), sample(adamwStep(bindings.F32, 1, 2, 5, 16, 4096))))
	}
	return rows
}
