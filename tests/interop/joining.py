"""Getting into rooms of another server, and out of them."""

from client import Failed, User, Watch, expect, until
from scenario import creatable, expect_same_state, expect_talk, scenario, shared_room

VERSIONS = tuple(str(version) for version in range(1, 13))
# The short form has those with which something begins: event IDs, who may come in, who is above all.
SHORT = ("1", "2", "3", "7", "8", "10", "12")
SINCE = {"public": 1, "invite": 1, "knock": 7, "restricted": 8, "knock_restricted": 10}


class Doors:
    """A user at home who has the power over a room, and one away who wants to get in."""

    def __init__(self, run, version):
        self.run = run
        self.version = version
        self.alice = User(run.home, "alice")
        self.bob = User(run.away, "bob")
        self.own = creatable(self.alice, version)

    def room(self, rule, allow=None):
        """A room that only the home server is in, though it may not be able to make it itself."""
        content = {"join_rule": rule}
        if allow:
            content["allow"] = [{"type": "m.room_membership", "room_id": allow}]
        if self.own:
            rules = {"type": "m.room.join_rules", "state_key": "", "content": content}
            return self.alice.create(self.version, preset="private_chat", initial_state=[rules])
        maker = User(self.run.away, "maker")
        room = maker.create(self.version, preset="public_chat", power_level_content_override={
            "users": {maker.id: 100, self.alice.id: 100}})
        self.alice.join(room, via=self.run.away)
        maker.leave(room)
        until(f"{maker} has left", lambda: self.alice.memberships(room).get(maker.id) == "leave")
        self.alice.set(room, "m.room.join_rules", content)
        return room

    def public(self):
        room = self.room("public")
        self.bob.join(room, via=self.run.home)
        return room

    def invite(self):
        room = self.room("invite")
        sees = Watch(self.bob)
        self.bob.refused("POST", "join", room, query={"server_name": self.run.home.name, "via": self.run.home.name})
        self.alice.invite(room, self.bob)
        sees.until("the invite", lambda watch: watch.room(room).membership == "invite")
        stripped = {event["type"]: event for event in sees.room(room).stripped}
        expect("m.room.join_rules" in stripped, f"the invite says only {sorted(stripped)}")
        self.bob.join(room)
        return room

    def restricted(self, rule="restricted"):
        club = self.alice.create("11", preset="public_chat")
        room = self.room(rule, club)
        # Who is in no room that counts stays out.
        self.bob.refused("POST", "join", room, query={"server_name": self.run.home.name, "via": self.run.home.name})
        self.bob.join(club, via=self.run.home)
        until("the home server knows the member", lambda: self.alice.memberships(club).get(self.bob.id) == "join")
        self.bob.join(room, via=self.run.home)
        member = self.bob.get(room, "m.room.member", self.bob.id)
        expect("join_authorised_via_users_server" in member, f"nobody authorized {member}")
        return room

    def knock_restricted(self):
        return self.restricted("knock_restricted")

    def knock(self):
        room = self.room("knock")
        bob_sees, alice_sees = Watch(self.bob), Watch(self.alice)
        self.bob.knock(room, self.run.home)
        alice_sees.until("the knock", lambda watch: watch.room(room).member(self.bob) == "knock")
        bob_sees.until("the own knock", lambda watch: watch.room(room).membership == "knock")
        self.alice.invite(room, self.bob)
        bob_sees.until("the invite", lambda watch: watch.room(room).membership == "invite")
        self.bob.join(room)
        return room


@scenario()
def joins_in_every_room_version(run):
    """Public, invite, knock and restricted rooms: in, and from then on the same room. The short form leaves out what is as in the version before."""
    for version in run.size(VERSIONS, SHORT):
        doors = Doors(run, version)
        if not doors.own and not creatable(doors.bob, version):
            print(f"# neither server makes rooms of version {version}")
            continue
        for rule, since in SINCE.items():
            is_new = int(version) in (since, 12)
            if int(version) < since or not (run.full or is_new or rule == "public"):
                continue
            try:
                room = getattr(doors, rule)()
                expect_same_state(room, doors.alice, doors.bob)
                expect_talk(room, doors.alice, doors.bob)
            except Exception as error:
                raise Failed(f"version {version}, {rule}: {error}") from error


