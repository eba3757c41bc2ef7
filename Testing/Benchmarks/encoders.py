"""Time and peak memory of encoding slices: the study's way against ours, same slices, same weights.

    python Testing/Benchmarks/encoders.py                      # SAM ViT-B at 1024 and DINOv2-L at 896 pixels
    python Testing/Benchmarks/encoders.py --encoders sam-b --slices 8 --device cuda --gradients

The study's way: the original network with its own attention, float32, one slice after the other, features copied to
float64 on the host. With ``--gradients`` it also keeps the graph of each slice, as its code does; without, it is shown
in a better light than it has. Ours: `features.encode`, in every precision asked for. Weights are random where the
published ones are not on this computer: time and memory do not depend on them, and the features are compared.
Every way runs in a process of its own, so that peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from _common import RESULTS, machine, peak_memory, start_memory, today, versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--encoders",
        nargs="+",
        default=["sam-b", "dinov2-l-reg"],
        help="ids; beside the study's way those of the SAM and DINOv2 families",
    )
    parser.add_argument("--slices", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--gradients", action="store_true", help="let the study's way keep its graph, as its code does")
    parser.add_argument("--skip-study", action="store_true")
    parser.add_argument("--output", type=Path, help="JSON file; by default in Benchmarks/results")
    parser.add_argument("--run", nargs=3, metavar=("ENCODER", "WAY", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return print(json.dumps(measure(*args.run, args.slices, args.device, args.gradients)))
    results = {
        "machine": f"{machine(args.device)}; {versions()}",
        "date": today(),
        "slices": args.slices,
        "gradients": args.gradients,
        "encoders": {},
    }
    print(f"{results['machine']}; {args.slices} slices")
    for id in args.encoders:
        results["encoders"][id] = compare(id, args)
    output = args.output or RESULTS / f"encoders-{args.device.split(':')[0]}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"Written to {output}")
    return None


def compare(id: str, args: argparse.Namespace) -> dict:
    """Run every way in its own process, and print one line for each."""
    ways = ([] if args.skip_study else ["study"]) + args.precisions
    measured, reference = {}, None
    print(f"\n{id:14s} {'s/slice':>9s} {'CPU s/slice':>12s} {'peak GB':>9s} {'weights GB':>11s} {'difference':>11s}")
    with tempfile.TemporaryDirectory() as folder:
        for way in ways:
            file = Path(folder) / f"{way}.npy"
            command = [sys.executable, __file__, "--slices", str(args.slices), "--device", args.device]
            command += ["--gradients"] * args.gradients + ["--run", id, way, str(file)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                print(f"{way:14s} failed (exit code {done.returncode}): not enough memory?")
                measured[way] = {"failed": done.returncode}
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            features = np.load(file)
            reference = features if reference is None else reference
            row["difference"] = float(np.linalg.norm(features - reference) / np.linalg.norm(reference))
            measured[way] = row
            print(
                f"{way:14s} {row['seconds']:9.2f} {row['cpu_seconds']:12.2f} {row['peak_gb']:9.2f} "
                f"{row['weights_gb']:11.2f} {row['difference']:11.1e}"
            )
    return measured


def measure(id: str, way: str, file: str, slices: int, device: str, gradients: bool) -> dict:
    """Seconds per slice and peak memory of one way; the features of the first slice go to ``file``."""
    import torch
    from FoundationRegLib.weights.catalogue import entry

    item = entry(id)
    run, weights = (study_way if way == "study" else our_way)(item, device, way, gradients)
    same = torch.Generator().manual_seed(0)
    pictures = torch.nn.functional.avg_pool2d(torch.rand(slices, 1, 264, 264, generator=same), 9, 1)
    run(pictures[:1])
    start_memory(device)
    began, began_cpu = time.perf_counter(), time.process_time()
    features = run(pictures)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    np.save(file, features[0])
    return {
        "seconds": seconds / slices,
        "cpu_seconds": cpu / slices,
        "peak_gb": peak_memory(device) / 1e9,
        "weights_gb": weights / 1e9,
    }


def random_weight(name: str, shape):
    """A tensor as strong as a trained network's, the same for every way, drawn from its name."""
    import torch

    one = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
    scale = 0.02 if "pos" in name or "token" in name or len(shape) < 2 else shape[-1] ** -0.5
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator) * scale + one


