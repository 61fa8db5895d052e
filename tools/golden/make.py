"""Writes fluxir's own golden fixtures: python tools/golden/make.py --out testdata/golden

testdata/golden/README.md defines format and rule. The float64 reference runs once, here. The naive program runs in subprocesses, each with other limits on
the instruction sets that PyTorch, oneDNN and MKL may use or with other threads; the largest error over them is what fluxir is held against.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers.utils import logging
from safetensors.torch import save_file

from errors import envelope, stored
from fixtures import SEED, all_fixtures
from kinds import run
from precision import BF16, F32, F64
from tables import TABLES
from transformer import SqueezeExcite, adapter_file, evaluate, original_flux, published

SOURCE = "tools/golden/make.py"
VERSIONS = {name: version(name) for name in ("torch", "diffusers", "safetensors", "numpy", "mpmath")}


def limits(aten, onednn, mkl, threads="2"):
    return {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl, "OMP_NUM_THREADS": threads}


# A limit above what the processor has does no harm. FLUXIR_NAIVE names programs that are as good: other kernels of PyTorch (without oneDNN, convolutions with
# channels last, attention by plain products) and squeeze-and-excitation in f32. The first one's results are stored as out.X.f32 and out.X.bf16.
ENVIRONMENTS = (
    {"OMP_NUM_THREADS": "2"},
    {"OMP_NUM_THREADS": "1", "FLUXIR_NAIVE": "math_attention"},
    limits("default", "SSE41", "SSE4_2"),
    limits("avx2", "AVX2", "AVX2") | {"FLUXIR_NAIVE": "se_f32"},
    limits("avx512", "AVX512_CORE", "AVX512"),
    limits("avx512", "AVX512_CORE_BF16", "AVX512", "1") | {"FLUXIR_NAIVE": "se_f32 math_attention"},
    {"OMP_NUM_THREADS": "2", "FLUXIR_NAIVE": "channels_last se_f32"},
    limits("avx2", "DEFAULT", "AVX2") | {"FLUXIR_NAIVE": "no_onednn"},
    {"OMP_NUM_THREADS": "1", "FLUXIR_NAIVE": "no_onednn channels_last math_attention"},
)


def naive(path):
    """The subprocess: every fixture in f32 and bf16, saved to path."""
    variant = os.environ.get("FLUXIR_NAIVE", "").split()
    torch.backends.mkldnn.enabled = "no_onednn" not in variant
    SqueezeExcite.dtype = torch.float32 if "se_f32" in variant else None
    if "math_attention" in variant:
        torch.backends.cuda.enable_flash_sdp(False)  # the switch serves the CPU too
        torch.backends.cuda.enable_mem_efficient_sdp(False)
    fixtures = all_fixtures()
    if "channels_last" in variant:
        for fx in fixtures:
            for model in fx.models.values():
                model.to(memory_format=torch.channels_last)
    torch.save({fx.name: {p.name: run(fx, p) for p in (F32, BF16)} for fx in fixtures}, path)


def naive_runs():
    """[{fixture: {precision: results}}], one per environment."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for i, environment in enumerate(ENVIRONMENTS):
            path = Path(folder, f"{i}.pt")
            subprocess.run([sys.executable, __file__, "--naive", str(path)], env=os.environ | environment, check=True)
            runs.append(torch.load(path))
            print("naive run", environment, flush=True)
    return runs


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def save(path, tensors, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: v.contiguous().clone() for name, v in tensors.items()}, path, metadata)


def write_transformer(folder, fx):
    config = {"_class_name": "FluxTransformer2DModel", "_diffusers_version": VERSIONS["diffusers"], "patch_size": 1, "out_channels": None}
    config |= fx.configs["transformer"]
    tensors = dict(fx.models["transformer"].state_dict())
    path = Path(folder, fx.paths["transformer"])
    if path.suffix:  # a single file under the original names, its configuration beside it
        write_json(path.with_name("config.json"), config)
        save(path, original_flux(tensors, config))
        return
    write_json(path / "config.json", config)
    if "shards" not in fx.description:
        save(path / "diffusion_pytorch_model.safetensors", tensors)
        return
    tensors = {name: v.bfloat16() for name, v in tensors.items()}
    names, index = sorted(tensors), {}
    half = len(names) // 2
    for i, part in enumerate((names[:half], names[half:])):
        file = f"diffusion_pytorch_model-{i + 1:05d}-of-00002.safetensors"
        save(path / file, {n: tensors[n] for n in part}, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    size = sum(v.numel() * v.element_size() for v in tensors.values())
    write_json(path / "diffusion_pytorch_model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": index})


