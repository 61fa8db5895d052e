package network

import (
	"fmt"
	"math"
	"strconv"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/tensor"
)

const (
	maniqaCrop   = 224 // pixels a side
	maniqaCrops  = 20  // places, five columns of four
	maniqaPatch  = 8
	maniqaGrid   = maniqaCrop / maniqaPatch
	maniqaTokens = maniqaGrid * maniqaGrid
	maniqaWindow = 4 // tokens a side
	maniqaHead   = 64
)

// maniqaTaps are the blocks of the vision transformer whose outputs are taken.
var maniqaTaps = [4]int{6, 7, 8, 9}

// maniqa is MANIQA (Yang et al. 2022): tokens of a vision transformer, attention among their channels, shifted windows, and a score and a weight for each token.
// A picture is the weighted mean over the tokens of 20 crops.
type maniqa struct {
	patch            linear
	class, position  []float32
	blocks           []block // as many as are needed
	stages           [2]maniqaStage
	score1, score2   linear
	weight1, weight2 linear
}

type maniqaStage struct {
	channels [2]channelAttention
	reduce   linear
	layers   [2]swinLayer
	scale    float32 // of a layer's output, which is added to its input
}

// channelAttention is attention among the channels; a channel is a vector of all tokens.
type channelAttention struct {
	q, k linear
	v    *tensor.Tensor
	bias []float32 // of v
}

// swinLayer is a plain and a shifted block of windows, and a convolution.
type swinLayer struct {
	blocks [2]swinBlock
	conv   conv
}

type swinBlock struct {
	block
	order  []int          // the token at each place of the windows, one after the other
	bias   *tensor.Tensor // [windows, 16, heads, 16]: of a key's place (second) for a query's (last), divided by the attention's scale
	onehot *tensor.Tensor // the same shape: 1 where the two places agree
}

func loadMANIQA(p *params) scorer {
	n := &maniqa{}
	class, shape := p.read("vit.cls_token", 1, 1, -1)
	width := shape[2]
	if p.err == nil && width%maniqaHead != 0 {
		p.fail("transformer of %d channels, want a multiple of %d", width, maniqaHead)
	}
	n.class, n.position = class, p.values("vit.pos_embed", 1, maniqaTokens+1, width)
	n.patch = p.patchEmbedding("vit.patch_embed.proj", width)
	for i := range maniqaTaps[len(maniqaTaps)-1] + 1 {
		b := fmt.Sprintf("vit.blocks.%d.", i)
		n.blocks = append(n.blocks, block{
			norm1: p.norm(b+"norm1", width, 1e-6), norm2: p.norm(b+"norm2", width, 1e-6), qkv: p.linear(b+"attn.qkv", 3*width, width),
			out: p.linear(b+"attn.proj", width, width), fc1: p.linear(b+"mlp.fc1", -1, width), fc2: p.linear(b+"mlp.fc2", width, -1), heads: width / maniqaHead,
		})
	}
	scale := 0.8
	if text, ok := p.src.Metadata()["scale"]; ok {
		var err error
		if scale, err = strconv.ParseFloat(text, 64); err != nil {
			p.fail("metadata: scale %q", text)
		}
	}
	in := len(maniqaTaps) * width
	for i := range n.stages {
		s := &n.stages[i]
		for k := range s.channels {
			name := fmt.Sprintf("tablock%d.%d.", i+1, k)
			s.channels[k] = channelAttention{q: p.linear(name+"c_q", maniqaTokens, maniqaTokens), k: p.linear(name+"c_k", maniqaTokens, maniqaTokens),
				v: p.upload(p.values(name+"c_v.weight", maniqaTokens, maniqaTokens), maniqaTokens, maniqaTokens), bias: p.values(name+"c_v.bias", maniqaTokens)}
		}
		name := fmt.Sprintf("conv%d", i+1)
		w, shape := p.read(name+".weight", -1, in, 1, 1)
		s.reduce = linear{p.upload(w, shape[0], in), p.upload(p.values(name+".bias", shape[0]), shape[0])}
		in = shape[0]
		for k := range s.layers {
			s.layers[k] = p.swinLayer(fmt.Sprintf("swintransformer%d.layers.%d.", i+1, k), in)
		}
		s.scale = float32(scale)
	}
	n.score1, n.score2 = p.linear("fc_score.0", in, in), p.linear("fc_score.3", 1, in)
	n.weight1, n.weight2 = p.linear("fc_weight.0", in, in), p.linear("fc_weight.3", 1, in)
	return n
}

