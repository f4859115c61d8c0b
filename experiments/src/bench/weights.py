# One pass over a file of weights, timed: a line of JSON in, a line of JSON out.
import json, sys, time

case = json.loads(sys.stdin.readline())
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
torch.set_num_threads(case["threads"])
torch.zeros(1).float()


def peak():
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024


start = time.perf_counter()
if case["what"] == "read":
    with safe_open(case["file"], "pt") as held:
        for key in held.keys():
            held.get_tensor(key).float()
elif case["what"] == "load":
    values = {key: value.float() for key, value in load_file(case["file"]).items()}
else:
    save_file(load_file(case["file"]), case["out"] + "/all.safetensors")
print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak()}))
