package bindings_test

import (
	"fmt"
	"math"
	"testing"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/internal/golden"
)

// TestGoldenPhilox holds words and normals against the reference, bit by bit.
func TestGoldenPhilox(t *testing.T) {
	golden.ForEach(t, []string{"philox"}, func(t *testing.T, f *golden.Fixture) {
		var cases []struct {
			Seed, Stream, Offset string
			Count                int
			Words                []string
			NormalBits           []string `json:"normal_bits"`
		}
		f.Values(t, &cases)
		if len(cases) == 0 {
			t.Fatal("no cases")
		}
		for _, c := range cases {
			seed, stream, offset := number(t, c.Seed), number(t, c.Stream), number(t, c.Offset)
			words := make([]uint32, len(c.Words))
			bindings.PhiloxWords(words, seed, stream, offset/4)
			for i, want := range c.Words {
				if got := fmt.Sprintf("%08x", words[i]); got != want {
					t.Fatalf("seed %s, stream %s: word %d from element %s on is %s, want %s", c.Seed, c.Stream, i, c.Offset, got, want)
				}
			}
			normals := make([]float32, c.Count)
			bindings.PhiloxNormal(normals, seed, stream, offset)
			if len(c.NormalBits) != c.Count {
				t.Fatalf("%d normals of %d", len(c.NormalBits), c.Count)
			}
			for i, want := range c.NormalBits {
				if got := fmt.Sprintf("%08x", math.Float32bits(normals[i])); got != want {
					t.Fatalf("seed %s, stream %s: normal %s + %d is %s, want %s", c.Seed, c.Stream, c.Offset, i, got, want)
				}
			}
		}
	})
}

func number(t *testing.T, text string) uint64 {
	var u uint64
	if _, err := fmt.Sscanf(text, "0x%x", &u); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return u
}
