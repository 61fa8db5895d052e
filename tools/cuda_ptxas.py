#!/usr/bin/env python3
"""Compiles cuda/*.cu to PTX once and with ptxas for each architecture, and prints what a kernel takes there: registers, spilled bytes, static
shared memory, occupancy. Instantiations of one kernel are one row: the most of each, the least occupancy. A row that differs from
cuda/ptxas.golden fails, and so does a spill that is not in there; --update writes that file. Dynamic shared memory is not known to ptxas and not in the occupancy."""
import argparse
import glob
import hashlib
import os
import re
import subprocess
import sys

# warps, blocks, shared memory of a multiprocessor (CUDA programming guide, compute capabilities)
LIMITS = {"80": (64, 32, 164), "86": (48, 16, 100), "89": (48, 24, 100), "90": (64, 32, 228), "100": (64, 32, 228), "120": (48, 24, 100)}
HEADER = "# arch  kernel  instantiations  threads  registers  spilled bytes  shared bytes  occupancy %"


def occupancy(arch, threads, registers, shared):
    """Share of the warps that can be on a multiprocessor, in percent."""
    warps, blocks, kilobytes = LIMITS[arch]
    per_block = -(-threads // 32)
    by_registers = 65536 // (-(-registers * 32 // 256) * 256 * per_block)
    by_shared = kilobytes * 1024 // (shared + 1024)
    return 100 * min(blocks, warps // per_block, by_registers, by_shared) * per_block // warps


def short(file, name):
    """act: rows_kernel Forward, of a mangled name."""
    text = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    text = text.replace("(anonymous namespace)::", "").replace("fx::cuda::", "")
    kernel = re.search(r"(\w+_kernel)", text)
    functor = re.search(r"_kernel<[\d, ]*(?:[a-z_]\w* *, *)*([A-Z]\w*(?:<[A-Z]\w+)?)", text)
    return f"{file}:{kernel.group(1) if kernel else text}" + (f":{functor.group(1).replace('<', '.')}" if functor else "")


def read(report, threads, rows, file, arch):
    """Adds the kernels of one ptxas -v report to rows."""
    name = None
    for line in report.splitlines():
        entry = re.search(r"Compiling entry function '(\w+)'", line)
        name = entry.group(1) if entry else name
        spill = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if spill:
            spilled = int(spill.group(1)) + int(spill.group(2))
        used = re.search(r"Used (\d+) registers", line)
        if not used:
            continue
        shared = re.search(r"(\d+) bytes smem", line)
        registers, shared = int(used.group(1)), int(shared.group(1)) if shared else 0
        count = threads.get(name, 1024)
        row = rows.setdefault((arch, short(file, name)), [0, 0, 0, 0, 0, 100])
        new = [1 + row[0], count, registers, spilled, shared, occupancy(arch, count, registers, shared)]
        rows[arch, short(file, name)] = [new[0]] + [max(a, b) for a, b in zip(new[1:5], row[1:5])] + [min(new[5], row[5])]


def to_ptx(home, path, ptx):
    """Compiles path if it or what it includes is newer; the PTX."""
    depends = [path]
    if os.path.exists(ptx + ".d"):
        with open(ptx + ".d") as f:
            depends = f.read().replace("\\\n", " ").partition(":")[2].split()
    if not os.path.exists(ptx) or any(not os.path.exists(d) or os.path.getmtime(d) > os.path.getmtime(ptx) for d in depends):
        command = [home + "/bin/nvcc", "-std=c++20", "-O3", "-arch=compute_80", "-ptx", path, "-o", ptx, "-MD", "-MF", ptx + ".d"]
        subprocess.run(command, check=True)
    with open(ptx) as f:
        return nameless(f.read())


def nameless(text):
    """Without the hashes that nvcc puts into names of anonymous namespaces, which depend on where a file lies."""
    return re.sub(r"(_GLOBAL__N__)\w{8}(_\d+_\w+?_cu_)\w{8}", r"\g<1>00000000\g<2>00000000", text)


def assemble(home, ptx, text, arch):
    """What ptxas -v says of the PTX; kept beside it under the hash of its text, since it takes minutes for all."""
    kept = f"{ptx[:-4]}.sm_{arch}"
    key = hashlib.sha256(text.encode()).hexdigest()
    if os.path.exists(kept):
        with open(kept) as f:
            if f.readline().strip() == key:
                return f.read()
    run = subprocess.run([home + "/bin/ptxas", "-v", "-arch", "sm_" + arch, ptx, "-o", "/dev/null"], capture_output=True, text=True, check=True)
    with open(kept, "w") as f:
        f.write(key + "\n" + nameless(run.stderr))
    return nameless(run.stderr)


def compile_all(home, archs, folder):
    rows = {}
    for path in sorted(glob.glob("cuda/*.cu")):
        file = os.path.basename(path)[:-3]
        ptx = os.path.join(folder, file + ".ptx")
        text = to_ptx(home, path, ptx)
        threads = {m.group(1): int(m.group(2)) for m in re.finditer(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", text)}
        for arch in archs:
            read(assemble(home, ptx, text, arch), threads, rows, file, arch)
    return [" ".join([arch, name] + [str(v) for v in row]) for (arch, name), row in sorted(rows.items(), key=lambda r: (int(r[0][0]), r[0][1]))]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", required=True, help="toolkit")
    parser.add_argument("--arch", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    parser.add_argument("--golden", default="cuda/ptxas.golden")
    parser.add_argument("--build", default="build/ptxas")
    parser.add_argument("--update", action="store_true")
    args = parser.parse_args()
    os.makedirs(args.build, exist_ok=True)
    version = re.search(r"V[\d.]+", subprocess.run([args.home + "/bin/ptxas", "--version"], capture_output=True, text=True, check=True).stdout).group(0)
    rows = compile_all(args.home, args.arch, args.build)
    print("\n".join([HEADER] + rows))
    spills = [row for row in rows if row.split()[5] != "0"]
    for row in spills:
        print("spills: " + row, file=sys.stderr)
    if args.update:
        with open(args.golden + ".new", "w") as f:
            f.write("\n".join([f"# ptxas {version}; make ptxas PTXAS_FLAGS=--update writes this file", HEADER] + rows) + "\n")
        os.replace(args.golden + ".new", args.golden)
        sys.exit(0)
    if not os.path.exists(args.golden):
        print(f"{args.golden} is not there: only spills are judged", file=sys.stderr)
        sys.exit(bool(spills))
    with open(args.golden) as f:
        lines = f.read().splitlines()
    if version not in lines[0]:
        print(f"this is ptxas {version}, {args.golden} is of another: not compared", file=sys.stderr)
        sys.exit(bool(spills))
    golden = {line for line in lines[2:] if line.split()[0] in args.arch}
    for row in sorted(golden ^ set(rows)):
        print(("missing: " if row in golden else "new: ") + row, file=sys.stderr)
    sys.exit(golden != set(rows))


main()
