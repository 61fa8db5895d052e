// Package restore runs a whole restoration: an image of any size in, cut into tiles that fit a memory budget, through autoencoder
// and sampler on one device, blended, with its alpha, metadata, greyness and bit depth out again.
package restore

import (
	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/model/weights"
)

// Options are the user's choices. The zero value restores at the same size with the embedded model and everything at its default.
type Options struct {
	Model   string // folder of a bundle (see model.LoadBundle); "" = the model embedded in the program
	Adapter string // adapter file in place of the bundle's; "" = the bundle's. Not with the embedded model
	Device  string // cpu, cuda or cuda:N; "" or auto = cuda where there is one, else cpu
	Threads int    // of the CPU device; 0 = all cores
	DType   string // f32 or bf16, of the transformer; "" or auto = f32. The autoencoder always works in f32

	Scale     int               // 1, 2 or 4 times the size; 0 = 1
	Steps     int               // Euler steps; 0 = 1 for the embedded family, 20 for FLUX.1-dev, 4 for -schnell
	Seed      uint64            // of the noise: same seed, same picture, on every device and whatever the tiles
	Start     float64           // time to start from, (0, 1]: 1 is noise, less keeps nearer to the input; 0 = 1
	Strength  *float64          // of the adapter, 0 to 4: 0 is the plain base; nil = the adapter's own, 1
	Ensemble  int               // views restored and averaged, 1 to 8: as it is, transposed, turned, ...; costs as many times the work; 0 = the family's default
	Tile      int               // side of the transformer's tiles in pixels, 32 to 4096; 0 = 96 for the embedded family, 1024 for FLUX.1
	ColorFix  data.ColorFixKind // "" = none for the embedded family, wavelet for FLUX.1
	MaxPixels int               // largest image read or made; 0 = data.DefaultMaxPixels
	Stream    string            // where the weights of the transformer's blocks lie: StreamOn, StreamOff; "" or StreamAuto = on the device if they fit there
	Memory    int64             // bytes of activations that one batch of tiles may use, about; 0 = 128 MiB. At least one tile runs

	DeviceMemory int64 // bytes of the device that the plan of StreamAuto may count on; 0 = what is free on a card, no limit on the CPU
}

const (
	defaultMemory = 128 << 20
	vaeTile       = 512 // pixels; the autoencoder's tiles
	vaeOverlap    = 64  // pixels, of autoencoders with convolutions: their receptive field fades within it
	maxSteps      = 1000
	maxStrength   = 4
)

// Validate reports the first option that is out of range, as an ErrOption.
func (o Options) Validate() error {
	bad := func(name string, got any, want string) error {
		return errorf(ErrOption, "%s: got %v, want %s", name, got, want)
	}
	switch {
	case o.Scale != 0 && o.Scale != 1 && o.Scale != 2 && o.Scale != 4:
		return bad("scale", o.Scale, "1, 2 or 4")
	case o.Steps < 0 || o.Steps > maxSteps:
		return bad("steps", o.Steps, "1 to 1000")
	case !(o.Start >= 0 && o.Start <= 1):
		return bad("start", o.Start, "a time above 0, at most 1")
	case o.Strength != nil && !(*o.Strength >= 0 && *o.Strength <= maxStrength):
		return bad("strength", *o.Strength, "0 to 4")
	case o.Ensemble < 0 || o.Ensemble > 8:
		return bad("ensemble", o.Ensemble, "1 to 8")
	case o.Tile != 0 && (o.Tile < 32 || o.Tile > 4096):
		return bad("tile", o.Tile, "32 to 4096 pixels")
	case o.Threads < 0 || o.Threads > 4096:
		return bad("threads", o.Threads, "0 to 4096")
	case o.Stream != "" && o.Stream != StreamAuto && o.Stream != StreamOn && o.Stream != StreamOff:
		return bad("stream", o.Stream, "auto, on or off")
	case o.MaxPixels < 0 || o.Memory < 0 || o.DeviceMemory < 0:
		return bad("limits", o.MaxPixels, "not negative")
	case o.DType != "" && o.DType != "auto" && o.DType != "f32" && o.DType != "bf16":
		return bad("dtype", o.DType, "auto, f32 or bf16")
	}
	if o.Adapter != "" && o.Model == "" {
		return errorf(ErrOption, "adapter: %s is for another model than the embedded one; name its folder too", o.Adapter)
	}
	if o.ColorFix != "" {
		if _, err := data.ParseColorFix(string(o.ColorFix)); err != nil {
			return Wrap(ErrOption, err)
		}
	}
	return nil
}

func (o Options) dtype() bindings.DType {
	if o.DType == "bf16" {
		return bindings.BF16
	}
	return bindings.F32
}

func (o Options) maxPixels() int {
	if o.MaxPixels == 0 {
		return data.DefaultMaxPixels
	}
	return o.MaxPixels
}

// settings are the options with the defaults of the loaded model filled in.
type settings struct {
	model.SampleOptions
	scale         int
	ensemble      int
	seed          uint64
	tile, overlap int // tokens
	colorFix      data.ColorFixKind
	memory        int64
}

// settle fills in what the options leave open.
func (o Options) settle(b *model.Bundle) settings {
	c, a := b.Net.Base.Config, b.Net.Adapter.Config
	s := settings{
		SampleOptions: model.SampleOptions{Steps: o.Steps, Start: o.Start, Shift: true, Lambda: float32(a.Lambda), Guidance: float32(a.Guidance)},
		scale:         max(o.Scale, 1), ensemble: max(o.Ensemble, 1), seed: o.Seed, colorFix: o.ColorFix, memory: o.Memory,
	}
	steps, tile, overlap, fix := 20, 1024, 128, data.ColorFixWavelet
	switch {
	case c.Prediction == weights.PredictSample:
		steps, tile, overlap, fix = 1, 96, 16, data.ColorFixNone
	case !c.GuidanceEmbeds: // schnell
		steps, s.Shift = 4, false
	}
	if o.Tile != 0 {
		overlap = min(overlap, o.Tile/4)
		tile = o.Tile
	}
	if s.Steps == 0 {
		s.Steps = steps
	}
	if s.Start == 0 {
		s.Start = 1
	}
	if o.Strength != nil {
		s.Lambda = float32(*o.Strength)
	}
	if s.colorFix == "" {
		s.colorFix = fix
	}
	if s.memory == 0 {
		s.memory = defaultMemory
	}
	unit := 2 * b.VAE.Config.Factor()
	s.tile = max(tile/unit, 1)
	s.overlap = min(overlap/unit, s.tile-1)
	return s
}
