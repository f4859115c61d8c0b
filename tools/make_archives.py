"""Makes the weight files of modules/tests/data/archives, and expected.json with their values.

Run with PyTorch 2.11, safetensors 0.8 and numpy 2: python tools/make_archives.py
"""

import argparse
import collections
import json
import math
import os
import pathlib
import pickle
import shutil
import zipfile

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent.parent / "modules/tests/data/archives"
NAMES = {
    torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8",
    torch.uint8: "u8", torch.bool: "bool",
}  # fmt: skip


def numbers(*shape, dtype=torch.float32):
    count = math.prod(shape)
    values = (torch.arange(count, dtype=torch.float64) * 7 % 23 - 5) / 4
    if dtype == torch.bool:
        return (values > 0).reshape(shape)
    if dtype == torch.uint8:
        return torch.arange(count, dtype=torch.uint8).reshape(shape)
    return (values if dtype.is_floating_point else values * 4).to(dtype).reshape(shape)


def every_type():
    return {NAMES[dtype]: numbers(2, 3, dtype=dtype) for dtype in NAMES}


def views():
    base = numbers(4, 6)
    wide = numbers(3, 2, 4, dtype=torch.bfloat16)
    return {
        "whole": base,
        "turned": base.t(),
        "part": base[1:3, 2:5],
        "row": base[2],
        "steps": base[::2, ::3],
        "expanded": base[:1, :1].expand(3, 5),
        "permuted": wide.permute(2, 0, 1),
        "scalar": torch.tensor(2.5),
        "of_whole": base[3, 4],
        "none": torch.zeros(0, 3),
    }


class Settings:
    def __init__(self):
        self.rate = 0.1
        self.held = torch.ones(2)


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


class Hidden:
    def __reduce__(self):
        return math.gcd, (4, 6)


def model():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = network.state_dict()
    for at, (name, value) in enumerate(state.items()):
        value.copy_((numbers(*value.shape) + at).to(value.dtype))
    return network, state


def training():
    network, state = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    _, state = model()
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "epoch": 12,
        "accuracy": np.float64(0.5),
        "args": argparse.Namespace(model="tiny", size=[1, 2]),
        "when": pathlib.PurePosixPath("a/b"),
    }


def described(state, prefix=""):
    """Keys, types, shapes and values of nested dicts."""
    found = {}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in items:
        path = f"{prefix}{key}"
        if isinstance(value, torch.Tensor):
            flat = value.detach().to(torch.float64).reshape(-1).tolist()
            dtype = NAMES[value.dtype]
            found[path] = {"dtype": dtype, "shape": list(value.shape), "values": flat}
        elif isinstance(value, (dict, list, tuple)):
            found |= described(value, path + ".")
    return found


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    expected = {}

    def save(name, state, expect=None, **options):
        torch.save(state, HERE / name, **options)
        expected[name] = described(state if expect is None else expect)

    save("types.pt", every_type())
    save("types_stream.pt", every_type(), _use_new_zipfile_serialization=False)
    save_file(every_type(), HERE / "types.safetensors", metadata={"made": "by hand"})
    expected["types.safetensors"] = described(every_type())
    save("views.pt", views())
    save("views_stream.pt", views(), _use_new_zipfile_serialization=False)
    small = {"a": numbers(2), "b": numbers(3, dtype=torch.bfloat16)}
    save("small.pt", small)
    save("small_stream.pt", small, _use_new_zipfile_serialization=False)
    save_file(small, HERE / "small.safetensors")
    expected["small.safetensors"] = described(small)
    torch.serialization.set_crc32_options(False)
    save("unchecked.pt", small)
    torch.serialization.set_crc32_options(True)
    save("protocol4.pt", small, pickle_protocol=4)
    save("protocol5.pt", small, pickle_protocol=5)
    network, state = model()
    save("model.pt", state)
    save("parameters.pt", dict(network.named_parameters()))
    with_attributes = nn.Parameter(numbers(2))
    with_attributes.layer = 3
    save("attributes.pt", {"w": with_attributes})
    save("training.pt", training(), training()["model"])
    beside = {"module": state, "epoch": 3, "args": argparse.Namespace(size=2)}
    save("wrapped.pt", {"state_dict": beside}, state)
    save("averages.pt", {"model": state, "model_ema": state})
    nested = collections.OrderedDict(encoder=collections.OrderedDict(a=numbers(2)))
    nested["head"] = collections.defaultdict(list, w=numbers(3), more=[numbers(1), numbers(2)])
    save("nested.pt", {"model": nested}, nested)
    save("settings.pt", {"model": small, "settings": Settings()}, small)

    folder = HERE / "sharded"
    folder.mkdir()
    shards = [{"a": numbers(2), "b": numbers(3)}, {"c": numbers(2, 2, dtype=torch.float16)}]
    both = shards[0] | shards[1]
    places = {}
    for at, shard in enumerate(shards):
        name = f"model-{at + 1:05}-of-00002.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": 28}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    expected["sharded"] = described(both)
    folder = HERE / "sharded_bin"
    folder.mkdir()
    for at, shard in enumerate(shards):
        name = f"pytorch_model-{at + 1:05}-of-00002.bin"
        torch.save(shard, folder / name)
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    expected["sharded_bin"] = described(both)
    folder = HERE / "both"
    folder.mkdir()
    save_file(small, folder / "model.safetensors")
    torch.save({"other": numbers(1)}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{}")
    expected["both"] = described(small)

    refused = HERE / "refused"
    refused.mkdir()
    torch.save({"c": torch.zeros(2, dtype=torch.complex64)}, refused / "complex.pt")
    whole = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    torch.save({"q": whole}, refused / "quantised.pt")
    torch.save({"e": torch.zeros(2).to(torch.float8_e4m3fn)}, refused / "eighth.pt")
    save_file({"e": torch.zeros(2).to(torch.float8_e4m3fn)}, refused / "eighth.safetensors")
    torch.save({"s": torch.eye(2).to_sparse()}, refused / "sparse.pt")
    torch.save({"w": torch.ones(2), "x": Attack()}, refused / "attack.pt")
    torch.save({"w": torch.ones(2), "x": Hidden()}, refused / "hidden.pt")
    torch.save(nn.Linear(2, 1), refused / "module.pt")
    torch.save(torch.ones(2), refused / "nameless.pt")
    torch.save({"epoch": 3}, refused / "nothing.pt")
    torch.save({"u": torch.zeros(2, dtype=torch.uint16)}, refused / "unsigned.pt")
    torch.save({"n": torch._neg_view(torch.ones(2))}, refused / "negated.pt")
    torch.save({"_flat_param": torch.ones(4)}, refused / "fsdp.pt")
    zero = {"optimizer_state_dict": {"zero_stage": 2, "fp32": torch.ones(4)}}
    torch.save(zero, refused / "deepspeed.pt")
    (refused / "plain.pkl").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), refused / "script.pt")
    with zipfile.ZipFile(HERE / "small.pt") as source:
        with zipfile.ZipFile(refused / "packed.pt", "w", zipfile.ZIP_DEFLATED) as target:
            for name in source.namelist():
                target.writestr(name, source.read(name))
    (HERE / "expected.json").write_text(json.dumps(expected, separators=(",", ":")))


main()
