package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// A bundle is a folder with everything that restores:
//
//	transformer/{config.json, *.safetensors}   the base, under original or diffusers names
//	vae/{config.json, *.safetensors}           the autoencoder
//	adapter.safetensors                        FluxIR's adapter, its configuration in the metadata
//
// A FLUX.1 folder from the hub has the first two as they are.
const (
	transformerDir = "transformer"
	vaeDir         = "vae"
	adapterFile    = "adapter.safetensors"
	weightsFile    = "diffusion_pytorch_model.safetensors"
)

const adapterFormat = "1"

var errNoBundle = errors.New("no such model folder")

// Bundle is a loaded bundle.
type Bundle struct {
	Net *FluxIR
	VAE *VAE
	// Step, Licence and Data are the adapter's metadata. Data is the SHA-256 of the manifest of pairs that it was trained on; "": unknown.
	Step, Licence, Data string
}

// LoadBundle reads a bundle from a folder into a. The transformer and the adapter work in dtype, the autoencoder in vaeDType.
// adapter names another adapter file; empty takes the folder's.
func LoadBundle(a *tensor.Arena, dir, adapter string, dtype, vaeDType bindings.DType) (*Bundle, error) {
	if adapter == "" {
		adapter = filepath.Join(dir, adapterFile)
	}
	open, err := openFolder(dir)
	if err != nil {
		return nil, err
	}
	return loadBundle(a, open, func() (weights.Source, error) { return weights.OpenSet(adapter) }, dtype, vaeDType)
}

// LoadBase is LoadBundle without the adapter, for a folder that may have none, such as FLUX.1's: Net.Adapter is nil.
func LoadBase(a *tensor.Arena, dir string, dtype, vaeDType bindings.DType) (*Bundle, error) {
	open, err := openFolder(dir)
	if err != nil {
		return nil, err
	}
	return loadBundle(a, open, nil, dtype, vaeDType)
}

type opener func(sub string) (src weights.Source, config []byte, name string, err error)

// openFolder opens the parts of a bundle in a folder.
func openFolder(dir string) (opener, error) {
	if info, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) || (err == nil && !info.IsDir()) {
		return nil, fmt.Errorf("%s: %w", dir, errNoBundle)
	}
	return func(sub string) (weights.Source, []byte, string, error) {
		config := filepath.Join(dir, sub, "config.json")
		text, err := os.ReadFile(config)
		if err != nil {
			return nil, nil, config, err
		}
		src, err := weights.OpenSet(filepath.Join(dir, sub))
		return src, text, config, err
	}, nil
}

// LoadBundleFS is LoadBundle for a bundle inside the program. name stands for it in messages.
func LoadBundleFS(a *tensor.Arena, files fs.FS, name string, dtype, vaeDType bindings.DType) (*Bundle, error) {
	open, parse := openFS(files, name)
	return loadBundle(a, open, func() (weights.Source, error) { return parse(adapterFile) }, dtype, vaeDType)
}

// LoadBaseFS is LoadBase for a bundle inside the program.
func LoadBaseFS(a *tensor.Arena, files fs.FS, name string, dtype, vaeDType bindings.DType) (*Bundle, error) {
	open, _ := openFS(files, name)
	return loadBundle(a, open, nil, dtype, vaeDType)
}

func openFS(files fs.FS, name string) (opener, func(file string) (weights.Source, error)) {
	parse := func(file string) (weights.Source, error) {
		data, err := fs.ReadFile(files, file)
		if err != nil {
			return nil, err
		}
		return weights.Parse(path.Join(name, file), data)
	}
	return func(sub string) (weights.Source, []byte, string, error) {
		config := path.Join(sub, "config.json")
		text, err := fs.ReadFile(files, config)
		if err != nil {
			return nil, nil, config, err
		}
		src, err := parse(path.Join(sub, weightsFile))
		return src, text, path.Join(name, config), err
	}, parse
}

func loadBundle(a *tensor.Arena, open opener, openAdapter func() (weights.Source, error), dtype, vaeDType bindings.DType) (*Bundle, error) {
	b := &Bundle{Net: &FluxIR{}}
	src, text, name, err := open(vaeDir)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	vaeConfig, err := weights.ParseVAEConfig(name, text)
	if err != nil {
		return nil, err
	}
	if b.VAE, err = LoadVAE(a, src, *vaeConfig, vaeDType); err != nil {
		return nil, err
	}
	base, text, name, err := open(transformerDir)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	fluxConfig, err := weights.ParseFluxConfig(name, text)
	if err != nil {
		return nil, err
	}
	if got := 4 * vaeConfig.LatentChannels; got != fluxConfig.InChannels {
		return nil, fmt.Errorf("%s: %w: in_channels is %d, the autoencoder's packed latent has %d", name, weights.ErrConfig, fluxConfig.InChannels, got)
	}
	if b.Net.Base, err = LoadFlux(a, base, *fluxConfig, dtype); err != nil {
		return nil, err
	}
	if openAdapter == nil {
		return b, nil
	}
	ad, err := openAdapter()
	if err != nil {
		return nil, err
	}
	defer ad.Close()
	meta := ad.Metadata()
	b.Step, b.Licence, b.Data = meta["training_step"], meta["licence"], meta["data_manifest_sha256"]
	c := DefaultAdapterConfig()
	if err := json.Unmarshal([]byte(meta["config"]), &c); err != nil {
		return nil, fmt.Errorf("%s: %w: metadata config: %w", ad.Path(), weights.ErrConfig, err)
	}
	b.Net.Adapter, err = LoadAdapter(a, ad, &b.Net.Base.Config, c, dtype)
	return b, err
}

