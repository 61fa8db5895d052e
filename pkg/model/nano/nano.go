// Package nano is the model inside the program: a small FLUX-shaped flow transformer with its FluxIR adapter and autoencoder,
// trained by `train nano` (docs/nano.md). The files are a bundle as model.SaveBundle writes it.
package nano

import (
	"embed"
	"io/fs"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/tensor"
)

//go:embed bundle
var files embed.FS

const name = "embedded model" // in messages

// Load reads the model into a. Transformer and adapter work in dtype, the autoencoder in f32. Call inside Device.Do.
func Load(a *tensor.Arena, dtype bindings.DType) (*model.Bundle, error) {
	return model.LoadBundleFS(a, Files(), name, dtype, bindings.F32)
}

// LoadBase is Load without the adapter, to train another.
func LoadBase(a *tensor.Arena, dtype bindings.DType) (*model.Bundle, error) {
	return model.LoadBaseFS(a, Files(), name, dtype, bindings.F32)
}

// Files are the files of the bundle.
func Files() fs.FS {
	bundle, err := fs.Sub(files, "bundle")
	if err != nil {
		panic(err) // only for an invalid name
	}
	return bundle
}
