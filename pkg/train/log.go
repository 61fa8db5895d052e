package train

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/fluxir/fluxir/pkg/data"
)

// Record is one line of a run's metrics.jsonl: a logged step, or, with Gains, a validation.
type Record struct {
	Stage     string    `json:"stage"`
	Step      int64     `json:"step"`
	Loss      float64   `json:"loss,omitempty"`
	Flow      float64   `json:"flow,omitempty"`
	Pixel     float64   `json:"pixel,omitempty"`
	GradNorm  float64   `json:"grad_norm,omitempty"` // before clipping
	LR        float64   `json:"lr,omitempty"`
	Images    int64     `json:"images,omitempty"`     // since the last record
	Seconds   float64   `json:"seconds,omitempty"`    // since the last record
	GFLOPs    float64   `json:"gflops,omitempty"`     // GFLOP/s of the model's products and attention, forward and backward
	PeakShare float64   `json:"peak_share,omitempty"` // of the matrix-product peak probed at the start, 0..1
	Gains     []float64 `json:"gains,omitempty"`      // dB, in the order of data.EvalPresets
	Time      string    `json:"time"`                 // RFC 3339
}

const metricsFile = "metrics.jsonl"

// Logger writes records for people and for machines.
type Logger struct {
	text  io.Writer
	file  *os.File
	steps int64
}

// OpenLog appends to the metrics of a run folder and prints lines to text.
func OpenLog(run string, text io.Writer) (*Logger, error) {
	f, err := os.OpenFile(filepath.Join(run, metricsFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	return &Logger{text: text, file: f}, err
}

// Close ends the log.
func (l *Logger) Close() error { return l.file.Close() }

// Printf writes a remark for people.
func (l *Logger) Printf(format string, args ...any) { fmt.Fprintf(l.text, format, args...) }

// Write records r.
func (l *Logger) Write(r Record) error {
	r.Time = time.Now().UTC().Format(time.RFC3339)
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := l.file.Write(append(line, '\n')); err != nil {
		return err
	}
	if r.Gains != nil {
		fmt.Fprintf(l.text, "%s step %d  PSNR gain", r.Stage, r.Step)
		mean := 0.0
		for i, g := range r.Gains {
			fmt.Fprintf(l.text, "  %s %+.2f", data.EvalPresets[i], g)
			mean += g / float64(len(r.Gains))
		}
		fmt.Fprintf(l.text, "  mean %+.2f dB\n", mean)
		return nil
	}
	fmt.Fprintf(l.text, "%s step %d/%d  loss %.5f  flow %.5f  pixel %.5f  grad %.3f  lr %.2e  %.1f images/s  %.0f GFLOP/s, %.0f %% of the peak\n",
		r.Stage, r.Step, l.steps, r.Loss, r.Flow, r.Pixel, r.GradNorm, r.LR, float64(r.Images)/r.Seconds, r.GFLOPs, 100*r.PeakShare)
	return nil
}
