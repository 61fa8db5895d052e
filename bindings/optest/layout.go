package optest

import (
	"fmt"
	"strings"

	"github.com/fluxir/fluxir/bindings"
)

// dims is a note for cases whose inputs do not tell their shape.
func dims(shape ...int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(shape), " ", "x"), "[]")
}

// packIndex is where element i of the tokens [B,(Y/2)(X/2),4C] lies in the image [B,Y,X,C].
func packIndex(i, Y, X, C int) int {
	channel, token := i%(4*C), i/(4*C)
	c, dy, dx := channel/4, channel/2%2, channel%2
	x, y, b := token%(X/2), token/(X/2)%(Y/2), token/(X/2)/(Y/2)
	return ((b*Y+2*y+dy)*X+2*x+dx)*C + c
}

// pack: x [B,Y,X,C] -> y [B,(Y/2)(X/2),4C].
func pack(dtype bindings.DType, B, Y, X, C int) Case {
	return Case{
		Op: "pack", DType: dtype, Exact: true,
		Args: []Arg{Out("y", dtype, B, Y/2*(X/2), 4*C), In("x", dtype, B, Y, X, C)},
		Run:  func(d *bindings.Device, t Tensors) error { return d.Pack(t["y"], t["x"]) },
		Formula: func(_ *Prec, v Values) {
			for i := range v["y"] {
				v["y"][i] = v["x"][packIndex(i, Y, X, C)]
			}
		},
	}
}

// unpack: the inverse of pack.
func unpack(dtype bindings.DType, B, Y, X, C int) Case {
	return Case{
		Op: "unpack", DType: dtype, Exact: true, Note: dims(B, Y, X, C),
		Args: []Arg{Out("y", dtype, B, Y, X, C), In("x", dtype, B, Y/2*(X/2), 4*C)},
		Run:  func(d *bindings.Device, t Tensors) error { return d.Unpack(t["y"], t["x"]) },
		Formula: func(_ *Prec, v Values) {
			for i := range v["x"] {
				v["y"][packIndex(i, Y, X, C)] = v["x"][i]
			}
		},
	}
}

// layout: y = x with conversion. ys and xs are the strides, nil for the usual ones; along a dimension with stride 0 in x the values repeat.
func layout(to, from bindings.DType, note string, ys, xs []int, shape ...int) Case {
	y, x := Out("y", to, shape...), In("x", from, shape...)
	if ys != nil {
		y = y.Strided(ys...)
	}
	if xs != nil {
		x = x.Strided(xs...).From(func(_ Values, x []float64) {
			for i := range x { // a value for each place in memory, from -16 to 16
				at, rest := 0, i
				for k := len(shape) - 1; k >= 0; k-- {
					at += rest % shape[k] * xs[k]
					rest /= shape[k]
				}
				x[i] = float64(at*7919%100003)/3125 - 16
			}
		})
	}
	return Case{
		Op: "layout", DType: to, Exact: true, Note: strings.TrimSpace(fmt.Sprintf("from %v %s", from, note)),
		Args:    []Arg{y, x},
		Run:     func(d *bindings.Device, t Tensors) error { return d.Layout(t["y"], t["x"]) },
		Formula: func(_ *Prec, v Values) { copy(v["y"], v["x"]) },
	}
}

// channelsLast has x [B,C,Y,X] in memory and y [B,Y,X,C].
func channelsLast(to, from bindings.DType, B, Y, X, C int) Case {
	return layout(to, from, "channels last", nil, []int{C * Y * X, X, 1, Y * X}, B, Y, X, C)
}

// fill: y = value.
func fill(dtype bindings.DType, shape ...int) Case {
	const value = 0.3
	return Case{
		Op: "fill", DType: dtype, Exact: true, Note: dims(shape...),
		Args: []Arg{Out("y", dtype, shape...)},
		Run:  func(d *bindings.Device, t Tensors) error { return d.Fill(t["y"], value) },
		Formula: func(_ *Prec, v Values) {
			for i := range v["y"] {
				v["y"][i] = value
			}
		},
	}
}

