package network

import (
	"fmt"
	"math"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/tensor"
)

const (
	musiqPatch = 32 // pixels a side
	musiqGrid  = 10 // of the position embedding
	musiqHeads = 6
	musiqRoot  = 64 // channels of the first convolution
)

// musiqSides are the lengths of the longer side of the two scaled copies that go in beside the picture itself.
var musiqSides = [2]int{224, 384}

// musiq is MUSIQ (Ke et al. 2021): patches of the picture at three sizes, cut by a small residual network into tokens for one transformer. Only the tokens of
// patches that are there go in, which is what masking the others comes to.
type musiq struct {
	root, conv1, conv2, conv3, project   conv
	rootN, norm1, norm2, norm3, projectN group
	embedding, head                      linear
	position, scale, class               []float32
	blocks                               []block
	last                                 norm
}

// group is a group norm with 32 groups.
type group struct {
	w, b *tensor.Tensor
	eps  float32
}

func (p *params) group(name string, width int, eps float32) group {
	return group{p.upload(p.values(name+".weight", width), width), p.upload(p.values(name+".bias", width), width), eps}
}

func (r *run) group(x *tensor.Tensor, g group) *tensor.Tensor {
	return r.GroupNorm(x, g.w, g.b, tensor.GroupNormArgs{Groups: 32, Eps: g.eps})
}

// standardised reads the weights of a convolution that are brought to mean 0 and deviation 1 (of n − 1) for each output, without a bias.
func (p *params) standardised(name string, out, in, side int) *tensor.Tensor {
	w := p.values(name+".weight", out, in, side, side)
	n := in * side * side
	for o := 0; o < len(w); o += n {
		row := w[o : o+n]
		var sum, squares float64
		for _, v := range row {
			sum += float64(v)
		}
		mean := sum / float64(n)
		for _, v := range row {
			squares += (float64(v) - mean) * (float64(v) - mean)
		}
		deviation := math.Sqrt(squares/float64(n-1)) + 1e-5
		for i, v := range row {
			row[i] = float32((float64(v) - mean) / deviation)
		}
	}
	return p.upload(w, out, in, side, side)
}

func loadMUSIQ(p *params) scorer {
	const c = musiqRoot
	n := &musiq{
		root:  conv{p.standardised("conv_root", c, 3, 7), nil, tensor.Conv2DArgs{Stride: 2, PadTop: 2, PadLeft: 2, PadBottom: 3, PadRight: 3}},
		rootN: p.group("gn_root", c, 1e-6),
		conv1: same(p.standardised("block1.conv1", c, c, 1), nil, 1), norm1: p.group("block1.gn1", c, 1e-4),
		conv2: same(p.standardised("block1.conv2", c, c, 3), nil, 3), norm2: p.group("block1.gn2", c, 1e-4),
		conv3: same(p.standardised("block1.conv3", 4*c, c, 1), nil, 1), norm3: p.group("block1.gn3", 4*c, 1e-4),
		project: same(p.standardised("block1.conv_proj", 4*c, c, 1), nil, 1), projectN: p.group("block1.gn_proj", 4*c, 1e-4),
	}
	n.embedding = p.linear("embedding", -1, 4*c*(musiqPatch/4)*(musiqPatch/4))
	class, shape := p.read("transformer_encoder.cls", 1, 1, -1)
	width := shape[2]
	if width%(8*musiqHeads) != 0 {
		p.fail("transformer of %d channels, want a multiple of %d", width, 8*musiqHeads)
		return n
	}
	n.class = class
	n.position = p.values("transformer_encoder.posembed_input.position_emb", 1, musiqGrid*musiqGrid, width)
	n.scale = p.values("transformer_encoder.scaleembed_input.scale_emb", len(musiqSides)+1, width)
	prefix := "transformer_encoder.transformer.encoderblock_"
	for i := range p.count(prefix + "%d.norm1.weight") {
		b := fmt.Sprint(prefix, i, ".")
		n.blocks = append(n.blocks, block{
			norm1: p.norm(b+"norm1", width, 1e-6), norm2: p.norm(b+"norm2", width, 1e-6),
			qkv: p.joined(width, b+"attention.query", b+"attention.key", b+"attention.value"), out: p.linear(b+"attention.out", width, width),
			fc1: p.linear(b+"mlp.fc1", -1, width), fc2: p.linear(b+"mlp.fc2", width, -1), heads: musiqHeads,
		})
	}
	n.last = p.norm("transformer_encoder.encoder_norm", width, 1e-6)
	if p.has("head.0.weight") { // a distribution over the marks 1, 2, ...
		n.head = p.linear("head.0", -1, width)
	} else {
		n.head = p.linear("head", 1, width)
	}
	return n
}

