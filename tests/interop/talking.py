"""What people do in rooms that are on both servers."""

from client import User, Watch, expect, until
from scenario import expect_once, expect_same_state, scenario, shared_room


@scenario(both_ways=False)
def messages_each_way_arrive_once_and_in_one_order(run):
    """In turns of 50: then there is one order of all messages, and both servers tell it, live and in history."""
    total = run.size(1000, 100)
    room, alice, bob, alice_sees, bob_sees = shared_room(run)
    sent = []
    for start in range(0, total, 50):
        for sender, watch in ((alice, bob_sees), (bob, alice_sees)):
            turn = [f"{sender.id} {number}" for number in range(start, start + 50)]
            for text in turn:
                sender.send(room, text)
            sent += [(sender.id, text) for text in turn]
            watch.until(f"{turn[-1]}", lambda watch, last=turn[-1], sender=sender: last in watch.room(room).bodies(sender.id)[-50:])
    for user, watch in ((alice, alice_sees), (bob, bob_sees)):
        watch.until("all of it", lambda watch: len(watch.room(room).bodies()) >= len(sent))
        live = [(event["sender"], event["content"]["body"]) for event in watch.room(room).timeline if event["type"] == "m.room.message"]
        expect_once(live, sent, f"the sync of {user}")
        expect(live == sent, f"the sync of {user} is out of order")
        expect(user.bodies(room) == sent, f"the history of {user} is out of order")


@scenario(both_ways=False)
def messages_at_the_same_time_arrive_once_and_each_in_its_order(run):
    from threading import Thread

    total = run.size(1000, 100)
    room, alice, bob, alice_sees, bob_sees = shared_room(run, "12")
    errors = []

    def talk(sender, watch):
        try:
            for number in range(total):
                sender.send(room, f"{number}")
                if number % 50 == 49:
                    # Of more than a hundred that wait, Synapse takes the newest and leaves a gap.
                    watch.until(f"{number} of {sender}", lambda watch: f"{number}" in watch.room(room).bodies(sender.id)[-50:])
        except Exception as error:
            errors.append(error)

    talkers = [Thread(target=talk, args=pair) for pair in ((alice, bob_sees), (bob, alice_sees))]
    for talker in talkers:
        talker.start()
    for talker in talkers:
        talker.join()
    if errors:
        raise errors[0]
    wanted = [str(number) for number in range(total)]
    for user, watch in ((alice, alice_sees), (bob, bob_sees)):
        for sender in (alice, bob):
            watch.until(lambda: f"{total} of {sender}, but {len(watch.room(room).bodies(sender.id))}",
                        lambda watch, sender=sender: len(watch.room(room).bodies(sender.id)) >= total)
            expect_once(watch.room(room).bodies(sender.id), wanted, f"the sync of {user}")
            expect(watch.room(room).bodies(sender.id) == wanted, f"the sync of {user} has {sender} out of order")
            texts = [text for author, text in user.bodies(room) if author == sender.id]
            expect(texts == wanted, f"the history of {user} has {sender} out of order, or not all")
    expect_same_state(room, alice, bob)


@scenario()
def old_messages_are_filled_in(run):
    total = run.size(2000, 150)
    alice, bob = User(run.home, "alice"), User(run.away, "bob")
    room = alice.create("11", preset="public_chat")
    for number in range(total):
        alice.send(room, f"{number}")
    bob.join(room, via=run.home)
    read = [text for _, text in bob.bodies(room)]
    expect_once(read, [str(number) for number in range(total)], f"the history of {bob}")
    expect(read == [str(number) for number in range(total)], "the history is out of order")


@scenario()
def history_before_the_join_can_be_hidden(run):
    alice, bob = User(run.home, "alice"), User(run.away, "bob")
    visibility = {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "joined"}}
    room = alice.create("11", preset="public_chat", initial_state=[visibility])
    for number in range(5):
        alice.send(room, f"secret {number}")
    bob.join(room, via=run.home)
    sees = Watch(bob)
    event = alice.send(room, "open")
    sees.until("the open message", lambda watch: watch.room(room).has(event))
    texts = [text for _, text in bob.bodies(room)]
    expect(texts == ["open"], f"bob reads {texts}")


@scenario()
def edits_reactions_and_redactions(run):
    room, alice, bob, _, bob_sees = shared_room(run)
    event = alice.send(room, "first words")
    bob_sees.until("the message", lambda watch: watch.room(room).has(event))

    edit = alice.send(room, {"msgtype": "m.text", "body": "* second words", "m.new_content": {"msgtype": "m.text", "body": "second words"},
                             "m.relates_to": {"rel_type": "m.replace", "event_id": event}})
    bob_sees.until("the edit", lambda watch: watch.room(room).has(edit))
    bundled = bob.event(room, event)["unsigned"]["m.relations"]["m.replace"]
    expect(bundled["event_id"] == edit, f"bundled with the message: {bundled}")

    alice_sees = Watch(alice)
    reaction = bob.send(room, {"m.relates_to": {"rel_type": "m.annotation", "event_id": event, "key": "👍"}}, "m.reaction")
    alice_sees.until("the reaction", lambda watch: watch.room(room).has(reaction))
    related = alice.call("GET", "rooms", room, "relations", event, "m.annotation", version="v1")["chunk"]
    expect([each["event_id"] for each in related] == [reaction], f"related: {related}")

    reply = bob.send(room, {"msgtype": "m.text", "body": "in a thread", "m.relates_to": {"rel_type": "m.thread", "event_id": event}})
    alice_sees.until("the reply", lambda watch: watch.room(room).has(reply))
    threads = alice.call("GET", "rooms", room, "threads", version="v1")["chunk"]
    expect([each["event_id"] for each in threads] == [event], "the thread is listed")

    redaction = bob.redact(room, reaction)
    alice_sees.until("the redaction", lambda watch: watch.room(room).has(redaction))
    until("the reaction is empty", lambda: alice.event(room, reaction)["content"] == {})
    # The moderator's redaction of another's message.
    redaction = bob.redact(room, event)
    alice_sees.until("the other redaction", lambda watch: watch.room(room).has(redaction))
    for user in (alice, bob):
        until(f"the message is empty for {user}", lambda user=user: user.event(room, event)["content"] == {})
    # Without the right to it a redaction changes nothing anywhere.
    message = alice.send(room, "stays")
    carl = User(run.away, "carl")
    carl.join(room, via=run.home)
    carl.refused("PUT", "rooms", room, "redact", message, "t")
    expect(alice.event(room, message)["content"]["body"] == "stays", "the message stays")


