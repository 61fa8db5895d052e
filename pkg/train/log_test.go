package train

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMetricsRoundTrip(t *testing.T) {
	run := t.TempDir()
	var text bytes.Buffer
	l, err := OpenLog(run, &text)
	if err != nil {
		t.Fatal(err)
	}
	l.steps = 40
	for i := range 4 {
		if err := l.Write(Record{Stage: StageTune, Step: int64(10 * i), Loss: 1 / float64(i+1), Images: 160, Seconds: 9, GFLOPs: 100, PeakShare: 0.5}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Write(Record{Stage: StageTune, Step: 40, Gains: []float64{1, 2, 3}}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"tune step 30/40", "17.8 images/s", "50 % of the peak", "mean +2.00 dB"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("log lacks %q:\n%s", want, &text)
		}
	}

	path := filepath.Join(run, metricsFile)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString(`{"stage":"tune","st`) // what a killed run leaves
	f.Close()
	records, err := ReadMetrics(run)
	if err != nil || len(records) != 5 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	var table bytes.Buffer
	PrintCosts(&table, Costs(records), nil)
	if want := "| tune | 640 | 0.01 | ? | 0.004 | 100 | +2.00 |"; !strings.Contains(table.String(), want) {
		t.Errorf("costs lack %q:\n%s", want, &table)
	}
	if err := PlotCurves(records, StageTune, filepath.Join(run, "tune")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tune-loss.svg", "tune-gain.svg"} {
		if b, err := os.ReadFile(filepath.Join(run, name)); err != nil || !bytes.Contains(b, []byte("<svg")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := PlotCurves(records, StageBase, filepath.Join(run, "base")); err == nil {
		t.Error("curves of a stage without records")
	}
}
