"""Finds NVIDIA's libraries for programs that do not come with them: those in PyTorch's wheels.

Prints the folders on standard output, joined for LD_LIBRARY_PATH, and on standard error a line for
each library that programs of this parcel open: where it is, or that it is missing. Ends with 1
where one is missing that they cannot do without.
"""

import glob
import importlib.util
import os
import subprocess
import sys
import sysconfig

# Name, and whether anything works without it.
LIBRARIES = [
    ("libcuda.so.1", False),
    ("libcublas.so.13", False),
    ("libcublasLt.so.13", False),
    ("libcurand.so.10", False),
    ("libcudnn.so.9", True),
    ("libnvrtc.so.13", True),
    ("libnccl.so.2", True),
]

# Where containers have the driver mounted.
DRIVER = ["/usr/local/nvidia/lib64", "/usr/local/nvidia/lib"]


def folders(roots):
    """The folders with libraries in the wheels below `roots`, then those of the driver."""
    found = []
    for root in roots:
        found += sorted(glob.glob(os.path.join(root, "nvidia", "*", "lib")))
        found += glob.glob(os.path.join(root, "torch", "lib"))
    found += [folder for folder in DRIVER if os.path.isdir(folder)]
    return list(dict.fromkeys(found))


def site_packages():
    roots = []
    torch = importlib.util.find_spec("torch")
    if torch is not None and torch.origin:
        roots.append(os.path.dirname(os.path.dirname(torch.origin)))
    roots += [sysconfig.get_paths()[name] for name in ("purelib", "platlib")]
    return list(dict.fromkeys(roots))


def where(name, path):
    """The file that the loader takes for a name with `path` as LD_LIBRARY_PATH, or nothing."""
    program = (
        "import ctypes, sys\n"
        "try: ctypes.CDLL(sys.argv[1])\n"
        "except OSError: sys.exit(1)\n"
        "for line in open('/proc/self/maps'):\n"
        "    if sys.argv[1] in line: print(line.split()[-1]); break\n"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": path}
    ran = subprocess.run([sys.executable, "-c", program, name], env=environment, capture_output=True, text=True)
    return (ran.stdout.strip() or "loaded") if ran.returncode == 0 else None


def main():
    given = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    path = ":".join(dict.fromkeys(given + folders(site_packages())))
    missing = False
    for name, optional in LIBRARIES:
        file = where(name, path)
        print(f"{name:<20} {file or 'not found'}", file=sys.stderr)
        missing |= file is None and not optional
    print(path)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
