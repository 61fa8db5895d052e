package optest

import (
	"fmt"
	"math"

	"github.com/fluxir/fluxir/bindings"
)

// convShape is one convolution: images, channels in and out, kernel.
type convShape struct {
	B, Y, X, I, O, KY, KX int
	bindings.Conv2DArgs
}

func (s convShape) outY() int { return (s.Y+s.PadTop+s.PadBottom-s.KY)/s.Stride + 1 }
func (s convShape) outX() int { return (s.X+s.PadLeft+s.PadRight-s.KX)/s.Stride + 1 }

func (s convShape) note() string {
	return fmt.Sprintf("stride %d pad %d,%d,%d,%d", s.Stride, s.PadTop, s.PadLeft, s.PadBottom, s.PadRight)
}

// x index of output pixel (oy,ox) and kernel position k in [0, KY·KX) of image b, channel 0; -1 in the padding.
func (s convShape) at(b, oy, ox, k int) int {
	y, x := oy*s.Stride-s.PadTop+k/s.KX, ox*s.Stride-s.PadLeft+k%s.KX
	if y < 0 || y >= s.Y || x < 0 || x >= s.X {
		return -1
	}
	return ((b*s.Y+y)*s.X + x) * s.I
}

func (s convShape) weight() Arg {
	return In("w", bindings.F32, s.O, s.I, s.KY, s.KX).Normal(1 / math.Sqrt(float64(max(1, s.I*s.KY*s.KX)))).Packed()
}

// conv2DForward: y[b,oy,ox,o] = b[o] + Σ over i, ky, kx of x[b, oy·stride − top + ky, ox·stride − left + kx, i] · w[o,i,ky,kx].
func conv2DForward(dtype bindings.DType, s convShape) Case {
	OY, OX, K := s.outY(), s.outX(), s.KY*s.KX
	w := s.weight()
	w.DType = dtype
	return Case{
		Op: "conv2d_forward", DType: dtype, Note: s.note(),
		Args: []Arg{Out("y", dtype, s.B, OY, OX, s.O), In("x", dtype, s.B, s.Y, s.X, s.I), w, In("b", dtype, s.O)},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.Conv2DForward(t["y"], t["x"], t["w"], t["b"], s.Conv2DArgs)
		},
		Formula: func(p *Prec, v Values) {
			y, x, w, b := v["y"], v["x"], v["w"], v["b"]
			for i := range y {
				o, ox, oy, n := i%s.O, i/s.O%OX, i/s.O/OX%OY, i/s.O/OX/OY
				y[i] = p.R(p.Sum(K*s.I+len(b)/s.O, func(k int) float64 { // the bias is one more term
					if k == K*s.I {
						return b[o]
					}
					at := s.at(n, oy, ox, k/s.I)
					if at < 0 {
						return 0
					}
					return x[at+k%s.I] * w[(o*s.I+k%s.I)*K+k/s.I]
				}))
			}
		},
		FLOPs: 2 * s.B * OY * OX * s.O * s.I * K,
	}
}

// conv2DBackward: dx =, dw += and db += of conv2DForward.
func conv2DBackward(dtype bindings.DType, s convShape) Case {
	OY, OX, K := s.outY(), s.outX(), s.KY*s.KX
	forward := conv2DForward(dtype, s)
	w := s.weight()
	w.DType = dtype
	return Case{
		Op: "conv2d_backward", DType: dtype, Note: s.note(), Forward: &forward,
		Args: []Arg{
			Out("dx", dtype, s.B, s.Y, s.X, s.I), Acc("dw", s.O, s.I, s.KY, s.KX), Acc("db", s.O),
			In("dy", dtype, s.B, OY, OX, s.O), In("x", dtype, s.B, s.Y, s.X, s.I), w,
		},
		Run: func(d *bindings.Device, t Tensors) error {
			return d.Conv2DBackward(t["dx"], t["dw"], t["db"], t["dy"], t["x"], t["w"], s.Conv2DArgs)
		},
		Formula: func(p *Prec, v Values) {
			dx, dw, db, dy, x, w := v["dx"], v["dw"], v["db"], v["dy"], v["x"], v["w"]
			for i := range dx {
				c, ix, iy, n := i%s.I, i/s.I%s.X, i/s.I/s.X%s.Y, i/s.I/s.X/s.Y
				dx[i] = p.R(p.Sum(K*s.O, func(k int) float64 {
					o, k := k%s.O, k/s.O
					oy, ox := iy+s.PadTop-k/s.KX, ix+s.PadLeft-k%s.KX
					if oy < 0 || ox < 0 || oy%s.Stride != 0 || ox%s.Stride != 0 || oy/s.Stride >= OY || ox/s.Stride >= OX {
						return 0
					}
					return dy[((n*OY+oy/s.Stride)*OX+ox/s.Stride)*s.O+o] * w[(o*s.I+c)*K+k]
				}))
			}
			P := s.B * OY * OX
			for i := range dw {
				o, c, k := i/K/s.I, i/K%s.I, i%K
				dw[i] = p.F(p.Sum(P, func(j int) float64 {
					at := s.at(j/OX/OY, j/OX%OY, j%OX, k)
					if at < 0 {
						return 0
					}
					return dy[j*s.O+o] * x[at+c]
				}))
			}
			for o := range db {
				db[o] = p.F(p.Sum(P, func(j int) float64 { return dy[j*s.O+o] }))
			}
		},
		FLOPs: 4*s.B*OY*OX*s.O*s.I*K + s.B*OY*OX*s.O,
	}
}

