package data

import (
	"bytes"
	"fmt"
	"image"
	"image/jpeg"
	"math/rand/v2"
	"slices"
	"sync"
)

// Apply degrades a picture; the result has the same size, is rounded to 8 bits and keeps alpha and metadata. It fails when a stage's
// values are out of range, as they can be in a manifest that was edited by hand.
func (p Params) Apply(m *Image) (*Image, error) {
	d := degraders.Get().(*degrader)
	defer degraders.Put(d)
	d.cur.resize(m.W, m.H)
	for i, v := range m.Pix {
		d.cur.pix[i] = 255 * min(max(v, 0), 1)
	}
	if err := d.run(p); err != nil {
		return nil, err
	}
	out := m.Clone()
	for i, v := range d.cur.pix {
		out.Pix[i] = v / 255
	}
	return out, nil
}

// Check says what is wrong with a degradation's values, or nil.
func (p Params) Check() error {
	for i, s := range p.Stages {
		if why := s.fault(); why != "" {
			return fmt.Errorf("data: degradation stage %d: %s", i, why)
		}
	}
	return nil
}

func (s Stage) fault() string {
	switch s.Op {
	case OpSharpen:
	case OpBlur:
		if s.Kernel == nil {
			return "blur without a kernel"
		}
		return s.Kernel.fault()
	case OpResize:
		if !(s.Scale > 0 && s.Scale <= 8) {
			return fmt.Sprintf("scale %g, want 0..8", s.Scale)
		}
		switch s.Mode {
		case ModeArea, ModeBilinear, ModeBicubic, ModeAntialias:
		default:
			return fmt.Sprintf("unknown resize mode %q", s.Mode)
		}
	case OpGauss, OpPoisson:
		if !(s.Sigma >= 0 && s.Strength >= 0) {
			return fmt.Sprintf("noise sigma %g, strength %g", s.Sigma, s.Strength)
		}
	case OpJPEG:
		if s.Quality < 1 || s.Quality > 100 {
			return fmt.Sprintf("JPEG quality %d, want 1..100", s.Quality)
		}
	default:
		return fmt.Sprintf("unknown operation %q", s.Op)
	}
	return ""
}

// frame is a picture inside a chain: [h, w, 3] float32, 0..255.
type frame struct {
	w, h int
	pix  []float32
}

// resize sets the size; the content is lost. The memory is reused.
func (f *frame) resize(w, h int) {
	f.w, f.h = w, h
	if n := 3 * w * h; cap(f.pix) < n {
		f.pix = make([]float32, n)
	} else {
		f.pix = f.pix[:n]
	}
}

// degrader runs chains on cur, keeping its scratch memory from one picture to the next.
type degrader struct {
	cur, out, pad frame
	rgba          image.RGBA
	code          bytes.Buffer
	chroma        []uint8 // one row of Cb, one of Cr
	pcg           rand.PCG
}

// degraders keep their memory between calls of Apply.
var degraders = sync.Pool{New: func() any { return new(degrader) }}

// run applies the stages to d.cur in place.
func (d *degrader) run(p Params) error {
	if err := p.Check(); err != nil {
		return err
	}
	w, h := d.cur.w, d.cur.h
	for i := range p.Stages {
		if err := d.stage(p, i, w, h); err != nil {
			return err
		}
	}
	d.round()
	return d.checkSize(w, h)
}

// runPatch is run when only the size by size pixels at (ox, oy) of the result are wanted; it leaves a part of the picture that holds them
// in d.cur and returns their place in it. A JPEG at the end of the chain, half of the light preset's time, is then coded only where its
// 16x16 units touch the patch: the same coefficients, and on the patch's outermost pixels chroma interpolated as at a picture's edge.
func (d *degrader) runPatch(p Params, ox, oy, size int) (int, int, error) {
	last := len(p.Stages) - 1
	if last < 0 || p.Stages[last].Op != OpJPEG {
		return ox, oy, d.run(p)
	}
	if err := p.Check(); err != nil {
		return 0, 0, err
	}
	w, h := d.cur.w, d.cur.h
	for i := range last {
		if err := d.stage(p, i, w, h); err != nil {
			return 0, 0, err
		}
	}
	if err := d.checkSize(w, h); err != nil {
		return 0, 0, err
	}
	const unit = 16
	x0, y0 := ox&^(unit-1), oy&^(unit-1)
	x1, y1 := min((ox+size+unit-1)&^(unit-1), w), min((oy+size+unit-1)&^(unit-1), h)
	for y := y0; y < y1; y++ { // rows move towards the front, so in place
		copy(d.cur.pix[3*(y-y0)*(x1-x0):][:3*(x1-x0)], d.cur.pix[3*(y*w+x0):])
	}
	d.cur.resize(x1-x0, y1-y0)
	return ox - x0, oy - y0, d.stage(p, last, w, h)
}

