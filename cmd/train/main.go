// Command train makes the embedded model: autoencoder, prior, adapter, and both tuned together. Every stage resumes where it stopped.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/train"
)

const usage = `usage: train STAGE [flags]

Trains the embedded model up to STAGE, running or resuming the stages before it first:
  vae      fit the patch transform of the autoencoder
  base     the prior: a flow transformer that generates without a condition
  adapter  the FluxIR adapter on the frozen prior
  tune     prior and adapter together
  nano     all of them
or, in place of a stage:
  curves   print what the stages of --run cost, and draw loss and validation of tune into --run as SVG

Interrupt (Ctrl-C) to stop after the current step; the same command resumes. Flags for the last stage given:
`

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "train:", err)
		os.Exit(1)
	}
}

func run(args []string, log io.Writer) error {
	flags := pflag.NewFlagSet("train", pflag.ContinueOnError)
	flags.SortFlags = false
	folder := flags.String("run", "runs/nano", "folder of the run: states, log, exported model")
	photos := flags.String("photos", "data/photos", "folder of training photographs (make photos)")
	warm := flags.String("warm", "", "folder of a model whose weights STAGE starts from, in place of the stages before it (pkg/model/nano/bundle)")
	threads := flags.Int("threads", 0, "CPU threads, 0 = all cores")
	workers := flags.Int("workers", 1, "goroutines that make training pairs")
	steps := flags.Int64("steps", 0, "optimizer steps of the stage")
	batch := flags.Int("batch", 0, "pairs a step")
	size := flags.Int("size", 0, "side of the crops, pixels")
	lr := flags.Float64("lr", 0, "learning rate")
	schedule := flags.String("schedule", "", "cosine or constant")
	coolDown := flags.Int64("cool-down", 0, "last steps of a constant schedule, in which the learning rate falls to its floor")
	ema := flags.Float64("ema", 0, "decay of the averaged weights, a step")
	dtype := flags.String("dtype", "", "f32 or bf16")
	saveEvery := flags.Int64("save-every", 0, "steps between states")
	flags.Usage = func() { fmt.Fprintf(log, "%s%s", usage, flags.FlagUsages()) }
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() != 1 {
		flags.Usage()
		return errors.New("want one stage")
	}
	if flags.Arg(0) == "curves" {
		return curves(*folder)
	}
	stages, err := upTo(flags.Arg(0))
	if err != nil {
		return err
	}
	if len(stages) > 0 {
		last := &stages[len(stages)-1]
		override(flags, "steps", &last.Steps, *steps)
		override(flags, "batch", &last.Batch, *batch)
		override(flags, "size", &last.Size, *size)
		override(flags, "lr", &last.LR, *lr)
		override(flags, "schedule", &last.Schedule, *schedule)
		override(flags, "cool-down", &last.CoolDown, *coolDown)
		override(flags, "ema", &last.EMA, *ema)
		override(flags, "dtype", &last.DType, *dtype)
		override(flags, "save-every", &last.SaveEvery, *saveEvery)
		if err := last.Validate(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(*folder, 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(*folder, "log.txt"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	logger, err := train.OpenLog(*folder, io.MultiWriter(log, file))
	if err != nil {
		return err
	}
	defer logger.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() { <-ctx.Done(); stop() }() // a second signal ends the program at once
	done, err := train.TrainNano(ctx, train.NanoOptions{
		Run: *folder, Photos: *photos, Threads: *threads, Workers: *workers, Warm: *warm, Stages: stages, Log: logger,
		Export: func(b *model.Bundle) error { return model.SaveBundle(filepath.Join(*folder, "export"), b) },
	})
	if err == nil && !done {
		fmt.Fprintf(log, "stopped; resume with: train %s --run %s\n", flags.Arg(0), *folder)
	}
	return err
}

// curves reports on a run.
func curves(folder string) error {
	records, err := train.ReadMetrics(folder)
	if err != nil {
		return err
	}
	train.Costs(os.Stdout, records)
	return train.PlotCurves(records, train.StageTune, filepath.Join(folder, train.StageTune))
}

// upTo is the recipe until the named stage.
func upTo(name string) ([]train.Config, error) {
	all := train.NanoStages()
	switch name {
	case "vae":
		return nil, nil
	case "nano":
		return all, nil
	}
	for i, c := range all {
		if c.Stage == name {
			return all[:i+1], nil
		}
	}
	return nil, fmt.Errorf("stage %q, want vae, base, adapter, tune or nano", name)
}

// override sets a field that the user gave a flag for.
func override[T any](flags *pflag.FlagSet, name string, field *T, value T) {
	if flags.Changed(name) {
		*field = value
	}
}
