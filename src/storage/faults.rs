//! A child process writes until it is killed, or its disk is full: what it had acknowledged is there afterwards.
#![allow(
    clippy::disallowed_methods,
    reason = "the child is told by its environment what to do"
)]

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::*;

const FOLDER: &str = "HEARTH_TEST_STORAGE_FOLDER";
const ROUNDS: u64 = 5;
const IN_FLIGHT: usize = 50;
static ROWS: Table<(u64,), Vec<u8>> = Table::new("rows", Family::Events, b'!');
static COUNT: Table<(), Counter> = Table::new("count", Family::Users, b'!');

/// Not a test of its own: the process that is killed. Each batch writes the next row and counts it.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let store = Store::open(&Config::default(), Path::new(&folder), Clock::system()).unwrap();
    let first = rows(&store);
    let mut commits = VecDeque::new();
    for number in first.. {
        let mut batch = Batch::new();
        batch.put(&ROWS, &(number,), &vec![7; 500]);
        batch.add(&COUNT, &(), 1);
        commits.push_back((number, store.submit(batch)));
        if commits.len() > IN_FLIGHT
            && let Some((number, commit)) = commits.pop_front()
        {
            commit.wait_blocking().unwrap();
            let mut output = std::io::stdout().lock();
            writeln!(output, "committed {number}")
                .and_then(|()| output.flush())
                .unwrap();
        }
    }
}

/// How many there are; they have no holes, and are as many as were counted.
fn rows(store: &Store) -> u64 {
    let snapshot = store.snapshot().unwrap();
    let mut next = 0;
    for row in snapshot.scan(ROWS.all(), Order::Forward) {
        let ((number,), _row) = row.unwrap();
        assert_eq!(number, next);
        next += 1;
    }
    let count = snapshot
        .get(&COUNT, &())
        .unwrap()
        .map_or(0, |count| count.0);
    assert_eq!(u64::try_from(count).unwrap(), next);
    next
}

fn start(folder: &Path, before: &str) -> Child {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!(
            "{before} exec \"$0\" --exact storage::faults::child --nocapture"
        ))
        .arg(program);
    command
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The numbers that the child says it has committed.
fn acknowledged(child: &mut Child) -> impl Iterator<Item = u64> + use<> {
    let output = BufReader::new(child.stdout.take().unwrap());
    // The first line follows the test runner's own words; the last may be torn.
    output
        .split(b'\n')
        .map_while(Result::ok)
        .filter_map(|line| {
            let line = String::from_utf8(line).ok()?;
            line.split_once("committed ")?.1.parse().ok()
        })
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let random = Clock::system();
    for _round in 0..ROUNDS {
        let mut child = start(folder.path(), "");
        let mut numbers = acknowledged(&mut child);
        let enough = usize::try_from(random.random_below(300)).unwrap();
        let last = numbers.by_ref().nth(enough).unwrap();
        child.kill().unwrap();
        let last = numbers.last().unwrap_or(last);
        child.wait().unwrap();
        let store = Store::open(&Config::default(), folder.path(), Clock::system()).unwrap();
        assert!(!store.was_clean());
        assert!(rows(&store) > last, "row {last} was acknowledged");
    }
}

#[test]
fn a_write_that_fails_ends_the_process_without_an_acknowledgment() {
    let folder = tempfile::tempdir().unwrap();
    // No file may become larger than some hundred kilobytes; the signal of it is ignored, so that the write fails.
    let mut child = start(folder.path(), "trap '' XFSZ; ulimit -f 600;");
    let last = acknowledged(&mut child).last().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(
        (status.code(), status.signal()),
        (Some(FAILURE_EXIT_CODE), None)
    );
    let store = Store::open(&Config::default(), folder.path(), Clock::system()).unwrap();
    assert!(rows(&store) > last, "row {last} was acknowledged");
}
