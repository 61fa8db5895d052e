package main

import (
	"maps"
	"testing"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/bindings/optest"
	"github.com/fluxir/fluxir/pkg/train"
)

func openCPU(t *testing.T) *bindings.Device {
	d, err := bindings.OpenDevice("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// TestChecks: the gates of whole blocks pass.
func TestChecks(t *testing.T) {
	d := openCPU(t)
	config := nanoConfig(bindings.BF16)
	config.Batch, config.Size = 2, 16
	for name, open := range map[string]func() (subject, error){
		"double": func() (subject, error) {
			return blockSpec{kind: "double_block", mode: weightGrads, dtype: bindings.BF16, heads: 1, text: 3, image: 5}.open(d)
		},
		"single": func() (subject, error) {
			return blockSpec{kind: "single_block", mode: weightGrads, dtype: bindings.F32, heads: 1, text: 3, image: 5}.open(d)
		},
		"decoder":  func() (subject, error) { return newDecoder(d, bindings.F32, fluxVAE(16, 8, 1), 2) },
		"training": func() (subject, error) { return newTraining(d, config) },
	} {
		err := d.Do(func() error {
			s, err := open()
			if err != nil {
				return err
			}
			defer s.free()
			ratio, err := s.check()
			t.Logf("%s: %.2f", name, ratio)
			if err != nil {
				return err
			}
			return s.run()
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWrongBlock: one wrong bias is seen, in the outputs and in the gradients alone.
func TestWrongBlock(t *testing.T) {
	d := openCPU(t)
	s := blockSpec{kind: "double_block", mode: inputGrads, dtype: bindings.BF16, heads: 1, text: 3, image: 5}
	for _, wrong := range []string{"", "img_mod.lin.bias", "txt_mlp.2.bias"} {
		var err error
		failed := d.Do(func() error {
			b, e := s.build(d)
			if e != nil {
				return e
			}
			defer b.free()
			in, cotangents, e := b.nodes()
			if e != nil {
				return e
			}
			if wrong != "" {
				values := in[wrong].X
				for i := range values {
					values[i] += 0.5
				}
			}
			got, e := b.results()
			if e != nil {
				return e
			}
			if wrong == "img_mod.lin.bias" {
				maps.DeleteFunc(got, func(name string, _ []float64) bool { return name[0] != 'd' })
			}
			_, err = optest.DoubleBlock(1).Check(s.dtype, in, cotangents, got)
			return nil
		})
		if failed != nil {
			t.Fatal(failed)
		}
		if (err != nil) != (wrong != "") {
			t.Errorf("wrong %q: %v", wrong, err)
		}
	}
}

// TestNanoConfig: what is timed is what the recipe trains with.
func TestNanoConfig(t *testing.T) {
	if c := nanoConfig(bindings.BF16); c.Stage != train.StageTune || c.Validate() != nil {
		t.Errorf("%+v: %v", c, c.Validate())
	}
}
