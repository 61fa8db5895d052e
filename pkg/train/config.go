package train

import (
	"errors"
	"fmt"
	"math"

	"github.com/fluxir/fluxir/bindings"
)

// ErrConfig is wrapped by every complaint about a configuration.
var ErrConfig = errors.New("bad training configuration")

// Stages of a run: what is trained.
const (
	StageBase    = "base"    // the transformer alone, unconditional: the prior
	StageAdapter = "adapter" // the adapter, the base frozen (spec §4)
	StageTune    = "tune"    // base and adapter together, for small bases that are a weak prior when frozen
)

// Config is one stage of training. It is stored in every checkpoint.
type Config struct {
	Stage       string       `json:"stage"`
	Steps       int64        `json:"steps"`  // optimizer steps of the stage
	Batch       int          `json:"batch"`  // pairs a step
	Size        int          `json:"size"`   // side of the image crops, pixels
	Preset      string       `json:"preset"` // degradation, see data.Draw
	Seed        uint64       `json:"seed"`
	LR          float64      `json:"lr"`           // after warm-up
	WarmUp      int64        `json:"warm_up"`      // steps from 0 to LR, linear
	Schedule    string       `json:"schedule"`     // cosine (to LRFloor·LR at the last step) or constant
	LRFloor     float64      `json:"lr_floor"`     // 0..1
	CoolDown    int64        `json:"cool_down"`    // last steps of a constant schedule, in which the rate falls linearly to LRFloor·LR
	WeightDecay float64      `json:"weight_decay"` // AdamW
	Beta2       float64      `json:"beta2"`
	Clip        float64      `json:"clip"`    // largest global gradient norm, 0: none
	EMA         float64      `json:"ema"`     // decay of the averaged weights
	Dropout     float64      `json:"dropout"` // share of items trained without condition (z_lq = 0)
	Time        TimeSampling `json:"time"`
	Loss        Loss         `json:"loss"`
	DType       string       `json:"dtype"`     // f32 or bf16: of activations and working weights; masters are f32
	Recompute   bool         `json:"recompute"` // keep only the blocks' inputs, recompute on the way back
	Average     bool         `json:"average"`   // keep an exponential moving average of the trained weights
	SaveEvery   int64        `json:"save_every"`
	LogEvery    int64        `json:"log_every"`
}

// DefaultConfig has values that train the embedded model.
func DefaultConfig(stage string) Config {
	c := Config{
		Stage: stage, Steps: 20000, Batch: 16, Size: 64, Preset: "light", Seed: 1, LR: 6e-4, WarmUp: 200, Schedule: "constant", LRFloor: 0.05,
		WeightDecay: 0.01, Beta2: 0.99, Clip: 1, EMA: 0.999, Time: TimeSampling{Kind: LogitNormal}, Loss: DefaultLoss(), DType: "f32",
		Average: true, SaveEvery: 500, LogEvery: 20,
	}
	return c
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
	case c.Size < 8 || c.Size > 1<<13:
		return bad("size", c.Size, "8 to 8192 pixels")
	case !(c.LR >= 0) || math.IsInf(c.LR, 0):
		return bad("lr", c.LR, "a number not below 0")
	case c.Schedule != "cosine" && c.Schedule != "constant":
		return bad("schedule", c.Schedule, "cosine or constant")
	case !(c.LRFloor >= 0 && c.LRFloor <= 1):
		return bad("lr_floor", c.LRFloor, "0 to 1")
	case c.WarmUp < 0 || c.CoolDown < 0:
		return bad("warm_up, cool_down", fmt.Sprint(c.WarmUp, ", ", c.CoolDown), "not negative")
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
	case c.DType != "f32" && c.DType != "bf16":
		return bad("dtype", c.DType, "f32 or bf16")
	case c.SaveEvery < 1 || c.LogEvery < 1:
		return bad("save_every, log_every", fmt.Sprint(c.SaveEvery, ", ", c.LogEvery), "at least 1")
	case !(c.Loss.Flow >= 0) || !(c.Loss.Pixel >= 0) || !(c.Loss.Gamma >= 0) || c.Loss.Crop < 0 || c.Loss.Margin < 0:
		return bad("loss", c.Loss, "no negative weights or sizes")
	}
	if _, err := ParseDistance(c.Loss.Distance); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if err := c.Time.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return nil
}

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
