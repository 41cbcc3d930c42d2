"""The reference's side of `cargo xtask speed detectors`: fits and scores on the same feature set.

With `--openood DIR`, a checkout of OpenOOD, the reference is OpenOOD's own postprocessors, run
unmodified on a network whose feature is its input. What they ask of CUDA happens on the CPU. Without
one, the formulas of the main detectors are here in numpy, scipy and faiss.

A line on standard input is a detector, the number of test images, and a file for their scores as raw
float32. The answer is the seconds of fitting and scoring, the bytes that memory grew by at most, and
how many images were scored: where all would take longer than the budget, no more than it allows. Or
it is `-` and a reason.
"""

import argparse
import contextlib
import importlib
import json
import os
import sys
import time
import types

import numpy as np

BATCH = 200  # What OpenOOD's evaluator gives to a loader.
OURS = 4096  # What our bench gives to a detector, for the formulas here.


def read_set(path):
    """The tensors of a safetensors file: a length, a JSON header, the numbers."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    values = np.memmap(path, np.uint8, "c", 8 + length)
    kinds = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            array = values[first:end].view(kinds[entry["dtype"]])
            # In memory, as our side has it.
            tensors[name] = np.array(array.reshape(entry["shape"]))
    return tensors


def memory(which):
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith(which):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def forget_peak():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass
    return memory("VmRSS:")


class Attributes(dict):
    """A table whose entries are attributes, as OpenOOD has its configuration."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    @classmethod
    def of(cls, value):
        if isinstance(value, dict):
            return cls({key: cls.of(entry) for key, entry in value.items()})
        return value


