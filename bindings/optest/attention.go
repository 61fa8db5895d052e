package optest

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/fluxir/fluxir/bindings"
)

// attentionShape: queries, keys and values are views of one joint buffer [B,L,(q k v)HD] when joint, as the linear layer leaves them.
type attentionShape struct {
	B, Lq, Lk, H, D int
	sharp           float64 // deviation of q, 0 meaning 1: how far the scores spread
	joint           bool
	norm            *qkNormArgs // nil: q and k as they are
}

// qkNormArgs says how q and k are normed and rotated: with weights for the tokens before split and for the others; rotated.
type qkNormArgs struct {
	split      int
	norm, rope bool
}

// qkWeights are the names of the weights: of queries and keys before split, then of the others.
var qkWeights = [2][2]string{{"wq0", "wk0"}, {"wq1", "wk1"}}

func (s attentionShape) scale() float64 { return float64(float32(1 / math.Sqrt(float64(s.D)))) }

// at is the index of the first element of a row in [B,L,H,D].
func (s attentionShape) at(L, b, l, h int) int { return ((b*L+l)*s.H + h) * s.D }

func (s attentionShape) note() string {
	switch {
	case s.norm != nil && !s.norm.norm:
		return "rope"
	case s.norm != nil && !s.norm.rope:
		return fmt.Sprintf("norm split %d", s.norm.split)
	case s.norm != nil && s.joint:
		return fmt.Sprintf("joint norm rope split %d", s.norm.split)
	case s.norm != nil:
		return fmt.Sprintf("norm rope split %d", s.norm.split)
	case s.joint:
		return "joint"
	case s.sharp != 0:
		return "sharp"
	}
	return ""
}

// rows is an argument [B,L,H,D].
func (s attentionShape) rows(a func(string, bindings.DType, ...int) Arg, name string, dtype bindings.DType, L int) Arg {
	arg := a(name, dtype, s.B, L, s.H, s.D)
	if s.joint {
		arg = arg.Strided(L*3*s.H*s.D, 3*s.H*s.D, s.D, 1)
	}
	return arg
}

func (s attentionShape) inputs(dtype bindings.DType) []Arg {
	q := s.rows(In, "q", dtype, s.Lq)
	if s.sharp != 0 {
		q = q.Normal(s.sharp)
	}
	return append([]Arg{q, s.rows(In, "k", dtype, s.Lk), s.rows(In, "v", dtype, s.Lk)}, s.normInputs(dtype)...)
}

// L is the number of tokens. A sample of a large case has its middle queries, or keys, alone.
func (s attentionShape) L() int { return max(s.Lq, s.Lk) }

// weightNames are those of the tokens that exist.
func (s attentionShape) weightNames() []string {
	var names []string
	for i, rows := range []int{0, s.L()} {
		if s.norm != nil && s.norm.norm && s.norm.split != rows {
			names = append(names, qkWeights[i][:]...)
		}
	}
	return names
}

func (s attentionShape) normInputs(dtype bindings.DType) []Arg {
	var args []Arg
	for _, name := range s.weightNames() {
		args = append(args, In(name, dtype, s.D).Packed())
	}
	if s.norm != nil && s.norm.rope {
		args = append(args, qkNormRope{L: s.L(), D: s.D, rope: true}.parameters(bindings.F32)...)
	}
	return args
}

// deviceNorm is the argument of the call.
func (s attentionShape) deviceNorm(t Tensors) *bindings.QKNorm {
	if s.norm == nil {
		return nil
	}
	n := &bindings.QKNorm{PE: t["pe"], Split: s.norm.split, Eps: qkNormEps}
	for i, names := range qkWeights {
		n.Query[i], n.Key[i] = t[names[0]], t[names[1]]
		n.DQuery[i], n.DKey[i] = t["d"+names[0]], t["d"+names[1]]
	}
	return n
}

// eachPart calls f for the runs of rows that share a weight: of q and of k, before split and after, in each batch. Elements [low, high) of tensor x are
// the run, part and args the formula of qk_norm_rope on it.
func (s attentionShape) eachPart(v Values, f func(x, weight string, low, high int, part qkNormRope, args Values)) {
	for side, x := range []string{"q", "k"} {
		L := []int{s.Lq, s.Lk}[side]
		offset := (s.L() - L) / 2
		split := min(max(s.norm.split-offset, 0), L)
		for i, tokens := range [][2]int{{0, split}, {split, L}} {
			weight := qkWeights[i][side]
			for b := range s.B {
				part, args := qkNormRope{1, tokens[1] - tokens[0], s.H, s.D, s.norm.norm, s.norm.rope}, Values{"weight": v[weight]}
				if s.norm.rope {
					args["pe"] = v["pe"][(offset+tokens[0])*s.D:]
				}
				low, high := s.at(L, b, tokens[0], 0), s.at(L, b, tokens[1], 0)
				args["x"], args["rstd"] = v[x][low:high], make([]float64, (high-low)/s.D)
				f(x, weight, low, high, part, args)
			}
		}
	}
}

