"""The other side of `playhouse bench step`: the same training step in plain PyTorch.

The first line of the input is the stage as JSON; the answer is the number of parameters of each
node. Every further line asks for one round; the answer is the seconds of each step, by the wall and of all cores. Inputs are
drawn once, so no data source is measured. What each node computes is what `modules/src` says of
its kind.
"""

import json
import math
import sys
import time


def answer(**words):
    print(json.dumps(words), flush=True)


try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError as error:
    answer(error=f"{error}; name a python that has torch 2.4 or later")
    sys.exit(0)


class Refused(Exception):
    """The stage holds something that this file does not compute."""


class Mlp(nn.Module):
    def __init__(self, inputs, hidden, outputs, gelu):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.gelu = {"exact": "none", "tanh": "tanh"}[gelu]

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate=self.gelu))


class Attention(nn.Module):
    def __init__(self, width, heads, biases, qk_norm):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.q_bias = nn.Parameter(torch.zeros(width)) if biases else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if biases else None
        self.q_norm = nn.RMSNorm(width, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(width, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, x):
        batch, tokens, width = x.shape
        bias = None
        if self.q_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, -1)
        parts = [self.q_norm(q), self.k_norm(k), v]
        parts = [p.reshape(batch, tokens, self.heads, -1).transpose(1, 2) for p in parts]
        out = F.scaled_dot_product_attention(*parts)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))


class Scale(nn.Module):
    def __init__(self, width, value):
        super().__init__()
        self.gamma = nn.Parameter(torch.full([width], value))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, size, gelu, rms, layer_scale):
        super().__init__()
        width, norm = size["width"], nn.RMSNorm if rms else nn.LayerNorm
        scale = lambda: Scale(width, layer_scale) if layer_scale > 0 else nn.Identity()
        self.norm1, self.norm2 = norm(width, eps=1e-6), norm(width, eps=1e-6)
        self.attn = Attention(width, size["heads"], biases=not rms, qk_norm=rms)
        self.mlp = Mlp(width, size["hidden"], width, gelu)
        self.ls1, self.ls2 = scale(), scale()

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Pool(nn.Module):
    """Attention pooling; also gives the map of its one query."""

    def __init__(self, width, heads, pooled):
        super().__init__()
        self.heads = heads
        self.norm1_q, self.norm1_k, self.norm1_v = (nn.LayerNorm(width) for _ in range(3))
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, pooled)

    def forward(self, x):
        split = lambda t: t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q = split(self.q(self.norm1_q(x.mean(1, keepdim=True))))
        k, v = split(self.k(self.norm1_k(x))), split(self.v(self.norm1_v(x)))
        attention = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        out = (attention @ v).transpose(1, 2).flatten(1)
        return self.proj(out), attention


class Encoder(nn.Module):
    """What the three encoders share: patches, blocks, taps."""

    def __init__(self, node, gelu, rms, taps):
        super().__init__()
        options, size, dims = node["options"], node["size"], node["dims"]
        for name in ["classes", "extra_mlp", "drop_path", "cosine_attention", "across_heads"]:
            if options.get(name):
                raise Refused(f"`{name}` of `{node['name']}`")
        if options.get("positions", "joint") != "joint":
            raise Refused(f"`positions` of `{node['name']}`")
        cut = (size["tubelet"], size["patch"], size["patch"])
        self.lattice = [dims[side] // by for side, by in zip("THW", cut)]
        self.patch_embed = nn.Conv3d(3, size["width"], cut, stride=cut)
        block = lambda: Block(size, gelu, rms, options["layer_scale"])
        self.blocks = nn.ModuleList(block() for _ in range(size["depth"]))
        count = options.get("taps") or min(size["depth"], taps)
        back = [math.floor(i * options["tap_interval"]) for i in range(count)]
        self.taps = {size["depth"] - 1 - b for b in back}

    def patches(self, video):
        return self.patch_embed(video).flatten(2).transpose(1, 2)

    def run(self, x):
        tapped = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.taps:
                tapped.append(x)
        return tapped, x


class InternVideo2(Encoder):
    def __init__(self, node):
        super().__init__(node, node["options"]["gelu"], rms=True, taps=6)
        size = node["size"]
        width = size["width"]
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + math.prod(self.lattice), width) * 0.02)
        self.pool = Pool(width, size["pool_heads"], size["pooled"])

    def forward(self, video, visible=None):
        x = self.patches(video) + self.pos_embed[:, 1:]
        x = x if visible is None else gather(x, visible)
        front = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        tapped, x = self.run(torch.cat([front, x], 1))
        pooled, _ = self.pool(x)
        return {"layers": torch.stack(tapped), "tokens": x, "pooled": pooled}


