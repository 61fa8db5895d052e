package optest

// Ops is every op, in the order of fluxir.h.
var Ops = []Op{
	{"linear", linearCases, linearBench},
	{"attention", attentionCases, attentionBench},
	{"qk_norm_rope", qkNormRopeCases, qkNormRopeBench},
	{"adaln", adalnCases, adalnBench},
	{"gate", gateCases, gateBench},
	{"act", actCases, actBench},
	{"se", seCases, seBench},
	{"conv2d", conv2DCases, conv2DBench},
	{"groupnorm", groupNormCases, groupNormBench},
	{"upsample", upsampleCases, upsampleBench},
	{"layout", layoutCases, layoutBench},
	{"elem", elemCases, elemBench},
	{"gaussian", gaussianCases, gaussianBench},
	{"loss", lossCases, lossBench},
	{"adamw", adamwCases, adamwBench},
}
