package network

import (
	"fmt"
	"math"
	"slices"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// params reads a network's tensors from its file. The first error sticks.
type params struct {
	device *bindings.Device
	src    weights.Source
	arena  *tensor.Arena
	err    error
}

// values reads a tensor. Its shape must be the given one, where -1 is any size; no shape at all is any.
func (p *params) values(name string, shape ...int) []float32 {
	v, _ := p.read(name, shape...)
	return v
}

func (p *params) read(name string, shape ...int) ([]float32, []int) {
	none := make([]int, max(len(shape), 4))
	if p.err != nil {
		return nil, none
	}
	t, err := p.src.Tensor(name)
	if err == nil && len(shape) > 0 && !slices.EqualFunc(t.Shape, shape, func(got, want int) bool { return got == want || want < 0 && got > 0 }) {
		err = fmt.Errorf("%s: %s has shape %v, want %v", p.src.Path(), name, t.Shape, shape)
	}
	var v []float32
	if err == nil {
		v, err = weights.Float32s(t)
	}
	if err != nil {
		p.err = err
		return nil, none
	}
	return v, t.Shape
}

// has tells whether the file has a tensor.
func (p *params) has(name string) bool { return slices.Contains(p.src.Names(), name) }

// count is the number of blocks whose tensors are called as the format says, from 0 on.
func (p *params) count(format string) (n int) {
	names := p.src.Names()
	for slices.Contains(names, fmt.Sprintf(format, n)) {
		n++
	}
	return n
}

// fail notes an error that concerns the file.
func (p *params) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("%s: %s", p.src.Path(), fmt.Sprintf(format, args...))
	}
}

// upload puts values on the device; nothing after an error.
func (p *params) upload(values []float32, shape ...int) *tensor.Tensor {
	if p.err != nil {
		return nil
	}
	t, err := tensor.FromHost(p.arena, values, bindings.F32, shape...)
	p.err = err
	return t
}

// linear is x wᵀ + b; w [O,I].
type linear struct{ w, b *tensor.Tensor }

// linear reads NAME.weight and NAME.bias; out and in may be -1.
func (p *params) linear(name string, out, in int) linear {
	w, shape := p.read(name+".weight", out, in)
	return linear{p.upload(w, shape[0], shape[1]), p.upload(p.values(name+".bias", shape[0]), shape[0])}
}

// joined makes one linear layer of several with the same input.
func (p *params) joined(width int, names ...string) linear {
	var w, b []float32
	for _, name := range names {
		w = append(w, p.values(name+".weight", width, width)...)
		b = append(b, p.values(name+".bias", width)...)
	}
	return linear{p.upload(w, len(names)*width, width), p.upload(b, len(names)*width)}
}

// conv is a convolution; w [O,I,K,K], b nil for none.
type conv struct {
	w, b *tensor.Tensor
	args tensor.Conv2DArgs
}

// same is a convolution of odd side whose output has the size of its input.
func same(w, b *tensor.Tensor, side int) conv {
	k := side / 2
	return conv{w, b, tensor.Conv2DArgs{Stride: 1, PadTop: k, PadLeft: k, PadBottom: k, PadRight: k}}
}

// norm is a layer norm, an AdaLN whose scale is weight − 1.
type norm struct {
	shift, scale *tensor.Tensor
	eps          float32
}

func (p *params) norm(name string, width int, eps float32) norm {
	scale := p.values(name+".weight", width)
	for i := range scale {
		scale[i]--
	}
	return norm{p.upload(p.values(name+".bias", width), 1, width), p.upload(scale, 1, width), eps}
}

// run is one evaluation: the tape, and what there is no op for, which the host does.
type run struct{ *tensor.Tape }

func (r *run) linear(x *tensor.Tensor, l linear) *tensor.Tensor { return r.Linear(x, l.w, l.b) }

func (r *run) conv(x *tensor.Tensor, c conv) *tensor.Tensor { return r.Conv2D(x, c.w, c.b, c.args) }

// norm normalises the last dimension of x [B,L,C].
func (r *run) norm(x *tensor.Tensor, n norm) *tensor.Tensor {
	shape := x.Shape()
	c := shape[len(shape)-1]
	return r.AdaLN(x.View(1, x.Len()/c, c), n.shift, n.scale, n.eps).View(shape...)
}

// host reads x; after an error it returns zeros.
func (r *run) host(x *tensor.Tensor) []float32 {
	if r.Err() == nil {
		v, err := x.Host()
		if err == nil {
			return v
		}
		r.Note("host", err)
	}
	return make([]float32, x.Len())
}

func (r *run) upload(values []float32, shape ...int) *tensor.Tensor {
	return r.Upload(values, bindings.F32, shape...)
}

