// Command kbench times fluxir's ops and whole blocks at the shapes of its models, each after a check against the float64 reference, and says what part
// of the machine's peaks, probed in the same run, they reach.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/monitor"
)

const usage = `usage: kbench [flags]

Times ops and blocks: cold (caches evicted before each sample) and warm, medians with the median absolute deviation. GB/s counts each input once and each
output once. "of the peak" is the share of the nearer roof: triad bandwidth, or the fastest arithmetic on the dtype. "clock" is the lower of two f32 probes,
just before and just after the row, as a part of the run's peak. "gate" is the largest error as a part of what is allowed. A "!" marks a row that did not become steady.

  kbench --preset flux --op attention --dtype bf16
  kbench --op linear_forward --shape 1536x3072 --json new.jsonl --compare old.jsonl
  kbench --from new.jsonl --md docs/bench.md --plot roofline.svg    report without measuring

flags:
`

const helpExit = `
exit codes: 0 done, 1 another error, 2 wrong usage, 3 a case computes the wrong thing, 4 runs that cannot be compared, 7 device missing or failed,
130 interrupted (rows measured so far are in the JSON file)
`

// usageError is a mistake in the command line.
type usageError string

func (e usageError) Error() string { return string(e) }

// options are the command line.
type options struct {
	filter
	device             string
	threads            int
	seconds            float64
	json, old, from    string
	plot, md           string
	list, force, serve bool
	missing, cold      bool
	budget             float64
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kbench:", err)
	}
	os.Exit(exitCode(err))
}

// exitCode is the code of an error, as --help lists them.
func exitCode(err error) int {
	var use usageError
	var gate gateError
	var refused errRefused
	var device *bindings.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &use):
		return 2
	case errors.As(err, &gate):
		return 3
	case errors.As(err, &refused):
		return 4
	case errors.As(err, &device):
		return 7
	case errors.Is(err, context.Canceled):
		return 130
	}
	return 1
}

// parse reads the command line; nil options mean that help was printed.
func parse(args []string, out io.Writer) (*options, error) {
	o := &options{}
	flags := pflag.NewFlagSet("kbench", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringVar(&o.preset, "preset", "all", "model whose shapes are run: "+strings.Join(presets, ", "))
	flags.StringSliceVar(&o.ops, "op", nil, "ops by name or first words: attention, linear_forward, ...")
	flags.StringSliceVar(&o.shapes, "shape", nil, "rows whose shape contains this: 1536x24x128")
	flags.StringSliceVar(&o.dtype, "dtype", nil, "f32, bf16")
	flags.StringVar(&o.device, "device", "cpu", "cpu, cuda or cuda:N")
	flags.IntVar(&o.threads, "threads", 0, "CPU threads, 0 = all cores")
	flags.Float64Var(&o.seconds, "seconds", 0.5, "time per row and state of the cache, after warm-up; five samples at least")
	flags.BoolVar(&o.cold, "cold", true, "also time with caches evicted; --cold=false for warm times only")
	flags.BoolVar(&o.list, "list", false, "print the rows and stop")
	flags.StringVar(&o.json, "json", "", "append the run, with every sample, to this file of JSON lines")
	flags.BoolVar(&o.missing, "missing", false, "leave out rows that the JSON file has for this machine at a full clock: long presets in slices")
	flags.Float64Var(&o.budget, "budget", 0, "seconds after which no further row is begun, 0 = no limit")
	flags.StringVar(&o.old, "compare", "", "print speed-ups over an older results file")
	flags.BoolVar(&o.force, "force", false, "compare although machine, tier, threads or protocol differ")
	flags.StringVar(&o.from, "from", "", "report from this results file instead of measuring")
	flags.StringVar(&o.plot, "plot", "", "write a roofline plot: .svg, .png or .pdf")
	flags.StringVar(&o.md, "md", "", "write the tables between the markers of this Markdown file")
	flags.BoolVar(&o.serve, "serve", false, "answer requests for single samples on stdin (tools/bench/peers.py)")
	flags.Usage = func() {}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			fmt.Fprint(out, usage, flags.FlagUsages(), helpExit)
			return nil, nil
		}
		return nil, usageError(err.Error())
	}
	switch {
	case flags.NArg() > 0:
		return nil, usageError(fmt.Sprintf("unexpected argument %q; rows are chosen by --preset, --op, --shape, --dtype", flags.Arg(0)))
	case !(o.seconds > 0 && o.seconds <= 600):
		return nil, usageError(fmt.Sprintf("--seconds: got %v, want above 0, at most 600", o.seconds))
	case o.threads < 0 || o.threads > 1024:
		return nil, usageError(fmt.Sprintf("--threads: got %d, want 0 to 1024", o.threads))
	case o.missing && o.json == "":
		return nil, usageError("--missing leaves out rows of the file that --json names")
	case !(o.budget >= 0):
		return nil, usageError(fmt.Sprintf("--budget: got %v, want 0 or seconds", o.budget))
	case o.from != "" && (o.json != "" || o.serve):
		return nil, usageError("--from reports what was measured; it excludes --json and --serve")
	}
	return o, nil
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	o, err := parse(args, out)
	if err != nil || o == nil {
		return err
	}
	list, err := o.choose(allBenchmarks())
	if err != nil {
		return err
	}
	if o.list {
		for _, b := range list {
			fmt.Fprintf(out, "%-5s %s\n", b.Preset, b.String())
		}
		return nil
	}
	var old []result
	if o.old != "" { // read first: a file that cannot be read should not cost a run
		if old, err = readResults(o.old); err != nil {
			return err
		}
	}
	var results []result
	switch {
	case o.serve:
		return o.answer(in, out, list)
	case o.from != "":
		results, err = o.stored(out, list)
	default:
		results, err = o.measure(ctx, out, list)
	}
	if len(results) == 0 {
		return err
	}
	return errors.Join(err, o.report(out, results, old))
}

