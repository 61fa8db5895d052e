package data

import (
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// LoaderConfig says what a PatchLoader yields.
type LoaderConfig struct {
	Photos     []Photo // the training set; photographs smaller than Size are passed over
	Preset     string  // degradation, see Draw
	Seed       uint64
	Batch      int     // pairs in a batch
	Shard      int     // where several processes share each batch: the part, of Shards even ones, that this loader makes
	Shards     int     // 0 = 1
	Size       int     // side of a patch, pixels
	Items      int64   // distinct pairs, after which they come again; 0 = always new ones
	Margin     int     // pixels around the patch that are degraded with it and cut off, so that its borders look like the middle of a picture; 0 = 16
	GridJitter float64 // chance that the JPEG grid and the sampling grid do not start at the patch's corner; 0 = they always do (margins of 16 keep them aligned)
	KeepFlat   float64 // chance of keeping a patch without any detail, 0..1; 0 = 0.15
	Half       float64 // chance of taking a patch at half the photograph's size, and again at a quarter, where it is large enough; 0 = 0.4, negative = never
	Workers    int     // goroutines; 0 = 1
	Depth      int     // batches made ahead; 0 = Workers + 1

	// Pairs are pictures that are degraded already, in place of Photos and Preset, opened with Size. Each epoch has all of them once, shuffled by Seed.
	Pairs   *PairSet
	Skipped func(err error, count int) // told by Next about pairs that cannot be read, and how many they are by now; nil: no one
}

// Batch is a set of training pairs.
type Batch struct {
	Step   int64     // its number
	HQ, LQ []float32 // [Batch/Shards, Size, Size, 3], RGB in -1..1; LQ is HQ degraded
}

// PatchLoader makes training pairs in the background: random crops of photographs, turned and flipped, each with a degraded copy, or the same crop of
// both pictures of a pair. Batch number i depends on the configuration's Photos, Preset, Pairs (and on which of them can be read), Seed, Batch, Size, Items, Margin,
// GridJitter, KeepFlat and Half and on i only, not on Workers or Depth, and the shards of a batch are parts of the same one, so a training run that resumes with SeekTo sees what it would have seen. Its
// methods are for one goroutine.
type PatchLoader struct {
	cfg   LoaderConfig
	cum   []float64 // running sum of the photographs' weights
	next  int64     // number of the batch that Next returns
	taken *slot     // what Next returned last
	line  pipeline
	work  struct{ pairs, nanoseconds atomic.Int64 } // of all workers, for Rate
}

// pipeline is one run of the background goroutines.
type pipeline struct {
	quit  chan struct{}
	order chan *slot // slots in the order of their steps, made or being made
	free  chan *slot // slots to fill
	wg    *sync.WaitGroup
}

type slot struct {
	batch Batch
	done  chan error
}

const (
	defaultMargin   = 16
	defaultKeepFlat = 0.15
	defaultHalf     = 0.4 // full-size photographs are softer than the pictures people restore: median gradient 9 against 12, 14 at half size
	maxShrink       = 4
	cropTries       = 8 // crops looked at before a flat one is taken after all
	fullDetail      = 6 // mean gradient, in grey levels per pixel, from which on a crop is always kept
)

// NewPatchLoader starts a loader at step 0. Call Close to stop its goroutines; Photos must stay valid until then.
func NewPatchLoader(cfg LoaderConfig) (*PatchLoader, error) {
	if cfg.Margin == 0 {
		cfg.Margin = defaultMargin
	}
	if cfg.KeepFlat == 0 {
		cfg.KeepFlat = defaultKeepFlat
	}
	if cfg.Half == 0 {
		cfg.Half = defaultHalf
	}
	if cfg.Workers == 0 {
		cfg.Workers = 1
	}
	if cfg.Depth == 0 {
		cfg.Depth = cfg.Workers + 1
	}
	cfg.Shards = max(cfg.Shards, 1)
	switch {
	case cfg.Batch < 1 || cfg.Size < 1:
		return nil, fmt.Errorf("data: loader: batch %d of size %d, want both positive", cfg.Batch, cfg.Size)
	case cfg.Items < 0:
		return nil, fmt.Errorf("data: loader: %d items, want not negative", cfg.Items)
	case cfg.Shard < 0 || cfg.Shard >= cfg.Shards || cfg.Batch%cfg.Shards != 0:
		return nil, fmt.Errorf("data: loader: shard %d of %d of a batch of %d, want even shards", cfg.Shard, cfg.Shards, cfg.Batch)
	case cfg.Margin < 0 || cfg.Workers < 1 || cfg.Depth < 1:
		return nil, fmt.Errorf("data: loader: margin %d, workers %d, depth %d", cfg.Margin, cfg.Workers, cfg.Depth)
	case !(cfg.GridJitter >= 0 && cfg.GridJitter <= 1 && cfg.KeepFlat >= 0 && cfg.KeepFlat <= 1 && cfg.Half <= 1):
		return nil, fmt.Errorf("data: loader: chances GridJitter %g, KeepFlat %g, Half %g, want 0..1", cfg.GridJitter, cfg.KeepFlat, cfg.Half)
	}
	if cfg.Pairs != nil {
		l := &PatchLoader{cfg: cfg}
		l.start()
		return l, nil
	}
	if _, err := Draw(cfg.Preset, 0, 0, 0); err != nil {
		return nil, err
	}
	cfg.Photos = slices.DeleteFunc(slices.Clone(cfg.Photos), func(p Photo) bool { return p.W < cfg.Size || p.H < cfg.Size })
	if len(cfg.Photos) == 0 {
		return nil, fmt.Errorf("data: loader: no photograph has %dx%d pixels or more", cfg.Size, cfg.Size)
	}
	l := &PatchLoader{cfg: cfg}
	sum := 0.0
	for _, p := range cfg.Photos {
		// The square root of the area stands between "each photograph alike" and "each pixel alike", where fifteen large
		// photographs would be half of all crops.
		sum += math.Sqrt(float64(p.W) * float64(p.H))
		l.cum = append(l.cum, sum)
	}
	l.start()
	return l, nil
}

// Step is the number of the batch that Next returns next.
func (l *PatchLoader) Step() int64 { return l.next }

// SeekTo makes step the next batch. It drops what was made ahead; the batch of the last Next becomes invalid.
func (l *PatchLoader) SeekTo(step int64) error {
	if step < 0 {
		return fmt.Errorf("data: loader: seek to step %d", step)
	}
	l.stop()
	l.next, l.taken = step, nil
	l.start()
	return nil
}

// Close stops the goroutines. It may be called twice; Next fails afterwards.
func (l *PatchLoader) Close() { l.stop() }

// Next returns the next batch, waiting for it if need be. The batch is valid until the following call of Next, SeekTo or Close, which
// reuse its memory.
func (l *PatchLoader) Next() (*Batch, error) {
	if l.line.quit == nil {
		return nil, fmt.Errorf("data: loader: closed")
	}
	if l.taken != nil {
		l.line.free <- l.taken // has room for every slot
	}
	l.taken = <-l.line.order
	if err := <-l.taken.done; err != nil {
		return nil, err
	}
	l.next++
	if l.cfg.Pairs != nil && l.cfg.Skipped != nil {
		found, count := l.cfg.Pairs.Skipped()
		for i, err := range found {
			l.cfg.Skipped(err, count-len(found)+i+1)
		}
	}
	return &l.taken.batch, nil
}

// Rate is how many pairs a second the workers can make together, by the time that they have taken so far; 0 before the first.
func (l *PatchLoader) Rate() float64 {
	ns := l.work.nanoseconds.Load()
	if ns == 0 {
		return 0
	}
	return float64(l.work.pairs.Load()) * float64(l.cfg.Workers) / (float64(ns) / 1e9)
}

// start launches the goroutines: one deals out the steps in order, Workers fill them.
func (l *PatchLoader) start() {
	n := l.cfg.Depth + 1 // one is with the caller
	line := pipeline{quit: make(chan struct{}), order: make(chan *slot, n), free: make(chan *slot, n), wg: new(sync.WaitGroup)}
	jobs := make(chan *slot, n)
	size := l.cfg.Batch / l.cfg.Shards * l.cfg.Size * l.cfg.Size * 3
	for range n {
		line.free <- &slot{batch: Batch{HQ: make([]float32, size), LQ: make([]float32, size)}, done: make(chan error, 1)}
	}
	step := l.next
	line.wg.Go(func() {
		defer close(jobs)
		for {
			select {
			case s := <-line.free:
				s.batch.Step = step
				step++
				line.order <- s // these two have room for every slot
				jobs <- s
			case <-line.quit:
				return
			}
		}
	})
	for range l.cfg.Workers {
		line.wg.Go(func() {
			w := patchWorker{cfg: &l.cfg, cum: l.cum}
			for s := range jobs {
				select {
				case <-line.quit:
					return
				default:
				}
				start := time.Now()
				err := w.fill(&s.batch)
				l.work.pairs.Add(int64(l.cfg.Batch / l.cfg.Shards))
				l.work.nanoseconds.Add(time.Since(start).Nanoseconds())
				s.done <- err
			}
		})
	}
	l.line = line
}

func (l *PatchLoader) stop() {
	if l.line.quit == nil {
		return
	}
	close(l.line.quit)
	l.line.wg.Wait()
	l.line = pipeline{}
}

// patchWorker makes pairs; it owns the scratch memory that this takes.
type patchWorker struct {
	cfg *LoaderConfig
	cum []float64
	deg degrader
	pcg rand.PCG

	order []int // of the pairs, in epoch
	epoch uint64
}

// fill makes all pairs of the shard of a batch.
func (w *patchWorker) fill(b *Batch) error {
	n := 3 * w.cfg.Size * w.cfg.Size
	count := w.cfg.Batch / w.cfg.Shards
	for i := range count {
		item := uint64(b.Step)*uint64(w.cfg.Batch) + uint64(w.cfg.Shard*count+i)
		if w.cfg.Items > 0 {
			item %= uint64(w.cfg.Items)
		}
		w.pcg.Seed(Mix(w.cfg.Seed, item), 0x7061746368657321)
		make := w.pair
		if w.cfg.Pairs != nil {
			make = func(rng *rand.Rand, hq, lq []float32) error { return w.stored(item, rng, hq, lq) }
		}
		if err := make(rand.New(&w.pcg), b.HQ[i*n:][:n], b.LQ[i*n:][:n]); err != nil {
			return err
		}
	}
	return nil
}

// stored cuts one piece out of both pictures of a pair.
func (w *patchWorker) stored(item uint64, rng *rand.Rand, hq, lq []float32) error {
	n, size := uint64(w.cfg.Pairs.Len()), w.cfg.Size
	if epoch := item / n; w.order == nil || w.epoch != epoch {
		w.epoch, w.order = epoch, rand.New(rand.NewPCG(Mix(w.cfg.Seed, epoch), 0x65706f636873)).Perm(int(n))
	}
	clean, degraded, err := w.cfg.Pairs.Load(w.order, int(item%n))
	if err != nil {
		return err
	}
	x, y, turn := rng.IntN(clean.W-size+1), rng.IntN(clean.H-size+1), rng.IntN(8)
	clean.patch(hq, x, y, size, turn)
	degraded.patch(lq, x, y, size, turn)
	return nil
}

// patch writes the size by size pixels at (x, y), after one of the eight turns and flips as crop.load has them, to dst, scaled to -1..1.
func (m *Image) patch(dst []float32, x, y, size, turn int) {
	for i := range size * size {
		u, v := turned(i%size, i/size, size, turn)
		src := m.Pix[3*((y+v)*m.W+x+u):][:3]
		dst[3*i], dst[3*i+1], dst[3*i+2] = 2*src[0]-1, 2*src[1]-1, 2*src[2]-1
	}
}

// turned is the pixel of a square that comes to (u, v) by one of its eight turns and flips: bit 0 mirrors x, bit 1 mirrors y, bit 2 swaps them.
func turned(u, v, size, turn int) (int, int) {
	if turn&1 != 0 {
		u = size - 1 - u
	}
	if turn&2 != 0 {
		v = size - 1 - v
	}
	if turn&4 != 0 {
		u, v = v, u
	}
	return u, v
}

// pair makes one crop and its degraded copy.
func (w *patchWorker) pair(rng *rand.Rand, hq, lq []float32) error {
	c := w.crop(rng)
	size, margin := w.cfg.Size, w.cfg.Margin
	ox, oy := margin, margin
	if rng.Float64() < w.cfg.GridJitter { // shift the patch within the margin by up to half of it
		ox += rng.IntN(margin+1) - margin/2
		oy += rng.IntN(margin+1) - margin/2
	}
	turn := rng.IntN(8)
	c.load(&w.deg.cur, size+2*margin, ox, oy, turn)
	w.deg.cur.patch(hq, ox, oy, size)
	p, err := drawParams(w.cfg.Preset, rng)
	if err != nil {
		return err
	}
	if ox, oy, err = w.deg.runPatch(p, ox, oy, size); err != nil {
		return err
	}
	w.deg.cur.patch(lq, ox, oy, size)
	return nil
}

// crop is a patch in a photograph that is shrunk by 1, 2 or 4, block by block; x, y and size count shrunk pixels.
type crop struct {
	photo  *Photo
	shrink int
	x, y   int
	size   int
}

// crop draws a photograph, by the square root of its area, a factor and a place in it; places without detail are drawn again with a
// chance that falls with their mean gradient.
func (w *patchWorker) crop(rng *rand.Rand) crop {
	c := crop{size: w.cfg.Size}
	for range cropTries {
		u := rng.Float64() * w.cum[len(w.cum)-1]
		i := min(sort.SearchFloat64s(w.cum, u), len(w.cum)-1)
		c.photo, c.shrink = &w.cfg.Photos[i], 1
		for c.shrink < maxShrink && min(c.photo.W, c.photo.H)/(2*c.shrink) >= 2*c.size && rng.Float64() < w.cfg.Half {
			c.shrink *= 2
		}
		c.x, c.y = rng.IntN(c.photo.W/c.shrink-c.size+1), rng.IntN(c.photo.H/c.shrink-c.size+1)
		if rng.Float64() < w.cfg.KeepFlat+(1-w.cfg.KeepFlat)*c.gradient()/fullDetail {
			break
		}
	}
	return c
}

// sums adds up, for each channel, the block that shrinks to pixel (x, y).
func (c crop) sums(x, y int) (r, g, b int) {
	stride := 3 * c.photo.W
	at := y*c.shrink*stride + 3*x*c.shrink
	if c.shrink == 1 { // most crops; the loops below would double the time of load
		p := c.photo.Pix[at : at+3]
		return int(p[0]), int(p[1]), int(p[2])
	}
	for range c.shrink {
		p := c.photo.Pix[at : at+3*c.shrink]
		for k := 0; k < len(p); k += 3 {
			r, g, b = r+int(p[k]), g+int(p[k+1]), b+int(p[k+2])
		}
		at += stride
	}
	return r, g, b
}

// gradient is the mean absolute difference of neighbouring green values, both directions added, over a quarter of the pixels.
func (c crop) gradient() float64 {
	sum, n := 0, 0
	for y := 0; y+1 < c.size; y += 2 {
		for x := 0; x+1 < c.size; x += 2 {
			_, v, _ := c.sums(c.x+x, c.y+y)
			_, right, _ := c.sums(c.x+x+1, c.y+y)
			_, below, _ := c.sums(c.x+x, c.y+y+1)
			sum += max(v-right, right-v) + max(v-below, below-v)
			n += c.shrink * c.shrink
		}
	}
	return float64(sum) / float64(max(n, 1))
}

// load fills f, side by side pixels, with the crop, whose first pixel comes to (ox, oy), and its surroundings, turned. Beyond the photograph its pixels are mirrored.
// Values are rounded to 8 bits.
func (c crop) load(f *frame, side, ox, oy, turn int) {
	f.resize(side, side)
	w, h, area := c.photo.W/c.shrink, c.photo.H/c.shrink, c.shrink*c.shrink
	shift := bits.TrailingZeros(uint(area))
	for y := range side {
		for x := range side {
			u, v := turned(x-ox, y-oy, c.size, turn) // place relative to the patch, as stored
			u, v = reflect(c.x+u, w), reflect(c.y+v, h)
			r, g, b := c.sums(u, v)
			dst := f.pix[3*(y*side+x):][:3]
			dst[0], dst[1], dst[2] = float32((r+area/2)>>shift), float32((g+area/2)>>shift), float32((b+area/2)>>shift)
		}
	}
}

// patch writes the size by size pixels at (ox, oy) to dst, scaled to -1..1.
func (f *frame) patch(dst []float32, ox, oy, size int) {
	for y := range size {
		src := f.pix[3*((oy+y)*f.w+ox):][:3*size]
		for i, v := range src {
			dst[3*y*size+i] = v/127.5 - 1
		}
	}
}