// patchEmbedding reads a convolution over patches that do not overlap, as a linear layer over [Y,X,3].
func (p *params) patchEmbedding(name string, width int) linear {
	const s = maniqaPatch
	w := p.values(name+".weight", width, 3, s, s)
	turned := make([]float32, len(w))
	for i, v := range w {
		pixel, c, o := i%(s*s), i/(s*s)%3, i/(3*s*s)
		turned[(o*s*s+pixel)*3+c] = v
	}
	return linear{p.upload(turned, width, 3*s*s), p.upload(p.values(name+".bias", width), width)}
}

func (p *params) swinLayer(name string, width int) (l swinLayer) {
	for i := range l.blocks {
		prefix := fmt.Sprintf("%sblocks.%d.", name, i)
		b := block{
			norm1: p.norm(prefix+"norm1", width, 1e-5), norm2: p.norm(prefix+"norm2", width, 1e-5), qkv: p.linear(prefix+"attn.qkv", 3*width, width),
			out: p.linear(prefix+"attn.proj", width, width), fc1: p.linear(prefix+"mlp.fc1", -1, width), fc2: p.linear(prefix+"mlp.fc2", width, -1),
		}
		const places = 2*maniqaWindow - 1
		table, shape := p.read(prefix+"attn.relative_position_bias_table", places*places, -1)
		if p.err == nil && width%(8*shape[1]) != 0 {
			p.fail("windows of %d channels and %d heads, want a multiple of 8 a head", width, shape[1])
		}
		if p.err != nil {
			return l
		}
		b.heads = shape[1]
		l.blocks[i] = p.windows(b, table, width, i*maniqaWindow/2)
	}
	w := p.upload(p.values(name+"conv.weight", width, width, 3, 3), width, width, 3, 3)
	l.conv = same(w, p.upload(p.values(name+"conv.bias", width), width), 3)
	return l
}

// windows prepares a block whose windows are shifted. The bias of each pair of places, and −100 between tokens that only the shift brought together, go into
// the attention as 16 more channels: q is 1 at its own place, k has the bias for every place.
func (p *params) windows(b block, table []float32, width, shift int) swinBlock {
	const side, area, across = maniqaWindow, maniqaWindow * maniqaWindow, maniqaGrid / maniqaWindow
	s := swinBlock{block: b}
	unscale := 1 / headScale(width/b.heads)
	bias, onehot := make([]float32, maniqaTokens*b.heads*area), make([]float32, maniqaTokens*b.heads*area)
	region := func(i int) int { // of the three that the shift makes
		switch {
		case shift == 0 || i < maniqaGrid-side:
			return 0
		case i < maniqaGrid-shift:
			return 1
		}
		return 2
	}
	for at := range maniqaTokens { // window by window
		window, key := at/area, at%area
		y, x := window/across*side+key/side, window%across*side+key%side
		s.order = append(s.order, (y+shift)%maniqaGrid*maniqaGrid+(x+shift)%maniqaGrid)
		for h := range b.heads {
			row := (at*b.heads + h) * area
			onehot[row+key] = 1
			for query := range area {
				qy, qx := window/across*side+query/side, window%across*side+query%side
				v := table[((qy-y+side-1)*(2*side-1)+qx-x+side-1)*b.heads+h]
				if region(qy) != region(y) || region(qx) != region(x) {
					v -= 100
				}
				bias[row+query] = v * unscale
			}
		}
	}
	s.bias, s.onehot = p.upload(bias, maniqaTokens/area, area, b.heads, area), p.upload(onehot, maniqaTokens/area, area, b.heads, area)
	return s
}

