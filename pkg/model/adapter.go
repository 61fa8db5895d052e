package model

import (
	"fmt"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// AdapterConfig is the FluxIR adapter's part of a model's configuration, stored in its file (spec §3).
type AdapterConfig struct {
	TextTokens int     `json:"text_tokens"`  // T, rows of theta_p
	SEReduce   int     `json:"se_reduction"` // r: hidden width max(1, C/r)
	BaseText   string  `json:"base_text"`    // what the base reads as its text: learned or prompt
	Guidance   float64 `json:"guidance"`     // g, FLUX's guidance input
	Lambda     float64 `json:"lambda"`       // default strength of the broadcast
}

// What the base reads as its text, AdapterConfig.BaseText.
const (
	TextLearned = "learned" // theta_p, theta_y
	TextPrompt  = "prompt"  // embeddings given by the caller, exactly T tokens
)

// DefaultAdapterConfig has the specification's defaults.
func DefaultAdapterConfig() AdapterConfig {
	return AdapterConfig{TextTokens: 512, SEReduce: 32, BaseText: TextLearned, Guidance: 3.5, Lambda: 1}
}

// Adapter is FluxIR: one double block fed with z_t, z_lq and learned text, and squeeze-and-excitation layers that add its features before every
// block of the base.
type Adapter struct {
	Config AdapterConfig
	Params *Params
	DType  bindings.DType

	lqIn           linear
	thetaP, thetaY *tensor.Tensor
	block          doubleBlock
	seImg, seTxt   []tensor.SEWeights
}

// AdapterParams lists the parameters of an adapter for a base, as they stand in its file: lq_in, theta_p, theta_y, block.*, se_z.i.*, se_p.i.*.
func AdapterParams(base *weights.FluxConfig, c AdapterConfig) []weights.Param {
	var list []weights.Param
	add := func(name string, shape ...int) {
		list = append(list, weights.Param{Name: name, Shape: shape, Parts: []weights.Part{{Name: name, Shape: shape}}})
	}
	hidden := base.Hidden()
	add("lq_in.weight", hidden, base.InChannels)
	add("lq_in.bias", hidden)
	add("theta_p", c.TextTokens, base.JointAttentionDim)
	add("theta_y", base.PooledDim)
	list = append(list, weights.DoubleBlockParams(base, "block.")...)
	squeeze := max(1, hidden/c.SEReduce)
	for i := range base.NumLayers + base.NumSingleLayers {
		for _, s := range []string{"se_z", "se_p"} {
			prefix := fmt.Sprintf("%s.%d.", s, i)
			add(prefix+"w1", squeeze, hidden)
			add(prefix+"b1", squeeze)
			add(prefix+"w2", hidden, squeeze)
			add(prefix+"b2", hidden)
			add(prefix+"gain", hidden)
		}
	}
	return list
}

// NewAdapter allocates an adapter for a base in a, weights undefined.
func NewAdapter(a *tensor.Arena, base *weights.FluxConfig, c AdapterConfig, dtype bindings.DType) (*Adapter, error) {
	if c.TextTokens < 1 || c.SEReduce < 1 {
		return nil, fmt.Errorf("%w: adapter: text_tokens %d, se_reduction %d, want at least 1", weights.ErrConfig, c.TextTokens, c.SEReduce)
	}
	if c.BaseText != TextLearned && c.BaseText != TextPrompt {
		return nil, fmt.Errorf("%w: adapter: base_text %q, want %q or %q", weights.ErrConfig, c.BaseText, TextLearned, TextPrompt)
	}
	ps, err := newParams(a, AdapterParams(base, c), dtype)
	if err != nil {
		return nil, err
	}
	ad := &Adapter{
		Config: c, Params: ps, DType: dtype, lqIn: ps.linear("lq_in"), thetaP: ps.value("theta_p"), thetaY: ps.value("theta_y"),
		block: ps.doubleBlock("block.", base.NumAttentionHeads),
	}
	for i := range base.NumLayers + base.NumSingleLayers {
		ad.seImg = append(ad.seImg, ps.seWeights(fmt.Sprintf("se_z.%d.", i)))
		ad.seTxt = append(ad.seTxt, ps.seWeights(fmt.Sprintf("se_p.%d.", i)))
	}
	return ad, nil
}

func (ps *Params) seWeights(prefix string) tensor.SEWeights {
	return tensor.SEWeights{W1: ps.value(prefix + "w1"), B1: ps.value(prefix + "b1"), W2: ps.value(prefix + "w2"),
		B2: ps.value(prefix + "b2"), Gain: ps.value(prefix + "gain")}
}

// LoadAdapter allocates an adapter for a base and reads its weights. c's TextTokens and SEReduce are taken from the shapes in the file.
func LoadAdapter(a *tensor.Arena, src weights.Source, base *weights.FluxConfig, c AdapterConfig, dtype bindings.DType) (*Adapter, error) {
	theta, err := src.Tensor("theta_p")
	if err != nil {
		return nil, err
	}
	if len(theta.Shape) == 2 {
		c.TextTokens = theta.Shape[0]
	}
	w1, err := src.Tensor("se_z.0.w1")
	if err != nil {
		return nil, err
	}
	if len(w1.Shape) == 2 && w1.Shape[0] > 0 {
		c.SEReduce = max(1, base.Hidden()/w1.Shape[0]) // ⌊C/⌊C/R⌋⌋ = R for every R = ⌊C/r⌋
	}
	ad, err := NewAdapter(a, base, c, dtype)
	if err != nil {
		return nil, err
	}
	return ad, ad.Params.load(src, AdapterParams(base, c))
}

// features runs the adapter's block once per evaluation: f_z, f_p of spec §3.3. img [B,N,C] = img_in(z_t); zLQ [B,N,in] packed; txt = txt_in(theta_p);
// vec of theta_y.
func (ad *Adapter) features(t *tensor.Tape, img, zLQ, txt, vec, pe *tensor.Tensor, recompute bool) (fImg, fTxt *tensor.Tensor) {
	out := runBlock(t, recompute, []*tensor.Tensor{img, zLQ, txt, vec}, func(in []*tensor.Tensor) []*tensor.Tensor {
		h := t.Add(in[0], ad.lqIn.forward(t, in[1]))
		fImg, fTxt := ad.block.forward(t, h, in[2], t.Act(in[3], bindings.ActSiLU), pe)
		return []*tensor.Tensor{fImg, fTxt}
	})
	return out[0], out[1]
}

// broadcast makes the gains a_i of every block from the features.
func (ad *Adapter) broadcast(t *tensor.Tape, fImg, fTxt *tensor.Tensor, lambda float32) *Broadcast {
	e := &Broadcast{Lambda: lambda, Img: fImg, Txt: fTxt}
	mImg, mTxt := t.SESqueeze(fImg), t.SESqueeze(fTxt)
	for i := range ad.seImg {
		e.GainImg = append(e.GainImg, t.SEExcite(mImg, &ad.seImg[i]))
		e.GainTxt = append(e.GainTxt, t.SEExcite(mTxt, &ad.seTxt[i]))
	}
	return e
}