// normed is v with q and k as the norm makes them.
func (s attentionShape) normed(p *Prec, v Values) Values {
	if s.norm == nil {
		return v
	}
	out := maps.Clone(v)
	out["q"], out["k"] = make([]float64, len(v["q"])), make([]float64, len(v["k"]))
	s.eachPart(v, func(x, _ string, low, high int, part qkNormRope, args Values) {
		args["y"] = out[x][low:high]
		part.forward(p, args)
	})
	return out
}

// unnorm takes dq and dk, of the normed rows, back to those of q and k, and sums the gradients of the weights.
func (s attentionShape) unnorm(p *Prec, v Values) {
	if s.norm == nil {
		return
	}
	s.eachPart(v, func(x, weight string, low, high int, part qkNormRope, args Values) {
		args["y"] = make([]float64, high-low)
		part.forward(p, args) // for rstd
		dx := v["d"+x][low:high]
		args["dy"], args["dx"], args["dweight"] = slices.Clone(dx), dx, make([]float64, len(v["d"+weight]))
		part.backward(p, args)
		for c, d := range args["dweight"] {
			v["d"+weight][c] = p.F(v["d"+weight][c] + d)
		}
	})
}

// score is scale · q·k of one query and one key.
func (s attentionShape) score(p *Prec, v Values, i, j int) float64 {
	q, k := v["q"][i:], v["k"][j:]
	return p.R(s.scale() * p.R(p.Sum(s.D, func(c int) float64 { return q[c] * k[c] })))
}

func attentionForward(dtype bindings.DType, s attentionShape) Case {
	return Case{
		Op: "attention_forward", DType: dtype, Note: s.note(),
		Args: append([]Arg{Out("o", dtype, s.B, s.Lq, s.H, s.D), Out("lse", bindings.F32, s.B, s.H, s.Lq).Packed()}, s.inputs(dtype)...),
		Run: func(d *bindings.Device, t Tensors) error {
			return d.AttentionForward(t["o"], t["lse"], t["q"], t["k"], t["v"], s.deviceNorm(t), float32(s.scale()))
		},
		Formula: func(p *Prec, v Values) {
			v = s.normed(p, v)
			probs := make([]float64, s.Lk)
			for row := range s.B * s.H * s.Lq {
				b, h, l := row/(s.H*s.Lq), row/s.Lq%s.H, row%s.Lq
				i, top := s.at(s.Lq, b, l, h), math.Inf(-1)
				for j := range probs {
					probs[j] = s.score(p, v, i, s.at(s.Lk, b, j, h))
					top = max(top, probs[j])
				}
				total := p.Sum(s.Lk, func(j int) float64 { return math.Exp(probs[j] - top) })
				if lse := v["lse"]; lse != nil {
					lse[row] = p.F(top + p.F(math.Log(total)))
				}
				for j := range probs {
					probs[j] = p.R(p.F(math.Exp(probs[j]-top)) / total)
				}
				for c := range s.D {
					v["o"][i+c] = p.R(p.Sum(s.Lk, func(j int) float64 { return probs[j] * v["v"][s.at(s.Lk, b, j, h)+c] }))
				}
			}
		},
		FLOPs: 4 * s.B * s.H * s.Lq * s.Lk * s.D,
	}
}

