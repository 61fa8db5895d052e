package train

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/monitor"
	"github.com/fluxir/fluxir/pkg/train/board"
)

// Record is one line of a run's metrics.jsonl: a logged step, or, with Gains, a validation.
type Record struct {
	Stage     string                 `json:"stage"`
	Step      int64                  `json:"step"`
	Loss      float64                `json:"loss,omitempty"`
	Flow      float64                `json:"flow,omitempty"`
	Pixel     float64                `json:"pixel,omitempty"`
	GradNorm  float64                `json:"grad_norm,omitempty"` // before clipping
	Groups    map[string]GroupRecord `json:"groups,omitempty"`    // by group: base, block, theta, se
	LR        float64                `json:"lr,omitempty"`
	Images    int64                  `json:"images,omitempty"`     // since the last record
	Seconds   float64                `json:"seconds,omitempty"`    // since the last record
	Parts     map[string]float64     `json:"parts,omitempty"`      // seconds since the last record by what they went to
	DataRate  float64                `json:"data_rate,omitempty"`  // pairs a second that the data's workers can make; images/s below it: they keep up
	GFLOPs    float64                `json:"gflops,omitempty"`     // GFLOP/s of the model's products and attention, forward and backward
	PeakShare float64                `json:"peak_share,omitempty"` // of Trainer.Peak, 0..1
	KWh       float64                `json:"kwh,omitempty"`        // since the last record, of all devices, taken to draw what the first does; absent: unknown
	Readings  map[string]float64     `json:"readings,omitempty"`   // of the device, see package monitor
	Device    string                 `json:"device,omitempty"`     // processor or card
	Devices   int                    `json:"devices,omitempty"`    // machines that train together; absent: 1
	Gains     []float64              `json:"gains,omitempty"`      // dB, by kind of degradation
	Kinds     []string               `json:"kinds,omitempty"`      // names of these; absent: data.EvalPresets
	Time      string                 `json:"time"`                 // RFC 3339

	flops int64 // of the step
}

// GroupRecord is what a group of parameters did in one step.
type GroupRecord struct {
	GradNorm float64 `json:"grad_norm"` // before clipping
	Change   float64 `json:"change"`    // norm of the step's difference of the weights, as a share of their norm
}

const metricsFile = "metrics.jsonl"

// Logger writes records for people and for machines: lines of text, metrics.jsonl, TensorBoard's event file, ledger.json.
type Logger struct {
	run     string
	text    io.Writer
	file    *os.File
	board   *board.Writer
	monitor *monitor.Monitor
	device  string // processor or card
	devices int    // that train
	steps   int64
	records []Record           // of the run, for the ledger
	parts   map[string]float64 // since they were printed
}

// OpenLog appends to the metrics of a run folder and prints lines to text.
func OpenLog(run string, text io.Writer) (*Logger, error) {
	l := &Logger{run: run, text: text, parts: map[string]float64{}}
	var err error
	if l.records, err = ReadMetrics(run); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if l.file, err = os.OpenFile(filepath.Join(run, metricsFile), os.O_CREATE|os.O_RDWR, 0o644); err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(l.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("%s: another program is training in this folder (%w)", run, err)
	}
	if err := dropTornLine(l.file); err != nil {
		return nil, err
	}
	l.board, err = board.Create(run)
	return l, err
}

// SilentLog is the log of a process that writes nothing: one of several, not the first.
func SilentLog() *Logger { return &Logger{text: io.Discard} }

// dropTornLine cuts what a killed run left behind the last newline, and goes to the end.
func dropTornLine(f *os.File) error {
	b, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	end := int64(bytes.LastIndexByte(b, '\n') + 1)
	if err := f.Truncate(end); err != nil {
		return err
	}
	_, err = f.Seek(end, io.SeekStart)
	return err
}

// Close ends the log.
func (l *Logger) Close() error {
	if l.file == nil {
		return nil
	}
	return errors.Join(l.file.Close(), l.board.Close())
}

// watch starts reading the device's monitor with each record; there are so many devices of that kind.
func (l *Logger) watch(device, name string, devices int, watts float64) {
	l.device, l.devices = name, devices
	l.monitor = monitor.Open(device, watts, func(text string) { l.Printf("monitor: %s\n", text) })
}

