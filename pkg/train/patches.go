package train

import (
	"fmt"
	"math"
	"math/rand/v2"

	"gonum.org/v1/gonum/mat"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
)

// PatchTransform is the linear autoencoder of f×f patches: the principal components of natural patches, each divided by the square root of its deviation,
// half-way to white. It keeps all components and so loses nothing.
type PatchTransform struct {
	Factor   int         `json:"factor"`
	Mean     []float64   `json:"mean"`     // [n], n = 3·f², pixel values in -1..1, order (c, dy, dx)
	Encode   [][]float64 `json:"encode"`   // [n][n], rows are components
	Decode   [][]float64 `json:"decode"`   // its inverse
	Variance []float64   `json:"variance"` // of the components before scaling, falling
}

// FitPatches computes the transform from patches at random places of the photographs. factor is 2.
func FitPatches(photos []data.Photo, factor, patches int, seed uint64) (*PatchTransform, error) {
	if factor != 2 {
		return nil, fmt.Errorf("%w: patch transform of factor %d, want 2", ErrConfig, factor)
	}
	n := 3 * factor * factor
	rng := rand.New(rand.NewPCG(seed, 0))
	sum, product, x := make([]float64, n), mat.NewSymDense(n, nil), mat.NewVecDense(n, nil)
	for range patches {
		p := photos[rng.IntN(len(photos))]
		px, py := rng.IntN(p.W-factor+1), rng.IntN(p.H-factor+1)
		for i := range n {
			c, dy, dx := i/(factor*factor), i/factor%factor, i%factor
			v := float64(p.Pix[3*((py+dy)*p.W+px+dx)+c])/127.5 - 1
			x.SetVec(i, v)
			sum[i] += v
		}
		product.SymRankOne(product, 1, x)
	}
	t := &PatchTransform{Factor: factor, Mean: sum}
	for i := range n {
		t.Mean[i] /= float64(patches)
	}
	covariance := mat.NewSymDense(n, nil)
	for i := range n {
		for j := i; j < n; j++ {
			covariance.SetSym(i, j, product.At(i, j)/float64(patches)-t.Mean[i]*t.Mean[j])
		}
	}
	var eigen mat.EigenSym
	if !eigen.Factorize(covariance, true) {
		return nil, fmt.Errorf("patch transform: no eigenvectors")
	}
	return t.fill(&eigen, n), nil
}

// fill scales the components and normalises them so that their mean variance is 1.
func (t *PatchTransform) fill(eigen *mat.EigenSym, n int) *PatchTransform {
	var vectors mat.Dense
	eigen.VectorsTo(&vectors)
	rising := eigen.Values(nil)
	total := 0.0
	for _, v := range rising {
		total += math.Sqrt(max(v, 1e-12)) // variance after dividing by deviation^0.5
	}
	unit := math.Sqrt(float64(n) / total)
	for k := range n {
		column := n - 1 - k
		variance := max(rising[column], 1e-12)
		scale := unit / math.Pow(variance, 0.25)
		encode, decode := make([]float64, n), make([]float64, n)
		for i := range n {
			encode[i], decode[i] = vectors.At(i, column)*scale, vectors.At(i, column)/scale
		}
		t.Encode, t.Decode, t.Variance = append(t.Encode, encode), append(t.Decode, decode), append(t.Variance, variance)
	}
	return t
}

// Apply writes the transform into an autoencoder that is a shortcut alone.
func (t *PatchTransform) Apply(vae *model.VAE) error {
	n := len(t.Mean)
	in, inBias, out, outBias := make([]float32, n*n), make([]float32, n), make([]float32, n*n), make([]float32, n)
	for k := range n {
		shift := 0.0
		for i := range n {
			in[k*n+i], out[i*n+k] = float32(t.Encode[k][i]), float32(t.Decode[k][i])
			shift += t.Encode[k][i] * t.Mean[i]
		}
		inBias[k], outBias[k] = float32(-shift), float32(t.Mean[k])
	}
	for name, values := range map[string][]float32{
		"encoder.shortcut.weight": in, "encoder.shortcut.bias": inBias, "decoder.shortcut.weight": out, "decoder.shortcut.bias": outBias,
	} {
		if err := vae.Params.Get(name).Set(values); err != nil {
			return err
		}
	}
	return nil
}
