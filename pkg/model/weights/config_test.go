package weights

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFluxConfigDefaults(t *testing.T) {
	// The file of FLUX.1-dev as first published: no axes, no out_channels.
	c, err := ParseFluxConfig("config.json", []byte(`{"_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.30.0.dev0",
		"attention_head_dim": 128, "guidance_embeds": true, "in_channels": 64, "joint_attention_dim": 4096, "num_attention_heads": 24,
		"num_layers": 19, "num_single_layers": 38, "patch_size": 1, "pooled_projection_dim": 768}`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Hidden() != 3072 || c.OutChannels != 64 || c.AxesDimsRope[1] != 56 || !c.GuidanceEmbeds || c.Prediction != PredictVelocity || c.LQSkip {
		t.Errorf("got %+v", c)
	}
	total := int64(0)
	for _, p := range FluxParams(c, Original) {
		total += int64(numel(p.Shape))
	}
	if total != 11_901_408_320 { // the published parameter count of FLUX.1-dev
		t.Errorf("%d parameters", total)
	}
}

func TestConfigRoundTrip(t *testing.T) {
	flux, err := ParseFluxConfig("a", []byte(`{"_class_name": "FluxTransformer2DModel", "in_channels": 48, "num_layers": 0, "num_single_layers": 8,
		"attention_head_dim": 32, "axes_dims_rope": [0, 16, 16], "prediction": "sample", "lq_skip": true}`))
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(flux)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ParseFluxConfig("b", data); err != nil || again.Prediction != PredictSample || !again.LQSkip || again.NumLayers != 0 || again.InChannels != 48 {
		t.Errorf("got %+v, %v", again, err)
	}
	vae, err := ParseVAEConfig("a", []byte(`{"_class_name": "AutoencoderKL", "latent_channels": 12, "block_out_channels": [], "scaling_factor": 1.5,
		"shift_factor": null, "use_quant_conv": false, "use_post_quant_conv": false, "space_to_depth_shortcut": 2}`))
	if err != nil {
		t.Fatal(err)
	}
	if data, err = json.Marshal(vae); err != nil {
		t.Fatal(err)
	}
	if again, err := ParseVAEConfig("b", data); err != nil || again.Factor() != 2 || again.LatentChannels != 12 || again.ShiftFactor != 0 {
		t.Errorf("got %+v, %v", again, err)
	}
	if got := VAEParams(vae, Diffusers); len(got) != 4 || got[0].Name != shortcutName || got[0].Shape[1] != 12 {
		t.Errorf("shortcut alone: %v", got)
	}
}

func TestConfigRefuses(t *testing.T) {
	flux := func(s string) string { return `{"_class_name": "FluxTransformer2DModel", ` + s + `}` }
	vae := func(s string) string {
		return `{"_class_name": "AutoencoderKL", "use_quant_conv": false, "use_post_quant_conv": false, ` + s + `}`
	}
	readFlux := func(b []byte) error { _, err := ParseFluxConfig("dir/config.json", b); return err }
	readVAE := func(b []byte) error { _, err := ParseVAEConfig("dir/config.json", b); return err }
	for _, c := range []struct {
		name  string
		read  func([]byte) error
		text  string
		cause string
	}{
		{"not JSON", readFlux, `{`, "JSON"},
		{"unknown class", readFlux, `{"_class_name": "UNet2DConditionModel"}`, "UNet2DConditionModel"},
		{"no class", readFlux, `{}`, "_class_name"},
		{"a VAE as transformer", readFlux, `{"_class_name": "AutoencoderKL"}`, "AutoencoderKL"},
		{"axes do not sum", readFlux, flux(`"axes_dims_rope": [16, 56, 54]`), "sum to 126"},
		{"odd axis", readFlux, flux(`"axes_dims_rope": [17, 55, 56]`), "even"},
		{"two axes", readFlux, flux(`"axes_dims_rope": [64, 64]`), "3 axes"},
		{"negative axis", readFlux, flux(`"axes_dims_rope": [-16, 72, 72]`), "even"},
		{"patch size", readFlux, flux(`"patch_size": 2`), "patch_size"},
		{"no heads", readFlux, flux(`"num_attention_heads": 0`), "num_attention_heads is 0"},
		{"no blocks", readFlux, flux(`"num_layers": 0, "num_single_layers": 0`), "num_layers + num_single_layers"},
		{"negative layers", readFlux, flux(`"num_layers": -1`), "num_layers is -1"},
		{"enormous", readFlux, flux(`"joint_attention_dim": 1000000000000`), "joint_attention_dim"},
		{"a string for a number", readFlux, flux(`"num_layers": "19"`), "num_layers"},
		{"prediction", readFlux, flux(`"prediction": "epsilon"`), "epsilon"},
		{"skip between widths", readFlux, flux(`"lq_skip": true, "in_channels": 128, "out_channels": 64`), "lq_skip"},
		{"a transformer as VAE", readVAE, `{"_class_name": "FluxTransformer2DModel"}`, "FluxTransformer2DModel"},
		{"groups do not divide", readVAE, vae(`"block_out_channels": [32, 48], "norm_num_groups": 32`), "multiples of norm_num_groups"},
		{"no groups", readVAE, vae(`"block_out_channels": [32], "norm_num_groups": 0`), "norm_num_groups is 0"},
		{"nothing at all", readVAE, vae(`"block_out_channels": []`), "neither"},
		{"shortcut of another factor", readVAE, vae(`"block_out_channels": [32, 32], "space_to_depth_shortcut": 4`), "factor 2"},
		{"quant conv", readVAE, `{"_class_name": "AutoencoderKL", "block_out_channels": [32]}`, "quant"},
		{"activation", readVAE, vae(`"block_out_channels": [32], "act_fn": "relu"`), "relu"},
		{"scaling", readVAE, vae(`"block_out_channels": [32], "scaling_factor": 0`), "scaling_factor"},
		{"attention levels", readVAE, vae(`"block_out_channels": [32], "down_block_types": ["AttnDownEncoderBlock2D"]`), "AttnDownEncoderBlock2D"},
		{"levels", readVAE, vae(`"block_out_channels": [32, 32], "up_block_types": ["UpDecoderBlock2D"]`), "1 block types for 2 levels"},
		{"latent statistics", readVAE, vae(`"block_out_channels": [32], "latents_mean": [0.1]`), "latents_mean"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.read([]byte(c.text))
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), c.cause) || !strings.HasPrefix(err.Error(), "dir/config.json: ") {
				t.Errorf("got %v, want a configuration error with %q", err, c.cause)
			}
		})
	}
}

func TestReadConfigFinds(t *testing.T) {
	dir := t.TempDir()
	text := `{"_class_name": "FluxTransformer2DModel"}`
	for name, content := range map[string]string{"config.json": text, "flux.safetensors": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{dir, filepath.Join(dir, "config.json"), filepath.Join(dir, "flux.safetensors")} {
		if _, err := ReadFluxConfig(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := ReadVAEConfig(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}
