package weights

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// folder writes files: a *.safetensors with the U8 tensors that its content names ("a b"), others as they are.
func folder(t *testing.T, files map[string]string) string {
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		var err error
		if strings.HasSuffix(name, ".safetensors") {
			var entries []Entry
			for _, tensor := range strings.Fields(content) {
				entries = append(entries, Float32Entry(tensor, F32, []int{1}, []float32{float32(tensor[0])}))
			}
			err = Write(path, entries, map[string]string{"file": name})
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const index = "diffusion_pytorch_model.safetensors.index.json"

func TestOpenSet(t *testing.T) {
	shards := map[string]string{
		"m-1.safetensors": "b c", "m-2.safetensors": "a", "other.safetensors": "z",
		index: `{"metadata": {"total_size": 12}, "weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-1.safetensors"}}`,
	}
	for _, c := range []struct {
		name  string
		files map[string]string
		path  string
		want  string
	}{
		{"a file", map[string]string{"x.safetensors": "a b"}, "x.safetensors", "a b"},
		{"a folder with one file", map[string]string{"x.safetensors": "a b", "config.json": "{}"}, "", "a b"},
		{"a folder with a variant", map[string]string{"model.safetensors": "a", "model.fp16.safetensors": "b"}, "", "a"},
		{"shards", shards, "", "a b c"},
		{"an index", shards, index, "a b c"},
		{"one of the shards", shards, "m-1.safetensors", "b c"},
	} {
		t.Run(c.name, func(t *testing.T) {
			src, err := OpenSet(filepath.Join(folder(t, c.files), c.path))
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			if got := strings.Join(src.Names(), " "); got != c.want {
				t.Errorf("names %q, want %q", got, c.want)
			}
			for _, name := range src.Names() {
				v, err := src.Tensor(name)
				if err != nil {
					t.Fatal(err)
				}
				if f, err := Float32s(v); err != nil || f[0] != float32(name[0]) {
					t.Errorf("%s = %v, %v", name, f, err)
				}
			}
			if src.Metadata()["file"] == "" {
				t.Error("no metadata")
			}
			if _, err := src.Tensor("absent"); !errors.Is(err, ErrMissingTensor) || !strings.HasPrefix(err.Error(), src.Path()) {
				t.Errorf("absent tensor: %v", err)
			}
		})
	}
}

func TestOpenSetRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		kind  error
		cause string
	}{
		{"empty folder", nil, ErrMissingTensor, "no *.safetensors"},
		{"several files", map[string]string{"x.safetensors": "a", "y.safetensors": "b"}, ErrCorrupt, "x.safetensors, y.safetensors"},
		{"shard absent", map[string]string{"m-1.safetensors": "a", index: `{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}`}, ErrMissingTensor, "m-2.safetensors"},
		{"tensor absent", map[string]string{"m-1.safetensors": "a", index: `{"weight_map": {"a": "m-1.safetensors", "b": "m-1.safetensors"}}`}, ErrMissingTensor, `"b"`},
		{"tensor not in the index", map[string]string{"m-1.safetensors": "a b", index: `{"weight_map": {"a": "m-1.safetensors"}}`}, ErrCorrupt, `"b"`},
		{"tensor in another shard", map[string]string{"m-1.safetensors": "a", "m-2.safetensors": "b a", index: `{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}`}, ErrCorrupt, "m-2.safetensors has it"},
		{"shard outside", map[string]string{index: `{"weight_map": {"a": "../m-1.safetensors"}}`}, ErrCorrupt, "plain file name"},
		{"shard is the parent", map[string]string{index: `{"weight_map": {"a": ".."}}`}, ErrCorrupt, "plain file name"},
		{"no weight_map", map[string]string{index: `{"metadata": {}}`}, ErrCorrupt, "weight_map"},
		{"duplicate in the index", map[string]string{index: `{"weight_map": {"a": "x", "a": "y"}}`}, ErrCorrupt, "duplicate"},
		{"weight_map twice", map[string]string{index: `{"weight_map": {"a": "x"}, "weight_map": {"a": "x"}}`}, ErrCorrupt, "duplicate"},
		{"index not JSON", map[string]string{index: `{"weight_map": `}, ErrCorrupt, "EOF"},
		{"index with a tail", map[string]string{index: `{"weight_map": {"a": "x"}} 1`}, ErrCorrupt, "follows"},
		{"index null", map[string]string{index: `null`}, ErrCorrupt, "wants {"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := folder(t, c.files)
			_, err := OpenSet(dir)
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.cause) || !strings.HasPrefix(err.Error(), dir) {
				t.Errorf("got %v, want %v with %q", err, c.kind, c.cause)
			}
		})
	}
	if _, err := OpenSet(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent path: %v", err)
	}
}
