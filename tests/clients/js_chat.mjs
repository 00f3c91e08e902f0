// Element Web's engine, matrix-js-sdk, holds a conversation on a homeserver: each step of it asserted from the other side.
//
// usage: BASE_URL=http://127.0.0.1:8008 [REGISTRATION_TOKEN=…] node js_chat.mjs
//
// Three clients run `startClient` with threads and lazy loading: alice, bob, and bob's second device, which sends
// nothing, so that all it shows comes from the server. A step waits until what it wants has come down a sync, at most
// CLIENTS_DEADLINE seconds, never for a fixed time. Prints `ok` or `not ok` a step; ends with status 1 at the first
// failure, since each step builds on the ones before.

import { randomBytes } from "node:crypto";

// The SDK wants Node 22; on Node 20 this is all that it lacks.
Promise.withResolvers ??= function () {
    let resolve, reject;
    const promise = new this((res, rej) => ([resolve, reject] = [res, rej]));
    return { promise, resolve, reject };
};
// Only the steps are told, unless CLIENTS_VERBOSE is set; the SDK's loggers take the console as it is when they load.
const tell = (line) => process.stdout.write(`${line}\n`);
if (!process.env.CLIENTS_VERBOSE) {
    for (const method of ["trace", "debug", "log", "info", "warn", "error"]) console[method] = () => {};
}
const sdk = await import("matrix-js-sdk");
const { ClientEvent, Direction, EventType, MsgType, NotificationCountType, ReceiptType, RelationType } = sdk;

const baseUrl = process.env.BASE_URL.replace(/\/+$/, "");
const token = process.env.REGISTRATION_TOKEN;
const deadlineMs = Number(process.env.CLIENTS_DEADLINE ?? 30) * 1000;
const messageCount = Number(process.env.CLIENTS_MESSAGES ?? 510);
const password = "correct horse battery staple";
const pollMs = 50;

class Failed extends Error {}

function check(condition, expectation) {
    if (!condition) throw new Failed(expectation);
}

function checkEqual(got, wanted, what) {
    const [g, w] = [JSON.stringify(got), JSON.stringify(wanted)];
    check(g === w, `${what}: ${w} expected, got ${g}`);
}

/** Waits until `look` gives something, and gives that back. `show` tells what was there instead. */
async function until(what, look, show = () => "") {
    const end = Date.now() + deadlineMs;
    for (;;) {
        const found = await look();
        if (found) return found;
        check(Date.now() < end, `waited ${deadlineMs / 1000} s in vain for: ${what} ${show()}`);
        await new Promise((resolve) => setTimeout(resolve, pollMs));
    }
}

/** The error that `call` fails with; a success is a failure here. */
async function refused(call, errcode) {
    const error = await call.then(
        (answer) => new Failed(`${errcode} expected, got ${JSON.stringify(answer)}`),
        (error) => error,
    );
    check(error.errcode === errcode, `${errcode} expected, got ${error.errcode ?? error}`);
}

async function register(name) {
    const client = sdk.createClient({ baseUrl });
    const username = `js-${name}-${randomBytes(4).toString("hex")}`;
    check(await client.isUsernameAvailable(username), `${username} should be available`);
    const body = { username, password, inhibit_login: true };
    // The first call asks for the flows; the second goes through one.
    const flows = await client.registerRequest(body).then(
        () => check(false, "registration without auth should be answered 401"),
        (error) => error.data,
    );
    check(Array.isArray(flows?.flows), `flows expected, got ${JSON.stringify(flows)}`);
    const { session } = flows;
    const auth = token ? { type: "m.login.registration_token", token, session } : { type: "m.login.dummy", session };
    let answer = await client.registerRequest({ ...body, auth }).catch((error) => {
        if (error.httpStatus === 401 && token) return null;
        throw error;
    });
    answer ??= await client.registerRequest({ ...body, auth: { type: "m.login.dummy", session } });
    check(!(await client.isUsernameAvailable(username)), `${username} should be in use now`);
    return answer.user_id;
}

/** Logs in and syncs; ends once the SDK says that it is PREPARED. */
async function start(userId) {
    const login = await sdk.createClient({ baseUrl }).loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: userId },
        password,
        initial_device_display_name: "js",
    });
    checkEqual(login.user_id, userId, "user_id of the login");
    const client = sdk.createClient({
        baseUrl,
        userId,
        accessToken: login.access_token,
        deviceId: login.device_id,
        timelineSupport: true,
    });
    const states = [];
    client.on(ClientEvent.Sync, (state) => states.push(state));
    await client.startClient({ initialSyncLimit: 20, threadSupport: true, lazyLoadMembers: true, pollTimeout: 20000 });
    await until(`PREPARED of ${userId}`, () => states.includes("PREPARED"), () => `(states: ${states})`);
    client.syncStates = states;
    return client;
}

