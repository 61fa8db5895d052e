package main

import (
	"errors"
	"math"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/monitor"
)

// protocol is the version of how a time is taken; results of different protocols are not compared.
const protocol = 1

const (
	warmUpShare  = 0.5                    // of a case's time, at most, spent until it is steady
	steady       = 0.03                   // two medians of three calls in a row that are as near are steady
	minSamples   = 5                      // of a measurement, however long a call
	fewSamples   = 3                      // where a call takes longer than
	longCall     = 2                      // seconds
	maxSamples   = 200                    //
	shortest     = 200 * time.Microsecond // a warm sample repeats its call until it lasts as long
	clockProbe   = 8 * time.Millisecond   // of f32 multiply-adds before and after each case
	fullClock    = 0.9                    // part of the run's peak below which the processor was throttled or shared
	defaultCache = 256 << 20              // of the last level, where the system does not say
)

// timing is one measurement: seconds of one call, sample by sample.
type timing struct {
	Median  float64   `json:"median"`
	MAD     float64   `json:"mad"` // median of the distances from the median
	Steady  bool      `json:"steady"`
	Samples []float64 `json:"samples"`
	// Card is what NVML says of the card just after each sample; none on the CPU.
	Card []map[string]any `json:"card,omitempty"`
}

func newTiming(samples []float64, steady bool) *timing {
	m := median(samples)
	distances := make([]float64, len(samples))
	for i, s := range samples {
		distances[i] = math.Abs(s - m)
	}
	return &timing{Median: m, MAD: median(distances), Steady: steady, Samples: samples}
}

// median is the middle value, or the mean of the two in the middle; NaN of none.
func median(x []float64) float64 {
	if len(x) == 0 {
		return math.NaN()
	}
	x = slices.Sorted(slices.Values(x))
	return (x[(len(x)-1)/2] + x[len(x)/2]) / 2
}

// peaks are what the device was seen to reach, in GFLOP/s and GB/s; 0: it has no such unit.
type peaks struct {
	F32    float64 `json:"f32"`
	BF16   float64 `json:"bf16"`
	Matrix float64 `json:"matrix"`
	Triad  float64 `json:"triad"`
}

// compute is the highest peak that arithmetic on a dtype with f32 sums can use.
func (p peaks) compute(dtype string) float64 {
	if dtype == "f32" {
		return p.F32
	}
	return max(p.F32, p.BF16, p.Matrix)
}

// bench measures on one device.
type bench struct {
	device   *bindings.Device
	card     *monitor.Monitor // nil: no card, or one that cannot be read
	seconds  float64          // per case and state of the cache
	warmOnly bool
	evictor  *bindings.Buffer // of twice the last level of cache, made when first needed
	sum      *bindings.Buffer
}

// free is, as the other methods, called inside Do.
func (b *bench) free() {
	if b.evictor != nil {
		b.evictor.Free()
	}
	if b.sum != nil {
		b.sum.Free()
	}
}

func (b *bench) prepareEviction() (err error) {
	if b.sum, err = b.device.NewBuffer(64); err != nil {
		return err
	}
	if b.evictor, err = b.device.NewBuffer(2 * lastLevelCache()); err != nil {
		return err
	}
	whole := bindings.NewTensor(b.evictor.Data(), bindings.F32, int(b.evictor.Bytes()/4))
	return b.device.Fill(&whole, 1)
}

// evict reads a buffer that no cache holds, with all threads.
func (b *bench) evict() error {
	if b.evictor == nil {
		if err := b.prepareEviction(); err != nil {
			return err
		}
	}
	out := bindings.NewTensor(b.sum.Data(), bindings.F32, 1)
	if err := b.device.GradSumSquares(&out, []bindings.AdamWParam{{Grad: b.evictor.Data(), N: b.evictor.Bytes() / 4}}); err != nil {
		return err
	}
	return b.device.Sync()
}

// probe measures the peaks: the best of several tries, since other work on the machine only ever lowers one.
func (b *bench) probe(tries int) (peaks, error) {
	var p peaks
	for _, kind := range []struct {
		kind bindings.Probe
		best *float64
	}{{bindings.ProbeF32, &p.F32}, {bindings.ProbeBF16, &p.BF16}, {bindings.ProbeMatrix, &p.Matrix}, {bindings.ProbeTriad, &p.Triad}} {
		n, each := tries, 20*time.Millisecond
		if kind.kind == bindings.ProbeTriad {
			n, each = 1, time.Duration(tries)*100*time.Millisecond
		}
		for range n {
			rate, err := b.device.Probe(kind.kind, each)
			var status *bindings.Error
			if errors.As(err, &status) && status.Status == bindings.StatusUnsupported {
				break
			}
			if err != nil {
				return p, err
			}
			*kind.best = max(*kind.best, rate)
		}
	}
	return p, nil
}

// clock is the f32 peak just now: what falls when the processor is throttled or shared.
func (b *bench) clock() (float64, error) {
	rate, err := b.device.Probe(bindings.ProbeF32, clockProbe)
	var status *bindings.Error
	if errors.As(err, &status) && status.Status == bindings.StatusUnsupported {
		return 0, nil
	}
	return rate, err
}

