package optest

import (
	"strconv"

	"github.com/fluxir/fluxir/bindings"
)

// The blocks of pkg/model as compositions of formulas. Inputs are called img, txt, vec (silu of the conditioning vector), pe; weights have the names
// of the model's parameters without the block's prefix. Batch 1.

// DoubleBlock is FLUX's MM-DiT block: outputs img and txt.
func DoubleBlock(heads int) Block {
	return func(g *Graph, in map[string]*Node) map[string]*Node {
		img, txt := in["img"], in["txt"]
		T, N := txt.Shape[1], img.Shape[1]
		imgMod, imgHeads := g.attentionInputs(in, "img_", img, g.tokens(in["pe"].wide(), T, T+N, N, in["pe"].Shape[1], 2), heads)
		txtMod, txtHeads := g.attentionInputs(in, "txt_", txt, g.tokens(in["pe"].wide(), 0, T, T, in["pe"].Shape[1], 2), heads)
		var joint [3]*Node
		for i := range joint {
			joint[i] = g.concat(txtHeads[i], imgHeads[i], 1, T+N, heads, img.Shape[2]/heads)
		}
		o := g.attention(joint)
		return map[string]*Node{
			"img": g.residuals(in, "img_", img, g.tokens(o, T, T+N, img.Shape...), imgMod),
			"txt": g.residuals(in, "txt_", txt, g.tokens(o, 0, T, txt.Shape...), txtMod),
		}
	}
}

// SingleBlock is FLUX's parallel block on the joined tokens img: output img.
func SingleBlock(heads int) Block {
	return func(g *Graph, in map[string]*Node) map[string]*Node {
		x := in["img"]
		L, C := x.Shape[1], x.Shape[2]
		mod := g.modulation(in, "modulation.lin", 3)
		wide := g.linear(in, "linear1", g.adaln(x, mod[0], mod[1]))
		all := wide.Shape[2]
		qkv := g.columns(wide, 0, 3*C, 1, L, 3*C)
		o := g.attention(g.heads(in, "norm.", qkv, in["pe"], heads))
		mlp := g.act(g.columns(wide, 3*C, all, 1, L, all-3*C))
		return map[string]*Node{"img": g.gate(x, mod[2], g.linear(in, "linear2", g.beside(o, mlp)))}
	}
}

// wide is pe as if it had a batch: its tokens are then where those of other nodes are.
func (n *Node) wide() *Node { return &Node{Shape: append([]int{1}, n.Shape...), X: n.X} }

func (g *Graph) linear(in map[string]*Node, name string, x *Node) *Node {
	w, rows := in[name+".weight"], x.Shape[:len(x.Shape)-1]
	forward, backward := linearForward(g.DType, plain, rows, w.Shape[1], w.Shape[0]), linearBackward(g.DType, plain, false, rows, w.Shape[1], w.Shape[0])
	return g.apply(forward, &backward, map[string]*Node{"x": x, "w": w, "b": in[name+".bias"]})
}

func (g *Graph) modulation(in map[string]*Node, name string, n int) []*Node {
	all := g.linear(in, name, in["vec"])
	C := all.Shape[1] / n
	parts := make([]*Node, n)
	for i := range parts {
		parts[i] = g.columns(all, i*C, (i+1)*C, 1, C)
	}
	return parts
}

func (g *Graph) adaln(x, shift, scale *Node) *Node {
	B, L, C := x.Shape[0], x.Shape[1], x.Shape[2]
	forward, backward := adalnForward(g.DType, 0, B, L, C), adalnBackward(g.DType, 0, false, B, L, C)
	return g.apply(forward, &backward, map[string]*Node{"x": x, "shift": shift, "scale": scale})
}

func (g *Graph) act(x *Node) *Node {
	forward, backward := actForward(g.DType, bindings.ActGELUTanh, x.Shape...), actBackward(g.DType, bindings.ActGELUTanh, x.Shape...)
	return g.apply(forward, &backward, map[string]*Node{"x": x})
}

// gate is x + gate ⊙ r. Its backward op leaves x to the tape, which passes the gradient on.
func (g *Graph) gate(x, gate, r *Node) *Node {
	B, L, C := x.Shape[0], x.Shape[1], x.Shape[2]
	forward, backward := gateForwardBy(1, g.DType, g.DType, B, L, C), gateBackwardBy(1, g.DType, g.DType, false, B, L, C)
	y := g.apply(forward, &backward, map[string]*Node{"x": x, "gate": gate, "r": r})
	g.back = append(g.back, func() {
		if y.D != nil {
			g.add(x, y.D)
		}
	})
	return y
}

// heads are q and k, normed and rotated, and v, of qkv [1,n,3C].
func (g *Graph) heads(in map[string]*Node, prefix string, qkv, pe *Node, heads int) (parts [3]*Node) {
	n, C := qkv.Shape[1], qkv.Shape[2]/3
	s := qkNormRope{1, n, heads, C / heads, true, true}
	forward, backward := qkNormRopeForward(g.DType, s), qkNormRopeBackward(g.DType, s)
	for i := range parts {
		parts[i] = g.columns(qkv, i*C, (i+1)*C, 1, n, heads, C/heads)
		if i < 2 {
			weight := in[prefix+[]string{"query", "key"}[i]+"_norm.scale"]
			parts[i] = g.apply(forward, &backward, map[string]*Node{"x": parts[i], "weight": weight, "pe": pe})
		}
	}
	return parts
}