func (n *musiq) score(r *run, pictures []*data.Image) (float64, error) {
	m := pictures[0]
	var pixels []float32
	where := append([]float32(nil), n.class...) // what is added to the tokens; the class token is nothing else
	count := 0
	for k := range len(musiqSides) + 1 {
		copied := m
		if k < len(musiqSides) {
			ratio := float64(musiqSides[k]) / float64(max(m.W, m.H))
			w, h := int(math.RoundToEven(float64(m.W)*ratio)), int(math.RoundToEven(float64(m.H)*ratio))
			if w < 1 || h < 1 {
				return 0, fmt.Errorf("image of %dx%d pixels has no height or width at %d pixels", m.W, m.H, musiqSides[k])
			}
			copied = torchBicubic(m, w, h)
		}
		columns, rows := (copied.W+musiqPatch-1)/musiqPatch, (copied.H+musiqPatch-1)/musiqPatch
		pixels = append(pixels, musiqPatches(copied, columns, rows)...)
		for i := range columns * rows {
			where = append(where, n.place(k, i%columns, i/columns, columns, rows)...)
		}
		count += columns * rows
	}
	width := len(n.class)
	x := r.linear(n.residual(r, r.upload(pixels, count, musiqPatch, musiqPatch, 3)).View(1, count, 4*musiqRoot*musiqPatch*musiqPatch/16), n.embedding)
	class := r.Fill(r.New(x.DType(), 1, 1, width), 0)
	x = r.Add(r.Concat(class, x), r.upload(where, 1, count+1, width))
	for _, b := range n.blocks {
		x = b.forward(r, x, gelu, func(qkv *tensor.Tensor) *tensor.Tensor { return r.attention(qkv, b.heads) })
	}
	out := r.host(r.linear(r.norm(r.Copy(x.Slice(1, 0, 1)), n.last), n.head))
	if len(out) == 1 {
		return float64(out[0]), nil
	}
	var sum, marks float64
	for i, v := range out {
		e := math.Exp(float64(v - out[0]))
		sum += e
		marks += e * float64(i+1)
	}
	return marks / sum, nil
}

// residual is the network that makes tokens of patches [N,32,32,3].
func (n *musiq) residual(r *run, x *tensor.Tensor) *tensor.Tensor {
	out := r.Scope(func() []*tensor.Tensor {
		x = r.each(r.group(r.conv(x, n.root), n.rootN), relu)
		x = r.maxPool(x, 3, 2, 1)
		y := r.each(r.group(r.conv(x, n.conv1), n.norm1), relu)
		y = r.each(r.group(r.conv(y, n.conv2), n.norm2), relu)
		y = r.group(r.conv(y, n.conv3), n.norm3)
		return []*tensor.Tensor{r.each(r.Add(y, r.group(r.conv(x, n.project), n.projectN)), relu)}
	})
	return out[0]
}

// place is the embedding of the patch at (x, y) of columns × rows at scale k.
func (n *musiq) place(k, x, y, columns, rows int) []float32 {
	width := len(n.class)
	nearest := func(i, count int) int { return min(int(float32(i)*(float32(musiqGrid)/float32(count))), musiqGrid-1) } // as torch does, in float32
	cell := nearest(y, rows)*musiqGrid + nearest(x, columns)
	out := make([]float32, width)
	for i := range out {
		out[i] = n.position[cell*width+i] + n.scale[k*width+i]
	}
	return out
}

// musiqPatches cuts a picture, 2v − 1, into patches row by row; zeros fill it up on both sides, one more at the right and at the bottom.
func musiqPatches(m *data.Image, columns, rows int) []float32 {
	const p = musiqPatch
	left, top := (columns*p-m.W)/2, (rows*p-m.H)/2
	out := make([]float32, columns*rows*p*p*3)
	for y := range m.H {
		for x := range m.W {
			px, py := x+left, y+top
			at := (((py/p*columns+px/p)*p+py%p)*p + px%p) * 3
			for c := range 3 {
				out[at+c] = (m.Pix[3*(y*m.W+x)+c] - 0.5) * 2
			}
		}
	}
	return out
}

// torchBicubic is torch's interpolate(mode="bicubic", align_corners=False): Keys' cubic with a = −0.75 on the nearest 4×4 pixels, not widened when it shrinks.
func torchBicubic(m *data.Image, w, h int) *data.Image {
	type tap struct {
		at     [4]int
		weight [4]float64
	}
	plan := func(n, out int) []tap {
		taps := make([]tap, out)
		for i := range taps {
			x := (float64(i)+0.5)*float64(n)/float64(out) - 0.5
			first := math.Floor(x)
			for k := range 4 {
				d := math.Abs(x - first - float64(k-1))
				v := ((-0.75*d+3.75)*d-6)*d + 3
				if d <= 1 {
					v = (1.25*d-2.25)*d*d + 1
				}
				taps[i].at[k], taps[i].weight[k] = min(max(int(first)+k-1, 0), n-1), v
			}
		}
		return taps
	}
	columns, lines := plan(m.W, w), plan(m.H, h)
	out := data.New(w, h)
	data.Parallel(h, func(lo, hi int) {
		for y := lo; y < hi; y++ {
			for x := range w {
				var sum [3]float64
				for j, sy := range lines[y].at {
					for i, sx := range columns[x].at {
						weight := lines[y].weight[j] * columns[x].weight[i]
						for c := range sum {
							sum[c] += weight * float64(m.Pix[3*(sy*m.W+sx)+c])
						}
					}
				}
				for c, v := range sum {
					out.Pix[3*(y*w+x)+c] = float32(v)
				}
			}
		}
	})
	return out
}
