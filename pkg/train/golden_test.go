package train

import (
	"math"
	"testing"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/internal/golden"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// goldenAdamW is params.adamw of a train fixture.
type goldenAdamW struct {
	LR          float64    `json:"lr"`
	Betas       [2]float64 `json:"betas"`
	Eps         float64    `json:"eps"`
	WeightDecay float64    `json:"weight_decay"`
	Clip        float64    `json:"clip"`
	Steps       int        `json:"steps"`
}

// TestGoldenTrain checks every tensor of one training step, and in f32 the parameters after the fixture's optimizer steps.
func TestGoldenTrain(t *testing.T) {
	golden.ForEach(t, []string{"train"}, func(t *testing.T, fx *golden.Fixture) {
		for _, p := range []struct {
			name  string
			dtype bindings.DType
		}{{golden.F32, bindings.F32}, {golden.BF16, bindings.BF16}} {
			withDevice(t, func(d *bindings.Device) error {
				a, tp := tensor.NewArena(d), tensor.NewTape(d)
				defer a.Free()
				defer tp.Free()
				return trainFixture(t, fx, a, tp, p.name, p.dtype)
			})
		}
	})
}

func withDevice(t *testing.T, f func(d *bindings.Device) error) {
	t.Helper()
	d, err := bindings.OpenDevice("cpu", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Do(func() error { return f(d) }); err != nil {
		t.Fatal(err)
	}
}

func trainFixture(t *testing.T, fx *golden.Fixture, a *tensor.Arena, tp *tensor.Tape, precision string, dtype bindings.DType) error {
	net, vae := goldenModels(t, fx, a, dtype)
	params := net.Adapter.Params.List
	for _, p := range params {
		if err := p.Train(a, false); err != nil {
			return err
		}
	}
	in, loss := goldenInput(t, fx)
	opt := golden.Param[goldenAdamW](t, fx, "adamw")

	tp.Record()
	out, err := Losses(tp, net, vae, nil, in, loss)
	if err != nil {
		return err
	}
	checkOutputs(t, fx, out, precision)
	if err := checkDistances(t, fx, tp, out, in, loss, vae, precision); err != nil {
		return err
	}
	if err := tp.Backward(out.Total); err != nil {
		return err
	}
	specs := model.AdapterParams(&net.Base.Config, net.Adapter.Config)
	for i, p := range params {
		golden.Check(t, fx, "grad."+specs[i].Name, read(t, p.Grad), precision)
	}
	if dtype != bindings.F32 {
		return nil // the fixture's steps are in f32
	}
	return optimizerSteps(t, fx, tp, net, vae, in, loss, opt)
}

func optimizerSteps(t *testing.T, fx *golden.Fixture, tp *tensor.Tape, net *model.FluxIR, vae *model.VAE, in StepInput, loss Loss, opt goldenAdamW) error {
	d, params := tp.Device(), net.Adapter.Params.List
	var losses, norms []float32
	for step := 0; ; step++ {
		tp.Reset()
		if err := tensor.ZeroGrad(d, params); err != nil {
			return err
		}
		tp.Record()
		out, err := Losses(tp, net, vae, nil, in, loss)
		if err != nil {
			return err
		}
		losses = append(losses, read(t, out.Total)[0])
		if step == opt.Steps {
			break
		}
		if err := tp.Backward(out.Total); err != nil {
			return err
		}
		norm := tp.New(bindings.F32, 1)
		if err := tensor.SumSquares(d, norm, params); err != nil {
			return err
		}
		norms = append(norms, float32(math.Sqrt(float64(read(t, norm)[0]))))
		err = tensor.StepAdamW(d, params, norm, tensor.AdamW{LR: float32(opt.LR), Beta1: float32(opt.Betas[0]), Beta2: float32(opt.Betas[1]),
			Eps: float32(opt.Eps), WeightDecay: float32(opt.WeightDecay), Clip: float32(opt.Clip), Step: int64(step + 1)})
		if err != nil {
			return err
		}
	}
	golden.Check(t, fx, "out.losses", losses, golden.F32)
	golden.Check(t, fx, "out.grad_norms", norms, golden.F32)
	for _, p := range params {
		golden.Check(t, fx, "final."+p.Name, read(t, p.Master), golden.F32)
	}
	return nil
}

// goldenModels loads the fixture's three models.
func goldenModels(t *testing.T, fx *golden.Fixture, a *tensor.Arena, dtype bindings.DType) (*model.FluxIR, *model.VAE) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	open := func(role string) weights.Source {
		src, err := weights.OpenSet(fx.Model(t, role))
		must(err)
		t.Cleanup(func() { src.Close() })
		return src
	}
	fluxConfig, err := weights.ReadFluxConfig(fx.Model(t, "transformer"))
	must(err)
	base, err := model.LoadFlux(a, open("transformer"), *fluxConfig, dtype)
	must(err)
	c := model.DefaultAdapterConfig()
	c.BaseText = golden.Param[string](t, fx, "base_text")
	adapter, err := model.LoadAdapter(a, open("adapter"), &base.Config, c, dtype)
	must(err)
	vaeConfig, err := weights.ReadVAEConfig(fx.Model(t, "vae"))
	must(err)
	vae, err := model.LoadVAE(a, open("vae"), *vaeConfig, dtype)
	must(err)
	return &model.FluxIR{Base: base, Adapter: adapter}, vae
}

func goldenInput(t *testing.T, fx *golden.Fixture) (StepInput, Loss) {
	t.Helper()
	hq := fx.Input(t, "x_hq")
	crop := golden.Param[[4]int](t, fx, "crop")
	in := StepInput{
		Batch: hq.Shape[0], Height: hq.Shape[2], Width: hq.Shape[3], HQ: nhwc(hq), LQ: nhwc(fx.Input(t, "x_lq")), Eps: nhwc(fx.Input(t, "eps")),
		Z1: nhwc(fx.Input(t, "z_1")), Time: fx.Input(t, "t").Data, Guidance: fx.Input(t, "g").Data,
		Crop: Window{crop[0], crop[1], crop[2], crop[3]}, Lambda: float32(golden.Param[float64](t, fx, "lambda")),
	}
	return in, Loss{
		Flow: 1, Pixel: golden.Param[float64](t, fx, "lambda_px"), Gamma: golden.Param[float64](t, fx, "gamma"),
		Distance: golden.Param[string](t, fx, "px_loss"), Margin: golden.Param[int](t, fx, "margin"),
	}
}

func checkOutputs(t *testing.T, fx *golden.Fixture, out StepOutput, precision string) {
	t.Helper()
	for name, x := range map[string]*tensor.Tensor{
		"out.z_0": out.Z0, "out.z_lq": out.ZLQ, "out.z_t": out.ZT, "out.v": out.V, "out.z0_hat": out.Z0Hat, "out.decoded_crop": out.Decoded,
	} {
		golden.Check(t, fx, name, nchw(x, read(t, x)), precision)
	}
	golden.Check(t, fx, "out.L_fm", read(t, out.Flow), precision)
	golden.Check(t, fx, "out.L_px", read(t, out.Pixel), precision)
	golden.Check(t, fx, "out.loss", read(t, out.Total), precision)
}

// checkDistances compares the pixel loss under each of the three distances.
func checkDistances(t *testing.T, fx *golden.Fixture, tp *tensor.Tape, out StepOutput, in StepInput, loss Loss, vae *model.VAE, precision string) error {
	t.Helper()
	weight := tp.Upload(mapped(in.Time, func(v float32) float32 { return float32(math.Pow(1-float64(v), loss.Gamma)) }), bindings.F32, in.Batch)
	var all []float32
	for _, name := range []string{"l1", "l2", "charbonnier"} {
		distance, err := ParseDistance(name)
		if err != nil {
			return err
		}
		all = append(all, read(t, tp.PixelLoss(out.Decoded, targetCrop(tp, vae, in), weight, distance))[0])
	}
	golden.Check(t, fx, "out.L_px_l1_l2_charbonnier", all, precision)
	return tp.Err()
}

func read(t *testing.T, x *tensor.Tensor) []float32 {
	t.Helper()
	v, err := x.Host()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// nhwc reorders [B,C,Y,X] to [B,Y,X,C].
func nhwc(v golden.Array) []float32 {
	b, c, n := v.Shape[0], v.Shape[1], v.Shape[2]*v.Shape[3]
	return transposed(v.Data, b, c, n)
}

// nchw is the inverse, for x's values.
func nchw(x *tensor.Tensor, values []float32) []float32 {
	return transposed(values, x.Dim(0), x.Dim(1)*x.Dim(2), x.Dim(3))
}

// transposed swaps the last two dimensions of [b,m,n].
func transposed(v []float32, b, m, n int) []float32 {
	out := make([]float32, len(v))
	for i := range b {
		for j := range m {
			for k := range n {
				out[(i*n+k)*m+j] = v[(i*m+j)*n+k]
			}
		}
	}
	return out
}
