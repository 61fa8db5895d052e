package model

import (
	"math"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/tensor"
)

const normEps = 1e-6 // of every LayerNorm and RMSNorm of FLUX

// embedder is in_layer, SiLU, out_layer: time_in, vector_in, guidance_in.
type embedder struct{ in, out linear }

func (ps *Params) embedder(name string) embedder {
	return embedder{ps.linear(name + ".in_layer"), ps.linear(name + ".out_layer")}
}

func (e embedder) forward(t *tensor.Tape, x *tensor.Tensor) *tensor.Tensor {
	return e.out.forward(t, t.LinearAct(x, e.in.w, e.in.b, bindings.ActSiLU))
}

// modulation makes n vectors [B,C] each (shift, scale, gate, ...) from silu(vec).
func modulation(t *tensor.Tape, l linear, siluVec *tensor.Tensor, n int) []*tensor.Tensor {
	all := l.forward(t, siluVec)
	c := all.Dim(1) / n
	parts := make([]*tensor.Tensor, n)
	for i := range parts {
		parts[i] = all.Slice(1, i*c, (i+1)*c)
	}
	return parts
}

// stream holds the weights of one of a double block's two streams.
type stream struct {
	mod, qkv, proj, mlpIn, mlpOut linear
	queryNorm, keyNorm            *tensor.Tensor
}

func (ps *Params) stream(prefix string) stream {
	return stream{
		mod: ps.linear(prefix + "_mod.lin"), qkv: ps.linear(prefix + "_attn.qkv"), proj: ps.linear(prefix + "_attn.proj"),
		mlpIn: ps.linear(prefix + "_mlp.0"), mlpOut: ps.linear(prefix + "_mlp.2"),
		queryNorm: ps.value(prefix + "_attn.norm.query_norm.scale"), keyNorm: ps.value(prefix + "_attn.norm.key_norm.scale"),
	}
}

// doubleBlock is an MM-DiT block: text and image with weights of their own and one joint attention over [txt; img].
type doubleBlock struct {
	img, txt stream
	heads    int
}

func (ps *Params) doubleBlock(prefix string, heads int) doubleBlock {
	return doubleBlock{img: ps.stream(prefix + "img"), txt: ps.stream(prefix + "txt"), heads: heads}
}

// forward: img [B,N,C], txt [B,T,C], siluVec [B,C], pe for T+N tokens.
func (b doubleBlock) forward(t *tensor.Tape, img, txt, siluVec, pe *tensor.Tensor) (imgOut, txtOut *tensor.Tensor) {
	batch, nTxt, c := txt.Dim(0), txt.Dim(1), txt.Dim(2)
	length := nTxt + img.Dim(1)
	qkv := t.New(img.DType(), batch, length, 3*c)
	imgMod := b.img.attentionInputs(t, img, siluVec, qkv.Slice(1, nTxt, length))
	txtMod := b.txt.attentionInputs(t, txt, siluVec, qkv.Slice(1, 0, nTxt))

	o := t.New(img.DType(), batch, length, c)
	norm := tensor.QKNorm{
		Query: [2]*tensor.Tensor{b.txt.queryNorm, b.img.queryNorm}, Key: [2]*tensor.Tensor{b.txt.keyNorm, b.img.keyNorm}, Split: nTxt, PE: pe, Eps: normEps,
	}
	attention(t, o, qkv, &norm, b.heads)
	return b.img.residuals(t, img, o.Slice(1, nTxt, length), imgMod), b.txt.residuals(t, txt, o.Slice(1, 0, nTxt), txtMod)
}

// attentionInputs writes x's rows of qkv [B,n,3C] and returns the six modulation vectors.
func (s stream) attentionInputs(t *tensor.Tape, x, siluVec, qkv *tensor.Tensor) []*tensor.Tensor {
	mod := modulation(t, s.mod, siluVec, 6)
	t.LinearTo(qkv, t.AdaLN(x, mod[0], mod[1], normEps), s.qkv.w, s.qkv.b)
	return mod
}

