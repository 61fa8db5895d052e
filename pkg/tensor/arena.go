package tensor

import (
	"unsafe"

	"github.com/fluxir/fluxir/bindings"
)

const (
	alignment = 64
	minBlock  = 16 << 20
)

// Arena hands out device memory that is freed all at once. Blocks stay allocated across Reset, so that a steady step allocates nothing; a released
// piece is handed out again for the next request of the same size, which keeps gradients in memory that is still in cache.
type Arena struct {
	// Slots, where not 0, is a policy for weights: the blocks of a transformer made in this arena live in host memory and pass through so many slots of
	// the device, at least 2 (Stream).
	Slots int

	device *bindings.Device
	blocks []*bindings.Buffer
	block  int   // index of the block in use
	used   int64 // bytes used in it
	free   map[int64][]unsafe.Pointer

	streams []*Stream
}

// Dry tells whether the arena's device holds no values.
func (a *Arena) Dry() bool { return a.device.Dry() }

// NewArena returns an empty arena. Its methods are called inside Device.Do.
func NewArena(d *bindings.Device) *Arena {
	return &Arena{device: d, free: map[int64][]unsafe.Pointer{}}
}

// alloc returns bytes of device memory, aligned to 64, contents undefined.
func (a *Arena) alloc(bytes int64) (unsafe.Pointer, error) {
	bytes = roundUp(bytes)
	if list := a.free[bytes]; len(list) > 0 {
		a.free[bytes] = list[:len(list)-1]
		return list[len(list)-1], nil
	}
	for ; a.block < len(a.blocks); a.block, a.used = a.block+1, 0 {
		if b := a.blocks[a.block]; a.used+bytes <= b.Bytes() {
			p := unsafe.Add(b.Data(), a.used)
			a.used += bytes
			return p, nil
		}
	}
	b, err := a.device.NewBuffer(max(bytes, minBlock))
	if err != nil {
		return nil, err
	}
	a.blocks = append(a.blocks, b)
	a.used = bytes
	return b.Data(), nil
}

// release gives memory of alloc(bytes) back for reuse before the Reset.
func (a *Arena) release(p unsafe.Pointer, bytes int64) {
	bytes = roundUp(bytes)
	a.free[bytes] = append(a.free[bytes], p)
}

// Reset declares everything handed out as unused; the blocks are kept. Tensors made from the arena must not be used again.
func (a *Arena) Reset() {
	a.block, a.used = 0, 0
	clear(a.free)
}

// Bytes is the size of all blocks.
func (a *Arena) Bytes() int64 {
	n := int64(0)
	for _, b := range a.blocks {
		n += b.Bytes()
	}
	return n
}

// SlotBytes is the size of all slots of streams.
func (a *Arena) SlotBytes() int64 {
	n := int64(0)
	for _, s := range a.streams {
		n += s.bytes
	}
	return n
}

// Free returns all blocks to the device. The arena is empty afterwards and may be used again.
func (a *Arena) Free() {
	for _, s := range a.streams {
		s.free()
	}
	a.streams = nil
	for _, b := range a.blocks {
		b.Free()
	}
	a.blocks = nil
	a.Reset()
}

func roundUp(bytes int64) int64 { return (max(bytes, 1) + alignment - 1) / alignment * alignment }
