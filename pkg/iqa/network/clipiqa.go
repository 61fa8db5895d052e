package network

import (
	"fmt"
	"math"
	"slices"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// clipPrompts are pyiqa's five pairs in CLIP's tokens, the better one of a pair first: Good image, bad image; Sharp image, blurry image; sharp edges,
// blurry edges; High resolution image, low resolution image; Noise-free image, noisy image.
var clipPrompts = [][]int{
	{49406, 886, 2867, 49407}, {49406, 2103, 2867, 49407},
	{49406, 8157, 2867, 49407}, {49406, 21977, 2867, 49407},
	{49406, 8157, 20938, 49407}, {49406, 21977, 20938, 49407},
	{49406, 1400, 9977, 2867, 49407}, {49406, 1042, 9977, 2867, 49407},
	{49406, 9307, 268, 1139, 2867, 49407}, {49406, 33495, 2867, 49407},
}

const clipHead = 64 // channels a head, of both transformers

// clipIQA is CLIP-IQA (Wang et al. 2023) over CLIP's ResNet-50, without position embedding: how much nearer the picture is to a good prompt than to its bad
// counterpart, the mean over pyiqa's five pairs.
type clipIQA struct {
	stem   [3]conv
	stages [4][]clipBottleneck
	qkv    [3]linear
	out    linear
	text   [][]float64 // unit vectors of the prompts
	logit  float64     // what the cosines are multiplied with
}

type clipBottleneck struct {
	conv1, conv2, conv3 conv
	down                *conv
	stride              int
}

// folded reads a convolution of odd side and folds the batch norm after it in.
func (p *params) folded(layer, norm string, in, side int) conv {
	w, shape := p.read(layer+".weight", -1, in, side, side)
	out := shape[0]
	gain, bias := p.values(norm+".weight", out), p.values(norm+".bias", out)
	mean, variance := p.values(norm+".running_mean", out), p.values(norm+".running_var", out)
	if p.err != nil {
		return conv{}
	}
	for o := range out {
		factor := float64(gain[o]) / math.Sqrt(float64(variance[o])+1e-5)
		bias[o] = float32(float64(bias[o]) - float64(mean[o])*factor)
		row := w[o*in*side*side:][:in*side*side]
		for i, v := range row {
			row[i] = float32(float64(v) * factor)
		}
	}
	return same(p.upload(w, shape...), p.upload(bias, out), side)
}

func loadCLIP(p *params) scorer {
	n := &clipIQA{}
	in := 3
	for i := range n.stem {
		n.stem[i] = p.folded(fmt.Sprint("visual.conv", i+1), fmt.Sprint("visual.bn", i+1), in, 3)
		in = n.stem[i].out()
	}
	n.stem[0].args.Stride = 2
	for k := range n.stages {
		prefix := fmt.Sprintf("visual.layer%d.", k+1)
		for i := range p.count(prefix + "%d.conv1.weight") {
			b := clipBottleneck{stride: 1}
			if k > 0 && i == 0 {
				b.stride = 2
			}
			name := fmt.Sprint(prefix, i, ".")
			b.conv1 = p.folded(name+"conv1", name+"bn1", in, 1)
			b.conv2 = p.folded(name+"conv2", name+"bn2", b.conv1.out(), 3)
			b.conv3 = p.folded(name+"conv3", name+"bn3", b.conv2.out(), 1)
			if p.has(name + "downsample.0.weight") {
				down := p.folded(name+"downsample.0", name+"downsample.1", in, 1)
				b.down = &down
			}
			in = b.conv3.out()
			n.stages[k] = append(n.stages[k], b)
		}
	}
	for i, name := range []string{"q_proj", "k_proj", "v_proj"} {
		n.qkv[i] = p.linear("visual.attnpool."+name, in, in)
	}
	if p.err == nil && in%clipHead != 0 {
		p.fail("image features of %d channels, want a multiple of %d", in, clipHead)
	}
	n.out = p.linear("visual.attnpool.c_proj", -1, in)
	if p.err == nil {
		n.logit = math.Exp(float64(p.values("logit_scale")[0]))
		n.text = p.prompts()
	}
	return n
}

// prompts evaluates the text transformer for every prompt.
func (p *params) prompts() [][]float64 {
	table, shape := p.read("token_embedding.weight", -1, -1)
	position, _ := p.read("positional_embedding", -1, shape[1])
	project, size := p.read("text_projection", shape[1], -1)
	width, length := shape[1], 0
	for _, tokens := range clipPrompts {
		length = max(length, len(tokens))
		if p.err == nil && slices.Max(tokens) >= shape[0] {
			p.fail("token_embedding.weight has %d rows, want those of CLIP's vocabulary", shape[0])
		}
	}
	if p.err == nil && (width%clipHead != 0 || len(position) < length*width) {
		p.fail("text transformer of %d channels and %d positions", width, len(position)/max(width, 1))
	}
	var blocks []block
	prefix := "transformer.resblocks."
	for i := range p.count(prefix + "%d.ln_1.weight") {
		name := fmt.Sprint(prefix, i, ".")
		qkv := linear{p.upload(p.values(name+"attn.in_proj_weight", 3*width, width), 3*width, width), p.upload(p.values(name+"attn.in_proj_bias", 3*width), 3*width)}
		blocks = append(blocks, block{
			norm1: p.norm(name+"ln_1", width, 1e-5), norm2: p.norm(name+"ln_2", width, 1e-5), qkv: qkv, out: p.linear(name+"attn.out_proj", width, width),
			fc1: p.linear(name+"mlp.c_fc", -1, width), fc2: p.linear(name+"mlp.c_proj", width, -1), heads: width / clipHead,
		})
	}
	last := p.norm("ln_final", width, 1e-5)
	if p.err != nil {
		return nil
	}
	values := make([]float32, len(clipPrompts)*length*width) // short prompts are filled up behind their end, where nothing looks
	for i, tokens := range clipPrompts {
		for k, token := range tokens {
			for c := range width {
				values[(i*length+k)*width+c] = table[token*width+c] + position[k*width+c]
			}
		}
	}
	r := &run{tensor.NewTape(p.device)}
	defer r.Free()
	x := r.upload(values, len(clipPrompts), length, width)
	for _, b := range blocks {
		x = b.forward(r, x, quickGELU, func(qkv *tensor.Tensor) *tensor.Tensor { return r.causal(qkv, b.heads) })
	}
	v := r.host(r.norm(x, last))
	p.err = r.Err()
	features := make([][]float64, len(clipPrompts))
	for i, tokens := range clipPrompts {
		end := v[(i*length+len(tokens)-1)*width:][:width]
		feature := make([]float64, size[1])
		for k, e := range end {
			for c := range feature {
				feature[c] += float64(e) * float64(project[k*size[1]+c])
			}
		}
		features[i] = normalised(feature)
	}
	return features
}

func quickGELU(v float32) float32 { return float32(float64(v) / (1 + math.Exp(-1.702*float64(v)))) }

// causal is attention in which a token sees itself and those before it.
func (r *run) causal(qkv *tensor.Tensor, count int) *tensor.Tensor {
	b, l, c := qkv.Dim(0), qkv.Dim(1), qkv.Dim(2)/3
	o := r.New(qkv.DType(), b, l, c)
	for i := range l {
		r.AttentionTo(o.Slice(1, i, i+1).View(b, 1, count, c/count), heads(qkv, 0, count, i, i+1), heads(qkv, 1, count, 0, i+1),
			heads(qkv, 2, count, 0, i+1), nil, headScale(c/count))
	}
	return o
}

func normalised(v []float64) []float64 {
	var s float64
	for _, x := range v {
		s += x * x
	}
	for i := range v {
		v[i] /= math.Sqrt(s)
	}
	return v
}

func (n *clipIQA) score(r *run, pictures []*data.Image) (float64, error) {
	x := r.pictures(pictures, [3]float32{0.48145466, 0.4578275, 0.40821073}, [3]float32{0.26862954, 0.26130258, 0.27577711})
	for _, c := range n.stem {
		x = r.convReLU(x, c)
	}
	x = r.meanPool(x, 2)
	for _, stage := range n.stages {
		for _, b := range stage {
			x = b.forward(r, x)
		}
	}
	image := n.pool(r, x)
	var sum float64
	for i := 0; i < len(n.text); i += 2 {
		sum += 1 / (1 + math.Exp(n.logit*(dot(image, n.text[i+1])-dot(image, n.text[i]))))
	}
	return sum / float64(len(n.text)/2), nil
}

func dot(a, b []float64) (s float64) {
	for i, v := range a {
		s += v * b[i]
	}
	return s
}

func (b *clipBottleneck) forward(r *run, x *tensor.Tensor) *tensor.Tensor {
	y := r.convReLU(r.each(r.conv(x, b.conv1), relu), b.conv2)
	if b.stride > 1 {
		y, x = r.meanPool(y, b.stride), r.meanPool(x, b.stride)
	}
	if b.down != nil {
		before := x
		x = r.conv(x, *b.down)
		r.Release(before)
	}
	wide := r.conv(y, b.conv3)
	out := r.Add(wide, x)
	r.Release(x, y, wide)
	return r.each(out, relu)
}

// pool is the attention pooling: the mean of all pixels asks the pixels and itself. The result is a unit vector.
func (n *clipIQA) pool(r *run, x *tensor.Tensor) []float64 {
	c := x.Dim(3)
	v := r.host(x)
	mean := make([]float64, c)
	for i, f := range v {
		mean[i%c] += float64(f) / float64(len(v)/c)
	}
	all := make([]float32, c, c+len(v))
	for i, m := range mean {
		all[i] = float32(m)
	}
	tokens := r.upload(append(all, v...), 1, len(v)/c+1, c)
	k, w := r.linear(tokens, n.qkv[1]), r.linear(tokens, n.qkv[2])
	q := r.linear(r.Copy(tokens.Slice(1, 0, 1)), n.qkv[0])
	o := r.New(q.DType(), 1, 1, c)
	split := func(t *tensor.Tensor) *tensor.Tensor { return t.View(1, t.Dim(1), c/clipHead, clipHead) }
	r.AttentionTo(split(o), split(q), split(k), split(w), nil, headScale(clipHead))
	var feature []float64
	for _, f := range r.host(r.linear(o, n.out)) {
		feature = append(feature, float64(f))
	}
	return normalised(feature)
}
