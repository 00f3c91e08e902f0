"""What the scenarios share: how they are listed, and rooms that are the same on both sides."""

from client import Refused, User, Watch, expect, until

SCENARIOS = []


class Run:
    """What a scenario gets: two servers and how thorough to be."""

    def __init__(self, home, away, pair, full):
        self.home = home
        self.away = away
        self.pair = pair
        self.full = full

    def size(self, full, short):
        return full if self.full else short


def scenario(both_ways=True):
    """Lists a scenario. One that is for both ways is run with either server as home, unless they are of one make."""
    def add(function):
        SCENARIOS.append((function, both_ways))
        return function
    return add


def runs_of(pair, full):
    """The name, function and arguments of everything there is to run."""
    for function, both_ways in SCENARIOS:
        name = function.__name__.replace("_", " ")
        yield f"{name} ({pair.a.make} to {pair.b.make})", function, Run(pair.a, pair.b, pair, full)
        if both_ways and pair.a.make != pair.b.make:
            yield f"{name} ({pair.b.make} to {pair.a.make})", function, Run(pair.b, pair.a, pair, full)


def creatable(user, version):
    """Whether the user's server makes rooms of this version."""
    try:
        user.create(version)
        return True
    except Refused as error:
        if error.errcode == "M_UNSUPPORTED_ROOM_VERSION":
            return False
        raise


def expect_same_state(room, *users):
    """Waits until all users' servers hold the same state events; answers them."""
    states = []

    def same():
        states[:] = [user.state(room) for user in users]
        return all(state == states[0] for state in states)

    def difference():
        lines = [f"the same state of {room}"]
        for key in sorted(set().union(*states)):
            ids = [state.get(key) for state in states]
            if len(set(ids)) > 1:
                lines.append(f"  {key}: " + ", ".join(f"{user.server.make} {each}" for user, each in zip(users, ids)))
        return "\n".join(lines)

    until(difference, same)
    return states[0]


def shared_room(run, version="11", watched=True, **options):
    """A public room with somebody of each server in it: alice at home, bob away, both with power, and what they see."""
    alice, bob = User(run.home, "alice"), User(run.away, "bob")
    room = alice.create(version, preset="public_chat", **options)
    bob.join(room, via=run.home)
    alice_sees = Watch(alice)
    until("bob has joined", lambda: alice.memberships(room).get(bob.id) == "join")
    # In version 12 the creator is above all levels, and not listed.
    alice.set_power(room, {bob: 100})
    expect_same_state(room, alice, bob)
    if not watched:
        return room, alice, bob
    return room, alice, bob, alice_sees, Watch(bob)


def expect_talk(room, alice, bob):
    """A message each way arrives."""
    sees = {alice: Watch(alice), bob: Watch(bob)}
    for sender, receiver in ((alice, bob), (bob, alice)):
        event = sender.send(room, f"from {sender.id}")
        sees[receiver].until(f"{event} of {sender}", lambda watch, event=event: watch.room(room).has(event))


def expect_once(messages, wanted, where):
    """All of `wanted`, each once, and nothing else."""
    expect(len(set(messages)) == len(messages), f"{where} got {len(messages) - len(set(messages))} messages twice")
    lost = [each for each in wanted if each not in set(messages)]
    expect(not lost, f"{where} lost {len(lost)} messages, the first {lost[:1]}")
    expect(len(messages) == len(wanted), f"{where} got {len(messages)} messages instead of {len(wanted)}")
