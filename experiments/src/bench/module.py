# One network of transformers, timed: a line of JSON in, a line of JSON out.
import json, resource, sys, time

case = json.loads(sys.stdin.readline())
import torch
torch.set_num_threads(case["threads"])
torch.manual_seed(0)
device, dtype = case["device"], {"f32": torch.float32, "bf16": torch.bfloat16}[case["precision"]]
name = case["name"]


def videomae():
    from transformers import VideoMAEConfig, VideoMAEModel
    config = VideoMAEConfig(image_size=224, patch_size=14, num_frames=16, tubelet_size=2, hidden_size=384,
                            num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
                            attn_implementation="sdpa")
    model = VideoMAEModel(config)
    video = torch.randn(case["batch"], 16, 3, 224, 224)
    hidden = torch.ones(case["batch"], 2048, dtype=torch.bool)
    hidden[:, ::5] = False
    return model, lambda m: m(video.to(device, dtype), bool_masked_pos=hidden.to(device)).last_hidden_state


def bert():
    from transformers import BertConfig, BertModel
    model = BertModel(BertConfig(attn_implementation="sdpa"), add_pooling_layer=False)
    ids = torch.randint(0, 30000, (case["batch"], case["tokens"])).to(device)
    return model, lambda m: m(ids).last_hidden_state


def qformer():
    from transformers import Blip2QFormerConfig, Blip2QFormerModel
    config = Blip2QFormerConfig(encoder_hidden_size=1408, attn_implementation="sdpa")
    model = Blip2QFormerModel(config)
    queries = torch.randn(1, 32, 768).to(device, dtype)
    memory = torch.randn(case["batch"], case["tokens"], 1408).to(device, dtype)
    return model, lambda m: m(query_embeds=queries.expand(case["batch"], -1, -1),
                              encoder_hidden_states=memory).last_hidden_state


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                         num_attention_heads=12, num_key_value_heads=12, attn_implementation="sdpa")
    model = LlamaForCausalLM(config)
    ids = torch.randint(0, 32000, (case["batch"], case["tokens"])).to(device)
    return model, lambda m: m(ids).logits


def peak():
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024


def settle():
    if device != "cpu":
        torch.cuda.synchronize()


model, run = {"vit_s": videomae, "bert_base": bert, "qformer": qformer, "llama_12x768": llama}[name]()
what = case["what"]
# Dropout is active where gradients are wanted, as on the other side.
model = model.to(device, dtype).train(what == "backward")
wall, cpu, count = [], [], 0
if what == "generate":
    ids = torch.randint(0, 32000, (1, case["tokens"])).to(device)
    make = lambda: model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=case["new"],
                                  min_new_tokens=case["new"], do_sample=False, pad_token_id=0)
for number in range(case["times"] + 1):
    settle()
    start, used = time.perf_counter(), time.process_time()
    if what == "forward":
        with torch.no_grad():
            run(model)
    elif what == "backward":
        model.zero_grad()
        run(model).square().mean().backward()
        torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()
    else:
        with torch.no_grad():
            make()
    settle()
    if number > 0:
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
count = sum(p.numel() for p in model.parameters())
print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak(), "parameters": count, "torch": torch.__version__}))
