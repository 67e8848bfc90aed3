"""Every way in which a download can fail, from a server on this machine: refused, said in one line, and mended later.

A server has half a second here for each piece, where it has five in a course.
"""

import contextlib
import errno
import functools
import gzip
import http.server
import itertools
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import torchvision

from tutorial_lib import data, load_data
from tutorial_lib.data import DataError

HTML = b"<html><body>Welcome to the hotel's network. Please log in.</body></html>"
MOST_REQUESTS = 40  # requests gives a redirection up after 30
PATIENCE = 0.5
MOST_BYTES = 2**20


def answer(content, *, status=200, length=None, **headers):
    """Return an HTTP answer; ``length`` is what it claims, if that is not the truth."""
    lines = [f"HTTP/1.0 {status} said"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(content) if length is None else length}"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content


def altered(content, place):
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


# What the server sends in place of the right answer, of which it knows the file's bytes.
WRONG_ANSWERS = {
    "nothing at all": lambda file: b"",
    "an empty file": lambda file: answer(b""),
    "an empty gzip": lambda file: answer(gzip.compress(b"")),
    "a log-in page": lambda file: answer(HTML),
    "a log-in page that says it is gzip": lambda file: answer(HTML, Content_Encoding="gzip"),
    "a zipped log-in page": lambda file: answer(gzip.compress(HTML)),
    "401": lambda file: answer(HTML, status=401, WWW_Authenticate='Basic realm="hotel"'),
    "403": lambda file: answer(HTML, status=403),
    "404": lambda file: answer(HTML, status=404),
    "429": lambda file: answer(HTML, status=429, Retry_After="3600"),
    "500": lambda file: answer(HTML, status=500),
    "503": lambda file: answer(b"", status=503),
    "204, no content": lambda file: answer(b"", status=204),
    "206, a part": lambda file: answer(file[:999], status=206, Content_Range="bytes 0-998/*"),
    "304, not modified": lambda file: answer(b"", status=304),
    "another file": lambda file: answer(gzip.compress(b"\0" * 7840)),
    "the file, not zipped": lambda file: answer(gzip.decompress(file)),
    "the file, zipped twice": lambda file: answer(gzip.compress(file)),
    "a flipped bit in its header": lambda file: answer(altered(file, 1)),
    "a flipped bit in its middle": lambda file: answer(altered(file, len(file) // 2)),
    "a flipped bit in its checksum": lambda file: answer(altered(file, -6)),
    "cut, as it says": lambda file: answer(file[:-9]),
    "cut before its length": lambda file: answer(file[: len(file) // 2], length=len(file)),
    "cut after a byte": lambda file: answer(file[:1], length=len(file)),
    "cut without a length": lambda file: answer(file).replace(b"Content-Length", b"X-Length")[:-1],
    "junk after it": lambda file: answer(file + b"junk"),
    "zeros that unpack to 256 MB": lambda file: answer(gzip.compress(bytes(2**28), 9)),
    "more than any file": lambda file: answer(bytes(2 * MOST_BYTES)),
    "broken chunks": lambda file: (
        b"HTTP/1.1 200 said\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % len(file) + file[:100] + b"zz\r\n"
    ),
    "a negative length": lambda file: answer(file[:10], length=-1),
    "a length that is no number": lambda file: answer(file[:10], length="many"),
    "a status that is no number": lambda file: answer(file, status="fine"),
    "another protocol": lambda file: b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "bytes without a line": lambda file: bytes(range(128, 256)) * 600,
    "too many headers": lambda file: b"HTTP/1.0 200 said\r\n" + b"X-Header: yes\r\n" * 300 + b"\r\n" + file,
    "a redirection to a page": lambda file: answer(b"", status=302, Location="/a log-in page/x"),
    "a redirection to a file here": lambda file: answer(b"", status=302, Location="file:///etc/hostname"),
    "a redirection to nowhere": lambda file: answer(b"", status=302, Location="http://127.0.0.1:9/x"),
    "a redirection to no address": lambda file: answer(b"", status=301, Location="http://[::1/x"),
    "a redirection without an end": lambda file: answer(b"", status=302, Location="/a redirection without an end/x"),
}


def silent(connection, file):
    time.sleep(3 * PATIENCE)


def stalls(connection, file, after):
    connection.sendall(answer(file)[:after])
    time.sleep(3 * PATIENCE)


def drips(connection, file):
    for place in range(30):
        connection.sendall(answer(file)[place : place + 1])
        time.sleep(PATIENCE / 10)


def resets(connection, file):
    connection.sendall(answer(file)[:200])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


# What needs more than bytes: time, or the connection itself.
WRONG_BEHAVIOUR = {
    "silence": silent,
    "a stall in its headers": functools.partial(stalls, after=20),
    "a stall after its headers": functools.partial(stalls, after=60),
    "a stall in its middle": functools.partial(stalls, after=4000),
    "a byte now and then": drips,
    "a connection reset": resets,
}
FAULTS = [*WRONG_ANSWERS, *WRONG_BEHAVIOUR]


@pytest.fixture
def server(tiny_mnist, monkeypatch):
    """A server of the tiny files at ``/right/``; at ``/FAULT/`` it goes wrong, at ``/FAULT@2/`` from the third file on.

    Its ``address`` ends in a slash, and ``asked`` holds the paths that it was asked for.
    """
    files = {p.name: gzip.compress(p.read_bytes()) for p in (tiny_mnist / "MNIST" / "raw").iterdir()}
    order = [f"{name}.gz" for name in data.MNIST_SHA256]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            fault, name = urllib.request.unquote(self.path).strip("/").split("/")
            self.server.asked.append(f"{fault}/{name}")
            fault, _, first = fault.partition("@")
            file = files[name.removesuffix(".gz")] if name in order else HTML
            if len(self.server.asked) > MOST_REQUESTS or (first and order.index(name) < int(first)):
                fault = "right" if first else "404"
            with contextlib.suppress(OSError):  # who asked may have given up
                if fault == "moved":
                    self.connection.sendall(answer(b"", status=302, Location=f"/right/{name}"))
                elif fault in WRONG_BEHAVIOUR:
                    WRONG_BEHAVIOUR[fault](self.connection, file)
                else:
                    self.connection.sendall(WRONG_ANSWERS.get(fault, answer)(file))

        def log_message(self, *arguments):
            pass

    monkeypatch.setattr(data, "NETWORK_PATIENCE_SECONDS", PATIENCE)
    monkeypatch.setattr(data, "PIECE_BYTES", 2**12)
    monkeypatch.setattr(data, "MOST_BYTES", MOST_BYTES)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked, running.address = [], f"http://127.0.0.1:{running.server_port}/"
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield running
        running.shutdown()
    assert len(running.asked) <= MOST_REQUESTS


@pytest.fixture
def mirrors(server, monkeypatch):
    """Return a function that names what stands in for MNIST's servers."""

    def use(*faults):
        addresses = [f"{server.address}{fault.replace(' ', '%20')}/" for fault in faults]
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", addresses)
        # A sound server must not be given up because the machine is busy for half a second.
        patience = 20 * PATIENCE if set(faults) <= {"right", "moved"} else PATIENCE
        monkeypatch.setattr(data, "NETWORK_PATIENCE_SECONDS", patience)

    return use


@pytest.fixture
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def files_in(folder):
    return sorted(p.name for p in folder.rglob("*") if not p.is_dir())


def folders_in(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_dir())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_download_is_one_line_and_leaves_nothing_behind(fault, mirrors, folder, capsys, caplog, survived):
    mirrors(fault)
    caplog.set_level(logging.DEBUG, logger=data.__name__)
    start = time.monotonic()
    assert load_data(root=folder).name == "digits"
    assert time.monotonic() - start < 5 * PATIENCE + 1, "the class waits"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("data: scikit-learn's digits") and len(line) < 300 and line.isprintable()
    assert "not here and could not be downloaded" in line and "TUTORIAL_DATA" in line and "http" not in line
    assert "train-images-idx3-ubyte.gz" in caplog.text
    assert files_in(folder) == [] and folders_in(folder) == ["MNIST", "raw"]
    mirrors("right")
    assert len(load_data("mnist", root=folder).train_x) == 50, "it cannot be mended by trying again"
    survived("data faults", 2)


@pytest.mark.parametrize("fault", FAULTS)
def test_another_server_stands_in(fault, mirrors, server, folder, survived):
    """Where two files are there already, the first server is asked for the third only, and then never again."""
    mirrors(f"{fault}@2", "right")
    assert len(load_data("mnist", root=folder).train_x) == 50
    assert files_in(folder) == sorted(data.MNIST_SHA256)
    assert len([path for path in server.asked if path.startswith("right/t10k")]) == 2
    survived("data faults")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_arrived_whole_stays_and_only_the_rest_is_asked_for(fault, mirrors, server, folder, survived):
    mirrors(f"{fault}@2")
    with pytest.raises(DataError, match="t10k-images"):
        load_data("mnist", root=folder)
    assert files_in(folder) == ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
    server.asked.clear()
    mirrors("moved")
    assert len(load_data("mnist", root=folder).train_x) == 50
    assert not [path for path in server.asked if "train" in path]
    survived("data faults", 2)


def test_no_address_and_no_server(mirrors, folder, monkeypatch, survived):
    monkeypatch.setattr(data, "NETWORK_PATIENCE_SECONDS", PATIENCE)
    for addresses in ([], ["http://127.0.0.1:9/"], ["http://"], ["nonsense"], ["http://[/", "gopher://127.0.0.1/"]):
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", addresses)
        with pytest.raises(DataError, match="no server gave it"):
            load_data("mnist", root=folder)
        survived("data faults")


def test_a_name_that_is_never_resolved(mirrors, folder, monkeypatch, survived):
    mirrors("right")
    monkeypatch.setattr(data, "NETWORK_PATIENCE_SECONDS", PATIENCE)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **named: time.sleep(3 * PATIENCE))
    start = time.monotonic()
    with pytest.raises(DataError, match=r"less than 4 KiB came in 0\.5 seconds"):
        load_data("mnist", root=folder)
    assert time.monotonic() - start < 2 * PATIENCE
    survived("data faults")


# ------------------------------------------------------------------------------------------ the disk


@pytest.mark.parametrize("written", [0, 1, 1000, -1])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("file", range(4))
def test_a_disk_that_fails_in_any_file_at_any_place(file, number, written, mirrors, folder, monkeypatch, survived):
    mirrors("right")
    whole, count = Path.write_bytes, itertools.count()

    def fails(path, content):
        if next(count) < file:
            return whole(path, content)
        whole(path, content[:written])
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched, pytest.raises(DataError, match=os.strerror(number)):
        patched.setattr(Path, "write_bytes", fails)
        load_data("mnist", root=folder)
    assert files_in(folder) == sorted(list(data.MNIST_SHA256)[:file])
    assert len(load_data("mnist", root=folder).test_x) == 20
    survived("data faults")


@pytest.mark.parametrize("limit", [0, 3, 1000, 30_000])
def test_a_disk_that_is_really_full(limit, mirrors, folder, survived):
    """Of the system's own making: no file may grow beyond the limit."""
    mirrors("right")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be written .*File too large"):
            load_data("mnist", root=folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files_in(folder) == [] and folders_in(folder) == ["MNIST", "raw"]
    assert len(load_data("mnist", root=folder).test_x) == 20
    survived("data faults")


@pytest.mark.parametrize("where", ["", "MNIST", "MNIST/raw"])
@pytest.mark.parametrize("what", ["a file", "a link to nowhere", "a link to itself"])
def test_something_in_the_way_of_the_folder(what, where, mirrors, folder, survived):
    mirrors("right")
    place = folder / "data" / where
    place.parent.mkdir(parents=True, exist_ok=True)
    if what == "a file":
        place.write_text("in the way", encoding="utf-8")
    else:
        place.symlink_to("nowhere" if "nowhere" in what else place.name)
    with pytest.raises(DataError, match=r"cannot be written .*TUTORIAL_DATA"):
        load_data("mnist", root=folder / "data")
    assert place.is_symlink() or place.read_text(encoding="utf-8") == "in the way"
    survived("data faults")


@pytest.mark.parametrize("name", ["n" * 300, "n/" * 3000])
def test_a_folder_whose_name_is_too_long(name, mirrors, folder, survived):
    mirrors("right")
    with pytest.raises(DataError, match="TUTORIAL_DATA"):
        load_data("mnist", root=folder / name)
    survived("data faults")


# ------------------------------------------------------------------------------------------ other processes

CHILD = """
import json, sys, torchvision
from tutorial_lib import data
from tutorial_lib import load_data
data.MNIST_SHA256 = json.loads(sys.argv[1])
torchvision.datasets.MNIST.mirrors = sys.argv[2:3]
for folder in sys.argv[3:]:
    print(load_data(root=folder).name)
"""


@pytest.fixture
def child(server):
    """Return a function that starts a process which loads the tiny files into each folder."""
    running = []

    def start(fault, *folders, prefix=()):
        address = f"{server.address}{fault.replace(' ', '%20')}/"
        command = [*prefix, sys.executable, "-c", CHILD, json.dumps(data.MNIST_SHA256), address, *folders]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_folders_without_the_right_to_write(child, folder, without_root_rights, survived):
    """One that can be read only, one that cannot even be looked into, and one that is complete but for a file."""
    modes = {"read-only": 0o555, "closed": 0o000, "almost": 0o555}
    raw = folder / "almost" / "MNIST" / "raw"
    for name in modes:
        (folder / name / "MNIST" / "raw").mkdir(parents=True)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"")
    for name, mode in modes.items():
        for path in (folder / name / "MNIST" / "raw", folder / name):
            path.chmod(mode)
    out, _ = child("right", *(folder / name for name in modes), prefix=without_root_rights).communicate(timeout=60)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    lines = out.splitlines()
    assert lines[1::2] == ["digits"] * 3, out
    assert all("not here and could not be downloaded" in line for line in lines[::2]), out
    assert files_in(folder) == ["t10k-labels-idx1-ubyte"]
    survived("data faults", 3)


def test_two_processes_download_at_once(child, folder, survived):
    processes = [child("right", folder) for _ in range(2)]
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and out.splitlines()[-1] == "mnist", out
    assert files_in(folder) == sorted(data.MNIST_SHA256)
    survived("data faults", 2)


def test_a_process_that_is_killed_while_it_downloads(child, server, mirrors, folder, survived):
    process = child("a stall in its middle@2", folder)
    while len(server.asked) < 3:
        time.sleep(0.01)
        assert process.poll() is None, process.stdout.read()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert files_in(folder / "MNIST" / "raw") == ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
    mirrors("right")
    assert len(load_data("mnist", root=folder).test_x) == 20
    survived("data faults")
