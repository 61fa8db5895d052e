package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/evaluate"
	"github.com/fluxir/fluxir/pkg/iqa"
)

const scoreUsage = `usage: evaluate score [flags] RESULT-OR-FOLDER

Scores pictures: against --reference, a file or a folder with files of the same names, where there is one, and by the blind metrics. --input names what
the results were made from, which is scored beside them.

`

// score is the subcommand of that name.
func score(ctx context.Context, args []string, out, log io.Writer) error {
	flags := pflag.NewFlagSet("evaluate score", pflag.ContinueOnError)
	flags.SortFlags = false
	reference := flags.String("reference", "", "clean pictures, a file or a folder; empty = none, blind metrics only")
	input := flags.String("input", "", "degraded pictures, a file or a folder")
	metrics := flags.StringSlice("metrics", []string{"all"}, "all, fr, nr, "+strings.Join(iqa.Names(false), ", "))
	var networks iqa.Networks
	flags.StringVar(&networks.Folder, "weights", "data/iqa", "`folder` of the networks' weights; where they are missing, lpips-alex and so on say what to fetch")
	flags.StringVar(&networks.Device, "device", "auto", "cpu, cuda or auto, of the networks")
	flags.IntVar(&networks.Threads, "threads", 0, "CPU threads of the networks, 0 = all cores")
	var o evaluate.ScoreOptions
	flags.StringVar(&o.Setup.Channel, "channel", "rgb", "rgb or y (Matlab's rgb2ycbcr), of psnr, ssim and ms-ssim")
	flags.IntVar(&o.Setup.Crop, "crop", 0, "side of the centre crop in pixels, 0 = whole pictures")
	flags.IntVar(&o.Setup.Border, "border", 0, "pixels cut from each side")
	flags.StringVar(&o.Setup.Resize, "resize", "", "kernel that brings a picture to its reference's size: bicubic, bilinear, area or lanczos3; empty = sizes must agree")
	flags.IntVar(&o.Shrink, "lq-consistency", 0, "compare result and input after reduction by so much: a low PSNR is a result that contradicts its input; 0 = do not")
	csvFile := flags.String("csv", "", "file for one line per picture and metric, with its protocol")
	page := flags.String("html", "", "file for a page of input, result and reference, the worst first")
	most := flags.Int("html-pictures", 50, "pictures on the page")
	flags.Usage = func() { fmt.Fprintf(log, "%s%s", scoreUsage, flags.FlagUsages()) }
	if err := parse(flags, args); err != nil {
		return err
	}
	switch {
	case flags.NArg() != 1:
		return usageError("score: got %d arguments, want one file or folder of results", flags.NArg())
	case o.Shrink < 0 || *most < 0:
		return usageError("--lq-consistency %d, --html-pictures %d: want no negative number", o.Shrink, *most)
	case o.Shrink > 0 && *input == "":
		return usageError("--lq-consistency: name the --input to compare with")
	}
	if err := o.Setup.Validate(); err != nil {
		return usageError("%w", err)
	}
	var err error
	if o.Metrics, err = iqa.Parse(*metrics, networks); err != nil {
		return err
	}
	defer iqa.Close(o.Metrics)
	pairs, err := evaluate.Pairs(flags.Arg(0), *reference, *input)
	if err != nil {
		return err
	}
	if missing := networks.Missing(); !flags.Changed("metrics") && len(missing) > 0 {
		fmt.Fprintf(log, "left out, no weights in %s: %s (named in --metrics, each says what to fetch)\n", networks.Folder, strings.Join(missing, ", "))
	}
	o.Log = log
	lines, failed := evaluate.ScorePairs(ctx, pairs, o)
	summary, err := evaluate.Distributions(lines)
	if err != nil {
		return err
	}
	if len(lines) > 0 {
		evaluate.DistributionTable(out, summary)
	}
	for _, f := range []struct {
		path  string
		write func(io.Writer) error
	}{
		{*csvFile, func(w io.Writer) error { return evaluate.WriteLines(w, lines) }},
		{*page, func(w io.Writer) error { return evaluate.WritePage(w, pairs, lines, summary, *most) }},
	} {
		if f.path != "" {
			var content bytes.Buffer
			if err := f.write(&content); err != nil {
				return err
			}
			if err := data.WriteFile(f.path, content.Bytes()); err != nil {
				return err
			}
		}
	}
	return failed
}

// compare is the subcommand of that name.
func compare(args []string, out io.Writer) error {
	if len(args) != 2 {
		return usageError("compare: got %d arguments, want two CSV files of evaluate score", len(args))
	}
	var scores [2][]evaluate.Line
	for i, path := range args {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		scores[i], err = evaluate.ReadLines(f, path)
		f.Close()
		if err != nil {
			return err
		}
	}
	differences, err := evaluate.Compare(scores[0], scores[1])
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "| metric | images | %s | %s | difference | 95 %% of it | second better |\n|---|---|---|---|---|---|---|\n", args[0], args[1])
	for _, d := range differences {
		fmt.Fprintf(out, "| %s | %d | %.4f | %.4f | %+.4f | %+.4f to %+.4f | %d |\n", d.Metric, d.Images, d.A, d.B, d.B-d.A, d.Low, d.High, d.BWins)
	}
	return nil
}
