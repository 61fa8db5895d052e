package optest

import (
	"hash/fnv"
	"math/rand/v2"
)

// generator draws one value.
type generator func(r *rand.Rand) float64

func normal(deviation float64) generator {
	return func(r *rand.Rand) float64 { return deviation * r.NormFloat64() }
}

func uniform(low, high float64) generator {
	return func(r *rand.Rand) float64 { return low + (high-low)*r.Float64() }
}

// fill draws a's values. The seed is the name, so a forward case and its backward case see the same x.
func (a *Arg) fill(v Values) []float64 {
	x := make([]float64, a.Len())
	if a.from != nil {
		a.from(v, x)
		return x
	}
	h := fnv.New64a()
	h.Write([]byte(a.Name))
	r := rand.New(rand.NewPCG(h.Sum64(), 0))
	gen := a.gen
	if gen == nil {
		gen = normal(1)
	}
	for i := range x {
		x[i] = gen(r)
	}
	return x
}

func roundAll(x []float64, a *Arg) {
	for i := range x {
		x[i] = round(x[i], a.DType)
	}
}

// inputs makes the values that the op finds: all of In, Acc and InOut. With rounded they are representable in their dtypes, as the kernel sees
// them; without, they are consistent to float64, as central differences need.
func (c *Case) inputs(rounded bool) Values {
	v := Values{}
	var saved Values
	if c.Forward != nil {
		saved = c.Forward.inputs(rounded)
	}
	for i := range c.Args {
		a := &c.Args[i]
		if !a.reads() || c.savedBy(a) {
			continue
		}
		x := a.fill(v)
		if rounded {
			roundAll(x, a)
		}
		v[a.Name] = x
		if f := c.Forward; f != nil && f.arg(a.Name) != nil && f.arg(a.Name).reads() {
			saved[a.Name] = x
		}
	}
	if c.Forward == nil {
		return v
	}
	out := c.Forward.evaluate(&Prec{exact: true}, saved)
	for i := range c.Args {
		a := &c.Args[i]
		if !c.savedBy(a) {
			continue
		}
		v[a.Name] = out[a.Name]
		if rounded {
			roundAll(v[a.Name], a)
		}
	}
	return v
}

// savedBy reports whether a is an output that the forward op saved for this backward op.
func (c *Case) savedBy(a *Arg) bool {
	if c.Forward == nil || a.Role != RoleIn {
		return false
	}
	f := c.Forward.arg(a.Name)
	return f != nil && f.Role == RoleOut
}

// evaluate runs the formula on a copy of the inputs and returns the outputs; a sum into an Acc is left to the caller.
func (c *Case) evaluate(p *Prec, in Values) Values {
	p.dtype = c.DType
	v, out := Values{}, Values{}
	for i := range c.Args {
		a := &c.Args[i]
		switch a.Role {
		case RoleIn:
			v[a.Name] = in[a.Name]
		case RoleInOut:
			v[a.Name] = append([]float64(nil), in[a.Name]...)
		default:
			v[a.Name] = make([]float64, a.Len())
		}
		if a.writes() {
			out[a.Name] = v[a.Name]
		}
	}
	c.Formula(p, v)
	if !p.exact {
		for name, x := range out {
			roundAll(x, c.arg(name))
		}
	}
	return out
}
