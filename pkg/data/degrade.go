package data

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// Degradations. A degradation is a list of stages with every number already drawn (Params), so that it can be written to a manifest
// and repeated: Draw makes one from (preset, seed, image, copy) and Apply runs it. Only the noise itself is not in the list; it comes
// from Params.Seed. Sigmas are on the 0..255 scale, pixels inside a chain are float32 on that scale.

// The presets of Draw.
const (
	PresetSeeSR      = "seesr"      // Real-ESRGAN's second-order chain with SeeSR's settings, through a quarter of the size
	PresetRealESRGAN = "realesrgan" // the same chain on a picture that is sharpened first, as Real-ESRGAN's training does
	PresetLight      = "light"      // training mix of the embedded model: mild noise, blur, rescaling, JPEG, and their mixtures
	PresetJPEG       = "jpeg"       // JPEG quality 10..95 alone
	PresetEvalNoise  = "eval-noise" // fixed: Gaussian noise sigma 15, JPEG 60
	PresetEvalBlur   = "eval-blur"  // fixed: Gaussian blur sigma 1.2, noise sigma 5, JPEG 80
	PresetEvalX2     = "eval-x2"    // fixed: bicubic to half size and back, JPEG 75
)

// EvalPresets are the three fixed degradations that restoration is judged on. Each stage rounds to 8 bits, as a chain of OpenCV or
// PIL calls does.
var EvalPresets = []string{PresetEvalNoise, PresetEvalBlur, PresetEvalX2}

// The operations of a Stage.
const (
	OpSharpen = "sharpen" // unsharp mask as Real-ESRGAN's, Gaussian of 51 taps and sigma 8, weight 0.5, where it changes more than 10
	OpBlur    = "blur"    // convolve with Kernel, mirrored borders
	OpResize  = "resize"  // to Scale times the size of the chain's input, by Mode
	OpGauss   = "gauss"   // add Gaussian noise of standard deviation Sigma, clip to 0..255
	OpPoisson = "poisson" // add Poisson noise times Strength, clip to 0..255
	OpJPEG    = "jpeg"    // encode and decode at Quality, 4:2:0
)

// The interpolations of OpResize.
const (
	ModeArea      = "area"      // mean over the covered input pixels (torch adaptive_avg_pool)
	ModeBilinear  = "bilinear"  // two taps whatever the scale
	ModeBicubic   = "bicubic"   // four taps, a = -0.75, whatever the scale (torch, OpenCV)
	ModeAntialias = "antialias" // bicubic, a = -0.5, widened when shrinking (PIL, MATLAB)
)

// Stage is one step of a degradation. Fields that its Op does not use are zero.
type Stage struct {
	Op       string      `json:"op"`
	Kernel   *BlurKernel `json:"kernel,omitempty"`
	Mode     string      `json:"mode,omitempty"`
	Scale    float64     `json:"scale,omitempty"`    // of the chain's input size, rounded down, at least one pixel
	Sigma    float64     `json:"sigma,omitempty"`    // 0..255 scale
	Strength float64     `json:"strength,omitempty"` // factor on the Poisson noise
	Gray     bool        `json:"gray,omitempty"`     // same noise in the three channels
	Quality  int         `json:"quality,omitempty"`  // JPEG, 1..100
	Round    bool        `json:"round,omitempty"`    // round to 8 bits afterwards
}

// Params is a degradation that can be repeated: what a manifest line stores.
type Params struct {
	Preset string  `json:"preset"`
	Seed   uint64  `json:"seed"` // of the noise; stage i draws from the generator (Seed, i)
	Stages []Stage `json:"stages"`
}

// Draw draws the parameters of a preset's degradation for copy number copy of image number image. They depend on the four arguments
// only. It fails for an unknown preset.
func Draw(preset string, seed, image, copy uint64) (Params, error) {
	rng := rand.New(rand.NewPCG(Mix(seed, image, copy), degradeStream))
	return drawParams(preset, rng)
}

// DrawChain is Draw for a chain of the caller's own; name is kept as the preset.
func DrawChain(name string, c Chain, seed, image, copy uint64) (Params, error) {
	if err := c.Validate(); err != nil {
		return Params{}, err
	}
	rng := rand.New(rand.NewPCG(Mix(seed, image, copy), degradeStream))
	return Params{Preset: name, Seed: rng.Uint64(), Stages: c.draw(rng)}, nil
}

const degradeStream = 0x6465677261646521 // keeps Draw's generator apart from others of the same seed

