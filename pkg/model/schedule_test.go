package model

import (
	"math"
	"testing"

	"github.com/fluxir/fluxir/internal/golden"
)

func TestGoldenSchedule(t *testing.T) {
	golden.ForEach(t, []string{"schedule"}, func(t *testing.T, f *golden.Fixture) {
		var cases []struct {
			Tokens, Steps int
			Start         float64
			Mu            *float64
			Sigmas        []float64
		}
		f.Values(t, &cases)
		if len(cases) == 0 {
			t.Fatal("no cases")
		}
		near := func(got, want float64) bool { return math.Abs(got-want) <= 1e-12*math.Abs(want) }
		for _, c := range cases {
			mu := 0.0
			if c.Mu != nil {
				mu = ShiftMu(c.Tokens)
				if !near(mu, *c.Mu) {
					t.Errorf("mu(%d) = %v, want %v", c.Tokens, mu, *c.Mu)
				}
			}
			got, err := Sigmas(c.Steps, c.Start, mu)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(c.Sigmas) || got[0] != c.Start {
				t.Errorf("%d tokens, %d steps from %v: got %v", c.Tokens, c.Steps, c.Start, got)
				continue
			}
			for i, want := range c.Sigmas {
				if !near(got[i], want) {
					t.Errorf("%d tokens, %d steps from %v: sigma %d is %v, want %v", c.Tokens, c.Steps, c.Start, i, got[i], want)
				}
			}
		}
	})
}

func TestSigmasRefuse(t *testing.T) {
	for _, c := range []struct {
		steps int
		start float64
	}{{0, 1}, {-1, 1}, {4, 0}, {4, -0.1}, {4, 1.01}, {4, math.NaN()}} {
		if got, err := Sigmas(c.steps, c.start, 1); err == nil {
			t.Errorf("%d steps from %v: got %v, want an error", c.steps, c.start, got)
		}
	}
}
