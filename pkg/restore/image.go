package restore

import (
	"context"
	"runtime"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// Progress is told after every batch of tiles how many units of work are done, of how many.
type Progress func(done, total int)

// job is the restoring of one image. The tile plans count tokens, squares of unit pixels; Scale turns them into latent pixels and
// pixels.
type job struct {
	*Restorer
	settings
	ctx         context.Context
	progress    Progress
	done, total int

	stream   uint64 // of the noise: the view's number
	channels int    // of a latent pixel
	factor   int    // pixels to a latent pixel
	tokens   *data.TilePlan
	vaeTiles *data.TilePlan
	batch    int // transformer tiles that run at once
}

// Restore returns the restored image, Options.Scale times the size of img, sharing img's alpha and metadata. progress may be nil.
// ctx is checked before every batch of tiles. Host memory: img, its latent, and one plane more (two with several steps, two more with an ensemble),
// all f32; nothing else grows with the image.
func (r *Restorer) Restore(ctx context.Context, img *data.Image, progress Progress) (*data.Image, error) {
	if img.W > r.options.maxPixels()/r.settings.scale/r.settings.scale/img.H {
		return nil, errorf(data.ErrTooLarge, "a result of %dx%d pixels exceeds the limit of %.4g megapixels",
			img.W*r.settings.scale, img.H*r.settings.scale, float64(r.options.maxPixels())/1e6)
	}
	if scale := r.settings.scale; scale > 1 {
		img = data.Resize(img, img.W*scale, img.H*scale, data.Bicubic)
	}
	out := &data.Image{W: img.W, H: img.H, Alpha: img.Alpha, Meta: img.Meta}
	var err error
	if out.Pix, err = r.views(ctx, img, progress); err != nil {
		return nil, deviceKind(err)
	}
	if r.settings.colorFix == data.ColorFixNone {
		return out, nil
	}
	return data.ColorFix(r.settings.colorFix, out, img)
}

// viewUnit is what the sides are padded to before an image is turned, so that the blocks of a JPEG file, 16 pixels with its colours, keep their places.
const viewUnit = 16

// views restores the image as it is and, with an ensemble, also turned and mirrored, and returns the mean of the pixels [h,w,3].
func (r *Restorer) views(ctx context.Context, img *data.Image, progress Progress) ([]float32, error) {
	orientations := []int{1, 5, 3, 7, 2, 4, 6, 8}[:r.settings.ensemble] // of EXIF
	if len(orientations) == 1 {
		return r.view(ctx, img, 0, progress)
	}
	padded := data.PadReflect(&data.Image{W: img.W, H: img.H, Pix: img.Pix}, viewUnit)
	sum := make([]float32, len(padded.Pix))
	for i, orientation := range orientations {
		turned := padded.Orient(orientation)
		pix, err := r.view(ctx, turned, uint64(i), func(done, total int) {
			if progress != nil {
				progress(i*total+done, len(orientations)*total)
			}
		})
		if err != nil {
			return nil, err
		}
		turned.Pix = pix
		for k, v := range turned.Orient(undo(orientation)).Pix {
			sum[k] += v / float32(len(orientations))
		}
	}
	padded.Pix = sum
	return padded.Crop(0, 0, img.W, img.H).Pix, nil
}

// undo is the orientation that undoes another.
func undo(orientation int) int {
	switch orientation {
	case 6:
		return 8
	case 8:
		return 6
	}
	return orientation
}

// view restores one view of an image: pixels [h,w,3], which may leave 0..1.
func (r *Restorer) view(ctx context.Context, img *data.Image, number uint64, progress Progress) ([]float32, error) {
	j, err := r.plan(ctx, img.W, img.H, progress)
	if err != nil {
		return nil, err
	}
	j.stream = number
	if !r.Streamed() { // uploads are no part of a graph
		j.Graphs = &tensor.Graphs{}
	}
	defer r.device.Do(func() error {
		j.Graphs.Free()
		r.tape.Free()
		return nil
	})
	zLQ, err := j.encode(img)
	if err != nil {
		return nil, err
	}
	// Each stage drops a plane of the image's size before the next one allocates its own; collecting it now keeps the peak at
	// what is in use.
	w, h := img.W, img.H
	img = nil
	runtime.GC()
	z0, err := j.sample(zLQ)
	if err != nil {
		return nil, err
	}
	runtime.GC()
	return j.decode(z0, w, h)
}

// plan lays out the tiles of a w by h image.
func (r *Restorer) plan(ctx context.Context, w, h int, progress Progress) (*job, error) {
	c := r.bundle.VAE.Config
	j := &job{Restorer: r, settings: r.settings, ctx: ctx, progress: progress, channels: c.LatentChannels, factor: c.Factor()}
	unit := 2 * j.factor
	columns, rows := (w+unit-1)/unit, (h+unit-1)/unit
	var err error
	if j.tokens, err = data.PlanTiles(columns, rows, j.tile, j.overlap); err != nil {
		return nil, err
	}
	overlap := vaeOverlap / unit
	if len(c.BlockOutChannels) == 0 { // the shortcut alone: a map of each latent pixel for itself
		overlap = 0
	}
	if j.vaeTiles, err = data.PlanTiles(columns, rows, max(vaeTile/unit, overlap+1), overlap); err != nil {
		return nil, err
	}
	j.batch = j.batchSize()
	j.total = 2*len(j.vaeTiles.Tiles) + j.Steps*len(j.tokens.Tiles)
	return j, nil
}

// batchSize is how many transformer tiles fit the memory budget. A tile needs about tileTensors tensors [tokens, hidden] at once: one block's
// activations, the adapter's features, and what the arenas leave unused (measured on the embedded model: 62).
func (j *job) batchSize() int {
	const tileTensors = 64
	f := j.bundle.Net.Base
	length := j.tokens.TileW*j.tokens.TileH + j.bundle.Net.Adapter.Config.TextTokens
	bytes := int64(length) * int64(f.Config.Hidden()) * tileTensors * int64(f.DType.Size())
	return max(1, min(int(j.memory/bytes), len(j.tokens.Tiles)))
}

// overTiles runs f on the device for all tiles of a plan, size tiles at once: first, first+1, ... first+n-1. Every batch begins
// with an empty tape.
func (j *job) overTiles(plan *data.TilePlan, size int, f func(t *tensor.Tape, first, n int) error) error {
	for first := 0; first < len(plan.Tiles); first += size {
		if err := j.ctx.Err(); err != nil {
			return err
		}
		n := min(size, len(plan.Tiles)-first)
		err := j.device.Do(func() error {
			j.tape.Reset()
			return f(j.tape, first, n)
		})
		if err != nil {
			return err
		}
		j.done += n
		if j.progress != nil {
			j.progress(j.done, j.total)
		}
	}
	return nil
}

// encode returns the scaled latent [h,w,c] of an image, padded by reflection to whole tokens.
func (j *job) encode(img *data.Image) ([]float32, error) {
	latents, pixels := j.vaeTiles.Scale(2), j.vaeTiles.Scale(2*j.factor)
	whole := make([]float32, latents.W*latents.H*j.channels)
	colours := &data.Image{W: img.W, H: img.H, Pix: img.Pix}
	return whole, j.overTiles(j.vaeTiles, 1, func(t *tensor.Tape, i, _ int) error {
		p := pixels.Tiles[i]
		crop := colours.Crop(p.X, p.Y, min(pixels.TileW, img.W-p.X), min(pixels.TileH, img.H-p.Y))
		crop = data.PadReflect(crop, 2*j.factor)
		for k, v := range crop.Pix {
			crop.Pix[k] = 2*v - 1
		}
		x := t.Upload(crop.Pix, bindings.F32, 1, pixels.TileH, pixels.TileW, 3)
		return addTiles(t, whole, j.bundle.VAE.Latent(t, j.bundle.VAE.Moments(t, x), nil), latents, i, j.channels)
	})
}

// sample runs all steps and returns z_0 [h,w,c]. In every step each tile takes its own step and the results are blended, which is
// the step of the blended velocity. The start is made tile by tile, its noise by position in the whole latent.
func (j *job) sample(zLQ []float32) ([]float32, error) {
	plan := j.tokens.Scale(2)
	times, err := j.Times(j.tokens.TileW * j.tokens.TileH)
	if err != nil {
		return nil, err
	}
	size := plan.TileW * plan.TileH * j.channels
	lq, z := make([]float32, j.batch*size), make([]float32, j.batch*size)
	var whole []float32
	for step := range j.Steps {
		next := make([]float32, len(zLQ))
		err := j.overTiles(plan, j.batch, func(t *tensor.Tape, first, n int) error {
			for k := range n {
				tileLQ, tile := lq[k*size:(k+1)*size], z[k*size:(k+1)*size]
				plan.Cut(tileLQ, zLQ, first+k, j.channels)
				if step == 0 {
					j.noise(tile, plan, first+k)
					model.Blend(tile, tileLQ, j.Start)
				} else {
					plan.Cut(tile, whole, first+k, j.channels)
				}
			}
			shape := []int{n, plan.TileH, plan.TileW, j.channels}
			out := j.bundle.Net.Euler(t, t.Upload(z[:n*size], bindings.F32, shape...), t.Upload(lq[:n*size], bindings.F32, shape...),
				times[step], times[step+1], j.SampleOptions)
			return addTiles(t, next, out, plan, first, j.channels)
		})
		if err != nil {
			return nil, err
		}
		whole = next
	}
	return whole, nil
}

// noise fills a tile of the latent with z_1. The stream is the same for every image, so that a file's result does not depend on the
// files restored before it.
func (j *job) noise(tile []float32, plan *data.TilePlan, i int) {
	at, row := plan.Tiles[i], plan.TileW*j.channels
	for y := range plan.TileH {
		model.Noise(tile[y*row:(y+1)*row], j.seed, j.stream, uint64(((at.Y+y)*plan.W+at.X)*j.channels))
	}
}

// decode returns the pixels [h,w,3] of a scaled latent, the padding cut off. Values may leave 0..1.
func (j *job) decode(z0 []float32, w, h int) ([]float32, error) {
	latents, pixels := j.vaeTiles.Scale(2), j.vaeTiles.Scale(2*j.factor)
	whole := make([]float32, pixels.W*pixels.H*3)
	tile := make([]float32, latents.TileW*latents.TileH*j.channels)
	err := j.overTiles(j.vaeTiles, 1, func(t *tensor.Tape, i, _ int) error {
		latents.Cut(tile, z0, i, j.channels)
		z := t.Upload(tile, bindings.F32, 1, latents.TileH, latents.TileW, j.channels)
		return addTiles(t, whole, j.bundle.VAE.Decode(t, z), pixels, i, 3)
	})
	if err != nil {
		return nil, err
	}
	for y := range h { // in place: rows move towards the front
		src, dst := whole[3*y*pixels.W:], whole[3*y*w:3*(y+1)*w]
		for k := range dst {
			dst[k] = src[k]/2 + 0.5
		}
	}
	return whole[:3*w*h], nil
}

// addTiles reads the batch of tiles x, the tiles first, first+1, ... of the plan, and blends them into whole.
func addTiles(t *tensor.Tape, whole []float32, x *tensor.Tensor, plan *data.TilePlan, first, channels int) error {
	if err := t.Err(); err != nil {
		return err
	}
	values, err := x.Host()
	if err != nil {
		return err
	}
	size := len(values) / x.Dim(0)
	for k := range x.Dim(0) {
		plan.Add(whole, values[k*size:(k+1)*size], first+k, channels)
	}
	return nil
}
