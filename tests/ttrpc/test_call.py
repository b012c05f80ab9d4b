"""Server and channel with generated services and stubs, in memory and over Unix sockets."""

import asyncio
import contextlib
import os
import random
import socket
import struct

import pytest
from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.metadata import Deadline

import shim.pb.containerd.task.v2 as task_v2
import shim.pb.containerd.task.v3 as task_v3
import shim.pb.grpc as agent
from shim import errors, wire
from shim.guest.schema import MESSAGES, SERVICES
from shim.log import Log
from shim.ttrpc import frame, memory
from shim.ttrpc.channel import Channel
from shim.ttrpc.schema import MESSAGES as ENVELOPE
from shim.ttrpc.server import Server, current_call
from shim.ttrpc.service import from_grpclib, from_schema


class Task(task_v2.TaskBase):
    """State answers or fails as its id says; Wait waits for `release`."""

    def __init__(self):
        self.release = asyncio.Event()
        self.arrivals = asyncio.Queue()
        self.cancelled = asyncio.Queue()

    async def state(self, state_request):
        match state_request.id:
            case "missing":
                raise errors.NotFound("no such container: not found")
            case "grpc":
                raise GRPCError(Status.FAILED_PRECONDITION, "wrong state")
            case "broken":
                raise ZeroDivisionError("a bug")
            case "undecodable":
                raise FileNotFoundError("/tmp/\udcff")
            case "timeout":
                raise TimeoutError("of something else")
            case "cancelled":
                raise asyncio.CancelledError
            case "large":
                return task_v2.StateResponse(bundle="x" * (frame.MAX_DATA + 1))
            case "metadata":
                return task_v2.StateResponse(bundle=repr(current_call.get().metadata))
        return task_v2.StateResponse(id=state_request.id, pid=42)

    async def wait(self, wait_request):
        self.arrivals.put_nowait(wait_request.id)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(wait_request.id)
            raise
        return task_v2.WaitResponse(exit_status=7)


class Echo:
    """All four kinds of calls on StateRequest/StateResponse, as grpclib has them. `sent` counts replies."""

    def __init__(self):
        self.sent = 0

    def __mapping__(self):
        kinds = {
            "Unary": Cardinality.UNARY_UNARY,
            "Many": Cardinality.UNARY_STREAM,
            "Collect": Cardinality.STREAM_UNARY,
            "Chat": Cardinality.STREAM_STREAM,
        }
        return {
            f"/test.Echo/{name}": Handler(
                getattr(self, name.lower()), kind, task_v2.StateRequest, task_v2.StateResponse
            )
            for name, kind in kinds.items()
        }

    async def unary(self, stream):
        await stream.recv_message()

    async def many(self, stream):
        request = await stream.recv_message()
        assert await stream.recv_message() is None
        for pid in range(int(request.id or 0)):
            await stream.send_message(task_v2.StateResponse(pid=pid))
            self.sent += 1
        if request.exec_id:
            raise errors.DataLoss(request.exec_id)

    async def collect(self, stream):
        ids = [request.id async for request in stream]
        await stream.send_message(task_v2.StateResponse(id=",".join(ids)))

    async def chat(self, stream):
        async for request in stream:
            await stream.send_message(task_v2.StateResponse(id=request.id))


def in_memory(test):
    """Run `test(task, channel, server)` over a connection in memory; nothing may be left running."""

    async def main():
        task = Task()
        server = Server([task, from_grpclib(task, "containerd.task.v3.Task"), Echo()])
        channel = memory.connect(server)
        await test(task, channel, server)
        await channel.aclose()
        await server.aclose()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def state(channel, container_id, **options):
    return task_v2.TaskStub(channel).state(task_v2.StateRequest(id=container_id), **options)


def test_a_generated_stub_calls_a_generated_service():
    async def test(task, channel, server):
        assert await state(channel, "c1") == task_v2.StateResponse(id="c1", pid=42)

    in_memory(test)


def test_one_implementation_serves_both_versions_of_the_task_service():
    async def test(task, channel, server):
        reply = await task_v3.TaskStub(channel).state(task_v3.StateRequest(id="c1"))
        assert (reply.id, reply.pid) == ("c1", 42)

    in_memory(test)


