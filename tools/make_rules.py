"""Makes modules/tests/data/rules.safetensors: what PyTorch makes of tables, kernels and matrices.

Run with PyTorch 2.11 and safetensors 0.8: python tools/make_rules.py
"""

import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "modules/tests/data/rules.safetensors"


def plane(table, size, to, mode, antialias, leading):
    kept, rest = table[:, :leading], table[:, leading:]
    frames = rest.reshape(-1, *size, table.shape[-1]).permute(0, 3, 1, 2)
    made = F.interpolate(frames, size=to, mode=mode, antialias=antialias, align_corners=False)
    made = made.permute(0, 2, 3, 1).reshape(1, -1, table.shape[-1])
    return torch.cat([kept, made], 1)


def time(table, frames, to, leading):
    kept, rest = table[:, :leading], table[:, leading:]
    width = table.shape[-1]
    lines = rest.reshape(frames, -1, width).permute(1, 2, 0)
    made = F.interpolate(lines, size=to, mode="linear", align_corners=False)
    return torch.cat([kept, made.permute(2, 0, 1).reshape(1, -1, width)], 1)


def restem(kernel, to, mode, antialias):
    """As FlexiViT: the pseudo-inverse of the whole matrix that enlarges patches."""
    height, width = kernel.shape[-2:]
    basis = torch.eye(height * width, dtype=torch.float64).reshape(-1, 1, height, width)
    enlarged = F.interpolate(basis, size=to, mode=mode, antialias=antialias, align_corners=False)
    matrix = enlarged.reshape(height * width, -1)
    flat = kernel.reshape(-1, height * width).double()
    made = flat @ torch.linalg.pinv(matrix).t()
    return made.reshape(*kernel.shape[:-2], *to).float()


def main():
    torch.manual_seed(0)
    made = {}
    table = torch.randn(1, 2 + 2 * 4 * 5, 3)
    made["plane.in"] = table
    made["plane.bicubic"] = plane(table, (4, 5), (7, 3), "bicubic", False, 2)
    made["plane.bilinear"] = plane(table, (4, 5), (7, 3), "bilinear", False, 2)
    made["plane.bilinear_antialias"] = plane(table, (4, 5), (3, 2), "bilinear", True, 2)
    made["plane.bicubic_antialias"] = plane(table, (4, 5), (3, 2), "bicubic", True, 2)
    made["time.in"] = torch.randn(1, 1 + 4 * 6, 3)
    made["time.longer"] = time(made["time.in"], 4, 8, 1)
    made["time.shorter"] = time(made["time.in"], 4, 3, 1)
    timed = time(made["time.in"], 4, 6, 1)
    made["clip"] = plane(timed, (2, 3), (4, 5), "bicubic", False, 1)
    kernel = torch.randn(2, 3, 4, 5)
    made["kernel.in"] = kernel
    made["kernel.bicubic"] = F.interpolate(kernel, size=(6, 7), mode="bicubic", align_corners=False)
    made["kernel.larger"] = restem(kernel, (6, 7), "bicubic", True)
    made["kernel.larger_bilinear"] = restem(kernel, (8, 8), "bilinear", False)
    made["kernel.smaller"] = restem(kernel, (3, 4), "bicubic", True)
    weight, a, b = torch.randn(4, 5), torch.randn(2, 5), torch.randn(4, 2)
    made |= {"lora.w": weight, "lora.a": a, "lora.b": b}
    made["lora.plain"] = weight + 16 / 2 * (b @ a)
    made["lora.stabilised"] = weight + 16 / 2**0.5 * (b @ a)
    save_file({name: value.contiguous() for name, value in made.items()}, OUT)


main()
