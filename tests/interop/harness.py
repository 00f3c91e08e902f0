"""Two homeservers of any make on this machine, with a network between them that can be cut.

A make is a program `servers/MAKE` that becomes the server: it runs in the foreground until it gets SIGTERM. It finds in the
environment

    NAME              its server name, with a port
    DIR               a directory of its own, empty at first
    CLIENT_PORT       where to serve the client-server API, without TLS, on 127.0.0.1
    FEDERATION_PORT   where to serve the server-server API, with TLS, on 127.0.0.1
    TLS_CERT TLS_KEY  for that
    CA                the certificate authority that it must trust, and no other check of addresses may be in the way

Other servers find it under NAME, whose port is a relay's: cutting the network closes the relays.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
START_SECONDS = 240
STOP_SECONDS = 30


def free_port():
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Authority:
    """A certificate authority that only the servers of this run know."""

    def __init__(self, directory):
        self.directory = directory
        self.certificate = directory / "ca.crt"
        self.key = directory / "ca.key"
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                      "-subj", "/CN=interop", "-keyout", self.key, "-out", self.certificate,
                      "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")

    def issue(self, stem):
        """A certificate for both names of this machine, and its key."""
        certificate, key, request = (self.directory / f"{stem}.{end}" for end in ("crt", "key", "csr"))
        extensions = self.directory / f"{stem}.ext"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
        self._openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                      "-subj", "/CN=localhost", "-keyout", key, "-out", request)
        self._openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-days", "2",
                      "-CAcreateserial", "-extfile", extensions, "-out", certificate)
        return certificate, key

    @staticmethod
    def _openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Relay:
    """Passes TCP connections on to `target`, while the network is there."""

    def __init__(self, target):
        self.target = target
        self.open = True
        self.lock = threading.Lock()
        self.sockets = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        """Breaks all connections, and every new one."""
        with self.lock:
            self.open = False
            broken, self.sockets = self.sockets, set()
        for each in broken:
            _reset(each)

    def heal(self):
        with self.lock:
            self.open = True

    def _accept(self):
        while True:
            near, _ = self.listener.accept()
            if not self.open:
                _reset(near)
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                _reset(near)
                continue
            far.settimeout(None)
            with self.lock:
                self.sockets |= {near, far}
            threading.Thread(target=self._pump, args=(near, far), daemon=True).start()

    def _pump(self, near, far):
        other = {near: far, far: near}
        try:
            while True:
                for ready in select.select([near, far], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    other[ready].sendall(data)
        except (OSError, ValueError):
            pass
        finally:
            with self.lock:
                self.sockets -= {near, far}
            for each in (near, far):
                each.close()


def _reset(connection):
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()


class Server:
    """One homeserver that can be started, stopped, killed and cut off."""

    def __init__(self, make, host, stem, work, authority):
        self.make = Path(make).stem
        self.program = HERE / "servers" / make if (HERE / "servers" / make).exists() else Path(make).resolve()
        self.client_port = free_port()
        federation_port = free_port()
        self.relay = Relay(federation_port)
        self.name = f"{host}:{self.relay.port}"
        self.base = f"http://127.0.0.1:{self.client_port}"
        self.directory = work / stem
        self.directory.mkdir()
        self.log = work / f"{stem}.log"
        certificate, key = authority.issue(stem)
        self.environment = {
            **os.environ, "NAME": self.name, "DIR": str(self.directory), "CLIENT_PORT": str(self.client_port),
            "FEDERATION_PORT": str(federation_port), "TLS_CERT": str(certificate), "TLS_KEY": str(key), "CA": str(authority.certificate),
        }
        self.process = None

    def __str__(self):
        return f"{self.make} ({self.name})"

    def start(self, wait=True):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([self.program], env=self.environment, stdout=log, stderr=log, start_new_session=True)
        if wait:
            self.wait()

    def wait(self):
        """Until the server answers clients."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self} has ended with {self.process.returncode}")
            try:
                urllib.request.urlopen(f"{self.base}/_matrix/client/versions", timeout=5).read()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise RuntimeError(f"{self} does not answer")

    def stop(self):
        """As an operator stops it."""
        self._end(signal.SIGTERM)

    def kill(self):
        """As a crash ends it."""
        self._end(signal.SIGKILL)

    def _end(self, with_signal):
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, with_signal)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                raise RuntimeError(f"{self} did not end within {STOP_SECONDS} s") from None

    def is_running(self):
        return self.process is not None and self.process.poll() is None


class Pair:
    """The two servers of a run."""

    def __init__(self, first, second, work):
        self.work = work
        authority = Authority(work)
        # One name that is looked up, and one that is an address.
        self.a = Server(first, "localhost", "a", work, authority)
        self.b = Server(second, "127.0.0.1", "b", work, authority)

    def __iter__(self):
        return iter((self.a, self.b))

    def other(self, server):
        return self.b if server is self.a else self.a

    def start(self):
        for server in self:
            server.start(wait=False)
        for server in self:
            server.wait()

    def end(self):
        for server in self:
            try:
                server.stop()
            except RuntimeError as error:
                print(f"# {error}")

    def cut(self):
        for server in self:
            server.relay.cut()

    def heal(self):
        for server in self:
            server.relay.heal()

    def remove(self):
        shutil.rmtree(self.work, ignore_errors=True)
