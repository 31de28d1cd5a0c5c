"""Kept memory: pages are not fetched again, answers stay, and whoever set the allocator is left alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from medfedpure.training import allocator

WORK = """
import resource, sys
import torch
from medfedpure import keep_freed_memory
told = keep_freed_memory() if "keep" in sys.argv else False
layers = torch.nn.Sequential(*[torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])
torch.nn.init.constant_(layers[0].weight, 0.01)
images = torch.linspace(0, 1, 16 * 8 * 128 * 128).reshape(16, 8, 128, 128).requires_grad_(True)
def work():
    return torch.autograd.grad(layers(images).square().sum(), images)[0]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    work()
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _ran(*words: str, **environment: str) -> tuple[str, int]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name not in ("GLIBC_TUNABLES", "LD_PRELOAD")
    }
    done = subprocess.run(
        [sys.executable, "-c", WORK, *words], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    told, faults = done.stdout.split()
    return told, int(faults)


def _glibc() -> bool:
    return sys.platform.startswith("linux") and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")


@pytest.mark.skipif(not _glibc(), reason="another allocator")
def test_a_pass_finds_the_pages_of_the_one_before():
    told, faults = _ran("keep")
    untold, many = _ran()
    assert (told, untold) == ("True", "False")
    assert faults * 3 < many, f"{faults} page faults with kept memory, {many} without"


@pytest.mark.parametrize("setting", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_an_environment_that_sets_the_allocator_is_left_alone(monkeypatch, setting):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: pytest.fail("asked"))
    monkeypatch.setenv(setting, "glibc.malloc.check=0")
    assert not allocator.keep_freed_memory()


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
