package optest

import (
	"math"

	"github.com/fluxir/fluxir/bindings"
)

// flowLossForward: loss = mean of (v − (z1 − z0))².
func flowLossForward(dtype bindings.DType, shape ...int) Case {
	v := In("v", dtype, shape...)
	n := v.Len()
	return Case{
		Op: "flow_loss_forward", DType: dtype,
		Args: []Arg{Out("loss", bindings.F32, 1), v, In("z0", bindings.F32, shape...), In("z1", bindings.F32, shape...)},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.FlowLossForward(t["loss"], t["v"], t["z0"], t["z1"])
		},
		Formula: func(p *Prec, v Values) {
			v["loss"][0] = p.Sum(n, func(i int) float64 {
				e := p.F(v["v"][i] - p.F(v["z1"][i]-v["z0"][i]))
				return p.F(e * e)
			}) / float64(n)
		},
		FLOPs: 4 * n,
	}
}

// flowLossBackward: dv = dloss · 2/n · (v − (z1 − z0)).
func flowLossBackward(dtype bindings.DType, shape ...int) Case {
	forward := flowLossForward(dtype, shape...)
	dv := Out("dv", dtype, shape...)
	n := dv.Len()
	return Case{
		Op: "flow_loss_backward", DType: dtype, Forward: &forward,
		Args: []Arg{dv, In("dloss", bindings.F32, 1), In("v", dtype, shape...), In("z0", bindings.F32, shape...), In("z1", bindings.F32, shape...)},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.FlowLossBackward(t["dv"], t["dloss"], t["v"], t["z0"], t["z1"])
		},
		Formula: func(p *Prec, v Values) {
			factor := p.F(p.F(2*v["dloss"][0]) / float64(n))
			for i := range v["dv"] {
				v["dv"][i] = p.R(factor * p.F(v["v"][i]-p.F(v["z1"][i]-v["z0"][i])))
			}
		},
		FLOPs: 3 * n,
	}
}

func distanceName(d bindings.Distance) string { return [...]string{"l1", "l2", "charbonnier"}[d] }

// rho is the penalty and its slope.
func rho(p *Prec, d bindings.Distance, e float64) (value, slope float64) {
	switch d {
	case bindings.DistanceL1:
		if e == 0 {
			return 0, 0
		}
		return math.Abs(e), math.Copysign(1, e)
	case bindings.DistanceL2:
		return p.F(e * e), 2 * e
	}
	root := p.F(math.Sqrt(p.F(p.F(e*e) + 1e-6)))
	return root, p.F(e / root)
}

// target is as x, but 0.1 to 1 away from it in both directions, so that no difference quotient meets the kink, and equal to it in every seventh element.
func target(shape ...int) Arg {
	return In("target", bindings.F32, shape...).From(func(v Values, y []float64) {
		for i, x := range v["x"] {
			y[i] = x
			if i%7 != 0 {
				y[i] += (0.1 + 0.9*float64(i*7919%9973)/9973) * float64(i%2*2-1)
			}
		}
	})
}

// pixelLossForward: loss = mean over b of weight[b] · mean of rho(x − target).
func pixelLossForward(dtype bindings.DType, distance bindings.Distance, shape ...int) Case {
	x := In("x", dtype, shape...)
	n := x.Len()
	return Case{
		Op: "pixel_loss_forward", DType: dtype, Note: distanceName(distance),
		Args: []Arg{Out("loss", bindings.F32, 1), x, target(shape...), In("weight", bindings.F32, shape[0]).Uniform(0.1, 1)},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.PixelLossForward(t["loss"], t["x"], t["target"], t["weight"], distance)
		},
		Formula: func(p *Prec, v Values) {
			item := n / max(1, shape[0])
			v["loss"][0] = p.Sum(shape[0], func(b int) float64 {
				mean := p.F(p.Sum(item, func(i int) float64 {
					value, _ := rho(p, distance, p.F(v["x"][b*item+i]-v["target"][b*item+i]))
					return value
				}) / float64(item))
				if v["weight"] != nil {
					mean = p.F(mean * v["weight"][b])
				}
				return mean
			}) / float64(shape[0])
		},
		FLOPs: 4 * n,
	}
}

// pixelLossBackward: dx = dloss · weight[b]/n · rho'(x − target), n over all items.
func pixelLossBackward(dtype bindings.DType, distance bindings.Distance, shape ...int) Case {
	forward := pixelLossForward(dtype, distance, shape...)
	dx := Out("dx", dtype, shape...)
	n := dx.Len()
	return Case{
		Op: "pixel_loss_backward", DType: dtype, Note: distanceName(distance), Forward: &forward,
		Args: []Arg{
			dx, In("dloss", bindings.F32, 1), In("x", dtype, shape...), target(shape...), In("weight", bindings.F32, shape[0]).Uniform(0.1, 1),
		},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.PixelLossBackward(t["dx"], t["dloss"], t["x"], t["target"], t["weight"], distance)
		},
		Formula: func(p *Prec, v Values) {
			item := n / max(1, shape[0])
			for i := range v["dx"] {
				share := p.F(v["dloss"][0] / float64(n))
				if v["weight"] != nil {
					share = p.F(share * v["weight"][i/item])
				}
				_, slope := rho(p, distance, p.F(v["x"][i]-v["target"][i]))
				v["dx"][i] = p.R(share * slope)
			}
		},
		FLOPs: 5 * n,
	}
}

func lossCases() []Case {
	var cases []Case
	for _, dtype := range floats {
		for _, shape := range [][]int{{1}, {15}, {3, 16}, {2, 3, 17}, {2, 3, 5, 33}, {3, 1}, {2, 9001}, {0, 4}} {
			cases = append(cases, flowLossForward(dtype, shape...), flowLossBackward(dtype, shape...))
			for _, d := range []bindings.Distance{bindings.DistanceL1, bindings.DistanceL2, bindings.DistanceCharbonnier} {
				cases = append(cases, pixelLossForward(dtype, d, shape...), pixelLossBackward(dtype, d, shape...))
			}
		}
		cases = append(cases, pixelLossForward(dtype, bindings.DistanceL1, 2, 3, 19).Without("weight"),
			withoutBoth(pixelLossBackward(dtype, bindings.DistanceL1, 2, 3, 19), "weight"))
	}
	return cases
}

// lossBench: a forward sum of more terms than those here has no naive program near enough to check against.
func lossBench() []Bench {
	return []Bench{
		bench("flux", flowLossBackward(bindings.BF16, 1, 4096, 64)), bench("nano", flowLossBackward(bindings.F32, 16, 256, 48)),
		bench("nano", pixelLossForward(bindings.F32, bindings.DistanceL1, 16, 64, 64, 3)), bench("nano", pixelLossBackward(bindings.F32, bindings.DistanceL1, 16, 64, 64, 3)),
		bench("vae", pixelLossBackward(bindings.F32, bindings.DistanceCharbonnier, 1, 512, 512, 3)),
	}
}
