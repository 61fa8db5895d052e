package data

import "math"

// HaarPSI returns the Haar wavelet-based perceptual similarity index (Reisenhofer et al. 2018) of colour images: YIQ in 0..255 at half
// size, three scales, C = 30, alpha = 4.2. 1 is equal, smaller is worse. It is piq.haarpsi. Images need 16 pixels a side.
func HaarPSI(a, b *Image) (float64, error) {
	if err := sameSize("HaarPSI", a, b, 16); err != nil {
		return 0, err
	}
	luma := weighted(0, 255*0.299, 255*0.587, 255*0.114)
	chroma := [2]plane{weighted(0, 255*0.5959, 255*-0.2746, 255*-0.3213), weighted(0, 255*0.2115, 255*-0.5227, 255*0.3112)}
	p, q := integrate(half(a, luma)), integrate(half(b, luma))
	var ca, cb [2]halved
	for i := range chroma {
		ca[i], cb[i] = half(a, chroma[i]), half(b, chroma[i])
	}

	const c, alpha = 30, 4.2
	// sigma is the sigmoid of alpha times the mean of two similarities.
	sigma := func(s float64) float64 { return 1 / (1 + math.Exp(-alpha*s/2)) }
	var weights float64
	total := make([]float64, p.h)
	score := sumRows(p.h, 0, func(y int, _ []float64) (s float64) {
		for x := range p.w {
			var weight, sim [2]float64
			for o := range 2 { // edges along x, along y
				for scale := 1; scale <= 2; scale++ {
					sim[o] += similarity(math.Abs(p.haar(x, y, scale, o)), math.Abs(q.haar(x, y, scale, o)), c)
				}
				weight[o] = max(math.Abs(p.haar(x, y, 3, o)), math.Abs(q.haar(x, y, 3, o)))
			}
			var iq float64
			for i := range ca {
				iq += similarity(math.Abs(ca[i].mean2(x, y)), math.Abs(cb[i].mean2(x, y)), c)
			}
			mean := (weight[0] + weight[1]) / 2
			s += sigma(sim[0])*weight[0] + sigma(sim[1])*weight[1] + sigma(iq)*mean
			total[y] += weight[0] + weight[1] + mean
		}
		return s
	})
	for _, v := range total {
		weights += v
	}
	if weights == 0 {
		return 1, nil // both black: nothing to tell apart
	}
	score /= weights
	logit := math.Log(score/(1-score)) / alpha
	return logit * logit, nil
}

// mean2 is the mean of the 2x2 pixels whose first is (x, y), zeros outside.
func (p halved) mean2(x, y int) float64 {
	return (p.at(x, y) + p.at(x+1, y) + p.at(x, y+1) + p.at(x+1, y+1)) / 4
}

// integral is the summed-area table of a plane, [h+1, w+1].
type integral struct {
	w, h int
	v    []float64
}

func integrate(p halved) integral {
	t := integral{p.w, p.h, make([]float64, (p.w+1)*(p.h+1))}
	for y := range p.h {
		above, row := t.v[y*(p.w+1):], t.v[(y+1)*(p.w+1):]
		var s float64
		for x := range p.w {
			s += p.v[y*p.w+x]
			row[x+1] = above[x+1] + s
		}
	}
	return t
}

// box is the sum over columns x0..x1 and rows y0..y1, ends excluded, zeros outside.
func (t integral) box(x0, y0, x1, y1 int) float64 {
	x0, x1 = min(max(x0, 0), t.w), min(max(x1, 0), t.w)
	y0, y1 = min(max(y0, 0), t.h)*(t.w+1), min(max(y1, 0), t.h)*(t.w+1)
	return t.v[y1+x1] - t.v[y0+x1] - t.v[y1+x0] + t.v[y0+x0]
}

// haar is the Haar wavelet coefficient of side k = 2^scale at (x, y): the difference of the upper and the lower half (orientation 0)
// or the left and the right one (1) of the k by k pixels from (x-k/2+1, y-k/2+1), divided by k.
func (t integral) haar(x, y, scale, orientation int) float64 {
	k := 1 << scale
	x0, y0 := x-k/2+1, y-k/2+1
	first := t.box(x0, y0, x0+k, y0+k/2)
	if orientation == 1 {
		first = t.box(x0, y0, x0+k/2, y0+k)
	}
	return (2*first - t.box(x0, y0, x0+k, y0+k)) / float64(k)
}