@pytest.mark.parametrize(
    ("container_id", "kind", "message"),
    [
        ("missing", errors.NotFound, "no such container: not found"),
        ("grpc", errors.FailedPrecondition, "wrong state"),
        ("broken", errors.Unknown, "a bug"),
        ("undecodable", errors.Unknown, "/tmp/\\udcff"),
        ("timeout", errors.Unknown, "of something else"),
        ("cancelled", errors.Canceled, "the operation was cancelled"),
        ("large", errors.ResourceExhausted, "exceed maximum message size of 4194304"),
    ],
)
def test_what_a_handler_raises_arrives_by_its_class_and_words(container_id, kind, message):
    async def test(task, channel, server):
        with pytest.raises(errors.ShimError) as caught:
            await state(channel, container_id, timeout=5)
        assert type(caught.value) is kind
        assert caught.match(message.replace("\\", "\\\\"))
        assert (await state(channel, "c1")).pid == 42

    in_memory(test)


def test_unknown_services_and_methods_are_unimplemented_by_name():
    async def test(task, channel, server):
        with pytest.raises(errors.Unimplemented, match=r"^service grpc\.Health$"):
            await agent.HealthStub(channel).check(agent.CheckRequest())
        with pytest.raises(errors.Unimplemented, match=r"^method Explode$"):
            await channel.call("containerd.task.v2.Task", "Explode")
        with pytest.raises(errors.Unimplemented):
            await task_v2.TaskStub(channel).pause(task_v2.PauseRequest())

    in_memory(test)


def test_a_payload_that_is_no_such_message_is_an_invalid_argument():
    async def test(task, channel, server):
        with pytest.raises(errors.InvalidArgument):
            await channel.call("containerd.task.v2.Task", "State", b"\x0a\x05a")

    in_memory(test)


def test_a_reply_that_is_no_such_message_is_internal():
    async def test(task, channel, server):
        def decode(data):
            raise ValueError("bad bytes")

        reply_type = type("Reply", (), {"FromString": staticmethod(decode)})
        name = "/containerd.task.v2.Task/State"
        async with channel.request(name, Cardinality.UNARY_UNARY, task_v2.StateRequest, reply_type) as stream:
            await stream.send_message(task_v2.StateRequest(), end=True)
            with pytest.raises(errors.Internal, match=r"^ttrpc: undecodable reply of State: bad bytes$"):
                await stream.recv_message()

    in_memory(test)


def test_a_handler_that_gives_no_reply_is_internal():
    async def test(task, channel, server):
        with pytest.raises(errors.Internal, match="no reply"):
            await channel.call("test.Echo", "Unary")

    in_memory(test)


def test_metadata_reaches_the_handler_also_with_repeated_keys():
    async def test(task, channel, server):
        pairs = [("containerd-namespace-ttrpc", "k8s.io"), ("a", "1"), ("a", b"2")]
        reply = await state(channel, "metadata", metadata=pairs)
        assert reply.bundle == repr((("containerd-namespace-ttrpc", "k8s.io"), ("a", "1"), ("a", "2")))
        assert (await state(channel, "metadata", metadata={"k": "v"})).bundle == repr((("k", "v"),))

    in_memory(test)


def test_a_waiting_call_holds_up_no_other_and_answers_come_out_of_order():
    async def test(task, channel, server):
        waits = [
            asyncio.ensure_future(task_v2.TaskStub(channel).wait(task_v2.WaitRequest(id=str(number))))
            for number in range(20)
        ]
        await task.arrivals.get()
        assert (await state(channel, "c1")).pid == 42
        assert not any(wait.done() for wait in waits)
        task.release.set()
        assert [reply.exit_status for reply in await asyncio.gather(*waits)] == [7] * 20

    in_memory(test)


@pytest.mark.parametrize("options", [{"timeout": 0.01}, {"timeout": 5, "deadline": "soon"}, {"timeout": -1}])
def test_the_callers_time_is_up_whatever_the_server_does(options):
    async def test(task, channel, server):
        if "deadline" in options:
            options["deadline"] = Deadline.from_timeout(0.01)
        with pytest.raises(errors.DeadlineExceeded):
            await task_v2.TaskStub(channel).wait(task_v2.WaitRequest(id="w"), **options)

    in_memory(test)


