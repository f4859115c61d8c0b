"""The other side of `playhouse bench transport`: the same messages through pyzmq.

Each line of the input asks for one cell as JSON; the answer is its figures. The sender is this
process, the receiver a second one; a message has a header and a body, and the body is never copied
by Python.
"""

import json
import os
import signal
import sys
import tempfile
import time


def answer(**words):
    print(json.dumps(words), flush=True)


try:
    import zmq
except ImportError as error:
    answer(error=f"{error}; name a python that has pyzmq")
    sys.exit(0)

MIB = 1 << 20
POOL = bytes(range(256)) * 250_000


def sink(addresses):
    """Receives until the sender is gone; returns every header that is not empty."""
    sender, context, poller = os.getppid(), zmq.Context(), zmq.Poller()
    back = {}
    for data, answers in addresses:
        pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        pull.connect(data)
        push.connect(answers)
        poller.register(pull, zmq.POLLIN)
        back[pull] = push
    while os.getppid() == sender:
        for pull, _ in poller.poll(1000):
            header, body = pull.recv_multipart(copy=False)
            body.buffer[0], body.buffer[-1]
            header = header.bytes
            if header.startswith(b"t"):
                waited = time.time_ns() - int.from_bytes(header[1:], "little")
                header = waited.to_bytes(8, "little", signed=True)
            if header:
                back[pull].send(header)


def body(turn, size):
    start = turn % max(len(POOL) // size, 1) * size
    return memoryview(POOL)[start : start + size]


def rate(push, pull, size, total):
    """GB/s with as many messages in flight as fit into 16 MiB, but at least two."""
    window = max(16 * MIB // size, 2)
    batch = window // 2
    batches = max(-(-max(total // size, 4) // batch), 2)

    def run(batches):
        for turn in range(batches + 2):
            if turn >= 2:
                pull.recv()
            for index in range(batch if turn < batches else 0):
                header = b"c" if index + 1 == batch else b""
                push.send_multipart([header, body(turn * batch + index, size)], copy=False)

    run(4)
    start = time.perf_counter()
    run(batches)
    return [batches * batch * size / (time.perf_counter() - start) / 1e9]


def hand_over(push, pull, size, _):
    """Microseconds until the other side held each message."""
    waits = []
    for turn in range(min(max(256 * MIB // size, 20), 300) + 10):
        header = b"t" + time.time_ns().to_bytes(8, "little")
        push.send_multipart([header, body(turn, size)], copy=False)
        waits.append(int.from_bytes(pull.recv(), "little", signed=True) / 1e3)
    return waits[10:]


def main():
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(answered)
            with os.fdopen(asked) as lines:
                addresses = json.loads(lines.readline())
            sink(addresses)
            os._exit(0)
        os.close(asked)
        context = zmq.Context()
        links, addresses = {}, []
        for name in ["ipc", "tcp"]:
            push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
            for socket, end in [(push, "data"), (pull, "answers")]:
                socket.bind(f"ipc://{folder}/{end}" if name == "ipc" else "tcp://127.0.0.1:*")
            links[name] = push, pull
            addresses.append([s.getsockopt_string(zmq.LAST_ENDPOINT) for s in (push, pull)])
        with os.fdopen(answered, "w") as lines:
            print(json.dumps(addresses), file=lines)
        answer(version=zmq.__version__)
        for line in sys.stdin:
            cell = json.loads(line)
            measure = {"rate": rate, "hand_over": hand_over}[cell["what"]]
            answer(figures=measure(*links[cell["link"]], cell["size"], cell["total"]))
        context.destroy(linger=0)
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


main()
