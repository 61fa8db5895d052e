package optest

// Ops is every op, in the order of fluxir.h.
var Ops = []Op{
	{"gate", gateCases, gateBench},
}