def write_vae(folder, fx):
    path = Path(folder, fx.paths["vae"])
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": VERSIONS["diffusers"], "in_channels": 3, "out_channels": 3, "act_fn": "silu"}
    write_json(path / "config.json", config | fx.configs["vae"])
    tensors = fx.models["vae"].state_dict()
    bf16 = all(torch.equal(v, v.bfloat16().float()) for v in tensors.values())
    save(path / "diffusion_pytorch_model.safetensors", {n: v.bfloat16() if bf16 else v for n, v in tensors.items()})


def write_adapter(folder, fx):
    adapter = fx.models["adapter"]
    config = {"r": fx.params["r"], "text_tokens": adapter.theta_p.shape[0], "base_text": "learned"}
    metadata = {"format_version": "1", "config": json.dumps(config), "training_step": "0", "licence": "random test weights"}
    save(folder / "adapter.safetensors", adapter_file(adapter.state_dict()), metadata)


def write_fixture(out, fx, reference, runs):
    folder = out / fx.name
    for role, write in (("transformer", write_transformer), ("vae", write_vae)):
        if role in fx.configs:
            write(folder, fx)
    if fx.paths.get("adapter") == f"../{fx.name}/adapter.safetensors":
        write_adapter(folder, fx)
    n_err = envelope(reference, runs, fx.row_stride)
    describe(folder, fx.kind, fx.description, fx.io, n_err, fx.paths, fx.params, fx.row_stride)
    if fx.io != "io.safetensors":
        return
    io = {f"in.{name}": v for name, v in fx.inputs.items()}
    for name, v in stored(reference, fx.row_stride).items():
        whole = name.startswith(("out.", "grad.in.", "u8."))
        io[name] = v if whole else v.float()
        for precision, results in runs[0].items():
            if whole and name in results:
                io[f"{name}.{precision}"] = results[name]
    save(folder / "io.safetensors", io)


def describe(folder, kind, description, io, n_err, models, params, row_stride):
    fields = {"kind": kind, "description": description, "seed": SEED, "source": SOURCE, "versions": VERSIONS, "models": models, "params": params,
              "row_stride": row_stride, "precisions": ["f64", "f32", "bf16"], "io": io}
    lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in fields.items()]
    errors = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in n_err.items())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fixture.json").write_text("{\n" + ",\n".join(lines) + ',\n "n_err": {' + (f"\n{errors}\n " if errors else "") + "}\n}\n")


def check_published(fx):
    """The transformer as it is written out here is diffusers' own, to the rounding of f32."""
    base, i = fx.models["transformer"], fx.inputs
    args = fx.params["grid"], i["hidden_states"], i["timestep"], i.get("guidance")
    with torch.no_grad():
        ours, _, _ = evaluate(base, *args, torch.float32, i["encoder_hidden_states"], i["pooled_projections"])
    theirs = published(base, *args, i["encoder_hidden_states"], i["pooled_projections"])
    if not torch.allclose(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item()):
        raise ArithmeticError(f"{fx.name}: differs from the published forward by {(ours - theirs).abs().max().item():.2g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default="testdata/golden")
    parser.add_argument("--naive", metavar="FILE", help="only the naive runs, to FILE (used by the program itself)")
    args = parser.parse_args()
    logging.set_verbosity_error()
    if args.naive:
        return naive(args.naive)
    runs = naive_runs()
    for fx in all_fixtures():
        if fx.kind == "flux" and fx.models["transformer"].prediction == "velocity":
            check_published(fx)
        write_fixture(args.out, fx, run(fx, F64), [r[fx.name] for r in runs])
        print(fx.name, flush=True)
    for kind, (table, description) in TABLES.items():
        describe(args.out / kind, kind, description, "values.json", {}, {}, {}, 1)
        write_json(args.out / kind / "values.json", table())


if __name__ == "__main__":
    main()
