"""ONNX: the bytes of a file, and what onnxruntime answers to them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from medfedpure import __version__
from medfedpure.core.errors import ConfigError, MissingExtraError
from medfedpure.export.facts import KEY, as_text, in_a_sentence
from medfedpure.export.graph import Graph


def check_packages() -> None:
    """Raise MissingExtraError unless all that an ONNX file is made and checked with is installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"ONNX files are made with onnx and onnxscript and checked in onnxruntime ({error}): pip install "
            "'medfedpure[export]', or write format='torch'"
        ) from error


def to_bytes(program: ExportedProgram, graph: Graph) -> bytes:
    """The file, its facts in the metadata under "medfedpure".

    Raises:
        ConfigError: ONNX's exporter refuses it, such as an operation without a counterpart.
        MissingExtraError: onnxscript is older than this PyTorch wants.
    """
    median = torch.ops.aten.median.dim
    with warnings.catch_warnings():
        # The lowest float64, which nan_to_num replaces an infinity by, is noted as a float32 as well.
        warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning, "onnx_ir")
        if any(node.target is median for node in program.graph.nodes):
            program = program.run_decompositions({median: _median})
        try:
            made = torch.onnx.export(
                program, (), dynamo=True, input_names=graph.inputs, output_names=graph.outputs, verbose=False
            )
        except ImportError as error:
            raise MissingExtraError(
                f"the installed onnxscript does not fit PyTorch {torch.__version__} ({error}): pip install --upgrade "
                "onnxscript, or write format='torch'"
            ) from error
        except torch.onnx.errors.OnnxExporterError as error:
            lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
            raise ConfigError(
                f"the {graph.facts['holds']} cannot be written as ONNX, its exporter says ({lines[0][:300]}): write "
                "format='torch', or say in other operations what has no counterpart there"
            ) from error
    assert made is not None
    model = made.model_proto
    _tidy(model)
    model.producer_name, model.producer_version = "medfedpure", __version__
    model.doc_string = in_a_sentence(graph.facts)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, as_text(graph.facts)
    content: bytes = model.SerializeToString()
    return content


def answers(content: bytes, graph: Graph, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What onnxruntime says on the CPU, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    given = {name: value.numpy() for name, value in zip(graph.inputs, inputs, strict=True)}
    return [torch.from_numpy(found) for found in session.run(list(graph.outputs), given)]


def runtime() -> str:
    """Name and version of what ONNX files are checked in."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def _tidy(model: Any) -> None:
    """Call the number of images N, and leave out what torch notes of itself, such as places in source files."""
    inner = model.graph
    symbols = {value.type.tensor_type.shape.dim[0].dim_param for value in inner.input} - {""}
    for value in (*inner.input, *inner.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in symbols:
                size.dim_param = "N"
    del inner.value_info[:]
    for node in (*inner.node, *(node for function in model.functions for node in function.node)):
        del node.metadata_props[:]
        node.doc_string = ""


def _median(values: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """torch.median of finite values `(N, ...)` by sorting, which ONNX can: the lower of two middles, and its place."""
    ordered, places = torch.sort(values, dim=dim)
    middle = (values.shape[dim] - 1) // 2
    found = ordered.select(dim, middle), places.select(dim, middle)
    return (found[0].unsqueeze(dim), found[1].unsqueeze(dim)) if keepdim else found
