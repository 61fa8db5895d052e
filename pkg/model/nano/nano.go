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

// Load reads the model into a. Transformer and adapter work in dtype, the autoencoder in f32. Call inside Device.Do.
func Load(a *tensor.Arena, dtype bindings.DType) (*model.Bundle, error) {
	bundle, err := fs.Sub(files, "bundle")
	if err != nil {
		return nil, err
	}
	return model.LoadBundleFS(a, bundle, "embedded model", dtype, bindings.F32)
}