// Printf writes a remark for people.
func (l *Logger) Printf(format string, args ...any) { fmt.Fprintf(l.text, format, args...) }

// Write records r.
func (l *Logger) Write(r Record) error {
	r.Time, r.Device = time.Now().UTC().Format(time.RFC3339), l.device
	if l.devices > 1 {
		r.Devices = l.devices
	}
	var readings []monitor.Value
	if l.monitor != nil && r.Gains == nil {
		readings, r.KWh = l.monitor.Read()
		r.KWh *= float64(l.devices)
		r.Readings = map[string]float64{}
		for _, v := range readings {
			r.Readings[v.Name] = v.Value
		}
	}
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := l.file.Write(append(line, '\n')); err != nil {
		return err
	}
	l.records = append(l.records, r)
	if err := l.board.Scalars(r.Step, r.scalars()); err != nil {
		return err
	}
	for part, seconds := range r.Parts {
		l.parts[part] += seconds
	}
	if r.Gains != nil {
		l.printGains(r)
		return nil
	}
	fmt.Fprintf(l.text, "%s step %d/%d  loss %.5f  flow %.5f  pixel %.5f  grad %.3f  lr %.2e  %.1f images/s  data %.0f pairs/s  %.0f GFLOP/s, %.0f %% of the peak",
		r.Stage, r.Step, l.steps, r.Loss, r.Flow, r.Pixel, r.GradNorm, r.LR, float64(r.Images)/r.Seconds, r.DataRate, r.GFLOPs, 100*r.PeakShare)
	for _, v := range readings {
		fmt.Fprintf(l.text, "  %v", v)
	}
	fmt.Fprintln(l.text)
	return nil
}

func (l *Logger) printGains(r Record) {
	fmt.Fprintf(l.text, "%s step %d  PSNR gain", r.Stage, r.Step)
	for i, g := range r.Gains {
		fmt.Fprintf(l.text, "  %s %+.2f", r.kind(i), g)
	}
	fmt.Fprintf(l.text, "  mean %+.2f dB\n", mean(r.Gains))
}

// printParts says what the time went to since it was last said.
func (l *Logger) printParts(stage string) {
	total := 0.0
	for _, seconds := range l.parts {
		total += seconds
	}
	if total == 0 {
		return
	}
	fmt.Fprintf(l.text, "%s: time", stage)
	for _, part := range parts {
		if seconds, ok := l.parts[part]; ok {
			fmt.Fprintf(l.text, "  %s %.1f %%", part, 100*seconds/total)
		}
	}
	fmt.Fprintln(l.text)
	clear(l.parts)
}

// kind is the name of the degradation of gain i.
func (r Record) kind(i int) string {
	if i < len(r.Kinds) {
		return r.Kinds[i]
	}
	return data.EvalPresets[i]
}

// scalars are the record's numbers for TensorBoard.
func (r Record) scalars() []board.Scalar {
	var list []board.Scalar
	add := func(tag string, v float64) { list = append(list, board.Scalar{Tag: r.Stage + "/" + tag, Value: v}) }
	for i, g := range r.Gains {
		add("psnr_gain/"+r.kind(i), g)
	}
	if r.Gains != nil {
		add("psnr_gain/mean", mean(r.Gains))
		return list
	}
	add("loss/total", r.Loss)
	add("loss/flow", r.Flow)
	add("loss/pixel", r.Pixel)
	add("lr", r.LR)
	add("grad_norm/all", r.GradNorm)
	for _, name := range slices.Sorted(maps.Keys(r.Groups)) {
		add("grad_norm/"+name, r.Groups[name].GradNorm)
		add("weight_change/"+name, r.Groups[name].Change)
	}
	add("speed/images_per_s", float64(r.Images)/r.Seconds)
	add("speed/gflops", r.GFLOPs)
	add("speed/data_pairs_per_s", r.DataRate)
	for _, name := range slices.Sorted(maps.Keys(r.Parts)) {
		add("seconds_per_image/"+name, r.Parts[name]/float64(max(r.Images, 1)))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Readings)) {
		add("device/"+name, r.Readings[name])
	}
	return list
}

func mean(v []float64) (m float64) {
	for _, x := range v {
		m += x / float64(len(v))
	}
	return m
}
