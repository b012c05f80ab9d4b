"""What is generated from proto/ is current, importable and has the names that are on the wire."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import shim.bootstrap.schema
import shim.guest.schema
import shim.pb
import shim.pb.containerd.services.events.ttrpc.v1 as events_service
import shim.pb.containerd.task.v2 as task_v2
import shim.pb.containerd.task.v3 as task_v3
import shim.pb.grpc as agent
import shim.ttrpc.schema

ROOT = Path(__file__).resolve().parent.parent
GENERATED = [shim.pb, shim.ttrpc.schema, shim.bootstrap.schema, shim.guest.schema]


@pytest.mark.parametrize("module", GENERATED, ids=lambda module: module.__name__)
def test_generated_code_is_current(module):
    sources_hash = runpy.run_path(str(ROOT / "hack/gen-proto"), run_name="gen_proto")["sources_hash"]
    assert sources_hash() == module.SOURCES, "proto/ or its generator has changed: run hack/gen-proto"


@pytest.mark.parametrize(
    ("base", "service", "methods"),
    [
        (task_v2.TaskBase, "containerd.task.v2.Task", 17),
        (task_v3.TaskBase, "containerd.task.v3.Task", 17),
        (agent.AgentServiceBase, "grpc.AgentService", 42),
        (agent.HealthBase, "grpc.Health", 2),
        (events_service.EventsBase, "containerd.services.events.ttrpc.v1.Events", 1),
    ],
)
def test_services_have_their_names_of_the_wire(base, service, methods):
    paths = list(base().__mapping__())
    assert {path.split("/")[1] for path in paths} == {service}
    assert len(paths) == methods


def test_the_guests_tables_serve_the_same_methods_as_the_hosts_classes():
    for base in (agent.AgentServiceBase, agent.HealthBase):
        for path in base().__mapping__():
            _, service, method = path.split("/")
            assert method in shim.guest.schema.SERVICES[service]


def test_every_type_in_the_tables_is_a_scalar_or_a_message_of_the_same_tables():
    scalars = {"enum", "string", "bytes", "bool", "double", "float"}
    scalars |= {sign + kind for kind in ("int32", "int64") for sign in ("", "u", "s")}
    scalars |= {sign + kind for kind in ("fixed32", "fixed64") for sign in ("", "s")}
    for module in GENERATED[1:]:
        for fields in module.MESSAGES.values():
            for field in fields.values():
                assert field[1] in scalars or field[1] in module.MESSAGES
                assert (
                    len(field) == {"map": 4, "repeated": 3, "optional": 3}.get(field[2])
                    if field[2:]
                    else True
                )


def test_the_packages_named_grpc_and_types_hide_no_top_level_module():
    code = "import shim.pb.grpc, shim.pb.types, types; assert hasattr(types, 'SimpleNamespace')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_what_the_guest_and_the_subcommands_import_costs_neither_betterproto_nor_grpclib():
    code = (
        "import sys, shim.wire, shim.bootstrap.schema\n"
        "assert not {'typing', 'asyncio', 'dataclasses', 'enum', 're'} & set(sys.modules)\n"
        "import shim.guest.schema, shim.ttrpc.server, shim.ttrpc.channel\n"
        "assert not {'betterproto', 'grpclib', 'shim.pb'} & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-ISc", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"], check=True
    )
