"""Cut networks, outages and crashes."""

import random
import threading
import time

from client import DEADLINE, Failed, Refused, Unreachable, User, Watch, expect, until
from scenario import expect_same_state, expect_talk, scenario, shared_room

SLOW = 2 * DEADLINE
# Between two words of one who talks without end, so that a slow server is not still reading minutes later.
BREATH_SECONDS = 0.05


class Sides:
    """A room with a head, a moderator and a guest of each server, and what they do to each other."""

    def __init__(self, run, version, seed):
        self.random = random.Random(seed)
        self.room, self.alice, self.bob = shared_room(run, version, watched=False)
        self.heads = (self.alice, self.bob)
        self.people = {}
        for head, server in ((self.alice, run.home), (self.bob, run.away)):
            moderator, guest = User(server, "moderator"), User(server, "guest")
            for user in (moderator, guest):
                user.join(self.room, via=run.home)
            self.people[head] = (head, moderator, guest)
        others = [user for people in self.people.values() for user in people[1:]]
        until("all have joined", lambda: all(self.alice.memberships(self.room).get(user.id) == "join" for user in others))
        self.alice.set_power(self.room, {people[1]: 50 for people in self.people.values()})
        expect_same_state(self.room, self.alice, self.bob)

    def act(self, head, count):
        """`count` deeds of people of one side; what is not allowed is not done."""
        done = 0
        targets = [user for people in self.people.values() for user in people[1:]]
        while done < count:
            actor = self.random.choice(self.people[head])
            target = self.random.choice(targets)
            deed = self.random.choice(("ban", "unban", "kick", "power", "topic", "name", "rules", "say", "rejoin"))
            try:
                self.do(actor, target, deed)
                done += 1
            except Refused as error:
                # Not allowed, as things are on this side, or nowhere to go while the network is cut.
                if error.status not in (400, 403, 404, 502, 504) and error.errcode not in ("M_UNKNOWN", "M_NOT_FOUND"):
                    raise

    def do(self, actor, target, deed):
        number = self.random.randrange(1000)
        if deed in ("ban", "unban", "kick"):
            actor.moderate(deed, self.room, target)
        elif deed == "power":
            actor.set_power(self.room, {target: self.random.choice((0, 25, 50))})
        elif deed == "topic":
            actor.set(self.room, "m.room.topic", {"topic": f"{actor.id} {number}"})
        elif deed == "name":
            actor.set(self.room, "m.room.name", {"name": f"{actor.id} {number}"})
        elif deed == "rules":
            actor.set(self.room, "m.room.join_rules", {"join_rule": self.random.choice(("public", "invite"))})
        elif deed == "say":
            actor.send(self.room, f"{actor.id} {number}")
        else:
            actor.join(self.room)


def agree(sides):
    """After the network is back: each hears of the other, and the rooms are one again."""
    sees = [Watch(head) for head in sides.heads]
    for head, watch in zip(sides.heads, reversed(sees)):
        event = head.send(sides.room, f"back {head.id}")
        watch.until(f"{event} of {head}", lambda watch, event=event: watch.room(sides.room).has(event), SLOW)
    return expect_same_state(sides.room, *sides.heads)


@scenario(both_ways=False)
def bans_and_power_at_the_same_time_converge(run):
    """The cases that people meet, done on purpose."""
    for version in run.size(("1", "2", "3", "6", "10", "11", "12"), ("1", "11", "12")):
        sides = Sides(run, version, 1)
        _, mod_a, guest_a = sides.people[sides.alice]
        _, mod_b, guest_b = sides.people[sides.bob]
        run.pair.cut()
        try:
            # Each side's moderator bans the other's guest; one of them was demoted meanwhile by the other side.
            sides.alice.set_power(sides.room, {mod_b: 0})
            mod_b.moderate("ban", sides.room, guest_a)
            mod_a.moderate("ban", sides.room, guest_b)
            sides.bob.set_power(sides.room, {guest_a: 50})
            for head in sides.heads:
                head.set(sides.room, "m.room.topic", {"topic": head.id})
                for number in range(5):
                    head.send(sides.room, f"alone {number}")
        finally:
            run.pair.heal()
        state = agree(sides)
        memberships = sides.alice.memberships(sides.room)
        expect(memberships == sides.bob.memberships(sides.room), f"version {version}: memberships differ")
        expect(memberships[guest_b.id] == "ban", f"version {version}: the ban by an undisputed moderator holds, not {memberships}")
        expect(("m.room.topic", "") in state, "a topic")


@scenario(both_ways=False)
def whatever_is_done_at_the_same_time_converges(run):
    """Random deeds on both sides of a cut, several times in one room."""
    for seed in range(run.size(10, 2)):
        sides = Sides(run, ("10", "1", "12", "2", "11")[seed % 5], seed)
        for turn in range(run.size(4, 2)):
            run.pair.cut()
            try:
                for head in sides.heads:
                    sides.act(head, 4 + 4 * turn)
            finally:
                run.pair.heal()
            try:
                agree(sides)
            except Failed as error:
                raise Failed(f"seed {seed}, turn {turn}: {error}") from error


