from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from shim.vm_size import Demand, Size, needed, of_pod

MIB = 1 << 20
POD = "io.kubernetes.cri.sandbox-"


@pytest.mark.parametrize(
    ("limit_mib", "size_mib"),
    [
        (0, 200),
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
def test_limits_come_on_top_of_the_guest_s_memory_and_are_rounded_up(limit_mib: int, size_mib: int) -> None:
    assert needed(Size(200, 1), [Demand(limit_mib * MIB)]) == Size(size_mib, 1)


def test_sizes_are_few() -> None:
    sizes = {needed(Size(256, 1), [Demand(mib * MIB)]) for mib in range(1, 32 << 10)}
    assert len(sizes) == 14


def test_a_limit_in_bytes_is_never_less_in_mib() -> None:
    assert needed(Size(256, 1), [Demand(256 * MIB + 1)]).memory_mib == 768


def test_the_limits_of_all_containers_are_added_before_anything_is_rounded() -> None:
    containers = [
        Demand(100 * MIB, 50_000),
        Demand(0, 0),
        Demand(156 * MIB, 30_000, 20_000),
        Demand(0, 1, 100_000),
    ]
    assert needed(Size(256, 1), containers) == Size(512, 3)
    assert needed(Size(256, 1), []) == Size(256, 1)


@pytest.mark.parametrize(("quota_us", "vcpus"), [(0, 2), (50_000, 2), (200_000, 2), (200_001, 3)])
def test_there_are_as_many_cpus_as_may_be_used_but_those_of_the_settings(quota_us: int, vcpus: int) -> None:
    assert needed(Size(256, 2), [Demand(0, quota_us)]) == Size(256, vcpus)


@pytest.mark.parametrize(
    ("quota", "period", "cpus"),
    [
        ("0", "100000", 0),
        ("-1", "100000", 0),
        ("150000", "100000", Fraction(3, 2)),
        ("4", "0", 0),
        ("4", "-1", 0),
        ("x", "1", 0),
        (None, None, 0),
    ],
)
def test_a_pod_s_sums_are_its_sandbox_s_annotations(quota: Any, period: Any, cpus: Fraction) -> None:
    annotations = {f"{POD}memory": str(5 * MIB), f"{POD}cpu-quota": quota, f"{POD}cpu-period": period}
    found = of_pod(annotations)
    assert (found.memory, found.cpus) == (5 * MIB, cpus)
    assert of_pod({}) == Demand()


def test_an_update_changes_what_it_names() -> None:
    demand = Demand().updated({"memory": {"limit": 5}, "cpu": {"quota": 50_000, "period": 50_000}})
    assert demand == Demand(5, 50_000, 50_000)
    assert demand.updated({}) == demand.updated({"memory": None, "cpu": {"shares": 2}}) == demand
    assert demand.updated({"cpu": {"quota": 100_000}}).cpus == 2
    assert demand.updated({"memory": {"limit": -1}, "cpu": {"quota": -1}}) == Demand(0, 0, 50_000)
    assert demand.updated({"cpu": {"period": 0}}) == demand


@pytest.mark.parametrize(
    "resources", [{"memory": []}, {"cpu": "x"}, {"memory": {"limit": "64M"}}, {"cpu": {"quota": {}}}]
)
def test_what_makes_no_sense_is_no_demand(resources: dict[str, Any]) -> None:
    assert Demand().updated(resources) == Demand()


def test_a_size_has_bounds() -> None:
    assert Size(512, 1).at_most(Size(256, 4)) == Size(256, 1)
    assert Size(512, 1).at_least(Size(256, 4)) == Size(512, 4)
    assert str(Size(256, 2)) == "256 MiB and 2 CPUs"