// residuals is the rest of a stream: projection of the attention's rows, then the MLP, both gated.
func (s stream) residuals(t *tensor.Tape, x, o *tensor.Tensor, mod []*tensor.Tensor) *tensor.Tensor {
	x = t.LinearGate(o, s.proj.w, s.proj.b, x, mod[2])
	h := t.LinearAct(t.AdaLN(x, mod[3], mod[4], normEps), s.mlpIn.w, s.mlpIn.b, bindings.ActGELUTanh)
	return t.LinearGate(h, s.mlpOut.w, s.mlpOut.b, x, mod[5])
}

// attention of q, k and v, the columns of qkv [B,L,3C], into o [B,L,C].
func attention(t *tensor.Tape, o, qkv *tensor.Tensor, norm *tensor.QKNorm, heads int) {
	c := o.Dim(2)
	part := func(i int) *tensor.Tensor { return byHead(qkv.Slice(2, i*c, (i+1)*c), heads) }
	t.AttentionTo(byHead(o, heads), part(0), part(1), part(2), norm, attentionScale(c/heads))
}

// attentionScale is 1/√D.
func attentionScale(headDim int) float32 { return float32(1 / math.Sqrt(float64(headDim))) }

// byHead views [B,L,C] as [B,L,H,D].
func byHead(x *tensor.Tensor, heads int) *tensor.Tensor {
	return x.View(x.Dim(0), x.Dim(1), heads, x.Dim(2)/heads)
}

// singleBlock runs attention and MLP side by side on the joined tokens.
type singleBlock struct {
	mod, qkv, mlp, linear2 linear // qkv and mlp are parts of the checkpoint's linear1
	queryNorm, keyNorm     *tensor.Tensor
	heads                  int
}

func (ps *Params) singleBlock(prefix string, heads int) singleBlock {
	linear1 := ps.linear(prefix + "linear1")
	out, c := linear1.w.Dim(0), linear1.w.Dim(1)
	return singleBlock{
		mod: ps.linear(prefix + "modulation.lin"), qkv: linear1.rows(0, 3*c), mlp: linear1.rows(3*c, out), linear2: ps.linear(prefix + "linear2"),
		queryNorm: ps.value(prefix + "norm.query_norm.scale"), keyNorm: ps.value(prefix + "norm.key_norm.scale"), heads: heads,
	}
}

// forward: x [B,L,C], L = T+N.
func (b singleBlock) forward(t *tensor.Tape, x, siluVec, pe *tensor.Tensor) *tensor.Tensor {
	batch, length, c := x.Dim(0), x.Dim(1), x.Dim(2)
	mod := modulation(t, b.mod, siluVec, 3)
	h := t.AdaLN(x, mod[0], mod[1], normEps)
	qkv := b.qkv.forward(t, h)
	joined := t.New(x.DType(), batch, length, c+b.mlp.w.Dim(0))
	norm := tensor.QKNorm{Query: [2]*tensor.Tensor{b.queryNorm}, Key: [2]*tensor.Tensor{b.keyNorm}, Split: length, PE: pe, Eps: normEps}
	attention(t, joined.Slice(2, 0, c), qkv, &norm, b.heads)
	t.LinearActTo(joined.Slice(2, c, joined.Dim(2)), h, b.mlp.w, b.mlp.b, bindings.ActGELUTanh)
	return t.LinearGate(joined, b.linear2.w, b.linear2.b, x, mod[2])
}

// finalLayer is the last AdaLN and the projection to the token's channels.
type finalLayer struct{ mod, out linear }

func (f finalLayer) forward(t *tensor.Tape, img, siluVec *tensor.Tensor) *tensor.Tensor {
	mod := modulation(t, f.mod, siluVec, 2)
	return f.out.forward(t, t.AdaLN(img, mod[0], mod[1], normEps))
}
