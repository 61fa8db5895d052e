package data

import (
	"math"
	"slices"
	"testing"
)

func TestTileStarts(t *testing.T) {
	tests := []struct {
		n, size, overlap int
		want             []int
	}{
		{5, 8, 2, []int{0}},
		{8, 8, 2, []int{0}},
		{9, 8, 2, []int{0, 1}},
		{14, 8, 2, []int{0, 6}},
		{15, 8, 2, []int{0, 6, 7}},
		{20, 5, 0, []int{0, 5, 10, 15}},
		{4, 2, 1, []int{0, 1, 2}},
		{7, 4, 3, []int{0, 1, 2, 3}},
	}
	for _, tc := range tests {
		p, err := PlanTiles(tc.n, 1, tc.size, tc.overlap)
		if err != nil {
			t.Fatal(err)
		}
		var got []int
		for _, tile := range p.Tiles {
			got = append(got, tile.X)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%d by tiles of %d overlapping %d: got %v, want %v", tc.n, tc.size, tc.overlap, got, tc.want)
		}
	}
}

// TestTilesBlendToTheWhole cuts and adds back: weights sum to 1 everywhere, tiles stay inside, and a constant or any other picture
// comes back.
func TestTilesBlendToTheWhole(t *testing.T) {
	for _, s := range [][4]int{{1, 1, 4, 1}, {5, 3, 8, 2}, {31, 17, 8, 2}, {32, 32, 16, 8}, {33, 65, 16, 12}, {40, 23, 10, 0}, {64, 9, 9, 8}} {
		plan, err := PlanTiles(s[0], s[1], s[2], s[3])
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []*TilePlan{plan, plan.Scale(3)} {
			const c = 2
			src := make([]float32, p.W*p.H*c)
			for i := range src {
				src[i] = float32(math.Sin(float64(i)))
			}
			dst, sum := make([]float32, len(src)), make([]float64, p.W*p.H)
			tile := make([]float32, p.TileW*p.TileH*c)
			for i, at := range p.Tiles {
				if at.X < 0 || at.Y < 0 || at.X+p.TileW > p.W || at.Y+p.TileH > p.H {
					t.Fatalf("%v: tile %v leaves the area", s, at)
				}
				p.Cut(tile, src, i, c)
				p.Add(dst, tile, i, c)
				for k, w := range p.Weights(i) {
					if w <= 0 || w > 1 {
						t.Fatalf("%v: weight %v", s, w)
					}
					sum[(at.Y+k/p.TileW)*p.W+at.X+k%p.TileW] += float64(w)
				}
			}
			for i, v := range sum {
				if math.Abs(v-1) > 1e-6 {
					t.Fatalf("%v: weights sum to %v at %d", s, v, i)
				}
			}
			for i, v := range dst {
				if math.Abs(float64(v-src[i])) > 1e-6 {
					t.Fatalf("%v: value %d became %v, was %v", s, i, v, src[i])
				}
			}
		}
	}
}

// TestTileWeightsAreSmooth: with a regular overlap of n the weight changes by at most the raised cosine's steepest step, pi/2n.
func TestTileWeightsAreSmooth(t *testing.T) {
	p, err := PlanTiles(100, 40, 40, 20)
	if err != nil {
		t.Fatal(err)
	}
	for i := range p.Tiles {
		w := p.Weights(i)[:p.TileW]
		for x := range len(w) - 1 {
			if step := math.Abs(float64(w[x+1] - w[x])); step > math.Pi/40 {
				t.Errorf("tile %d: weight jumps by %v at %d", i, step, x)
			}
		}
	}
}

func TestPlanTilesErrors(t *testing.T) {
	for _, s := range [][4]int{{0, 4, 4, 1}, {4, -1, 4, 1}, {4, 4, 0, 0}, {4, 4, 4, 4}, {4, 4, 4, -1}} {
		if p, err := PlanTiles(s[0], s[1], s[2], s[3]); err == nil {
			t.Errorf("%v: got %v", s, p)
		}
	}
}

func TestPadReflect(t *testing.T) {
	tests := []struct {
		w, h, unit int
		ow, oh     int
		want       []float32 // source pixel numbers
	}{
		{3, 1, 5, 5, 5, []float32{0, 1, 2, 1, 0, 0, 1, 2, 1, 0, 0, 1, 2, 1, 0, 0, 1, 2, 1, 0, 0, 1, 2, 1, 0}},
		{1, 1, 2, 2, 2, []float32{0, 0, 0, 0}},
		{2, 2, 4, 4, 4, []float32{0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1, 2, 3, 2, 3}},
		{2, 2, 2, 2, 2, []float32{0, 1, 2, 3}},
		{3, 2, 2, 4, 2, []float32{0, 1, 2, 1, 3, 4, 5, 4}},
	}
	for _, tc := range tests {
		m := numbered(tc.w, tc.h)
		p := PadReflect(m, tc.unit)
		if p.W != tc.ow || p.H != tc.oh || !slices.Equal(p.Alpha, tc.want) {
			t.Errorf("%dx%d to multiples of %d: got %dx%d %v, want %dx%d %v", tc.w, tc.h, tc.unit, p.W, p.H, p.Alpha, tc.ow, tc.oh, tc.want)
		}
		if back := p.Crop(0, 0, tc.w, tc.h); !slices.Equal(back.Pix, m.Pix) {
			t.Errorf("%dx%d: cutting back does not undo the padding", tc.w, tc.h)
		}
	}
}
