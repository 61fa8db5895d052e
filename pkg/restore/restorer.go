package restore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/model/nano"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// Restorer is a model loaded on a device. It restores one image at a time.
type Restorer struct {
	device   *bindings.Device
	arena    *tensor.Arena // weights
	tape     *tensor.Tape
	bundle   *model.Bundle
	options  Options
	settings settings

	writing sync.Mutex // held while a file is written
}

// Open opens the device and loads the model. Errors are of the kinds ErrOption, ErrDevice and ErrModel. Close the Restorer after
// use.
func Open(o Options) (*Restorer, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	d, err := openDevice(o)
	if err != nil {
		return nil, Wrap(ErrDevice, err)
	}
	r := &Restorer{device: d, options: o}
	slots, err := o.slots(d)
	if err == nil {
		err = r.load(slots)
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Streamed tells whether the weights of the transformer's blocks pass through the device instead of lying there.
func (r *Restorer) Streamed() bool { return r.arena.Slots > 0 }

// openDevice opens the device of the options: for auto, the first that there is of cuda and cpu.
func openDevice(o Options) (*bindings.Device, error) {
	if o.Device == "dry" {
		return nil, errors.New("device dry computes nothing: want cpu, cuda, cuda:N or auto")
	}
	if o.Device != "" && o.Device != "auto" {
		return bindings.OpenDevice(o.Device, o.Threads)
	}
	if d, err := bindings.OpenDevice("cuda", o.Threads); err == nil {
		return d, nil
	}
	return bindings.OpenDevice("cpu", o.Threads)
}

// load reads the model of the options into a.
func load(a *tensor.Arena, o Options) (*model.Bundle, error) {
	read := loadFolder
	if o.Model == "" {
		read = func(a *tensor.Arena, o Options) (*model.Bundle, error) { return nano.Load(a, o.dtype()) }
	}
	b, err := read(a, o)
	if deviceErr := deviceKind(err); errors.Is(deviceErr, ErrDevice) {
		return nil, deviceErr
	}
	if err != nil {
		return nil, Wrap(ErrModel, err)
	}
	if text := b.Net.Adapter.Config.BaseText; text != model.TextLearned {
		return nil, errorf(ErrModel, "%s: the adapter needs a prompt (base_text %q); restoring runs adapters with learned text", o.Model, text)
	}
	return b, nil
}

func loadFolder(a *tensor.Arena, o Options) (*model.Bundle, error) {
	if info, err := os.Stat(o.Model); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, errorf(ErrModel, "%s: not a folder; want one with transformer/, vae/ and adapter.safetensors", o.Model)
	}
	if _, err := os.Stat(filepath.Join(o.Model, "adapter.safetensors")); o.Adapter == "" && errors.Is(err, fs.ErrNotExist) {
		return nil, errorf(ErrModel, "%s: no adapter.safetensors in the model's folder, and none was named", o.Model)
	}
	return model.LoadBundle(a, o.Model, o.Adapter, o.dtype(), bindings.F32)
}

// Close frees the model and the device. Idempotent.
func (r *Restorer) Close() {
	if r.device == nil {
		return
	}
	if r.arena != nil {
		r.device.Do(func() error {
			r.tape.Free()
			r.arena.Free()
			return nil
		})
	}
	r.device.Close()
	r.device = nil
}

// Halt waits for a file that is being written and keeps any other from being begun, for ever: a program that must end at once,
// while the device is still busy, leaves no half-written file behind.
func (r *Restorer) Halt() { r.writing.Lock() }

// Info describes the device and its memory.
func (r *Restorer) Info() (info bindings.Info, err error) {
	err = r.device.Do(func() error {
		info, err = r.device.Info()
		return err
	})
	return info, deviceKind(err)
}
