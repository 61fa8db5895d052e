package weights

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Source is where a model's tensors come from: one file or a set of shards.
type Source interface {
	Path() string                       // the file or folder, for messages
	Names() []string                    // all tensors' names, sorted
	Tensor(name string) (Tensor, error) // a view, or ErrMissingTensor
	Metadata() map[string]string        // of the file; of the first shard in a set
	Close() error                       // invalidates every view
}

const indexSuffix = ".safetensors.index.json"

// OpenSet opens a safetensors file, an index file with its shards, or a folder in the Hugging Face layout, which holds either an index and its
// shards, or one safetensors file. A folder with several is searched for the names that diffusers and transformers write by default.
// Errors: those of Open; ErrCorrupt if index and shards contradict each other; ErrMissingTensor if the folder has no weights.
func OpenSet(path string) (Source, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		if path, err = pickFile(path); err != nil {
			return nil, err
		}
	}
	if strings.HasSuffix(path, indexSuffix) {
		return openShards(path)
	}
	return Open(path)
}

// pickFile chooses the file in a model folder that OpenSet reads: an index if there is one, else a single safetensors file.
func pickFile(dir string) (string, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, suffix := range []string{indexSuffix, ".safetensors"} {
		var found []string
		for _, e := range list {
			if strings.HasSuffix(e.Name(), suffix) && !strings.HasPrefix(e.Name(), ".") {
				found = append(found, e.Name())
			}
		}
		for _, stem := range []string{"diffusion_pytorch_model", "model"} {
			if len(found) > 1 && slices.Contains(found, stem+suffix) {
				found = []string{stem + suffix}
			}
		}
		if len(found) > 1 {
			return "", fail(dir, "", ErrCorrupt, "several weight files and no index, name one: %s", strings.Join(found, ", "))
		}
		if len(found) == 1 {
			return filepath.Join(dir, found[0]), nil
		}
	}
	return "", fail(dir, "", ErrMissingTensor, "the folder has no *.safetensors")
}

// shards is a Source over several files.
type shards struct {
	index string
	files []*File // in order of their names
	where map[string]*File
	names []string
}

// openShards opens the files that an index names and checks that both sides list the same tensors in the same files.
func openShards(index string) (_ *shards, err error) {
	weightMap, err := readIndex(index)
	if err != nil {
		return nil, err
	}
	s := &shards{index: index, where: make(map[string]*File, len(weightMap))}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	open := map[string]*File{}
	for _, base := range sortedValues(weightMap) {
		if base != filepath.Base(base) || base == ".." { // an index must not lead out of its folder
			return nil, fail(index, "", ErrCorrupt, "shard name %q is not a plain file name", base)
		}
		f, err := Open(filepath.Join(filepath.Dir(index), base))
		if errors.Is(err, os.ErrNotExist) {
			return nil, fail(index, "", ErrMissingTensor, "shard %s is not there", base)
		}
		if err != nil {
			return nil, err
		}
		s.files = append(s.files, f)
		open[base] = f
		for _, name := range f.names {
			if got := weightMap[name]; got != base {
				return nil, fail(index, name, ErrCorrupt, "shard %s has it, the index says %q", base, got)
			}
		}
	}
	for name, base := range weightMap {
		if _, err := open[base].Tensor(name); err != nil {
			return nil, fail(index, name, ErrMissingTensor, "the index says %s, which has no such tensor", base)
		}
		s.where[name] = open[base]
		s.names = append(s.names, name)
	}
	slices.Sort(s.names)
	return s, nil
}

// readIndex reads the weight_map of an index file: tensor name to shard file name.
func readIndex(path string) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	tok := tokens{json.NewDecoder(bytes.NewReader(data))}
	weightMap := map[string]string{}
	err = tok.object(func(key string) error {
		if key != "weight_map" {
			var skip json.RawMessage // "metadata": its total_size is wrong in enough published files to be of no use
			return tok.dec.Decode(&skip)
		}
		return tok.object(func(name string) error {
			shard, err := tok.string()
			weightMap[name] = shard
			return err
		})
	})
	if err == nil {
		if _, tail := tok.dec.Token(); tail != io.EOF {
			err = errors.New("something follows the JSON object")
		}
	}
	if err != nil {
		return nil, fail(path, "", ErrCorrupt, "index: %v", err)
	}
	if len(weightMap) == 0 {
		return nil, fail(path, "", ErrCorrupt, "index without a weight_map")
	}
	return weightMap, nil
}

func sortedValues(m map[string]string) []string {
	var list []string
	for _, v := range m {
		list = append(list, v)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func (s *shards) Path() string                { return s.index }
func (s *shards) Names() []string             { return slices.Clone(s.names) }
func (s *shards) Metadata() map[string]string { return s.files[0].Metadata() }

func (s *shards) Tensor(name string) (Tensor, error) {
	f, ok := s.where[name]
	if !ok {
		return Tensor{}, fail(s.index, name, ErrMissingTensor, "the index has no such tensor among its %d", len(s.names))
	}
	return f.Tensor(name)
}

func (s *shards) Close() error {
	var all []error
	for _, f := range s.files {
		all = append(all, f.Close())
	}
	return errors.Join(all...)
}
