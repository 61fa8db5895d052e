package model

import (
	"fmt"
	"math"
)

// ShiftMu returns FLUX's mu for a grid of so many image tokens: linear, 0.5 at 256 tokens and 1.15 at 4096, not clamped.
// Tokens are those that the transformer sees at once: a tile's, for tiles. Source: black-forest-labs/flux, src/flux/sampling.py, get_schedule.
func ShiftMu(tokens int) float64 {
	return 0.5 + 0.65*(float64(tokens)-256)/3840
}

// Shift moves a time u in [0, 1] towards noise: k·u/(1 + (k-1)·u) with k = exp(mu). It keeps 0 and 1; mu = 0 keeps everything.
func Shift(mu, u float64) float64 {
	k := math.Exp(mu)
	return k * u / (1 + (k-1)*u)
}

// Sigmas returns the steps+1 times of an Euler run, from start down to 0, even in unshifted time. start in (0, 1] is the first sigma
// itself, already shifted; 1 is pure noise. mu is [ShiftMu] of the tokens, or 0 for models that run without the shift (FLUX.1-schnell).
func Sigmas(steps int, start, mu float64) ([]float64, error) {
	if steps < 1 {
		return nil, fmt.Errorf("schedule: %d steps, want at least 1", steps)
	}
	if !(start > 0 && start <= 1) {
		return nil, fmt.Errorf("schedule: start %v, want 0 < start <= 1", start)
	}
	unshifted := Shift(-mu, start)
	sigmas := make([]float64, steps+1)
	for i := range sigmas {
		sigmas[i] = Shift(mu, unshifted*(1-float64(i)/float64(steps)))
	}
	sigmas[0] = start // without the rounding of going to unshifted time and back
	return sigmas, nil
}