// once times n calls.
func (b *bench) once(s subject, n int) (float64, error) {
	start := time.Now()
	for range n {
		if err := s.run(); err != nil {
			return 0, err
		}
	}
	if err := b.device.Sync(); err != nil {
		return 0, err
	}
	return time.Since(start).Seconds() / float64(n), nil
}

// warmUp calls until two medians of three calls agree, or the time is over. It returns how many calls a warm sample takes.
func (b *bench) warmUp(s subject) (calls int, isSteady bool, err error) {
	var last []float64
	end := time.Now().Add(time.Duration(warmUpShare * b.seconds * float64(time.Second)))
	calls = 1
	for {
		t, err := b.once(s, calls)
		if err != nil {
			return 0, false, err
		}
		if last = append(last, t); len(last) == 1 {
			calls = max(1, int(math.Ceil(shortest.Seconds()/max(t, 1e-9))))
		}
		if n := len(last); n >= 6 {
			before, now := median(last[n-6:n-3]), median(last[n-3:])
			if math.Abs(now-before) <= steady*before {
				return calls, true, nil
			}
		}
		if (len(last) >= 2 || t > longCall) && time.Now().After(end) {
			return calls, false, nil
		}
	}
}

// sample takes samples for the case's time: each after an eviction of the caches, or calls in a row.
func (b *bench) sample(s subject, cold bool, calls int) (*timing, error) {
	var samples []float64
	var card []map[string]any
	if cold {
		calls = 1
	}
	end := time.Now().Add(time.Duration(b.seconds * float64(time.Second)))
	for len(samples) < minSamples && !(len(samples) >= fewSamples && median(samples) > longCall) ||
		len(samples) < maxSamples && time.Now().Before(end) {
		if cold {
			if err := b.evict(); err != nil {
				return nil, err
			}
		}
		t, err := b.once(s, calls)
		if err != nil {
			return nil, err
		}
		samples = append(samples, t)
		if b.card != nil {
			card = append(card, reading(b.card.Values()))
		}
	}
	timing := newTiming(samples, true)
	timing.Card = card
	return timing, nil
}

// reading are a card's values by name, numbers in the units of package monitor.
func reading(values []monitor.Value) map[string]any {
	r := map[string]any{}
	for _, v := range values {
		if r[v.Name] = v.Value; v.Text != "" {
			r[v.Name] = v.Text
		}
	}
	return r
}

// gateError says that a case computes the wrong thing: it is not timed.
type gateError struct{ err error }

func (e gateError) Error() string { return "wrong result: " + e.err.Error() }
func (e gateError) Unwrap() error { return e.err }

// expected guesses the seconds that a row takes, at half of the peaks. Only ratios of it are used, to say how long the rest takes.
func (b *bench) expected(c *benchmark, p peaks) float64 {
	call := max(max(float64(c.FLOPs), c.work)/max(p.compute(c.DType), 1), float64(c.Bytes)/max(p.Triad, 1)) * 2 / 1e9
	calls := func(seconds, least float64) float64 { return max(seconds, least*call) }
	total := 1 + calls(warmUpShare*b.seconds, 3) + calls(b.seconds, fewSamples)
	if c.Bytes > 0 {
		total += calls(b.seconds, fewSamples)
	}
	return total
}

// measure opens, checks and times one case.
func (b *bench) measure(c *benchmark) (*row, error) {
	s, err := c.open(b.device)
	if err != nil {
		return nil, err
	}
	defer s.free()
	r := &row{benchmark: *c}
	if r.Gate, err = s.check(); err != nil {
		var status *bindings.Error
		if errors.As(err, &status) {
			return nil, err
		}
		return nil, gateError{err}
	}
	if counts, ok := s.(interface{ flops() int64 }); ok {
		if err := s.run(); err != nil {
			return nil, err
		}
		r.FLOPs = counts.flops()
	}
	debug.FreeOSMemory() // the reference's garbage, so that no collection runs between samples
	if r.Clock, err = b.clock(); err != nil {
		return nil, err
	}
	calls, isSteady, err := b.warmUp(s)
	if err != nil {
		return nil, err
	}
	if r.Warm, err = b.sample(s, false, calls); err != nil {
		return nil, err
	}
	r.Warm.Steady = isSteady
	if c.Bytes > 0 && !b.warmOnly { // else a whole block, far larger than the caches
		if r.Cold, err = b.sample(s, true, 1); err != nil {
			return nil, err
		}
		r.Cold.Steady = isSteady
	}
	after, err := b.clock()
	r.Clock = min(r.Clock, after)
	return r, err
}

// lastLevelCache is its size in bytes, between 32 MiB and 512 MiB.
func lastLevelCache() int64 {
	for _, index := range []string{"3", "2"} {
		text, err := os.ReadFile("/sys/devices/system/cpu/cpu0/cache/index" + index + "/size")
		if err != nil {
			continue
		}
		if kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(string(text)), "K"), 10, 64); err == nil {
			return min(max(kib<<10, 32<<20), 512<<20)
		}
	}
	return defaultCache
}
