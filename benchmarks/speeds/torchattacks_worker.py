"""torchattacks' PGD, in the process of an environment of its own: see `benchmarks.speeds.attacks`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torchattacks

from benchmarks.speeds.timing import clock
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.storage import read_document


def main() -> None:
    """Say that it is ready, then answer each line: "some" times a batch, "all" counts the images that fall."""
    folder, device = Path(sys.argv[1]), sys.argv[2]
    eps, step, steps, batch, threads = (float(word) for word in sys.argv[3:])
    torch.set_num_threads(int(threads))
    model = ClassifierModel.load(folder / "model").to(device)
    _, tensors = read_document(folder / "images", kind="images")
    images, labels = tensors["images"].to(device), tensors["labels"].to(device)
    attack = torchattacks.PGD(model, eps=eps, alpha=step, steps=int(steps), random_start=False)
    now, _ = clock(device)
    print("ready", flush=True)
    for line in sys.stdin:
        count = int(batch) if line.strip() == "some" else len(images)
        start = now()
        made = attack(images[:count], labels[:count])
        if device == "cuda":
            torch.cuda.synchronize()
        taken = now() - start
        with torch.no_grad():
            fooled = (model(made).argmax(1) != labels[:count]).double().mean()
        print(json.dumps({"seconds": taken, "fooled": round(float(fooled), 4)}), flush=True)


if __name__ == "__main__":
    main()
