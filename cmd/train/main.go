// Command train trains: the embedded model stage by stage, or an adapter on a base that stands elsewhere. Every stage resumes where it stopped.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/fluxir/fluxir/pkg/train"
)

const usage = `usage: train STAGE [flags]
       train --config FILE [flags]
       train curves --run FOLDER
       train ledger [--reference FILE] RUN...
       train cache [--clean] FOLDER
       train ablate --config configs/nano_ablations.toml [--seeds N] [--jobs N] [--md FILE] [flags]

STAGE is what is trained:
  base     the prior: a flow transformer that generates without a condition
  adapter  the FluxIR adapter on a frozen base
  tune     base and adapter together
  vae      the patch transform of the embedded family's autoencoder (nano: the whole recipe, to tune)
With --model or --warm the stage starts from those weights; without, the embedded family's stages before it run first.

curves prints what the stages of --run cost, and draws loss and validation of tune into --run as SVG.
ledger compares what runs cost, with each other and with a stated reference (configs/reference_*.toml).
cache checks every file of a latent cache, by encoder; --clean empties it.
ablate trains the arms of the ablations (docs/ablations.md) from the same configuration, each in a folder of its own below --run, measures them, and
writes tables and plots. Runs that have ended are not repeated, others go on where they stopped; --report only reports.

Flags override the file, which overrides the stage's defaults; the result is stored as STAGE.toml in the run's folder and is itself such a file.
Interrupt (Ctrl-C) to stop after the current step; the same command resumes. Flags:
`

func main() {
	if err := run(os.Args, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "train:", err)
		os.Exit(1)
	}
}

func run(command []string, text io.Writer) error {
	flags, options := newFlags()
	flags.Usage = func() { fmt.Fprintf(text, "%s%s", usage, flags.FlagUsages()) }
	if err := flags.Parse(command[1:]); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil
		}
		return err
	}
	stage := flags.Arg(0)
	if stage == "ledger" && flags.NArg() > 1 {
		return ledger(flags.Args()[1:], options.reference)
	}
	if stage == "cache" && flags.NArg() == 2 {
		return latents(flags.Arg(1), options.clean)
	}
	if flags.NArg() > 1 || (stage == "" && options.config == "") {
		flags.Usage()
		return errors.New("want one stage, or --config")
	}
	last := stage
	if stage == "vae" || stage == "nano" || stage == "curves" {
		last = train.StageTune
	} else if stage == "ablate" {
		last = train.StageAdapter
	}
	settings, err := train.LoadSettings(last, options.config, options.overrides(flags))
	if err != nil {
		return err
	}
	if stage == "curves" {
		return curves(settings.Run)
	}
	if options.plan {
		plan, err := train.CheckMemory(settings)
		plan.Print(os.Stdout)
		return err
	}
	if stage == "ablate" {
		if options.report {
			return train.Ablation{Settings: settings, Seeds: options.seeds}.Report(options.md)
		}
		return ablate(command, train.Ablation{Settings: settings, Seeds: options.seeds, Jobs: options.jobs, Text: text}, options.md)
	}
	stages := settings.Stages()
	if stage == "vae" {
		stages = nil
	}
	return runStages(command, settings, stages, text)
}

// runStages trains as one of the processes that mpirun has started, or alone.
func runStages(command []string, settings train.Settings, stages []train.Config, text io.Writer) error {
	procs, err := train.OpenProcesses()
	if err != nil {
		return err
	}
	if procs.Size() > 1 {
		command = append([]string{"mpirun", "-n", fmt.Sprint(procs.Size())}, command...)
	}
	ctx, stop := untilSignal()
	defer stop()
	if procs.Rank() == 0 {
		err = runLogged(ctx, command, settings, stages, text, procs)
	} else {
		_, err = train.Run(ctx, settings, stages, train.SilentLog(), procs)
	}
	if err != nil && procs != nil { // the others wait for this one
		fmt.Fprintf(os.Stderr, "train: process %d: %v\n", procs.Rank(), err)
		procs.Abort(1)
	}
	procs.Close()
	return err
}

// runLogged trains with the log going to text and to the run's folder.
func runLogged(ctx context.Context, command []string, settings train.Settings, stages []train.Config, text io.Writer, procs *train.Processes) error {
	if err := os.MkdirAll(settings.Run, 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(settings.Run, "log.txt"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	logger, err := train.OpenLog(settings.Run, io.MultiWriter(text, file))
	if err != nil {
		return err
	}
	defer logger.Close()
	done, err := train.Run(ctx, settings, stages, logger, procs)
	if err == nil && !done {
		logger.Printf("stopped; resume with: %s\n", quoted(command))
	}
	return err
}

// ablate runs what is missing of a set and reports what there is.
func ablate(command []string, a train.Ablation, md string) error {
	ctx, stop := untilSignal()
	defer stop()
	done, err := a.Run(ctx)
	if err == nil && !done {
		fmt.Fprintf(a.Text, "stopped; resume with: %s\n", quoted(command))
	}
	if err != nil || md == "" {
		return err
	}
	if err = a.Report(md); !done && errors.Is(err, train.ErrNoResults) {
		return nil
	}
	return err
}

// curves reports on a run.
func curves(folder string) error {
	records, err := train.ReadMetrics(folder)
	if err != nil {
		return err
	}
	train.PrintCosts(os.Stdout, train.Costs(records), nil)
	return train.PlotCurves(records, train.StageTune, filepath.Join(folder, train.StageTune))
}

// ledger prints a table of runs.
func ledger(runs []string, reference string) error {
	var costs []train.Cost
	for _, run := range runs {
		c, err := train.RunCost(run)
		if err != nil {
			return err
		}
		costs = append(costs, c)
	}
	if reference == "" {
		train.PrintCosts(os.Stdout, costs, nil)
		return nil
	}
	c, err := train.ReadReference(reference)
	if err == nil {
		train.PrintCosts(os.Stdout, costs, &c)
	}
	return err
}

// latents prints what a cache holds.
func latents(dir string, clean bool) error {
	list, err := train.CheckLatents(dir, clean)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("%s: no latents here", dir)
	}
	if err != nil {
		return err
	}
	fmt.Println("| encoder | files | MB | damaged |\n|---|---|---|---|")
	for _, l := range list {
		fmt.Printf("| %s | %d | %.1f | %d |\n", l.Encoder, l.Files, float64(l.Bytes)/1e6, l.Damaged)
	}
	if clean {
		fmt.Println("\nremoved")
	}
	return nil
}

// quoted is a command as a shell reads it.
func quoted(command []string) string {
	words := make([]string, len(command))
	for i, w := range command {
		words[i] = w
		if w == "" || strings.ContainsAny(w, " \t\n\"'\\$&|;<>()*?[]#~!{}`") {
			words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}
