package data

import (
	"fmt"
	"math"
)

// Tile is the position of a tile in a plan, in the plan's units (pixels, latent cells, tokens).
type Tile struct{ X, Y int }

// TilePlan covers a w by h area with overlapping tiles of one size, row by row.
type TilePlan struct {
	W, H         int    // the area
	TileW, TileH int    // the tile, never larger than the area
	Tiles        []Tile // [rows * columns]

	columns int
	wx, wy  [][]float32 // blend weights along a tile's x by tile column, y by tile row
}

// PlanTiles covers w by h units with tiles of size a side (or of the area's side, where that is smaller), neighbours overlapping by at
// least overlap. The last tile of a line is moved back inside, so that all have the same size.
func PlanTiles(w, h, size, overlap int) (*TilePlan, error) {
	if w <= 0 || h <= 0 {
		return nil, fmt.Errorf("tiles: area %dx%d is empty", w, h)
	}
	if size <= 0 || overlap < 0 || overlap >= size {
		return nil, fmt.Errorf("tiles: size %d with overlap %d: want 0 <= overlap < size", size, overlap)
	}
	p := &TilePlan{W: w, H: h, TileW: min(size, w), TileH: min(size, h)}
	xs, ys := tileStarts(w, p.TileW, overlap), tileStarts(h, p.TileH, overlap)
	p.columns = len(xs)
	for _, y := range ys {
		for _, x := range xs {
			p.Tiles = append(p.Tiles, Tile{x, y})
		}
	}
	p.wx, p.wy = ramps(w, p.TileW, xs), ramps(h, p.TileH, ys)
	return p, nil
}

// Scale returns the plan of the same tiles in units f times finer: the pixels of a plan of latent cells. Weights are as smooth as the
// finer units allow.
func (p *TilePlan) Scale(f int) *TilePlan {
	q := &TilePlan{W: p.W * f, H: p.H * f, TileW: p.TileW * f, TileH: p.TileH * f, columns: p.columns}
	var xs, ys []int
	for i, t := range p.Tiles {
		t = Tile{t.X * f, t.Y * f}
		q.Tiles = append(q.Tiles, t)
		if i < p.columns {
			xs = append(xs, t.X)
		}
		if i%p.columns == 0 {
			ys = append(ys, t.Y)
		}
	}
	q.wx, q.wy = ramps(q.W, q.TileW, xs), ramps(q.H, q.TileH, ys)
	return q
}

// tileStarts returns the first unit of every tile along a line of n.
func tileStarts(n, size, overlap int) []int {
	starts := []int{0}
	for last := 0; last+size < n; {
		last = min(last+max(size-overlap, 1), n-size)
		starts = append(starts, last)
	}
	return starts
}

// ramps returns the weights of the tiles along a line: raised-cosine ramps over the overlaps with both neighbours, divided by their
// sum at every unit, since more than two tiles meet when the last one is moved back or the overlap exceeds half a tile.
func ramps(n, size int, starts []int) [][]float32 {
	raw := make([][]float64, len(starts))
	total := make([]float64, n)
	for i, s := range starts {
		var before, after float64 // overlap with the neighbours
		if i > 0 {
			before = float64(starts[i-1] + size - s)
		}
		if i+1 < len(starts) {
			after = float64(s + size - starts[i+1])
		}
		raw[i] = make([]float64, size)
		for k := range raw[i] {
			up, down := 1., 1.
			if x := float64(k) + 0.5; x < before {
				up = raisedCosine(x / before)
			}
			if x := float64(size-k) - 0.5; x < after {
				down = raisedCosine(x / after)
			}
			raw[i][k] = up * down
			total[s+k] += raw[i][k]
		}
	}
	out := make([][]float32, len(starts))
	for i, s := range starts {
		out[i] = make([]float32, size)
		for k, v := range raw[i] {
			out[i][k] = float32(v / total[s+k])
		}
	}
	return out
}

// raisedCosine rises from 0 at 0 to 1 at 1; with its mirror image it sums to 1.
func raisedCosine(x float64) float64 { return 0.5 - 0.5*math.Cos(math.Pi*x) }

// Weights returns the blend weights of tile i, [TileH, TileW]. Over all tiles they sum to 1 at every unit of the area.
func (p *TilePlan) Weights(i int) []float32 {
	out := make([]float32, 0, p.TileW*p.TileH)
	for _, v := range p.wy[i/p.columns] {
		for _, u := range p.wx[i%p.columns] {
			out = append(out, u*v)
		}
	}
	return out
}

// Cut copies tile i of src [H, W, c] to dst [TileH, TileW, c].
func (p *TilePlan) Cut(dst, src []float32, i, c int) {
	p.checkLengths("Cut", dst, src, c)
	t := p.Tiles[i]
	for y := range p.TileH {
		copy(dst[y*p.TileW*c:(y+1)*p.TileW*c], src[((t.Y+y)*p.W+t.X)*c:])
	}
}

// Add adds tile i [TileH, TileW, c], times its weights, to dst [H, W, c]: from zero, all tiles together blend to the whole.
func (p *TilePlan) Add(dst, tile []float32, i, c int) {
	p.checkLengths("Add", tile, dst, c)
	t := p.Tiles[i]
	wx := p.wx[i%p.columns]
	for y, wy := range p.wy[i/p.columns] {
		src := tile[y*p.TileW*c : (y+1)*p.TileW*c]
		out := dst[((t.Y+y)*p.W+t.X)*c:][:len(src)]
		for k, v := range src {
			out[k] += wx[k/c] * wy * v
		}
	}
}

func (p *TilePlan) checkLengths(name string, tile, whole []float32, c int) {
	if len(tile) != p.TileW*p.TileH*c || len(whole) != p.W*p.H*c {
		panic(fmt.Sprintf("data: TilePlan.%s: got tile of %d and area of %d values, want %d and %d",
			name, len(tile), len(whole), p.TileW*p.TileH*c, p.W*p.H*c))
	}
}

// PadReflect returns m extended to the right and below to multiples of unit by reflection about the last pixel, which is not repeated
// (numpy's "reflect"); where the image is smaller than the padding the reflections go back and forth, and one pixel just repeats.
// Crop(0, 0, W, H) undoes it.
func PadReflect(m *Image, unit int) *Image {
	if unit <= 0 {
		panic(fmt.Sprintf("data: PadReflect: got unit %d, want a positive one", unit))
	}
	w, h := (m.W+unit-1)/unit*unit, (m.H+unit-1)/unit*unit
	if w == m.W && h == m.H {
		return m.Clone()
	}
	return m.remap(w, h, func(x, y int) (int, int) { return reflect(x, m.W), reflect(y, m.H) })
}
