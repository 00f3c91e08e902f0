"""Two matrix-nio bots chat on a homeserver: each step of a conversation, asserted from the other side.

usage: BASE_URL=http://127.0.0.1:8008 [REGISTRATION_TOKEN=…] nio_chat.py

Both bots run `sync_forever` as bots do; a step waits until what it wants has come down a sync, at most DEADLINE
seconds, never for a fixed time. Prints `ok` or `not ok` a step; ends with status 1 at the first failure, since each
step builds on the ones before.
"""

import asyncio
import os
import secrets
import sys
import time
import traceback

import nio

BASE_URL = os.environ["BASE_URL"].rstrip("/")
TOKEN = os.environ.get("REGISTRATION_TOKEN")
DEADLINE = float(os.environ.get("CLIENTS_DEADLINE", "30"))
MESSAGES = int(os.environ.get("CLIENTS_MESSAGES", "510"))
PASSWORD = "correct horse battery staple"


class Failed(Exception):
    """A step did not hold; the text says what was expected and what was seen."""


def check(condition, expectation):
    if not condition:
        raise Failed(expectation)


async def answered(call, kind):
    """The answer to an SDK call, which must be of the class `kind`."""
    response = await asyncio.wait_for(call, DEADLINE)
    check(isinstance(response, kind), f"expected {kind.__name__}, got {response!r}")
    return response


class Bot:
    """A client in its sync loop, and everything that the loop has brought."""

    def __init__(self, name):
        self.name = name
        self.client = None
        self.events = []
        self.invites = []
        self.ephemeral = []
        self.left = set()
        self.loop = None
        self.changed = asyncio.Condition()

    async def register(self, username):
        client = nio.AsyncClient(BASE_URL)
        if TOKEN:
            call = client.register_with_token(username, PASSWORD, TOKEN, "nio")
        else:
            call = client.register(username, PASSWORD, "nio")
        response = await answered(call, nio.RegisterResponse)
        self.user_id = response.user_id
        await client.logout()
        await client.close()

    async def login(self):
        self.client = nio.AsyncClient(BASE_URL, self.user_id)
        await answered(self.client.login(PASSWORD, "nio bot"), nio.LoginResponse)

    def start(self):
        self.client.add_event_callback(self._on_invite, nio.InviteMemberEvent)
        self.client.add_event_callback(self._on_event, nio.Event)
        self.client.add_ephemeral_callback(self._on_ephemeral, (nio.TypingNoticeEvent, nio.ReceiptEvent))
        self.client.add_response_callback(self._on_sync, nio.SyncResponse)
        self.loop = asyncio.create_task(self.client.sync_forever(timeout=30000, full_state=True))

    async def stop(self):
        if self.loop:
            self.loop.cancel()
            await asyncio.gather(self.loop, return_exceptions=True)
        if self.client:
            await self.client.close()

    async def _on_invite(self, room, event):
        self.invites.append((room.room_id, event))

    async def _on_event(self, room, event):
        self.events.append((room.room_id, event))

    async def _on_ephemeral(self, room, event):
        self.ephemeral.append((room.room_id, event))

    async def _on_sync(self, response):
        self.left |= set(response.rooms.leave)
        async with self.changed:
            self.changed.notify_all()

    async def wait(self, what, look):
        """Waits until `look()` gives something after a sync, and gives that back."""

        async def loop():
            async with self.changed:
                while not (found := look()):
                    if self.loop and self.loop.done():
                        raise Failed(f"{self.name}'s sync loop has ended: {self.loop.exception()!r}")
                    # The loop may end without a last sync, so it is looked at now and then.
                    try:
                        await asyncio.wait_for(self.changed.wait(), 1)
                    except TimeoutError:
                        pass
                return found

        try:
            return await asyncio.wait_for(loop(), DEADLINE)
        except (TimeoutError, asyncio.TimeoutError):
            raise Failed(f"{self.name} waited {DEADLINE:.0f} s in vain for: {what}") from None

    async def sees(self, event_id, kind=nio.Event):
        """The event, once it has come down this bot's sync."""
        event = await self.wait(
            f"event {event_id}",
            lambda: next((e for _, e in self.events if e.event_id == event_id), None),
        )
        check(isinstance(event, kind), f"{event_id} should be a {kind.__name__}, is {event!r}")
        return event

    def room(self, room_id):
        return self.client.rooms.get(room_id)

    async def send(self, room_id, content, event_type="m.room.message"):
        response = await answered(self.client.room_send(room_id, event_type, content), nio.RoomSendResponse)
        return response.event_id

    async def say(self, room_id, body, **more):
        return await self.send(room_id, {"msgtype": "m.text", "body": body, **more})

    async def receipt(self, room_id, event_id, thread_id, kind=nio.api.ReceiptType.read):
        call = self.client.update_receipt_marker(room_id, event_id, kind, thread_id)
        await answered(call, nio.UpdateReceiptMarkerResponse)

    async def unread(self, room_id, count, highlights=0):
        """Waits until the room shows `count` unread events, `highlights` of them mentions."""
        room = self.room(room_id)

        def look():
            return (room.unread_notifications, room.unread_highlights) == (count, highlights)

        try:
            await self.wait(f"{count} unread, {highlights} highlights", look)
        except Failed as failed:
            now = (room.unread_notifications, room.unread_highlights)
            raise Failed(f"{failed}; the last sync said {now}") from None

    def receipts_of(self, user_id):
        found = [r for _, e in self.ephemeral if isinstance(e, nio.ReceiptEvent) for r in e.receipts]
        return [r for r in found if r.user_id == user_id]