def our_network(item):
    import torch
    from FoundationRegLib.encoders.sam import SamEncoder, new_vit
    from FoundationRegLib.encoders.tiny_vit import TinyViT
    from FoundationRegLib.encoders.vit import VisionTransformer

    with torch.no_grad():
        if item.family == "tiny_vit":
            torch.manual_seed(0)
            return TinyViT(item.options["stem_stride"]).eval().fold()
        sam = item.family == "sam"
        network = new_vit(item.options["size"]) if sam else VisionTransformer(**item.options["network"])
        for name, value in network.state_dict().items():
            value.copy_(random_weight(name, value.shape))
    return SamEncoder(network, item.options.get("neck", True)) if sam else network


def our_way(item, device: str, precision: str, _gradients: bool):
    """`features.encode` on a stack of slices."""
    import torch
    from FoundationRegLib.core.grid import Grid
    from FoundationRegLib.encoders.loading import PRECISIONS, NetworkEncoder
    from FoundationRegLib.features.extraction import encode

    encoder = NetworkEncoder(item, our_network(item), torch.device(device), PRECISIONS[precision], "")
    weights = sum(value.numel() * value.element_size() for value in encoder._network.parameters())

    def run(pictures) -> np.ndarray:
        volume = pictures[:, 0]
        grid = Grid.from_axes(volume.shape, (6.0, 1.0, 1.0), (0, 0, 0), np.eye(3)[:, ::-1])
        raster = encode(volume, grid, encoder, slice_gap_mm=6.0, mask=np.ones(grid.shape, bool))
        return raster.values[:1].float().permute(0, 3, 1, 2).cpu().numpy()

    return run, weights


def study_way(item, device: str, _way: str, gradients: bool):
    """The original network, one slice at a time, as in the study's extract_encoder_feature."""
    import torch

    network = original_network(item).to(device)
    weights = sum(value.numel() * value.element_size() for value in network.parameters())
    mean, std = (torch.tensor(item.options[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    size = (item.pixels, item.pixels)

    def run(pictures) -> np.ndarray:
        made = []
        with torch.set_grad_enabled(gradients):
            for picture in pictures:
                x = torch.nn.functional.interpolate(picture[None], size, mode="bilinear")
                output = network(((x.expand(-1, 3, -1, -1) - mean) / std).to(device))
                made.append(output.detach().cpu().numpy().astype(np.float64))
        return made[0]

    return run, weights


def original_network(item):
    """segment-anything's encoder at 1024 pixels, or transformers' model with its own plain attention."""
    import torch

    if item.family == "sam":
        return our_network(item).vit.eval()
    import transformers

    network = item.options["network"]
    sizes = {
        "hidden_size": network["width"],
        "num_hidden_layers": network["depth"],
        "num_attention_heads": network["heads"],
        "patch_size": network["patch"],
        "image_size": network["patch"] * network["table"],
        "attn_implementation": "eager",
    }
    if network.get("registers"):
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=network["registers"])
        model = transformers.Dinov2WithRegistersModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, use_swiglu_ffn=network.get("gated", False)))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            draw_transformers_weight(name, value)

    class PatchTokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            side = item.pixels // network["patch"]
            tokens = self.model(pixel_values=x).last_hidden_state[:, -side * side :]
            return tokens.transpose(1, 2).unflatten(2, (side, side))

    return PatchTokens().eval()


def draw_transformers_weight(name: str, value) -> None:
    """Fill a tensor of transformers' model with what our network has under its own name for it."""
    from FoundationRegLib.encoders.vit import canonical

    own = next(iter(canonical({name: value})), "")  # what only training needs has no name of ours
    for part, letter in enumerate(("q_proj", "k_proj", "v_proj", "query", "key", "value")):
        if f".attn.{letter}." in own:
            whole = random_weight(own.replace(letter, "qkv"), (3 * value.shape[0], *value.shape[1:]))
            value.copy_(whole.chunk(3)[part % 3])
            return
    if own:
        value.copy_(random_weight(own, value.shape))


if __name__ == "__main__":
    main()
