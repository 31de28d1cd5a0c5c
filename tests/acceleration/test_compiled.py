"""Compiled functions: few sizes, padded rows that reach no answer, the plain function where a compiler fails."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medfedpure.acceleration import compiled
from medfedpure.acceleration.compiled import CompilationWarning, compiling, padded_size, plan, prepared
from medfedpure.acceleration.counted import counting
from medfedpure.core.errors import InputError
from medfedpure.defence.acceleration import logits_of


class Compiler:
    """Stands for torch.compile: what it was told, and the sizes of the batches that came."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.sizes: list[int] = []

    def __call__(self, function: Callable[..., Tensor], **how: Any) -> Callable[..., Tensor]:
        self.told.append(how)

        def run(network: nn.Module, *rows: Tensor, **constants: Any) -> Tensor:
            assert len({len(part) for part in rows}) == 1, "rows of one call must be as many"
            self.sizes.append(len(rows[0]))
            return function(network, *rows, **constants)

        return run


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(torch, "compile", found)
    return found


@pytest.fixture
def static(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes are static on the CPU too, without graphs."""
    monkeypatch.setattr(compiled, "plan", lambda device, gradient: {"dynamic": gradient})


def scaled(network: nn.Module, rows: Tensor, factors: Tensor, *, shift: float = 0.0) -> Tensor:
    return network(rows) * factors[:, None] + shift


def network() -> nn.Module:
    torch_generator = torch.Generator().manual_seed(0)
    made = nn.Linear(3, 2)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch_generator)
    return made


def rows(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, generator=generator), torch.randn(count, generator=generator)


def test_sizes_are_few_and_close() -> None:
    assert sorted({padded_size(n) for n in range(1, 129)}) == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128]
    assert all(n <= padded_size(n) < 2 * n or n == 1 for n in range(1, 2000))
    assert all(padded_size(n) <= 1.5 * n for n in range(13, 2000)), "at most half as many again"


def test_graphs_where_there_is_no_gradient_on_cuda() -> None:
    assert plan(torch.device("cuda"), gradient=False) == {"dynamic": False, "mode": "reduce-overhead"}
    assert plan(torch.device("cuda", 1), gradient=True) == {"dynamic": True}, (
        "graphs and changing sizes exclude each other"
    )
    assert plan(torch.device("cpu"), gradient=False) == {"dynamic": True}


@pytest.mark.usefixtures("static")
def test_padded_rows_reach_no_answer(compiler: Compiler) -> None:
    own, counts = network(), (1, 3, 5, 8, 17, 24, 5)
    with torch.no_grad(), compiling(True):
        for count in counts:
            found = prepared(scaled, own, what="a thing", shift=0.5)(*rows(count))
            assert torch.equal(found, scaled(own, *rows(count), shift=0.5)), f"of {count} rows"
    assert compiler.sizes == [padded_size(count) for count in counts]
    assert len(compiler.told) == len(set(compiler.sizes)), "one compilation a size, kept"


@pytest.mark.usefixtures("static")
def test_a_gradient_takes_the_path_of_all_sizes(compiler: Compiler) -> None:
    own = network()
    inputs, factors = rows(5)
    with compiling(True):
        found = prepared(scaled, own, what="a thing")(inputs.requires_grad_(True), factors)
    assert compiler.told == [{"dynamic": True}]
    assert compiler.sizes == [5]
    (gradient,) = torch.autograd.grad(found.sum(), inputs)
    (wanted,) = torch.autograd.grad(scaled(own, inputs, factors).sum(), inputs)
    assert torch.equal(gradient, wanted)


def test_nothing_is_compiled_unless_asked(compiler: Compiler) -> None:
    own = network()
    prepared(scaled, own, what="a thing")(*rows(2))
    with compiling(True), compiling(False):
        prepared(scaled, own, what="a thing")(*rows(2))
    with compiling(True):
        prepared(lambda function, given: function(given), torch.relu, what="a function, and no module")(rows(2)[0])
        prepared(scaled, own, what="a thing")(*rows(0))
    assert compiler.told == []


def test_other_constants_and_copied_networks_are_compiled_anew(compiler: Compiler) -> None:
    own = network()
    with torch.no_grad(), compiling(True):
        one = prepared(scaled, own, what="a thing", shift=0.0)(*rows(2))
        two = prepared(scaled, own, what="a thing", shift=1.0)(*rows(2))
        other = copy.deepcopy(own)
        nn.init.zeros_(other.weight)
        nn.init.zeros_(other.bias)
        assert not prepared(scaled, other, what="a thing", shift=0.0)(*rows(2)).any(), "a copy has its own weights"
    assert torch.equal(two, one + 1)
    assert len(compiler.told) == 3


def test_a_compiler_that_fails_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(function: object, **how: object) -> Callable[..., Tensor]:
        def run(*given: object, **constants: object) -> Tensor:
            calls.append(how)
            raise RuntimeError("no working C++ compiler\nand many lines more")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    own = network()
    with torch.no_grad(), compiling(True):
        thing = prepared(scaled, own, what="the thing")
        with pytest.warns(
            CompilationWarning, match=r"the thing could not be .*no working C\+\+ compiler\): .*accelerate"
        ):
            first = thing(*rows(3))
        second = prepared(scaled, own, what="the thing")(*rows(4))
    assert torch.equal(first, scaled(own, *rows(3)))
    assert torch.equal(second, scaled(own, *rows(4)))
    assert len(calls) == 1, "it is computed uncompiled from then on"


def refusing(network: nn.Module, rows: Tensor) -> Tensor:
    if len(rows) == 2:
        raise InputError("two rows are refused")
    return network(rows)


@pytest.mark.parametrize(("count", "width", "error"), [(2, 3, InputError), (3, 4, RuntimeError)])
def test_what_is_wrong_with_the_call_is_no_failure_of_the_compiler(
    compiler: Compiler, count: int, width: int, error: type[Exception]
) -> None:
    own = network()
    with torch.no_grad(), compiling(True), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error):
            prepared(refusing, own, what="the thing")(torch.zeros(count, width))
        assert prepared(refusing, own, what="the thing")(torch.zeros(3, 3)).shape == (3, 2)
    assert compiler.sizes[-1] == 3, "it is still compiled"


@pytest.mark.usefixtures("static")
@pytest.mark.parametrize(
    "answer", [lambda rows: (rows, rows), lambda rows: {"logits": rows}, Tensor.sum, torch.flatten]
)
def test_what_is_no_answer_for_each_row_comes_through_uncut(
    answer: Callable[[Tensor], Any], compiler: Compiler
) -> None:
    class Wrong(nn.Module):
        def forward(self, given: Tensor) -> Any:
            return answer(given)

    own, given = Wrong(), rows(5)[0]
    with torch.no_grad(), compiling(True):
        found = prepared(logits_of, own, what="the classifier")(given)
    wanted: Any = answer(given)
    assert type(found) is type(wanted)
    assert not isinstance(found, Tensor) or torch.equal(found, wanted)
    assert compiler.sizes == [8]


def test_memory_that_is_out_is_the_callers_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(function: object, **how: object) -> Callable[..., Tensor]:
        def run(*given: object, **constants: object) -> Tensor:
            raise torch.OutOfMemoryError("too much")

        return run

    monkeypatch.setattr(torch, "compile", full)
    with torch.no_grad(), compiling(True), pytest.raises(torch.OutOfMemoryError):
        prepared(scaled, network(), what="the thing")(*rows(3))


@pytest.mark.slow
def test_many_sizes_of_one_function_stay_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps eight compilations of a code object and then runs it uncompiled: every size has its own."""
    monkeypatch.setattr(compiled, "plan", lambda device, gradient: {"dynamic": False, "backend": "eager"})
    own, before = network(), torch._dynamo.config.fail_on_recompile_limit_hit
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    try:
        with torch.no_grad(), compiling(True), warnings.catch_warnings():
            warnings.simplefilter("error", CompilationWarning)
            for count in (1, 2, 3, 5, 9, 17, 25, 33, 49, 65, 97):
                found = prepared(scaled, own, what="a thing")(*rows(count))
                assert torch.allclose(found, scaled(own, *rows(count)), atol=1e-6)
    finally:
        torch._dynamo.config.fail_on_recompile_limit_hit = before


# -- hooks and counted rows ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("static")
def test_rows_are_counted_as_they_were_given_compiled_or_not(compiler: Compiler) -> None:
    own = network()
    with torch.no_grad():
        with counting([own, own]) as plain:
            own(rows(5)[0])
        with compiling(True), counting([own]) as fast:
            for count in (5, 3, 0):
                prepared(scaled, own, what="a thing")(*rows(count))
            own(rows(2)[0])
    assert compiler.sizes == [8, 4], "they were padded"
    assert (plain.rows, fast.rows) == (5, 5 + 3 + 2)
    assert not own._forward_hooks, "nothing is left behind"


def test_rows_are_counted_once_where_a_compiler_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Callable[..., Tensor], **how: object) -> Callable[..., Tensor]:
        def run(network: nn.Module, *given: Tensor, **constants: Any) -> Tensor:
            function(network, *given, **constants)
            raise RuntimeError("after all that")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    own = network()
    with torch.no_grad(), compiling(True), counting([own]) as count:
        with pytest.warns(CompilationWarning):
            prepared(scaled, own, what="the thing")(*rows(3))
        prepared(scaled, own, what="the thing")(*rows(4))
    assert count.rows == 3 + 4


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_that_comes_later_is_called(register: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch guards no hooks: what was compiled before one came does not call it."""
    monkeypatch.setattr(compiled, "plan", lambda device, gradient: {"dynamic": True, "backend": "eager"})
    own = nn.Sequential(network(), nn.Tanh())
    seen: list[int] = []
    with torch.no_grad(), compiling(True), warnings.catch_warnings():
        warnings.simplefilter("error", CompilationWarning)
        ask = prepared(logits_of, own, what="the classifier")
        before = ask(rows(4)[0])
        handle = getattr(own[0], register)(lambda module, given, *found: seen.append(len(given[0])))
        assert torch.equal(ask(rows(4)[0]), before)
        handle.remove()
        with counting([own]) as count:
            assert torch.equal(ask(rows(4)[0]), before)
    assert seen == [4]
    assert count.rows == 4
