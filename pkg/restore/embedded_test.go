package restore

import (
	"math"
	"testing"

	"github.com/fluxir/fluxir/pkg/data"
)

func photo(t *testing.T, name string) *data.Image {
	t.Helper()
	m, err := data.Load("../../testdata/photo/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// The embedded model makes the shipped photograph better, and its tiles leave no seams: what it changes jumps no more where tiles
// begin and end than at the other edges of the JPEG file's blocks, where it takes jumps away.
func TestEmbedded(t *testing.T) {
	degraded, clean := photo(t, "castle.jpg"), photo(t, "castle_clean.jpg")
	r := open(t, Options{})
	out, err := r.Restore(t.Context(), degraded, nil)
	if err != nil {
		t.Fatal(err)
	}
	before, err1 := data.PSNR(degraded, clean)
	after, err2 := data.PSNR(out, clean)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	t.Logf("PSNR %.2f to %.2f dB", before, after)
	if after < before+0.5 {
		t.Errorf("PSNR was %.2f dB, is %.2f", before, after)
	}

	j, err := r.plan(t.Context(), degraded.W, degraded.H, nil)
	if err != nil {
		t.Fatal(err)
	}
	const jpegBlock = 8                  // pixels; tiles begin and end at blocks
	border := make([]bool, degraded.W+1) // columns where a tile begins or has ended
	tiles := j.tokens.Scale(2 * j.factor)
	for _, tile := range tiles.Tiles {
		border[min(tile.X, degraded.W)], border[min(tile.X+tiles.TileW, degraded.W)] = true, true
	}
	var sum, count [2]float64
	for y := range degraded.H {
		for x := jpegBlock; x < degraded.W; x += jpegBlock {
			kind := 0
			if border[x] {
				kind = 1
			}
			for c := range 3 {
				i := 3*(y*degraded.W+x) + c
				jump := (out.Pix[i] - degraded.Pix[i]) - (out.Pix[i-3] - degraded.Pix[i-3])
				sum[kind] += math.Abs(float64(jump))
				count[kind]++
			}
		}
	}
	ratio := (sum[1] / count[1]) / (sum[0] / count[0])
	t.Logf("changes at %d borders: %.3f of those at other blocks", int(count[1])/degraded.H/3, ratio)
	if !(ratio > 0.8 && ratio < 1.2) {
		t.Errorf("jumps at tile borders are %.3f times those at other blocks", ratio)
	}
}
