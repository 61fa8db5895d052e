"""Ours against PyTorch and diffusers, in turn: `make bench-peers`.

One long-lived kbench (--serve) and this process are asked for one sample each, alternately, on the same number of threads, so that whatever else the
machine does meets both: the ratio is the median over the pairs of samples. The peer gets what its users would give it: bf16 weights, inference mode, channels last, fused optimizer, all threads. Every row of
ours has passed kbench's check before it is timed. Memory is the most that a process of its own has resident, ours and theirs, in one call.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Callable

HERE = Path(__file__).resolve().parent


@dataclass
class Row:
    what: str
    peer: str
    ours: list  # of (op, shape, dtype) as kbench --list has them; their times are added
    make: Callable | None  # returns the function to time; None: the peer is ours on one thread
    cold: bool = False  # caches evicted before each sample
    memory: bool = False  # the peak is measured too

    @property
    def name(self):
        return f"{self.what} {self.ours[0][2]}"


class Kbench:
    """The other process."""

    def __init__(self, path, threads):
        self.path, self.threads = path, threads
        self.process = subprocess.Popen([path, "--serve", "--threads", str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("kbench ended")
        answer = json.loads(answer)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def open(self, row):
        """Opens a row alone; the answers of its parts."""
        self.ask(do="close")
        return [self.ask(do="open", op=op, shape=shape, dtype=dtype) for op, shape, dtype in row.ours]

    def sample(self, parts, cold=False):
        return sum(self.ask(do="sample", id=part["id"], cold=cold)["seconds"] for part in parts)

    def end(self):
        self.process.stdin.close()
        self.process.wait()

    def peak_memory(self, row):
        """Bytes that another process like this has resident: before the row is opened, and at most in a call."""
        other = Kbench(self.path, self.threads)
        program = other.ask(do="memory")["memory"]["resident"]
        parts = other.open(row)
        other.sample(parts)
        other.ask(do="memory")
        other.sample(parts)
        used = other.ask(do="memory")["memory"]
        other.end()
        return {"program": program, "peak": used["peak"], "device": used["device"]}


class Alternation:
    """Times rows: a sample of ours, a sample of the peer's, and again."""

    def __init__(self, kbench, seconds):
        import torch

        self.kbench, self.seconds, self.sink, self.single = kbench, seconds, 0.0, None
        cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
        kib = int(cache.read_text().strip().rstrip("K")) if cache.exists() else 128 << 10
        self.evictor = torch.ones(2 * min(max(kib, 32 << 10), 512 << 10) * 1024 // 4)

    def peer_sample(self, call, cold):
        if cold:
            self.sink += float(self.evictor.sum())
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def run(self, row):
        ours, theirs, clocks = [], [], []
        if row.make:
            call = row.make()
        elif not self.single:
            self.single = Kbench(self.kbench.path, 1)
        parts = self.kbench.open(row)
        alone = None if row.make else self.single.open(row)

        def peer():
            return self.peer_sample(call, row.cold) if row.make else self.single.sample(alone, row.cold)

        pair = 0
        for _ in range(2):  # warm-up; once is enough for long calls
            if pair < LONG:
                pair = peer() + self.kbench.sample(parts)
        while len(ours) < (7 if pair < LONG else 5) or sum(ours) + sum(theirs) < self.seconds:
            clocks.append(self.kbench.ask(do="clock").get("clock", 0))
            ours.append(self.kbench.sample(parts, row.cold))
            time.sleep(0.005)  # OpenMP's threads spin for a moment before they sleep
            theirs.append(peer())
            time.sleep(0.005)
        result = {"ours": ours, "theirs": theirs, "clocks": clocks, "gate": max(part.get("gate", 0) for part in parts)}
        result |= {total: sum(part.get(total, 0) for part in parts) for total in ("flops", "bytes")}
        self.kbench.ask(do="close")
        if alone:
            self.single.ask(do="close")
        if row.memory:
            result["memory"] = {"ours": self.kbench.peak_memory(row), "theirs": peer_memory(row)}
        return result


LONG = 4  # seconds of a pair of samples, from which five pairs do


def resident(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10


def peer_memory(row):
    """As Kbench.peak_memory, of a process of the peer's own."""
    command = [sys.executable, __file__, "--memory-of", row.name, "--threads", str(torch_threads())]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def torch_threads():
    import torch

    return torch.get_num_threads()


def print_memory(row):
    """What peer_memory runs: PyTorch and diffusers are imported, the row's model is not made yet."""
    program = resident("VmRSS")
    call = row.make()
    call()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    call()
    print(json.dumps({"program": program, "peak": resident("VmHWM")}))


def rows():
    import torch
    from diffusers.models.embeddings import apply_rotary_emb
    from diffusers.models.normalization import RMSNorm
    from torch.nn import functional as F

    bf16, f32 = torch.bfloat16, torch.float32
    heads, dim, width = 24, 128, 3072
    names = {bf16: "bf16", f32: "f32"}

    def inference(f):
        def call():
            with torch.inference_mode():
                return f()

        return call

    def sdpa(L, dtype):
        def make():
            q, k, v = (torch.randn(1, heads, L, dim, dtype=dtype) for _ in range(3))
            return inference(lambda: F.scaled_dot_product_attention(q, k, v))

        return make

    def sdpa_backward(L, dtype):
        def make():
            q, k, v = (torch.randn(1, heads, L, dim, dtype=dtype, requires_grad=True) for _ in range(3))
            o = F.scaled_dot_product_attention(q, k, v)
            do = torch.randn_like(o)
            return lambda: torch.autograd.grad(o, (q, k, v), do, retain_graph=True)

        return make

    def modulate():
        x, shift, scale = torch.randn(1, 1536, width, dtype=bf16), torch.randn(1, width, dtype=bf16), torch.randn(1, width, dtype=bf16)
        return inference(lambda: F.layer_norm(x, (width,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None])

    def residual():
        x, r, gate = torch.randn(1, 1536, width, dtype=bf16), torch.randn(1, 1536, width, dtype=bf16), torch.randn(1, width, dtype=bf16)
        return inference(lambda: x + gate[:, None] * r)

    def norm_rope():
        q, norm = torch.randn(1, 1536, heads, dim, dtype=bf16), RMSNorm(dim, eps=1e-6).to(bf16)
        table = torch.randn(1536, dim), torch.randn(1536, dim)
        return inference(lambda: apply_rotary_emb(norm(q), table, sequence_dim=1))

    def linear(I, O, dtype, then=""):
        def make():
            x, w, b = torch.randn(1, 1536, I, dtype=dtype), torch.randn(O, I, dtype=dtype) / I**0.5, torch.randn(O, dtype=dtype)
            r, gate = torch.randn(1, 1536, O, dtype=dtype), torch.randn(1, O, dtype=dtype)
            if then == "GELU":
                return inference(lambda: F.gelu(F.linear(x, w, b), approximate="tanh"))
            if then == "gated residual":
                return inference(lambda: r + gate[:, None] * F.linear(x, w, b))
            return inference(lambda: F.linear(x, w, b))

        return make

    rope = "1x1536x24x128_128_1536x64x2"

    def fused(L):
        return f"1x{L}x24x128_128_{L}x64x2_norm-rope-split-512"

    list_ = []
    for dtype in (bf16, f32):
        d = names[dtype]
        for L in (1536, 4608):
            list_.append(Row(f"attention forward, L {L}", "SDPA", [("attention_forward", f"1x{L}x24x128", d)], sdpa(L, dtype)))
    list_ += [
        Row("QK-norm, RoPE and attention, L 1536", "SDPA alone", [("attention_forward", fused(1536), "bf16")], sdpa(1536, bf16)),
        Row("QK-norm, RoPE and attention, L 4608", "SDPA alone", [("attention_forward", fused(4608), "bf16")], sdpa(4608, bf16)),
        Row("attention backward, L 1536", "autograd through SDPA", [("attention_backward", "1x1536x24x128_1x24x1536", "bf16")], sdpa_backward(1536, bf16)),
        Row("AdaLN modulate, 1536×3072", "eager", [("adaln_forward", "1x1536x3072_1x3072", "bf16")], modulate, cold=True),
        Row("gated residual, 1536×3072", "eager", [("gate_forward", "1x1536x3072_1x3072_gate-bf16", "bf16")], residual, cold=True),
        Row("SE broadcast, 1536×3072", "eager", [("gate_forward", "1x1536x3072_1x3072_gate-f32", "bf16")], residual, cold=True),
        Row("QK-norm + RoPE of q, 1536×24×128", "diffusers, eager", [("qk_norm_rope_forward", rope, "bf16")], norm_rope, cold=True),
    ]
    for dtype in (bf16, f32):
        d = names[dtype]
        for O in (3072, 9216, 21504):
            list_.append(Row(f"linear 1536×3072→{O}", "F.linear", [("linear_forward", f"1x1536x3072_{O}x3072_{O}", d)], linear(3072, O, dtype)))
        list_.append(Row("linear + GELU 1536×3072→12288", "F.linear, F.gelu", [("linear_forward", "1x1536x3072_12288x3072_12288_gelu_tanh-no-pre", d)],
                         linear(3072, 12288, dtype, "GELU")))
        for I in (12288, 15360):
            list_.append(Row(f"linear + gated residual 1536×{I}→3072", "F.linear, eager", [("linear_forward", f"1x1536x{I}_1x1536x3072_1x3072_3072x{I}_3072_gate", d)],
                             linear(I, 3072, dtype, "gated residual")))
    return list_ + block_rows() + model_rows() + scaling_rows()


def block_rows():
    import torch
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

    heads, dim, width, text = 24, 128, 3072, 512
    pattern = torch.randn((1 << 20) - 3) / width**0.5

    def block(kind, image, mode, dtype):
        def make():
            with torch.device("meta"):
                b = kind(width, heads, dim).to(dtype)
            b.to_empty(device="cpu")
            for p in b.parameters():  # a drawn pattern over and over: drawing 340 million numbers takes longer than timing them
                p.data.view(-1).copy_(pattern.repeat(-(-p.numel() // len(pattern)))[: p.numel()])
            inputs = [torch.randn(1, n, width, dtype=dtype) for n in (image, text)] + [torch.randn(1, width, dtype=dtype)]
            table = torch.randn(text + image, dim), torch.randn(text + image, dim)

            def forward():
                return b(hidden_states=inputs[0], encoder_hidden_states=inputs[1], temb=inputs[2], image_rotary_emb=table)

            if mode == "forward":
                b.requires_grad_(False)

                def call():
                    with torch.inference_mode():
                        forward()

                return call
            b.requires_grad_(mode == "forward_weightgrad")
            wanted = [x.requires_grad_() for x in inputs] + (list(b.parameters()) if mode == "forward_weightgrad" else [])
            cotangents = [torch.randn(1, n, width, dtype=dtype) for n in (text, image)]
            return lambda: torch.autograd.grad(forward(), wanted, cotangents)

        return make

    list_ = []
    words = {"forward": "forward", "forward_inputgrad": "forward + input gradients", "forward_weightgrad": "forward + input and weight gradients"}
    for op, kind in (("double_block", FluxTransformerBlock), ("single_block", FluxSingleTransformerBlock)):
        for mode in words:
            for image in (256, 1024):
                list_.append(Row(f"{op.replace('_', ' ')} {words[mode]}, {image} + {text}", "diffusers' block", [(f"{op}_{mode}", f"{image}+{text}x{width}", "bf16")],
                                 block(kind, image, mode, torch.bfloat16)))
    return list_


def scaling_rows():
    """Ours on all threads against ours on one."""
    cases = {
        "attention forward, L 1536": [("attention_forward", "1x1536x24x128", "bf16")],
        "linear 1536×3072→3072": [("linear_forward", "1x1536x3072_3072x3072_3072", "bf16")],
        "AdaLN modulate, 1536×3072": [("adaln_forward", "1x1536x3072_1x3072", "bf16")],
        "double block forward, 256 + 512": [("double_block_forward", "256+512x3072", "bf16")],
    }
    return [Row(f"thread scaling, {what}", "ours on 1 thread", ours, None, cold="modulate" in what) for what, ours in cases.items()]


def model_rows():
    import torch
    from diffusers import AutoencoderKL

    def decode(dtype):
        def make():
            vae = AutoencoderKL(
                in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32, act_fn="silu",
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, use_quant_conv=False, use_post_quant_conv=False,
            ).to(dtype).to(memory_format=torch.channels_last)
            z = torch.randn(1, 16, 64, 64, dtype=dtype).to(memory_format=torch.channels_last)

            def call():
                with torch.inference_mode():
                    vae.decode(z)

            return call

        return make

    return [
        Row("VAE decode 512²", "diffusers, channels last", [("vae_decode", "512x512x3", "bf16")], decode(torch.bfloat16), memory=True),
        Row("VAE decode 512²", "diffusers, channels last", [("vae_decode", "512x512x3", "f32")], decode(torch.float32), memory=True),
        Row("nano training step", "the same net in eager, bf16 autocast", [("training_step", "16x64x64x3", "bf16")], nano_step),
        Row("nano training step", "the same net in eager, bf16 autocast", [("training_step", "16x64x64x3", "f32")], nano_step),
    ]


def nano_step():
    """An optimizer step of the embedded family, as pkg/train makes it: base and adapter trained together, flow and pixel loss, clipping, AdamW, average."""
    import torch
    from diffusers import FluxTransformer2DModel
    from torch.nn import functional as F

    sys.path.insert(0, str(HERE.parent / "golden"))
    import transformer  # the model of the golden fixtures, with diffusers' blocks

    transformer.transformer_flux.apply_rotary_emb = transformer.published_rotate  # it replaces the function for its float64 references
    base = FluxTransformer2DModel(
        patch_size=1, in_channels=48, num_layers=1, num_single_layers=10, attention_head_dim=64, num_attention_heads=3, joint_attention_dim=64,
        pooled_projection_dim=64, guidance_embeds=False, axes_dims_rope=(16, 24, 24),
    )
    base.prediction, base.lq_skip = "sample", True
    adapter = transformer.Adapter(base, 8, 8)
    params = [*base.parameters(), *adapter.parameters()]
    with torch.no_grad():
        for p in params:
            p.normal_(0, 1 / p.shape[-1] ** 0.5 if p.dim() > 1 else 0.1)
    average = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    hq, lq, matrix = torch.randn(16, 3, 64, 64), torch.randn(16, 3, 64, 64), torch.randn(12, 12) / 12**0.5

    def encode(image):  # 2×2 pixels to 12 channels, then 2×2 of those to a token of 48
        z = torch.einsum("oc,bcyx->boyx", matrix, F.pixel_unshuffle(image, 2))
        return F.pixel_unshuffle(z, 2).flatten(2).transpose(1, 2)

    def decode(tokens):
        z = F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (16, 16)), 2)
        return F.pixel_shuffle(torch.einsum("oc,bcyx->boyx", matrix, z), 2)

    def call():
        with torch.no_grad():
            z0, z_lq = encode(hq), encode(lq)
        z1, t = torch.randn_like(z0), torch.rand(16) * 0.9 + 0.1
        z_t = (1 - t[:, None, None]) * z0 + t[:, None, None] * z1
        with torch.autocast("cpu", torch.bfloat16):
            v = transformer.evaluate(base, (16, 16), z_t, t, None, torch.float32, adapter=adapter, z_lq=z_lq)[0]
        v = v.float()
        sample = z_t - t[:, None, None] * v
        loss = 0.05 * F.mse_loss(v, z1 - z0) + F.l1_loss(decode(sample), hq)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in params], 0.0005)

    return call


def duration(seconds):
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def memory_table(found):
    """Markdown: the most that each side's process has resident in a call."""
    text = ""
    for r in found:
        if "memory" not in r:
            continue
        ours, theirs = r["memory"]["ours"], r["memory"]["theirs"]
        cells = [f"{side['peak'] / 2**20:.0f} MiB (program alone {side['program'] / 2**20:.0f})" for side in (ours, theirs)]
        text += f"| {r['what']} | {r['dtype']} | {cells[0]} | {ours['device'] / 2**20:.0f} MiB | {cells[1]} | **{ours['peak'] / theirs['peak']:.2f}** |\n"
    return "\n| peak memory | dtype | ours resident | ours in buffers | peer resident | ours/peer |\n|---|---|---|---|---|---|\n" + text if text else ""


def ratios(r):
    """Speeds of ours over the peer's, pair by pair."""
    return [theirs / ours for ours, theirs in zip(r["ours"], r["theirs"])]


def spread(samples):
    """Median absolute deviation as a part of the median, percent."""
    m = median(samples)
    return 100 * median(abs(s - m) for s in samples) / m


def share(r, peaks):
    """Ours as a part of the nearer roof."""
    t = median(r["ours"])
    compute = peaks["f32"] if r["dtype"] == "f32" else max(peaks["f32"], peaks["bf16"], peaks["matrix"])
    arithmetic, memory = r["flops"] / 1e9 / compute, r["bytes"] / 1e9 / peaks["triad"]
    return f"{100 * max(arithmetic, memory) / t:.0f} % {'triad' if memory > arithmetic else r['dtype']}"


def table(results):
    """Markdown: one table for each machine, tier and number of threads."""
    text, last, peaks, group = "", None, {}, []
    for k, r in results.items():  # slices of a long run: what else a machine does only lowers a probe
        best = peaks.setdefault(k[:4], {})
        for name, rate in r["run"]["peaks"].items():
            best[name] = max(best.get(name, 0), rate)
    for k, r in results.items():
        run = r["run"]
        machine = f"{run['processor']} ({run['cpu']}; {run['features']}), tier {run['isa']}, {run['threads']} threads; probed: " + ", ".join(f"{name} {rate:.0f}" for name, rate in peaks[k[:4]].items() if rate)
        if machine != last:
            last = machine
            text += memory_table(group)
            group = []
            text += f"\n**{machine}**; {run['libraries']} against {r['versions']}\n\n"
            text += "| what | dtype | against | ours | peer | ours/peer in speed | ± MAD | ours of the peak | clock | gate |\n|---|---|---|---|---|---|---|---|---|---|\n"
        group.append(r)
        speed, clock = ratios(r), median(r["clocks"]) / peaks[k[:4]]["f32"]
        text += (f"| {r['what']}{', cold' if r['cold'] else ''} | {r['dtype']} | {r['peer']} | {duration(median(r['ours']))} | {duration(median(r['theirs']))} | "
                 f"**{median(speed):.2f}** | {spread(speed):.0f} % | {share(r, peaks[k[:4]])} | {clock:.2f} | {r['gate']:.2f} |\n")
    return text + memory_table(group)


def write(path, text):
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as f:
        f.write(text)
    os.chmod(f.name, 0o644)
    os.replace(f.name, path)


def key(r):
    run = r["run"]
    return run["processor"], run["cpu"], run["isa"], run["threads"], r["what"], r["dtype"], r["peer"]


def load(path):
    """The last result of each row, machines together."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = {}
    for r in lines:
        found[key(r)] = r
    return dict(sorted(found.items(), key=lambda item: item[0][:4]))


def fill(path, results):
    """Replaces what stands between the markers of a Markdown file."""
    text = path.read_text()
    begin, end = "<!-- begin peers -->\n", "<!-- end peers -->"
    if begin not in text or end not in text:
        sys.exit(f"peers: {path}: want the lines {begin.strip()} and {end}")
    write(path, text[: text.index(begin)] + begin + table(results) + "\n" + text[text.index(end) :])


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--kbench", default="bin/kbench", help="our program")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both sides")
    p.add_argument("--rows", default="", help="regular expression on `what dtype`")
    p.add_argument("--seconds", type=float, default=4, help="of samples per row, both sides together; seven pairs at least")
    p.add_argument("--budget", type=float, default=0, help="seconds after which no further row is begun, 0 = no limit")
    p.add_argument("--isa", choices=["avx2"], help="hold both sides to AVX2")
    p.add_argument("--missing", action="store_true", help="leave out rows that the JSON file has")
    p.add_argument("--list", action="store_true", help="print the rows and stop")
    p.add_argument("--json", type=Path, default=Path("build/peers.jsonl"), help="results are appended, with every sample")
    p.add_argument("--memory-of", metavar="ROW", help=argparse.SUPPRESS)
    p.add_argument("--md", type=Path, help="write the table of all results between the markers of this file")
    return p.parse_args()


def main():
    args = arguments()
    start = time.monotonic()
    if args.isa and os.environ.get("FLUXIR_ISA") != args.isa:  # read by the libraries when they are loaded
        os.environ.update(FLUXIR_ISA=args.isa, ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_ENABLE_INSTRUCTIONS="AVX2")
        os.execv(sys.executable, [sys.executable, *sys.argv])
    import diffusers
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    if args.memory_of:
        return print_memory(next(r for r in rows() if r.name == args.memory_of))
    chosen = [r for r in rows() if re.search(args.rows, r.name) and (r.make or args.threads > 1)]
    if args.list:
        for r in chosen:
            print(r.name)
        return
    if not chosen and args.rows:
        sys.exit(f"peers: --rows {args.rows}: no such row; see --list")
    known = subprocess.run([args.kbench, "--list"], capture_output=True, text=True, check=True).stdout.splitlines()
    known = {tuple(line.split()[1:]) for line in known}
    for row in chosen:
        for ours in row.ours:
            if ours not in known:
                sys.exit(f"peers: {row.what}: kbench --list has no row {' '.join(ours)}")
    kbench = Kbench(args.kbench, args.threads)
    alternation = Alternation(kbench, args.seconds)
    versions = f"PyTorch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), diffusers {diffusers.__version__}"
    run = kbench.ask(do="probe")["run"]
    have = load(args.json)
    results = [{"what": row.what, "peer": row.peer, "dtype": row.ours[0][2], "cold": row.cold, "run": run, "versions": versions} for row in chosen]
    todo = [(row, r) for row, r in zip(chosen, results) if not (args.missing and key(r) in have)]
    expected = [sum(kbench.ask(do="expect", op=op, shape=shape, dtype=dtype)["expect"] for op, shape, dtype in row.ours) for row, _ in todo]
    failed, first = 0, time.monotonic()

    def left(n):
        """Minutes that the rows from the n-th on take: twice kbench's guess, corrected by how long those before took."""
        return 2 * sum(expected[n:]) * (time.monotonic() - first + 30) / (2 * sum(expected[:n]) + 30) / 60

    print(f"{len(todo)} rows, about {left(0):.0f} min", flush=True)
    for n, (row, r) in enumerate(todo):
        if args.budget and time.monotonic() - start > args.budget:
            print("budget spent; --missing goes on from here")
            break
        try:
            r.update(alternation.run(row))
        except RuntimeError as e:
            print(f"peers: {row.what}: {e}", file=sys.stderr)
            failed = 1
            continue
        have[key(r)] = r
        print(f"[{n + 1}/{len(todo)}, about {left(n + 1):.0f} min left] {row.name}: ours {duration(median(r['ours']))}, {row.peer} {duration(median(r['theirs']))}, "
              f"ratio {median(ratios(r)):.2f} ± {spread(ratios(r)):.0f} %", flush=True)
        with args.json.open("a") as f:
            f.write(json.dumps(r) + "\n")
    kbench.end()
    if args.md:
        fill(args.md, load(args.json))
    sys.exit(failed)


if __name__ == "__main__":
    main()
