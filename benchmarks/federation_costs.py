"""What a federation costs beside the training itself: `python -m benchmarks.federation_costs`.

Four clients on phantoms, `small_cnn` of its default size, FedAvg and FedPer. The training itself is the same loop, the
same steps and images, one client after the other, without rounds. Ratios are of interleaved pairs in one run: medians
over pairs, of wall clock and of processor time. `--simulation` runs the same clients in worker processes of
Ray; it starts them, and sends everything through Flower's own message store.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import medfedpure
from medfedpure.core.settings import TrainingConfig
from medfedpure.federation import FederatedResult, Site, federate
from medfedpure.federation.run import Runtime
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train

CLIENTS, SIZE, IMAGES = 4, 48, 200
TASK = ClassificationTask()


def make_model() -> nn.Module:
    """The classifier that all clients train."""
    plugin = medfedpure.create("classifier", "small_cnn")
    model: nn.Module = plugin.create_model(in_channels=1, num_classes=2, image_size=SIZE)
    return model


def alone(sites: list[Site], training: TrainingConfig) -> None:
    """The training itself."""
    for site in sites:
        train(make_model(), TASK, site.train, training, seed=0)


def together(
    sites: list[Site], training: TrainingConfig, rounds: int, strategy: str, runtime: Runtime = "in_process"
) -> FederatedResult:
    """A federated run."""
    return federate(
        sites,
        make_model=make_model,
        task=TASK,
        strategy=medfedpure.create("personalization", strategy),
        training=training,
        rounds=rounds,
        seed=0,
        runtime=runtime,
    )


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall clock and processor time of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Print times, their ratios, and bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=24, help="of each client over all rounds")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--simulation", action="store_true", help="also in Flower's simulation engine")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = medfedpure.create("dataset", "phantom", images=CLIENTS * IMAGES, image_size=SIZE, scanners=CLIENTS).read()
    sites = [Site(f"client_{n}", own) for n, own in enumerate(data.partition(CLIENTS, by="site"))]
    training, rounds = TrainingConfig(steps=arguments.steps, batch_size=arguments.batch), arguments.rounds
    shortest = TrainingConfig(steps=rounds, batch_size=2)
    together(sites, shortest, rounds, "fedavg")
    pairs = []
    for _ in range(arguments.pairs):
        plain, federated = (
            seconds(lambda: alone(sites, training)),
            seconds(lambda: together(sites, training, rounds, "fedavg")),
        )
        pairs.append((federated[0] / plain[0], federated[1] / plain[1], plain[1], federated[1]))
    wall, processor, plain_time, federated_time = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{CLIENTS} clients, {rounds} rounds, {arguments.steps} steps of {arguments.batch} images of {SIZE} px at each "
        f"client; small_cnn by FedAvg; one thread; medians of {arguments.pairs} interleaved pairs\n"
    )
    print(f"- in-process: {wall:.3f}x the training itself by the clock, {processor:.3f}x in processor time")
    spread = ", ".join(f"{pair[0]:.3f}" for pair in pairs)
    print(f"- the pairs, by the clock: {spread}")
    overhead = (federated_time - plain_time) / (rounds * CLIENTS)
    print(
        f"- processor time: {plain_time:.2f} s alone, {federated_time:.2f} s together, "
        f"{1000 * overhead:.0f} ms for each client and round"
    )
    for strategy in ("fedavg", "fedper", "fedrep", "fedbn", "ditto", "mixture", "local"):
        result = together(sites, TrainingConfig(steps=2 * rounds, batch_size=4), rounds, strategy)
        shared = CLIENTS * sum(value.numel() * value.element_size() for value in result.shared.values())
        record = result.history[-1]
        if shared:
            up, down = record.bytes_up / shared, record.bytes_down / shared
            print(
                f"- {strategy}: {shared / CLIENTS / 1024:.0f} KiB shared; up {up:.3f}x, down {down:.3f}x of it "
                "for each client and round"
            )
        else:
            print(f"- {strategy}: nothing shared; {record.bytes_up} bytes up, {record.bytes_down} down in a round")
    if arguments.simulation:
        here, _ = seconds(lambda: together(sites, training, rounds, "fedavg"))
        there, _ = seconds(lambda: together(sites, training, rounds, "fedavg", "simulation"))
        idle, _ = seconds(lambda: together(sites, shortest, rounds, "fedavg", "simulation"))
        print(f"- simulation: {there:.1f} s where in-process takes {here:.1f} s; {idle:.1f} s with next to no training")


if __name__ == "__main__":
    main()
