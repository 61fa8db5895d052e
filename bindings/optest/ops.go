package optest

// Ops is every op, in the order of fluxir.h.
var Ops = []Op{
	{"attention", attentionCases, attentionBench},
	{"qk_norm_rope", qkNormRopeCases, qkNormRopeBench},
	{"gate", gateCases, gateBench},
}