@scenario()
def typing_receipts_and_presence(run):
    room, alice, bob, alice_sees, bob_sees = shared_room(run)
    bob.call("PUT", "rooms", room, "typing", bob.id, body={"typing": True, "timeout": 30000})
    alice_sees.until("that bob is typing", lambda watch: watch.room(room).typing == [bob.id])
    bob.call("PUT", "rooms", room, "typing", bob.id, body={"typing": False})
    alice_sees.until("that bob stopped", lambda watch: watch.room(room).typing == [])

    event = alice.send(room, "read this")
    bob_sees.until("the message", lambda watch: watch.room(room).has(event))
    bob.call("POST", "rooms", room, "receipt", "m.read", event)
    alice_sees.until("the receipt", lambda watch: watch.room(room).receipts.get(bob.id) == event)

    bob.call("PUT", "presence", bob.id, "status", body={"presence": "unavailable", "status_msg": "at tea"})
    alice_sees.until(lambda: f"where bob is, but {alice_sees.presence.get(bob.id)}",
                     lambda watch: watch.presence.get(bob.id, {}).get("status_msg") == "at tea")


@scenario()
def aliases_directory_profiles_and_spaces(run):
    alice, bob = User(run.home, "alice"), User(run.away, "bob")
    word = alice.id.split(":")[0].removeprefix("@")
    room = alice.create("11", preset="public_chat", room_alias_name=word, name=f"Hall {word}", topic="Talk", visibility="public")
    alias = f"#{word}:{run.home.name}"
    found = bob.call("GET", "directory", "room", alias)
    expect(found["room_id"] == room and run.home.name in found["servers"], f"{alias} leads to {found}")
    missing = bob.refused("GET", "directory", "room", f"#no-{word}:{run.home.name}")
    expect(missing.status == 404, f"an alias that is not there: {missing}")

    def listed():
        rooms = bob.call("GET", "publicRooms", query={"server": run.home.name, "limit": 200})["chunk"]
        return next((each for each in rooms if each["room_id"] == room), None)
    entry = until("the room is in the directory", listed)
    expect((entry["name"], entry["canonical_alias"], entry["num_joined_members"]) == (f"Hall {word}", alias, 1), f"listed as {entry}")
    found = bob.call("POST", "publicRooms", query={"server": run.home.name}, body={"filter": {"generic_search_term": word}})["chunk"]
    expect([each["room_id"] for each in found] == [room], f"a search finds {found}")

    alice.call("PUT", "profile", alice.id, "displayname", body={"displayname": "Alice of Home"})
    until("bob's server knows her name", lambda: bob.call("GET", "profile", alice.id).get("displayname") == "Alice of Home")
    expect(bob.refused("GET", "profile", f"@nobody-at-all:{run.home.name}").status == 404, "a profile that is not there")

    space = alice.create("11", preset="public_chat", name="Space", creation_content={"type": "m.space"})
    alice.set(space, "m.space.child", {"via": [run.home.name]}, room)
    far = bob.create("11", preset="public_chat", name="Far")
    alice.set(space, "m.space.child", {"via": [run.away.name]}, far)
    secret = alice.create("11", preset="private_chat", name="Secret")
    alice.set(space, "m.space.child", {"via": [run.home.name]}, secret)
    for user, member in ((bob, "a stranger"), (alice, "the creator")):
        if user is bob:
            bob.join(space, via=run.home)
        rooms = user.call("GET", "rooms", space, "hierarchy", version="v1")["rooms"]
        wanted = {space, room, far} | ({secret} if user is alice else set())
        expect({each["room_id"] for each in rooms} == wanted, f"{member} sees {[each.get('name') for each in rooms]}")

    bob.join(alias)
    expect_same_state(room, alice, bob)
    bob.call("PUT", "profile", bob.id, "displayname", body={"displayname": "Bob of Away"})
    until("the name is in the room", lambda: alice.get(room, "m.room.member", bob.id).get("displayname") == "Bob of Away")


@scenario()
def a_moment_is_found_on_the_other_server(run):
    alice, bob = User(run.home, "alice"), User(run.away, "bob")
    room = alice.create("11", preset="public_chat")
    for number in range(5):
        event = alice.send(room, f"{number}")
    moment = alice.event(room, event)["origin_server_ts"]
    for number in range(30):
        alice.send(room, f"later {number}")
    bob.join(room, via=run.home)
    found = bob.call("GET", "rooms", room, "timestamp_to_event", query={"ts": moment, "dir": "b"}, version="v1")
    expect(found["origin_server_ts"] <= moment, f"found {found}")
    context = bob.call("GET", "rooms", room, "context", found["event_id"], query={"limit": 4})
    expect(context["event"]["event_id"] == found["event_id"], "its context")
