package train

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// ModelNano is the value of Settings.Model that stands for the model inside the program.
const ModelNano = "nano"

// Settings are a run's: where things are, and the configuration of its stage. A TOML file has them flat, tables for time and loss.
type Settings struct {
	Run     string  `toml:"run"`     // folder of the run
	Model   string  `toml:"model"`   // base and autoencoder: a folder (FLUX.1's layout), nano, or "": the stages before this one, run first
	Warm    string  `toml:"warm"`    // folder of a whole model, adapter included, whose weights the stage starts from
	Photos  string  `toml:"photos"`  // folder of cmd/photos, any folder of images, or one image; or a manifest of pairs, see data.ReadPairs
	Device  string  `toml:"device"`  // cpu, cuda or cuda:N
	Threads int     `toml:"threads"` // of the device, 0: all cores
	Workers int     `toml:"workers"` // goroutines that make training pairs
	Watts   float64 `toml:"watts"`   // power of the machine where it cannot be read, for the ledger; 0: unknown
	Memory  float64 `toml:"memory"`  // MB of the device that the run may take; 0: what is free
	Stream  bool    `toml:"stream"`  // the frozen base's blocks stay in host memory and pass through the device

	LatentCache   string  `toml:"latent_cache"`    // folder that keeps what the autoencoder makes of crops; "": none
	LatentCacheMB float64 `toml:"latent_cache_mb"` // its largest size for one encoder, 0: no limit

	Config

	processes *Processes // that share each batch and the memory
}

// DefaultSettings are the embedded family's for a stage.
func DefaultSettings(stage string) (Settings, error) {
	for _, c := range NanoStages() {
		if c.Stage == stage {
			return Settings{Run: "runs/nano", Photos: "data/photos", Device: "cpu", Workers: 1, Config: c}, nil
		}
	}
	return Settings{}, fmt.Errorf("%w: stage: got %q, want base, adapter or tune", ErrConfig, stage)
}

// LoadSettings resolves a configuration: the defaults of the stage, then the file (if file is not ""), then overrides, which are lines of TOML. stage ""
// takes the file's. Unknown keys, wrong types and values out of range are errors that name the place.
func LoadSettings(stage, file string, overrides []string) (Settings, error) {
	var text []byte
	if file != "" {
		var err error
		if text, err = os.ReadFile(file); err != nil {
			return Settings{}, err
		}
	}
	if stage == "" {
		var head struct {
			Stage string `toml:"stage"`
		}
		if err := toml.Unmarshal(text, &head); err != nil {
			return Settings{}, tomlError(file, err)
		}
		if head.Stage == "" {
			return Settings{}, fmt.Errorf("%w: no stage: name one, or a file that has the key stage", ErrConfig)
		}
		stage = head.Stage
	}
	s, err := DefaultSettings(stage)
	if err != nil {
		return s, err
	}
	if err := decodeTOML(file, text, &s); err != nil {
		return s, err
	}
	for _, line := range overrides {
		if err := decodeTOML("--set "+line, []byte(line), &s); err != nil {
			return s, err
		}
	}
	s.Stage = stage
	return s, s.Validate()
}

// Validate reports the first field that is out of range.
func (s Settings) Validate() error {
	switch {
	case s.Run == "":
		return fmt.Errorf("%w: run: no folder", ErrConfig)
	case s.Device == "dry":
		return fmt.Errorf("%w: device: dry computes nothing; --plan uses it", ErrConfig)
	case s.Threads < 0:
		return fmt.Errorf("%w: threads: got %d, want not negative", ErrConfig, s.Threads)
	case s.Workers < 1:
		return fmt.Errorf("%w: workers: got %d, want at least 1", ErrConfig, s.Workers)
	case !(s.Watts >= 0) || math.IsInf(s.Watts, 0):
		return fmt.Errorf("%w: watts: got %g, want not negative", ErrConfig, s.Watts)
	case !(s.Memory >= 0):
		return fmt.Errorf("%w: memory: got %g, want not negative", ErrConfig, s.Memory)
	case !(s.LatentCacheMB >= 0) || math.IsInf(s.LatentCacheMB, 0):
		return fmt.Errorf("%w: latent_cache_mb: got %g, want not negative", ErrConfig, s.LatentCacheMB)
	case s.Stream && s.Stage != StageAdapter:
		return fmt.Errorf("%w: stream: only the stage adapter leaves the base frozen", ErrConfig)
	case s.Model != "" && s.Warm != "":
		return fmt.Errorf("%w: model, warm: want one of them", ErrConfig)
	}
	return s.Config.Validate()
}

// TOML is the whole configuration, to print and to start from again.
func (s Settings) TOML() ([]byte, error) { return toml.Marshal(s) }

func decodeTOML(name string, text []byte, value any) error {
	d := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	if err := d.Decode(value); err != nil {
		return tomlError(name, err)
	}
	return nil
}

// tomlError says where and what in one line.
func tomlError(name string, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		first := unknown.Errors[0]
		line, _ := first.Position()
		return fmt.Errorf("%w: %s:%d: unknown key %s", ErrConfig, name, line, strings.Join(first.Key(), "."))
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		line, _ := bad.Position()
		what := strings.TrimPrefix(bad.Error(), "toml: ")
		if got, want, ok := strings.Cut(what, " into struct field "); ok { // "cannot decode TOML string into struct field train.X.Y of type int64"
			_, want, _ = strings.Cut(want, " of type ")
			what = fmt.Sprintf("%s: got %s, want %s", strings.Join(bad.Key(), "."), strings.TrimPrefix(got, "cannot decode TOML "), want)
		}
		return fmt.Errorf("%w: %s:%d: %s", ErrConfig, name, line, what)
	}
	return fmt.Errorf("%w: %s: %w", ErrConfig, name, err)
}

// fixedKeys must be the same when a checkpoint is resumed: they say what is learned from what. The rest (steps, batches, rates, precision, saving) may change.
var fixedKeys = []string{"stage", "preset", "seed", "weight_decay", "beta2", "average", "dropout", "items", "time", "loss", "adapter"}

// differences compares a stored configuration, as JSON, with c: keys that must not differ and keys that may. Keys that the stored one lacks, because it is older
// than they are, count as equal.
func (c Config) differences(stored []byte) (fixed, free []string, err error) {
	old := c
	if err := json.Unmarshal(stored, &old); err != nil {
		return nil, nil, err
	}
	compare("", reflect.ValueOf(old), reflect.ValueOf(c), func(key string, was, is any) {
		line := fmt.Sprintf("%s: %v there, %v now", key, was, is)
		if top, _, _ := strings.Cut(key, "."); slices.Contains(fixedKeys, top) {
			fixed = append(fixed, line)
		} else {
			free = append(free, line)
		}
	})
	return fixed, free, nil
}

// compare calls report for every leaf in which two structs of one type differ.
func compare(prefix string, a, b reflect.Value, report func(key string, was, is any)) {
	for i := range a.NumField() {
		key := prefix + a.Type().Field(i).Tag.Get("toml")
		if a.Field(i).Kind() == reflect.Struct {
			compare(key+".", a.Field(i), b.Field(i), report)
		} else if !a.Field(i).Equal(b.Field(i)) {
			report(key, a.Field(i).Interface(), b.Field(i).Interface())
		}
	}
}
