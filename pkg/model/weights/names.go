package weights

import (
	"fmt"
	"slices"
)

// Layout is a naming of a model's tensors.
type Layout int

// The layouts. fluxir's own names are Original for the transformer and Diffusers for the autoencoder.
const (
	Original  Layout = iota // Black Forest Labs' files and the GGUF files made from them
	Diffusers               // FluxTransformer2DModel, AutoencoderKL
)

func (l Layout) String() string { return [...]string{"original", "diffusers"}[l] }

// Param is a parameter under fluxir's name and the tensors of a file that it is made from.
type Param struct {
	Name  string
	Shape []int
	Parts []Part // joined along dimension 0, in this order
	// SwapHalves exchanges the two halves of dimension 0: the final layer's modulation is (shift, scale) in the original and (scale, shift) in diffusers.
	SwapHalves bool
}

// Part is a tensor of a file. Its shape may have other trailing ones than the parameter's (a 1×1 convolution for a matrix).
type Part struct {
	Name  string
	Shape []int
}

// Load returns the parameter's values in the dtype of the file. A parameter that is one tensor of the file is a view of it, without a copy.
// Errors: ErrMissingTensor, ErrShape; ErrDType if the parts differ in type.
func (p *Param) Load(src Source) (Tensor, error) {
	var parts []Tensor
	for _, part := range p.Parts {
		t, err := src.Tensor(part.Name)
		if err != nil {
			return Tensor{}, err
		}
		if !slices.Equal(t.Shape, part.Shape) {
			return Tensor{}, fail(t.Path, t.Name, ErrShape, "got %v, want %v", t.Shape, part.Shape)
		}
		if len(parts) > 0 && t.DType != parts[0].DType {
			return Tensor{}, fail(t.Path, t.Name, ErrDType, "%v, but %s, which it is joined with, is %v", t.DType, parts[0].Name, parts[0].DType)
		}
		parts = append(parts, t)
	}
	out := Tensor{Path: parts[0].Path, Name: p.Name, DType: parts[0].DType, Shape: p.Shape, Data: parts[0].Data}
	if len(parts) > 1 {
		out.Data = make([]byte, 0, numel(p.Shape)*out.DType.Size())
		for _, t := range parts {
			out.Data = append(out.Data, t.Data...)
		}
	}
	if p.SwapHalves {
		out.Data = swapHalves(out.Data)
	}
	return out, nil
}

// Split is the inverse of Load: it cuts values in fluxir's layout into the parts, in their order. The results alias values, except
// where halves are swapped. It panics if values does not have the parameter's size.
func Split[E any](p *Param, values []E) [][]E {
	if len(values) != numel(p.Shape) {
		panic(fmt.Sprintf("weights: Split %s: got %d values, want %v", p.Name, len(values), p.Shape))
	}
	if p.SwapHalves {
		values = swapHalves(values)
	}
	var parts [][]E
	for _, part := range p.Parts {
		n := numel(part.Shape)
		parts = append(parts, values[:n:n])
		values = values[n:]
	}
	return parts
}

func swapHalves[E any](s []E) []E {
	h := len(s) / 2
	return append(append(make([]E, 0, len(s)), s[h:]...), s[:h]...)
}

func numel(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

// Unused returns the tensors of src that no parameter takes, sorted: a sign that the configuration describes another model.
func Unused(src Source, params []Param) []string {
	used := map[string]bool{}
	for _, p := range params {
		for _, part := range p.Parts {
			used[part.Name] = true
		}
	}
	return slices.DeleteFunc(src.Names(), func(name string) bool { return used[name] })
}

// detect returns the layout whose mark is among src's names.
func detect(src Source, original, diffusers string) (Layout, error) {
	names := src.Names()
	if _, ok := slices.BinarySearch(names, original); ok {
		return Original, nil
	}
	if _, ok := slices.BinarySearch(names, diffusers); ok {
		return Diffusers, nil
	}
	return 0, fail(src.Path(), "", ErrMissingTensor, "neither %q (original names) nor %q (diffusers)", original, diffusers)
}

// rename is a list of parameters under construction, with the names of both layouts.
type rename struct {
	layout Layout
	params []Param
}

// add appends a parameter that is one tensor in either layout.
func (r *rename) add(original, diffusers string, internal Layout, shape ...int) {
	names := [...]string{Original: original, Diffusers: diffusers}
	r.params = append(r.params, Param{Name: names[internal], Shape: shape, Parts: []Part{{names[r.layout], shape}}})
}
