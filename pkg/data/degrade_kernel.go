package data

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// The kinds of blur kernel, named as in BasicSR:basicsr/data/degradations.py.
const (
	KernelIso              = "iso"
	KernelAniso            = "aniso"
	KernelGeneralizedIso   = "generalized_iso"
	KernelGeneralizedAniso = "generalized_aniso"
	KernelPlateauIso       = "plateau_iso"
	KernelPlateauAniso     = "plateau_aniso"
	KernelSinc             = "sinc"
)

// The draws that both orders share (SeeSR:params_realesrgan.yml).
const (
	sincChance               = 0.1
	shapeGeneralizedLo       = 0.5
	shapeGeneralizedHi       = 4
	shapePlateauLo           = 1
	shapePlateauHi           = 2
	smallKernel              = 13 // sinc kernels from this size on may cut lower frequencies
	sincCutSmall, sincCutBig = math.Pi / 3, math.Pi / 5
)

var gaussianKinds = [...]string{KernelIso, KernelAniso, KernelGeneralizedIso, KernelGeneralizedAniso, KernelPlateauIso, KernelPlateauAniso}

// BlurKernel describes a square blur kernel of Size by Size taps (odd), normalised to sum 1.
//
//	q = x' S^-1 x, S the covariance with standard deviations SigmaX, SigmaY turned by Theta
//	iso, aniso             exp(-q/2)
//	generalized_*          exp(-q^Beta/2)
//	plateau_*              1 / (q^Beta + 1)
//	sinc                   Omega J1(Omega r) / (2 pi r): ideal circular low-pass that keeps frequencies below Omega
type BlurKernel struct {
	Kind   string  `json:"kind"`
	Size   int     `json:"size"`
	SigmaX float64 `json:"sigma_x,omitempty"` // pixels; the iso kinds have no other
	SigmaY float64 `json:"sigma_y,omitempty"`
	Theta  float64 `json:"theta,omitempty"` // radians
	Beta   float64 `json:"beta,omitempty"`  // shape
	Omega  float64 `json:"omega,omitempty"` // radians per pixel
}

// fault says what is out of range, or "".
func (k *BlurKernel) fault() string {
	switch {
	case k.Size < 1 || k.Size > 99 || k.Size%2 == 0:
		return fmt.Sprintf("kernel size %d, want odd, 1..99", k.Size)
	case k.Kind == KernelSinc:
		if !(k.Omega > 0 && k.Omega <= math.Pi) {
			return fmt.Sprintf("sinc cutoff %g, want 0..pi", k.Omega)
		}
	case !slices.Contains(gaussianKinds[:], k.Kind):
		return fmt.Sprintf("unknown kernel kind %q", k.Kind)
	case !(k.SigmaX > 0 && k.SigmaY >= 0 && k.Beta >= 0):
		return fmt.Sprintf("kernel sigmas %g, %g, shape %g", k.SigmaX, k.SigmaY, k.Beta)
	}
	return ""
}

func (o Order) drawKernelSize(rng *rand.Rand) int {
	return o.Kernel[0] + 2*rng.IntN((o.Kernel[1]-o.Kernel[0])/2+1)
}

func drawSinc(rng *rand.Rand, size int, lo float64) *BlurKernel {
	return &BlurKernel{Kind: KernelSinc, Size: size, Omega: uniform(rng, lo, math.Pi)}
}

// drawKernel draws a sinc or one of the six Gaussian families.
func (o Order) drawKernel(rng *rand.Rand) *BlurKernel {
	size, lo, hi := o.drawKernelSize(rng), o.Sigma[0], o.Sigma[1]
	if rng.Float64() < o.Sinc {
		if size < smallKernel {
			return drawSinc(rng, size, sincCutSmall)
		}
		return drawSinc(rng, size, sincCutBig)
	}
	i := choose(rng, 0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
	k := &BlurKernel{Kind: gaussianKinds[i], Size: size, SigmaX: uniform(rng, lo, hi)}
	if i%2 == 1 {
		k.SigmaY = uniform(rng, lo, hi)
		k.Theta = uniform(rng, -math.Pi, math.Pi)
	}
	shapeLo, shapeHi := float64(shapeGeneralizedLo), float64(shapeGeneralizedHi)
	if i >= 4 {
		shapeLo, shapeHi = shapePlateauLo, shapePlateauHi
	}
	if i >= 2 { // below and above 1 are equally likely
		if rng.Float64() < 0.5 {
			k.Beta = uniform(rng, shapeLo, 1)
		} else {
			k.Beta = uniform(rng, 1, shapeHi)
		}
	}
	return k
}

// weights returns the taps, [Size, Size] row-major, summing to 1.
func (k *BlurKernel) weights() []float32 {
	r := k.Size / 2
	w := make([]float64, 0, k.Size*k.Size)
	sum := 0.0
	value := k.value()
	for y := -r; y <= r; y++ {
		for x := -r; x <= r; x++ {
			v := value(float64(x), float64(y))
			w = append(w, v)
			sum += v
		}
	}
	return normalised(w, sum)
}

// value returns the kernel as a function of the distance from its centre, up to a factor.
func (k *BlurKernel) value() func(x, y float64) float64 {
	if k.Kind == KernelSinc {
		return func(x, y float64) float64 {
			r := math.Hypot(x, y)
			if r == 0 {
				return k.Omega * k.Omega / (4 * math.Pi)
			}
			return k.Omega * math.J1(k.Omega*r) / (2 * math.Pi * r)
		}
	}
	sx, sy := k.SigmaX, k.SigmaY
	if sy == 0 {
		sy = sx
	}
	sin, cos := math.Sincos(k.Theta)
	q := func(x, y float64) float64 {
		u, v := (cos*x+sin*y)/sx, (cos*y-sin*x)/sy
		return u*u + v*v
	}
	switch k.Kind {
	case KernelGeneralizedIso, KernelGeneralizedAniso:
		return func(x, y float64) float64 { return math.Exp(-math.Pow(q(x, y), k.Beta) / 2) }
	case KernelPlateauIso, KernelPlateauAniso:
		return func(x, y float64) float64 { return 1 / (math.Pow(q(x, y), k.Beta) + 1) }
	}
	return func(x, y float64) float64 { return math.Exp(-q(x, y) / 2) }
}

// line returns the Size taps whose outer product with themselves is an iso kernel.
func (k *BlurKernel) line() []float32 {
	r := k.Size / 2
	w := make([]float64, 0, k.Size)
	sum := 0.0
	for x := -r; x <= r; x++ {
		v := math.Exp(-float64(x*x) / (2 * k.SigmaX * k.SigmaX))
		w = append(w, v)
		sum += v
	}
	return normalised(w, sum)
}

func normalised(w []float64, sum float64) []float32 {
	out := make([]float32, len(w))
	for i, v := range w {
		out[i] = float32(v / sum)
	}
	return out
}