func pads(stride, top, left, bottom, right int) bindings.Conv2DArgs {
	return bindings.Conv2DArgs{Stride: stride, PadTop: top, PadLeft: left, PadBottom: bottom, PadRight: right}
}

// conv2DCases: the autoencoder's kinds (3x3, 3x3 stride 2 padded below and to the right, 1x1), odd channels, more images than slices of dw, tall images
// cut into bands, kernels and padding that are not square, padding wider than the kernel; on CUDA, wide tiles and several slices of dw.
func conv2DCases() []Case {
	var cases []Case
	for _, dtype := range floats {
		for _, s := range []convShape{
			{1, 1, 1, 1, 1, 1, 1, pads(1, 0, 0, 0, 0)},
			{1, 5, 7, 3, 16, 3, 3, pads(1, 1, 1, 1, 1)},
			{2, 6, 5, 16, 17, 3, 3, pads(1, 1, 1, 1, 1)},
			{1, 8, 6, 15, 15, 3, 3, pads(2, 0, 0, 1, 1)},
			{2, 7, 9, 17, 16, 1, 1, pads(1, 0, 0, 0, 0)},
			{1, 6, 6, 32, 32, 3, 3, pads(1, 1, 1, 1, 1)},
			{1, 6, 6, 16, 3, 3, 3, pads(1, 1, 1, 1, 1)},
			{1, 2, 2, 320, 16, 3, 3, pads(1, 1, 1, 1, 1)},
			{11, 4, 3, 2, 5, 2, 2, pads(2, 0, 0, 0, 0)},
			{2, 9, 4, 4, 6, 4, 2, pads(2, 2, 0, 1, 1)},
			{1, 3, 3, 2, 3, 1, 1, pads(1, 2, 0, 1, 3)},
			{1, 2, 2, 3, 4, 5, 3, pads(1, 5, 1, 4, 0)},
			{1, 35, 3, 3, 4, 3, 3, pads(2, 0, 0, 1, 1)},
			{2, 22, 3, 2, 3, 1, 1, pads(2, 0, 0, 0, 0)},
			{1, 40, 2, 3, 2, 5, 1, pads(1, 2, 0, 2, 0)},
			{1, 19, 3, 2, 3, 2, 2, pads(2, 1, 0, 0, 1)},
			{1, 3, 5, 16, 120, 3, 3, pads(1, 1, 1, 1, 1)},
			{1, 3, 4, 120, 24, 3, 3, pads(1, 1, 1, 1, 1)},
			{1, 20, 21, 3, 4, 3, 3, pads(1, 1, 1, 1, 1)},
			{0, 4, 4, 3, 2, 3, 3, pads(1, 1, 1, 1, 1)},
		} {
			cases = append(cases, conv2DForward(dtype, s), conv2DBackward(dtype, s))
		}
		s := convShape{1, 4, 5, 16, 8, 3, 3, pads(1, 1, 1, 1, 1)}
		cases = append(cases, conv2DForward(dtype, s).Without("b"), conv2DBackward(dtype, s).Without("dx"), conv2DBackward(dtype, s).Without("dw", "db"))
	}
	return cases
}

// conv2DBench: the stages of FLUX's decoder at 512x512, and a training step on one of them. A sample of dx is a convolution of its own: padded by
// two, it sees every output that an input pixel reaches.
func conv2DBench() []Bench {
	var rows []Bench
	same, none, wide := pads(1, 1, 1, 1, 1), pads(1, 0, 0, 0, 0), pads(1, 2, 2, 2, 2)
	for _, dtype := range floats {
		for _, s := range []struct{ side, I, O int }{{64, 16, 512}, {64, 512, 512}, {128, 512, 512}, {256, 256, 256}, {512, 128, 128}, {512, 128, 3}} {
			part := convShape{1, 4, 4, s.I, min(s.O, 8-s.O%2), 3, 3, none}
			if s.O == 3 {
				part.O = 3
			}
			rows = append(rows, bench("vae", conv2DForward(dtype, convShape{1, s.side, s.side, s.I, s.O, 3, 3, same}), sample(conv2DForward(dtype, part))))
		}
		rows = append(rows, bench("vae", conv2DBackward(dtype, convShape{1, 128, 128, 128, 128, 3, 3, same}),
			sample(conv2DBackward(dtype, convShape{1, 2, 2, 16, 128, 3, 3, wide}).Without("dw", "db"), "dx"),
			sample(conv2DBackward(dtype, convShape{1, 128, 128, 2, 4, 3, 3, same}).Without("dx"))))
	}
	return rows
}