@scenario()
def invites_are_rejected_and_taken_back(run):
    alice, bob = User(run.home, "alice"), User(run.away, "bob")
    room = alice.create("11", preset="private_chat", name="Den")
    bob_sees, alice_sees = Watch(bob), Watch(alice)

    alice.invite(room, bob)
    bob_sees.until("the invite", lambda watch: watch.room(room).membership == "invite")
    names = [event["content"].get("name") for event in bob_sees.room(room).stripped if event["type"] == "m.room.name"]
    expect(names == ["Den"], f"the invite names the room {names}")
    bob.leave(room)
    alice_sees.until("the rejection", lambda watch: watch.room(room).member(bob) == "leave")
    bob_sees.until("that the invite is gone", lambda watch: watch.room(room).membership == "leave")

    alice.invite(room, bob)
    bob_sees.until("the second invite", lambda watch: watch.room(room).membership == "invite")
    alice.moderate("kick", room, bob)
    bob_sees.until("that the invite was taken back", lambda watch: watch.room(room).membership == "leave")
    bob.refused("POST", "join", room, query={"server_name": run.home.name, "via": run.home.name})


@scenario()
def an_invite_is_rejected_though_its_server_is_gone(run):
    alice, bob = User(run.home, "alice"), User(run.away, "bob")
    room = alice.create("11", preset="private_chat")
    sees = Watch(bob)
    alice.invite(room, bob)
    sees.until("the invite", lambda watch: watch.room(room).membership == "invite")
    run.pair.cut()
    try:
        bob.leave(room)
        sees.until("that the invite is gone", lambda watch: watch.room(room).membership == "leave")
    finally:
        run.pair.heal()


@scenario()
def leaving_kicks_and_bans_are_kept(run):
    room, alice, bob, alice_sees, bob_sees = shared_room(run)
    carl = User(run.away, "carl")
    carl_sees = Watch(carl)

    def member(user, membership):
        return lambda watch: watch.room(room).member(user) == membership

    carl.join(room, via=run.home)
    alice_sees.until("carl joins", member(carl, "join"))
    carl.leave(room)
    alice_sees.until("carl leaves", member(carl, "leave"))
    carl.join(room, via=run.home)
    alice_sees.until("carl joins again", member(carl, "join"))
    alice.moderate("kick", room, carl)
    carl_sees.until("the kick", lambda watch: watch.room(room).membership == "leave")
    carl.join(room, via=run.home)
    alice_sees.until("carl joins after the kick", member(carl, "join"))
    alice.moderate("ban", room, carl)
    bob_sees.until("the ban", member(carl, "ban"))
    carl.refused("POST", "join", room, query={"server_name": run.home.name, "via": run.home.name})
    bob.moderate("unban", room, carl)
    alice_sees.until("the unban", member(carl, "leave"))
    carl.join(room, via=run.home)
    expect_same_state(room, alice, bob)
    expect_talk(room, alice, carl)


@scenario()
def a_room_goes_on_without_its_first_server(run):
    """Everybody of home leaves; somebody of home comes back through the other server."""
    room, alice, bob = shared_room(run, watched=False)
    for number in range(10):
        alice.send(room, f"before {number}")
    until("bob has them", lambda: len(bob.bodies(room)) == 10)
    alice.leave(room)
    until("alice has left", lambda: bob.memberships(room)[alice.id] == "leave")
    for number in range(10):
        bob.send(room, f"between {number}")
    anna = User(run.home, "anna")
    anna.join(room, via=run.away)
    expect_same_state(room, anna, bob)
    expect_talk(room, anna, bob)
    texts = [text for _, text in anna.bodies(room)]
    wanted = [f"{when} {number}" for when in ("before", "between") for number in range(10)]
    expect(texts[:20] == wanted, f"anna reads {texts}")


@scenario()
def an_upgraded_room_is_found(run):
    room, alice, bob, _, bob_sees = shared_room(run, "10")
    new = alice.call("POST", "rooms", room, "upgrade", body={"new_version": "11"})["replacement_room"]
    tombstone = bob_sees.until("the tombstone", lambda watch: watch.room(room).state.get(("m.room.tombstone", "")))
    expect(tombstone["content"]["replacement_room"] == new, f"{tombstone}")
    bob.join(new, via=run.home)
    expect(bob.get(new, "m.room.create")["predecessor"]["room_id"] == room, "the predecessor")
    expect_talk(new, alice, bob)
