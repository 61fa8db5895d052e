package train

import (
	"errors"
	"fmt"
	"math"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model"
)

// ErrConfig is wrapped by every complaint about a configuration.
var ErrConfig = errors.New("bad training configuration")

// Stages of a run: what is trained.
const (
	StageBase    = "base"    // the transformer alone, unconditional: the prior
	StageAdapter = "adapter" // the adapter, the base frozen (spec §4)
	StageTune    = "tune"    // base and adapter together, for small bases that are a weak prior when frozen
)

// Config is one stage of training. It is stored in every checkpoint. Of these keys, those that say what is learned from what must stay the same when a
// checkpoint is resumed; the others may change (fixedKeys).
type Config struct {
	Stage       string       `json:"stage" toml:"stage"`
	Steps       int64        `json:"steps" toml:"steps"`           // optimizer steps of the stage
	Batch       int          `json:"batch" toml:"batch"`           // pairs in the memory at once
	Accumulate  int          `json:"accumulate" toml:"accumulate"` // batches whose gradients one optimizer step averages
	Size        int          `json:"size" toml:"size"`             // side of the image crops, pixels
	Preset      string       `json:"preset" toml:"preset"`         // degradation, see data.Draw
	Seed        uint64       `json:"seed" toml:"seed"`
	LR          float64      `json:"lr" toml:"lr"`               // after warm-up
	LRTheta     float64      `json:"lr_theta" toml:"lr_theta"`   // factor on lr for the adapter's learned text
	LRSE        float64      `json:"lr_se" toml:"lr_se"`         // factor on lr for the squeeze-and-excitation layers
	WarmUp      int64        `json:"warm_up" toml:"warm_up"`     // steps from 0 to lr, linear
	Schedule    string       `json:"schedule" toml:"schedule"`   // cosine (to lr_floor·lr at the last step) or constant
	LRFloor     float64      `json:"lr_floor" toml:"lr_floor"`   // 0..1
	CoolDown    int64        `json:"cool_down" toml:"cool_down"` // last steps of a constant schedule, in which the rate falls linearly to lr_floor·lr
	WeightDecay float64      `json:"weight_decay" toml:"weight_decay"`
	Beta2       float64      `json:"beta2" toml:"beta2"`
	Clip        float64      `json:"clip" toml:"clip"`           // largest global gradient norm, 0: none
	EMA         float64      `json:"ema" toml:"ema"`             // decay of the averaged weights
	Average     bool         `json:"average" toml:"average"`     // keep an exponential moving average of the trained weights
	Dropout     float64      `json:"dropout" toml:"dropout"`     // share of items trained without condition (z_lq = 0)
	DType       string       `json:"dtype" toml:"dtype"`         // f32 or bf16: of activations and working weights; masters are f32
	Recompute   bool         `json:"recompute" toml:"recompute"` // keep only the blocks' inputs, recompute on the way back
	SaveEvery   int64        `json:"save_every" toml:"save_every"`
	SampleEvery int64        `json:"sample_every" toml:"sample_every"` // steps between restorations of the validation pairs
	LogEvery    int64        `json:"log_every" toml:"log_every"`
	Keep        int          `json:"keep" toml:"keep"` // older states kept beside the last and the best
	Time        TimeSampling `json:"time" toml:"time"`
	Loss        Loss         `json:"loss" toml:"loss"`

	Items   int64         `json:"items" toml:"items"`     // distinct crops with their degradations, after which they come again, with other noise and times; 0: always new ones
	Adapter model.Routing `json:"adapter" toml:"adapter"` // of a new adapter; one that --warm loads has its own, which must be the same
}

// DefaultConfig has values that train the embedded model.
func DefaultConfig(stage string) Config {
	return Config{
		Stage: stage, Steps: 20000, Batch: 16, Accumulate: 1, Size: 64, Preset: "light", Seed: 1, LR: 6e-4, LRTheta: 1, LRSE: 1, WarmUp: 200,
		Schedule: "constant", LRFloor: 0.05, WeightDecay: 0.01, Beta2: 0.99, Clip: 1, EMA: 0.999, Time: TimeSampling{Kind: LogitNormal},
		Loss: DefaultLoss(), Adapter: model.DefaultRouting(), DType: "f32", Average: true, SaveEvery: 500, SampleEvery: 500, LogEvery: 20, Keep: 2,
	}
}

