"""The two ceilings of a device, through PyTorch: bytes of a copy and operations of a product.

A copy from device memory to device memory counts what is read and what is written. The product is
of random numbers in bf16, because zeros run faster than data does; the same in TF32 for comparison.
"""

import argparse
import json
import statistics
import time

import torch


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_s(device, repeats, work):
    """The median of single calls, after three that are not counted."""
    for _ in range(3):
        work()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(device, mebibytes, side, repeats):
    generator = torch.Generator(device=device).manual_seed(0)
    source = torch.randn(mebibytes << 18, generator=generator, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size()
    copy_s = median_s(device, repeats, lambda: target.copy_(source))
    if not torch.equal(source, target):
        raise SystemExit("the copy expected what was copied, got something else")
    del source, target
    result = {"copy_bytes": copied, "copy_s": copy_s, "copy_bytes_per_s": copied / copy_s}
    operations = 2 * side**3
    for name, dtype, tf32 in [("bf16", torch.bfloat16, False), ("tf32", torch.float32, True)]:
        draw = lambda: torch.randn(side, side, generator=generator, device=device).to(dtype)
        a, b = draw(), draw()
        torch.backends.cuda.matmul.allow_tf32 = tf32
        out = torch.empty(side, side, device=device, dtype=dtype)
        seconds = median_s(device, repeats, lambda: torch.mm(a, b, out=out))
        result[f"product_{name}_s"] = seconds
        result[f"product_{name}_per_s"] = operations / seconds
    return result


def facts(device):
    found = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = properties.name
        found["multiprocessors"] = properties.multi_processor_count
        found["memory_bytes"] = properties.total_memory
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    device = torch.device(options.device)
    sizes = (1, 64, 3) if options.tiny else (4096, 8192, 20)
    result = {"kind": "ceilings", **facts(device), **measure(device, *sizes)}
    with open(options.out, "w") as file:
        json.dump(result, file, indent=1)
    if not options.tiny:
        print(f"copy {result['copy_bytes_per_s'] / 1e12:.2f} TB/s, ", end="")
        print(f"bf16 product {result['product_bf16_per_s'] / 1e12:.0f} TFLOP/s, ", end="")
        print(f"TF32 {result['product_tf32_per_s'] / 1e12:.0f} TFLOP/s")


if __name__ == "__main__":
    main()
