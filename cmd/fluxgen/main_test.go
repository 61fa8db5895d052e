package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	for line, want := range map[string]string{
		"":                                   "want a command",
		"paint --out x":                      `unknown command "paint"`,
		"run":                                "--out",
		"run --out x more":                   `unexpected argument "more"`,
		"run --out x --size 0":               "--size",
		"run --out x --size 12x":             "--size",
		"run --out x --dtype f64":            "--dtype",
		"run --out x --shard 1/2":            "unknown flag",
		"generate --out x --shard 2/2":       "shard",
		"select --out x --keep 2":            "keep",
		"select --out x --metrics ssim":      "reference",
		"degrade --out x --preset nothing":   "no preset",
		"report --out " + dir:                "no set",
		"generate --count -1 --out x":        "no negative number",
		"degrade --out " + dir + "/a":        "nothing is selected",
		"generate --model none --out " + dir: "no such model folder",
	} {
		var log bytes.Buffer
		err := run(context.Background(), strings.Fields(line), &log, &log)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
	var log bytes.Buffer
	if err := run(context.Background(), []string{"run", "--help"}, &log, &log); !errors.Is(err, pflag.ErrHelp) || !strings.Contains(log.String(), "--copies") {
		t.Errorf("help: %v\n%s", err, &log)
	}
}

// TestRun makes a small set in two goes.
func TestRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "set")
	var out, log bytes.Buffer
	line := "--size 20x16 --steps 1 --device cpu --threads 1 --out " + dir
	if err := run(context.Background(), strings.Fields("generate --count 2 "+line), &out, &log); err != nil {
		t.Fatal(err)
	}
	if err := run(context.Background(), strings.Fields("run --count 3 --preset jpeg --copies 2 "+line), &out, &log); err != nil {
		t.Fatalf("%v\n%s", err, &log)
	}
	if _, err := os.Stat(filepath.Join(dir, "report.html")); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "generate 1/1") || !strings.Contains(out.String(), "3 pictures") {
		t.Errorf("log %q, out %q", &log, &out)
	}
	if err := run(context.Background(), strings.Fields("generate --seed 2 "+line), &out, &log); err == nil || !strings.Contains(err.Error(), "seed 1, asked for is 2") {
		t.Errorf("another seed: %v", err)
	}
}
