// Package golden reads the reference fixtures and holds results against them. A fixture is a folder with fixture.json: what was run,
// with which models, and how far a naive program of each precision was from the float64 reference; the numbers themselves lie in a
// safetensors file (or values.json). testdata/golden/README.md defines the format and the rule.
//
// Tests walk over every fixture of a kind, so that a folder put beside the others is a new test:
//
//	golden.ForEach(t, []string{"flux"}, func(t *testing.T, f *golden.Fixture) {
//		in := f.Input(t, "hidden_states")
//		...
//		golden.Check(t, f, "out.v", v, golden.F32)
//	})
package golden

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fluxir/fluxir/pkg/model/weights"
)

// Fixture is one folder of references.
type Fixture struct {
	Dir         string            `json:"-"`
	Kind        string            `json:"kind"` // "flux", "vae", "train", …
	Description string            `json:"description"`
	Models      map[string]string `json:"models"`     // role to path, relative to Dir; see Model
	Params      json.RawMessage   `json:"params"`     // what the run needs besides tensors; see Param
	RowStride   int               `json:"row_stride"` // of the stored gradients and final parameters; see Check
	IO          string            `json:"io"`         // file of the tensors or tables, relative to Dir
	NErr        map[string]Bound  `json:"n_err"`      // result tensor to the errors of the naive program

	source weights.Source
	mu     sync.Mutex
	rows   []row // what Check found so far
}

// Bound is the error of the naive program N against the reference R in one tensor, per precision [max|N-R|, rms(N-R)]. A precision that is nil has no bound.
type Bound struct {
	Scale float64     `json:"scale"` // max|R|, or what stands for it in gradients and sums
	F32   *[2]float64 `json:"f32"`
	BF16  *[2]float64 `json:"bf16"`
}

// Array is a tensor of floats, row-major.
type Array struct {
	Shape []int
	Data  []float32
}