// attentionBackward recomputes the probabilities from lse: p = exp(score - lse), dv = pᵀ do, ds = p · (do vᵀ - rowsum(do · o)),
// dq = scale · ds k, dk = scale · dsᵀ q.
func attentionBackward(dtype bindings.DType, s attentionShape) Case {
	forward := attentionForward(dtype, s)
	outs := []Arg{s.rows(Out, "dq", dtype, s.Lq), s.rows(Out, "dk", dtype, s.Lk), s.rows(Out, "dv", dtype, s.Lk), In("do", dtype, s.B, s.Lq, s.H, s.D)}
	for _, name := range s.weightNames() {
		outs = append(outs, Acc("d"+name, s.D))
	}
	saved := []Arg{In("o", dtype, s.B, s.Lq, s.H, s.D), In("lse", bindings.F32, s.B, s.H, s.Lq).Packed()}
	return Case{
		Op: "attention_backward", DType: dtype, Note: s.note(), Forward: &forward,
		Args: append(append(outs, s.inputs(dtype)...), saved...),
		Run: func(d *bindings.Device, t Tensors) error {
			return d.AttentionBackward(t["dq"], t["dk"], t["dv"], t["do"], t["q"], t["k"], t["v"], t["o"], t["lse"], s.deviceNorm(t), float32(s.scale()))
		},
		Formula: func(p *Prec, v Values) {
			normed := s.normed(p, v)
			for head := range s.B * s.H {
				s.backwardHead(p, normed, head/s.H, head%s.H)
			}
			s.unnorm(p, v)
		},
		FLOPs: 10 * s.B * s.H * s.Lq * s.Lk * s.D,
	}
}

func (s attentionShape) backwardHead(p *Prec, v Values, b, h int) {
	do := v["do"]
	probs, ds := make([]float64, s.Lq*s.Lk), make([]float64, s.Lq*s.Lk)
	for l := range s.Lq {
		i := s.at(s.Lq, b, l, h)
		lse := v["lse"][(b*s.H+h)*s.Lq+l]
		delta := p.F(p.Sum(s.D, func(c int) float64 { return p.R(do[i+c] * v["o"][i+c]) }))
		for j := range s.Lk {
			k := s.at(s.Lk, b, j, h)
			prob := p.R(math.Exp(p.F(s.score(p, v, i, k) - lse)))
			dp := p.R(p.Sum(s.D, func(c int) float64 { return do[i+c] * v["v"][k+c] }))
			probs[l*s.Lk+j], ds[l*s.Lk+j] = prob, p.R(prob*p.R(dp-delta))
		}
		for c := range s.D {
			sum := p.Sum(s.Lk, func(j int) float64 { return ds[l*s.Lk+j] * v["k"][s.at(s.Lk, b, j, h)+c] })
			v["dq"][i+c] = p.R(s.scale() * p.R(sum))
		}
	}
	for j := range s.Lk {
		k := s.at(s.Lk, b, j, h)
		for c := range s.D {
			sum := p.Sum(s.Lq, func(l int) float64 { return ds[l*s.Lk+j] * v["q"][s.at(s.Lq, b, l, h)+c] })
			v["dk"][k+c] = p.R(s.scale() * p.R(sum))
			v["dv"][k+c] = p.R(p.Sum(s.Lq, func(l int) float64 { return probs[l*s.Lk+j] * do[s.at(s.Lq, b, l, h)+c] }))
		}
	}
}

