// Command evaluate measures restoration on clean photographs: it degrades them in fixed ways, restores, and tables PSNR, SSIM, GMSD and HaarPSI before and after.
// `evaluate score` measures pictures that are there, with or without ground truth, and `evaluate compare` compares two such measurements.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/evaluate"
	"github.com/fluxir/fluxir/pkg/restore"
)

const usage = `usage: evaluate [flags] PHOTO-OR-FOLDER...
       evaluate score [flags] RESULT-OR-FOLDER
       evaluate compare A.csv B.csv

Degrades each clean photograph (noise σ 15 + JPEG 60; blur σ 1.2 + noise 5 + JPEG 80; ×2 down-up + JPEG 75), restores it and prints a table.
score measures pictures that are there already; compare sets two of its CSV files side by side.

`

const (
	exitOK          = 0
	exitOther       = 1 // something failed, pictures among others that were scored too
	exitUsage       = 2
	exitInterrupted = 130
)

var errUsage = errors.New("usage")

func usageError(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errUsage, fmt.Errorf(format, args...))
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil, errors.Is(err, pflag.ErrHelp):
		os.Exit(exitOK)
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "evaluate: interrupted")
		os.Exit(exitInterrupted)
	}
	fmt.Fprintln(os.Stderr, "evaluate:", err)
	if errors.Is(err, errUsage) {
		os.Exit(exitUsage)
	}
	os.Exit(exitOther)
}

func run(ctx context.Context, args []string, out, log io.Writer) error {
	if len(args) > 0 && args[0] == "score" {
		return score(ctx, args[1:], out, log)
	}
	if len(args) > 0 && args[0] == "compare" {
		return compare(args[1:], out)
	}
	flags := pflag.NewFlagSet("evaluate", pflag.ContinueOnError)
	flags.SortFlags = false
	var o restore.Options
	flags.StringVar(&o.Model, "model", "", "folder of a model; empty = the embedded one")
	flags.StringVar(&o.Adapter, "adapter", "", "adapter file in place of the one in the model's folder")
	flags.StringVar(&o.Device, "device", "auto", "cpu, cuda or auto")
	flags.IntVar(&o.Threads, "threads", 0, "CPU threads, 0 = all cores")
	flags.IntVar(&o.Steps, "steps", 0, "Euler steps, 0 = the model's default")
	flags.IntVar(&o.Tile, "tile", 0, "tile side in pixels, 0 = the model's default")
	flags.IntVar(&o.Ensemble, "ensemble", 0, "views restored and averaged, 0 = the model's default")
	flags.StringVar((*string)(&o.ColorFix), "color-fix", "", "none, wavelet or adain; empty = the model's default")
	crop := flags.Int("crop", 0, "side of the centre crop in pixels, 0 = whole pictures")
	presets := flags.StringSlice("presets", data.EvalPresets, "degradations")
	seed := flags.Uint64("seed", 1, "of the degradations' noise")
	csvFile := flags.String("csv", "", "file for one line per image")
	save := flags.String("save", "", "folder for clean, degraded and restored pictures")
	lq := flags.Bool("lq-consistency", false, "degrade the result again, in the same way, and compare with the input: a low PSNR is a result that contradicts it")
	with := flags.String("with", "", "restore with another program, called as `COMMAND` IN.png OUT.png, in place of fluxir")
	flags.Usage = func() { fmt.Fprintf(log, "%s%s", usage, flags.FlagUsages()) }
	if err := parse(flags, args); err != nil {
		return err
	}
	switch {
	case flags.NArg() == 0:
		return usageError("want photographs, or folders of them")
	case *crop < 0:
		return usageError("--crop %d: want no negative number", *crop)
	}
	files, err := evaluate.Photos(flags.Args())
	if err != nil {
		return err
	}
	restorer := evaluate.Command(strings.Fields(*with))
	if *with == "" {
		r, err := restore.Open(o)
		if err != nil {
			return err
		}
		defer r.Close()
		restorer = func(ctx context.Context, m *data.Image) (*data.Image, error) { return r.Restore(ctx, m, nil) }
	}
	rows, err := evaluate.Run(ctx, restorer, files,
		evaluate.Options{Crop: *crop, Presets: *presets, Seed: *seed, Save: *save, LQConsistency: *lq, Log: log})
	if err != nil {
		return err
	}
	if *csvFile != "" {
		var lines bytes.Buffer
		if err := evaluate.WriteCSV(&lines, rows); err != nil {
			return err
		}
		if err := data.WriteFile(*csvFile, lines.Bytes()); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "%s\n\n", evaluate.Protocol)
	evaluate.Markdown(out, evaluate.Summarise(rows))
	return nil
}

// parse reads flags; mistakes are errors of usage.
func parse(flags *pflag.FlagSet, args []string) error {
	err := flags.Parse(args)
	if err != nil && !errors.Is(err, pflag.ErrHelp) {
		return usageError("%w", err)
	}
	return err
}