class InternVlClip(Encoder):
    def __init__(self, node):
        super().__init__(node, node["options"]["gelu"], rms=True, taps=6)
        size = node["size"]
        width, places = size["width"], self.lattice[1] * self.lattice[2]
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + places, width) * 0.02)
        self.pool = Pool(width, size["pool_heads"], size["pooled"])

    def forward(self, video):
        batch, frames = video.shape[0], video.shape[2]
        x = self.patches(video.transpose(1, 2).flatten(0, 1).unsqueeze(2))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        tapped, x = self.run(x)
        pooled, attention = self.pool(x)
        attention = attention.mean(1)[..., 1:].reshape(batch, frames, -1)
        pooled = F.normalize(pooled.unflatten(0, (batch, frames)).mean(1), dim=-1)
        layers = torch.stack([F.normalize(unfold(t, batch), dim=-1) for t in tapped])
        return {"layers": layers, "pooled": pooled, "attention": attention}


def unfold(x, batch):
    """Frames side by side; the class tokens are averaged."""
    x = x.unflatten(0, (batch, -1))
    return torch.cat([x[:, :, :1].mean(1), x[:, :, 1:].flatten(1, 2)], 1)


class VideoMaeV2(Encoder):
    def __init__(self, node):
        super().__init__(node, "exact", rms=False, taps=4)
        width = node["size"]["width"]
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.register_buffer("table", torch.randn(1, math.prod(self.lattice), width) * 0.02)

    def forward(self, video):
        tapped, x = self.run(self.patches(video) + self.table)
        x = self.norm(x)
        layers = torch.stack([F.normalize(t, dim=-1) for t in [*tapped[:-1], x]])
        return {"layers": layers, "tokens": x, "pooled": x.mean(1)}


class AttentionMask(nn.Module):
    def __init__(self, node):
        super().__init__()
        self.ratio, self.per = node["options"]["ratio"], node["options"]["per"]

    def forward(self, attention):
        patches = attention.shape[2]
        scores = attention if self.per == "frame" else attention.flatten(1).unsqueeze(1)
        group = scores.shape[2]
        keep = group - math.floor(group * self.ratio)
        noise = torch.empty_like(scores).exponential_()
        chosen = (scores / noise).topk(keep, dim=-1, sorted=False).indices.sort(-1).values
        start = torch.arange(scores.shape[1]).view(1, -1, 1) * patches
        return {"visible": (chosen + start).flatten(1)}


def gather(x, index):
    """Rows of `[B, N, D]` named by `[B, V]`."""
    flat = index + torch.arange(len(x)).unsqueeze(1) * x.shape[1]
    return x.flatten(0, 1).index_select(0, flat.flatten()).view(*index.shape, -1)


class Head(nn.Module):
    def __init__(self, kind, inputs, outputs):
        super().__init__()
        linear = kind == "linear"
        self.map = nn.Linear(inputs, outputs) if linear else Mlp(inputs, inputs, outputs, "exact")
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x):
        return F.normalize(self.norm(self.map(x)), dim=-1)