let alice, bob, bob2, roomId, first, root;
const replies = [];

const room = (client) => client.getRoom(roomId);

/** The event once it is in a timeline (main or thread) of this client. */
const seen = (client, eventId) =>
    until(`event ${eventId} at ${client.getDeviceId()}`, () => room(client)?.findEventById(eventId));

/** The event as the server has sent it to this client: what one sends oneself is first shown without having been sent. */
const confirmed = (client, eventId) =>
    until(`event ${eventId} back from the server`, () => {
        const event = room(client)?.findEventById(eventId);
        return event && event.status === null && event;
    });

async function say(client, body, more = {}, threadId = null) {
    const answer = await client.sendMessage(roomId, threadId, { msgtype: MsgType.Text, body, ...more });
    return answer.event_id;
}

const total = (client) => room(client).getRoomUnreadNotificationCount(NotificationCountType.Total);
const counts = (client) => ({
    all: room(client).getUnreadNotificationCount(NotificationCountType.Total),
    main: total(client),
    thread: room(client).getThreadUnreadNotificationCount(root, NotificationCountType.Total),
    highlights: room(client).getUnreadNotificationCount(NotificationCountType.Highlight),
});

async function unread(client, wanted) {
    const same = () => JSON.stringify(counts(client)) === JSON.stringify(wanted);
    await until(`unread ${JSON.stringify(wanted)}`, same, () => `(now ${JSON.stringify(counts(client))})`);
}

