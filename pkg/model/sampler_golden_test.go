package model

import (
	"context"
	"errors"
	"math"
	"testing"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/internal/golden"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

func TestGoldenSample(t *testing.T) {
	golden.ForEach(t, []string{"sample"}, func(t *testing.T, fx *golden.Fixture) {
		eachPrecision(t, fx, "out.image", func(a *tensor.Arena, tp *tensor.Tape, precision string, dtype bindings.DType) error {
			return sampleCase(t, fx, a, tp, precision, dtype)
		})
	})
}

func sampleCase(t *testing.T, fx *golden.Fixture, a *tensor.Arena, tp *tensor.Tape, precision string, dtype bindings.DType) error {
	f, _ := openFlux(t, fx, a, dtype)
	m := &FluxIR{Base: f, Adapter: openAdapter(t, fx, a, f)}
	vae := openVAE(t, fx, a, dtype)
	o := SampleOptions{
		Steps: golden.Param[int](t, fx, "steps"), Start: golden.Param[float64](t, fx, "start"), Shift: true,
		Lambda: float32(golden.Param[float64](t, fx, "lambda")), Guidance: fx.Input(t, "g").Data[0],
	}
	zLQ := vae.Latent(tp, vae.Moments(tp, upload(tp, nhwc(fx.Input(t, "x_lq")))), nil)
	golden.Check(t, fx, "out.z_lq", nchw(t, zLQ, host(t, zLQ)), precision)
	times, err := o.Times(zLQ.Dim(1) / 2 * (zLQ.Dim(2) / 2))
	if err != nil {
		return err
	}
	golden.Check(t, fx, "out.sigmas", times, precision)

	z1 := nhwc(fx.Input(t, "z_1"))
	Blend(z1.Data, host(t, zLQ), o.Start)
	start := upload(tp, z1)
	path := nchw(t, start, z1.Data)
	z0, err := m.Sample(context.Background(), tp, start, zLQ, o, func(z *tensor.Tensor) { path = append(path, nchw(t, z, host(t, z))...) })
	if err != nil {
		return err
	}
	golden.Check(t, fx, "out.z_path", path, precision)
	image := vae.Decode(tp, z0)
	pixels := nchw(t, image, host(t, image))
	golden.Check(t, fx, "out.image", pixels, precision)
	if dtype == bindings.F32 && fx.Has(t, "u8.image") {
		golden8 := make([]uint8, len(pixels))
		for i, v := range pixels {
			golden8[i] = uint8(math.RoundToEven(255 * min(max(float64(v)/2+0.5, 0), 1)))
		}
		fx.CheckImage(t, golden8)
	}
	return tp.Err()
}

// A network that predicts samples and takes one step from noise returns its prediction bit for bit; with an output layer of 0 and
// lq_skip that is z_lq.
func TestSampleOneStep(t *testing.T) {
	onTape(t, func(a *tensor.Arena, tp *tensor.Tape) error {
		m, err := tinyFluxIR(a)
		if err != nil {
			return err
		}
		values := make([]float32, 2*4*6*12)
		Noise(values, 3, 0, 0)
		zLQ := tp.Upload(values, bindings.F32, 2, 4, 6, 12)
		Noise(values, 4, 0, 0)
		z1 := tp.Upload(values, bindings.F32, 2, 4, 6, 12)
		for _, steps := range []int{1, 3} {
			z0, err := m.Sample(context.Background(), tp, z1, zLQ, SampleOptions{Steps: steps, Start: 1, Shift: true, Lambda: 1}, nil)
			if err != nil {
				return err
			}
			got, want := host(t, z0), host(t, zLQ)
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("%d steps: element %d is %v, want z_lq's %v", steps, i, got[i], want[i])
				}
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		evaluated := 0
		_, err = m.Sample(ctx, tp, z1, zLQ, SampleOptions{Steps: 5, Start: 1, Lambda: 1}, func(*tensor.Tensor) { evaluated++; cancel() })
		if !errors.Is(err, context.Canceled) || evaluated != 1 {
			t.Errorf("cancelled after the first step: %v after %d steps", err, evaluated)
		}
		return nil
	})
}

// tinyFluxIR is a model whose weights are 0.01·N(0,1), norms included, with an output layer of 0.
func tinyFluxIR(a *tensor.Arena) (*FluxIR, error) {
	return tinyModel(a, bindings.F32, 0.01, func(*weights.FluxConfig) {})
}

// tinyModel is tinyFluxIR in dtype with another configuration and weights of another size.
func tinyModel(a *tensor.Arena, dtype bindings.DType, scale float32, change func(c *weights.FluxConfig)) (*FluxIR, error) {
	c := weights.FluxConfig{
		Class: "FluxTransformer2DModel", PatchSize: 1, InChannels: 48, OutChannels: 48, NumLayers: 1, NumSingleLayers: 1, AttentionHeadDim: 16,
		NumAttentionHeads: 2, JointAttentionDim: 8, PooledDim: 8, AxesDimsRope: []int{4, 6, 6}, Prediction: weights.PredictSample, LQSkip: true,
	}
	change(&c)
	base, err := NewFlux(a, c, dtype)
	if err != nil {
		return nil, err
	}
	adapter := DefaultAdapterConfig()
	adapter.TextTokens = 2
	ad, err := NewAdapter(a, &base.Config, adapter, dtype)
	if err != nil {
		return nil, err
	}
	for i, p := range append(append([]*tensor.Param{}, base.Params.List...), ad.Params.List...) {
		values := make([]float32, p.Value.Len())
		if !c.LQSkip || p.Name != "final_layer.linear.weight" && p.Name != "final_layer.linear.bias" {
			bindings.PhiloxNormal(values, 1, uint64(i), 0)
		}
		for j := range values {
			values[j] *= scale
		}
		if err := p.Set(values); err != nil {
			return nil, err
		}
	}
	return &FluxIR{Base: base, Adapter: ad}, nil
}
