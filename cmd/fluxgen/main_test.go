package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// TestMain is also the program, so that it can be killed.
func TestMain(m *testing.M) {
	if os.Getenv("FLUXGEN_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// TestKilled: a run of the embedded model that is killed with the first pictures there, and again with the first copies, ends in the bytes of any other.
func TestKilled(t *testing.T) {
	command := func(dir string) *exec.Cmd {
		cmd := exec.Command(os.Args[0], strings.Fields("run --count 9 --size 32 --steps 2 --batch 2 --metrics brisque --preset seesr --copies 2 --device cpu --out "+dir)...)
		cmd.Env = append(os.Environ(), "FLUXGEN_MAIN=1", "OMP_WAIT_POLICY=passive")
		return cmd
	}
	whole, dir := filepath.Join(t.TempDir(), "set"), filepath.Join(t.TempDir(), "set")
	if out, err := command(whole).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, some := range []string{"hq/*.png", "lq/*/*.png"} {
		cmd := command(dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if found, _ := filepath.Glob(filepath.Join(dir, some)); len(found) > 0 {
				break
			}
		}
		cmd.Process.Kill()
		if err := cmd.Wait(); err == nil {
			t.Logf("done before it was killed at %s", some)
		}
	}
	if out, err := command(dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want, got := files(t, whole), files(t, dir)
	if len(got) != len(want) || len(want) < 9 {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s differs", name)
		}
	}
}

// files are those of a folder with their contents.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		out[path[len(dir):]] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

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
