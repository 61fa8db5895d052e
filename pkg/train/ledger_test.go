package train

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLedger(t *testing.T) {
	run := t.TempDir()
	l, err := OpenLog(run, new(bytes.Buffer))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Write(Record{Stage: StageTune, Step: 10, Images: 500, Seconds: 1800, GFLOPs: 100}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Write(Record{Stage: StageTune, Step: 10, Gains: []float64{1, 2, 3}}); err != nil {
		t.Fatal(err)
	}
	if err := l.writeLedger(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(run, "ledger.json")); err != nil || !bytes.Contains(b, []byte(`"device_hours": 1,`)) {
		t.Errorf("ledger.json: %v: %s", err, b)
	}
	if _, err := OpenLog(run, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "another program") {
		t.Errorf("a second log of a run: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := RunCost(run)
	if err != nil || c.Images != 1000 || math.Abs(c.Hours-1) > 1e-9 || math.Abs(c.PFLOP-0.36) > 1e-9 || c.Gain != 2 {
		t.Errorf("cost %+v, %v", c, err)
	}

	file := filepath.Join(run, "reference.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("name = 'R'\nsource = 'a paper'\ndevice_hours = 8\n")
	reference, err := ReadReference(file)
	if err != nil {
		t.Fatal(err)
	}
	var table bytes.Buffer
	PrintCosts(&table, []Cost{c}, &reference)
	if !strings.Contains(table.String(), "| 12.5 %, ?, ?, ? |") || !strings.Contains(table.String(), "R: a paper") {
		t.Errorf("table:\n%s", &table)
	}
	for _, bad := range []string{"name = 'R'\n", "name = 'R'\nsource = 's'\nhours = 3\n"} {
		write(bad)
		if _, err := ReadReference(file); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "reference.toml") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := ReadReference("../../configs/reference_paper.toml"); err != nil {
		t.Error(err)
	}
}
