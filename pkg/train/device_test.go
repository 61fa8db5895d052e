package train

import (
	"math"
	"os"
	"testing"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model/nano"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// nanoStep is what one training step of the embedded model makes: the velocity, the losses and, for all parameters of the adapter one after
// another, the gradients and the masters after AdamW.
type nanoStep map[string][]float32

// runNanoStep trains the embedded model's adapter for one step on a pair of 16×16 images.
func runNanoStep(t *testing.T, kind string, dtype bindings.DType) nanoStep {
	t.Helper()
	d, err := bindings.OpenDevice(kind, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s := nanoStep{}
	err = d.Do(func() error {
		a, tape := tensor.NewArena(d), tensor.NewTape(d)
		defer a.Free()
		defer tape.Free()
		b, err := nano.Load(a, dtype)
		if err != nil {
			return err
		}
		params := b.Net.Adapter.Params.List
		for _, p := range params {
			if err := p.Train(a, false); err != nil {
				return err
			}
		}
		tape.Record()
		loss := Loss{Flow: 1, Pixel: 1, Gamma: 1, Distance: "l1", Crop: 4}
		out, err := Losses(tape, b.Net, b.VAE, nil, nanoInput(b.VAE.Config.Factor(), b.VAE.Config.LatentChannels), loss)
		if err != nil {
			return err
		}
		if err := tape.Backward(out.Total); err != nil {
			return err
		}
		norm, err := tensor.Empty(a, bindings.F32, 1)
		if err != nil {
			return err
		}
		if err := tensor.SumSquares(d, norm, params); err != nil {
			return err
		}
		args := tensor.AdamW{LR: 1e-4, Beta1: 0.9, Beta2: 0.99, Eps: 1e-8, WeightDecay: 0.01, Clip: 1, Step: 1}
		if err := tensor.StepAdamW(d, params, norm, args); err != nil {
			return err
		}
		return s.read(params, map[string]*tensor.Tensor{"velocity": out.V, "flow": out.Flow, "pixel": out.Pixel, "norm": norm})
	})
	if err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	return s
}

func (s nanoStep) read(params []*tensor.Param, tensors map[string]*tensor.Tensor) (err error) {
	for name, x := range tensors {
		if s[name], err = x.Host(); err != nil {
			return err
		}
	}
	for _, p := range params {
		for name, x := range map[string]*tensor.Tensor{"gradients": p.Grad, "masters": p.Master} {
			v, err := x.Host()
			if err != nil {
				return err
			}
			s[name] = append(s[name], v...)
		}
	}
	return nil
}

func nanoInput(factor, channels int) StepInput {
	const size = 16
	in := StepInput{Batch: 1, Height: size, Width: size, Time: []float32{0.75}, Lambda: 1}
	in.HQ, in.LQ = make([]float32, size*size*3), make([]float32, size*size*3)
	bindings.PhiloxNormal(in.LQ, 5, 0, 0)
	for i := range in.HQ {
		in.HQ[i] = float32(math.Sin(float64(i)*0.05) * math.Cos(float64(i/size)*0.11))
		in.LQ[i] = in.HQ[i] + 0.1*in.LQ[i]
	}
	latent := size / factor
	in.Z1 = make([]float32, latent*latent*channels)
	bindings.PhiloxNormal(in.Z1, 6, 0, 0)
	in.Crop = Window{0, 0, latent, latent}
	return in
}

func rmsDistance(x, y []float32) float64 {
	var total float64
	for i := range x {
		d := float64(x[i]) - float64(y[i])
		total += d * d
	}
	return math.Sqrt(total / float64(len(x)))
}

// TestDeviceStep holds the device of FLUXIR_DEVICE against the CPU: forward, backward and optimizer step of the embedded model. In bf16 its distance from the CPU's
// f32 results may be twice that of the CPU's own bf16, three times for gradients. In f32, whose unit is 2^16 times finer, it may be a thousandth of it; Adam's first step
// has the gradients' signs, which turn where a gradient is near 0, so for the masters it may be as large.
func TestDeviceStep(t *testing.T) {
	kind := os.Getenv("FLUXIR_DEVICE")
	if kind == "" || kind == "cpu" {
		t.Skip("FLUXIR_DEVICE names no other device")
	}
	want, naive := runNanoStep(t, "cpu", bindings.F32), runNanoStep(t, "cpu", bindings.BF16)
	for dtype, factors := range map[bindings.DType][3]float64{bindings.BF16: {2, 3, 3}, bindings.F32: {1e-3, 1e-3, 1}} {
		got := runNanoStep(t, kind, dtype)
		for name, factor := range map[string]float64{"velocity": factors[0], "gradients": factors[1], "masters": factors[2]} {
			apart, allowed := rmsDistance(got[name], want[name]), factor*rmsDistance(naive[name], want[name])
			t.Logf("%v %s: rms distance %.3g, allowed %.3g", dtype, name, apart, allowed)
			if !(apart <= allowed) {
				t.Errorf("%v %s: rms distance from the CPU's f32 is %.3g, allowed %.3g", dtype, name, apart, allowed)
			}
		}
		t.Logf("%v: flow %v, pixel %v, squared norm %v; CPU f32 %v, %v, %v", dtype, got["flow"], got["pixel"], got["norm"], want["flow"], want["pixel"], want["norm"])
	}
}