// ReadAdapterConfig reads the configuration of a folder's adapter.
func ReadAdapterConfig(dir string) (AdapterConfig, error) {
	c := DefaultAdapterConfig()
	src, err := weights.OpenSet(filepath.Join(dir, adapterFile))
	if err != nil {
		return c, err
	}
	defer src.Close()
	if err := json.Unmarshal([]byte(src.Metadata()["config"]), &c); err != nil {
		return c, fmt.Errorf("%s: %w: metadata config: %w", src.Path(), weights.ErrConfig, err)
	}
	return c, nil
}

// ShapeBundle allocates the networks that LoadBase would load, with a new adapter, and reads no weights: for counting memory on the dry device. dir needs
// only its two config.json.
func ShapeBundle(a *tensor.Arena, dir string, c AdapterConfig, dtype, vaeDType bindings.DType) (*Bundle, error) {
	if _, err := openFolder(dir); err != nil {
		return nil, err
	}
	text := func(sub string) (name string, b []byte, err error) {
		name = filepath.Join(dir, sub, "config.json")
		b, err = os.ReadFile(name)
		return name, b, err
	}
	name, b, err := text(vaeDir)
	if err != nil {
		return nil, err
	}
	vae, err := weights.ParseVAEConfig(name, b)
	if err != nil {
		return nil, err
	}
	if name, b, err = text(transformerDir); err != nil {
		return nil, err
	}
	flux, err := weights.ParseFluxConfig(name, b)
	if err != nil {
		return nil, err
	}
	return NewBundle(a, *flux, *vae, c, dtype, vaeDType)
}

// NewBundle allocates networks from configurations, weights undefined.
func NewBundle(a *tensor.Arena, flux weights.FluxConfig, vae weights.VAEConfig, c AdapterConfig, dtype, vaeDType bindings.DType) (*Bundle, error) {
	b := &Bundle{Net: &FluxIR{}}
	var err error
	if b.VAE, err = NewVAE(a, vae, vaeDType); err != nil {
		return nil, err
	}
	if b.Net.Base, err = NewFlux(a, flux, dtype); err != nil {
		return nil, err
	}
	b.Net.Adapter, err = NewAdapter(a, &b.Net.Base.Config, c, dtype)
	return b, err
}

// SaveBundle writes a bundle: base and adapter in BF16, the autoencoder in F32; averages where the parameters have them, else the masters or working copies.
func SaveBundle(dir string, b *Bundle) error {
	for sub, config := range map[string]any{transformerDir: b.Net.Base.Config, vaeDir: b.VAE.Config} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
		text, err := json.MarshalIndent(config, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, sub, "config.json"), append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	if err := saveParams(filepath.Join(dir, transformerDir, weightsFile), b.Net.Base.Params, weights.BF16, nil); err != nil {
		return err
	}
	if err := saveParams(filepath.Join(dir, vaeDir, weightsFile), b.VAE.Params, weights.F32, nil); err != nil {
		return err
	}
	return SaveAdapter(dir, b)
}

// SaveAdapter writes only a bundle's adapter, for a base that stands elsewhere.
func SaveAdapter(dir string, b *Bundle) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	config, err := json.Marshal(b.Net.Adapter.Config)
	if err != nil {
		return err
	}
	meta := map[string]string{"format_version": adapterFormat, "config": string(config), "training_step": b.Step, "licence": b.Licence}
	if b.Data != "" {
		meta["data_manifest_sha256"] = b.Data
	}
	return saveParams(filepath.Join(dir, adapterFile), b.Net.Adapter.Params, weights.BF16, meta)
}

func saveParams(file string, ps *Params, dtype weights.DType, meta map[string]string) error {
	var entries []weights.Entry
	for _, p := range ps.List {
		best := p.Value
		if p.Trained() {
			best = p.Master
		}
		if p.EMA != nil {
			best = p.EMA
		}
		values, err := best.Host()
		if err != nil {
			return err
		}
		entries = append(entries, weights.Float32Entry(p.Name, dtype, p.Value.Shape(), values))
	}
	return weights.Write(file, entries, meta)
}
