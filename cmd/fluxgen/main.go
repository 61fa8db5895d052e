// Command fluxgen makes a paired restoration data set out of a text-to-image model. `fluxgen --help` has the commands, docs/fluxgen.md the format.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/fluxir/fluxir/pkg/fluxgen"
	"github.com/fluxir/fluxir/pkg/iqa"
)

const usage = `usage: fluxgen COMMAND --out FOLDER [flags]

  generate   pictures from no prompt into FOLDER/hq
  select     score them and decide which are kept; nothing is deleted
  degrade    degraded copies of the kept ones into FOLDER/lq
  run        all three, then report
  report     FOLDER/report.html

Every command goes on where it was stopped. fluxgen COMMAND --help lists its flags.
`

const (
	exitOK          = 0
	exitOther       = 1
	exitUsage       = 2
	exitInterrupted = 130
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil, errors.Is(err, pflag.ErrHelp):
		os.Exit(exitOK)
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "fluxgen: interrupted; the same command goes on from here")
		os.Exit(exitInterrupted)
	}
	fmt.Fprintln(os.Stderr, "fluxgen:", err)
	if errors.Is(err, errUsage) {
		os.Exit(exitUsage)
	}
	os.Exit(exitOther)
}

var errUsage = errors.New("usage")

// command is a parsed command line.
type command struct {
	name, out   string
	count       int
	size, shard string
	model       fluxgen.ModelOptions
	selection   fluxgen.Selection
	preset      string
	copies      int
	degradeSeed uint64
	quiet       bool
}

func run(ctx context.Context, args []string, out, log io.Writer) error {
	c, err := parse(args, log)
	if err != nil {
		return err
	}
	if c.model.Threads > 0 {
		runtime.GOMAXPROCS(c.model.Threads)
	}
	if c.name == "report" {
		set, err := fluxgen.ReadSet(c.out)
		if err != nil {
			return err
		}
		return report(set, out)
	}
	shard, err := fluxgen.ParseShard(c.shard)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	degradation, err := fluxgen.ParseDegradation(c.preset)
	if err != nil {
		return err
	}
	degradation.Seed, degradation.Copies = c.degradeSeed, c.copies
	c.selection.Networks.Device, c.selection.Networks.Threads = c.model.Device, c.model.Threads
	if err := c.selection.Validate(); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	set, err := fluxgen.Open(c.out, shard)
	if err != nil {
		return err
	}
	defer set.Close()
	p := newProgress(log, c.quiet)
	defer p.end()
	all := c.name == "run"
	if all || c.name == "generate" {
		if err := c.generate(ctx, set, p.tell); err != nil {
			return err
		}
	}
	if all || c.name == "select" {
		if err := set.Select(ctx, c.selection, p.tell); err != nil {
			return err
		}
	}
	if all || c.name == "degrade" {
		if err := set.Degrade(ctx, degradation, p.tell); err != nil {
			return err
		}
	}
	p.end()
	fmt.Fprintln(out, set.Summary())
	if !all {
		return nil
	}
	return report(set, out)
}

func (c *command) generate(ctx context.Context, set *fluxgen.Set, progress fluxgen.Progress) error {
	m, err := fluxgen.OpenModel(c.model)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := set.Configure(m.Sampling); err != nil {
		return err
	}
	return set.Generate(ctx, m, m.Sampling, c.count, progress)
}

func report(set *fluxgen.Set, out io.Writer) error {
	path, err := set.Report()
	if err == nil {
		fmt.Fprintln(out, "report:", path)
	}
	return err
}

