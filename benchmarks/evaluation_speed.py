"""Compares the wall time of `quantvm run` with the processor time of its parts, each measured alone.

    python benchmarks/evaluation_speed.py FOLDER --images 2000 --model resnet18

FOLDER holds a few real images as <wnid>/*.JPEG. The run reads as many hard links to them as are asked for, all of which
it decodes. Its wall time is that of its two stages that grow with images, by its log: checking (which decodes) and
evaluating. A run of one batch shows what it costs besides.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

BATCH_SIZE, WARM_UP, CALLS = 8, 3, 15
STAGES = re.compile(r"(?:check images|evaluate): ([0-9.]+) s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--part", choices=["decode", "engines"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "decode":
        print(json.dumps(decode_alone(options)))
    elif options.part == "engines":
        print(json.dumps(engines_alone(options)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    # beside the images, since links cannot lead to other disks
    with tempfile.TemporaryDirectory(dir=options.folder.resolve().parent, prefix="quantvm-links-") as work:
        os.environ["QUANTVM_CACHE_BYTES"] = "0"  # answers of the float model are not taken from an earlier run
        data = Path(work) / "data"
        link_images(options.folder, data, options.images)
        load = os.getloadavg()[0]
        parts = {**part("decode", options, data), **part("engines", options, data)}
        fixed = whole_run(options, data, Path(work) / "one", BATCH_SIZE)
        whole = whole_run(options, data, Path(work) / "all", options.images)
    n = options.images
    print(f"{options.model}, {n:,} images, {options.threads} threads, batches of {BATCH_SIZE}; load {load:.1f} before")
    print("\n| part alone | CPU ms an image | images a second of wall time |\n| --- | ---: | ---: |")
    for name, (cpu_s, wall_s) in parts.items():
        print(f"| {name} | {1e3 * cpu_s:.1f} | {1 / wall_s:.1f} |")
    cpu_s = sum(cpu for cpu, _ in parts.values())
    wall_s, run_cpu_s = whole["images_s"], whole["cpu_s"] - fixed["cpu_s"]
    print(f"| all parts | {1e3 * cpu_s:.1f} | {options.threads / cpu_s:.1f} if they shared {options.threads} cores |")
    besides_s, run_cpu_ms = whole["wall_s"] - wall_s, 1e3 * run_cpu_s / (n - BATCH_SIZE)
    print(f"| quantvm run, besides {besides_s:.0f} s | {run_cpu_ms:.1f} | {n / wall_s:.1f} |")
    print(
        f"\nwall time over the parts' CPU time / {options.threads} cores: {wall_s / n / (cpu_s / options.threads):.2f}"
    )
    print(f"peak memory: {whole['peak_rss_mib']:.0f} MiB, of one batch: {fixed['peak_rss_mib']:.0f} MiB")


def link_images(folder: Path, data: Path, n: int) -> None:
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    for number, path in enumerate(islice(cycle(files), n)):
        link = data / "val" / path.parent.name / f"{number:06}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, link)


def whole_run(options: argparse.Namespace, data: Path, out: Path, n: int) -> dict[str, float]:
    """Returns the times of `quantvm run` in a process of its own."""
    command = [
        sys.executable, "-m", "quantvm", "run", "--model", options.model, "--weights", "random", "--data", str(data),
        "--num-samples", str(n), "--calibration-data", str(options.folder), "--calibration-samples", "32",
        "--threads", str(options.threads), "--batch-size", str(BATCH_SIZE), "--out", str(out),
    ]  # fmt: skip
    started_s = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)} ended with {child.returncode}")
    cpu_s, peak_rss_mib = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    return {
        "wall_s": time.monotonic() - started_s, "cpu_s": cpu_s, "peak_rss_mib": peak_rss_mib,
        "images_s": sum(float(seconds) for seconds in STAGES.findall((out / "log.txt").read_text())),
    }  # fmt: skip


def part(name: str, options: argparse.Namespace, data: Path) -> dict[str, tuple[float, float]]:
    """Returns CPU and wall seconds an image of parts that are measured in a process of their own."""
    command = [sys.executable, __file__, str(data / "val"), "--part", name]
    command += ["--images", str(options.images), "--model", options.model, "--threads", str(options.threads)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def decode_alone(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    from quantvm.data import PreparedImages
    from quantvm.models import get_model

    sources = sorted(options.folder.glob("*/*"))
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        images = PreparedImages(Path(work), [get_model(options.model).preprocessing.geometry])
        cpu_s, wall_s = time.process_time(), time.monotonic()
        images.check(sources)
        n = len(sources)
        return {"decode and scale": ((time.process_time() - cpu_s) / n, (time.monotonic() - wall_s) / n)}


def engines_alone(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    from quantvm.data import iterate_inputs
    from quantvm.models import get_model
    from quantvm.runtime.target import Machine
    from quantvm.workload.options import OneModelOptions
    from quantvm.workload.prepare import prepare
    from quantvm.workload.runners import float_runner

    machine = Machine("native", options.threads)
    data = str(options.folder.parent)
    chosen = OneModelOptions(
        model=options.model, weights="random", data=data, calibration_data=data, calibration_samples=32,
        threads=options.threads,
    )  # fmt: skip
    program, _ = prepare(options.model, chosen)
    artifact = program.compile(machine)
    preprocessing = get_model(options.model).preprocessing
    inputs = list(iterate_inputs(sorted(options.folder.glob("*/*"))[: BATCH_SIZE * 4], preprocessing, BATCH_SIZE))
    runners = {
        "float model": float_runner(program.float_module, threads=options.threads),
        "PyTorch int8": program.runner(machine),
        "TVM int8": program.tvm_runner(artifact, machine),
    }
    found = {}
    for name, runner in runners.items():
        for x_f32 in islice(cycle(inputs), WARM_UP):
            runner.run(x_f32)
        cpu_s, wall_s = time.process_time(), time.monotonic()
        n = 0
        for x_f32 in islice(cycle(inputs), CALLS):
            runner.run(x_f32)
            n += len(x_f32)
        found[name] = ((time.process_time() - cpu_s) / n, (time.monotonic() - wall_s) / n)
        time.sleep(0.5)  # threads that spin after a call end
    return found


if __name__ == "__main__":
    main()
