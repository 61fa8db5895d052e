package model

import (
	"testing"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/internal/golden"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

var precisions = []struct {
	name  string
	dtype bindings.DType
}{{golden.F32, bindings.F32}, {golden.BF16, bindings.BF16}}

// onTape runs f on a CPU device with an arena for weights and a tape, and fails the test on an error.
func onTape(t *testing.T, f func(a *tensor.Arena, tp *tensor.Tape) error) {
	t.Helper()
	d, err := bindings.OpenDevice("cpu", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	err = d.Do(func() error {
		a, tp := tensor.NewArena(d), tensor.NewTape(d)
		defer a.Free()
		defer tp.Free()
		return f(a, tp)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// eachPrecision runs f for f32 and bf16, where the fixture has a bound for it.
func eachPrecision(t *testing.T, fx *golden.Fixture, probe string, f func(a *tensor.Arena, tp *tensor.Tape, precision string, dtype bindings.DType) error) {
	for _, p := range precisions {
		bound := fx.NErr[probe]
		if (p.dtype == bindings.F32 && bound.F32 == nil) || (p.dtype == bindings.BF16 && bound.BF16 == nil) {
			continue
		}
		onTape(t, func(a *tensor.Arena, tp *tensor.Tape) error { return f(a, tp, p.name, p.dtype) })
	}
}

func upload(tp *tensor.Tape, v golden.Array) *tensor.Tensor {
	return tp.Upload(v.Data, bindings.F32, v.Shape...)
}

// nhwc reorders [B,C,Y,X] to [B,Y,X,C].
func nhwc(v golden.Array) golden.Array {
	b, c, y, x := v.Shape[0], v.Shape[1], v.Shape[2], v.Shape[3]
	out := golden.Array{Shape: []int{b, y, x, c}, Data: make([]float32, len(v.Data))}
	for i := range b {
		for j := range c {
			for k := range y * x {
				out.Data[(i*y*x+k)*c+j] = v.Data[(i*c+j)*y*x+k]
			}
		}
	}
	return out
}

// nchw is the inverse, of a tensor.
func nchw(t *testing.T, x *tensor.Tensor, values []float32) []float32 {
	t.Helper()
	b, y, w, c := x.Dim(0), x.Dim(1), x.Dim(2), x.Dim(3)
	out := make([]float32, len(values))
	for i := range b {
		for k := range y * w {
			for j := range c {
				out[(i*c+j)*y*w+k] = values[(i*y*w+k)*c+j]
			}
		}
	}
	return out
}

func host(t *testing.T, x *tensor.Tensor) []float32 {
	t.Helper()
	v, err := x.Host()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func grad(t *testing.T, x *tensor.Tensor) []float32 {
	t.Helper()
	v, err := x.Grad()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func trainAll(a *tensor.Arena, ps *Params) error {
	for _, p := range ps.List {
		if err := p.Train(a, false); err != nil {
			return err
		}
	}
	return nil
}

// checkGrads compares the gradients of parameters under the names of the file.
func checkGrads(t *testing.T, fx *golden.Fixture, ps *Params, specs []weights.Param, precision string) {
	t.Helper()
	for i := range specs {
		values := grad(t, ps.List[i].Value)
		for j, part := range weights.Split(&specs[i], values) {
			golden.Check(t, fx, "grad."+specs[i].Parts[j].Name, part, precision)
		}
	}
}

// openFlux reads the fixture's transformer.
func openFlux(t *testing.T, fx *golden.Fixture, a *tensor.Arena, dtype bindings.DType) (*Flux, weights.Layout) {
	t.Helper()
	path := fx.Model(t, "transformer")
	c, err := weights.ReadFluxConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	src, err := weights.OpenSet(path)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	layout, err := weights.DetectFlux(src)
	if err != nil {
		t.Fatal(err)
	}
	f, err := LoadFlux(a, src, *c, dtype)
	if err != nil {
		t.Fatal(err)
	}
	return f, layout
}

func TestGoldenFlux(t *testing.T) {
	golden.ForEach(t, []string{"flux"}, func(t *testing.T, fx *golden.Fixture) {
		eachPrecision(t, fx, "out.v", func(a *tensor.Arena, tp *tensor.Tape, precision string, dtype bindings.DType) error {
			f, layout := openFlux(t, fx, a, dtype)
			grads := golden.Param[bool](t, fx, "grads")
			if grads {
				if err := trainAll(a, f.Params); err != nil {
					return err
				}
				tp.Record()
			}
			z := tp.Input(upload(tp, fx.Input(t, "hidden_states")))
			txt := tp.Input(upload(tp, fx.Input(t, "encoder_hidden_states")))
			pooled := tp.Input(upload(tp, fx.Input(t, "pooled_projections")))
			in := Input{Z: z, Prompt: txt, Pooled: pooled, Time: fx.Input(t, "timestep").Data}
			if f.Config.GuidanceEmbeds {
				in.Guidance = fx.Input(t, "guidance").Data
			}
			grid := golden.Param[[2]int](t, fx, "grid")
			in.Rows, in.Columns = grid[0], grid[1]
			out := (&FluxIR{Base: f}).Forward(tp, in)
			golden.Check(t, fx, "out.v", host(t, out.V), precision)
			if !grads {
				return tp.Err()
			}
			if err := tp.BackwardFrom([]*tensor.Tensor{out.V}, []*tensor.Tensor{upload(tp, fx.Input(t, "cotangent"))}); err != nil {
				return err
			}
			golden.Check(t, fx, "grad.in.hidden_states", grad(t, z), precision)
			golden.Check(t, fx, "grad.in.encoder_hidden_states", grad(t, txt), precision)
			golden.Check(t, fx, "grad.in.pooled_projections", grad(t, pooled), precision)
			checkGrads(t, fx, f.Params, weights.FluxParams(&f.Config, layout), precision)
			return nil
		})
	})
}

func TestGoldenFluxIR(t *testing.T) {
	golden.ForEach(t, []string{"fluxir"}, func(t *testing.T, fx *golden.Fixture) {
		eachPrecision(t, fx, "out.v", func(a *tensor.Arena, tp *tensor.Tape, precision string, dtype bindings.DType) error {
			for _, recompute := range []bool{false, true} {
				if err := fluxirCase(t, fx, a, tp, precision, dtype, recompute); err != nil {
					return err
				}
				tp.Reset()
			}
			return nil
		})
	})
}

// openAdapter reads the fixture's adapter for base f.
func openAdapter(t *testing.T, fx *golden.Fixture, a *tensor.Arena, f *Flux) *Adapter {
	t.Helper()
	src, err := weights.OpenSet(fx.Model(t, "adapter"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	c := DefaultAdapterConfig()
	c.BaseText = golden.Param[string](t, fx, "base_text")
	ad, err := LoadAdapter(a, src, &f.Config, c, f.DType)
	if err != nil {
		t.Fatal(err)
	}
	return ad
}

func fluxirCase(t *testing.T, fx *golden.Fixture, a *tensor.Arena, tp *tensor.Tape, precision string, dtype bindings.DType, recompute bool) error {
	f, _ := openFlux(t, fx, a, dtype)
	m := &FluxIR{Base: f, Adapter: openAdapter(t, fx, a, f), Recompute: recompute}
	if err := trainAll(a, m.Adapter.Params); err != nil {
		return err
	}
	tp.Record()
	grid := golden.Param[[2]int](t, fx, "grid")
	in := Input{
		Z: tp.Input(upload(tp, fx.Input(t, "z_t"))), LQ: tp.Input(upload(tp, fx.Input(t, "z_lq"))), Time: fx.Input(t, "t").Data,
		Rows: grid[0], Columns: grid[1], Lambda: float32(golden.Param[float64](t, fx, "lambda")),
	}
	if f.Config.GuidanceEmbeds {
		in.Guidance = fx.Input(t, "g").Data
	}
	if m.Adapter.Config.BaseText == TextPrompt {
		in.Prompt, in.Pooled = upload(tp, fx.Input(t, "prompt_embeds")), upload(tp, fx.Input(t, "pooled"))
	}
	out := m.Forward(tp, in)
	golden.Check(t, fx, "out.v", host(t, out.V), precision)
	golden.Check(t, fx, "out.f_z", host(t, out.FImg), precision)
	golden.Check(t, fx, "out.f_p", host(t, out.FTxt), precision)
	if err := tp.BackwardFrom([]*tensor.Tensor{out.V}, []*tensor.Tensor{upload(tp, fx.Input(t, "cotangent"))}); err != nil {
		return err
	}
	golden.Check(t, fx, "grad.in.z_t", grad(t, in.Z), precision)
	golden.Check(t, fx, "grad.in.z_lq", grad(t, in.LQ), precision)
	checkGrads(t, fx, m.Adapter.Params, AdapterParams(&f.Config, m.Adapter.Config), precision)
	return nil
}

func TestGoldenVAE(t *testing.T) {
	golden.ForEach(t, []string{"vae"}, func(t *testing.T, fx *golden.Fixture) {
		eachPrecision(t, fx, "out.mean", func(a *tensor.Arena, tp *tensor.Tape, precision string, dtype bindings.DType) error {
			return vaeCase(t, fx, a, tp, precision, dtype)
		})
	})
}

// openVAE reads the fixture's autoencoder.
func openVAE(t *testing.T, fx *golden.Fixture, a *tensor.Arena, dtype bindings.DType) *VAE {
	t.Helper()
	path := fx.Model(t, "vae")
	c, err := weights.ReadVAEConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	src, err := weights.OpenSet(path)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	v, err := LoadVAE(a, src, *c, dtype)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func vaeCase(t *testing.T, fx *golden.Fixture, a *tensor.Arena, tp *tensor.Tape, precision string, dtype bindings.DType) error {
	v := openVAE(t, fx, a, dtype)
	image, eps := nhwc(fx.Input(t, "image")), nhwc(fx.Input(t, "eps"))
	check := func(name string, x *tensor.Tensor) { golden.Check(t, fx, name, nchw(t, x, host(t, x)), precision) }
	c := v.Config.LatentChannels

	// Values, and the gradients of the encoder's mean with respect to the image and of the decoder with respect to the latent.
	tp.Record()
	x := tp.Input(upload(tp, image))
	moments := v.Moments(tp, x)
	mean := moments.Slice(3, 0, c)
	check("out.mean", mean)
	logvar := host(t, moments.Slice(3, c, 2*c))
	for i, l := range logvar {
		logvar[i] = min(max(l, -30), 20)
	}
	golden.Check(t, fx, "out.logvar", nchw(t, mean, logvar), precision)
	check("out.sample", v.Latent(tp, moments, upload(tp, eps)))
	cotMean := tp.Cast(upload(tp, nhwc(fx.Input(t, "cot_mean"))), dtype)
	if err := tp.BackwardFrom([]*tensor.Tensor{mean}, []*tensor.Tensor{cotMean}); err != nil {
		return err
	}
	golden.Check(t, fx, "grad.in.image", nchw(t, x, grad(t, x)), precision)
	tp.Reset()

	tp.Record()
	z := tp.Input(upload(tp, nhwc(fx.Input(t, "z"))))
	decoded := v.Decode(tp, z)
	check("out.decode", decoded)
	cotDecode := tp.Cast(upload(tp, nhwc(fx.Input(t, "cot_decode"))), dtype)
	if err := tp.BackwardFrom([]*tensor.Tensor{decoded}, []*tensor.Tensor{cotDecode}); err != nil {
		return err
	}
	golden.Check(t, fx, "grad.in.z", nchw(t, z, grad(t, z)), precision)
	tp.Reset()

	// The autoencoder's own loss, L1 + 1e-6 KL, and the gradients of all parameters.
	if err := trainAll(a, v.Params); err != nil {
		return err
	}
	tp.Record()
	moments = v.Moments(tp, upload(tp, image))
	ae := v.DecodeUnscaled(tp, tp.Gaussian(moments, upload(tp, eps), 0, 1, dtype))
	check("out.ae_image", ae)
	l1 := tp.PixelLoss(ae, upload(tp, image), nil, bindings.DistanceL1)
	kl := tp.GaussianKL(moments)
	golden.Check(t, fx, "out.ae_l1", host(t, l1), precision)
	golden.Check(t, fx, "out.ae_kl", host(t, kl), precision)
	loss := tp.Axpby(l1, kl, tp.Fill(tp.New(bindings.F32, 1), 1), tp.Fill(tp.New(bindings.F32, 1), 1e-6), bindings.F32)
	if err := tp.Backward(loss); err != nil {
		return err
	}
	checkGrads(t, fx, v.Params, weights.VAEParams(&v.Config, weights.Diffusers), precision)
	return nil
}