func (g *Graph) attention(qkv [3]*Node) *Node {
	q := qkv[0].Shape
	s := attentionShape{B: 1, Lq: q[1], Lk: q[1], H: q[2], D: q[3]}
	forward, backward := attentionForward(g.DType, s), attentionBackward(g.DType, s)
	return g.apply(forward, &backward, map[string]*Node{"q": qkv[0], "k": qkv[1], "v": qkv[2]})
}

// attentionInputs of a stream: its six modulation vectors, and its rows of q, k and v.
func (g *Graph) attentionInputs(in map[string]*Node, stream string, x, pe *Node, heads int) ([]*Node, [3]*Node) {
	mod := g.modulation(in, stream+"mod.lin", 6)
	qkv := g.linear(in, stream+"attn.qkv", g.adaln(x, mod[0], mod[1]))
	return mod, g.heads(in, stream+"attn.norm.", qkv, pe, heads)
}

// residuals is the rest of a stream.
func (g *Graph) residuals(in map[string]*Node, stream string, x, o *Node, mod []*Node) *Node {
	x = g.gate(x, mod[2], g.linear(in, stream+"attn.proj", o))
	h := g.act(g.linear(in, stream+"mlp.0", g.adaln(x, mod[3], mod[4])))
	return g.gate(x, mod[5], g.linear(in, stream+"mlp.2", h))
}

// Decoder is the autoencoder's decoder: input z [B,h,w,c], output image. levels is the number of resolutions, layers that of residual blocks in one.
func Decoder(levels, layers, groups int) Block {
	return func(g *Graph, in map[string]*Node) map[string]*Node {
		x := g.conv(in, "conv_in", in["z"], 3)
		x = g.resnet(in, "mid_block.resnets.0", x, groups)
		x = g.add2(x, g.pixelAttention(in, "mid_block.attentions.0.", x, groups))
		x = g.resnet(in, "mid_block.resnets.1", x, groups)
		for i := range levels {
			prefix := "up_blocks." + strconv.Itoa(i)
			for j := range layers {
				x = g.resnet(in, prefix+".resnets."+strconv.Itoa(j), x, groups)
			}
			if i+1 < levels {
				s := x.Shape
				x = g.conv(in, prefix+".upsamplers.0.conv", g.apply(upsampleForward(g.DType, s[0], s[1], s[2], s[3]), nil, map[string]*Node{"x": x}), 3)
			}
		}
		return map[string]*Node{"image": g.conv(in, "conv_out", g.groupNorm(in, "conv_norm_out", x, groups, true), 3)}
	}
}

func (g *Graph) conv(in map[string]*Node, name string, x *Node, kernel int) *Node {
	w, pad := in[name+".weight"], kernel/2
	s := convShape{x.Shape[0], x.Shape[1], x.Shape[2], w.Shape[1], w.Shape[0], kernel, kernel, pads(1, pad, pad, pad, pad)}
	return g.apply(conv2DForward(g.DType, s), nil, map[string]*Node{"x": x, "w": w, "b": in[name+".bias"]})
}

func (g *Graph) groupNorm(in map[string]*Node, name string, x *Node, groups int, silu bool) *Node {
	s := x.Shape
	return g.apply(groupNormForward(g.DType, silu, groups, 0, s[0], s[1], s[2], s[3]), nil, map[string]*Node{"x": x, "w": in[name+".weight"], "b": in[name+".bias"]})
}

func (g *Graph) add2(a, b *Node) *Node {
	return g.apply(add(g.DType, a.Shape...), nil, map[string]*Node{"a": a, "b": b})
}

func (g *Graph) resnet(in map[string]*Node, name string, x *Node, groups int) *Node {
	h := g.conv(in, name+".conv1", g.groupNorm(in, name+".norm1", x, groups, true), 3)
	h = g.conv(in, name+".conv2", g.groupNorm(in, name+".norm2", h, groups, true), 3)
	if in[name+".conv_shortcut.weight"] != nil {
		x = g.conv(in, name+".conv_shortcut", x, 1)
	}
	return g.add2(x, h)
}

// pixelAttention is one head over all pixels.
func (g *Graph) pixelAttention(in map[string]*Node, name string, x *Node, groups int) *Node {
	s, L := x.Shape, x.Shape[1]*x.Shape[2]
	h := g.groupNorm(in, name+"group_norm", x, groups, false)
	h = &Node{Shape: []int{s[0], L, s[3]}, X: h.X}
	var qkv [3]*Node
	for i, part := range []string{"to_q", "to_k", "to_v"} {
		y := g.linear(in, name+part, h)
		qkv[i] = &Node{Shape: []int{s[0], L, 1, s[3]}, X: y.X}
	}
	o := g.attention(qkv)
	o = g.linear(in, name+"to_out.0", &Node{Shape: h.Shape, X: o.X})
	return &Node{Shape: s, X: o.X}
}
