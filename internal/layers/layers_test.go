// Package layers has only a test: it holds the import order of the repository.
package layers

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/fluxir/fluxir/"

// may says what the packages at and below a path may import of this module ("..." as in go: everything below too); the longest path that fits
// a package decides. Data goes one way: image, pkg/data, pkg/tensor, bindings, C, and back; packages of pkg without a row are on top.
var may = map[string][]string{
	"bindings":          {"C"},
	"bindings/optest":   {"bindings"},
	"pkg/data":          {"pkg/data..."},
	"pkg/tensor":        {"bindings"},
	"pkg/model/weights": {},
	"pkg/model":         {"bindings", "pkg/tensor", "pkg/model..."},
	"pkg/train":         {"bindings", "pkg/tensor", "pkg/model...", "pkg/data...", "pkg/train...", "pkg/monitor"},
	"pkg/train/board":   {},
	"pkg/monitor":       {},
	"pkg":               {"bindings", "pkg..."},
	"cmd":               {"pkg..."},
	"cmd/kbench":        {"bindings", "bindings/optest", "pkg/tensor", "pkg/model...", "pkg/train", "pkg/data", "pkg/monitor"},
	"internal":          {"bindings", "pkg..."}, // for tests
}

// TestImports reads every Go file that is no test, whatever its build tags. (`go list` would do, but go test could not tell when its answer
// changes and would serve an old result.)
func TestImports(t *testing.T) {
	root, files := filepath.Join("..", ".."), 0
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name := entry.Name(); path != root && (name[0] == '.' || slices.Contains([]string{"build", "data", "runs", "out", "testdata"}, path[len(root)+1:])) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		files++
		return checkFile(t, path, filepath.ToSlash(filepath.Dir(path[len(root)+1:])))
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Errorf("found only %d files", files)
	}
}

func checkFile(t *testing.T, path, pkg string) error {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		return err
	}
	layer := ""
	for dir := range may {
		if below(pkg, dir) && len(dir) > len(layer) {
			layer = dir
		}
	}
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		imported, ours := strings.CutPrefix(imported, module)
		if !ours && imported != "C" {
			continue
		}
		if !slices.ContainsFunc(may[layer], func(row string) bool {
			dir, all := strings.CutSuffix(row, "...")
			return imported == dir || all && below(imported, dir)
		}) {
			t.Errorf("%s imports %s; the table allows %q", path, imported, may[layer])
		}
	}
	return nil
}

// below reports whether path is dir or inside it.
func below(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
