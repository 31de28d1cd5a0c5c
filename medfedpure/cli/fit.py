"""`medfedpure fit` and `medfedpure calibrate`: a defence for a model one has, and another threshold for a defence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from medfedpure.cli.job import known_recipe
from medfedpure.cli.options import OwnModule, Threads, json_object, number
from medfedpure.cli.shown import Terminal, say_json
from medfedpure.cli.threads import use_threads

_Benign = Annotated[
    str,
    typer.Argument(
        help="Benign images that nothing was trained on: a folder of pictures, one sub-folder per class, a MedMNIST "
        ".npz, or a data set plugin (of DICOM files: dicom_folder, with its root as an option)."
    ),
]
_DataConfig = Annotated[str, typer.Option("--data-config", help="JSON options of the data set plugin.")]
_Rate = Annotated[float, typer.Option("--target-fpr", help="Share of benign images that may be flagged.")]
_Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, only the last lines.")]
_Json = Annotated[bool, typer.Option("--json", help="Print what came out as JSON.")]
_Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:0.")]


def fit(
    model: Annotated[
        str, typer.Argument(help="A saved classifier or defence, or package.module:function that builds your model.")
    ],
    benign: _Benign,
    out: Annotated[Path, typer.Option("--out", help="Folder for the defence; it must not exist yet.")],
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            callback=known_recipe,
            help="paper: what is flagged is purified. robust: the best of three policies, each attacked by who knows "
            "it. fast: no purifier, what is flagged is refused.",
        ),
    ] = "paper",
    target_fpr: _Rate = 0.05,
    detector: Annotated[str | None, typer.Option("--detector", help="A plugin; default: the recipe's.")] = None,
    purifier: Annotated[str | None, typer.Option("--purifier", help="A plugin; default: the recipe's.")] = None,
    votes: Annotated[
        int, typer.Option("--votes", min=1, help="Purifications of a flagged image that are averaged; 5 restore more.")
    ] = 1,
    budget: Annotated[
        str,
        typer.Option("--budget", help="quick: about a minute a part at 64 px; standard; thorough: four times that."),
    ] = "standard",
    eps: Annotated[
        str | None, typer.Option("--eps", help="How far the recipe robust attacks, in linf, e.g. 8/255.")
    ] = None,
    data_config: _DataConfig = "{}",
    seed: Annotated[int, typer.Option("--seed", help="Of the split, the training and the calibration.")] = 0,
    threads: Threads = None,
    device: _Device = "cpu",
    quiet: _Quiet = False,
    as_json: _Json = False,
) -> None:
    """Fit a detector and a purifier around a model on benign images, calibrate and try them, and save the defence."""
    from medfedpure.cli.bars import Bars
    from medfedpure.core.errors import DataError
    from medfedpure.core.progress import listening
    from medfedpure.core.storage import locked
    from medfedpure.defence.arms import EPS
    from medfedpure.defence.defend import defend
    from medfedpure.job.subject import images_for, model_of

    far = EPS if eps is None else number(eps)
    options = _checked(out, data_config, device, target_fpr, (model, benign))
    classifier, facts = model_of(model)
    use_threads(threads)
    data = images_for(benign, options, facts, parts=("train",))
    known = () if facts is None else facts.class_names
    # Names that the user gives win over others, but not over the same names in another order.
    told = "classes" in options and sorted(known) != sorted(data.class_names)
    if known and not told and data.num_classes > 1 and data.class_names != known:
        raise DataError(
            f"{benign} holds the classes {', '.join(data.class_names)} in this order, and the logits of {model} mean "
            f"{', '.join(known)}: read the images in that order, as in --data-config "
            f"'{json.dumps({'classes': known})}'"
        )
    talk = Terminal(stderr=as_json, quiet=quiet)
    with locked(out, "a defence that is fitted"), Bars(talk) as bars, listening(bars):
        _check_free(out)
        chain = defend(
            classifier.to(device),
            data,
            recipe=recipe,  # type: ignore[arg-type]
            target_fpr=target_fpr,
            detector=detector,
            purifier=purifier,
            votes=votes,
            budget=budget,  # type: ignore[arg-type]
            class_names=data.class_names if "classes" in options else known,
            say=talk.say,
            eps=far,
            seed=seed,
        )
        chain.save(out)
    check = None if chain.own_check is None else chain.own_check.describe()
    if as_json:
        say_json({"out": str(out), "policy": chain.policy, "own_check": check})
    else:
        own = "" if facts is not None else f" --classifier {model}"
        Terminal().say(f"saved to {out}; attack it: medfedpure evaluate {out}{own} --data FOLDER --report DIR")


def calibrate(
    defence: Annotated[
        Path, typer.Argument(help="A saved defence, or the output folder of `demo`, `run` or `federate`.")
    ],
    benign: _Benign,
    out: Annotated[Path, typer.Option("--out", help="Folder for the defence with its new threshold; not there yet.")],
    target_fpr: _Rate = 0.05,
    client: Annotated[str | None, typer.Option("--client", help="Of a run, whose defence; default: the first.")] = None,
    classifier: OwnModule = None,
    data_config: _DataConfig = "{}",
    seed: Annotated[int, typer.Option("--seed", help="Of the noise of the scores.")] = 0,
    threads: Threads = None,
    device: _Device = "cpu",
    quiet: _Quiet = False,
    as_json: _Json = False,
) -> None:
    """Fix the threshold anew, on benign images of another scanner or at another rate; nothing is trained."""
    from medfedpure.cli.bars import Bars
    from medfedpure.core.errors import CalibrationError
    from medfedpure.core.progress import listening
    from medfedpure.core.storage import locked
    from medfedpure.defence.calibration import least_scores
    from medfedpure.defence.chain import DefendedClassifier
    from medfedpure.job.own_module import own_module
    from medfedpure.job.subject import defence_of, facts_of, images_for

    options = _checked(out, data_config, device, target_fpr, (str(defence), benign))
    model = None if classifier is None else own_module(classifier)
    use_threads(threads)
    chain = DefendedClassifier.load(defence_of(defence, client), classifier=model)
    data = images_for(benign, options, facts_of(chain), parts=("train",))
    if data.num_groups < (wanted := least_scores(target_fpr)):
        raise CalibrationError(
            f"{benign} holds {data.num_groups} independent images, with which none could ever be flagged at a "
            f"false-positive rate of {target_fpr:g}: bring at least {wanted}, or raise --target-fpr"
        )
    chain.to(device)
    before = chain.calibration
    talk = Terminal(stderr=as_json, quiet=quiet)
    with locked(out, "a defence that is calibrated"), Bars(talk) as bars, listening(bars):
        _check_free(out)
        after = chain.calibrate(data, target_fpr, seed=seed).calibration
        assert after is not None
        chain.save(out)
    was, flagged = None, None
    if before is not None:
        was, flagged = before.threshold(), int(before.flagged(after.scores).sum())
    found = {"out": str(out), "threshold": after.threshold(), "before": was, "flagged_before": flagged}
    if as_json:
        say_json({**found, "images": len(data), "groups": data.num_groups, "target_fpr": target_fpr})
        return
    moved = "there was none before" if was is None else f"it was {was:.4g}, and would flag {flagged} of them"
    Terminal().say(
        f"threshold {found['threshold']:.4g}, for {target_fpr:.1%} of benign images, by one of each of "
        f"{data.num_groups} groups of {len(data)} images; {moved}; saved to {out}"
    )


def _checked(out: Path, data_config: str, device: str, target_fpr: float, read: tuple[str, str]) -> dict[str, Any]:
    """The options of the data set plugin, once nothing is in the way of what will be computed.

    Args:
        out: where the defence goes.
        data_config: those options, as JSON.
        device: to compute on.
        target_fpr: share of benign images that may be flagged.
        read: a saved folder and benign images, as they were named.

    Raises:
        ConfigError: the place is taken, or lies where this call reads; no such device.
        CalibrationError: a rate outside (0, 1).
    """
    from medfedpure.core.disk.whole import make_folder
    from medfedpure.core.errors import CalibrationError, ConfigError
    from medfedpure.job.device import check_device
    from medfedpure.verdicts.places import Own

    options = json_object(data_config, "--data-config")
    check_device(device)
    if not 0 < target_fpr < 1:
        raise CalibrationError(f"--target-fpr is a share in (0, 1), such as 0.05; got {target_fpr:g}")
    _check_free(out)
    for one in (*read, str(options.get("root", ""))):
        if one and (place := Path(one).expanduser()).is_dir() and out in Own([place]):
            raise ConfigError(
                f"{out} lies in {one}, which this call reads; whoever reads it next would find a defence in it: name a "
                "folder elsewhere"
            )
    make_folder(out.parent)
    return options


def _check_free(out: Path) -> None:
    """Raise ConfigError where something is at the place of a defence."""
    from medfedpure.core.errors import ConfigError

    if out.exists():
        raise ConfigError(f"{out} exists: name a folder that does not; a defence is never written over another one")