class FeatureAlignment(nn.Module):
    def __init__(self, node):
        super().__init__()
        options, dims = node["options"], node["dims"]
        self.pooled = options["of"] == "pooled"
        self.pos_embed, pairs = None, 1
        if not self.pooled:
            pairs = options.get("last") or dims["L"]
            patches = dims["t"] * dims["h"] * dims["w"]
            self.front = [dims["S"] - dims.get("V", patches), dims["M"] - patches]
            back = [math.floor(i * options["interval"]) for i in range(pairs)]
            self.taps = [dims["K"] - 1 - b for b in reversed(back)]
            if options["positions"]:
                rows = min(self.front) + patches
                self.pos_embed = nn.Parameter(torch.randn(1, rows, dims["D"]) * 0.02)
        head = lambda: Head(options["head"], dims["D"], dims["E"])
        self.heads = nn.ModuleList(head() for _ in range(pairs))

    def seen(self, x, visible, front):
        if visible is None:
            return x
        kept = gather(x[:, front:], visible)
        return kept if front == 0 else torch.cat([x[:, :front], kept], 1)

    def forward(self, student, teacher, visible=None):
        teacher = teacher.detach()
        if self.pooled:
            return self.loss(self.heads[0](student), F.normalize(teacher, dim=-1))
        both = min(self.front)
        student = student[:, :, self.front[0] - both :]
        teacher = teacher[-len(self.heads) :, :, self.front[1] - both :]
        if visible is not None:
            again = visible.repeat(len(teacher), 1)
            teacher = self.seen(teacher.flatten(0, 1), again, both).unflatten(0, (len(self.heads), -1))
        if self.pos_embed is not None:
            table = self.pos_embed.expand(student.shape[1], -1, -1)
            student = student + self.seen(table, visible, both)
        found = torch.stack([head(student[tap]) for head, tap in zip(self.heads, self.taps)])
        return self.loss(found, F.normalize(teacher, dim=-1))

    def loss(self, student, teacher):
        return {"loss": 2 - 2 * (student * teacher).sum(-1).mean()}


class Source(nn.Module):
    """Frames that are drawn once."""

    def __init__(self, node):
        super().__init__()
        self.frames = {port: torch.randn(shape) for port, shape in node["outputs"].items()}

    def forward(self):
        return self.frames


KINDS = {
    "models/internvideo2": InternVideo2,
    "models/internvl_clip": InternVlClip,
    "models/videomae_v2": VideoMaeV2,
    "masks/attention": AttentionMask,
    "losses/feature_alignment": FeatureAlignment,
}


class Step:
    """All nodes of the stage in one autograd graph."""

    def __init__(self, stage):
        self.nodes, self.losses = stage["nodes"], stage["losses"]
        self.modules = {node["name"]: self.make(node) for node in self.nodes}
        self.trained = []
        for node in self.nodes:
            module = self.modules[node["name"]].requires_grad_(node["trains"])
            self.trained += module.named_parameters() if node["trains"] else []
        options = stage["optimizer"]
        self.clip = options["clip"]
        decayed = [p for name, p in self.trained if decays(name, p)]
        others = [p for name, p in self.trained if not decays(name, p)]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        rates = {"lr": options["lr"], "betas": options["betas"], "eps": options["eps"]}
        self.adamw = torch.optim.AdamW(groups, weight_decay=options["weight_decay"], **rates)

    def make(self, node):
        if node["source"]:
            return Source(node)
        if node["kind"] not in KINDS:
            raise Refused(f"kind `{node['kind']}` of `{node['name']}`")
        return KINDS[node["kind"]](node)

    def parameters(self):
        count = lambda module: sum(p.numel() for p in module.parameters())
        return {name: count(module) for name, module in self.modules.items()}

    def step(self):
        frames = {}
        for node in self.nodes:
            inputs = {port: frames[end] for port, end in node["inputs"].items()}
            with torch.set_grad_enabled(node["backward"]):
                outputs = self.modules[node["name"]](**inputs)
            frames.update({f"{node['name']}.{port}": f for port, f in outputs.items()})
        self.adamw.zero_grad()
        sum(weight * frames[end] for end, weight in self.losses.items()).backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_([p for _, p in self.trained], self.clip)
        self.adamw.step()
        return [frames[end].item() for end in self.losses]


def decays(name, parameter):
    words = ["pos_embed", "token", "table", "bias"]
    return sum(d > 1 for d in parameter.shape) > 1 and not any(w in name for w in words)


def main():
    stage = json.loads(sys.stdin.readline())
    torch.set_num_threads(stage["threads"])
    torch.manual_seed(0)
    try:
        step = Step(stage)
    except Refused as what:
        return answer(error=f"{what} is not in the PyTorch step")
    answer(parameters=step.parameters(), torch=torch.__version__)
    for _ in sys.stdin:
        wall, cpu = [], []
        for _ in range(stage["steps"]):
            start, busy = time.perf_counter(), time.process_time()
            losses = step.step()
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - busy)
        answer(wall=wall, cpu=cpu, losses=losses)


main()
