"""PyTorch's side of `cargo xtask speed`: the tasks of harness/diffusion/examples/speed.

The networks are written here, in eager float32, from their papers: the U-Net of Ho et al. 2020 and
ResNet-18 of He et al. 2016 with a 3x3 stem. Weights and inputs follow the formula of
harness/nn/src/formula.rs, so that no file is needed and both sides compute the same numbers.

A task a line on standard input, its seconds on standard output, its results as raw float32.
"""

import argparse
import math
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def stream(name, count):
    """Uniform float64 numbers in [0, 1): FNV-1a of the name, then SplitMix64."""
    seed = 14695981039346656037
    for byte in name.encode():
        seed = (seed ^ byte) * 1099511628211 % 2**64
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = state + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def formula_weight(key, shape):
    last = key.rsplit(".", 1)[-1]
    u = stream(key, math.prod(shape))
    if last == "running_mean":
        values = 0.1 * (2 * u - 1)
    elif last == "running_var":
        values = 0.5 + u
    elif last == "num_batches_tracked":
        values = np.zeros_like(u)
    elif last == "weight" and len(shape) == 1:
        values = 1 + 0.1 * (2 * u - 1)
    elif len(shape) < 2:
        values = 0.05 * (2 * u - 1)
    else:
        values = (2 * u - 1) * math.sqrt(3 / math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def load_formula(module):
    state = {key: formula_weight(key, tuple(t.shape)) for key, t in module.state_dict().items()}
    module.load_state_dict(state)
    return module


def normal(name, shape):
    u1, u2 = (stream(f"{name}.{part}", math.prod(shape)) for part in ("u1", "u2"))
    values = np.sqrt(-2 * np.log(1 - u1)) * np.cos(2 * np.pi * u2)
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class Block(nn.Module):
    def __init__(self, c_in, c_out, temb_channels, dropout):
        super().__init__()
        self.norm1, self.conv1 = norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.temb_proj = nn.Linear(temb_channels, c_out)
        self.norm2, self.conv2 = norm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.nin_shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, temb):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.temb_proj(temb)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        batch, channels, height, width = x.shape
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2) for conv in (self.q, self.k, self.v))
        scores = torch.bmm(q.transpose(1, 2), k) * channels**-0.5
        h = torch.bmm(v, scores.softmax(dim=2).transpose(1, 2))
        return x + self.proj_out(h.reshape(batch, channels, height, width))


class Down(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    def __init__(self, blocks, attention):
        super().__init__()
        self.block, self.attn = nn.ModuleList(blocks), nn.ModuleList(attention)

    def one(self, i, x, temb):
        x = self.block[i](x, temb)
        return self.attn[i](x) if len(self.attn) > 0 else x


class Time(nn.Module):
    def __init__(self, ch, temb):
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(ch, temb), nn.Linear(temb, temb)])


class Middle(nn.Module):
    def __init__(self, channels, temb, dropout):
        super().__init__()
        self.block_1 = Block(channels, channels, temb, dropout)
        self.attn_1 = Attention(channels)
        self.block_2 = Block(channels, channels, temb, dropout)


