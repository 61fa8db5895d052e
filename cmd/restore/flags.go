package main

import (
	"fmt"
	"io"
	"runtime/debug"

	"github.com/spf13/pflag"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/restore"
)

const help = `usage: restore INPUT... -o OUTPUT [flags]

Restores photographs (JPEG, PNG, WebP, TIFF) that suffered from noise, blur, compression or loss of resolution. The result has the size of the input
unless --scale says otherwise; alpha, ICC profile, EXIF, greyness and 16-bit samples are kept where the output's format can hold them.

  restore old.jpg -o new.png                  one photograph, same size
  restore small.jpg -o big.jpg --scale 2      twice the width and height
  restore a.jpg b.png -o restored             several: -o is a folder, made if missing
  restore photos -o restored --skip-existing  a folder and its subfolders; go on with an interrupted run
  restore in.png -o out.png --model FLUX.1-dev --adapter fluxir.safetensors --device cuda

flags:
`

const helpExit = `
exit codes:
  0 done                                  5 output not writable
  1 another error                         6 model missing or corrupt
  2 wrong usage                           7 device missing, failed or out of memory
  3 input unreadable, no image, damaged   8 some files of several failed
  4 image too large or unsupported        130 interrupted
`

// command is what the user asked for.
type command struct {
	inputs       []string
	output       string
	options      restore.Options
	save         data.SaveOptions
	sheet        string // file for a before/after sheet; "" for none
	skipExisting bool
	json, quiet  bool
}

// parse reads the command line. Help and version are written to out and end in pflag.ErrHelp.
func parse(args []string, out io.Writer) (*command, error) {
	c := &command{}
	flags := pflag.NewFlagSet("restore", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringVarP(&c.output, "output", "o", "", "file to write; a folder for several inputs")
	flags.IntVar(&c.options.Scale, "scale", 1, "enlarge: 1, 2 or 4 times width and height")
	flags.IntVar(&c.options.Steps, "steps", 0, "sampling steps, 1 to 1000 (default 1 for the embedded model, 20 for FLUX.1-dev, 4 for -schnell)")
	flags.Uint64Var(&c.options.Seed, "seed", 0, "seed of the noise; the same seed gives the same picture")
	strength := flags.Float64("strength", 1, "strength of the adapter, 0 to 4: 0 is the model without it")
	flags.Float64Var(&c.options.Start, "start", 1, "time to start from, above 0 to 1: 1 is pure noise, less keeps nearer to the input")
	flags.StringVar(&c.options.Model, "model", "", "folder of a model: FLUX.1 as downloaded, or one written by train (default: the embedded model)")
	flags.StringVar(&c.options.Adapter, "adapter", "", "adapter file (default: adapter.safetensors of the model's folder)")
	flags.StringVar(&c.options.Device, "device", "auto", "cpu, cuda, cuda:N, or auto: cuda where there is one")
	flags.StringVar(&c.options.DType, "dtype", "auto", "arithmetic of the transformer: f32, bf16 or auto (f32)")
	flags.IntVar(&c.options.Tile, "tile", 0, "side of the tiles in pixels, 32 to 4096 (default 96 for the embedded model, 1024 for FLUX.1)")
	flags.IntVar(&c.options.Ensemble, "ensemble", 0, "views restored and averaged, 1 to 8: as it is, transposed, turned, ...; better, in as many times the time")
	memory := flags.Int64("memory", 128, "MiB of activations that a batch of tiles may use, about")
	flags.StringVar(&c.options.Stream, "stream", "auto", "keep the transformer's weights in host memory and stream them block by block: on, off, or auto: where they do not fit")
	deviceMemory := flags.Int64("device-memory", 0, "MiB of the device that the model may take, for --stream auto (default what is free on a card)")
	megapixels := flags.Float64("max-megapixels", float64(data.DefaultMaxPixels)/1e6, "largest image read or made, megapixels")
	fix := flags.String("color-fix", "", "give the result the input's colours: none, wavelet or adain (default none for the embedded model, else wavelet)")
	flags.IntVar(&c.save.Quality, "quality", 0, "of JPEG and WebP, 1 to 100 (default 95 for JPEG, lossless for WebP)")
	flags.IntVar(&c.options.Threads, "threads", 0, "CPU threads (default all cores)")
	flags.StringVar(&c.sheet, "sheet", "", "also write a picture of before and after side by side, with a detail (one input only)")
	flags.BoolVar(&c.skipExisting, "skip-existing", false, "leave out inputs whose output exists")
	flags.BoolVar(&c.json, "json", false, "write progress and results to stdout, one JSON object per line")
	flags.BoolVar(&c.quiet, "quiet", false, "no progress bar, no results; errors only")
	version := flags.Bool("version", false, "print the version")
	flags.Usage = func() {}
	if err := flags.Parse(args); err != nil {
		if err == pflag.ErrHelp {
			fmt.Fprint(out, help, flags.FlagUsages(), helpExit)
			return nil, err
		}
		return nil, restore.Wrap(restore.ErrOption, err)
	}
	if *version {
		fmt.Fprintln(out, "restore (fluxir)", programVersion())
		return nil, pflag.ErrHelp
	}
	if flags.Changed("strength") {
		c.options.Strength = strength
	}
	c.inputs, c.options.ColorFix = flags.Args(), data.ColorFixKind(*fix)
	c.options.Memory, c.options.MaxPixels = *memory<<20, int(*megapixels*1e6)
	c.options.DeviceMemory = *deviceMemory << 20
	if *deviceMemory < 0 || *deviceMemory > 1<<30 {
		return nil, restore.Wrap(restore.ErrOption, fmt.Errorf("--device-memory: got %d, want 0 to %d MiB", *deviceMemory, 1<<30))
	}
	return c, c.validate(flags, *memory, *megapixels)
}

// validate checks what restore.Options does not: which arguments there are, and values that mean "default" to it but not to a
// user.
func (c *command) validate(flags *pflag.FlagSet, memory int64, megapixels float64) error {
	bad := func(format string, args ...any) error {
		return restore.Wrap(restore.ErrOption, fmt.Errorf(format, args...))
	}
	switch {
	case len(c.inputs) == 0:
		return bad("no input: want restore INPUT... -o OUTPUT")
	case c.output == "":
		return bad("no output: want -o FILE, or -o FOLDER for several inputs")
	case c.json && c.quiet:
		return bad("--json and --quiet exclude each other")
	case memory < 1 || memory > 1<<20:
		return bad("--memory: got %d, want 1 to 1048576 MiB", memory)
	case !(megapixels > 0 && megapixels <= 1e4):
		return bad("--max-megapixels: got %v, want above 0, at most 10000", megapixels)
	case c.save.Quality < 0 || c.save.Quality > 100:
		return bad("--quality: got %d, want 1 to 100", c.save.Quality)
	}
	for name, zero := range map[string]bool{
		"steps": c.options.Steps == 0, "start": c.options.Start == 0, "tile": c.options.Tile == 0, "scale": c.options.Scale == 0,
		"threads": c.options.Threads == 0, "quality": c.save.Quality == 0,
	} {
		if zero && flags.Changed(name) {
			return bad("--%s: got 0; leave the flag out for the default", name)
		}
	}
	return c.options.Validate()
}

// programVersion is the module's version, or the commit of a build from a clone.
func programVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	revision, modified := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = " with local changes"
		}
	}
	if revision == "" {
		return info.Main.Version
	}
	return revision[:min(12, len(revision))] + modified
}