// each applies f to every value of x, a whole tensor, in place.
func (r *run) each(x *tensor.Tensor, f func(v float32) float32) *tensor.Tensor {
	v := r.host(x)
	data.Parallel(len(v), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			v[i] = f(v[i])
		}
	})
	if r.Err() == nil {
		r.Note("each", x.Set(v))
	}
	return x
}

// convReLU gives x's memory back.
func (r *run) convReLU(x *tensor.Tensor, c conv) *tensor.Tensor {
	y := r.conv(x, c)
	r.Release(x)
	return r.each(y, relu)
}

func relu(v float32) float32 { return max(v, 0) }

// gelu is the exact one, by the error function.
func gelu(v float32) float32 {
	return float32(0.5 * float64(v) * (1 + math.Erf(float64(v)*(1/math.Sqrt2))))
}

// pool reduces x [B,Y,X,C], whose memory it gives back, over side² pixels at a stride; windows reach beyond the lower and right border by at most `beyond` pixels, where nothing is. start is the
// value to begin with, scale multiplies the result.
func (r *run) pool(x *tensor.Tensor, side, stride, beyond int, start, scale float32, f func(a, b float32) float32) *tensor.Tensor {
	b, h, w, c := x.Dim(0), x.Dim(1), x.Dim(2), x.Dim(3)
	oh, ow := (h+beyond-side)/stride+1, (w+beyond-side)/stride+1
	src, dst := r.host(x), make([]float32, b*oh*ow*c)
	r.Release(x)
	data.Parallel(b*oh, func(lo, hi int) {
		for row := lo; row < hi; row++ {
			for ox := range ow {
				out := dst[(row*ow+ox)*c:][:c]
				for i := range out {
					out[i] = start
				}
				for y := row % oh * stride; y < min(row%oh*stride+side, h); y++ {
					for px := ox * stride; px < min(ox*stride+side, w); px++ {
						for i, v := range src[((row/oh*h+y)*w+px)*c:][:c] {
							out[i] = f(out[i], v)
						}
					}
				}
				for i := range out {
					out[i] *= scale
				}
			}
		}
	})
	return r.upload(dst, b, oh, ow, c)
}

// maxPool of values that are not negative.
func (r *run) maxPool(x *tensor.Tensor, side, stride, beyond int) *tensor.Tensor {
	return r.pool(x, side, stride, beyond, 0, 1, func(a, b float32) float32 { return max(a, b) })
}

// meanPool is the mean over side² pixels that do not overlap.
func (r *run) meanPool(x *tensor.Tensor, side int) *tensor.Tensor {
	return r.pool(x, side, side, 0, 0, 1/float32(side*side), func(a, b float32) float32 { return a + b })
}

// block is a transformer block with the norms in front: x + out(attention(norm1 x)), then x + fc2(act(fc1(norm2 x))).
type block struct {
	norm1, norm2       norm
	qkv, out, fc1, fc2 linear
	heads              int
}

// forward. x [B,L,C], whose memory is given back; attend maps q, k and v, joined to [B,L,3C], to [B,L,C].
func (b *block) forward(r *run, x *tensor.Tensor, act func(float32) float32, attend func(qkv *tensor.Tensor) *tensor.Tensor) *tensor.Tensor {
	y := r.Scope(func() []*tensor.Tensor {
		y := r.Add(x, r.linear(attend(r.linear(r.norm(x, b.norm1), b.qkv)), b.out))
		return []*tensor.Tensor{r.Add(y, r.linear(r.each(r.linear(r.norm(y, b.norm2), b.fc1), act), b.fc2))}
	})
	r.Release(x)
	return y[0]
}

// heads are tokens [low, high) of q, k or v (part 0, 1, 2), of qkv [B,L,3C], by head.
func heads(qkv *tensor.Tensor, part, count, low, high int) *tensor.Tensor {
	c := qkv.Dim(2) / 3
	return qkv.Slice(2, part*c, (part+1)*c).Slice(1, low, high).View(qkv.Dim(0), high-low, count, c/count)
}

// attention among all tokens, scale 1/√D.
func (r *run) attention(qkv *tensor.Tensor, count int) *tensor.Tensor {
	b, l, c := qkv.Dim(0), qkv.Dim(1), qkv.Dim(2)/3
	o := r.New(bindings.F32, b, l, c)
	r.AttentionTo(o.View(b, l, count, c/count), heads(qkv, 0, count, 0, l), heads(qkv, 1, count, 0, l), heads(qkv, 2, count, 0, l), nil, headScale(c/count))
	return o
}

func headScale(d int) float32 { return float32(1 / math.Sqrt(float64(d))) }

// picture is (v − mean) / deviation of an image, [1,Y,X,3].
func (r *run) pictures(images []*data.Image, mean, deviation [3]float32) *tensor.Tensor {
	var v []float32
	for _, m := range images {
		for i, x := range m.Pix {
			v = append(v, (x-mean[i%3])/deviation[i%3])
		}
	}
	return r.upload(v, len(images), images[0].H, images[0].W, 3)
}
