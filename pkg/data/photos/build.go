package photos

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/fluxir/fluxir/pkg/data"
)

// Options says what Build collects and where. The zero value of each flag is the default recipe: every Debian photograph.
type Options struct {
	Dir        string    // receives train/ val/ eval/ with PNG files, train.fxp val.fxp, CREDITS and licences/
	Cache      string    // receives the unpacked packages (about 1 GB)
	Stock      bool      // add the stock photographs of three npm packages: people, hands and rooms, which Debian lacks
	Permissive bool      // only public domain, CC0, CC-BY and BSD
	Log        io.Writer // progress, one line each; nil = silent
}

// Summary counts what lies in Dir after Build.
type Summary struct {
	Train, Val, Eval       int     // photographs
	TrainMP, ValMP, EvalMP float64 // megapixels
	Dropped                []string
}

// item is a source with its bytes' hash and the split that the hash puts it in.
type item struct {
	source
	raw   func() ([]byte, error)
	hash  string
	split string // train, val or eval
	drop  string // why it is left out, or ""
}

// Build fetches the packages, picks the photographs out of them, splits them into training and validation, and writes them to o.Dir.
// What an earlier run finished is kept, so it can be interrupted and run again. A photograph that is broken, a duplicate or nearly
// black is left out and named in Summary.Dropped; a package that cannot be had is an error.
func Build(ctx context.Context, o Options) (Summary, error) {
	sources, err := wanted(o)
	if err != nil {
		return Summary{}, err
	}
	return build(ctx, o, sources)
}

// build is Build for a given list of sources.
func build(ctx context.Context, o Options, sources []source) (Summary, error) {
	for _, d := range []string{o.Cache, o.Dir, filepath.Join(o.Dir, "licences")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return Summary{}, fmt.Errorf("photos: %w", err)
		}
	}
	items, err := collect(ctx, o, sources)
	if err != nil {
		return Summary{}, fmt.Errorf("photos: %w", err)
	}
	split(items)
	if err := convertAll(ctx, o, items); err != nil {
		return Summary{}, fmt.Errorf("photos: %w", err)
	}
	return finish(o, items)
}

// wanted lists the sources that the options ask for.
func wanted(o Options) ([]source, error) {
	all, err := parseSources(sourcesText)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(s source) bool {
		return s.kind == kindNpm && !o.Stock || o.Permissive && !s.permissive()
	}), nil
}

// collect fetches each package once and finds and hashes each source's bytes.
func collect(ctx context.Context, o Options, sources []source) ([]item, error) {
	trees := map[string]string{}
	var archive string
	var inside map[string][]byte
	items := make([]item, 0, len(sources))
	for _, s := range sources {
		tree, ok := trees[s.pkg]
		if !ok {
			logf(o, "package %s", s.pkg)
			var err error
			if tree, err = fetchPackage(ctx, o.Cache, s.kind, s.pkg); err != nil {
				return nil, err
			}
			trees[s.pkg] = tree
			if err := copyLicence(o, s.pkg, tree); err != nil {
				return nil, err
			}
		}
		it := item{source: s}
		if s.archive != "" {
			if p := filepath.Join(tree, s.archive); p != archive {
				raw, err := os.ReadFile(p)
				if err != nil {
					return nil, err
				}
				if inside, err = readRCC(raw); err != nil {
					return nil, fmt.Errorf("%s: %w", p, err)
				}
				archive = p
				if err := copyReadmes(o, s, inside); err != nil {
					return nil, err
				}
			}
			body := inside[s.file]
			it.raw = func() ([]byte, error) { return body, nil }
		} else {
			it.raw = func() ([]byte, error) { return readSource(filepath.Join(tree, s.file)) }
		}
		raw, err := it.raw()
		if err != nil {
			it.drop = err.Error()
		} else if len(raw) == 0 {
			it.drop = "missing from the package"
		}
		sum := sha256.Sum256(raw)
		it.hash = hex.EncodeToString(sum[:])
		items = append(items, it)
	}
	return items, nil
}

// readSource reads a picture file, or the largest picture of an .edj container.
func readSource(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil || filepath.Ext(path) != ".edj" {
		return raw, err
	}
	return largestJPEG(raw)
}

// split puts every tenth photograph of a group, in the order of the content hash, into validation, and marks duplicates.
func split(items []item) {
	order := map[string][]*item{}
	seen := map[string]string{}
	for i := range items {
		it := &items[i]
		if first := seen[it.hash]; first != "" && it.drop == "" {
			it.drop = "same as " + first
		}
		if it.drop == "" {
			seen[it.hash] = it.name()
			order[it.group()] = append(order[it.group()], it)
		}
	}
	for group, list := range order {
		slices.SortFunc(list, func(a, b *item) int { return strings.Compare(a.hash, b.hash) })
		for i, it := range list {
			switch {
			case group == "eval":
				it.split = "eval"
			case i%10 == 0:
				it.split = "val"
			default:
				it.split = "train"
			}
		}
	}
}

