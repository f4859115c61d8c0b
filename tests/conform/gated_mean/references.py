# Reference tensors of a gated mean, as PyTorch computes it.
import json
import torch
from safetensors.torch import save_file


class GatedMean(torch.nn.Module):
    def __init__(self, width, temperature):
        super().__init__()
        self.gate = torch.nn.Linear(width, 1)
        self.temperature = temperature

    def forward(self, tokens):  # [B, N, D]
        gates = torch.softmax(self.gate(tokens) / self.temperature, dim=1)
        return (gates * tokens).sum(dim=1)


torch.manual_seed(5)
module = GatedMean(width=6, temperature=2.0)
tokens = torch.randn(2, 5, 6, requires_grad=True)
cotangent = torch.randn(2, 6)
pooled = module(tokens)
(pooled * cotangent).sum().backward()

json.dump({"temperature": 2.0}, open("config.json", "w"))
save_file(module.state_dict(), "model.safetensors")
save_file({"tokens": tokens.detach(), "cotangent": cotangent}, "inputs.safetensors")
save_file(
    {
        "pooled": pooled.detach(),
        "grad_input.tokens": tokens.grad,
        "grad_param.gate.weight": module.gate.weight.grad,
        "grad_param.gate.bias": module.gate.bias.grad,
    },
    "expected.safetensors",
)
