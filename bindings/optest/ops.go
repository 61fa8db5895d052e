package optest

// Ops is every op, in the order of fluxir.h.
var Ops = []Op{
	{"attention", attentionCases, attentionBench},
	{"qk_norm_rope", qkNormRopeCases, qkNormRopeBench},
	{"adaln", adalnCases, adalnBench},
	{"gate", gateCases, gateBench},
	{"act", actCases, actBench},
	{"se", seCases, seBench},
	{"layout", layoutCases, layoutBench},
	{"elem", elemCases, elemBench},
	{"gaussian", gaussianCases, gaussianBench},
	{"loss", lossCases, lossBench},
	{"adamw", adamwCases, adamwBench},
}