class Conversation:
    """The steps, in order. Methods named `step_…` run as they stand; the first line of the docstring names the step."""

    def __init__(self):
        self.alice = Bot("alice")
        self.bob = Bot("bob")
        self.room_id = None
        self.first = None
        self.root = None
        self.replies = []
        self.last = None

    async def step_register(self):
        """both register, log out, and log in by password"""
        for bot in (self.alice, self.bob):
            await bot.register(f"nio-{bot.name}-{secrets.token_hex(4)}")
            await bot.login()
            bot.start()
        for bot in (self.alice, self.bob):
            await bot.wait("the first sync", lambda bot=bot: bot.client.next_batch)
            devices = await answered(bot.client.devices(), nio.DevicesResponse)
            check(
                [d.id for d in devices.devices] == [bot.client.device_id],
                f"one device, {bot.client.device_id}, expected, got {devices.devices}",
            )

    async def step_wrong_password(self):
        """a wrong password is refused with M_FORBIDDEN"""
        client = nio.AsyncClient(BASE_URL, self.alice.user_id)
        response = await answered(client.login("not the password"), nio.LoginError)
        await client.close()
        check(response.status_code == "M_FORBIDDEN", f"M_FORBIDDEN expected, got {response!r}")

    async def step_profile(self):
        """a display name is set and read by the other"""
        name = "Alice \N{RABBIT}"
        await answered(self.alice.client.set_displayname(name), nio.ProfileSetDisplayNameResponse)
        got = await answered(self.bob.client.get_displayname(self.alice.user_id), nio.ProfileGetDisplayNameResponse)
        check(got.displayname == name, f"display name {name!r} expected, got {got.displayname!r}")

    async def step_create(self):
        """alice creates a private room and invites bob"""
        call = self.alice.client.room_create(
            name="The burrow",
            topic="Carrots",
            preset=nio.RoomPreset.private_chat,
            invite=[self.bob.user_id],
        )
        self.room_id = (await answered(call, nio.RoomCreateResponse)).room_id
        await self.alice.wait("the new room", lambda: self.alice.room(self.room_id))
        room = self.alice.room(self.room_id)
        check((room.name, room.topic) == ("The burrow", "Carrots"), f"name and topic: {room.name!r}, {room.topic!r}")

    async def step_invite(self):
        """bob sees the invite with the room's name, and joins"""
        event = await self.bob.wait(
            "the invite",
            lambda: next((e for r, e in self.bob.invites if r == self.room_id and e.membership == "invite"), None),
        )
        check(event.sender == self.alice.user_id, f"the invite's sender is {event.sender}")
        invited = self.bob.client.invited_rooms[self.room_id]
        check(invited.name == "The burrow", f"the invited room's name is {invited.name!r}")
        await answered(self.bob.client.join(self.room_id), nio.JoinResponse)
        for bot in (self.alice, self.bob):
            both = {self.alice.user_id, self.bob.user_id}
            await bot.wait("two joined members", lambda bot=bot: bot.room(self.room_id) and both <= set(bot.room(self.room_id).users))
        members = await answered(self.bob.client.joined_members(self.room_id), nio.JoinedMembersResponse)
        names = {m.user_id: m.display_name for m in members.members}
        check(names.get(self.alice.user_id) == "Alice \N{RABBIT}", f"joined_members: {names}")
        rooms = await answered(self.bob.client.joined_rooms(), nio.JoinedRoomsResponse)
        check(rooms.rooms == [self.room_id], f"joined_rooms: {rooms.rooms}")

    async def step_chat(self):
        """they exchange messages, one a rich reply"""
        self.first = await self.alice.say(self.room_id, "Hello bob")
        event = await self.bob.sees(self.first, nio.RoomMessageText)
        check((event.sender, event.body) == (self.alice.user_id, "Hello bob"), f"got {event!r}")
        answer = await self.bob.say(
            self.room_id, "Hello alice", **{"m.relates_to": {"m.in_reply_to": {"event_id": self.first}}}
        )
        event = await self.alice.sees(answer, nio.RoomMessageText)
        check(event.body == "Hello alice", f"got {event!r}")
        context = await answered(self.alice.client.room_context(self.room_id, answer, limit=10), nio.RoomContextResponse)
        check(context.event.event_id == answer, f"context of {answer}: {context.event!r}")
        before = [e.event_id for e in context.events_before]
        check(self.first in before, f"context should hold {self.first} before the event, has {before}")

    async def step_txn(self):
        """a repeated transaction id gives the first event"""
        content = {"msgtype": "m.text", "body": "once"}
        ids = set()
        for _ in range(2):
            call = self.alice.client.room_send(self.room_id, "m.room.message", content, tx_id="the-same")
            ids.add((await answered(call, nio.RoomSendResponse)).event_id)
        check(len(ids) == 1, f"one event expected, got {ids}")
        await self.bob.sees(ids.pop())

    async def step_edit(self):
        """alice edits; bob sees the edit and the relation"""
        edit = await self.alice.say(
            self.room_id,
            "* Hello Bob!",
            **{
                "m.new_content": {"msgtype": "m.text", "body": "Hello Bob!"},
                "m.relates_to": {"rel_type": "m.replace", "event_id": self.first},
            },
        )
        event = await self.bob.sees(edit, nio.RoomMessageText)
        relates = event.source["content"]["m.relates_to"]
        check(relates == {"rel_type": "m.replace", "event_id": self.first}, f"m.relates_to: {relates}")
        call = self.bob.client.room_get_event_relations(self.room_id, self.first, nio.api.RelationshipType.replacement)
        found = [e.event_id async for e in call]
        check(found == [edit], f"relations: [{edit}] expected, got {found}")
        got = await answered(self.bob.client.room_get_event(self.room_id, self.first), nio.RoomGetEventResponse)
        bundled = got.event.source.get("unsigned", {}).get("m.relations", {}).get("m.replace", {}).get("event_id")
        check(bundled == edit, f"GET event should carry m.replace {edit}, has {bundled}")

    async def step_react(self):
        """bob reacts; a second equal reaction is refused"""
        content = {"m.relates_to": {"rel_type": "m.annotation", "event_id": self.first, "key": "\N{CARROT}"}}
        reaction = await self.bob.send(self.room_id, content, "m.reaction")
        event = await self.alice.sees(reaction, nio.ReactionEvent)
        check((event.reacts_to, event.key) == (self.first, "\N{CARROT}"), f"got {event!r}")
        call = self.bob.client.room_send(self.room_id, "m.reaction", content)
        again = await answered(call, nio.RoomSendError)
        check(again.status_code == "M_DUPLICATE_ANNOTATION", f"M_DUPLICATE_ANNOTATION expected, got {again!r}")

    async def step_thread(self):
        """bob opens a thread and alice replies in it"""
        self.root = await self.alice.say(self.room_id, "What shall we eat?")
        for number, bot in enumerate((self.bob, self.alice, self.bob)):
            relates = {
                "rel_type": "m.thread",
                "event_id": self.root,
                "is_falling_back": True,
                "m.in_reply_to": {"event_id": self.replies[-1] if self.replies else self.root},
            }
            self.replies.append(await bot.say(self.room_id, f"thread {number}", **{"m.relates_to": relates}))
        for bot in (self.alice, self.bob):
            for reply in self.replies:
                event = await bot.sees(reply, nio.RoomMessageText)
                check(event.source["content"]["m.relates_to"]["event_id"] == self.root, f"got {event!r}")
        roots = [e async for e in self.alice.client.room_get_threads(self.room_id)]
        check([e.event_id for e in roots] == [self.root], f"threads: {roots}")
        summary = roots[0].source["unsigned"]["m.relations"]["m.thread"]
        check(
            (summary["count"], summary["latest_event"]["event_id"]) == (3, self.replies[-1]),
            f"thread summary: {summary}",
        )
        call = self.alice.client.room_get_event_relations(
            self.room_id, self.root, nio.api.RelationshipType.thread, direction=nio.api.MessageDirection.front, limit=2
        )
        found = [e.event_id async for e in call]
        check(found == self.replies, f"thread relations in order: {self.replies} expected, got {found}")

    async def step_redact(self):
        """alice redacts; bob sees it and the event is empty"""
        event_id = await self.alice.say(self.room_id, "I eat foxes")
        await self.bob.sees(event_id)
        call = self.alice.client.room_redact(self.room_id, event_id, "not true")
        redaction = await answered(call, nio.RoomRedactResponse)
        event = await self.bob.sees(redaction.event_id, nio.RedactionEvent)
        check((event.redacts, event.reason) == (event_id, "not true"), f"got {event!r}")
        got = await answered(self.bob.client.room_get_event(self.room_id, event_id), nio.RoomGetEventResponse)
        check(isinstance(got.event, nio.RedactedEvent), f"{event_id} should be redacted, is {got.event!r}")
        check(got.event.source["content"] == {}, f"content should be empty: {got.event.source}")

    async def step_state(self):
        """alice sets state and bob reads it; bob may not"""
        put = self.alice.client.room_put_state(self.room_id, "m.room.topic", {"topic": "Lettuce"})
        await answered(put, nio.RoomPutStateResponse)
        await self.bob.wait("the topic", lambda: self.bob.room(self.room_id).topic == "Lettuce")
        got = self.bob.client.room_get_state_event(self.room_id, "m.room.topic")
        got = await answered(got, nio.RoomGetStateEventResponse)
        check(got.content.get("topic") == "Lettuce", f"topic: {got.content}")
        put = self.bob.client.room_put_state(self.room_id, "m.room.name", {"name": "bob's"})
        refused = await answered(put, nio.RoomPutStateError)
        check(refused.status_code == "M_FORBIDDEN", f"M_FORBIDDEN expected, got {refused!r}")

    async def step_typing(self):
        """alice sees bob type and stop"""
        for typing in (True, False):
            self.alice.ephemeral.clear()
            call = self.bob.client.room_typing(self.room_id, typing, timeout=20000)
            await answered(call, nio.RoomTypingResponse)
            users = [self.bob.user_id] if typing else []

            def look(users=users):
                notices = [e for r, e in self.alice.ephemeral if isinstance(e, nio.TypingNoticeEvent) and r == self.room_id]
                return notices and notices[-1].users == users

            await self.alice.wait(f"typing users {users}", look)

    async def step_many(self):
        """alice sends many messages and bob pages all back, in order"""
        sent = []
        for number in range(MESSAGES):
            sent.append(await self.alice.say(self.room_id, f"message {number}"))
        self.last = sent[-1]
        await self.bob.sees(self.last)
        found, start, pages = [], self.bob.client.next_batch, 0
        while start:
            page = await answered(
                self.bob.client.room_messages(self.room_id, start, direction=nio.api.MessageDirection.back, limit=100),
                nio.RoomMessagesResponse,
            )
            found += [e.event_id for e in page.chunk]
            pages += 1
            check(pages < MESSAGES, "paging back does not end")
            start = page.end if page.chunk else None
        check(len(found) == len(set(found)), "an event came twice in paging back")
        ours = [e for e in reversed(found) if e in set(sent)]
        check(len(ours) == len(sent), f"{len(sent)} messages sent, {len(ours)} paged back")
        check(ours == sent, "the messages came in another order than they were sent")
        check(self.first in found and self.root in found, "the room's beginning was not reached")

    async def step_unread(self):
        """counts of unread events and mentions rise, and fall with receipts by thread"""
        # The SDK sends receipts without a thread only together with the marker.
        await answered(self.bob.client.room_read_markers(self.room_id, self.last, self.last), nio.RoomReadMarkersResponse)
        await self.bob.unread(self.room_id, 0)
        main = [await self.alice.say(self.room_id, f"unread {n}") for n in range(3)]
        thread = []
        for number in range(2):
            relates = {"rel_type": "m.thread", "event_id": self.root}
            thread.append(await self.alice.say(self.room_id, f"in thread {number}", **{"m.relates_to": relates}))
        await self.bob.unread(self.room_id, 5)
        mention = await self.alice.say(
            self.room_id, "you there", **{"m.mentions": {"user_ids": [self.bob.user_id]}}
        )
        await self.bob.unread(self.room_id, 6, 1)
        await self.bob.receipt(self.room_id, thread[-1], self.root)
        await self.bob.unread(self.room_id, 4, 1)
        await self.bob.receipt(self.room_id, main[1], "main")
        await self.bob.unread(self.room_id, 2, 1)
        await self.bob.receipt(self.room_id, mention, "main", nio.api.ReceiptType.read_private)
        await self.bob.unread(self.room_id, 0)

        def seen():
            return {(r.event_id, r.thread_id) for r in self.alice.receipts_of(self.bob.user_id)}

        wanted = {(self.last, None), (thread[-1], self.root), (main[1], "main")}
        await self.alice.wait(f"bob's receipts {wanted}", lambda: wanted <= seen())
        check(mention not in {event for event, _ in seen()}, "alice has seen bob's private receipt")
        await answered(self.bob.client.room_read_markers(self.room_id, mention, mention), nio.RoomReadMarkersResponse)
        await self.alice.wait("the public receipt", lambda: mention in {event for event, _ in seen()})

    async def step_own(self):
        """what one sends oneself is not unread"""
        mine = await self.bob.say(self.room_id, "my own")
        await self.bob.sees(mine)
        await self.bob.unread(self.room_id, 0)
        await self.alice.say(self.room_id, "one more")
        await self.bob.unread(self.room_id, 1)

    async def step_leave(self):
        """bob leaves, alice sees it, and bob may not send any more"""
        await answered(self.bob.client.room_leave(self.room_id), nio.RoomLeaveResponse)
        await self.alice.wait("bob's leave", lambda: self.bob.user_id not in self.alice.room(self.room_id).users)
        await self.bob.wait("the room among those left", lambda: self.room_id in self.bob.left)
        call = self.bob.client.room_send(self.room_id, "m.room.message", {"msgtype": "m.text", "body": "ghost"})
        refused = await answered(call, nio.RoomSendError)
        check(refused.status_code == "M_FORBIDDEN", f"M_FORBIDDEN expected, got {refused!r}")
        await answered(self.bob.client.room_forget(self.room_id), nio.RoomForgetResponse)

    async def step_logout(self):
        """after logout the token is worth nothing"""
        for bot in (self.alice, self.bob):
            bot.loop.cancel()
            await asyncio.gather(bot.loop, return_exceptions=True)
            token = bot.client.access_token
            await answered(bot.client.logout(), nio.LogoutResponse)
            bot.client.access_token = token
            error = await answered(bot.client.joined_rooms(), nio.JoinedRoomsError)
            check(error.status_code == "M_UNKNOWN_TOKEN", f"M_UNKNOWN_TOKEN expected, got {error!r}")

    async def run(self):
        steps = [getattr(self, name) for name in vars(type(self)) if name.startswith("step_")]
        failed = False
        for step in steps:
            begin = time.monotonic()
            try:
                await step()
            except Exception as error:  # noqa: BLE001 — whatever it is, the step has failed
                failed = True
                print(f"not ok nio: {step.__doc__}: {error}", flush=True)
                if not isinstance(error, Failed):
                    traceback.print_exc()
                break
            print(f"ok nio: {step.__doc__} ({time.monotonic() - begin:.1f} s)", flush=True)
        await self.alice.stop()
        await self.bob.stop()
        return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(Conversation().run()))
