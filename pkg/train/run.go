package train

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/model/nano"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// runner is a run under way.
type runner struct {
	s       Settings
	stages  []Config
	log     *Logger
	procs   *Processes
	device  *bindings.Device
	photos  *photoSets
	patches *PatchTransform // of the recipe's autoencoder

	unvalidated bool // the caller measures at the end
}

// Run trains the given stages one after the other, each from where it stopped; without stages it only fits the recipe's autoencoder. A cancelled ctx
// finishes the step, saves and returns nil with done false. All processes of procs call it, those after the first with a silent log.
func Run(ctx context.Context, s Settings, stages []Config, log *Logger, procs *Processes) (done bool, err error) {
	r, err := openRunner(s, stages, log, procs)
	if err != nil {
		return false, err
	}
	defer r.close()
	for i := range stages {
		if done, err := r.runStage(ctx, i); err != nil || !done {
			return false, err
		}
	}
	return true, nil
}

// openRunner opens what all stages need: photographs, device, the recipe's autoencoder.
func openRunner(s Settings, stages []Config, log *Logger, procs *Processes) (*runner, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	r := &runner{s: s, stages: stages, log: log, procs: procs}
	if err := r.open(); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *runner) open() (err error) {
	if err := r.procs.first(func() error { r.photos, err = openPhotos(r.s.Photos, r.s.Run, r.log); return err }); err != nil {
		return err
	}
	if r.device, err = bindings.OpenDevice(r.s.Device, r.procs.threads(r.s.Threads)); err != nil {
		return err
	}
	if err := r.device.Do(r.watch); err != nil {
		return err
	}
	if r.s.Model == "" && r.s.Warm == "" {
		return r.procs.first(func() error { r.patches, err = r.patchTransform(r.photos.train); return err })
	}
	return err
}

func (r *runner) close() {
	if r.device != nil {
		r.device.Close()
	}
	if r.photos != nil {
		r.photos.Close()
	}
}

// state is the file of a stage's last state, best that of the one with the highest gain.
func (r *runner) state(stage string) string {
	return filepath.Join(r.s.Run, stage+".state.safetensors")
}

func (r *runner) best(stage string) string {
	return filepath.Join(r.s.Run, stage+"-best.state.safetensors")
}

// validationSize is the side of the validation crops.
const validationSize = 128

// runStage trains stage i until its last step; done is false where ctx ended first.
func (r *runner) runStage(ctx context.Context, i int) (done bool, err error) {
	c := r.stages[i]
	if err := errors.Join(r.procs.check(r.s.Device, c), r.procs.agree("configuration", fmt.Sprintf("%+v", c))); err != nil {
		return false, err
	}
	if err := r.storeConfig(c); err != nil {
		return false, err
	}
	s := r.s
	s.Config, s.processes = c, r.procs
	plan, err := CheckMemory(s)
	if err != nil {
		return false, err
	}
	arena := s.arena(r.device)
	defer r.device.Do(func() error { arena.Free(); return nil })
	var tr *Trainer
	var b *model.Bundle
	err = r.device.Do(func() error {
		if b, err = r.load(arena, i); err != nil {
			return err
		}
		if tr, err = NewTrainer(r.device, arena, b.Net, b.VAE, c); err != nil {
			return err
		}
		if err := tr.Join(arena, r.procs); err != nil {
			return err
		}
		if r.s.LatentCache != "" {
			if tr.latents, err = OpenLatents(r.s.LatentCache, int64(r.s.LatentCacheMB*1e6), b.VAE, r.device); err != nil {
				return err
			}
		}
		tr.manifest = r.photos.manifest
		changed, err := tr.Resume(r.state(c.Stage))
		for _, line := range changed {
			r.log.Printf("%s: changed since the state was saved: %s\n", c.Stage, line)
		}
		if err == nil && tr.frozenHash == "" {
			tr.frozenHash, err = tr.FrozenHash()
		}
		return errors.Join(err, r.procs.sameState(tr))
	})
	if err != nil || tr.Step >= c.Steps {
		return err == nil, err
	}
	defer r.device.Do(func() error { tr.Close(); return nil })
	r.log.steps = c.Steps
	loader, err := r.loader(c)
	if err != nil {
		return false, err
	}
	defer loader.Close()
	hooks, err := r.hooks(tr, b)
	if err != nil {
		return false, err
	}
	r.log.Printf("%s: from step %d of %d\n", c.Stage, tr.Step, c.Steps)
	if err := tr.Run(ctx, loader, hooks); err != nil {
		return false, err
	}
	return tr.Step >= c.Steps, r.device.Do(func() error { return errors.Join(r.comparePeak(plan), r.checkFrozen(tr)) })
}

