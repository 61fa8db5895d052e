package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A run with a latent cache, empty, full, or with a flipped byte in it, ends in the bits of one without, for both kinds of autoencoder.
func TestLatentCache(t *testing.T) {
	for name, write := range map[string]func(string) error{"nano": nano, "flux": flux} {
		t.Run(name, func(t *testing.T) {
			dir, args := prepare(t, write)
			args = append(args, "--steps", "4", "--items", "5")
			cache := filepath.Join(dir, "cache")
			train := func(run string, more ...string) (state []byte, log string) {
				t.Helper()
				var text bytes.Buffer
				run = filepath.Join(dir, run)
				if err := runArgs(&text, args, append(more, "--run", run)); err != nil {
					t.Fatal(err)
				}
				state, err := os.ReadFile(filepath.Join(run, "adapter.state.safetensors"))
				if err != nil {
					t.Fatal(err)
				}
				return state, text.String()
			}
			want, _ := train("without")
			compare := func(run, line string) {
				t.Helper()
				got, log := train(run, "--latent-cache", cache)
				if !bytes.Equal(got, want) {
					t.Errorf("%s: other bits than without a cache", run)
				}
				if !strings.Contains(log, line) {
					t.Errorf("%s: no %q in %s", run, line, log)
				}
			}
			compare("empty", "latents: 22 read, 10 encoded, 0 of them for damaged files") // 16 pairs, of 5
			compare("full", "latents: 32 read, 0 encoded, 0 of them")
			files, _ := filepath.Glob(filepath.Join(cache, "*", "*", "*.lat"))
			if len(files) != 10 {
				t.Fatalf("%d files", len(files))
			}
			whole, err := os.ReadFile(files[3])
			if err != nil {
				t.Fatal(err)
			}
			flipped := bytes.Clone(whole)
			flipped[len(flipped)/2] ^= 16
			if err := os.WriteFile(files[3], flipped, 0o644); err != nil {
				t.Fatal(err)
			}
			compare("flipped", "latents: 31 read, 1 encoded, 1 of them for damaged files")
			if again, err := os.ReadFile(files[3]); err != nil || !bytes.Equal(again, whole) {
				t.Errorf("the damaged file was not made again as it was (%v)", err)
			}
			if err := runArgs(&bytes.Buffer{}, []string{"cache", "--clean", cache}, nil); err != nil {
				t.Error(err)
			}
			if left, _ := filepath.Glob(filepath.Join(cache, "*")); len(left) > 0 {
				t.Errorf("left after cleaning: %v", left)
			}
		})
	}
}

// runArgs is the command with its text in a buffer.
func runArgs(text *bytes.Buffer, args, more []string) error {
	return run(append(append([]string{"train"}, args...), more...), text)
}
