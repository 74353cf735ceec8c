"""Memory that is freed stays with the process."""

import platform
import resource

import pytest
import torch

from distill.memory import keep_freed_memory

PAGE, LARGE = 4096, 2**26  # bytes


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_is_not_asked_for_page_by_page_again():
    assert keep_freed_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(LARGE // 4).sum()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < LARGE / PAGE / 10


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