def test_the_deadline_on_the_wire_ends_the_handler_with_deadline_exceeded():
    async def main():
        task = Task()
        peer = RawPeer(Server([task]))
        peer.send_request(1, "containerd.task.v2.Task", "Wait", timeout_nano=1)
        assert await peer.status() == (1, 4, "context deadline exceeded")
        assert task.cancelled.get_nowait() == ""
        peer.close()

    asyncio.run(main())


def test_the_loss_of_a_connection_cancels_its_handlers_and_no_others():
    async def main():
        task = Task()
        server = Server([task])
        leaving, staying = memory.connect(server), memory.connect(server)
        lost = asyncio.ensure_future(task_v2.TaskStub(leaving).wait(task_v2.WaitRequest(id="lost")))
        kept = asyncio.ensure_future(task_v2.TaskStub(staying).wait(task_v2.WaitRequest(id="kept")))
        assert [await task.arrivals.get(), await task.arrivals.get()] == ["lost", "kept"]
        leaving.close()
        with pytest.raises(errors.Unavailable, match="ttrpc: closed"):
            await lost
        await leaving.wait_closed()
        assert await task.cancelled.get() == "lost"
        task.release.set()
        assert (await kept).exit_status == 7
        assert task.cancelled.empty()
        await server.aclose()

    asyncio.run(main())


def test_calls_after_the_end_of_a_connection_fail_at_once():
    async def test(task, channel, server):
        waiting = asyncio.ensure_future(task_v2.TaskStub(channel).wait(task_v2.WaitRequest(id="w")))
        await task.arrivals.get()
        await server.aclose()
        with pytest.raises((errors.Unavailable, errors.Canceled)):
            await waiting
        await channel.wait_closed()
        assert channel.closed
        with pytest.raises(errors.Unavailable, match="ttrpc: closed"):
            await state(channel, "c1")

    in_memory(test)


def test_a_cancelled_call_leaves_the_connection_usable():
    async def test(task, channel, server):
        waiting = asyncio.ensure_future(task_v2.TaskStub(channel).wait(task_v2.WaitRequest(id="w")))
        await task.arrivals.get()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        task.release.set()
        assert (await state(channel, "c1")).pid == 42

    in_memory(test)


def test_aclose_is_bounded_when_a_handler_does_not_stop():
    async def main():
        stubborn, end = asyncio.Event(), asyncio.Event()

        class Stubborn(task_v2.TaskBase):
            async def wait(self, wait_request):
                stubborn.set()
                while not end.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await end.wait()
                return task_v2.WaitResponse()

        server = Server([Stubborn()])
        channel = memory.connect(server)
        call = asyncio.ensure_future(task_v2.TaskStub(channel).wait(task_v2.WaitRequest()))
        await stubborn.wait()
        await asyncio.wait_for(server.aclose(timeout_s=0.05), 2)
        with pytest.raises(errors.Unavailable):
            await call
        end.set()

    asyncio.run(main())


# Streaming.


def stream(channel, method, kind):
    return channel.request(
        f"/test.Echo/{method}", kind, task_v2.StateRequest, task_v2.StateResponse, timeout=5
    )


@pytest.mark.parametrize("count", [0, 1, 500])
def test_a_reply_may_be_many_messages(count):
    async def test(task, channel, server):
        async with stream(channel, "Many", Cardinality.UNARY_STREAM) as call:
            await call.send_message(task_v2.StateRequest(id=str(count)), end=True)
            assert [reply.pid async for reply in call] == list(range(count))

    in_memory(test)


def test_a_failure_comes_behind_the_messages_sent_before_it():
    async def test(task, channel, server):
        async with stream(channel, "Many", Cardinality.UNARY_STREAM) as call:
            await call.send_message(task_v2.StateRequest(id="2", exec_id="lost it"), end=True)
            assert [(await call.recv_message()).pid, (await call.recv_message()).pid] == [0, 1]
            with pytest.raises(errors.DataLoss, match="lost it"):
                await call.recv_message()

    in_memory(test)


@pytest.mark.parametrize("ids", [[], [""], ["a", "", "c"], ["x"] * 300])
def test_a_request_may_be_many_messages(ids):
    async def test(task, channel, server):
        async with stream(channel, "Collect", Cardinality.STREAM_UNARY) as call:
            await call.send_request()
            for item in ids:
                await call.send_message(task_v2.StateRequest(id=item))
            await call.end()
            assert (await call.recv_message()).id == ",".join(ids)

    in_memory(test)


