package tensor

import "github.com/fluxir/fluxir/bindings"

// AttentionTo is softmax(scale q kᵀ) v per head into o. q, o [B,Lq,H,D]; k, v [B,Lk,H,D]; o may be a view of a tensor from New.
func (t *Tape) AttentionTo(o, q, k, v *Tensor, scale float32) {
	var lse *Tensor
	grads := t.grads(q, k, v)
	if grads {
		lse = t.alloc(bindings.F32, q.Dim(0), q.Dim(2), q.Dim(1))
	}
	flops := 4 * int64(q.Len()) * int64(k.Dim(1)) // two products
	t.flops += flops
	t.run("attention", func() error {
		return t.device.AttentionForward(o.view, lse.optional(), q.view, k.view, v.view, scale)
	})
	if !grads {
		return
	}
	t.push("attention", o, []*Tensor{lse}, func() error {
		t.flops += flops * 5 / 2 // five products
		inputs := []*Tensor{q, k, v}
		return t.contributeAll(inputs, func(d []*bindings.Tensor) error {
			for i, x := range inputs { // the kernel makes all three
				if d[i] == nil {
					unwanted := t.allocLike(x)
					defer unwanted.root.recycle()
					d[i] = unwanted.view
				}
			}
			return t.device.AttentionBackward(d[0], d[1], d[2], o.grad(), q.view, k.view, v.view, o.view, lse.view, scale)
		})
	})
}