// hooks are what the loop calls: of several processes only the first logs, validates and writes, the others hold their weights against its.
func (r *runner) hooks(tr *Trainer, b *model.Bundle) (Hooks, error) {
	if r.procs.Rank() > 0 {
		return Hooks{Save: func() error { return r.procs.sameState(tr) }}, nil
	}
	held, err := r.validation(validationSize, 12)
	if err != nil {
		return Hooks{}, err
	}
	h := Hooks{Log: r.log.Write, Save: func() error { return errors.Join(r.procs.sameState(tr), r.save(tr, b)) }}
	if tr.Config.Stage != StageBase && !r.unvalidated {
		best := bestGain(r.best(tr.Config.Stage))
		h.Validate = func() error { return r.validate(tr, held, &best) }
	}
	r.log.monitor.Read() // energy counts from here, as the seconds do
	return h, nil
}

// comparePeak says how far the plan was off.
func (r *runner) comparePeak(plan Plan) error {
	info, err := r.device.Info()
	if err == nil {
		r.log.Printf("%s: memory: peak %.1f MB, planned %.1f MB (%+.1f %%)\n", plan.Config.Stage, float64(info.Peak)/1e6, float64(plan.Peak)/1e6,
			100*(float64(plan.Peak)/float64(info.Peak)-1))
	}
	return err
}

// checkFrozen holds the frozen weights against their hash at the start.
func (r *runner) checkFrozen(tr *Trainer) error {
	now, err := tr.FrozenHash()
	if err != nil {
		return err
	}
	if now != tr.frozenHash {
		return fmt.Errorf("train: the frozen weights have moved: hash %s at the start, %s now: no state since then can be trusted", tr.frozenHash, now)
	}
	r.log.Printf("%s: %d frozen tensors did not move: %s\n", tr.Config.Stage, len(tr.frozen()), now)
	return nil
}

// watch tells the log what trains.
func (r *runner) watch() error {
	info, err := r.device.Info()
	if err == nil && r.procs.Rank() == 0 {
		r.log.watch(info.Device, info.Name, r.procs.machines(), r.s.Watts)
		if r.procs != nil {
			r.log.Printf("%d processes, %d threads each, gradients summed by MPI\n", r.procs.Size(), info.Threads)
		}
	}
	return err
}

// load makes the models of stage i: those of the recipe, those of a folder, or a base of a folder under a new adapter.
func (r *runner) load(arena *tensor.Arena, i int) (*model.Bundle, error) {
	c := r.stages[i]
	switch {
	case r.s.Warm != "":
		b, err := model.LoadBundle(arena, r.s.Warm, "", c.dtype(), bindings.F32)
		if err == nil && b.Net.Adapter.Config.Routing != c.Adapter {
			err = fmt.Errorf("%w: adapter: want %+v, the adapter in %s has %+v", ErrConfig, c.Adapter, r.s.Warm, b.Net.Adapter.Config.Routing)
		}
		return b, err
	case r.s.Model == "":
		return r.newNano(arena, i)
	}
	config := model.DefaultAdapterConfig()
	var b *model.Bundle
	var err error
	if r.s.Model == ModelNano {
		config = NanoAdapter()
		b, err = nano.LoadBase(arena, c.dtype())
	} else {
		b, err = model.LoadBase(arena, r.s.Model, c.dtype(), bindings.F32)
	}
	if err != nil {
		return nil, err
	}
	config.Routing = c.Adapter
	if b.Net.Adapter, err = model.NewAdapter(arena, &b.Net.Base.Config, config, c.dtype()); err != nil {
		return nil, err
	}
	return b, InitAdapter(b.Net.Adapter, b.Net.Base, c.Seed)
}

// licence of what is trained here: of the adapter to a foreign base it is the user's to say.
func (r *runner) licence() string {
	if r.s.Model == "" || r.s.Model == ModelNano {
		return NanoLicence
	}
	return ""
}

// export writes what `restore` reads: of the adapter stage adapter.safetensors, of tune the whole model.
func (r *runner) export(stage string, b *model.Bundle) error {
	folder := filepath.Join(r.s.Run, "export")
	switch stage {
	case StageAdapter:
		return model.SaveAdapter(folder, b)
	case StageTune:
		return model.SaveBundle(folder, b)
	}
	return nil
}

// storeConfig writes and prints the resolved configuration of a stage.
func (r *runner) storeConfig(c Config) error {
	s := r.s
	s.Config = c
	text, err := s.TOML()
	if err != nil || r.procs.Rank() > 0 {
		return err
	}
	r.log.Printf("# configuration, stored as %s.toml\n%s\n", c.Stage, text)
	return data.WriteFile(filepath.Join(s.Run, c.Stage+".toml"), text)
}

// photoSets are what is trained on and what is held out: photographs, or pairs that are degraded already.
type photoSets struct {
	train, held           []data.Photo
	packs                 []*data.Pack
	trainPairs, heldPairs []data.Pair
	manifest              string // SHA-256 of the pairs' manifest
}

