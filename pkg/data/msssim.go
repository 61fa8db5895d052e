package data

import "math"

// msssimWeights are the exponents of the five scales (Wang et al. 2003), finest first.
var msssimWeights = [...]float64{0.0448, 0.2856, 0.3001, 0.2363, 0.1333}

// MSSSIMSide is the smallest side of an image for MSSSIM: the window must fit the coarsest scale.
const MSSSIMSide = (ssimWindow-1)<<4 + 1

// MSSSIM returns the multi-scale structural similarity (Wang et al. 2003), the mean over the three channels: SSIM's window at five
// scales, each the mean of 2x2 pixels of the one before; a scale with an odd side first repeats its first row and column. Means below 0
// count as 0. It is piq.multi_scale_ssim. Images need 161 pixels a side.
func MSSSIM(a, b *Image) (float64, error) {
	if err := sameSize("MSSSIM", a, b, MSSSIMSide); err != nil {
		return 0, err
	}
	var sum float64
	for c := range 3 {
		sum += msssim(a, b, channel(c))
	}
	return sum / 3, nil
}

// MSSSIMY is MSSSIM of the luma of Matlab's rgb2ycbcr (16..235), range 255.
func MSSSIMY(a, b *Image) (float64, error) {
	if err := sameSize("MSSSIMY", a, b, MSSSIMSide); err != nil {
		return 0, err
	}
	return msssim(a, b, studioLuma()), nil
}

func msssim(a, b *Image, p plane) float64 {
	ra, rb, w, h := planeRows(a, p), planeRows(b, p), a.W, a.H
	product := 1.0
	for i, weight := range msssimWeights {
		index, structure := ssim(ra, rb, w, h)
		if i == len(msssimWeights)-1 {
			return product * math.Pow(max(index, 0), weight)
		}
		product *= math.Pow(max(structure, 0), weight)
		pa, pb := shrink(ra, w, h), shrink(rb, w, h)
		ra, rb, w, h = pa.row, pb.row, pa.w, pa.h
	}
	return product
}

func (p halved) row(dst []float64, y int) { copy(dst, p.v[y*p.w:(y+1)*p.w]) }

// shrink is the mean over 2x2 pixels of a w by h scalar image; where a side is odd, row and column 0 are read twice.
func shrink(r rows, w, h int) halved {
	pad := (w | h) & 1
	out := halved{w: (w + pad) / 2, h: (h + pad) / 2}
	out.v = make([]float64, out.w*out.h)
	Parallel(out.h, func(lo, hi int) {
		row := make([]float64, w)
		for y := lo; y < hi; y++ {
			dst := out.v[y*out.w : (y+1)*out.w]
			for sy := 2*y - pad; sy < 2*y-pad+2; sy++ {
				r(row, max(sy, 0))
				for x := range dst {
					sx := 2*x - pad
					dst[x] += (row[max(sx, 0)] + row[sx+1]) / 4
				}
			}
		}
	})
	return out
}
