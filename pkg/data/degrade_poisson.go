package data

import (
	"math"
	"math/rand/v2"
	"sync"
)

// poisson adds strength times the noise of a photon count whose scale follows the number of grey levels in use, as BasicSR's
// generate_poisson_noise: vals = 2^ceil(log2(levels)), noise = Poisson(x vals) / vals - x with x in 0..1 rounded to 8 bits.
func (d *degrader) poisson(rng *rand.Rand, strength float32, gray bool) {
	pix := d.cur.pix
	level := func(i int) int { return int(round8(pix[i])) }
	step := 1
	if gray {
		level = func(i int) int {
			return int(round8(0.2989*pix[i] + 0.587*pix[i+1] + 0.114*pix[i+2]))
		}
		step = 3
	}
	var used [256]bool
	levels := 0
	for i := 0; i < len(pix); i += step {
		if v := level(i); !used[v] {
			used[v] = true
			levels++
		}
	}
	power := int(math.Ceil(math.Log2(float64(levels))))
	tables := photonTables[power]()
	grey := strength * 255 / float32(int(1)<<power) // levels a photon
	for i := 0; i < len(pix); i += step {
		x := level(i)
		n := grey*float32(tables[x].draw(rng)) - strength*float32(x)
		for c := i; c < i+step; c++ {
			pix[c] = clip(pix[c] + n)
		}
	}
}

// photonTables has, for vals = 2^index, the counts' distributions of all 256 levels, made when they are first needed.
var photonTables = func() (all [9]func() *[256]poissonTable) {
	for power := range all {
		all[power] = sync.OnceValue(func() *[256]poissonTable {
			var t [256]poissonTable
			for level := range t {
				t[level] = newPoissonTable(float64(level) / 255 * float64(int(1)<<power))
			}
			return &t
		})
	}
	return all
}()

// poissonTable draws Poisson variates of one mean by inversion: count first+k where below[k-1] <= u < below[k].
type poissonTable struct {
	first int
	below []uint32   // 2^32 times the chance of at most first+k
	start [64]uint16 // the k to begin the search at, by the upper six bits of u
}

// newPoissonTable leaves out counts less likely than 2^-40, which 32 bits would not tell from impossible.
func newPoissonTable(mean float64) poissonTable {
	const least = 1. / (1 << 40)
	mode := int(mean)
	lg, _ := math.Lgamma(float64(mode + 1))
	top := math.Exp(-mean - lg)
	if mean > 0 {
		top = math.Exp(float64(mode)*math.Log(mean) - mean - lg)
	}
	t := poissonTable{first: mode}
	for p := top; t.first > 0 && p > least; t.first-- {
		p *= float64(t.first) / mean
	}
	p := top
	for k := mode; k > t.first; k-- {
		p *= float64(k) / mean
	}
	var sum float64
	for k := t.first; k <= mode || p > least; k++ {
		sum += p
		t.below = append(t.below, uint32(min(math.Round(sum*(1<<32)), math.MaxUint32)))
		p *= mean / float64(k+1)
	}
	t.below[len(t.below)-1] = math.MaxUint32
	k := 0
	for i := range t.start {
		for t.below[k] <= uint32(i)<<26 && k < len(t.below)-1 {
			k++
		}
		t.start[i] = uint16(k)
	}
	return t
}

func (t *poissonTable) draw(rng *rand.Rand) int {
	u := rng.Uint32()
	k := int(t.start[u>>26])
	for k < len(t.below)-1 && t.below[k] <= u {
		k++
	}
	return t.first + k
}
