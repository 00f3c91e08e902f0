"""A user of a homeserver, through the client-server API and nothing else."""

import http.client
import itertools
import json
import time
from urllib.parse import quote, urlencode

DEADLINE = 60
REQUEST_SECONDS = 120
PASSWORD = "interop-needs-no-Secret-7"
names = itertools.count(1)


class Failed(Exception):
    """What a scenario expected did not come."""


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, request, status, body):
        self.status = status
        self.errcode = body.get("errcode")
        super().__init__(f"{request} gave {status} {self.errcode}: {body.get('error')}")


class Unreachable(Exception):
    """The server did not answer."""


def expect(condition, what):
    if not condition:
        raise Failed(what)


def until(what, condition, seconds=DEADLINE, pause=0.2):
    """Asks again and again; answers what `condition` answered when that is true."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Failed(f"within {seconds} s not: {what() if callable(what) else what}")
        time.sleep(pause)


class User:
    """Somebody with an account. Transactions are numbered, so a request may be sent again."""

    def __init__(self, server, name):
        self.server = server
        self.token = None
        localpart = f"{name}-{next(names)}"
        answer = self.call("POST", "register", body={
            "username": localpart, "password": PASSWORD, "auth": {"type": "m.login.dummy"}})
        self.token = answer["access_token"]
        self.id = answer["user_id"]
        self.transactions = itertools.count(1)

    def __str__(self):
        return f"{self.id} on {self.server.make}"

    def call(self, method, *path, body=None, query=None, version="v3"):
        """One request; the answer's JSON."""
        target = f"/_matrix/client/{version}/" + "/".join(quote(part, safe="") for part in path)
        if query:
            target += "?" + urlencode(query, doseq=True)
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if body is None and method in ("POST", "PUT"):
            body = {}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.client_port, timeout=REQUEST_SECONDS)
        try:
            connection.request(method, target, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{method} {target} of {self.server}: {error!r}") from error
        finally:
            connection.close()
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise Failed(f"{method} {target} of {self.server} gave {response.status} and no JSON: {text[:200]!r}") from error
        if response.status != 200:
            raise Refused(f"{method} {target} of {self.server}", response.status, answer)
        return answer

    def refused(self, *arguments, **options):
        """The error of a request that must not succeed."""
        try:
            answer = self.call(*arguments, **options)
        except Refused as error:
            return error
        raise Failed(f"{self}: {arguments} was allowed: {answer}")

    # Rooms

    def create(self, version="11", **options):
        return self.call("POST", "createRoom", body={"room_version": version, **options})["room_id"]

    def join(self, room, via=None):
        query = {"via": via.name, "server_name": via.name} if via else None
        return self.call("POST", "join", room, query=query)["room_id"]

    def knock(self, room, via):
        return self.call("POST", "knock", room, query={"via": via.name, "server_name": via.name})["room_id"]

    def invite(self, room, user):
        self.call("POST", "rooms", room, "invite", body={"user_id": user.id})

    def leave(self, room):
        self.call("POST", "rooms", room, "leave")

    def moderate(self, verb, room, user):
        """`verb` is kick, ban or unban."""
        self.call("POST", "rooms", room, verb, body={"user_id": user.id})

    def send(self, room, body, event_type="m.room.message", transaction=None):
        content = {"msgtype": "m.text", "body": body} if isinstance(body, str) else body
        transaction = transaction or f"t{next(self.transactions)}"
        return self.call("PUT", "rooms", room, "send", event_type, transaction, body=content)["event_id"]

    def set(self, room, event_type, content, state_key=""):
        return self.call("PUT", "rooms", room, "state", event_type, state_key, body=content)["event_id"]

    def get(self, room, event_type, state_key=""):
        return self.call("GET", "rooms", room, "state", event_type, state_key)

    def set_power(self, room, levels):
        """Gives users levels; `levels` is by user."""
        content = self.get(room, "m.room.power_levels")
        content.setdefault("users", {}).update({user.id: level for user, level in levels.items()})
        return self.set(room, "m.room.power_levels", content)

    def redact(self, room, event):
        return self.call("PUT", "rooms", room, "redact", event, f"t{next(self.transactions)}")["event_id"]

    def event(self, room, event):
        return self.call("GET", "rooms", room, "event", event)

    def state(self, room):
        """The IDs of the room's current state events, by type and state key."""
        return {(event["type"], event["state_key"]): event["event_id"] for event in self.call("GET", "rooms", room, "state")}

    def memberships(self, room):
        return {event["state_key"]: event["content"]["membership"]
                for event in self.call("GET", "rooms", room, "state") if event["type"] == "m.room.member"}

    def history(self, room):
        """All events of the room, the oldest first, as far as the server shows them."""
        pages, where = [], None
        while True:
            page = self.call("GET", "rooms", room, "messages",
                             query={"dir": "b", "limit": 100, **({"from": where} if where else {})})
            pages += page["chunk"]
            where = page.get("end")
            if not where or any(event["type"] == "m.room.create" for event in page["chunk"]):
                return pages[::-1]

    def bodies(self, room):
        """Sender and text of all messages, the oldest first."""
        return [(event["sender"], event["content"]["body"]) for event in self.history(room)
                if event["type"] == "m.room.message" and "body" in event["content"]]


class RoomView:
    """What one user was told of a room by sync."""

    def __init__(self):
        self.membership = None
        self.timeline = []
        self.state = {}
        self.stripped = []
        self.typing = []
        self.receipts = {}

    def bodies(self, sender=None):
        return [event["content"]["body"] for event in self.timeline
                if event["type"] == "m.room.message" and "body" in event["content"] and sender in (None, event["sender"])]

    def member(self, user):
        """The user's membership, if anything was told of it."""
        event = self.state.get(("m.room.member", user.id))
        return event and event["content"]["membership"]

    def has(self, event_id):
        return any(event["event_id"] == event_id for event in self.timeline)


class Watch:
    """One user's sync, from now on."""

    FILTER = json.dumps({"room": {"timeline": {"limit": 100}}})

    def __init__(self, user):
        self.user = user
        self.rooms = {}
        self.presence = {}
        self.since = None
        self.step(0)

    def room(self, room):
        return self.rooms.setdefault(room, RoomView())

    def step(self, wait_ms):
        query = {"filter": self.FILTER, "timeout": wait_ms}
        if self.since:
            query["since"] = self.since
        answer = self.user.call("GET", "sync", query=query)
        for event in answer.get("presence", {}).get("events", []):
            self.presence[event["sender"]] = event["content"]
        rooms = answer.get("rooms", {})
        for membership in ("join", "leave", "invite", "knock"):
            for room, news in rooms.get(membership, {}).items():
                self._take(room, membership, news)
        self.since = answer["next_batch"]

    def _take(self, room, membership, news):
        view = self.room(room)
        newly_joined = view.membership != "join"
        view.membership = membership
        if membership in ("invite", "knock"):
            view.stripped = news[f"{membership}_state"]["events"]
            return
        timeline = news.get("timeline", {})
        events = timeline.get("events", [])
        if timeline.get("limited") and self.since and not newly_joined:
            events = self._missing(room, timeline["prev_batch"]) + events
        view.timeline += events
        for event in [*news.get("state", {}).get("events", []), *events]:
            if "state_key" in event:
                view.state[event["type"], event["state_key"]] = event
        for event in news.get("ephemeral", {}).get("events", []):
            if event["type"] == "m.typing":
                view.typing = event["content"]["user_ids"]
            elif event["type"] == "m.receipt":
                for target, kinds in event["content"].items():
                    for user in kinds.get("m.read", {}):
                        view.receipts[user] = target

    def _missing(self, room, where):
        """What lies between the last sync and a timeline that was cut."""
        known = {event["event_id"] for event in self.room(room).timeline}
        events = []
        while where:
            page = self.user.call("GET", "rooms", room, "messages", query={"dir": "b", "limit": 100, "from": where, "to": self.since})
            new = [event for event in page["chunk"] if event["event_id"] not in known]
            events += new
            where = page.get("end") if len(new) == len(page["chunk"]) and page["chunk"] else None
        return events[::-1]

    def until(self, what, condition, seconds=DEADLINE):
        """Syncs until `condition` is true of this watch; answers what it answered."""
        deadline = time.monotonic() + seconds
        while True:
            answer = condition(self)
            if answer:
                return answer
            left = deadline - time.monotonic()
            if left < 0:
                raise Failed(f"{self.user} did not see within {seconds} s: {what() if callable(what) else what}")
            self.step(int(min(left, 5) * 1000))