const steps = {
    async "three clients register, log in and reach PREPARED"() {
        const [a, b] = [await register("alice"), await register("bob")];
        [alice, bob, bob2] = await Promise.all([start(a), start(b), start(b)]);
        checkEqual((await alice.whoami()).user_id, alice.getUserId(), "whoami");
        check(alice.pushRules?.global?.override?.length > 0, "push rules should have come with the start");
    },

    async "alice creates a room, names it and invites bob"() {
        await alice.setDisplayName("Alice 🐇");
        const created = await alice.createRoom({
            preset: "private_chat",
            name: "The burrow",
            topic: "Carrots",
            invite: [bob.getUserId()],
        });
        roomId = created.room_id;
        await until("the room at alice's", () => room(alice)?.getMyMembership() === "join");
        for (const client of [bob, bob2]) {
            await until("the invite", () => room(client)?.getMyMembership() === "invite");
            checkEqual(room(client).name, "The burrow", "name of the invited room");
        }
    },

    async "bob joins, and both see each other with names"() {
        await bob.joinRoom(roomId);
        for (const client of [bob, bob2]) await until("the join", () => room(client).getMyMembership() === "join");
        await until("bob among the members", () => room(alice).getMember(bob.getUserId())?.membership === "join");
        await room(bob).loadMembersIfNeeded();
        checkEqual(room(bob).getMember(alice.getUserId())?.name, "Alice 🐇", "alice's name at bob's");
        checkEqual(room(bob).getJoinedMemberCount(), 2, "joined members");
        checkEqual((await bob.getJoinedRooms()).joined_rooms, [roomId], "joined_rooms");
    },

    async "they chat; a rich reply names its event"() {
        first = await say(alice, "Hello bob");
        checkEqual((await seen(bob, first)).getContent().body, "Hello bob", "body");
        const answer = await say(bob, "Hello alice", { "m.relates_to": { "m.in_reply_to": { event_id: first } } });
        checkEqual((await seen(alice, answer)).replyEventId, first, "replyEventId");
        await confirmed(alice, first);
        checkEqual(room(alice).getLiveTimeline().getEvents().at(-1).getId(), answer, "last event of the live timeline");
    },

    async "alice edits; bob sees the new text, and so does a client that comes later"() {
        const edit = await say(alice, "* Hello Bob!", {
            "m.new_content": { msgtype: MsgType.Text, body: "Hello Bob!" },
            "m.relates_to": { rel_type: RelationType.Replace, event_id: first },
        });
        for (const client of [bob, bob2]) {
            const event = await seen(client, first);
            await until("the edited text", () => event.getContent().body === "Hello Bob!");
            checkEqual(event.replacingEventId(), edit, "replacingEventId");
        }
        const fetched = new sdk.MatrixEvent(await bob.fetchRoomEvent(roomId, first));
        const bundled = fetched.getServerAggregatedRelation(RelationType.Replace);
        checkEqual(bundled?.event_id, edit, "bundled m.replace of GET event");
    },

    async "bob reacts; alice sees the reaction counted"() {
        const relation = { rel_type: RelationType.Annotation, event_id: first, key: "🥕" };
        await bob.sendEvent(roomId, EventType.Reaction, { "m.relates_to": relation });
        const reactions = () => room(alice).relations.getChildEventsForEvent(first, RelationType.Annotation, EventType.Reaction);
        const found = await until("the reaction", () => reactions()?.getSortedAnnotationsByKey()?.[0]);
        checkEqual([found[0], found[1].size], ["🥕", 1], "annotations by key");
        const related = await alice.relations(roomId, first, RelationType.Annotation, EventType.Reaction);
        checkEqual(related.events.map((e) => e.getSender()), [bob.getUserId()], "relations endpoint");
    },

    async "bob opens a thread, alice replies in it"() {
        root = await say(alice, "What shall we eat?");
        // A client that opens a thread makes it first, as Element does; the others learn of it by sync.
        room(bob).createThread(root, await seen(bob, root), [], true);
        for (const client of [bob, alice, bob]) {
            replies.push(await say(client, `thread ${replies.length}`, {}, root));
            await seen(alice, replies.at(-1));
            await seen(bob, replies.at(-1));
        }
        for (const client of [alice, bob, bob2]) {
            const thread = await until("the thread", () => room(client).getThread(root));
            // Not `thread.length`: the SDK counts a reply twice that arrives while it fetches the root.
            const ids = () => thread.events.map((event) => event.getId()).filter((id) => id !== root);
            const whole = () => JSON.stringify(ids()) === JSON.stringify(replies);
            await until(`the replies ${replies}`, whole, () => `(now ${ids()})`);
            await until("the last reply", () => thread.replyToEvent?.getId() === replies.at(-1));
            const main = room(client).getLiveTimeline().getEvents().map((e) => e.getId());
            check(!replies.some((id) => main.includes(id)), "a reply of the thread is in the main timeline");
        }
        const list = await alice.createThreadListMessagesRequest(roomId, null, 10);
        checkEqual(list.chunk.map((e) => e.event_id), [root], "thread list");
        const summary = list.chunk[0].unsigned["m.relations"]["m.thread"];
        checkEqual([summary.count, summary.latest_event.event_id, summary.current_user_participated], [3, replies[2], true], "summary");
    },

    async "alice redacts; the text is gone everywhere"() {
        const id = await say(alice, "I eat foxes");
        for (const client of [bob, bob2]) await seen(client, id);
        await alice.redactEvent(roomId, id, undefined, { reason: "not true" });
        for (const client of [bob, bob2]) {
            const event = await seen(client, id);
            await until("the redaction", () => event.isRedacted() && event.getContent().body === undefined);
        }
        checkEqual((await bob.fetchRoomEvent(roomId, id)).content, {}, "content of GET event");
    },

    async "state, tags and account data reach the other device"() {
        await alice.setRoomTopic(roomId, "Lettuce");
        const topic = () => room(bob2).currentState.getStateEvents(EventType.RoomTopic, "")?.getContent().topic;
        await until("the topic", () => topic() === "Lettuce");
        await refused(bob.setRoomName(roomId, "bob's"), "M_FORBIDDEN");
        await bob.setRoomTag(roomId, "m.favourite", { order: 0.5 });
        await until("the tag", () => room(bob2).tags["m.favourite"]?.order === 0.5);
        await bob.setAccountData("chat.hearth.test", { carrots: 3 });
        await until("account data", () => bob2.getAccountData("chat.hearth.test")?.getContent().carrots === 3);
    },

    async "alice sees bob type and stop"() {
        for (const typing of [true, false]) {
            await bob.sendTyping(roomId, typing, 20000);
            await until(`typing ${typing}`, () => room(alice).getMember(bob.getUserId()).typing === typing);
        }
    },

    async "many messages are sent, and bob pages all back in order"() {
        const sent = [];
        for (let number = 0; number < messageCount; number++) sent.push(await say(alice, `message ${number}`));
        await seen(bob, sent.at(-1));
        // A view of its own: the room's live timeline is what sync has brought.
        const live = room(bob).getLiveTimeline();
        for (let pages = 0; await bob.paginateEventTimeline(live, { backwards: true, limit: 100 }); pages++) {
            check(pages < messageCount, "paging back does not end");
        }
        const ids = live.getEvents().map((event) => event.getId());
        checkEqual(live.getEvents()[0].getType(), EventType.RoomCreate, "first event of the room");
        const ours = new Set(sent);
        const found = ids.filter((id) => ours.has(id));
        checkEqual(found.length, sent.length, "messages paged back");
        check(found.every((id, at) => id === sent[at]), "the messages came in another order than they were sent");
        checkEqual(new Set(ids).size, ids.length, "different events");
        check(ids.includes(first) && ids.includes(root), "the first messages should be there");
    },

    async "unread counts rise, and fall with receipts by thread, on the other device too"() {
        const newest = room(bob).getLastLiveEvent();
        await bob.sendReadReceipt(newest, ReceiptType.Read, true);
        for (const client of [bob, bob2]) await unread(client, { all: 0, main: 0, thread: 0, highlights: 0 });
        const main = [];
        for (let number = 0; number < 3; number++) main.push(await say(alice, `unread ${number}`));
        const inThread = [await say(alice, "in thread 0", {}, root), await say(alice, "in thread 1", {}, root)];
        for (const client of [bob, bob2]) await unread(client, { all: 5, main: 3, thread: 2, highlights: 0 });
        const mention = await say(alice, "you there", { "m.mentions": { user_ids: [bob.getUserId()] } });
        for (const client of [bob, bob2]) await unread(client, { all: 6, main: 4, thread: 2, highlights: 1 });

        await bob.sendReadReceipt(await seen(bob, inThread[1]));
        for (const client of [bob, bob2]) await unread(client, { all: 4, main: 4, thread: 0, highlights: 1 });
        await bob.sendReadReceipt(await seen(bob, main[1]));
        await unread(bob2, { all: 2, main: 2, thread: 0, highlights: 1 });
        await bob.sendReadReceipt(await seen(bob, mention), ReceiptType.ReadPrivate);
        for (const client of [bob, bob2]) await unread(client, { all: 0, main: 0, thread: 0, highlights: 0 });

        const bobs = bob.getUserId();
        await until("bob's receipt in the room", () => room(alice).getReadReceiptForUserId(bobs, true)?.eventId === main[1]);
        const thread = room(alice).getThread(root);
        await until("bob's receipt in the thread", () => thread.getReadReceiptForUserId(bobs, true)?.eventId === inThread[1]);
        await bob.setRoomReadMarkers(roomId, mention, await seen(bob, mention));
        await until("the public receipt", () => room(alice).getReadReceiptForUserId(bobs, true)?.eventId === mention);
        await until("the fully read marker", () => room(bob2).getAccountData("m.fully_read")?.getContent().event_id === mention);
    },

    async "a client that starts now has the room, the thread, the edit and the counts from its first sync"() {
        const last = await say(alice, "the last one");
        await unread(bob2, { all: 1, main: 1, thread: 0, highlights: 0 });
        const late = await start(bob.getUserId());
        checkEqual(room(late)?.name, "The burrow", "name of the room");
        await seen(late, last);
        await unread(late, { all: 1, main: 1, thread: 0, highlights: 0 });
        const page = await late.createMessagesRequest(roomId, null, 20, Direction.Backward);
        check(page.chunk.length === 20 && page.chunk[0].event_id === last, "the first page of the history");
        const timeline = await late.getEventTimeline(room(late).getUnfilteredTimelineSet(), first);
        const edited = timeline.getEvents().find((event) => event.getId() === first);
        checkEqual(edited.getContent().body, "Hello Bob!", "the edited text in the context of the event");
        const fetched = await late.fetchRoomEvent(roomId, root);
        checkEqual(fetched.unsigned?.["m.relations"]?.["m.thread"]?.count, 5, "replies in the bundled thread");
        late.stopClient();
        await late.logout();
    },

    async "bob leaves; alice sees it; his token ends with logout"() {
        await bob.leave(roomId);
        await until("bob's leave", () => room(alice).getMember(bob.getUserId()).membership === "leave");
        await until("the leave at bob's other device", () => room(bob2).getMyMembership() === "leave");
        await refused(bob.sendTextMessage(roomId, "ghost"), "M_FORBIDDEN");
        await bob.forget(roomId);
        // A sync that waits when its device is logged out fails, as it should.
        for (const client of [alice, bob, bob2]) {
            check(!client.syncStates.includes("ERROR"), `a sync failed on the way: ${client.syncStates}`);
        }
        await bob.logout();
        await refused(bob.whoami(), "M_UNKNOWN_TOKEN");
    },
};

let status = 0;
process.on("unhandledRejection", (error) => {
    tell(`not ok js: unhandled rejection: ${error?.stack ?? error}`);
    process.exit(1);
});
for (const [name, step] of Object.entries(steps)) {
    const begin = Date.now();
    try {
        await step();
        tell(`ok js: ${name} (${((Date.now() - begin) / 1000).toFixed(1)} s)`);
    } catch (error) {
        tell(`not ok js: ${name}: ${error.message}`);
        if (!(error instanceof Failed)) tell(error.stack);
        status = 1;
        break;
    }
}
for (const client of [alice, bob, bob2]) client?.stopClient();
process.exit(status);
