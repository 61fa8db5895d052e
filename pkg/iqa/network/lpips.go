package network

import (
	"fmt"
	"math"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// lpips is LPIPS version 0.1 (Zhang et al. 2018): the weighted distance between the normalised features of AlexNet or VGG-16 at five depths.
type lpips struct {
	first   *patches  // AlexNet's first convolution
	slices  [5][]conv // a ReLU after each
	pools   [5]int    // side of the max pooling, stride 2, in front of a slice; 0 is none
	weights [5][]float32
}

// loadAlex reads the network over AlexNet.
func loadAlex(p *params) scorer {
	n := &lpips{pools: [5]int{0, 3, 3, 0, 0}}
	n.first = p.patches("net.slice1.0", 3, 11, 4, 2)
	in := n.first.conv.out()
	for slice, layer := range []int{0, 3, 6, 8, 10} {
		if slice > 0 {
			side := 3
			if slice == 1 {
				side = 5
			}
			in = n.add(p, slice, layer, in, side)
		}
		n.weights[slice] = p.values(fmt.Sprintf("lin%d.model.1.weight", slice), 1, in, 1, 1)
	}
	return n
}

// loadVGG reads the network over VGG-16.
func loadVGG(p *params) scorer {
	n := &lpips{pools: [5]int{0, 2, 2, 2, 2}}
	in := 3
	for slice, layers := range [][]int{{0, 2}, {5, 7}, {10, 12, 14}, {17, 19, 21}, {24, 26, 28}} {
		for _, layer := range layers {
			in = n.add(p, slice, layer, in, 3)
		}
		n.weights[slice] = p.values(fmt.Sprintf("lin%d.model.1.weight", slice), 1, in, 1, 1)
	}
	return n
}

// add reads a convolution and returns its number of outputs.
func (n *lpips) add(p *params, slice, layer, in, side int) int {
	name := fmt.Sprintf("net.slice%d.%d", slice+1, layer)
	w, shape := p.read(name+".weight", -1, in, side, side)
	n.slices[slice] = append(n.slices[slice], same(p.upload(w, shape...), p.upload(p.values(name+".bias", shape[0]), shape[0]), side))
	return shape[0]
}

func (n *lpips) score(r *run, pictures []*data.Image) (float64, error) {
	// (2v − 1 − shift) / scale
	x := r.pictures(pictures, [3]float32{0.485, 0.456, 0.406}, [3]float32{0.229, 0.224, 0.225})
	var distance float64
	for k, slice := range n.slices {
		if n.pools[k] > 0 {
			x = r.maxPool(x, n.pools[k], 2, 0)
		}
		if k == 0 && n.first != nil {
			x = r.patchesReLU(x, n.first)
		}
		for _, c := range slice {
			x = r.convReLU(x, c)
		}
		distance += featureDistance(r.host(x), n.weights[k])
	}
	return distance, nil
}

// featureDistance is the mean over the pixels of Σ w (a/|a| − b/|b|)²; v holds a, then b.
func featureDistance(v, w []float32) float64 {
	c := len(w)
	a, b := v[:len(v)/2], v[len(v)/2:]
	pixels := make([]float64, len(a)/c)
	data.Parallel(len(pixels), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			p, q := a[i*c:(i+1)*c], b[i*c:(i+1)*c]
			u, v := unit(p), unit(q)
			for k, weight := range w {
				d := float64(p[k])*u - float64(q[k])*v
				pixels[i] += float64(weight) * d * d
			}
		}
	})
	var sum float64
	for _, v := range pixels {
		sum += v
	}
	return sum / float64(len(pixels))
}

// unit is 1 / (|v| + 1e-10).
func unit(v []float32) float64 {
	var s float64
	for _, x := range v {
		s += float64(x) * float64(x)
	}
	return 1 / (math.Sqrt(s) + 1e-10)
}

// patches is a convolution at a larger stride s than the op has: the image's s×s pixels become channels, the kernel's too.
type patches struct {
	conv              conv
	side, stride, pad int
}

func (c conv) out() int {
	if c.w == nil {
		return 0
	}
	return c.w.Dim(0)
}

// patches reads NAME.weight [O,in,side,side] and NAME.bias.
func (p *params) patches(name string, in, side, stride, pad int) *patches {
	w, shape := p.read(name+".weight", -1, in, side, side)
	blocks, channels := (side+stride-1)/stride, in*stride*stride
	folded := make([]float32, shape[0]*channels*blocks*blocks)
	for i, v := range w {
		x, y, c, o := i%side, i/side%side, i/side/side%in, i/side/side/in
		channel := (y%stride*stride+x%stride)*in + c
		folded[((o*channels+channel)*blocks+y/stride)*blocks+x/stride] = v
	}
	b := p.upload(p.values(name+".bias", shape[0]), shape[0])
	return &patches{conv{p.upload(folded, shape[0], channels, blocks, blocks), b, tensor.Conv2DArgs{Stride: 1}}, side, stride, pad}
}

// patchesReLU gives x's memory back.
func (r *run) patchesReLU(x *tensor.Tensor, p *patches) *tensor.Tensor {
	b, h, w, c := x.Dim(0), x.Dim(1), x.Dim(2), x.Dim(3)
	s, blocks := p.stride, (p.side+p.stride-1)/p.stride
	fh, fw := (h+2*p.pad-p.side)/s+blocks, (w+2*p.pad-p.side)/s+blocks
	src, folded := r.host(x), make([]float32, b*fh*fw*s*s*c)
	data.Parallel(b*fh, func(lo, hi int) {
		for row := lo; row < hi; row++ {
			for dy := range s {
				y := row%fh*s + dy - p.pad
				if y < 0 || y >= h {
					continue
				}
				for px := range min(w, fw*s-p.pad) {
					fx, dx := (px+p.pad)/s, (px+p.pad)%s
					copy(folded[((row*fw+fx)*s*s+dy*s+dx)*c:][:c], src[((row/fh*h+y)*w+px)*c:][:c])
				}
			}
		}
	})
	r.Release(x)
	return r.convReLU(r.upload(folded, b, fh, fw, s*s*c), p.conv)
}
