package tensor

import (
	"fmt"

	"github.com/fluxir/fluxir/bindings"
)

// Param is a named weight. Value is the working copy that ops read. A trained parameter also has, in F32, the master copy (Value itself where that is
// F32), the gradient, Adam's two moments and, if asked for, an exponential moving average of the master.
type Param struct {
	Name             string
	Value            *Tensor
	Master, Grad     *Tensor
	Moment1, Moment2 *Tensor
	EMA              *Tensor
}

// NewParam allocates a frozen parameter from a, contents undefined.
func NewParam(a *Arena, name string, dtype bindings.DType, shape ...int) (*Param, error) {
	v, err := newTensor(a, dtype, shape...)
	p := &Param{Name: name, Value: v}
	v.root.param = p
	return p, err
}

// Set gives the parameter its values, in every copy.
func (p *Param) Set(values []float32) error {
	for _, t := range []*Tensor{p.Value, p.Master, p.EMA} {
		if t == nil {
			continue
		}
		if err := t.Set(values); err != nil {
			return err
		}
	}
	return nil
}

// Trained tells whether Train has been called.
func (p *Param) Trained() bool { return p.Grad != nil }

// Streamed tells whether the values lie in host memory (Stream).
func (p *Param) Streamed() bool { return p.Value.root.home != nil }

// Train makes the parameter trainable: allocates its F32 state from a, the master holding Value's values, gradient and moments 0, and the average, if
// wanted, the master's values.
func (p *Param) Train(a *Arena, average bool) error {
	if p.Streamed() {
		return fmt.Errorf("%s: a streamed parameter cannot be trained", p.Name)
	}
	values, err := p.Value.Host()
	if err != nil {
		return err
	}
	shape, zeros := p.Value.Shape(), make([]float32, len(values))
	p.Master = p.Value
	if p.Value.DType() != bindings.F32 {
		if p.Master, err = FromHost(a, values, bindings.F32, shape...); err != nil {
			return err
		}
	}
	for _, t := range []**Tensor{&p.Grad, &p.Moment1, &p.Moment2} {
		if *t, err = FromHost(a, zeros, bindings.F32, shape...); err != nil {
			return err
		}
	}
	if average {
		if p.EMA, err = FromHost(a, values, bindings.F32, shape...); err != nil {
			return err
		}
	}
	p.Value.root.needsGrad = true
	return nil
}

// AdamW holds the constants of an optimizer step; see fx_adamw_step.
type AdamW = bindings.AdamWArgs

// ZeroGrad clears the gradients of trained parameters.
func ZeroGrad(d *bindings.Device, params []*Param) error {
	for _, p := range params {
		if err := d.Fill(p.Grad.view, 0); err != nil {
			return err
		}
	}
	return nil
}

// SumSquares computes the square of the global gradient norm into out, one F32 element, without waiting for the device.
func SumSquares(d *bindings.Device, out *Tensor, params []*Param) error {
	return d.GradSumSquares(out.view, adamwParams(params))
}

// AllReduceStart begins to replace F32 tensors by their sums over the processes of c; see bindings.Comm.
func AllReduceStart(c *bindings.Comm, d *bindings.Device, list []*Tensor) error {
	views := make([]bindings.Tensor, len(list))
	for i, t := range list {
		views[i] = *t.view
	}
	return c.AllReduceStart(d, views)
}

// StepAdamW updates the parameters and their averages. sumSquares is of all parameters that are clipped together, nil without clipping.
func StepAdamW(d *bindings.Device, params []*Param, sumSquares *Tensor, args AdamW) error {
	return d.AdamWStep(adamwParams(params), sumSquares.optional(), &args)
}

func adamwParams(params []*Param) []bindings.AdamWParam {
	list := make([]bindings.AdamWParam, len(params))
	for i, p := range params {
		list[i] = bindings.AdamWParam{
			Param: p.Value.view.Data, DType: p.Value.DType(), Master: p.Master.view.Data, M: p.Moment1.view.Data,
			V: p.Moment2.view.Data, Grad: p.Grad.view.Data, N: int64(p.Value.Len()),
		}
		if p.EMA != nil {
			list[i].EMA = p.EMA.view.Data
		}
	}
	return list
}

// optional is t's view for an argument that may be absent.
func (t *Tensor) optional() *bindings.Tensor {
	if t == nil {
		return nil
	}
	return t.view
}
