// Package network has the image quality metrics that are networks: LPIPS, CLIP-IQA, MUSIQ and MANIQA, on fluxir's own ops. They come without weights:
// the published ones are converted once by tools/iqa_weights.py and read from a safetensors file. The names in the file are those of pyiqa's modules.
package network

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// Kind is one of the networks.
type Kind struct {
	Name        string // also of the file: Name.safetensors
	Reference   bool   // compares with a reference
	LowerBetter bool
	Side        int    // smallest side of an image
	Fetch       string // the published files that its weights are made of
	load        func(p *params) scorer
}

// Kinds are all there are.
var Kinds = []Kind{
	{Name: "lpips-alex", Reference: true, LowerBetter: true, Side: 31, load: loadAlex,
		Fetch: "torchvision's alexnet-owt-7be5be79.pth and LPIPS_v0.1_alex-df73285e.pth"},
	{Name: "lpips-vgg", Reference: true, LowerBetter: true, Side: 16, load: loadVGG,
		Fetch: "torchvision's vgg16-397923af.pth and LPIPS_v0.1_vgg-a78928a0.pth"},
	{Name: "clip-iqa", Side: 32, load: loadCLIP, Fetch: "OpenAI's RN50.pt"},
	{Name: "musiq", Side: 16, load: loadMUSIQ, Fetch: "pyiqa's musiq_koniq_ckpt-e95806b9.pth"},
	{Name: "maniqa", Side: 32, load: loadMANIQA, Fetch: "pyiqa's ckpt_koniq10k.pt"},
}

// Path is where the weights lie in a folder.
func (k *Kind) Path(folder string) string { return filepath.Join(folder, k.Name+".safetensors") }

// scorer is a loaded network. pictures are one image, or two of the same size, image and reference; it is called inside Device.Do.
type scorer interface {
	score(r *run, pictures []*data.Image) (float64, error)
}

// Network is a loaded network with a device of its own. It scores one image at a time.
type Network struct {
	kind   *Kind
	device *bindings.Device
	arena  *tensor.Arena
	tape   *tensor.Tape
	net    scorer
}

// Hash is the first 12 digits of the SHA-256 of the weights' file in folder.
func (k *Kind) Hash(folder string) (string, error) {
	path := k.Path(folder)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s: no weights at %s: fetch %s, then python tools/iqa_weights.py %s FILE... %s", k.Name, path, k.Fetch, k.Name, path)
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)[:6]), nil
}

// Open loads the weights in folder onto a device: cpu, cuda, or auto ("" too), cuda where there is one. 0 threads are all cores.
func (k *Kind) Open(folder, device string, threads int) (*Network, error) {
	src, err := weights.Open(k.Path(folder))
	if err != nil {
		return nil, err
	}
	defer src.Close()
	d, err := openDevice(device, threads)
	if err != nil {
		return nil, err
	}
	n := &Network{kind: k, device: d}
	err = d.Do(func() error {
		n.arena, n.tape = tensor.NewArena(d), tensor.NewTape(d)
		p := &params{src: src, device: d, arena: n.arena}
		n.net = k.load(p)
		return p.err
	})
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func openDevice(name string, threads int) (*bindings.Device, error) {
	if name != "" && name != "auto" {
		return bindings.OpenDevice(name, threads)
	}
	if d, err := bindings.OpenDevice("cuda", threads); err == nil {
		return d, nil
	}
	return bindings.OpenDevice("cpu", threads)
}

// Close frees the weights and the device.
func (n *Network) Close() {
	_ = n.device.Do(func() error {
		n.tape.Free()
		n.arena.Free()
		return nil
	})
	n.device.Close()
}

// Score scores an image, values in 0..1, against its reference where the network has one. The result is the same on any number of threads.
func (n *Network) Score(img, reference *data.Image) (v float64, err error) {
	pictures := []*data.Image{img}
	if n.kind.Reference {
		pictures = append(pictures, reference)
		if img.W != reference.W || img.H != reference.H {
			return 0, fmt.Errorf("%s: image of %dx%d pixels, reference of %dx%d", n.kind.Name, img.W, img.H, reference.W, reference.H)
		}
	}
	if img.W < n.kind.Side || img.H < n.kind.Side {
		return 0, fmt.Errorf("%s: image of %dx%d pixels is too small, want %d a side", n.kind.Name, img.W, img.H, n.kind.Side)
	}
	err = n.device.Do(func() error {
		n.tape.Reset()
		var err error
		v, err = n.net.score(&run{Tape: n.tape}, pictures)
		return errors.Join(n.tape.Err(), err)
	})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", n.kind.Name, err)
	}
	return v, nil
}
