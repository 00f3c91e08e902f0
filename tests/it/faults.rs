//! A server process that is killed, asked to stop, or runs out of disk: what it had answered stays true.

mod follower;
mod line;
mod person;
mod process;

use std::{sync::Arc, time::Duration};

use hearth::clock::Clock;
use reqwest::Method;
use serde_json::json;

use self::{
    line::Line,
    person::{Person, World},
    process::{Installation, PATIENCE, Process},
};

const ROUNDS: u64 = 20;
/// With `SLOW_TESTS`; another number with `HEARTH_CRASH_ROUNDS`.
const SLOW_ROUNDS: u64 = 200;
const PEOPLE: usize = 5;
/// The server is killed within this time.
const LIFE_MS: u64 = 1_000;

fn rounds() -> u64 {
    if let Ok(rounds) = std::env::var("HEARTH_CRASH_ROUNDS") {
        return rounds.parse().expect("HEARTH_CRASH_ROUNDS is a number");
    }
    match std::env::var_os("SLOW_TESTS") {
        Some(_) => SLOW_ROUNDS,
        None => ROUNDS,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_answered_is_lost_when_the_server_is_killed() {
    let installation = Installation::new();
    let world = Arc::new(World::default());
    let mut server = installation.start().await;
    let mut people = Vec::new();
    for number in 0..PEOPLE {
        let line = Line::new(server.http.clone());
        people.push(Person::new(&line, &format!("person{number}")).await);
    }
    for round in 0..rounds() {
        people = live_and_die(&mut server, people, &world).await;
        // One time the files are looked at as the killed process has left them, one time the next process finds them so.
        if round % 2 == 0 {
            installation.check();
        }
        server = installation.start().await;
        if round % 2 == 1 {
            installation.check();
        }
        let line = Line::new(server.http.clone());
        for person in &mut people {
            person.verify(&line, &world).await;
        }
        let events = world.events();
        for person in &mut people {
            // What the others have sent again because they had no answer.
            person.follower.catch_up(&line).await;
            person.verify_seen(&events);
        }
    }
    let sent = world.events().len();
    println!("{sent} events acknowledged in {} rounds", rounds());
    assert!(sent > 10, "hardly anything was sent");
}

/// People use the server until it is killed at some moment.
async fn live_and_die(
    server: &mut Process,
    people: Vec<Person>,
    world: &Arc<World>,
) -> Vec<Person> {
    let line = Line::new(server.http.clone());
    let lives: Vec<_> = people
        .into_iter()
        .map(|person| {
            let (line, world) = (line.clone(), Arc::clone(world));
            tokio::spawn(async move { person.live(line, &world).await })
        })
        .collect();
    let moment = Duration::from_millis(Clock::system().random_below(LIFE_MS));
    tokio::time::sleep(moment).await;
    line.cut();
    server.kill();
    let mut people = Vec::new();
    for life in lives {
        let ended = tokio::time::timeout(PATIENCE, life).await;
        people.push(ended.expect("requests end").expect("no assertion failed"));
    }
    people
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_ends_the_server_before_it_answers() {
    let installation = Installation::new();
    let world = Arc::new(World::default());
    // No file may become larger than some hundred kilobytes; the signal of it is ignored, so that the write fails.
    let mut server = installation
        .start_after("trap '' XFSZ; ulimit -f 1000;")
        .await;
    let line = Line::new(server.http.clone());
    let person = Person::new(&line, "person").await;
    line.cut();
    let living = person.live(line, &world);
    let person = tokio::time::timeout(PATIENCE, living).await;
    let mut person = person.expect("the server ends");
    assert_eq!(
        server.ended().await.code(),
        Some(74),
        "{}",
        installation.log()
    );

    let server = installation.start().await;
    person.verify(&Line::new(server.http.clone()), &world).await;
    person.verify_seen(&world.events());
    installation.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_asked_to_stop_answers_who_waits_and_ends() {
    let installation = Installation::new();
    let mut server = installation.start().await;
    let line = Line::new(server.http.clone());
    let register = async |name: &str| {
        let body = json!({ "username": name, "password": "correct horse", "auth": { "type": "m.login.dummy" } });
        let path = "/_matrix/client/v3/register";
        let answer = line.post(path, "", &body).await;
        answer
            .expect("nobody kills the server")
            .text("access_token")
    };
    let get = |path: String, token: String| {
        let line = line.clone();
        async move {
            let answer = line.request(Method::GET, &path, &token, None).await;
            answer.expect("nobody kills the server")
        }
    };
    let bob = register("bob").await;
    let before = get("/_matrix/client/v3/sync".to_owned(), bob).await;
    let before = before.text("next_batch");
    let token = register("alice").await;
    // A new device is told a moment after it is there, and would wake its own user.
    let changes = format!("/_matrix/client/v3/keys/changes?from={before}&to={before}");
    let is_told = async {
        while get(changes.clone(), token.clone()).await.ok()["changed"] == json!([]) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_told)
        .await
        .expect("her device is told");
    let sync = |query: String| {
        let (line, token) = (line.clone(), token.clone());
        async move {
            let path = format!("/_matrix/client/v3/sync?{query}");
            let answer = line.request(Method::GET, &path, &token, None).await;
            answer.expect("an answer").text("next_batch")
        }
    };
    let since = sync(String::new()).await;

    let waiting = tokio::spawn(sync(format!("since={since}&timeout=60000")));
    server.has_metric("hearth_sync_waiting 1").await;
    assert!(!waiting.is_finished());
    let asked = tokio::time::Instant::now();
    server.terminate();

    let answered = tokio::time::timeout(PATIENCE, waiting).await;
    let answered = answered.expect("in time").expect("an answer");
    // After the tilde stands what is never stored: that she is online may have been told meanwhile.
    let position = |token: &str| token.split('~').next().map(str::to_owned);
    assert_eq!(position(&answered), position(&since));
    assert_eq!(server.ended().await.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(10));
}