@scenario()
def who_was_away_catches_up(run):
    """The away server is stopped while much is said, and reads all of it later."""
    total = run.size(500, 60)
    room, alice, bob = shared_room(run, watched=False)
    bob.send(room, "going")
    until("the last words", lambda: len(alice.bodies(room)) == 1)
    run.away.stop()
    try:
        for number in range(total):
            alice.send(room, f"{number}")
    finally:
        run.away.start()
    event = alice.send(room, "welcome")
    Watch(bob).until("the newest message", lambda watch: watch.room(room).has(event), SLOW)
    wanted = ["going", *map(str, range(total)), "welcome"]
    texts = until("bob reads everything", lambda: len(read := [text for _, text in bob.bodies(room)]) >= len(wanted) and read)
    expect(texts == wanted, f"bob reads {texts}")
    expect_same_state(room, alice, bob)
    expect_talk(room, alice, bob)


class Talker(threading.Thread):
    """Says numbers until it is told to stop, each until it is answered, and notes them."""

    def __init__(self, user, room):
        super().__init__(daemon=True)
        self.user, self.room = user, room
        self.said = []
        self.error = None
        self.ended = False

    def run(self):
        try:
            while not self.ended:
                self.say(f"{len(self.said)}")
                time.sleep(BREATH_SECONDS)
        except Exception as error:
            self.error = error

    def say(self, text):
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                self.user.send(self.room, text, transaction=f"said-{text}")
                self.said.append((self.user.id, text))
                return
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


@scenario(both_ways=False)
def nothing_is_lost_when_servers_are_killed(run):
    """Both talk all the time while one server after the other is killed at any moment and started again."""
    chance = random.Random(7)
    room, alice, bob = shared_room(run, watched=False)
    talkers = [Talker(alice, room), Talker(bob, room)]
    for talker in talkers:
        talker.start()
    for turn in range(run.size(10, 2)):
        for victim in (run.away, run.home):
            time.sleep(chance.uniform(0.2, 2))
            victim.kill()
            victim.start()
    time.sleep(1)
    for talker in talkers:
        talker.ended = True
    for talker in talkers:
        talker.join()
        if talker.error:
            raise talker.error
    agreed_on(room, alice, bob, [said for talker in talkers for said in talker.said])


def agreed_on(room, alice, bob, said):
    """Both servers come to know all of `said`, each once, and each sender's in its order."""
    for head in (alice, bob):
        head.send(room, "end")
    for user in (alice, bob):
        history = []

        def complete(user=user, history=history):
            history[:] = user.bodies(room)
            return len(history) >= len(said) + 2

        until(lambda user=user, history=history: f"{user} reads {len(said) + 2} messages, but {len(history)}; {missing(said, history)}", complete, SLOW)
        expect(len(set(history)) == len(history) - 0, f"{user} reads messages twice")
        for sender in (alice, bob):
            wanted = [text for author, text in said if author == sender.id] + ["end"]
            read = [text for author, text in history if author == sender.id]
            expect(read == wanted, f"{user} reads {sender} out of order: {first_difference(read, wanted)}")
    expect_same_state(room, alice, bob)


def missing(said, history):
    return f"the first that is missing: {[each for each in said if each not in set(history)][:3]}"


def first_difference(read, wanted):
    return next(((number, pair) for number, pair in enumerate(zip(read, wanted)) if pair[0] != pair[1]), (len(read), len(wanted)))


@scenario()
def a_join_is_repeated_after_a_crash(run):
    """Either server is killed while somebody joins; asked again, the join works, and the rooms are the same."""
    chance = random.Random(11)
    for turn in range(run.size(6, 1)):
        for victim in (run.home, run.away):
            alice, bob = User(run.home, "alice"), User(run.away, "bob")
            room = alice.create("11", preset="public_chat")
            for number in range(20):
                alice.set(room, "org.example.state", {"number": number}, f"{number}")
            attempt = threading.Thread(target=lambda: try_join(bob, room, run.home), daemon=True)
            attempt.start()
            time.sleep(chance.uniform(0, 0.3))
            victim.kill()
            victim.start()
            attempt.join()
            if victim is run.home and run.away.make == "synapse":
                # It joins before it knows the whole room. If nobody is there then to tell it, it gives up until it starts again.
                run.away.stop()
                run.away.start()
            until("the join works", lambda: try_join(bob, room, run.home))
            until("home knows", lambda: alice.memberships(room).get(bob.id) == "join")
            expect_same_state(room, alice, bob)
            expect_talk(room, alice, bob)


def try_join(user, room, via):
    try:
        user.join(room, via=via)
        return True
    except (Refused, Unreachable):
        return False