class OpenOOD:
    """OpenOOD's postprocessors by our names: the module, the class, the file of its defaults, and
    the wrapper that its network needs."""

    KNOWN = {
        "msp": ("base", "BasePostprocessor", None, None),
        "mls": ("maxlogit", "MaxLogitPostprocessor", "mls", None),
        "ebo": ("ebo", "EBOPostprocessor", "ebo", None),
        "gen": ("gen", "GENPostprocessor", "gen", None),
        "temp_scaling": ("temp_scaling", "TemperatureScalingPostprocessor", "temp_scaling", None),
        "klm": ("kl_matching", "KLMatchingPostprocessor", "klm", None),
        "openmax": ("openmax", "OpenMax", "openmax", None),
        "mcm": ("mcm", "MCMPostprocessor", "mcm", None),
        "knn": ("knn", "KNNPostprocessor", "knn", None),
        "mds": ("mds", "MDSPostprocessor", "mds", None),
        "rmds": ("rmds", "RMDSPostprocessor", "rmds", None),
        "vim": ("vim", "VIMPostprocessor", "vim", None),
        "residual": ("residual", "ResidualPostprocessor", "residual", None),
        "react": ("react", "ReactPostprocessor", "react", "react_net.ReactNet"),
        "vra": ("vra", "VRAPostprocessor", "vra", None),
        "dice": ("dice", "DICEPostprocessor", "dice", None),
        "ash": ("ash", "ASHPostprocessor", "ash", "ash_net.ASHNet"),
        "scale": ("scale", "ScalePostprocessor", "scale", "scale_net.ScaleNet"),
        "t2fnorm": ("t2fnorm", "T2FNormPostprocessor", "t2fnorm", "t2fnorm_net.T2FNormNet"),
        "she": ("she", "SHEPostprocessor", "she", None),
        "gradnorm": ("gradnorm", "GradNormPostprocessor", "gradnorm", None),
        "nnguide": ("nnguide", "NNGuidePostprocessor", "nnguide", None),
        "relation": ("relation", "RelationPostprocessor", "relation", None),
        "fdbd": ("fdbd", "fDBDPostprocessor", "fdbd", None),
        "nci": ("nci", "NCIPostprocessor", "nci", None),
        "cfood": ("cfood", "CFOODPostprocessor", "cfood", None),
        "dropout": ("dropout", "DropoutPostProcessor", "dropout", "dropout_net.DropoutNet"),
        "gmm": ("gmm", "GMMPostprocessor", "gmm", None),
    }

    def __init__(self, folder, data):
        import torch
        import yaml

        self.torch, self.yaml, self.folder, self.data = torch, yaml, folder, data
        self.without_cuda()
        sys.path.insert(0, folder)
        # Packages whose own modules import what has nothing to do with postprocessors.
        for package in ("postprocessors", "networks", "utils"):
            module = types.ModuleType(f"openood.{package}")
            module.__path__ = [os.path.join(folder, "openood", package)]
            sys.modules[module.__name__] = module
        info = importlib.import_module("openood.postprocessors.info")
        # Their tables know data sets by name.
        info.num_classes_dict["synthetic"] = data["head.bias"].shape[0]
        self.net = self.identity()
        splits = ("train", "val", "test", "val_ood")
        self.loaders = {split: Loader(torch, data, split) for split in splits}

    def without_cuda(self):
        torch = self.torch
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self
        torch.cuda.FloatTensor = torch.FloatTensor
        # A parameter is made on the device by name.
        ones = torch.ones
        torch.ones = lambda *args, device=None, **kwargs: ones(*args, **kwargs)

    def identity(self):
        torch = self.torch

        class Identity(torch.nn.Module):
            def __init__(self, weight, bias):
                super().__init__()
                self.fc = torch.nn.Linear(weight.shape[1], weight.shape[0])
                with torch.no_grad():
                    self.fc.weight.copy_(torch.from_numpy(weight))
                    self.fc.bias.copy_(torch.from_numpy(bias))

            def forward(self, x, return_feature=False, return_feature_list=False):
                logits = self.fc(x)
                if return_feature_list:
                    maps = x.view(len(x), -1, 4, 4) if x.shape[1] % 16 == 0 else x[:, :, None, None]
                    return logits, [maps, maps, x[:, :, None, None]]
                # Some change features in place.
                return (logits, x.clone()) if return_feature else logits

            def forward_threshold(self, x, threshold):
                return self.fc(x.clip(max=threshold))

            def get_fc(self):
                return self.fc.weight.detach().numpy(), self.fc.bias.detach().numpy()

            def get_fc_layer(self):
                return self.fc

        return Identity(self.data["head.weight"], self.data["head.bias"]).eval()

    def config(self, file):
        entries = {"postprocessor_args": {}, "postprocessor_sweep": {}}
        if file is not None:
            path = os.path.join(self.folder, "configs", "postprocessors", f"{file}.yml")
            with open(path) as text:
                entries.update(self.yaml.safe_load(text)["postprocessor"])
        args = entries["postprocessor_args"] or {}
        # With as many dimensions as there are features nothing is left.
        if file == "residual":
            args["dim"] = min(args["dim"], self.data["head.weight"].shape[1] // 2)
        entries["postprocessor_args"] = args
        return Attributes.of({"postprocessor": entries, "dataset": {"name": "synthetic"}})

    def wrapped(self, name):
        if name is None:
            return self.net
        module, kind = name.split(".")
        kind = getattr(importlib.import_module(f"openood.networks.{module}"), kind)
        more = {"DropoutNet": (0.5,), "T2FNormNet": (len(self.data["head.bias"]),)}
        net = kind(self.net, *more.get(kind.__name__, ())).eval()
        if hasattr(net, "set_tau"):
            net.set_tau(0.1)  # What it is trained with.
        return net

    def start(self, detector):
        if detector not in self.KNOWN:
            raise Missing("OpenOOD has none that runs on features")
        module, kind, file, net = self.KNOWN[detector]
        module = importlib.import_module(f"openood.postprocessors.{module}_postprocessor")
        return OpenOODRun(self, getattr(module, kind)(self.config(file)), self.wrapped(net))


class OpenOODRun:
    def __init__(self, reference, postprocessor, net):
        self.reference, self.postprocessor, self.net = reference, postprocessor, net

    def fit(self):
        loaders = self.reference.loaders
        self.postprocessor.setup(self.net, loaders, {"val": loaders["val_ood"]})

    def score(self, first, end):
        torch, test = self.reference.torch, self.reference.loaders["test"]
        # `inference`, without the labels' way to the result; two of them forget `no_grad`.
        with torch.no_grad():
            batches = [self.postprocessor.postprocess(self.net, batch["data"])[1]
                       for batch in test.part(first, end)]
        return -torch.cat([conf.reshape(-1) for conf in batches]).cpu().numpy()


class Loader:
    """A split in batches, without the cost of collecting them image by image."""

    batch_size = BATCH

    def __init__(self, torch, data, split):
        self.dataset = torch.from_numpy(data[f"{split}.features"])
        self.labels = torch.from_numpy(data[f"{split}.labels"])

    def __len__(self):
        return -(-len(self.dataset) // BATCH)

    def part(self, first, end):
        for at in range(first, end, BATCH):
            rows = slice(at, min(at + BATCH, end))
            data = self.dataset[rows]
            yield {"data": data, "data_aux": data, "label": self.labels[rows]}

    def __iter__(self):
        return Batches(self)


class Batches:
    """One pass over a loader, which knows how long it is, as PyTorch's does."""

    def __init__(self, loader):
        self.n, self.batches = len(loader), loader.part(0, len(loader.dataset))

    def __len__(self):
        return self.n

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.batches)


class Missing(Exception):
    pass


class Formulas:
    """The main detectors from their formulas."""

    def __init__(self, data):
        self.data = data

    def start(self, detector):
        kind = FORMULAS.get(detector)
        if kind is None:
            raise Missing("no formula here")
        return FormulaRun(self.data, kind)


class FormulaRun:
    def __init__(self, data, kind):
        self.data, self.kind = data, kind

    def fit(self):
        self.scorer = self.kind(self.data)

    def score(self, first, end):
        features, logits = self.data["test.features"], self.data["test.logits"]
        parts = [slice(at, min(at + OURS, end)) for at in range(first, end, OURS)]
        return np.concatenate([self.scorer(features[rows], logits[rows]) for rows in parts])


def log_sum_exp(logits):
    from scipy.special import logsumexp

    return logsumexp(logits, axis=1)


def unit(features):
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def knn(data):
    import faiss

    index = faiss.IndexFlatL2(data["train.features"].shape[1])
    index.add(unit(data["train.features"]))
    return lambda h, _: index.search(unit(h), 50)[0][:, -1]


def precision(centred):
    from scipy.linalg import pinvh

    return pinvh(centred.T @ centred / len(centred))


def mahalanobis(data):
    features, labels = data["train.features"], data["train.labels"]
    means = np.stack([features[labels == c].mean(0) for c in range(len(data["head.bias"]))])
    matrix = precision(features - means[labels])

    def distances(h, _):
        whitened = h @ matrix
        own = np.einsum("nd,nd->n", whitened, h)
        ofmeans = np.einsum("kd,kd->k", means @ matrix, means)
        return (own[:, None] - 2 * whitened @ means.T + ofmeans).min(1)

    return distances


def relative_mahalanobis(data):
    centre = data["train.features"].mean(0)
    matrix, nearest = precision(data["train.features"] - centre), mahalanobis(data)

    def distances(h, logits):
        z = h - centre
        return nearest(h, logits) - np.einsum("nd,nd->n", z @ matrix, z)

    return distances


def residual_basis(data, split, dim):
    weight, bias = data["head.weight"], data["head.bias"]
    origin = -np.linalg.pinv(weight) @ bias
    centred = data[f"{split}.features"] - origin
    vectors = np.linalg.eigh(centred.T @ centred)[1]
    return origin, np.ascontiguousarray(vectors[:, : len(origin) - dim])


def residual(data):
    origin, basis = residual_basis(data, "val", data["head.weight"].shape[1] // 2)
    return lambda h, _: np.linalg.norm((h - origin) @ basis, axis=1)


def vim(data):
    dim = min(256, data["head.weight"].shape[1] // 2)
    origin, basis = residual_basis(data, "train", dim)
    lengths = np.linalg.norm((data["train.features"] - origin) @ basis, axis=1)
    alpha = data["train.logits"].max(1).mean() / lengths.mean()
    return lambda h, l: alpha * np.linalg.norm((h - origin) @ basis, axis=1) - log_sum_exp(l)


def react(data):
    threshold = np.percentile(data["val.features"], 90)
    weight, bias = data["head.weight"], data["head.bias"]
    return lambda h, _: -log_sum_exp(np.minimum(h, threshold) @ weight.T + bias)


def msp(_):
    from scipy.special import softmax

    return lambda _, l: -softmax(l, axis=1).max(1)


FORMULAS = {
    "msp": msp,
    "mls": lambda _: lambda _, l: -l.max(1),
    "ebo": lambda _: lambda _, l: -log_sum_exp(l),
    "knn": knn,
    "mds": mahalanobis,
    "rmds": relative_mahalanobis,
    "residual": residual,
    "vim": vim,
    "react": react,
}


def timed(reference, detector, n, budget, clock):
    """Times of fitting and scoring, growth of memory, and scores of as many as fit the budget."""
    before = forget_peak()
    start = clock()
    run = reference.start(detector)
    run.fit()
    fitted = clock()
    # A first part says how many there is time for.
    end = min(2 * BATCH, n)
    parts = [run.score(0, end)]
    of_first = max(clock() - fitted, 1e-9)
    possible = int(budget / of_first) * end
    if possible > end and end < n:
        rest = n if possible >= n else possible
        parts.append(run.score(end, rest))
        end = rest
    seconds = clock() - fitted
    grown = max(memory("VmHWM:") - before, 0)
    scores = np.concatenate(parts).astype("<f4")
    return fitted - start, seconds * n / end, grown, scores


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("set")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--budget", type=float, required=True)
    parser.add_argument("--clock", choices=["wall", "processor"], required=True)
    parser.add_argument("--openood")
    args = parser.parse_args()
    clock = time.process_time if args.clock == "processor" else time.perf_counter
    data = read_set(args.set)
    answers = os.fdopen(os.dup(1), "w")
    # What a postprocessor prints is no answer.
    os.dup2(2, 1)
    with contextlib.suppress(ImportError):
        import faiss

        faiss.omp_set_num_threads(args.threads)
    if args.openood is None:
        reference = Formulas(data)
    else:
        reference = OpenOOD(args.openood, data)
        reference.torch.set_num_threads(args.threads)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        detector, n, file = line.rstrip("\n").split("\t")
        try:
            fit, score, grown, scores = timed(
                reference, detector, int(n), args.budget, clock
            )
        except Missing as reason:
            print(f"-\t{reason}", file=answers, flush=True)
            continue
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".replace("\n", " ").replace("\t", " ")
            print(f"-\t{reason}", file=answers, flush=True)
            continue
        scores.tofile(file)
        print(f"{fit}\t{score}\t{grown}\t{len(scores)}", file=answers, flush=True)


if __name__ == "__main__":
    main()
