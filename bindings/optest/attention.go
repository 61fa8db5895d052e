package optest

import (
	"math"

	"github.com/fluxir/fluxir/bindings"
)

// attentionShape: queries, keys and values are views of one joint buffer [B,L,(q k v)HD] when joint, as the linear layer leaves them.
type attentionShape struct {
	B, Lq, Lk, H, D int
	sharp           float64 // deviation of q, 0 meaning 1: how far the scores spread
	joint           bool
}

func (s attentionShape) scale() float64 { return float64(float32(1 / math.Sqrt(float64(s.D)))) }

// at is the index of the first element of a row in [B,L,H,D].
func (s attentionShape) at(L, b, l, h int) int { return ((b*L+l)*s.H + h) * s.D }

func (s attentionShape) note() string {
	switch {
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
	return []Arg{q, s.rows(In, "k", dtype, s.Lk), s.rows(In, "v", dtype, s.Lk)}
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
			return d.AttentionForward(t["o"], t["lse"], t["q"], t["k"], t["v"], float32(s.scale()))
		},
		Formula: func(p *Prec, v Values) {
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
	saved := []Arg{In("o", dtype, s.B, s.Lq, s.H, s.D), In("lse", bindings.F32, s.B, s.H, s.Lq).Packed()}
	return Case{
		Op: "attention_backward", DType: dtype, Note: s.note(), Forward: &forward,
		Args: append(append(outs, s.inputs(dtype)...), saved...),
		Run: func(d *bindings.Device, t Tensors) error {
			return d.AttentionBackward(t["dq"], t["dk"], t["dv"], t["do"], t["q"], t["k"], t["v"], t["o"], t["lse"], float32(s.scale()))
		},
		Formula: func(p *Prec, v Values) {
			for head := range s.B * s.H {
				s.backwardHead(p, v, head/s.H, head%s.H)
			}
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
		add("nano", false, attentionShape{B: 16, Lq: 264, Lk: 264, H: 3, D: 64})
		add("nano", true, attentionShape{B: 16, Lq: 264, Lk: 264, H: 3, D: 64})
		add("nano", false, attentionShape{B: 4, Lq: 584, Lk: 584, H: 3, D: 64})
		add("vae", false, attentionShape{B: 1, Lq: 4096, Lk: 4096, H: 1, D: 512})
	}
	return rows
}
