package main

import (
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// options are the flags that are no keys of the configuration; the others are read as lines of a configuration file.
type options struct {
	config, reference string
	set               []string
	clean, report     bool
	plan              bool
	seeds, jobs       int
	md                string
}

func newFlags() (*pflag.FlagSet, *options) {
	f := pflag.NewFlagSet("train", pflag.ContinueOnError)
	f.SortFlags = false
	o := &options{}
	f.StringVar(&o.config, "config", "", "TOML file of the configuration (examples: configs/)")
	f.BoolVar(&o.plan, "plan", false, "print the memory that the stage takes, and train nothing")
	f.BoolVar(&o.clean, "clean", false, "of cache: remove what is in it")
	f.StringVar(&o.reference, "reference", "", "of ledger: TOML file of a stated cost to compare with")
	f.IntVar(&o.seeds, "seeds", 3, "of ablate: seeds for each arm, 1, 2, ...")
	f.IntVar(&o.jobs, "jobs", 1, "of ablate: runs at once, each with --threads threads")
	f.BoolVar(&o.report, "report", false, "of ablate: only write the tables of --md from the runs that have ended")
	f.StringVar(&o.md, "md", "", "of ablate: Markdown file whose tables are written anew, with plots beside it")
	f.StringArrayVar(&o.set, "set", nil, "KEY=VALUE: any key of the configuration, as in the file (time.kind='\"uniform\"'); repeatable")
	f.String("run", "runs/nano", "folder of the run: configuration, states, metrics, samples, exported model")
	f.String("model", "", "base and autoencoder to start from: a folder such as FLUX.1's, or nano, the embedded one; the adapter starts anew")
	f.String("warm", "", "folder of a whole model whose weights the stage starts from (pkg/model/nano/bundle)")
	f.String("photos", "data/photos", "training photographs: folder of make photos, any folder of images, or one image; or pairs: a .csv or .jsonl manifest, or a fluxgen set")
	f.String("device", "cpu", "device that trains")
	f.Int("threads", 0, "CPU threads, 0 = all cores")
	f.Int("workers", 1, "goroutines that make training pairs")
	f.Float64("watts", 0, "power of the machine where it cannot be read, for the ledger")
	f.Float64("memory", 0, "MB of the device that the run may take, 0 = what is free")
	f.String("latent-cache", "", "folder that keeps the autoencoder's latents of crops; useful with items, for crops that come again")
	f.Float64("latent-cache-mb", 0, "its largest size, 0 = no limit")
	f.Int64("items", 0, "distinct crops, after which they come again; 0 = always new ones")
	f.Bool("stream", false, "keep the frozen base's blocks in host memory and stream them to the device: for bases that exceed it (stage adapter)")
	f.Int64("steps", 0, "optimizer steps of the stage")
	f.Int("batch", 0, "pairs in the memory at once")
	f.Int("accumulate", 0, "batches whose gradients a step averages")
	f.Int("size", 0, "side of the crops, pixels")
	f.Float64("lr", 0, "learning rate")
	f.Float64("lr-theta", 0, "factor on the learning rate for the adapter's learned text")
	f.Float64("lr-se", 0, "factor on the learning rate for the squeeze-and-excitation layers")
	f.String("schedule", "", "cosine or constant")
	f.Int64("cool-down", 0, "last steps of a constant schedule, in which the learning rate falls to its floor")
	f.Float64("ema", 0, "decay of the averaged weights, a step")
	f.String("dtype", "", "f32 or bf16")
	f.Bool("recompute", false, "keep only the blocks' inputs, recompute on the way back: less memory, more time")
	f.Int64("save-every", 0, "steps between states")
	f.Int64("sample-every", 0, "steps between restorations of the validation pairs")
	f.Int("keep", 0, "older states kept beside the last and the best")
	return f, o
}

// overrides are the given flags as lines of TOML.
func (o *options) overrides(flags *pflag.FlagSet) []string {
	var lines []string
	flags.Visit(func(f *pflag.Flag) {
		if slices.Contains([]string{"config", "set", "reference", "plan", "seeds", "jobs", "md", "clean", "report"}, f.Name) {
			return
		}
		value := f.Value.String()
		if f.Value.Type() == "string" {
			value = strconv.Quote(value)
		}
		lines = append(lines, strings.ReplaceAll(f.Name, "-", "_")+" = "+value)
	})
	return append(lines, o.set...)
}