func (n *maniqa) score(r *run, pictures []*data.Image) (float64, error) {
	var sum, weights float64
	for _, crop := range uniformCrops(pictures[0]) {
		r.Reset()
		scores, own := n.crop(r, crop)
		for i, v := range scores {
			w := 1 / (1 + math.Exp(-float64(own[i])))
			sum += w * float64(max(v, 0))
			weights += w
		}
		if r.Err() != nil {
			break
		}
	}
	return sum / (weights + 1e-8), nil
}

// crop returns the scores of a crop's tokens before the ReLU and their weights before the sigmoid.
func (n *maniqa) crop(r *run, m *data.Image) (scores, weights []float32) {
	width := len(n.class)
	pixels := make([]float32, 0, len(m.Pix))
	for t := range maniqaTokens {
		for i := range maniqaPatch {
			row := ((t/maniqaGrid*maniqaPatch+i)*maniqaCrop + t%maniqaGrid*maniqaPatch) * 3
			for _, v := range m.Pix[row : row+3*maniqaPatch] {
				pixels = append(pixels, (v-0.5)/0.5)
			}
		}
	}
	tokens := r.linear(r.upload(pixels, 1, maniqaTokens, 3*maniqaPatch*maniqaPatch), n.patch)
	x := r.Add(r.Concat(r.upload(n.class, 1, 1, width), tokens), r.upload(n.position, 1, maniqaTokens+1, width))
	joined := r.New(bindings.F32, 1, maniqaTokens, len(maniqaTaps)*width)
	taps := 0
	for i := range n.blocks {
		b := &n.blocks[i]
		x = b.forward(r, x, gelu, func(qkv *tensor.Tensor) *tensor.Tensor { return r.attention(qkv, b.heads) })
		if i == maniqaTaps[taps] {
			r.CopyTo(joined.Slice(2, taps*width, (taps+1)*width), x.Slice(1, 1, maniqaTokens+1))
			taps++
		}
	}
	x = joined
	for i := range n.stages {
		x = n.stages[i].forward(r, x)
	}
	scores = r.host(r.linear(r.each(r.linear(x, n.score1), relu), n.score2))
	weights = r.host(r.linear(r.each(r.linear(x, n.weight1), relu), n.weight2))
	return scores, weights
}

// forward. x [1,N,C], tokens first.
func (s *maniqaStage) forward(r *run, x *tensor.Tensor) *tensor.Tensor {
	for i := range s.channels {
		x = s.channels[i].forward(r, x, i == 0, i == len(s.channels)-1)
	}
	x = r.linear(x, s.reduce)
	for i := range s.layers {
		x = s.layers[i].forward(r, x, s.scale)
	}
	return x
}

// forward attends among channels. x has a row for every channel, or for every token where turnIn says so; the result likewise by turnOut. The published code
// takes the memory of the tokens' rows for rows of channels after the attention, and the weights were trained with that.
func (c *channelAttention) forward(r *run, x *tensor.Tensor, turnIn, turnOut bool) *tensor.Tensor {
	v := r.host(x)
	channels := len(v) / maniqaTokens
	if turnIn {
		v = transposed(v, maniqaTokens, channels)
		x = r.upload(v, channels, maniqaTokens)
	}
	scores := r.host(r.Linear(r.linear(x, c.q), r.linear(x, c.k), nil))
	softmax(scores, channels, float64(headScale(maniqaTokens)))
	values := r.Linear(c.v, x, nil) // a row for every token
	out := r.host(r.Linear(values, r.upload(scores, channels, channels), nil))
	for i := range out {
		v[i] += out[i] + c.bias[i/channels] // rows of the softmax sum to 1: the bias goes through
	}
	if turnOut {
		return r.upload(transposed(v, channels, maniqaTokens), 1, maniqaTokens, channels)
	}
	return r.upload(v, channels, maniqaTokens)
}

func transposed(v []float32, rows, columns int) []float32 {
	out := make([]float32, len(v))
	data.Parallel(columns, func(lo, hi int) {
		for c := lo; c < hi; c++ {
			for r := range rows {
				out[c*rows+r] = v[r*columns+c]
			}
		}
	})
	return out
}

