package train

import (
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/fluxir/fluxir/internal/golden"
)

func TestGoldenTimeSampling(t *testing.T) {
	golden.ForEach(t, []string{"time_sampling"}, func(t *testing.T, f *golden.Fixture) {
		var cases []struct {
			Kind                     string
			M, S, Mu, Mean, Variance float64
			Quantiles                map[string]float64
		}
		f.Values(t, &cases)
		if len(cases) == 0 {
			t.Fatal("no cases")
		}
		for i, c := range cases {
			s := TimeSampling{Kind: c.Kind, Location: c.M, Scale: c.S, Shift: true}
			if err := s.Validate(); err != nil {
				t.Fatal(err)
			}
			const n = 200_000
			times := s.Draw(rand.NewPCG(uint64(i), 1), n, c.Mu)
			mean := 0.0
			for _, v := range times {
				mean += float64(v) / n
			}
			if d := math.Abs(mean - c.Mean); !(d < 5*math.Sqrt(c.Variance/n)) {
				t.Errorf("%+v: mean %v, want %v", s, mean, c.Mean)
			}
			for text, want := range c.Quantiles {
				q, err := strconv.ParseFloat(text, 64)
				if err != nil {
					t.Fatal(err)
				}
				below := 0
				for _, v := range times {
					if float64(v) < want {
						below++
					}
				}
				if d := math.Abs(float64(below)/n - q); !(d < 5*math.Sqrt(q*(1-q)/n)) {
					t.Errorf("%+v: %v of the times are below %v, want %v", s, float64(below)/n, want, q)
				}
				// The map from u is monotone, so that it gives the quantiles themselves. Mode's falls.
				u := q
				if c.Kind == Mode {
					u = 1 - q
				}
				if got := s.at(u, c.Mu); math.Abs(got-want) > 1e-9 {
					t.Errorf("%+v: quantile %v is %v, want %v", s, q, got, want)
				}
			}
		}
	})
}

func TestTimesAtOne(t *testing.T) {
	s := TimeSampling{AtOne: 0.3}
	const n = 100_000
	times := s.Draw(rand.NewPCG(1, 2), n, 0)
	ones := 0
	for _, v := range times {
		if v == 1 {
			ones++
		}
		if !(v > 0 && v <= 1) {
			t.Fatalf("time %v", v)
		}
	}
	if d := math.Abs(float64(ones)/n - 0.3); !(d < 5*math.Sqrt(0.3*0.7/n)) {
		t.Errorf("%d of %d times are 1, want 30%%", ones, n)
	}
	// Two words an item: the second half of a draw is what a source further on gives.
	src := rand.NewPCG(1, 2)
	for range n {
		src.Uint64()
	}
	if again := s.Draw(src, n/2, 0); !slices.Equal(again, times[n/2:]) {
		t.Error("resuming by position gives other times")
	}
	for _, v := range (TimeSampling{AtOne: 1, Shift: true}).Draw(src, 100, 1.15) {
		if v != 1 {
			t.Fatalf("time %v with all items at 1", v)
		}
	}
}

func TestTimeSamplingDefaults(t *testing.T) {
	for _, c := range []struct{ zero, full TimeSampling }{
		{TimeSampling{}, TimeSampling{Kind: LogitNormal, Scale: 1}},
		{TimeSampling{Kind: Mode}, TimeSampling{Kind: Mode, Scale: 1.29}},
	} {
		a, b := c.zero.Draw(rand.NewPCG(3, 4), 100, 1), c.full.Draw(rand.NewPCG(3, 4), 100, 1)
		if !slices.Equal(a, b) {
			t.Errorf("%+v and %+v differ", c.zero, c.full)
		}
	}
}

func TestTimeSamplingRefuses(t *testing.T) {
	for _, s := range []TimeSampling{
		{Kind: "cosine"}, {Scale: -1}, {Scale: math.NaN()}, {Location: math.Inf(1)}, {Kind: Mode, Scale: 1.8}, {Kind: Mode, Scale: -1.1},
		{AtOne: -0.1}, {AtOne: 1.1}, {AtOne: math.NaN()},
	} {
		if s.Validate() == nil {
			t.Errorf("%+v is accepted", s)
		}
	}
}
