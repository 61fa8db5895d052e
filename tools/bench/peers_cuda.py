#!/usr/bin/env python3
"""PyTorch's cuBLAS, cuDNN and FlashAttention at the shapes of a kbench run on the same card: `make gpu-day`. Reads the rows of --from that PyTorch has an
equal for (linear, attention, convolution), times each peer warm with CUDA events, and writes a table. Ratio: ours / theirs."""
import argparse
import json
import statistics
import sys
import time


def rows(path):
    """The last measurement of each case, with the card it ran on."""
    found, card = {}, ""
    with open(path) as f:
        for line in f:
            entry = json.loads(line)
            if "run" in entry:
                card = entry["run"]["processor"]
            else:
                row = entry["row"]
                found[row["op"], row["shape"], row["dtype"]] = row
    return list(found.values()), card


def dims(text):
    return [int(n) for n in text.split("x")]


def numbers(shape):
    """The shapes in a row's name, without its words."""
    return [dims(part) for part in shape.split("_") if all(n.isdigit() for n in part.split("x"))]


class Timer:
    def __init__(self, torch, device, seconds):
        self.torch, self.device, self.seconds = torch, device, seconds

    def once(self, call):
        if self.device == "cpu":
            begun = time.perf_counter()
            call()
            return time.perf_counter() - begun
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def median(self, call):
        for _ in range(3):
            call()
        samples, total = [], 0.0
        while len(samples) < 5 or (total < self.seconds and len(samples) < 200):
            samples.append(self.once(call))
            total += samples[-1]
        return statistics.median(samples)


def backends(torch):
    """Kinds of scaled_dot_product_attention, by name."""
    from torch.nn.attention import SDPBackend

    names = {"FlashAttention": "FLASH_ATTENTION", "cuDNN": "CUDNN_ATTENTION", "memory-efficient": "EFFICIENT_ATTENTION", "math": "MATH"}
    return {name: getattr(SDPBackend, value) for name, value in names.items() if hasattr(SDPBackend, value)}


def calls(torch, row, device):
    """Pairs (peer, function to time) for a row; none where PyTorch has no equal."""
    from torch.nn import functional as F
    from torch.nn.attention import sdpa_kernel

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[row["dtype"]]

    def randn(*shape, grad=False):
        return torch.randn(*shape, device=device, dtype=dtype, requires_grad=grad)

    op, shape, sizes = row["op"], row["shape"], numbers(row["shape"])
    if op == "linear_forward" and len(sizes) == 3 and not shape[-1].isalpha():
        x, w, b = (randn(*s) for s in sizes)
        yield "cuBLAS", lambda: F.linear(x, w, b)
    elif op == "linear_backward" and len(sizes) == 4 and len(sizes[1]) == 1 and not shape[-1].isalpha():
        w, b, dy, x = (randn(*s) for s in sizes)
        yield "cuBLAS", lambda: (dy.flatten(0, 1).T @ x.flatten(0, 1), dy @ w, dy.flatten(0, 1).sum(0))
    elif op in ("attention_forward", "attention_backward"):
        batch, length, heads, d = sizes[0]
        backward = op == "attention_backward"
        q, k, v = (randn(batch, length, heads, d, grad=backward).transpose(1, 2) for _ in range(3))
        for name, backend in backends(torch).items():
            try:
                with sdpa_kernel(backend):
                    o = F.scaled_dot_product_attention(q, k, v)
            except RuntimeError:
                continue  # this kind cannot do the shape or the dtype
            if backward:
                do = torch.randn_like(o)
                yield name, lambda o=o, do=do: torch.autograd.grad(o, (q, k, v), do, retain_graph=True)
            else:

                def forward(backend=backend):
                    with sdpa_kernel(backend):
                        return F.scaled_dot_product_attention(q, k, v)

                yield name, forward
    elif op == "conv2d_forward" and "pad-1,1,1,1" in shape:
        (batch, height, width, channels), (out, inputs, ky, kx) = sizes[0], sizes[1]
        x = randn(batch, channels, height, width).to(memory_format=torch.channels_last)
        w, b = randn(out, inputs, ky, kx).to(memory_format=torch.channels_last), randn(out)
        stride = int(shape.split("stride-")[1].split("-")[0])
        yield "cuDNN", lambda: F.conv2d(x, w, b, stride=stride, padding=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", required=True, help="JSON lines of kbench")
    parser.add_argument("--md", required=True, help="table to write")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: to try the script")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each peer")
    args = parser.parse_args()
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no card")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # f32 is f32, as with us
    torch.backends.cudnn.benchmark = True
    timer, (ours, card) = Timer(torch, args.device, args.seconds), rows(args.source)
    lines = [f"# Peers on {card}", "", f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, warm, medians.", "",
             "| op | shape | dtype | ours ms | peer | peer ms | ratio |", "|---|---|---|---|---|---|---|"]
    for row in ours:
        for peer, call in calls(torch, row, args.device):
            theirs, mine = timer.median(call), row["warm"]["median"]
            lines.append(f"| `{row['op']}` | {row['shape']} | {row['dtype']} | {mine * 1e3:.4g} | {peer} | {theirs * 1e3:.4g} | {mine / theirs:.2f} |")
            print(lines[-1], flush=True)
    if len(lines) == 6:
        print("no row that PyTorch has an equal for")
    with open(args.md, "w") as f:
        f.write("\n".join(lines) + "\n")


main()