// loader makes the batches of a stage.
func (r *runner) loader(c Config) (*data.PatchLoader, error) {
	config := data.LoaderConfig{Photos: r.photos.train, Preset: c.Preset, Seed: c.Seed, Batch: c.Batch, Size: c.Size, Items: c.Items, Workers: r.s.Workers,
		Shard: r.procs.Rank(), Shards: r.procs.Size()}
	if r.photos.trainPairs != nil {
		config.Skipped = func(err error, count int) {
			text := fmt.Sprintf("data: skipped (%d of %d so far): %v\n", count, len(r.photos.trainPairs), err)
			if r.procs.Rank() > 0 { // its log is silent, and it may read pairs that no other does
				fmt.Fprint(os.Stderr, text)
				return
			}
			r.log.Printf("%s", text)
		}
		var err error
		if config.Pairs, err = data.OpenPairs(r.photos.trainPairs, c.Size); err != nil {
			return nil, err
		}
	}
	return data.NewPatchLoader(config)
}

// validation takes at most count crops of what is held out, validationSize pixels or, where no pair is that large, as large as the training's.
func (r *runner) validation(size, count int) (*Validation, error) {
	if r.photos.heldPairs == nil {
		return NewValidation(r.photos.held, size, count)
	}
	skipped := func(err error) { r.log.Printf("data: skipped for validation: %v\n", err) }
	v, err := NewPairValidation(r.photos.heldPairs, size, 3*count, skipped)
	if errors.Is(err, errTooSmall) {
		return NewPairValidation(r.photos.heldPairs, r.s.Size, 3*count, skipped)
	}
	return v, err
}

// Close releases the photographs.
func (p *photoSets) Close() {
	for _, pack := range p.packs {
		pack.Close()
	}
}

// openPhotos opens path: a manifest of pairs, a folder with the packs of cmd/photos, a folder of images (train/ and val/ below it, or any), or one image. Without a val folder
// every eighth image is held out, and with fewer than eight they are the training images.
func openPhotos(path, run string, log *Logger) (*photoSets, error) {
	sets, unreadable := &photoSets{}, 0
	skipped := func(err error) {
		unreadable++
		log.Printf("data: skipped (%d so far): %v\n", unreadable, err)
	}
	if data.IsManifest(path) {
		pairs, err := data.ReadPairs(path)
		if err != nil {
			return nil, err
		}
		if sets.manifest, err = data.ManifestSum(path); err != nil {
			return nil, err
		}
		sets.trainPairs, sets.heldPairs = data.SplitPairs(pairs)
		log.Printf("data: %d pairs, %d held out for validation; they are degraded already: preset is not used\n", len(sets.trainPairs), len(sets.heldPairs))
		if len(sets.trainPairs) == len(pairs) {
			log.Printf("data: too few to hold any out: validation restores the training pairs, so its gains say nothing about others\n")
		}
		return sets, nil
	}
	open := func(name string) ([]data.Photo, error) {
		pack, err := data.OpenPack(filepath.Join(path, name+".fxp"))
		if err != nil && (name == "" || errors.Is(err, fs.ErrNotExist)) {
			pack, err = data.PackFolder(filepath.Join(path, name), run, skipped)
		}
		if err != nil {
			return nil, err
		}
		sets.packs = append(sets.packs, pack)
		return pack.Photos, nil
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: no training photographs: `make photos` fetches some into data/photos; --photos names a folder of your own", path)
	}
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		sets.train, err = open("train")
	}
	if !info.IsDir() || errors.Is(err, fs.ErrNotExist) {
		sets.train, err = open("")
	}
	if err == nil {
		sets.held, err = open("val")
	}
	if len(sets.train) > 0 && err != nil && (!info.IsDir() || errors.Is(err, fs.ErrNotExist)) {
		err = nil
		sets.train, sets.held = split(sets.train)
	}
	if err != nil {
		sets.Close()
		return nil, err
	}
	log.Printf("data: %d photographs, %.1f megapixels; %d held out for validation\n", len(sets.train), data.Megapixels(sets.train), len(sets.held))
	if len(sets.held) > 0 && len(sets.train) > 0 && &sets.held[0] == &sets.train[0] {
		log.Printf("data: too few to hold any out: validation restores the training photographs, so its gains say nothing about others (`make photos` fetches more)\n")
	}
	return sets, nil
}

// split holds every eighth photograph out; of fewer than eight it returns all twice.
func split(photos []data.Photo) (train, held []data.Photo) {
	if len(photos) < 8 {
		return photos, photos
	}
	for i, p := range photos {
		if i%8 == 7 {
			held = append(held, p)
		} else {
			train = append(train, p)
		}
	}
	return train, held
}