func drawParams(preset string, rng *rand.Rand) (Params, error) {
	p := Params{Preset: preset, Seed: rng.Uint64()}
	switch preset {
	case PresetSeeSR:
		p.Stages = SeeSR().draw(rng)
	case PresetRealESRGAN:
		p.Stages = RealESRGAN().draw(rng)
	case PresetLight:
		p.Stages = drawLight(rng)
	case PresetJPEG:
		p.Stages = []Stage{jpegStage(rng, 10, 95)}
	case PresetEvalNoise:
		p.Stages = []Stage{{Op: OpGauss, Sigma: 15, Round: true}, {Op: OpJPEG, Quality: 60}}
	case PresetEvalBlur:
		p.Stages = []Stage{gaussBlur(1.2), {Op: OpGauss, Sigma: 5, Round: true}, {Op: OpJPEG, Quality: 80}}
	case PresetEvalX2:
		p.Stages = []Stage{{Op: OpResize, Mode: ModeAntialias, Scale: 0.5, Round: true},
			{Op: OpResize, Mode: ModeAntialias, Scale: 1, Round: true}, {Op: OpJPEG, Quality: 75}}
	default:
		return Params{}, fmt.Errorf("data: unknown degradation preset %q", preset)
	}
	return p, nil
}

// Mix hashes a few integers into one (splitmix64 steps).
func Mix(values ...uint64) uint64 {
	var h uint64
	for _, v := range values {
		h += v + 0x9e3779b97f4a7c15
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		h ^= h >> 31
	}
	return h
}

func uniform(rng *rand.Rand, lo, hi float64) float64 { return lo + (hi-lo)*rng.Float64() }

// choose returns i with chance p[i]; the chances sum to 1.
func choose(rng *rand.Rand, p ...float64) int {
	u := rng.Float64()
	for i, q := range p {
		if u < q {
			return i
		}
		u -= q
	}
	return len(p) - 1
}

// jpegStage draws a quality of lo..hi, both included.
func jpegStage(rng *rand.Rand, lo, hi int) Stage {
	return Stage{Op: OpJPEG, Quality: lo + rng.IntN(hi-lo+1)}
}

// gaussBlur is an 8-bit Gaussian blur out to three sigmas, as OpenCV's.
func gaussBlur(sigma float64) Stage {
	size := 2*int(math.Ceil(3*sigma)) + 1
	return Stage{Op: OpBlur, Kernel: &BlurKernel{Kind: KernelIso, Size: size, SigmaX: sigma}, Round: true}
}

// Chances of the light preset's kinds. Their numbers are drawn from triangles, most likely in the middle of the range (middling), which is where
// the eval presets stand.
const (
	lightNoise  = 0.22 // noise sigma 0..30, JPEG 30..90
	lightBlur   = 0.36 // blur sigma 0.3..2.1, noise sigma 0..10, JPEG 65..95
	lightScale  = 0.28 // down by 2 (one time in five by 1.5..3) and bicubic up, JPEG 55..95
	lightMixed  = 0.11 // each of blur, rescaling and noise with chance 0.6, JPEG 40..95
	lightIntact = 0.03 // nothing at all
)

// drawLight draws one of the light preset's kinds. Every stage rounds to 8 bits.
func drawLight(rng *rand.Rand) []Stage {
	noise := func(hi float64) Stage { return Stage{Op: OpGauss, Sigma: middling(rng, 0, hi), Round: true} }
	jpeg := func(lo, hi float64) Stage { return Stage{Op: OpJPEG, Quality: int(math.Round(middling(rng, lo, hi)))} }
	switch choose(rng, lightNoise, lightBlur, lightScale, lightMixed, lightIntact) {
	case 0:
		return []Stage{noise(30), jpeg(30, 90)}
	case 1:
		return []Stage{gaussBlur(middling(rng, 0.3, 2.1)), noise(10), jpeg(65, 95)}
	case 2:
		return append(drawRescale(rng), jpeg(55, 95))
	case 3:
		var stages []Stage
		if rng.Float64() < 0.6 {
			stages = append(stages, gaussBlur(uniform(rng, 0.3, 1.5)))
		}
		if rng.Float64() < 0.6 {
			stages = append(stages, drawRescale(rng)...)
		}
		if rng.Float64() < 0.6 {
			stages = append(stages, noise(20))
		}
		return append(stages, jpegStage(rng, 40, 95))
	}
	return nil
}

// middling draws from the triangle on lo..hi.
func middling(rng *rand.Rand, lo, hi float64) float64 {
	return (uniform(rng, lo, hi) + uniform(rng, lo, hi)) / 2
}

// drawRescale draws a way down and back up, most often by the antialiased bicubic of image programs.
func drawRescale(rng *rand.Rand) []Stage {
	scale := 0.5
	if rng.Float64() < 0.2 {
		scale = 1 / uniform(rng, 1.5, 3)
	}
	down := [...]string{ModeArea, ModeBicubic, ModeAntialias}[choose(rng, 0.15, 0.1, 0.75)]
	up := [...]string{ModeBicubic, ModeAntialias}[choose(rng, 0.25, 0.75)]
	return []Stage{{Op: OpResize, Mode: down, Scale: scale, Round: true}, {Op: OpResize, Mode: up, Scale: 1, Round: true}}
}