// Roots returns the folders that hold fixtures: testdata/golden of the repository where it exists, and those of the environment variable
// FLUXIR_GOLDEN, separated by ':'. A folder named there that does not exist fails the test.
func Roots(t testing.TB) []string {
	t.Helper()
	var roots []string
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("golden: no go.mod above the test's folder")
		}
		dir = filepath.Dir(dir)
	}
	if own := filepath.Join(dir, "testdata", "golden"); isDir(own) {
		roots = append(roots, own)
	}
	for _, root := range filepath.SplitList(os.Getenv("FLUXIR_GOLDEN")) {
		if !isDir(root) {
			t.Fatalf("golden: FLUXIR_GOLDEN names %q, which is no folder", root)
		}
		roots = append(roots, root)
	}
	return roots
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// ForEach runs fn as a subtest, named after the folder, for every fixture of one of the kinds; the table of Check's worst rows is logged at its end.
// Folders of the same name in several roots all run. The test is skipped if there is none, which a checkout without FLUXIR_GOLDEN may lead to.
func ForEach(t *testing.T, kinds []string, fn func(t *testing.T, f *Fixture)) {
	t.Helper()
	ran := false
	for _, root := range Roots(t) {
		dirs, err := filepath.Glob(filepath.Join(root, "*", "fixture.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range dirs {
			f, err := Load(filepath.Dir(file))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(kinds, f.Kind) {
				continue
			}
			ran = true
			t.Run(filepath.Base(f.Dir), func(t *testing.T) {
				t.Cleanup(func() {
					if len(f.rows) > 0 {
						t.Log(f.table(8))
					}
					if err := f.Close(); err != nil {
						t.Error(err)
					}
				})
				fn(t, f)
			})
		}
	}
	if !ran {
		t.Skipf("golden: no fixture of kind %s; FLUXIR_GOLDEN names the folders that hold more", strings.Join(kinds, ", "))
	}
}

// Load reads dir/fixture.json. The tensors are opened on first use.
func Load(dir string) (*Fixture, error) {
	path := filepath.Join(dir, "fixture.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := &Fixture{Dir: dir}
	if err := json.Unmarshal(data, f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if f.Kind == "" || f.IO == "" || f.RowStride < 0 {
		return nil, fmt.Errorf("%s: wants kind, io and row_stride >= 0", path)
	}
	f.RowStride = max(1, f.RowStride)
	return f, nil
}

// Close closes the file of the tensors.
func (f *Fixture) Close() error {
	if f.source == nil {
		return nil
	}
	source := f.source
	f.source = nil
	return source.Close()
}

// Model returns the path of a model that the run reads, and fails the test if the fixture has no such role.
func (f *Fixture) Model(t testing.TB, role string) string {
	t.Helper()
	rel, ok := f.Models[role]
	if !ok {
		t.Fatalf("golden: %s has no model %q", f.Dir, role)
	}
	return filepath.Join(f.Dir, rel)
}

// Param returns params[name], read as a T ([]int for "grid", float64 for "lambda", a struct for "adamw", …), and fails the test if it is not there.
func Param[T any](t testing.TB, f *Fixture, name string) T {
	t.Helper()
	var params map[string]json.RawMessage
	var v T
	if err := json.Unmarshal(f.Params, &params); err != nil {
		t.Fatalf("golden: %s: params: %v", f.Dir, err)
	}
	raw, ok := params[name]
	if !ok {
		t.Fatalf("golden: %s: params have no %q", f.Dir, name)
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("golden: %s: params %q: %v", f.Dir, name, err)
	}
	return v
}

// HasParam tells whether params has a value of that name other than null.
func (f *Fixture) HasParam(name string) bool {
	var params map[string]any
	return json.Unmarshal(f.Params, &params) == nil && params[name] != nil
}

// Values reads a fixture that is a table: values.json into v.
func (f *Fixture) Values(t testing.TB, v any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(f.Dir, f.IO))
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		t.Fatalf("golden: %s: %v", f.Dir, err)
	}
}

// Tensors returns the names in the fixture's file that begin with prefix, sorted: "grad." lists the gradients.
// The stored results of N (out.X.f32, out.X.bf16) are left out.
func (f *Fixture) Tensors(t testing.TB, prefix string) []string {
	t.Helper()
	all := f.open(t).Names()
	return slices.DeleteFunc(slices.Clone(all), func(name string) bool {
		if !strings.HasPrefix(name, prefix) {
			return true
		}
		base := strings.TrimSuffix(strings.TrimSuffix(name, "."+F32), "."+BF16)
		_, found := slices.BinarySearch(all, base)
		return base != name && found
	})
}

// Has tells whether the fixture's file has a tensor of that name.
func (f *Fixture) Has(t testing.TB, name string) bool {
	t.Helper()
	_, found := slices.BinarySearch(f.open(t).Names(), name)
	return found
}

// Input returns the tensor "in."+name.
func (f *Fixture) Input(t testing.TB, name string) Array {
	t.Helper()
	return f.Floats(t, "in."+name)
}

// Floats returns a tensor of the fixture's file, such as "out.v.f32", as f32.
func (f *Fixture) Floats(t testing.TB, name string) Array {
	t.Helper()
	v := f.tensor(t, name)
	data, err := weights.Float32s(v)
	if err != nil {
		t.Fatal(err)
	}
	return Array{v.Shape, data}
}

// Ints returns a tensor of whole numbers, such as "in.t5_ids" or "u8.image".
func (f *Fixture) Ints(t testing.TB, name string) (shape []int, data []int64) {
	t.Helper()
	v := f.tensor(t, name)
	data, err := weights.Int64s(v)
	if err != nil {
		t.Fatal(err)
	}
	return v.Shape, data
}

func (f *Fixture) tensor(t testing.TB, name string) weights.Tensor {
	t.Helper()
	v, err := f.open(t).Tensor(name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (f *Fixture) open(t testing.TB) weights.Source {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.source == nil {
		source, err := weights.Open(filepath.Join(f.Dir, f.IO))
		if err != nil {
			t.Fatal(err)
		}
		f.source = source
	}
	return f.source
}