def test_both_ends_may_send_in_turn():
    async def test(task, channel, server):
        async with stream(channel, "Chat", Cardinality.STREAM_STREAM) as call:
            for number in range(5):
                await call.send_message(task_v2.StateRequest(id=str(number)))
                assert (await call.recv_message()).id == str(number)
            await call.end()
            assert await call.recv_message() is None

    in_memory(test)


def test_a_reader_that_stops_reading_loses_its_stream_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr("shim.ttrpc.transport.PATIENCE_S", 0.05)

    async def test(task, channel, server):
        async with stream(channel, "Many", Cardinality.UNARY_STREAM) as call:
            await call.send_message(task_v2.StateRequest(id="10000"), end=True)
            assert (await state(channel, "c1")).pid == 42  # answered once the flood is given up
            with pytest.raises(errors.ResourceExhausted):
                async for _ in call:
                    pass

    in_memory(test)


# The light form, and sockets.


def test_the_light_form_serves_dicts_to_generated_stubs():
    async def main():
        async def check(request):
            return {"status": 1} if request.get("service") == "agent" else None

        async def wait_process(request):
            raise errors.NotFound(f"no process {request['exec_id']}")

        server = Server(
            [
                from_schema("grpc.Health", MESSAGES, SERVICES["grpc.Health"], {"Check": check}),
                from_schema(
                    "grpc.AgentService",
                    MESSAGES,
                    SERVICES["grpc.AgentService"],
                    {"WaitProcess": wait_process},
                ),
            ]
        )
        channel = memory.connect(server)
        health = agent.HealthStub(channel)
        serving = agent.HealthCheckResponseServingStatus.SERVING
        assert (await health.check(agent.CheckRequest(service="agent"))).status == serving
        assert (await health.check(agent.CheckRequest())).status == 0
        with pytest.raises(errors.NotFound, match="no process e1"):
            await agent.AgentServiceStub(channel).wait_process(agent.WaitProcessRequest(exec_id="e1"))
        with pytest.raises(errors.Unimplemented, match="method Version"):
            await health.version(agent.CheckRequest())
        await channel.aclose()

    asyncio.run(main())


def test_a_handler_that_breaks_is_logged_with_its_trace_and_calls_at_debug():
    read_end, write_end = os.pipe()

    async def main():
        server = Server([Task()], Log(write_end, "debug"))
        channel = memory.connect(server)
        for container_id in ("broken", "missing", "c1"):
            with contextlib.suppress(errors.ShimError):
                await state(channel, container_id)
        await channel.aclose()

    asyncio.run(main())
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        broken, missing, good = pipe.read().splitlines()
    assert "level=error" in broken
    assert "ZeroDivisionError" in broken
    assert "level=debug" in missing
    assert "code=5" in missing
    assert "code=0" in good


