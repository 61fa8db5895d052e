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
	Routing
}

// Routing says which features an adapter adds where. All blocks and both streams through SE layers is FluxIR (spec §3); the rest is for ablations.
type Routing struct {
	Broadcast string `json:"broadcast" toml:"broadcast"` // base blocks that features are added to: all, or double, the double blocks
	SE        string `json:"se" toml:"se"`               // of these, blocks with squeeze-and-excitation layers: all, double or none; in the others a_i = gain_i / 2
	Features  string `json:"features" toml:"features"`   // features that are added: image_text, f_z and f_p, or image, f_z alone
}

// Values of Routing.
const (
	RouteAll       = "all"
	RouteDouble    = "double"
	RouteNone      = "none"
	RouteImageText = "image_text"
	RouteImage     = "image"
)

// DefaultRouting is FluxIR's.
func DefaultRouting() Routing {
	return Routing{Broadcast: RouteAll, SE: RouteAll, Features: RouteImageText}
}

// Validate reports the first field with an unknown value.
func (r Routing) Validate() error {
	switch {
	case r.Broadcast != RouteAll && r.Broadcast != RouteDouble:
		return fmt.Errorf("%w: adapter: broadcast %q, want %q or %q", weights.ErrConfig, r.Broadcast, RouteAll, RouteDouble)
	case r.SE != RouteAll && r.SE != RouteDouble && r.SE != RouteNone:
		return fmt.Errorf("%w: adapter: se %q, want %q, %q or %q", weights.ErrConfig, r.SE, RouteAll, RouteDouble, RouteNone)
	case r.Features != RouteImageText && r.Features != RouteImage:
		return fmt.Errorf("%w: adapter: features %q, want %q or %q", weights.ErrConfig, r.Features, RouteImageText, RouteImage)
	}
	return nil
}

// at tells what a base's block i, in order of execution, gets: image features, text features, and whether through SE layers.
func (r Routing) at(i int, base *weights.FluxConfig) (img, txt, se bool) {
	double := i < base.NumLayers
	img = double || r.Broadcast == RouteAll
	return img, img && r.Features == RouteImageText, r.SE == RouteAll || (double && r.SE == RouteDouble)
}

// What the base reads as its text, AdapterConfig.BaseText.
const (
	TextLearned = "learned" // theta_p, theta_y
	TextPrompt  = "prompt"  // embeddings given by the caller, exactly T tokens
)

// DefaultAdapterConfig has the specification's defaults.
func DefaultAdapterConfig() AdapterConfig {
	return AdapterConfig{TextTokens: 512, SEReduce: 32, BaseText: TextLearned, Guidance: 3.5, Lambda: 1, Routing: DefaultRouting()}
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
	seImg, seTxt   []*tensor.SEWeights // one per block of the base; nil where it gets nothing
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
	layer := func(prefix string, se bool) {
		if se {
			add(prefix+"w1", squeeze, hidden)
			add(prefix+"b1", squeeze)
			add(prefix+"w2", hidden, squeeze)
			add(prefix+"b2", hidden)
		}
		add(prefix+"gain", hidden)
	}
	for i := range base.NumLayers + base.NumSingleLayers {
		img, txt, se := c.Routing.at(i, base)
		if img {
			layer(fmt.Sprintf("se_z.%d.", i), se)
		}
		if txt {
			layer(fmt.Sprintf("se_p.%d.", i), se)
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
	if err := c.Routing.Validate(); err != nil {
		return nil, err
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
		img, txt, se := c.Routing.at(i, base)
		ad.seImg = append(ad.seImg, ps.seWeights(fmt.Sprintf("se_z.%d.", i), img, se))
		ad.seTxt = append(ad.seTxt, ps.seWeights(fmt.Sprintf("se_p.%d.", i), txt, se))
	}
	return ad, nil
}

// seWeights are the parameters of one gain: nil where there is none, only Gain where it has no squeeze-and-excitation layer.
func (ps *Params) seWeights(prefix string, used, se bool) *tensor.SEWeights {
	if !used {
		return nil
	}
	w := &tensor.SEWeights{Gain: ps.value(prefix + "gain")}
	if se {
		w.W1, w.B1, w.W2, w.B2 = ps.value(prefix+"w1"), ps.value(prefix+"b1"), ps.value(prefix+"w2"), ps.value(prefix+"b2")
	}
	return w
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
	if c.SE != RouteNone {
		w1, err := src.Tensor("se_z.0.w1")
		if err != nil {
			return nil, err
		}
		if len(w1.Shape) == 2 && w1.Shape[0] > 0 {
			c.SEReduce = max(1, base.Hidden()/w1.Shape[0]) // ⌊C/⌊C/R⌋⌋ = R for every R = ⌊C/r⌋
		}
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
		e.GainImg = append(e.GainImg, gain(t, mImg, ad.seImg[i]))
		e.GainTxt = append(e.GainTxt, gain(t, mTxt, ad.seTxt[i]))
	}
	return e
}

// gain is a_i [B,C] for features with means m [B,C]; without an SE layer it is what one whose e is 0 would give. nil: nothing is added.
func gain(t *tensor.Tape, m *tensor.Tensor, w *tensor.SEWeights) *tensor.Tensor {
	switch {
	case w == nil:
		return nil
	case w.W1 == nil:
		half := t.Fill(t.New(bindings.F32, m.Dim(0)), 0.5)
		return t.Axpby(t.Repeat(w.Gain, m.Dim(0), bindings.F32), nil, half, nil, bindings.F32)
	}
	return t.SEExcite(m, w)
}
