"""Measures a server against one and the same prepared peer: a room of 10,000 members and 20,000 state events is joined, then 2,000 messages come.

The peer is no homeserver: it makes the events once, with valid hashes and signatures, and answers from memory.
"""

import base64
import hashlib
import http.client
import json
import os
import shutil
import signal
import ssl
import statistics
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "interop"))

from canonicaljson import encode_canonical_json
from signedjson.key import generate_signing_key, get_verify_key
from signedjson.sign import sign_json
from unpaddedbase64 import encode_base64

import client
from client import User
from harness import Authority, Server, free_port

MEMBERS = int(os.environ.get("MEMBERS", 10_000))
STATE = int(os.environ.get("STATE", 20_000))
MESSAGES = int(os.environ.get("MESSAGES", 2_000))
VERSION = "11"
KEPT = {
    "m.room.create": None,
    "m.room.member": {"membership", "join_authorised_via_users_server"},
    "m.room.join_rules": {"join_rule", "allow"},
    "m.room.history_visibility": {"history_visibility"},
    "m.room.power_levels": {"ban", "events", "events_default", "invite", "kick", "redact", "state_default", "users", "users_default"},
}
TOP = {"auth_events", "content", "depth", "event_id", "hashes", "origin_server_ts", "prev_events", "room_id", "sender", "signatures", "state_key", "type"}


def redacted(event):
    """Spec: rooms/v11, "Redactions"."""
    kept = KEPT.get(event["type"], set())
    content = event["content"] if kept is None else {key: value for key, value in event["content"].items() if key in kept}
    return {key: value for key, value in event.items() if key in TOP} | {"content": content}


def event_id(event):
    bare = {key: value for key, value in redacted(event).items() if key not in ("signatures", "unsigned")}
    return "$" + base64.urlsafe_b64encode(hashlib.sha256(encode_canonical_json(bare)).digest()).decode().rstrip("=")


class Room:
    """A room that lives on the peer only, and all its events."""

    def __init__(self, name, key):
        self.name, self.key = name, key
        self.id = f"!large:{name}"
        self.clock = int(time.time() * 1000) - 10_000_000
        self.depth = 0
        self.last = []
        self.state = []
        creator = self.user(0)
        self.create = self.add(creator, "m.room.create", {"room_version": VERSION}, "", [])
        self.members = {creator: self.add(creator, "m.room.member", {"membership": "join"}, creator, [self.create])}
        self.power = self.add(creator, "m.room.power_levels", {"users": {creator: 100}, "state_default": 0}, "",
                              [self.create, self.members[creator]])
        self.rules = self.add(creator, "m.room.join_rules", {"join_rule": "public"}, "", self.auth_of(creator))
        self.add(creator, "m.room.history_visibility", {"history_visibility": "shared"}, "", self.auth_of(creator))
        for number in range(1, MEMBERS):
            user = self.user(number)
            self.members[user] = self.add(user, "m.room.member", {"membership": "join", "displayname": f"Member {number}"}, user,
                                          [self.create, self.power, self.rules])
        for number in range(STATE - len(self.state)):
            sender = self.user(number % MEMBERS)
            self.add(sender, "org.example.state", {"number": number, "text": "something that is kept in the room"}, f"{number}", self.auth_of(sender))
        chain = {self.create, self.power, self.rules, *self.members.values()}
        self.answer = self.send_join_answer([event for event in self.state if event_id(event) in chain])

    def user(self, number):
        return f"@member-{number}:{self.name}"

    def auth_of(self, sender):
        return [self.create, self.power, self.members[sender]]

    def add(self, sender, kind, content, state_key, auth_events):
        event = self.make(sender, kind, content, auth_events, state_key)
        self.state.append(event)
        return self.last[0]

    def make(self, sender, kind, content, auth_events, state_key=None):
        """The next event of the room."""
        self.depth += 1
        self.clock += 100
        event = {"room_id": self.id, "sender": sender, "type": kind, "content": content, "auth_events": auth_events,
                 "prev_events": self.last, "depth": self.depth, "origin_server_ts": self.clock}
        if state_key is not None:
            event["state_key"] = state_key
        event["hashes"] = {"sha256": encode_base64(hashlib.sha256(encode_canonical_json(event)).digest())}
        signed = sign_json(redacted(event), self.name, self.key)
        event["signatures"] = signed["signatures"]
        self.last = [event_id(event)]
        return event

    def template(self, user):
        return {"room_version": VERSION, "event": {
            "room_id": self.id, "sender": user, "state_key": user, "type": "m.room.member", "content": {"membership": "join"},
            "auth_events": [self.create, self.power, self.rules], "prev_events": self.last, "depth": self.depth + 1,
            "origin_server_ts": int(time.time() * 1000)}}

    def send_join_answer(self, auth_chain):
        """All of it, as Synapse would answer: the auth chain repeats what of it is state."""
        return json.dumps({"origin": self.name, "members_omitted": False, "state": self.state, "auth_chain": auth_chain}).encode()


