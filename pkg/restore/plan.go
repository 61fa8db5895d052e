package restore

import (
	"context"
	"fmt"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// Where the weights of the transformer's blocks lie, Options.Stream.
const (
	StreamAuto = "auto" // on the device where the plan says that the model fits, else streamed
	StreamOn   = "on"   // in host memory, each block's uploaded while the block before it computes
	StreamOff  = "off"  // on the device
)

const (
	// unseen is what the plan, made on the dry device, does not see of a card: cuBLASLt's workspace (cuda/linear.cu).
	unseen = 32 << 20
)

// slots is how many slots the blocks' weights pass through on d, 0 for none: the user's choice, or that of a plan against the memory that may be
// taken. Without a limit a CPU plans nothing.
func (o Options) slots(d *bindings.Device) (int, error) {
	switch o.Stream {
	case StreamOn:
		return tensor.StreamSlots, nil
	case StreamOff:
		return 0, nil
	}
	var info bindings.Info
	err := d.Do(func() (err error) {
		info, err = d.Info()
		return err
	})
	if err != nil {
		return 0, Wrap(ErrDevice, err)
	}
	most := info.Free
	if o.DeviceMemory > 0 && (most == 0 || o.DeviceMemory < most) {
		most = o.DeviceMemory
	}
	if most == 0 {
		return 0, nil
	}
	var takes int64
	for _, slots := range []int{0, tensor.StreamSlots} {
		if takes, err = o.takes(slots); err != nil || takes <= most {
			return slots, err
		}
	}
	return 0, errorf(ErrDevice, "the model takes %d MB of the %d MB that are free on %s even with its blocks streamed; --dtype bf16 or a smaller --tile takes less",
		takes>>20, most>>20, info.Device)
}

// takes is the memory of the device that restoring takes: the peak of one tile through all stages, run on the dry device, and what further tiles may add.
func (o Options) takes(slots int) (bytes int64, err error) {
	d, err := bindings.OpenDevice("dry", o.Threads)
	if err != nil {
		return 0, Wrap(ErrDevice, err)
	}
	r := &Restorer{device: d, options: o}
	defer r.Close()
	if err := r.load(slots); err != nil {
		return 0, err
	}
	side := r.settings.tile * 2 * r.bundle.VAE.Config.Factor()
	if _, err := r.view(context.Background(), data.New(side, side), 0, nil); err != nil {
		return 0, fmt.Errorf("plan: %w", deviceKind(err))
	}
	info, err := r.Info()
	return info.Peak + r.settings.memory + unseen, err
}

// load makes the arenas, with slots for the blocks' weights, and loads the model.
func (r *Restorer) load(slots int) error {
	err := r.device.Do(func() (err error) {
		r.arena, r.tape = tensor.NewArena(r.device), tensor.NewTape(r.device)
		r.arena.Slots = slots
		r.bundle, err = load(r.arena, r.options)
		return err
	})
	if err == nil {
		r.settings = r.options.settle(r.bundle)
	}
	return err
}