def unix_listener(tmp_path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    return listener


async def dial(tmp_path):
    connected = socket.socket(socket.AF_UNIX)
    connected.setblocking(False)
    try:
        connected.connect(str(tmp_path / "s"))
    except OSError:
        connected.close()
        raise
    return await Channel.connect(connected)


def test_it_works_over_unix_sockets_with_large_messages_and_many_connections(tmp_path):
    async def main():
        server = Server([Task(), Echo()], same_user=True)
        await server.serve(unix_listener(tmp_path))
        channels = [await dial(tmp_path) for _ in range(5)]
        name = "x" * 3_000_000
        replies = await asyncio.gather(*(state(channel, name) for channel in channels))
        assert all(reply.id == name for reply in replies)
        await server.aclose()
        for channel in channels:
            await channel.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await dial(tmp_path)

    asyncio.run(main())


def test_with_same_user_a_stranger_is_hung_up_on(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    async def main():
        server = Server([Task()], same_user=True)
        await server.serve(unix_listener(tmp_path))
        channel = await dial(tmp_path)
        with pytest.raises(errors.Unavailable):
            await state(channel, "c1", timeout=5)
        await server.aclose()

    asyncio.run(main())


def test_a_client_that_does_not_read_its_replies_is_not_read(tmp_path):
    async def main():
        handled = 0

        async def handler(stream):
            nonlocal handled
            handled += 1
            await stream.recv_message()
            await stream.send_message(task_v2.StateResponse(bundle="x" * 100_000))

        class Large:
            def __mapping__(self):
                kind = Cardinality.UNARY_UNARY
                return {"/t/m": Handler(handler, kind, task_v2.StateRequest, task_v2.StateResponse)}

        server = Server([Large()])
        ours, theirs = socket.socketpair()
        await server.serve_connection(theirs)
        ours.setblocking(False)
        request = struct.pack(">IIBB", 6, 0, 1, 0) + b"\n\x01t\x12\x01m"
        sent = 0
        idle = 0
        while idle < 200:
            data = b"".join(
                request[:4] + struct.pack(">I", 2 * number + 1) + request[8:]
                for number in range(sent, sent + 100)
            )
            try:
                assert ours.send(data) == len(data)
                sent += 100
                idle = 0
            except (BlockingIOError, AssertionError):
                idle += 1
            await asyncio.sleep(0)
        assert sent > 0
        assert handled < 50, "what fits the socket and the write buffer, not what the client asked for"
        ours.close()
        await server.aclose()

    asyncio.run(main())


class RawPeer(asyncio.Protocol):
    """A client that writes frames by hand."""

    def __init__(self, server):
        self.decoder, self.frames = frame.Decoder(), asyncio.Queue()
        self.transport, _ = memory.pair(self, server.link())

    def connection_made(self, transport):
        pass

    def data_received(self, data):
        for received in self.decoder.feed(data):
            self.frames.put_nowait(received)

    def send(self, stream_id, type_, flags=0, data=b""):
        self.transport.write(frame.encode(frame.Frame(stream_id, type_, flags, data)))

    def send_request(self, stream_id, service, method, flags=0, **fields):
        body = wire.encode(ENVELOPE, "ttrpc.Request", {"service": service, "method": method, **fields})
        self.send(stream_id, frame.REQUEST, flags, body)

    async def status(self):
        received = await asyncio.wait_for(self.frames.get(), 5)
        fields = wire.decode(ENVELOPE, "ttrpc.Response", received.data)
        status = fields.get("status", {})
        return received.stream_id, status.get("code", 0), status.get("message", "")

    def close(self):
        self.transport.close()


def test_a_peer_that_breaks_the_rules_is_answered_and_stays_connected():
    async def main():
        peer = RawPeer(Server([Task(), Echo()]))
        peer.send(2, frame.REQUEST)
        peer.send(1, frame.REQUEST, 0, b"\xff\xff")
        peer.send(7, frame.DATA, 0, b"x")
        peer.send(9, 77, 255, b"x")
        # In one piece, so that the data is there before the request is refused.
        peer.send_request(11, "nowhere", "Go", frame.REMOTE_OPEN)
        peer.send(11, frame.DATA, 0, b"x")
        peer.send_request(13, "test.Echo", "Collect", frame.REMOTE_OPEN)
        peer.send(13, frame.DATA, frame.REMOTE_CLOSED | frame.NO_DATA)
        peer.send(13, frame.DATA, 0, b"after the end")
        codes = [(await peer.status())[:2] for _ in range(6)]
        assert codes == [(2, 3), (1, 3), (7, 3), (11, 12), (11, 3), (13, 3)]
        peer.send_request(15, "containerd.task.v2.Task", "State", 0xFF, payload=b"\x0a\x01c")
        assert await peer.status() == (15, 0, "")
        assert peer.frames.empty()
        peer.close()

    asyncio.run(main())


def test_random_bytes_never_raise_into_the_loop():
    async def main():
        complaints = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        dice = random.Random(2)
        for _ in range(300):
            peer = RawPeer(Server([Task(), Echo()]))
            for _ in range(10):
                body = dice.randbytes(dice.randrange(40))
                head = struct.pack(
                    ">IIBB", len(body), dice.randrange(8), dice.randrange(5), dice.randrange(8)
                )
                peer.transport.write(head + body)
            channel = Channel()
            left, _ = memory.pair(RawPeer.__new__(Silent), channel.link())
            call = asyncio.ensure_future(channel.call("a", "b", timeout_s=5))
            await asyncio.sleep(0)
            body = dice.randbytes(dice.randrange(40))
            left.write(struct.pack(">IIBB", len(body), 1, dice.randrange(5), dice.randrange(8)) + body)
            left.close()
            with contextlib.suppress(errors.ShimError):
                await call
            peer.close()
        await asyncio.sleep(0)
        assert complaints == []

    asyncio.run(main())


class Silent(RawPeer):
    def data_received(self, data):
        pass