class Peer:
    """What the server under test finds on the other end."""

    def __init__(self, work, authority):
        self.port = free_port()
        self.name = f"127.0.0.1:{self.port}"
        self.key = generate_signing_key("peer")
        self.room = Room(self.name, self.key)
        self.start = (self.room.last, self.room.depth)
        certificate, key = authority.issue("peer")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        server = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler())
        server.daemon_threads = True
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.trust = ssl.create_default_context(cafile=str(authority.certificate))

    def rewind(self):
        """The room as it was before anybody joined."""
        self.room.last, self.room.depth = self.start

    def keys(self):
        verify = encode_base64(get_verify_key(self.key).encode())
        return sign_json({"server_name": self.name, "valid_until_ts": int(time.time() * 1000) + 86_400_000, "old_verify_keys": {},
                          "verify_keys": {f"ed25519:{self.key.version}": {"key": verify}}}, self.name, self.key)

    def answer(self, method, target, body):
        """Status and body of what is asked."""
        path = urlsplit(target).path
        if path.startswith("/_matrix/key/v2/server"):
            return 200, self.keys()
        parts = [unquote(part) for part in path.split("/")[2:]]
        match [method, *parts]:
            case ["GET", "federation", "v1", "version"]:
                return 200, {"server": {"name": "peer", "version": "1"}}
            case ["GET", "federation", "v1", "make_join", room, user] if room == self.room.id:
                return 200, self.room.template(user)
            case ["PUT", "federation", "v2", "send_join", room, _] if room == self.room.id:
                self.room.last = [event_id(body)]
                self.room.depth += 1
                return 200, self.room.answer[:-1] + b', "event": ' + json.dumps(body).encode() + b"}"
            case ["PUT", "federation", "v1", "send", _]:
                return 200, {"pdus": {}}
        return 404, {"errcode": "M_UNRECOGNIZED", "error": "a prepared server knows little"}

    def handler(self):
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                status, answer = peer.answer(self.command, self.path, body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = serve

            def log_message(self, *_):
                pass

        return Handler

    def messages(self, count):
        sender = self.room.user(1)
        return [self.room.make(sender, "m.room.message", {"msgtype": "m.text", "body": f"message {self.room.depth}"}, self.room.auth_of(sender))
                for _ in range(count)]

    def send(self, server, transactions, progress):
        """Sends lists of events, one transaction after the other, on one connection, as fast as `progress` lets it."""
        connection = http.client.HTTPSConnection("localhost", int(server.environment["FEDERATION_PORT"]), context=self.trust, timeout=120)
        for number, pdus in enumerate(transactions):
            progress.before_sending(len(pdus))
            body = {"origin": self.name, "origin_server_ts": int(time.time() * 1000), "pdus": pdus, "edus": []}
            uri = f"/_matrix/federation/v1/send/{time.monotonic_ns()}-{number}"
            request = sign_json({"method": "PUT", "uri": uri, "origin": self.name, "destination": server.name, "content": body}, self.name, self.key)
            [(key, signature)] = request["signatures"][self.name].items()
            connection.request("PUT", uri, encode_canonical_json(body), {
                "Content-Type": "application/json",
                "Authorization": f'X-Matrix origin="{self.name}",destination="{server.name}",key="{key}",sig="{signature}"'})
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                raise RuntimeError(f"{server} answered {response.status}: {answer[:300]!r}")
        connection.close()


class Progress:
    """How many messages are on their way. Synapse drops what waits when that is more than 100 in a room, and fetches it again later."""

    MOST = 100

    def __init__(self):
        self.changed = threading.Condition()
        self.sent = self.shown = 0

    def before_sending(self, count):
        with self.changed:
            self.changed.wait_for(lambda: self.sent + count - self.shown <= self.MOST)
            self.sent += count

    def show(self, count):
        with self.changed:
            self.shown = max(self.shown, count)
            self.changed.notify_all()


def receive(peer, server, user, transactions):
    """Seconds from the first transaction until the user's sync has shown the last message."""
    places = {event["content"]["body"]: place for place, event in enumerate((event for each in transactions for event in each), 1)}
    progress = Progress()
    query = {"filter": json.dumps({"room": {"timeline": {"limit": 50}, "state": {"lazy_load_members": True}}})}
    since = user.call("GET", "sync", query=query)["next_batch"]
    began = time.monotonic()
    sender = threading.Thread(target=peer.send, args=(server, transactions, progress), daemon=True)
    sender.start()
    while True:
        answer = user.call("GET", "sync", query={**query, "since": since, "timeout": 30_000})
        since = answer["next_batch"]
        events = answer.get("rooms", {}).get("join", {}).get(peer.room.id, {}).get("timeline", {}).get("events", [])
        progress.show(max((places.get(event["content"].get("body"), 0) for event in events), default=0))
        if progress.shown == len(places):
            sender.join()
            return time.monotonic() - began
        if time.monotonic() - began > 1800:
            raise RuntimeError(f"{server} has shown {progress.shown} of {len(places)} messages")


def memory(pid, what):
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def processor(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def settle(pid):
    """Waits until the process has nothing to do."""
    while True:
        before = processor(pid)
        time.sleep(1)
        if processor(pid) - before < 0.1:
            return


def measure(make, work, authority, peer, number):
    """One run of one server, from an empty database."""
    server = Server(make, "localhost", f"{make}-{number}", work, authority)
    peer.rewind()
    server.start()
    try:
        user = User(server, "user")
        pid = server.process.pid
        used = processor(pid)
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        began = time.monotonic()
        user.call("POST", "join", peer.room.id, query={"server_name": peer.name, "via": peer.name})
        joined = time.monotonic() - began
        peak = memory(pid, "VmHWM")
        members = len(user.call("GET", "rooms", peer.room.id, "joined_members")["joined"])
        assert members == MEMBERS + 1, f"{members} members"
        # Whatever the join left to do in the background is not the messages' cost.
        settle(pid)
        join_cpu = processor(pid) - used
        full = [peer.messages(50) for _ in range(MESSAGES // 50)]
        many = receive(peer, server, user, full)
        single = [[each] for each in peer.messages(MESSAGES // 10)]
        one = receive(peer, server, user, single)
        return {"join, s": joined, "join, CPU s": join_cpu, "peak memory in the join, MiB": peak,
                f"{MESSAGES} messages in full transactions, s": many, f"{MESSAGES // 10} messages one by one, s": one}
    finally:
        server.stop()
        shutil.rmtree(server.directory, ignore_errors=True)


def main():
    runs = int(sys.argv[1])
    # A join may take many minutes, and whoever ends this ends the servers too.
    client.REQUEST_SECONDS = 1800
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    work = Path(tempfile.mkdtemp(prefix="federation."))
    authority = Authority(work)
    began = time.monotonic()
    peer = Peer(work, authority)
    print(f"a room of {MEMBERS} members and {STATE} state events, {len(peer.room.answer) / 2**20:.1f} MiB, made in {time.monotonic() - began:.1f} s", flush=True)
    results = {"synapse": [], "hearth": []}
    try:
        for number in range(runs):
            for make, outcomes in results.items():
                outcomes.append(measure(make, work, authority, peer, number))
                print(make, {key: round(value, 2) for key, value in outcomes[-1].items()}, flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"\n{'median of ' + str(runs):50} {'Hearth':>10} {'Synapse':>10} {'ratio':>8}")
    for key in results["hearth"][0]:
        ours, theirs = (statistics.median(each[key] for each in results[make]) for make in ("hearth", "synapse"))
        print(f"{key:50} {ours:10.2f} {theirs:10.2f} {theirs / ours:8.1f}")


if __name__ == "__main__":
    main()
