package weights

import "fmt"

// mlpRatio is the width of a block's MLP in units of the hidden width; published configurations have no field for it.
const mlpRatio = 4

// timeDim is the width of the sinusoid that the time and guidance embedders take.
const timeDim = 256

// DetectFlux tells which names a transformer's file uses; ErrMissingTensor if it is neither.
func DetectFlux(src Source) (Layout, error) {
	return detect(src, "img_in.weight", "x_embedder.weight")
}

// FluxParams returns the transformer's parameters in order of execution, with the tensors of a file in the given layout.
// Names are those of black-forest-labs/flux (src/flux/model.py, modules/layers.py); the diffusers side follows its
// scripts/convert_flux_to_diffusers.py. Weights are [out, in]. With C hidden and D head dim:
//
//	img_in, txt_in, {time,vector,guidance}_in.{in,out}_layer
//	double_blocks.i.{img,txt}_{mod.lin, attn.qkv, attn.norm.{query,key}_norm.scale, attn.proj, mlp.0, mlp.2}
//	single_blocks.i.{modulation.lin, linear1 = (q, k, v, mlp), norm.{query,key}_norm.scale, linear2}
//	final_layer.{adaLN_modulation.1, linear}
func FluxParams(c *FluxConfig, layout Layout) []Param {
	f := fluxNames{rename{layout: layout}}
	hidden := c.Hidden()
	f.linear("img_in", "x_embedder", hidden, c.InChannels)
	f.linear("txt_in", "context_embedder", hidden, c.JointAttentionDim)
	f.embedder("time_in", "timestep_embedder", hidden, timeDim)
	f.embedder("vector_in", "text_embedder", hidden, c.PooledDim)
	if c.GuidanceEmbeds {
		f.embedder("guidance_in", "guidance_embedder", hidden, timeDim)
	}
	for i := range c.NumLayers {
		f.doubleBlock(fmt.Sprintf("double_blocks.%d.", i), fmt.Sprintf("transformer_blocks.%d.", i), c)
	}
	for i := range c.NumSingleLayers {
		f.singleBlock(fmt.Sprintf("single_blocks.%d.", i), fmt.Sprintf("single_transformer_blocks.%d.", i), c)
	}
	f.linear("final_layer.adaLN_modulation.1", "norm_out.linear", 2*hidden, hidden)
	if layout == Diffusers {
		f.params[len(f.params)-2].SwapHalves = true
		f.params[len(f.params)-1].SwapHalves = true
	}
	f.linear("final_layer.linear", "proj_out", c.OutChannels, hidden)
	return f.params
}

// DoubleBlockParams returns the parameters of one double block alone, named prefix + "img_mod.lin.weight" and so on: the adapter's "block.".
func DoubleBlockParams(c *FluxConfig, prefix string) []Param {
	f := fluxNames{rename{layout: Original}}
	f.doubleBlock(prefix, "", c)
	return f.params
}

type fluxNames struct{ rename }

// linear adds weight [out, in] and bias [out].
func (f *fluxNames) linear(original, diffusers string, out, in int) {
	f.add(original+".weight", diffusers+".weight", Original, out, in)
	f.add(original+".bias", diffusers+".bias", Original, out)
}

// joined adds a linear layer that diffusers keeps as several: names[i] has rows[i] of its outputs.
func (f *fluxNames) joined(original string, in int, names []string, rows ...int) {
	out := 0
	for _, n := range rows {
		out += n
	}
	f.linear(original, "", out, in)
	if f.layout != Diffusers {
		return
	}
	weight, bias := &f.params[len(f.params)-2], &f.params[len(f.params)-1]
	weight.Parts, bias.Parts = nil, nil
	for i, n := range rows {
		weight.Parts = append(weight.Parts, Part{names[i] + ".weight", []int{n, in}})
		bias.Parts = append(bias.Parts, Part{names[i] + ".bias", []int{n}})
	}
}

func (f *fluxNames) embedder(original, diffusers string, hidden, in int) {
	f.linear(original+".in_layer", "time_text_embed."+diffusers+".linear_1", hidden, in)
	f.linear(original+".out_layer", "time_text_embed."+diffusers+".linear_2", hidden, hidden)
}

func (f *fluxNames) doubleBlock(o, d string, c *FluxConfig) {
	hidden, head := c.Hidden(), c.AttentionHeadDim
	for _, s := range []struct{ stream, mod, q, k, v, normQ, normK, proj, mlp string }{
		{"img", "norm1", "to_q", "to_k", "to_v", "norm_q", "norm_k", "to_out.0", "ff"},
		{"txt", "norm1_context", "add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k", "to_add_out", "ff_context"},
	} {
		f.linear(o+s.stream+"_mod.lin", d+s.mod+".linear", 6*hidden, hidden)
		f.joined(o+s.stream+"_attn.qkv", hidden, []string{d + "attn." + s.q, d + "attn." + s.k, d + "attn." + s.v}, hidden, hidden, hidden)
		f.add(o+s.stream+"_attn.norm.query_norm.scale", d+"attn."+s.normQ+".weight", Original, head)
		f.add(o+s.stream+"_attn.norm.key_norm.scale", d+"attn."+s.normK+".weight", Original, head)
		f.linear(o+s.stream+"_attn.proj", d+"attn."+s.proj, hidden, hidden)
		f.linear(o+s.stream+"_mlp.0", d+s.mlp+".net.0.proj", mlpRatio*hidden, hidden)
		f.linear(o+s.stream+"_mlp.2", d+s.mlp+".net.2", hidden, mlpRatio*hidden)
	}
}

func (f *fluxNames) singleBlock(o, d string, c *FluxConfig) {
	hidden, head := c.Hidden(), c.AttentionHeadDim
	f.linear(o+"modulation.lin", d+"norm.linear", 3*hidden, hidden)
	f.joined(o+"linear1", hidden, []string{d + "attn.to_q", d + "attn.to_k", d + "attn.to_v", d + "proj_mlp"}, hidden, hidden, hidden, mlpRatio*hidden)
	f.add(o+"norm.query_norm.scale", d+"attn.norm_q.weight", Original, head)
	f.add(o+"norm.key_norm.scale", d+"attn.norm_k.weight", Original, head)
	f.linear(o+"linear2", d+"proj_out", hidden, (1+mlpRatio)*hidden)
}
