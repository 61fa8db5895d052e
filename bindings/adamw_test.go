package bindings

import (
	"testing"
	"unsafe"
)

func TestAdamWLayout(t *testing.T) {
	x := make([]float32, 6)
	p := AdamWParam{
		Param: unsafe.Pointer(&x[0]), DType: BF16, Master: unsafe.Pointer(&x[1]), M: unsafe.Pointer(&x[2]), V: unsafe.Pointer(&x[3]),
		Grad: unsafe.Pointer(&x[4]), EMA: unsafe.Pointer(&x[5]), N: 7,
	}
	c := first([]AdamWParam{p})
	if unsafe.Sizeof(p) != unsafe.Sizeof(*c) {
		t.Fatalf("size of AdamWParam %d, of fx_adamw_param %d", unsafe.Sizeof(p), unsafe.Sizeof(*c))
	}
	pointers := [5]unsafe.Pointer{unsafe.Pointer(c.master), unsafe.Pointer(c.m), unsafe.Pointer(c.v), unsafe.Pointer(c.grad), unsafe.Pointer(c.ema)}
	if c.param != p.Param || DType(c.dtype) != BF16 || pointers != [5]unsafe.Pointer{p.Master, p.M, p.V, p.Grad, p.EMA} || c.n != 7 {
		t.Fatalf("fx_adamw_param reads %+v of %+v", *c, p)
	}
	a := AdamWArgs{LR: 1, Beta1: 2, Beta2: 3, Eps: 4, WeightDecay: 5, Clip: 6, EMADecay: 8, Step: 7}
	ca := a.c()
	if unsafe.Sizeof(a) != unsafe.Sizeof(*ca) {
		t.Fatalf("size of AdamWArgs %d, of fx_adamw_args %d", unsafe.Sizeof(a), unsafe.Sizeof(*ca))
	}
	if ca.lr != 1 || ca.beta1 != 2 || ca.beta2 != 3 || ca.eps != 4 || ca.weight_decay != 5 || ca.clip != 6 || ca.ema_decay != 8 || ca.step != 7 {
		t.Fatalf("fx_adamw_args reads %+v of %+v", *ca, a)
	}
}