// Validate reports the first field that is out of range.
func (c Config) Validate() error {
	bad := func(field string, got any, want string) error {
		return fmt.Errorf("%w: %s: got %v, want %s", ErrConfig, field, got, want)
	}
	switch {
	case c.Stage != StageBase && c.Stage != StageAdapter && c.Stage != StageTune:
		return bad("stage", c.Stage, "base, adapter or tune")
	case c.Steps < 1:
		return bad("steps", c.Steps, "at least 1")
	case c.Batch < 1 || c.Batch > 1<<12:
		return bad("batch", c.Batch, "1 to 4096")
	case c.Accumulate < 1 || c.Accumulate > 1<<16:
		return bad("accumulate", c.Accumulate, "1 to 65536")
	case c.Size < 8 || c.Size > 1<<13:
		return bad("size", c.Size, "8 to 8192 pixels")
	case !rate(c.LR):
		return bad("lr", c.LR, "a number not below 0")
	case !rate(c.LRTheta):
		return bad("lr_theta", c.LRTheta, "a number not below 0")
	case !rate(c.LRSE):
		return bad("lr_se", c.LRSE, "a number not below 0")
	case c.Schedule != "cosine" && c.Schedule != "constant":
		return bad("schedule", c.Schedule, "cosine or constant")
	case !(c.LRFloor >= 0 && c.LRFloor <= 1):
		return bad("lr_floor", c.LRFloor, "0 to 1")
	case c.WarmUp < 0:
		return bad("warm_up", c.WarmUp, "not negative")
	case c.CoolDown < 0:
		return bad("cool_down", c.CoolDown, "not negative")
	case !(c.WeightDecay >= 0):
		return bad("weight_decay", c.WeightDecay, "not negative")
	case !(c.Beta2 >= 0 && c.Beta2 < 1):
		return bad("beta2", c.Beta2, "0 to 1, below 1")
	case !(c.Clip >= 0):
		return bad("clip", c.Clip, "not negative")
	case !(c.EMA >= 0 && c.EMA < 1):
		return bad("ema", c.EMA, "0 to 1, below 1")
	case !(c.Dropout >= 0 && c.Dropout <= 1):
		return bad("dropout", c.Dropout, "0 to 1")
	case c.Items < 0:
		return bad("items", c.Items, "not negative")
	case c.DType != "f32" && c.DType != "bf16":
		return bad("dtype", c.DType, "f32 or bf16")
	case c.SaveEvery < 1:
		return bad("save_every", c.SaveEvery, "at least 1")
	case c.SampleEvery < 1:
		return bad("sample_every", c.SampleEvery, "at least 1")
	case c.LogEvery < 1:
		return bad("log_every", c.LogEvery, "at least 1")
	case c.Keep < 0:
		return bad("keep", c.Keep, "not negative")
	case c.Loss.Flow == 0 && c.Loss.Pixel == 0:
		return bad("loss.flow, loss.pixel", 0, "one above 0")
	case !(c.Loss.Flow >= 0) || !(c.Loss.Pixel >= 0) || !(c.Loss.Gamma >= 0) || c.Loss.Crop < 0 || c.Loss.Margin < 0:
		return bad("loss", c.Loss, "no negative weights or sizes")
	}
	if _, err := ParseDistance(c.Loss.Distance); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if err := c.Time.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if err := c.Adapter.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return nil
}

// rate tells whether v can be a learning rate or a factor on one.
func rate(v float64) bool { return v >= 0 && !math.IsInf(v, 0) }

// learningRate at an optimizer step, the first being 1.
func (c Config) learningRate(step int64) float64 {
	if step <= c.WarmUp {
		return c.LR * float64(step) / float64(c.WarmUp)
	}
	if c.Schedule == "constant" {
		if left := c.Steps - step; left < c.CoolDown {
			return c.LR * (c.LRFloor + (1-c.LRFloor)*float64(left)/float64(c.CoolDown))
		}
		return c.LR
	}
	if c.Steps <= c.WarmUp {
		return c.LR
	}
	progress := float64(step-c.WarmUp) / float64(c.Steps-c.WarmUp)
	return c.LR * (c.LRFloor + (1-c.LRFloor)*0.5*(1+math.Cos(math.Pi*min(progress, 1))))
}

// emaDecay grows from 0 so that the average forgets the first weights.
func (c Config) emaDecay(step int64) float64 {
	return min(c.EMA, float64(1+step)/float64(10+step))
}

func (c Config) dtype() bindings.DType {
	if c.DType == "bf16" {
		return bindings.BF16
	}
	return bindings.F32
}