// stored are the chosen rows of a results file.
func (o *options) stored(out io.Writer, list []benchmark) ([]result, error) {
	all, err := readResults(o.from)
	if err != nil {
		return nil, err
	}
	wanted := map[string]bool{}
	for _, b := range list {
		wanted[b.String()] = true
	}
	var results []result
	for _, r := range all {
		if wanted[r.benchmark.String()] {
			results = append(results, r)
		}
	}
	if len(results) == 0 {
		return nil, fmt.Errorf("%s: none of the chosen rows is in it", o.from)
	}
	mergePeaks(results)
	if o.md == "" && o.plot == "" && o.old == "" {
		for _, preset := range presets {
			printPreset(out, preset, results)
		}
	}
	return results, nil
}

// measure runs the rows one by one. A wrong row does not stop the others; its error is returned at the end.
func (o *options) measure(ctx context.Context, out io.Writer, list []benchmark) ([]result, error) {
	start := time.Now()
	d, err := bindings.OpenDevice(o.device, o.threads)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	b := &bench{device: d, seconds: o.seconds, warmOnly: !o.cold}
	var h *header
	defer d.Do(func() error { b.free(); return nil })
	err = d.Do(func() error {
		if h, err = newHeader(d); err != nil {
			return err
		}
		b.card = monitor.Card(h.Device, func(text string) { fmt.Fprintln(os.Stderr, "kbench:", text) })
		h.Peaks, err = b.probe(10)
		return err
	})
	if err != nil {
		return nil, err
	}
	var j *journal
	if o.json != "" {
		if j, err = openJournal(o.json); err != nil {
			return nil, err
		}
		if o.missing {
			list = j.missing(list, h)
		}
		if err := j.add(line{Run: h}); err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(out, "%s\n\n", h.describe())
	fmt.Fprintln(out, strings.Join(columns, " | "))
	var results []result
	var wrong error
	left := newEstimate(list, func(c *benchmark) float64 { return b.expected(c, h.Peaks) })
	for i := range list {
		left.say(os.Stderr, i)
		if ctx.Err() != nil {
			return results, errors.Join(ctx.Err(), wrong)
		}
		if o.budget > 0 && time.Since(start).Seconds() > o.budget {
			fmt.Fprintf(out, "budget spent: %d rows are left\n", len(list)-i)
			break
		}
		var r *row
		err := d.Do(func() error {
			r, err = b.measure(&list[i])
			return err
		})
		if err != nil {
			err = fmt.Errorf("%s: %w", list[i].String(), err)
			var status *bindings.Error
			if errors.As(err, &status) && status.Status != bindings.StatusUnsupported {
				return results, errors.Join(err, wrong)
			}
			fmt.Fprintln(out, err)
			if status == nil {
				wrong = errors.Join(wrong, err)
			}
			continue
		}
		results = append(results, result{r, h})
		fmt.Fprintln(out, strings.Join(results[len(results)-1].cells(), " | "))
		if j != nil {
			if err := j.add(line{Row: r}); err != nil {
				return results, err
			}
		}
	}
	if len(results) > 0 {
		fmt.Fprintf(out, "\n%s\n", drift(results))
		if b.card != nil {
			fmt.Fprintln(out, cardDrift(results))
		}
	}
	return results, wrong
}

// estimate says how long the rest of a run takes.
type estimate struct {
	start, said time.Time
	expected    []float64
}

func newEstimate(list []benchmark, expected func(*benchmark) float64) *estimate {
	e := &estimate{start: time.Now()}
	for i := range list {
		e.expected = append(e.expected, expected(&list[i]))
	}
	return e
}

// left is the time that the rows from the n-th on take: as expected, corrected by how long those before took.
func (e *estimate) left(n int, elapsed time.Duration) time.Duration {
	done, rest := 10.0, 0.0 // so much weight has the guess
	for i, x := range e.expected {
		if i < n {
			done += x
		} else {
			rest += x
		}
	}
	return time.Duration(rest * (elapsed.Seconds() + 10) / done * float64(time.Second))
}

// say prints it at the start of a longer run, and again twice a minute.
func (e *estimate) say(out io.Writer, n int) {
	now := time.Now()
	if len(e.expected) < 5 || now.Sub(e.said) < 30*time.Second {
		return
	}
	e.said = now
	fmt.Fprintf(out, "%d of %d rows, about %v left\n", n, len(e.expected), e.left(n, now.Sub(e.start)).Round(time.Second))
}

// report writes what else was asked for.
func (o *options) report(out io.Writer, results, old []result) error {
	if o.md != "" {
		if err := markdown(o.md, "kbench", results); err != nil {
			return err
		}
	}
	if o.plot != "" {
		if err := roofline(o.plot, results); err != nil {
			return err
		}
	}
	if o.old != "" {
		fmt.Fprintln(out)
		return compare(out, results, old, o.force)
	}
	return nil
}
