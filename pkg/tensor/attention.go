package tensor

import "github.com/fluxir/fluxir/bindings"

// QKNorm is what an attention does to its queries and keys first: RMSNorm per token and head with the weights [D] Query[0] and Key[0] for the tokens
// before Split, [1] for the others, then rotation by PE (RopeTable) [L,D/2,2].
type QKNorm struct {
	Query, Key [2]*Tensor // of no token: nil
	PE         *Tensor
	Split      int
	Eps        float32
}

// device is the norm as the device takes it, with the gradients of trained weights where they are wanted.
func (n *QKNorm) device(grads bool) *bindings.QKNorm {
	if n == nil {
		return nil
	}
	d := &bindings.QKNorm{PE: n.PE.optional(), Split: n.Split, Eps: n.Eps}
	for i := range 2 {
		d.Query[i], d.Key[i] = n.Query[i].optional(), n.Key[i].optional()
		if grads {
			d.DQuery[i], d.DKey[i] = n.Query[i].paramGrad(), n.Key[i].paramGrad()
		}
	}
	return d
}

// AttentionTo is softmax(scale q kᵀ) v per head into o, q and k as norm makes them; nil: as they are. q, o [B,Lq,H,D]; k, v [B,Lk,H,D]; o may be a view
// of a tensor from New.
func (t *Tape) AttentionTo(o, q, k, v *Tensor, norm *QKNorm, scale float32) {
	var lse *Tensor
	inputs := []*Tensor{q, k, v}
	grads := t.grads(inputs...)
	if norm != nil {
		grads = grads || t.grads(norm.Query[0], norm.Query[1], norm.Key[0], norm.Key[1])
	}
	if grads {
		lse = t.alloc(bindings.F32, q.Dim(0), q.Dim(2), q.Dim(1))
	}
	flops := 4 * int64(q.Len()) * int64(k.Dim(1)) // two products
	t.flops += flops
	t.run("attention", func() error {
		return t.device.AttentionForward(o.view, lse.optional(), q.view, k.view, v.view, norm.device(false), scale)
	})
	if !grads {
		return
	}
	t.push("attention", o, []*Tensor{lse}, func() error {
		t.flops += flops * 5 / 2 // five products
		return t.contributeAll(inputs, func(d []*bindings.Tensor) error {
			for i, x := range inputs { // the kernel makes all three
				if d[i] == nil {
					unwanted := t.allocLike(x)
					defer unwanted.root.recycle()
					d[i] = unwanted.view
				}
			}
			return t.device.AttentionBackward(d[0], d[1], d[2], o.grad(), q.view, k.view, v.view, o.view, lse.view, norm.device(true), scale)
		})
	})
}
