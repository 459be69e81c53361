"""A language model as large as the memory: scored, allocated, trained ten steps, saved and loaded again, on a CPU.

The model is a Llama with random weights, so that nothing is downloaded: 1.1 billion parameters by default, in the shape
of TinyLlama. `--parameters` makes a smaller one, which is to run first. Scores go to a file, activations are
checkpointed. Of every stage: seconds, the most resident memory (mapped files included, whose pages the operating system
takes back when it wants them) and the most memory of the process's own, sampled. With MALLOC_MMAP_THRESHOLD_=65536 what
is freed is given back at once.

    python benchmarks/scale.py --precision bfloat16 --parameters 2e8
    MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/scale.py --precision nf4 --output benchmarks/results/scale_nf4.json
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "speed"))
from in_few_bits import to_nf4
from measuring import forget_peak, parser, peak_since_mib, prepare, publish
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from sensitune import SptConfig, allocate, estimate_sensitivity

VOCABULARY = 32_000


def llama_config(parameters: float) -> LlamaConfig:
    """TinyLlama's shape with as many blocks as it takes; narrower where that would be few."""
    width = 2048 if parameters >= 5e8 else 1024 if parameters >= 1.2e8 else 256
    inner, heads = width * 11 // 4, width // 64
    keys = max(heads // 8, 1)
    block = 2 * width**2 + 2 * width * keys * 64 + 3 * width * inner
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        num_hidden_layers=max(2, round((parameters - 2 * VOCABULARY * width) / block)),
        vocab_size=VOCABULARY,
        use_cache=False,
    )


class Stages:
    """What each stage took."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside."""
        forget_peak()
        done, own = threading.Event(), [0.0]

        def sample() -> None:
            while not done.wait(0.05):
                own[0] = max(own[0], anonymous_mib())

        watcher = threading.Thread(target=sample, daemon=True)
        watcher.start()
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        self.rows[name] = {
            "seconds": round(seconds, 1),
            "peak_resident_mib": round(peak_since_mib()),
            "peak_own_mib": round(max(own[0], anonymous_mib())),
            "own_mib_afterwards": round(anonymous_mib()),
        }
        print(name, self.rows[name], file=sys.stderr, flush=True)


def anonymous_mib() -> float:
    """The process's memory that is no mapped file; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def build(parameters: float, precision: str) -> nn.Module:
    """The model, in bfloat16, or with its linear layers in 4 bits."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model: Any = LlamaForCausalLM(llama_config(parameters))
    finally:
        torch.set_default_dtype(default)
    model.activation_checkpointing_enable({"use_reentrant": False})
    return to_nf4(model, torch.bfloat16) if precision == "nf4" else model  # type: ignore[no-any-return]


def stored(model: nn.Module) -> tuple[int, int]:
    """Bytes of the linear layers' weights as stored, and a checksum of all of them."""
    size = checksum = 0
    for name, parameter in model.named_parameters():
        if name.endswith(("proj.weight", "proj.base_layer.weight")):
            state = getattr(parameter, "quant_state", None)
            size += parameter.numel() * parameter.element_size()
            size += 0 if state is None else sum(_sizes(state))
            checksum = zlib.crc32(parameter.detach().reshape(-1).view(torch.uint8).numpy().data, checksum)
    return size, checksum


def _sizes(state: Any) -> list[int]:
    tensors = [state.absmax, *((state.state2.absmax,) if state.nested else ())]
    return [tensor.numel() * tensor.element_size() for tensor in tensors]


def make_batches(number: int, rows: int, length: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens; what a model has to do for them is the same as for any."""
    generator = torch.Generator().manual_seed(1)
    found = [torch.randint(VOCABULARY, (rows, length), generator=generator) for _ in range(number)]
    return [{"input_ids": ids, "labels": ids} for ids in found]


def train(tuned: nn.Module, batches: list[dict[str, torch.Tensor]], steps: int) -> list[float]:
    """Plain steps of AdamW over the same batches."""
    tuned.train()
    optimizer = torch.optim.AdamW([each for each in tuned.parameters() if each.requires_grad], lr=2e-3)
    losses = []
    for step in range(steps):
        loss = tuned(**batches[step % len(batches)]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(float(loss.detach()), 4))
    return losses


def main() -> None:
    """Run the stages and report."""
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    options = parser(__doc__, repeats=1)
    options.add_argument("--precision", choices=["bfloat16", "nf4"], default="bfloat16")
    options.add_argument("--parameters", type=float, default=1.1e9)
    options.add_argument("--budget", default="0.4%")
    options.add_argument("--batches", type=int, default=4)
    options.add_argument("--rows", type=int, default=2)
    options.add_argument("--length", type=int, default=64)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--folder", type=Path, default=None, help="where scores and adapter go for the time being")
    arguments = options.parse_args()
    prepare(arguments)
    stages = Stages()
    batches = make_batches(arguments.batches, arguments.rows, arguments.length)
    empty = round(anonymous_mib())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        with stages.stage("build"):
            model = build(arguments.parameters, arguments.precision)
        size, before = stored(model)
        with stages.stage("score"):
            sensitivity = estimate_sensitivity(model, batches, score_file=folder / "scores", by_layer=True)
        scalars, score_bytes = sensitivity.outline.backbone_params, (folder / "scores").stat().st_size
        with stages.stage("allocate"):
            allocation = allocate(sensitivity, budget=arguments.budget)
        with stages.stage("train"):
            tuned: Any = get_peft_model(model, SptConfig.from_allocation(allocation, drop_path=0.0))
            losses = train(tuned, batches, arguments.steps)
        with stages.stage("save"):
            tuned.save_pretrained(folder / "adapter")
        with torch.no_grad(), stages.stage("predict"):
            expected = tuned.eval()(**batches[0]).logits
        with stages.stage("load"):
            again = PeftModel.from_pretrained(tuned.unload(), folder / "adapter").eval()
        with torch.no_grad():
            found = again(**batches[0]).logits
        adapter_bytes = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
    linear = sum(site.numel for site in sensitivity.sites if site.kind == "matrix")
    publish(
        arguments,
        malloc_mmap_threshold=os.environ.get("MALLOC_MMAP_THRESHOLD_"),
        precision=arguments.precision,
        parameters=scalars,
        linear_parameters=linear,
        stored_bytes_per_linear_parameter=round(size / linear, 4),
        stored_bytes_unchanged=stored(model)[1] == before,
        score_bytes=score_bytes,
        tokens_per_step=arguments.rows * arguments.length,
        trainable_params=allocation.trainable_params,
        modules=len(allocation.structured),
        losses=losses,
        own_mib_without_a_model=empty,
        adapter_bytes=adapter_bytes,
        loaded_gives_the_same=bool(torch.equal(found, expected)),
        stages=stages.rows,
    )


if __name__ == "__main__":
    main()
