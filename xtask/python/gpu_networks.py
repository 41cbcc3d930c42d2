"""The networks of speed.py as PyTorch can run them on a GPU, from its defaults to its best.

| variant | what |
| --- | --- |
| `eager-f32` | the official code's formulation, products in float32 without TF32: the reference for numbers |
| `eager` | the same with PyTorch's defaults, which let convolutions use TF32 |
| `compile-tf32` | `torch.compile`, channels last, TF32 everywhere, fused attention |
| `compile-bf16` | `torch.compile`, channels last, bf16 by autocast, fused attention |
| `compile-bf16-weights` | the same with the whole network in bf16; sampling alone |

Compiled variants replay CUDA graphs (`reduce-overhead`, or `max-autotune` where asked for). Weights
and inputs follow the formula of speed.py, so that every variant and our side compute the same.
"""

import contextlib

import torch
from torch.nn import functional as F

import speed

VARIANTS = ["eager-f32", "eager", "compile-tf32", "compile-bf16", "compile-bf16-weights"]


class FastAttention(speed.Attention):
    """The same function with PyTorch's fused attention; one head."""

    def forward(self, x):
        batch, channels, height, width = x.shape
        h = self.norm(x)
        rows = lambda t: t.flatten(2).transpose(1, 2).unsqueeze(1)
        q, k, v = (rows(conv(h)) for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.squeeze(1).transpose(1, 2).reshape(batch, channels, height, width)
        return x + self.proj_out(h)


class FastUNet(speed.UNet):
    """speed.UNet with fused attention, whose time embedding takes the type of its weights."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if type(module) is speed.Attention:
                module.__class__ = FastAttention

    def embed(self, t):
        return super().embed(t).to(self.conv_in.weight.dtype)


class Variant:
    """How networks are built, compiled and called."""

    def __init__(self, name, device, mode="reduce-overhead"):
        if name not in VARIANTS:
            raise SystemExit(f"variant expected one of {', '.join(VARIANTS)}, got {name}")
        self.name, self.device, self.mode = name, torch.device(device), mode
        self.compiled = name.startswith("compile")
        self.autocast = name == "compile-bf16"
        self.dtype = torch.bfloat16 if name == "compile-bf16-weights" else torch.float32
        # What convolutions and products may do in TF32.
        self.tf32 = {"eager": (True, False), "compile-tf32": (True, True)}.get(name, (False, False))

    @property
    def can_train(self):
        return self.dtype == torch.float32

    @contextlib.contextmanager
    def active(self):
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = self.tf32
        # As the official code has it: shapes never change.
        torch.backends.cudnn.benchmark = True
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            yield

    def place(self, module):
        module = module.to(self.device, self.dtype)
        return module.to(memory_format=torch.channels_last) if self.compiled else module

    def compile(self, module):
        if not self.compiled:
            return module
        if self.device.type == "cpu":
            # A rehearsal: the graph is traced, and nothing is generated.
            return torch.compile(module, backend="aot_eager", dynamic=False)
        return torch.compile(module, mode=self.mode, dynamic=False)

    def unet(self, dropout, channels, size):
        kind = FastUNet if self.compiled else speed.UNet
        return self.place(speed.load_formula(kind(dropout, ch=channels, size=size)))

    def classifier(self):
        return self.place(speed.load_formula(speed.ResNet18(10)).eval())

    def images(self, x):
        x = x.to(self.device, self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.compiled else x

    def optimiser(self, parameters):
        settings = {"lr": 2e-4, "weight_decay": 0.0}
        if self.compiled and self.device.type == "cuda":
            settings["fused"] = True
        return torch.optim.AdamW(parameters, **settings)

    def begin(self):
        """Before every call of something compiled: what the last one gave may be written over."""
        if self.compiled and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()


def operations(channels, size):
    """What PyTorch's own counter has for a forward pass of one image."""
    from torch.utils.flop_counter import FlopCounterMode

    model = speed.UNet(0.0, ch=channels, size=size).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, 3, size, size), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops()