func (d *degrader) checkSize(w, h int) error {
	if d.cur.w != w || d.cur.h != h {
		return fmt.Errorf("data: degradation ends at %dx%d, want the input's %dx%d", d.cur.w, d.cur.h, w, h)
	}
	return nil
}

// stage applies stage i of a checked p to d.cur; w and h are the size of the chain's input.
func (d *degrader) stage(p Params, i, w, h int) error {
	s := p.Stages[i]
	d.pcg.Seed(p.Seed, uint64(i))
	rng := rand.New(&d.pcg)
	switch s.Op {
	case OpSharpen:
		d.sharpen()
	case OpBlur:
		d.blur(s.Kernel)
	case OpResize:
		d.resize(max(1, int(s.Scale*float64(w))), max(1, int(s.Scale*float64(h))), s.Mode)
	case OpGauss:
		d.gauss(rng, float32(s.Sigma), s.Gray)
	case OpPoisson:
		d.poisson(rng, float32(s.Strength), s.Gray)
	case OpJPEG:
		if err := d.jpeg(s.Quality); err != nil {
			return err
		}
	}
	if s.Round {
		d.round()
	}
	return nil
}

// round8 clips to 0..255 and rounds, halves up. Integer clipping is twice as fast as min and max of floats, which care for NaN.
func round8(v float32) int32 { return min(max(int32(v+0.5), 0), 255) }

// round makes every value a whole number of 0..255.
func (d *degrader) round() {
	for i, v := range d.cur.pix {
		d.cur.pix[i] = float32(round8(v))
	}
}

// gauss adds normal noise and clips.
func (d *degrader) gauss(rng *rand.Rand, sigma float32, gray bool) {
	pix := d.cur.pix
	if gray {
		for i := 0; i < len(pix); i += 3 {
			n := sigma * float32(rng.NormFloat64())
			for c := i; c < i+3; c++ {
				pix[c] = clip(pix[c] + n)
			}
		}
		return
	}
	for i, v := range pix {
		pix[i] = clip(v + sigma*float32(rng.NormFloat64()))
	}
}

// clip limits v to 0..255 without the care for NaN and signed zeros that makes min and max slow.
func clip(v float32) float32 {
	if v < 0 {
		return 0
	}
	if v > 255 {
		return 255
	}
	return v
}

// jpeg encodes and decodes at the given quality, chroma at half size both ways.
func (d *degrader) jpeg(quality int) error {
	f := &d.cur
	n := f.w * f.h
	if cap(d.rgba.Pix) < 4*n {
		d.rgba.Pix = make([]byte, 4*n)
	}
	d.rgba.Pix, d.rgba.Stride, d.rgba.Rect = d.rgba.Pix[:4*n], 4*f.w, image.Rect(0, 0, f.w, f.h)
	for i := range n {
		for c := range 3 {
			d.rgba.Pix[4*i+c] = uint8(round8(f.pix[3*i+c]))
		}
		d.rgba.Pix[4*i+3] = 255
	}
	d.code.Reset()
	if err := jpeg.Encode(&d.code, &d.rgba, &jpeg.Options{Quality: quality}); err != nil {
		return fmt.Errorf("data: JPEG stage of a %dx%d picture: %w", f.w, f.h, err)
	}
	m, err := jpeg.Decode(&d.code)
	if err != nil {
		return fmt.Errorf("data: JPEG stage of a %dx%d picture: %w", f.w, f.h, err)
	}
	ycc, ok := m.(*image.YCbCr)
	if !ok || ycc.SubsampleRatio != image.YCbCrSubsampleRatio420 {
		return fmt.Errorf("data: JPEG stage: the decoder returned %T, want 4:2:0 YCbCr", m)
	}
	d.fromYCC(ycc)
	return nil
}

// fromYCC converts a JPEG's 4:2:0 picture to RGB as libjpeg does.
func (d *degrader) fromYCC(m *image.YCbCr) {
	f := &d.cur
	d.chroma = slices.Grow(d.chroma[:0], 2*f.w)[:2*f.w]
	cb, cr := d.chroma[:f.w], d.chroma[f.w:][:f.w]
	for y := range f.h {
		upsampleRow(cb, m, m.Cb, y, FormatJPEG)
		upsampleRow(cr, m, m.Cr, y, FormatJPEG)
		row := f.pix[3*y*f.w:][:3*f.w]
		for x, l := range m.Y[y*m.YStride:][:f.w] {
			r, g, b := jfifRGB(int(l), int(cb[x])-128, int(cr[x])-128)
			row[3*x], row[3*x+1], row[3*x+2] = float32(clamp8(r)), float32(clamp8(g)), float32(clamp8(b))
		}
	}
}