func attentionCases() []Case {
	shapes := []attentionShape{
		{B: 3, Lq: 1, Lk: 5, H: 4, D: 8}, {B: 1, Lq: 15, Lk: 16, H: 2, D: 16}, {B: 2, Lq: 16, Lk: 17, H: 1, D: 24}, {B: 1, Lq: 17, Lk: 15, H: 3, D: 32},
		{B: 1, Lq: 113, Lk: 203, H: 1, D: 8}, {B: 1, Lq: 33, Lk: 37, H: 1, D: 64}, {B: 1, Lq: 3, Lk: 131, H: 1, D: 128}, {B: 1, Lq: 3, Lk: 9, H: 1, D: 512},
		{B: 2, Lq: 5, Lk: 131, H: 8, D: 8}, {B: 2, Lq: 49, Lk: 19, H: 2, D: 24, joint: true}, {B: 1, Lq: 65, Lk: 67, H: 1, D: 64}, {B: 1, Lq: 65, Lk: 35, H: 1, D: 128},
		{B: 1, Lq: 0, Lk: 5, H: 1, D: 8},
		{B: 1, Lq: 7, Lk: 301, H: 1, D: 40}, {B: 1, Lq: 250, Lk: 33, H: 1, D: 8}, // several blocks of keys, several groups of queries, of every kind of product
	}
	var cases []Case
	for _, s := range shapes {
		for _, dtype := range floats {
			cases = append(cases, attentionForward(dtype, s), attentionBackward(dtype, s))
		}
	}
	// Text and image with weights of their own, one of them alone, and each part of the norm alone.
	normed := func(B, L, H, D int, norm qkNormArgs) {
		for _, dtype := range floats {
			s := attentionShape{B: B, Lq: L, Lk: L, H: H, D: D, norm: &norm}
			cases = append(cases, attentionForward(dtype, s), attentionBackward(dtype, s))
		}
	}
	normed(1, 2, 2, 8, qkNormArgs{0, true, true})
	normed(2, 33, 3, 32, qkNormArgs{15, true, true})
	normed(1, 49, 2, 64, qkNormArgs{49, true, true})
	normed(3, 17, 1, 24, qkNormArgs{16, true, false})
	normed(1, 35, 2, 128, qkNormArgs{0, false, true})
	normed(1, 261, 1, 40, qkNormArgs{131, true, true}) // several blocks of keys, in parts
	normed(1, 11, 2, 136, qkNormArgs{4, true, true})   // heads too wide for tiles on CUDA
	joint := attentionShape{B: 2, Lq: 49, Lk: 49, H: 2, D: 24, joint: true, norm: &qkNormArgs{19, true, true}}
	cases = append(cases, attentionForward(bindings.F32, joint), attentionBackward(bindings.F32, joint), attentionForward(bindings.BF16, joint),
		attentionBackward(bindings.BF16, joint), attentionBackward(bindings.BF16, joint).Without("dwq1", "dwk0"))
	normed(1, 133, 1, 128, qkNormArgs{70, true, true}) // several tiles on CUDA
	// Scores spread over more than the exponents of f32: most probabilities are denormal or 0.
	sharp := attentionShape{B: 1, Lq: 9, Lk: 140, H: 1, D: 32, sharp: 25}
	// One key: o is v, and dq and dk are 0, which has no relative error to speak of.
	one := attentionShape{B: 2, Lq: 5, Lk: 1, H: 3, D: 16}
	return append(cases, attentionForward(bindings.F32, one), attentionForward(bindings.BF16, one), attentionForward(bindings.F32, sharp), attentionBackward(bindings.F32, sharp),
		attentionForward(bindings.F32, shapes[3]).Without("lse"))
}

// attentionBench: FLUX at 256, 512 and 1024 pixels squared, each with 512 tokens of text; a training step and a batch of tiles of the embedded model; the
// autoencoder at 512 pixels.
func attentionBench() []Bench {
	var rows []Bench
	for _, dtype := range floats {
		add := func(preset string, backward bool, s attentionShape) {
			queries, keys := s, s
			queries.B, queries.Lq, queries.H = 1, min(s.Lq, 4), min(s.H, 2-s.H%2)
			keys.B, keys.Lk, keys.H = 1, min(s.Lk, 4), queries.H
			if !backward {
				rows = append(rows, bench(preset, attentionForward(dtype, s), sample(attentionForward(dtype, queries))))
				return
			}
			rows = append(rows, bench(preset, attentionBackward(dtype, s), sample(attentionBackward(dtype, queries), "dq"), sample(attentionBackward(dtype, keys), "dk", "dv")))
		}
		for _, L := range []int{768, 1536, 4608} {
			add("flux", false, attentionShape{B: 1, Lq: L, Lk: L, H: 24, D: 128})
		}
		add("flux", true, attentionShape{B: 1, Lq: 1536, Lk: 1536, H: 24, D: 128})
		for _, L := range []int{1536, 4608} {
			add("flux", false, attentionShape{B: 1, Lq: L, Lk: L, H: 24, D: 128, norm: &qkNormArgs{512, true, true}})
		}
		add("flux", true, attentionShape{B: 1, Lq: 1536, Lk: 1536, H: 24, D: 128, norm: &qkNormArgs{512, true, true}})
		add("nano", false, attentionShape{B: 16, Lq: 264, Lk: 264, H: 3, D: 64})
		add("nano", true, attentionShape{B: 16, Lq: 264, Lk: 264, H: 3, D: 64})
		add("nano", false, attentionShape{B: 16, Lq: 264, Lk: 264, H: 3, D: 64, norm: &qkNormArgs{8, true, true}})
		add("nano", true, attentionShape{B: 16, Lq: 264, Lk: 264, H: 3, D: 64, norm: &qkNormArgs{8, true, true}})
		add("nano", false, attentionShape{B: 4, Lq: 584, Lk: 584, H: 3, D: 64})
		add("vae", false, attentionShape{B: 1, Lq: 4096, Lk: 4096, H: 1, D: 512})
	}
	return rows
}
