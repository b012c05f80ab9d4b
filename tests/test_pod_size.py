from __future__ import annotations

import pytest

from shim.pod_size import memory_mib, vcpus

MIB = 1 << 20


@pytest.mark.parametrize(
    ("limit_mib", "size_mib"),
    [
        (0, 200),
        (-1, 200),
        (1, 256),
        (56, 256),
        (57, 512),
        (800, 1024),
        (900, 1536),
        (1800, 2048),
        (1900, 3072),
        (7000, 8192),
    ],
)
def test_a_pod_s_memory_comes_on_top_and_is_rounded_up(limit_mib: int, size_mib: int) -> None:
    assert memory_mib(200, {"io.kubernetes.cri.sandbox-memory": str(limit_mib * MIB)}) == size_mib


def test_sizes_are_few() -> None:
    sizes = {memory_mib(256, {"io.kubernetes.cri.sandbox-memory": mib * MIB}) for mib in range(1, 32 << 10)}
    assert len(sizes) == 14


def test_a_limit_in_bytes_is_never_less_in_mib() -> None:
    assert memory_mib(256, {"io.kubernetes.cri.sandbox-memory": str(256 * MIB + 1)}) == 768


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [
        ("0", "100000", 2),
        ("-1", "100000", 2),
        ("50000", "100000", 2),
        ("200001", "100000", 3),
        ("4", "0", 2),
        ("x", "1", 2),
    ],
)
def test_a_pod_has_as_many_cpus_as_it_may_use(quota: str, period: str, expected: int) -> None:
    annotations = {
        "io.kubernetes.cri.sandbox-cpu-quota": quota,
        "io.kubernetes.cri.sandbox-cpu-period": period,
    }
    assert vcpus(2, annotations) == expected


def test_without_annotations_it_is_the_settings_size() -> None:
    assert (memory_mib(300, {}), vcpus(1, {})) == (300, 1)
