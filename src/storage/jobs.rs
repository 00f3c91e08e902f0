//! Jobs: long work that goes on after a restart. This keeps their rows; who does the work puts the row of each step
//! into the batch of that step.

use serde::{Deserialize, Serialize};

use super::{Batch, Cbor, Family, Order, Result, Snapshot, Table};

static JOBS: Table<(u64,), Cbor<Job>> = Table::new("jobs", Family::Meta, b'j');

/// One job and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Which code does the work, such as `rooms.purge`.
    pub kind: String,
    /// What it is about and where to go on: of the code's own making.
    pub cursor: Vec<u8>,
    pub state: JobState,
    pub progress: JobProgress,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// To be done; taken up again at every start.
    Running,
    /// Somebody has halted it.
    Paused,
    /// It cannot go on: why.
    Failed(String),
}

/// For people to see. In the unit that suits the kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobProgress {
    pub done: u64,
    /// 0 if not known.
    pub total: u64,
}

impl Job {
    pub fn new(kind: &str, cursor: Vec<u8>) -> Self {
        Self {
            kind: kind.to_owned(),
            cursor,
            state: JobState::Running,
            progress: JobProgress::default(),
        }
    }
}

impl Snapshot {
    /// All jobs that are not finished, the oldest first.
    pub fn jobs(&self) -> Result<Vec<(u64, Job)>> {
        self.scan(JOBS.all(), Order::Forward)
            .map(|row| row.map(|((id,), Cbor(job))| (id, job)))
            .collect()
    }

    pub fn job(&self, id: u64) -> Result<Option<Job>> {
        Ok(self.get(&JOBS, &(id,))?.map(|Cbor(job)| job))
    }
}

impl Batch {
    /// Adds a job under `id`, a random number ([`crate::clock::Clock::random_u64`]); refused if there is one.
    pub fn add_job(&mut self, id: u64, job: Job) {
        self.expect(&JOBS, &(id,), None);
        self.put(&JOBS, &(id,), &Cbor(job));
    }

    /// Notes how far a job is.
    pub fn put_job(&mut self, id: u64, job: Job) {
        self.put(&JOBS, &(id,), &Cbor(job));
    }

    /// The job is done, or given up: forgets it.
    pub fn finish_job(&mut self, id: u64) {
        self.delete(&JOBS, &(id,));
    }
}