// convertAll writes the PNG files that are not there yet, two at a time, and removes those of an earlier recipe.
func convertAll(ctx context.Context, o Options, items []item) error {
	keep := map[string]bool{}
	for _, s := range []string{"train", "val", "eval"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, s), 0o755); err != nil {
			return err
		}
	}
	next := make(chan *item)
	var wg sync.WaitGroup
	var done atomic.Int64
	errs := make([]error, 2)
	for w := range errs {
		wg.Go(func() {
			for it := range next {
				if errs[w] == nil {
					errs[w] = convert(it, pngPath(o, it))
				}
				if n := done.Add(1); n%20 == 0 {
					logf(o, "%d of %d photographs", n, len(items))
				}
			}
		})
	}
	for i := range items {
		if it := &items[i]; it.drop == "" && ctx.Err() == nil {
			keep[pngPath(o, it)] = true
			next <- it
		}
	}
	close(next)
	wg.Wait()
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return err
	}
	for i := range items {
		if items[i].drop != "" {
			delete(keep, pngPath(o, &items[i]))
		}
	}
	old, err := filepath.Glob(filepath.Join(o.Dir, "*", "*.png"))
	if err != nil {
		return err
	}
	for _, p := range old {
		if !keep[p] {
			if err := os.Remove(p); err != nil {
				return err
			}
		}
	}
	return nil
}

func pngPath(o Options, it *item) string { return filepath.Join(o.Dir, it.split, it.name()+".png") }

// convert decodes one source, shrinks it if asked to and writes it; it.drop says why when the photograph is not fit for use.
func convert(it *item, path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	raw, err := it.raw()
	if err != nil {
		return err
	}
	p, err := develop(it.source, raw)
	if err != nil {
		it.drop = err.Error()
		return nil
	}
	return writePNG(path, p)
}

// finish writes the packs and the credits and counts.
func finish(o Options, items []item) (Summary, error) {
	var sum Summary
	for _, s := range []struct {
		name string
		n    *int
		mp   *float64
	}{{"train", &sum.Train, &sum.TrainMP}, {"val", &sum.Val, &sum.ValMP}, {"eval", &sum.Eval, &sum.EvalMP}} {
		logf(o, "packing %s", s.name)
		photos, err := pack(o, s.name)
		if err != nil {
			return Summary{}, fmt.Errorf("photos: %w", err)
		}
		*s.n, *s.mp = len(photos.Photos), data.Megapixels(photos.Photos)
		if err := photos.Close(); err != nil {
			return Summary{}, fmt.Errorf("photos: %w", err)
		}
	}
	for _, it := range items {
		if it.drop != "" {
			sum.Dropped = append(sum.Dropped, it.name()+": "+it.drop)
		}
	}
	if err := writeCredits(o, items); err != nil {
		return Summary{}, fmt.Errorf("photos: %w", err)
	}
	return sum, nil
}

// pack brings DIR/NAME.fxp up to date with DIR/NAME/*.png and opens it.
func pack(o Options, name string) (*data.Pack, error) {
	files, err := filepath.Glob(filepath.Join(o.Dir, name, "*.png"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	path := filepath.Join(o.Dir, name+".fxp")
	if p, err := data.OpenPack(path); err == nil {
		if samePhotos(p, path, files) {
			return p, nil
		}
		if err := p.Close(); err != nil {
			return nil, err
		}
	}
	err = data.WritePack(path, len(files), func(i int) (data.Photo, error) {
		m, err := data.Load(files[i])
		if err != nil {
			return data.Photo{}, err
		}
		return data.NewPhoto(strings.TrimSuffix(filepath.Base(files[i]), ".png"), m), nil
	})
	if err != nil {
		return nil, err
	}
	return data.OpenPack(path)
}

// samePhotos says whether the pack at path holds exactly the given PNG files and none of them is younger.
func samePhotos(p *data.Pack, path string, files []string) bool {
	st, err := os.Stat(path)
	if err != nil || len(files) != len(p.Photos) {
		return false
	}
	for i, f := range files {
		png, err := os.Stat(f)
		if err != nil || png.ModTime().After(st.ModTime()) || filepath.Base(f) != p.Photos[i].Name+".png" {
			return false
		}
	}
	return true
}

func logf(o Options, format string, args ...any) {
	if o.Log != nil {
		fmt.Fprintf(o.Log, "photos: "+format+"\n", args...)
	}
}