// sumBatch: dx = Σ_b dy, or += where dx is an Acc.
func sumBatch(dx Arg, dtype bindings.DType, B int) Case {
	n := dx.Len()
	return Case{
		Op: "sum_batch", DType: dtype, Note: fmt.Sprintf("to %v role %d", dx.DType, dx.Role),
		Args: []Arg{dx, In("dy", dtype, append([]int{B}, dx.Shape...)...)},
		Run:  func(d *bindings.Device, t Tensors) error { return d.SumBatch(t["dx"], t["dy"], dx.Role == RoleAcc) },
		Formula: func(p *Prec, v Values) {
			for i := range v["dx"] {
				v["dx"][i] = p.Sum(B, func(b int) float64 { return v["dy"][b*n+i] })
			}
		},
		FLOPs: B * n,
	}
}

func layoutCases() []Case {
	var cases []Case
	for _, dtype := range floats {
		for _, s := range [][4]int{{1, 2, 2, 1}, {2, 4, 6, 3}, {1, 6, 4, 16}, {2, 2, 10, 17}, {1, 0, 4, 4}} {
			cases = append(cases, pack(dtype, s[0], s[1], s[2], s[3]), unpack(dtype, s[0], s[1], s[2], s[3]))
		}
		for _, shape := range [][]int{{1}, {3, 15}, {2, 3, 16}, {17, 1}, {2, 1, 3, 2, 5}, {9001}, {0, 3}} {
			cases = append(cases, fill(dtype, shape...))
		}
		for _, shape := range [][]int{{1}, {15}, {3, 16}, {5, 3, 17}, {1, 2, 1, 33}, {0}} {
			cases = append(cases, sumBatch(Out("dx", dtype, shape...).Packed(), dtype, 3), sumBatch(Acc("dx", shape...), dtype, 3))
		}
		cases = append(cases, sumBatch(Out("dx", bindings.F32, 7, 5).Packed(), dtype, 1))
	}
	all := []bindings.DType{bindings.F32, bindings.BF16, bindings.F16}
	for _, to := range all {
		for _, from := range all {
			for _, shape := range [][]int{{1}, {15}, {3, 16}, {2, 3, 17}, {2, 1, 3, 2, 33}, {3, 1}, {20011}, {2, 0}} {
				cases = append(cases, layout(to, from, "", nil, nil, shape...))
			}
			cases = append(cases,
				channelsLast(to, from, 2, 5, 7, 3), channelsLast(to, from, 1, 9, 11, 50),
				layout(to, from, "transposed", nil, []int{1, 70}, 70, 67),
				layout(to, from, "transposed twice", []int{1, 70}, []int{1, 70}, 70, 67),
				layout(to, from, "scattered", []int{1, 80}, []int{40, 1}, 70, 33),
				layout(to, from, "every other", []int{35, 3}, []int{40, 2}, 6, 11),
				layout(to, from, "broadcast rows", nil, []int{0, 1}, 5, 37),
				layout(to, from, "broadcast columns", nil, []int{1, 0}, 37, 5),
				layout(to, from, "broadcast and transposed", nil, []int{0, 1, 35}, 3, 35, 40),
				layout(to, from, "rank 5", nil, []int{1, 2, 210, 42, 6}, 2, 3, 4, 5, 7))
		}
	}
	return cases
}

// layoutBench: casts and the joining of streams in FLUX, latents to tokens, images between the layouts, gradients of repeated weights.
func layoutBench() []Bench {
	return []Bench{
		bench("flux", layout(bindings.BF16, bindings.F32, "", nil, nil, 1536, 3072)), bench("flux", layout(bindings.F32, bindings.BF16, "", nil, nil, 1536, 3072)),
		bench("flux", layout(bindings.BF16, bindings.BF16, "", nil, nil, 1536, 3072)), bench("flux", fill(bindings.F32, 1<<22)),
		bench("nano", pack(bindings.F32, 16, 32, 32, 12)), bench("nano", unpack(bindings.F32, 16, 32, 32, 12)), bench("nano", sumBatch(Acc("dx", 8, 64), bindings.F32, 16)),
		bench("vae", pack(bindings.F32, 1, 64, 64, 16)), bench("vae", channelsLast(bindings.F32, bindings.F32, 1, 512, 512, 3)),
	}
}
