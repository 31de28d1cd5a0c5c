"""Task and the one training loop: alone or in a federation, every trainable part uses both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from torch import Tensor, nn

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import DataError, TrainingError
from medfedpure.core.progress import track
from medfedpure.core.results import device_of
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import Streams, derive_seed, isolated_rng
from medfedpure.core.task import BatchSampler, Step, Task, TrainingLog
from medfedpure.training.sampling import SAMPLERS, checked_batches
from medfedpure.training.second_set import as_saved
from medfedpure.training.state import TrainingState, WeightAverage
from medfedpure.training.step import GradientStep


def train(
    model: nn.Module,
    task: Task,
    data: ImageDataset,
    config: TrainingConfig,
    *,
    seed: int,
    description: str = "training",
    parameters: Sequence[nn.Parameter] | None = None,
    window: tuple[int, int] | None = None,
    sampler: BatchSampler | None = None,
    step: Step | None = None,
    validation: ImageDataset | None = None,
    checkpoint: Path | None = None,
    on_check: Callable[[nn.Module], None] | None = None,
) -> TrainingLog:
    """Train in place; the model ends in eval mode, with averaged weights if `ema` asks for them.

    Args:
        model: moved nowhere; batches follow its device.
        task: loss and optimizer.
        data: at least one image.
        config: budget and optimizer settings.
        seed: of the order, the streams and dropout. The global random state is left as it was.
        description: for the progress bar.
        parameters: which to update; by default all that require gradients.
        window: (first, last) step of this call within the schedule of `config.steps`, for a
            federated round; by default the whole schedule.
        sampler: of the batches; by default the task's, or what `config.sampling` names.
        step: from a batch to new weights; by default a `GradientStep`.
        validation: images to look at `config.checks` times; the weights that the task holds for best are kept (by
            default those of the lowest loss), and `config.patience` checks without better ones end the training.
        checkpoint: a folder that is written at every check; where it exists, the training goes on from
            there, to the same weights as if it had not been cut off.
        on_check: called at every check with the model, in eval mode and with the weights that would be kept now; where
            the task adds to the model while it trains, as two sets of BatchNorm, with a copy that has none of that. It
            must draw from no global generator, and change no weights.

    Raises:
        DataError: no image.
        TrainingError: the loss is not finite, the window holds no step, no batch holds an image, the sampler gives no
            batches, patience has no validation images, or no parameter may be updated.
        ArtifactError: the checkpoint is damaged, or of another training.
    """
    if len(data) == 0:
        raise DataError(f"{description}: there is no image to train on")
    first, last = window or (0, config.steps)
    if last <= first:
        raise TrainingError(
            f"{description}: no step falls into it; let training.steps be at least the number of rounds"
        )
    if config.patience and validation is None:
        raise TrainingError(
            f"{description}: patience = {config.patience} needs validation images to look at, and there are none "
            "(a federated round has none): set patience to 0, or keep some images back"
        )
    chosen = list(parameters) if parameters is not None else [p for p in model.parameters() if p.requires_grad]
    if not any(parameter.requires_grad for parameter in chosen):
        raise TrainingError(
            f"{description}: no parameter that is to be updated requires a gradient; call requires_grad_(True) on some"
        )
    sampler = sampler or task.sampler() or SAMPLERS[config.sampling]()
    step = step or GradientStep()
    for hook, kind in ((sampler, BatchSampler), (step, Step)):
        if not callable(getattr(hook, "recipe", None)):
            raise TrainingError(
                f"{_kind_of(hook)} is no {kind.__name__}: derive it from medfedpure.{kind.__name__}, which gives it "
                "the `recipe` that a checkpoint needs"
            )
    with task.around(model, chosen) as trained:
        optimizer = task.optimizer(trained, config)
        state = TrainingState(model, optimizer, WeightAverage(model, config.ema) if config.ema else None, last - first)
        recipe = (
            {}
            if checkpoint is None
            else {
                "task": [description, task.recipe()],
                "sampler": sampler.recipe(),
                "step": step.recipe(),
                "settings": config.model_dump(mode="json"),
                "seed": seed,
                "window": [first, last],
                "trained": [list(parameter.shape) for parameter in trained],
                "images": data.fingerprint(),
                "validation": None if validation is None else validation.fingerprint(),
            }
        )
        device = device_of(model)
        every = math.ceil((last - first) / config.checks)
        indices = checked_batches(sampler, data, config.batch_size, seed)
        model.train()
        with isolated_rng(derive_seed(seed, "global")):
            if checkpoint is not None:
                state.load(checkpoint, recipe)
            for _ in range(state.done):
                next(indices)
            for place in track(range(state.done, last - first), description, last - first - state.done):
                if config.patience and state.best.waited >= config.patience:
                    break
                batch = data.batch(next(indices)).to(device)
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * _schedule(first + place, config)
                streams = Streams(derive_seed(seed, "step", first + place), batch.ids)
                task.at(first + place, config.steps)
                loss = step(model, task, batch, streams, optimizer=optimizer, parameters=trained, config=config)
                if not isinstance(loss, Tensor) or loss.numel() != 1:
                    raise TrainingError(
                        f"{type(step).__name__} must return the loss, a scalar tensor; got {_kind_of(loss)}"
                    )
                state.history[place] = loss.detach().reshape(())
                state.sizes[place] = len(batch.ids)
                if state.average is not None:
                    state.average.update(model)
                state.done = place + 1
                if state.done % every == 0 or state.done == last - first:
                    if validation is not None or on_check is not None:
                        with _as_kept(state) as kept:
                            if validation is not None:
                                figures = task.metrics(kept, validation, seed=derive_seed(seed, "validation"))
                                state.best.offer(task.worth(figures), figures["loss"], kept)
                            if on_check is not None:
                                on_check(as_saved(kept))
                    if checkpoint is not None:
                        state.save(checkpoint, recipe)
        if state.best.worth is not None:
            model.load_state_dict(state.best.tensors, strict=False)
        elif state.average is not None:
            state.average.copy_to(model)
        model.eval()
        taken = state.history[state.sizes.to(device) > 0]
        if len(taken) == 0:
            raise TrainingError(
                f"{description}: no batch held an image; let the sampler draw more of them, or take more steps"
            )
        final = float(taken[-max(1, len(taken) // 10) :].mean())
        if not math.isfinite(final):
            raise TrainingError(
                f"{description}: the loss is not finite; lower learning_rate ({config.learning_rate:g})"
            )
        return TrainingLog(final, state.done, int(state.sizes.sum()), state.best.loss)


def _kind_of(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


@contextmanager
def _as_kept(state: TrainingState) -> Iterator[nn.Module]:
    """The model in eval mode, with the weights as they would be kept now: averaged, where they are averaged."""
    with state.average.applied(state.model) if state.average is not None else nullcontext():
        yield state.model.eval()
    state.model.train()


def _schedule(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    warm = config.warmup * config.steps
    if step < warm:
        return (step + 1) / (warm + 1)
    done = (step - warm) / max(config.steps - warm, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
