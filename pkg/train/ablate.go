package train

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// Arm is one variant of an ablation: the baseline but for one thing.
type Arm struct {
	Name, Text string
	Change     func(c *Config)
}

// Arms are the variants, the baseline first.
func Arms() []Arm {
	return []Arm{
		{"baseline", "logit-normal times, pixel loss, SE and broadcast in all blocks, image and text features", func(*Config) {}},
		{"uniform", "uniform times", func(c *Config) { c.Time.Kind = Uniform }},
		{"no-pixel", "no pixel loss", func(c *Config) { c.Loss.Pixel = 0 }},
		{"se-double", "SE in the double blocks only; in the single ones a plain gain per channel", func(c *Config) { c.Adapter.SE = model.RouteDouble }},
		{"se-none", "no SE: a plain gain per channel in every block", func(c *Config) { c.Adapter.SE = model.RouteNone }},
		{"double-only", "features reach the double blocks only", func(c *Config) { c.Adapter.Broadcast = model.RouteDouble }},
		{"image-only", "image features only", func(c *Config) { c.Adapter.Features = model.RouteImage }},
	}
}

// Ablation is a set of runs, each arm with each of Seeds seeds. Run, in Settings, is the folder that holds the folders of the runs.
type Ablation struct {
	Settings
	Seeds int       // 1, 2, ... Seeds
	Jobs  int       // runs at once
	Text  io.Writer // a line for every run that ends
}

// ablationPhotos are the most photographs that the pairs of an ablation come from: crops of the training's size.
const ablationPhotos = 20

// Result is what one run of an ablation has reached, result.json in its folder.
type Result struct {
	Arm     string  `json:"arm"`
	Seed    uint64  `json:"seed"`
	Config  Config  `json:"config"`
	Pairs   int     `json:"pairs"`   // measured on
	Device  string  `json:"device"`  // processor or card
	Seconds float64 `json:"seconds"` // of training
	Measures
}

// folder of a run of the set.
func (a Ablation) folder(arm string, seed uint64) string {
	return filepath.Join(a.Settings.Run, fmt.Sprintf("%s-%d", arm, seed))
}

// settings of a run of the set.
func (a Ablation) settings(arm Arm, seed uint64) Settings {
	s := a.Settings
	s.Run, s.Seed = a.folder(arm.Name, seed), seed
	arm.Change(&s.Config)
	return s
}

// Run trains and measures what is not finished yet, seed by seed, so that a set that is cut short has whole comparisons. A cancelled ctx ends the runs
// under way after their step, saved, and returns nil with done false; started again, the set goes on.
func (a Ablation) Run(ctx context.Context) (done bool, err error) {
	if a.Seeds < 1 || a.Jobs < 1 {
		return false, fmt.Errorf("%w: ablation: %d seeds, %d jobs, want at least 1", ErrConfig, a.Seeds, a.Jobs)
	}
	if a.Stage != StageAdapter {
		return false, fmt.Errorf("%w: ablation: stage %s, want adapter", ErrConfig, a.Stage)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(a.Jobs)
	var lines sync.Mutex
	finished := 0
	for seed := uint64(1); seed <= uint64(a.Seeds); seed++ {
		for _, arm := range Arms() {
			group.Go(func() error {
				if ctx.Err() != nil {
					return nil
				}
				r, err := a.one(ctx, arm, seed)
				if err != nil || r == nil {
					return err
				}
				lines.Lock()
				defer lines.Unlock()
				finished++
				fmt.Fprintf(a.Text, "%s seed %d: velocity loss %.4f, PSNR %.2f dB (%d of %d)\n", arm.Name, seed, mean(r.Velocity), r.Restored[0].PSNR,
					finished, a.Seeds*len(Arms()))
				return nil
			})
		}
	}
	err = group.Wait()
	return err == nil && finished == a.Seeds*len(Arms()), err
}

// one is a run's result: read, or made. nil: ctx ended before.
func (a Ablation) one(ctx context.Context, arm Arm, seed uint64) (*Result, error) {
	s := a.settings(arm, seed)
	if r, err := readResult(s); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	if err := os.MkdirAll(s.Run, 0o755); err != nil {
		return nil, err
	}
	text, err := os.OpenFile(filepath.Join(s.Run, "log.txt"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer text.Close()
	log, err := OpenLog(s.Run, text)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r, err := openRunner(s, s.Stages(), log, nil)
	if err != nil {
		return nil, err
	}
	defer r.close()
	r.unvalidated = true
	for i := range r.stages {
		if done, err := r.runStage(ctx, i); err != nil || !done {
			return nil, err
		}
	}
	result := &Result{Arm: arm.Name, Seed: seed, Config: s.Config, Device: log.device}
	for _, record := range log.records {
		result.Seconds += record.Seconds
	}
	if err := r.measure(ctx, result); err != nil {
		return nil, err
	}
	b, err := json.Marshal(result)
	if err != nil {
		return nil, err
	}
	return result, data.WriteFile(filepath.Join(s.Run, resultFile), append(b, '\n'))
}

const resultFile = "result.json"

// readResult reads the result of a run that has ended, which must be of the same configuration.
func readResult(s Settings) (*Result, error) {
	path := filepath.Join(s.Run, resultFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &Result{Config: s.Config}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(r.Velocity) != len(MeasureTimes) || len(r.Pixel) != len(MeasureTimes) || len(r.Restored) != len(MeasureSteps) {
		return nil, fmt.Errorf("%s: %d velocity losses, %d pixel losses, %d restorations", path, len(r.Velocity), len(r.Pixel), len(r.Restored))
	}
	compare("", reflect.ValueOf(r.Config), reflect.ValueOf(s.Config), func(key string, was, is any) {
		err = fmt.Errorf("%s: %w: of another configuration: %s: %v there, %v now; take another --run, or remove this one", path, ErrConfig, key, was, is)
	})
	return r, err
}

// measure fills in what the last state of the run reaches on the held-out photographs.
func (r *runner) measure(ctx context.Context, result *Result) error {
	v, err := r.validation(r.s.Size, ablationPhotos)
	if err != nil {
		return err
	}
	result.Pairs = len(v.pairs)
	start := time.Now()
	err = r.device.Do(func() error {
		last := len(r.stages) - 1
		arena := tensor.NewArena(r.device)
		defer arena.Free()
		b, err := r.load(arena, last)
		if err != nil {
			return err
		}
		tr, err := NewTrainer(r.device, arena, b.Net, b.VAE, r.stages[last])
		if err != nil {
			return err
		}
		defer tr.Close()
		if _, err := tr.Resume(r.state(tr.Config.Stage)); err != nil {
			return err
		}
		result.Measures, err = tr.Measure(ctx, v)
		return err
	})
	r.log.Printf("measured in %.1f s\n", time.Since(start).Seconds())
	return err
}
