package nano

import (
	"io/fs"
	"testing"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// The embedded model loads in both precisions, says where it comes from, and keeps the program small.
func TestLoad(t *testing.T) {
	const most = 24_000_000
	total := int64(0)
	err := fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			info, err := entry.Info()
			if err != nil {
				return err
			}
			total += info.Size()
		}
		return err
	})
	if err != nil || total > most {
		t.Errorf("%d bytes (%v), want at most %d", total, err, most)
	}
	d, err := bindings.OpenDevice("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	err = d.Do(func() error {
		for _, dtype := range []bindings.DType{bindings.F32, bindings.BF16} {
			a := tensor.NewArena(d)
			defer a.Free()
			b, err := Load(a, dtype)
			if err != nil {
				return err
			}
			if b.Net.Base.DType != dtype || b.VAE.DType != bindings.F32 {
				t.Errorf("asked for %v, got %v and an autoencoder in %v", dtype, b.Net.Base.DType, b.VAE.DType)
			}
			if b.Net.Base.Config.Prediction != weights.PredictSample || b.Step == "" || b.Licence == "" {
				t.Errorf("predicts %q, step %q, licence %q", b.Net.Base.Config.Prediction, b.Step, b.Licence)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
