package optest

import (
	"fmt"
	"math"

	"github.com/fluxir/fluxir/bindings"
)

// Prec is the arithmetic a formula runs in: exact (float64 throughout), or naive: what is stored is rounded, sums are in f32 in one of several orders.
type Prec struct {
	dtype  bindings.DType
	exact  bool
	order  int
	summed bool // Sum was called, so the orders differ
}

// orders is the number of summation orders: one alone is lucky by up to three times.
const orders = 4

// R is x as stored in the tested dtype.
func (p *Prec) R(x float64) float64 {
	if p.exact {
		return x
	}
	return round(x, p.dtype)
}

// F is x as stored in f32: statistics, losses, coefficients.
func (p *Prec) F(x float64) float64 {
	if p.exact {
		return x
	}
	return float64(float32(x))
}

// Sum is f(0) + ... + f(n-1), in float64 or, naively, each term and each partial sum in f32.
func (p *Prec) Sum(n int, f func(i int) float64) float64 {
	if p.exact {
		var s float64
		for i := range n {
			s += f(i)
		}
		return s
	}
	p.summed = true
	var s float32
	switch p.order {
	case 0:
		for i := range n {
			s += float32(f(i))
		}
	case 1:
		for i := n - 1; i >= 0; i-- {
			s += float32(f(i))
		}
	case 2: // lanes of a vector, then the lanes
		const lanes = 16
		for lane := range min(lanes, n) {
			var t float32
			for i := lane; i < n; i += lanes {
				t += float32(f(i))
			}
			s += t
		}
	case 3: // a permutation
		step := coprime(n)
		for k, i := 0, n/2; k < n; k++ {
			s += float32(f(i))
			i = (i + step) % n
		}
	}
	return float64(s)
}

// coprime is a step near 0.618 n that visits every residue of n.
func coprime(n int) int {
	for step := max(1, int(0.618*float64(n))); ; step++ {
		a, b := n, step
		for b != 0 {
			a, b = b, a%b
		}
		if a == 1 {
			return step
		}
	}
}

// round is x to the nearest value of dtype, ties to even.
func round(x float64, dtype bindings.DType) float64 {
	if dtype == bindings.F32 {
		return float64(float32(x))
	}
	return decode(encode(x, dtype), dtype)
}

// encode is the bit pattern of x in dtype.
func encode(x float64, dtype bindings.DType) uint32 {
	u := math.Float32bits(float32(x))
	switch dtype {
	case bindings.F32:
		return u
	case bindings.BF16:
		if x != x {
			return u>>16 | 0x40
		}
		return (u + 0x7fff + u>>16&1) >> 16
	case bindings.F16:
		return encodeF16(x)
	}
	panic(fmt.Sprintf("optest: dtype %v", dtype))
}

// encodeF16: 5 bits of exponent, 10 of mantissa, gradual underflow, overflow to infinity.
func encodeF16(x float64) uint32 {
	var sign uint32
	if math.Signbit(x) {
		sign = 0x8000
	}
	x = math.Abs(x)
	switch {
	case x != x:
		return sign | 0x7e00
	case x < 0x1p-14:
		return sign | uint32(math.RoundToEven(x*0x1p24)) // a carry into 0x400 is the smallest normal number
	case x >= 65520:
		return sign | 0x7c00
	}
	_, e := math.Frexp(x) // x in [2^(e-1), 2^e)
	mantissa := uint32(math.RoundToEven(math.Ldexp(x, 11-e)))
	return sign | uint32(e+13)<<10 + mantissa // the mantissa's leading bit adds one to the exponent
}

// decode is the value of a bit pattern.
func decode(u uint32, dtype bindings.DType) float64 {
	switch dtype {
	case bindings.F32:
		return float64(math.Float32frombits(u))
	case bindings.BF16:
		return float64(math.Float32frombits(u << 16))
	case bindings.F16:
		x := 0.0
		switch exponent, mantissa := int(u>>10&31), float64(u&0x3ff); {
		case exponent == 0:
			x = mantissa * 0x1p-24
		case exponent < 31:
			x = math.Ldexp(1024+mantissa, exponent-25)
		case mantissa == 0:
			x = math.Inf(1)
		default:
			x = math.NaN()
		}
		if u&0x8000 != 0 {
			x = -x
		}
		return x
	}
	panic(fmt.Sprintf("optest: dtype %v", dtype))
}