// softmax of scale · v, in place, row by row.
func softmax(v []float32, columns int, scale float64) {
	data.Parallel(len(v)/columns, func(lo, hi int) {
		e := make([]float64, columns)
		for r := lo; r < hi; r++ {
			row := v[r*columns:][:columns]
			top := math.Inf(-1)
			for _, x := range row {
				top = max(top, scale*float64(x))
			}
			var sum float64
			for i, x := range row {
				e[i] = math.Exp(scale*float64(x) - top)
				sum += e[i]
			}
			for i := range row {
				row[i] = float32(e[i] / sum)
			}
		}
	})
}

// forward. x [1,N,C], whose memory is given back.
func (l *swinLayer) forward(r *run, x *tensor.Tensor, scale float32) *tensor.Tensor {
	y, before := x, r.host(x)
	for i := range l.blocks {
		b := &l.blocks[i]
		y = b.forward(r, y, gelu, func(qkv *tensor.Tensor) *tensor.Tensor { return b.attend(r, qkv) })
	}
	c := y.Dim(2)
	v := r.host(r.conv(y.View(1, maniqaGrid, maniqaGrid, c), l.conv))
	for i := range v {
		v[i] = scale*relu(v[i]) + before[i]
	}
	return r.upload(v, 1, maniqaTokens, c)
}

// attend is attention within the windows.
func (s *swinBlock) attend(r *run, qkv *tensor.Tensor) *tensor.Tensor {
	const area = maniqaWindow * maniqaWindow
	c := qkv.Dim(2) / 3
	d, windows := c/s.heads, maniqaTokens/area
	sorted := r.upload(gather(r.host(qkv), s.order, false), windows, area, 3*c)
	part := func(k int, more *tensor.Tensor) *tensor.Tensor {
		t := r.New(bindings.F32, windows, area, s.heads, d+area)
		r.CopyTo(t.Slice(3, 0, d), heads(sorted, k, s.heads, 0, area))
		if more == nil {
			r.Fill(t.Slice(3, d, d+area), 0)
		} else {
			r.CopyTo(t.Slice(3, d, d+area), more)
		}
		return t
	}
	o := r.New(bindings.F32, windows, area, s.heads, d+area)
	r.AttentionTo(o, part(0, s.onehot), part(1, s.bias), part(2, nil), nil, headScale(d))
	return r.upload(gather(r.host(o.Slice(3, 0, d)), s.order, true), 1, maniqaTokens, c)
}

// gather puts row order[i] at i, or, back, row i at order[i].
func gather(v []float32, order []int, back bool) []float32 {
	out := make([]float32, len(v))
	width := len(v) / len(order)
	for i, from := range order {
		to := i
		if back {
			to, from = from, i
		}
		copy(out[to*width:][:width], v[from*width:])
	}
	return out
}

// uniformCrops cuts 20 crops, five columns in each of four rows; a picture with a side of at most 224 pixels is enlarged first.
func uniformCrops(m *data.Image) (crops []*data.Image) {
	const side = maniqaCrop
	if short := min(m.W, m.H); short <= side {
		m = torchBilinear(m, float64(side+1)/float64(short))
	}
	stepX, stepY := (m.W-side)/4, (m.H-side)/4
	for i := range maniqaCrops {
		crops = append(crops, m.Crop(i%5*stepX, i/5*stepY, side, side))
	}
	return crops
}

// torchBilinear is torch's interpolate(scale_factor=scale, mode="bilinear"): it rounds the size down, but steps through the picture by 1/scale.
func torchBilinear(m *data.Image, scale float64) *data.Image {
	out := data.New(int(float64(m.W)*scale), int(float64(m.H)*scale))
	place := func(i, n int) (a, b int, t float64) {
		x := max((float64(i)+0.5)/scale-0.5, 0)
		a = min(int(x), n-1)
		return a, min(a+1, n-1), x - float64(a)
	}
	for y := range out.H {
		y0, y1, ty := place(y, m.H)
		for x := range out.W {
			x0, x1, tx := place(x, m.W)
			for c := range 3 {
				at := func(x, y int) float64 { return float64(m.Pix[3*(y*m.W+x)+c]) }
				out.Pix[3*(y*out.W+x)+c] = float32((1-ty)*((1-tx)*at(x0, y0)+tx*at(x1, y0)) + ty*((1-tx)*at(x0, y1)+tx*at(x1, y1)))
			}
		}
	}
	return out
}
