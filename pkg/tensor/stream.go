package tensor

import (
	"fmt"
	"unsafe"

	"github.com/fluxir/fluxir/bindings"
)

// Stream lets a network run whose weights exceed the device. Its groups of frozen parameters, one per block of the network, live in host memory and pass through
// a few slots of the device, group i through slot i mod n, so that a parameter's address never changes. While the ops of one group run, the
// groups after it (on the way back: before it) are uploaded.
type Stream struct {
	device *bindings.Device
	slots  []slot
	groups []group
	bytes  int64 // of the slots
	last   int   // group used last
}

// StreamSlots is how many slots are enough: one group computes while the next is uploaded.
const StreamSlots = 2

// slot is device memory for one group.
type slot struct {
	data   unsafe.Pointer
	upload *bindings.Upload
	group  int  // that is there or on its way
	waited bool // ops wait for its upload
}

// group is the host's copy of a group's parameters.
type group struct {
	home *bindings.HostBuffer
	used int64
}

// home is where a streamed parameter's values are.
type home struct {
	stream *Stream
	group  int
	bytes  []byte
}

// NewStream makes a.Slots slots in a for groups of the given sizes (sums of ParamBytes) and the host memory for all groups. a.Free frees both.
func NewStream(a *Arena, sizes []int64) (*Stream, error) {
	if a.Slots < 2 || len(sizes) == 0 {
		panic(fmt.Sprintf("tensor: NewStream: %d slots for %d groups", a.Slots, len(sizes)))
	}
	s := &Stream{device: a.device, last: -1}
	a.streams = append(a.streams, s)
	largest := int64(0)
	for _, bytes := range sizes {
		largest = max(largest, bytes)
		b, err := a.device.NewHostBuffer(bytes)
		if err != nil {
			return nil, err
		}
		s.groups = append(s.groups, group{home: b})
	}
	for range min(a.Slots, len(sizes)) {
		data, err := a.alloc(largest)
		if err != nil {
			return nil, err
		}
		u, err := a.device.NewUpload()
		if err != nil {
			return nil, err
		}
		s.slots, s.bytes = append(s.slots, slot{data: data, upload: u, group: -1}), s.bytes+largest
	}
	return s, nil
}

// ParamBytes is what a parameter takes in a group.
func ParamBytes(dtype bindings.DType, shape ...int) int64 {
	return roundUp(int64(numel(shape)) * int64(dtype.Size()))
}

// NewParam adds a frozen parameter to a group, contents undefined.
func (s *Stream) NewParam(a *Arena, i int, name string, dtype bindings.DType, shape ...int) *Param {
	g := &s.groups[i]
	root := &storage{dtype: dtype, shape: append([]int(nil), shape...), arena: a}
	root.data = unsafe.Add(s.slots[i%len(s.slots)].data, g.used)
	root.home = &home{s, i, g.home.Bytes()[g.used : g.used+root.bytes()]}
	g.used += ParamBytes(dtype, shape...)
	p := &Param{Name: name, Value: root.whole()}
	root.param = p
	return p
}

// Use makes group i's values the ones that ops called after it read, until other groups take its slot: those after or before it only once they are used.
// Nil receivers do nothing: all weights are on the device.
func (s *Stream) Use(t *Tape, i int) {
	if s != nil && i != s.last {
		t.run("stream", func() error { return s.use(i) })
	}
}

// UseOnWayBack follows the ops of group i: on the way back it is used again when they are reached.
func (s *Stream) UseOnWayBack(t *Tape, i int) {
	if s != nil {
		t.Mark(func() { s.Use(t, i) })
	}
}

func (s *Stream) use(i int) error {
	step := 1
	if i == s.last-1 {
		step = -1
	}
	s.last = i
	if err := s.start(i); err != nil {
		return err
	}
	if here := &s.slots[i%len(s.slots)]; !here.waited {
		if err := here.upload.Wait(); err != nil {
			return err
		}
		here.waited = true
	}
	for n := 1; n < len(s.slots); n++ {
		if next := i + step*n; next >= 0 && next < len(s.groups) {
			if err := s.start(next); err != nil {
				return err
			}
		}
	}
	return nil
}

// start uploads a group into its slot unless it is there. The ops called so far may use what was there before.
func (s *Stream) start(i int) error {
	x := &s.slots[i%len(s.slots)]
	if x.group == i {
		return nil
	}
	x.group, x.waited = i, false
	return x.upload.Start(x.data, s.groups[i].home)
}

// write replaces a parameter's values in host memory, which no upload may be reading, and in the slot.
func (h *home) write(values []byte) error {
	s := h.stream
	if x := &s.slots[h.group%len(s.slots)]; x.group == h.group {
		if err := x.upload.Wait(); err != nil {
			return err
		}
		if err := s.device.Sync(); err != nil {
			return err
		}
		x.group, s.last = -1, -1
	}
	copy(h.bytes, values)
	return nil
}

// free ends all uploads and returns the host memory.
func (s *Stream) free() {
	for i := range s.slots {
		s.slots[i].upload.Wait()
	}
	s.device.Sync()
	for i := range s.slots {
		s.slots[i].upload.Free()
	}
	for i := range s.groups {
		s.groups[i].home.Free()
	}
	s.slots, s.groups = nil, nil
}