// parse reads the command line.
func parse(args []string, log io.Writer) (*command, error) {
	if len(args) == 0 || args[0] == "--help" || args[0] == "-h" || args[0] == "help" {
		fmt.Fprint(log, usage)
		if len(args) == 0 {
			return nil, fmt.Errorf("%w: want a command", errUsage)
		}
		return nil, pflag.ErrHelp
	}
	c := &command{name: args[0], selection: fluxgen.DefaultSelection()}
	flags := pflag.NewFlagSet("fluxgen "+c.name, pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringVarP(&c.out, "out", "o", "", "the set's folder")
	all := c.name == "run"
	switch c.name {
	case "generate", "select", "degrade", "run":
		flags.BoolVarP(&c.quiet, "quiet", "q", false, "no progress")
	case "report":
	default:
		return nil, fmt.Errorf("%w: unknown command %q, want generate, select, degrade, run or report", errUsage, c.name)
	}
	if all || c.name == "generate" {
		c.generateFlags(flags)
	}
	if c.name == "generate" || c.name == "degrade" {
		flags.StringVar(&c.shard, "shard", "", "`i/n`: part i of n, counted from 0, for processes that share a folder")
	}
	if all || c.name == "select" {
		c.selectFlags(flags)
	}
	c.preset = "seesr"
	if all || c.name == "degrade" {
		flags.StringVar(&c.preset, "preset", c.preset, "realesrgan, seesr, light, jpeg or a TOML file with a chain of your own")
		flags.IntVar(&c.copies, "copies", 1, "degraded copies of a picture")
		flags.Uint64Var(&c.degradeSeed, "degrade-seed", 1, "of the degradations")
	}
	if all || c.name == "generate" || c.name == "degrade" {
		flags.IntVar(&c.model.Threads, "threads", 0, "CPU threads, 0 = all cores")
	}
	flags.Usage = func() { fmt.Fprintf(log, "usage: fluxgen %s --out FOLDER [flags]\n\n%s", c.name, flags.FlagUsages()) }
	if err := flags.Parse(args[1:]); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	switch {
	case flags.NArg() > 0:
		return nil, fmt.Errorf("%w: unexpected argument %q", errUsage, flags.Arg(0))
	case c.out == "":
		return nil, fmt.Errorf("%w: --out: want the set's folder", errUsage)
	case c.model.Threads < 0 || c.count < 0:
		return nil, fmt.Errorf("%w: --threads %d, --count %d: want no negative number", errUsage, c.model.Threads, c.count)
	case c.model.DType != "" && c.model.DType != "f32" && c.model.DType != "bf16":
		return nil, fmt.Errorf("%w: --dtype: got %q, want f32 or bf16", errUsage, c.model.DType)
	}
	return c, c.parseSize()
}

func (c *command) generateFlags(flags *pflag.FlagSet) {
	m := &c.model
	flags.IntVar(&c.count, "count", 64, "pictures; a larger number later goes on")
	flags.StringVar(&m.Model, "model", "", "folder of a model (transformer/, vae/); empty = the embedded one")
	flags.StringVar(&m.Empty, "empty-prompt", "", "safetensors file with the empty prompt's embeddings: text [T,J], pooled [Y]; the embedded model needs none")
	flags.StringVar(&m.Device, "device", "auto", "cpu, cuda or auto")
	flags.StringVar(&m.DType, "dtype", "f32", "f32 or bf16, of the transformer")
	flags.StringVar(&c.size, "size", "", "pixels, as 512 or 640x480; empty = the model's default")
	flags.IntVar(&m.Steps, "steps", 0, "Euler steps, 0 = the model's default")
	flags.Float64Var(&m.Guidance, "guidance", 0, "guidance, of models with that input; 0 = 3.5")
	flags.StringVar(&m.Prior, "prior", "", "base: the plain base with the empty prompt; adapter: with the adapter, z_lq = 0; empty = the model's default")
	flags.IntVar(&m.Batch, "batch", 0, "pictures evaluated together, 0 = the model's default")
	flags.Uint64Var(&m.Seed, "seed", 1, "of the noise")
}

func (c *command) selectFlags(flags *pflag.FlagSet) {
	s := &c.selection
	flags.StringSliceVar(&s.Metrics, "metrics", nil, "of "+strings.Join(iqa.Names(true), ", ")+"; empty = niqe and brisque, or brisque alone where pictures are too small")
	flags.StringVar(&s.Networks.Folder, "weights", "data/iqa", "`folder` of the weights of clip-iqa, musiq and maniqa, which say what to fetch where they are missing")
	flags.StringVar(&s.Combine, "combine", s.Combine, "quantile: drop the worst by each score; rank: the worst by mean rank")
	flags.Float64Var(&s.Keep, "keep", s.Keep, "part kept by the scores")
	flags.IntVar(&s.Duplicate, "duplicate", s.Duplicate, "bits of 64 in which hashes of duplicates differ at most; -1 keeps duplicates")
	flags.Float64Var(&s.MaxFlat, "max-flat", s.MaxFlat, "largest part of flat 8x8 blocks")
	flags.Float64Var(&s.MinSharp, "min-sharp", s.MinSharp, "smallest deviation of the Laplacian, 0..255 scale")
}

func (c *command) parseSize() error {
	if c.size == "" {
		return nil
	}
	w, h := 0, 0
	if n, err := fmt.Sscanf(c.size, "%dx%d", &w, &h); err != nil || n != 2 {
		if n, err := fmt.Sscanf(c.size, "%d", &w); err != nil || n != 1 {
			return fmt.Errorf("%w: --size: got %q, want 512 or 640x480", errUsage, c.size)
		}
		h = w
	}
	if w <= 0 || h <= 0 || fmt.Sprint(w) != c.size && fmt.Sprintf("%dx%d", w, h) != c.size {
		return fmt.Errorf("%w: --size: got %q, want 512 or 640x480", errUsage, c.size)
	}
	c.model.Width, c.model.Height = w, h
	return nil
}