class UNet(nn.Module):
    def __init__(self, dropout, ch=128, mults=(1, 2, 2, 2), n_blocks=2, attention=(16,), size=32, classes=10):
        super().__init__()
        self.ch, temb = ch, 4 * ch
        self.temb = Time(ch, temb)
        self.label_emb = nn.Embedding(classes + 1, temb)
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        skips, channels, down, up = [ch], ch, [], {}
        for level, mult in enumerate(mults):
            blocks, attn = [], []
            for _ in range(n_blocks):
                blocks.append(Block(channels, ch * mult, temb, dropout))
                channels = ch * mult
                skips.append(channels)
                if size >> level in attention:
                    attn.append(Attention(channels))
            down.append(Level(blocks, attn))
            if level + 1 < len(mults):
                down[-1].downsample = Down(channels)
                skips.append(channels)
        self.down = nn.ModuleList(down)
        self.mid = Middle(channels, temb, dropout)
        for level in reversed(range(len(mults))):
            blocks, attn = [], []
            for _ in range(n_blocks + 1):
                blocks.append(Block(channels + skips.pop(), ch * mults[level], temb, dropout))
                channels = ch * mults[level]
                if size >> level in attention:
                    attn.append(Attention(channels))
            up[level] = Level(blocks, attn)
            if level > 0:
                up[level].upsample = Up(channels)
        self.up = nn.ModuleList([up[level] for level in range(len(mults))])
        self.norm_out, self.conv_out = norm(channels), nn.Conv2d(channels, 3, 3, padding=1)

    def embed(self, t):
        half = self.ch // 2
        indices = torch.arange(half, dtype=torch.float32, device=t.device)
        frequencies = torch.exp(indices * -(math.log(10000) / (half - 1)))
        angles = t[:, None] * frequencies[None]
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def forward(self, x, t, y):
        temb = self.temb.dense[1](F.silu(self.temb.dense[0](self.embed(t))))
        temb = F.silu(temb + self.label_emb(y))
        skips = [self.conv_in(x)]
        for level in self.down:
            for i in range(len(level.block)):
                skips.append(level.one(i, skips[-1], temb))
            if hasattr(level, "downsample"):
                skips.append(level.downsample(skips[-1]))
        h = self.mid.block_1(skips[-1], temb)
        h = self.mid.block_2(self.mid.attn_1(h), temb)
        for level in reversed(self.up):
            for i in range(len(level.block)):
                h = level.one(i, torch.cat([h, skips.pop()], dim=1), temb)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Basic(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c_out:
            projection = nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(c_out))

    def forward(self, x):
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        c_in = 64
        for i, c_out in enumerate([64, 128, 256, 512], start=1):
            blocks = nn.Sequential(Basic(c_in, c_out, 1 if i == 1 else 2), Basic(c_out, c_out, 1))
            setattr(self, f"layer{i}", blocks)
            c_in = c_out
        self.fc = nn.Linear(512, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features = x.mean(dim=(2, 3))
        return self.fc(features), features


COMPARED = ["conv_in.weight", "conv_out.bias", "mid.block_1.conv1.weight", "up.0.block.0.conv2.weight"]


class Bench:
    def __init__(self):
        self.model = load_formula(UNet(0.1)).eval()
        self.trained = load_formula(UNet(0.1)).train()
        self.classifier = load_formula(ResNet18(10)).eval()
        self.optimiser = torch.optim.AdamW(self.trained.parameters(), lr=2e-4, weight_decay=0.0)
        self.average = [p.detach().clone() for p in self.trained.parameters()]

    def inputs(self, n):
        t = torch.tensor([float(i * 997 % 1000) for i in range(n)])
        return normal("x", (n, 3, 32, 32)), t, torch.tensor([i % 11 for i in range(n)])

    def forward(self, n):
        x, t, y = self.inputs(n)
        start = time.perf_counter()
        with torch.no_grad():
            eps = self.model(x, t, y)
        return time.perf_counter() - start, [eps]

    def backward(self, n):
        x, t, y = self.inputs(n)
        for p in self.model.parameters():
            p.grad = None
        start = time.perf_counter()
        loss = (self.model(x, t, y) - x).square().flatten(1).sum(1).mean()
        loss.backward()
        seconds = time.perf_counter() - start
        grads = dict(self.model.named_parameters())
        return seconds, [grads[name].grad for name in COMPARED]

    def step(self, n):
        x, t, y = self.inputs(n)
        start = time.perf_counter()
        loss = (self.trained(x, t, y) - x).square().flatten(1).sum(1).mean()
        loss.item()
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            for average, p in zip(self.average, self.trained.parameters()):
                average.mul_(0.9999).add_(p, alpha=1 - 0.9999)
        return time.perf_counter() - start, []

    def classify(self, images):
        mean = torch.tensor([0.4914, 0.4822, 0.4465])[None, :, None, None]
        std = torch.tensor([0.2470, 0.2435, 0.2616])[None, :, None, None]
        return self.classifier((images - mean) / std)

    def diffood(self, n):
        shape = (n, 3, 32, 32)
        images = torch.from_numpy(stream("images", math.prod(shape)).astype(np.float32)).reshape(shape)
        noise = normal("noise", shape)
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        signal = torch.cumprod(1 - betas.float(), 0).double()
        # The clean end of the reference's trajectory is index -1, whose signal is the first one.
        at = lambda t: signal[t + 1].item()
        start = time.perf_counter()
        with torch.no_grad():
            classes = self.classify(images)[0].argmax(1)
            both = torch.cat([classes, torch.full_like(classes, 10)])
            features = []
            for first in (0, 360):
                a = signal[first].item()
                x = (images * 2 - 1) * math.sqrt(a) + noise * math.sqrt(1 - a)
                t = first - 1
                while t > -1:
                    following = max(t - 100, -1)
                    eps = self.model(torch.cat([x, x]), torch.full((2 * n,), float(t)), both)
                    eps = 3 * eps[:n] - 2 * eps[n:]
                    a, b = at(t), at(following)
                    clean = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
                    x = math.sqrt(b) * clean + math.sqrt(1 - b) * eps
                    t = following
                h = self.classify((x * 0.5 + 0.5).clamp(0, 1))[1]
                features.append(h / (h.norm(dim=1, keepdim=True) + 1e-10))
            scores = (features[1] - features[0]).abs().sum(1)
        return time.perf_counter() - start, [scores]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    torch.set_num_threads(parser.parse_args().threads)
    bench = Bench()
    for line in sys.stdin:
        task, n, file = line.rstrip("\n").split("\t")
        seconds, results = getattr(bench, task)(int(n))
        for index, result in enumerate(results):
            result.detach().numpy().astype("<f4").tofile(f"{file}.{index}")
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
