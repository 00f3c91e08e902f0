//! A server in a process of its own, on a folder that outlives it.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// A process that has not started, answered or ended after this time never will.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What every server here is started with. Tokens live longer than the test, which may take a quarter of an hour.
const SETTINGS: &str = r#"
[database]
durability = "full"
[registration]
mode = "open"
i_accept_open_registration = true
[accounts]
access_token_ttl = "1d"
[accounts.password]
min_score = 0
m_cost = 64
t_cost = 1
[rate_limits]
login = "off"
registration = "off"
message = "off"
join = "off"
invite = "off"
profile = "off"
"#;

/// A folder with the data and the configuration of a server.
pub(super) struct Installation {
    folder: TempDir,
}

impl Installation {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let installation = Self { folder };
        let config = format!(
            "listeners = [{{ bind = \"unix:{}\", resources = [\"client\", \"health\", \"metrics\"] }}]\n\
             [server]\nname = \"hearth.test\"\ndata_dir = \"{}\"\n{SETTINGS}",
            installation.socket().display(),
            installation.path("data").display()
        );
        std::fs::write(installation.path("hearth.toml"), config).expect("a file");
        installation
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("public.sock")
    }

    /// Starts the server by a shell that runs `before` first, and waits until it answers.
    pub(super) async fn start_after(&self, before: &str) -> Process {
        // What a killed process leaves behind would look like a server that listens.
        let _nothing_there = std::fs::remove_file(self.socket());
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .expect("a file");
        let child = self
            .shell(&format!("{before} exec \"$0\" --config \"$1\" serve"))
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("the binary runs");
        let http = reqwest::Client::builder()
            .unix_socket(self.socket())
            .timeout(PATIENCE)
            .no_proxy()
            .build()
            .expect("a client");
        let mut process = Process { child, http };
        let started = Instant::now();
        while !process.answers().await {
            if let Some(status) = process.child.try_wait().expect("a child") {
                panic!("the server ended when it started: {status}\n{}", self.log());
            }
            assert!(
                started.elapsed() < PATIENCE,
                "no answer from the server\n{}",
                self.log()
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        process
    }

    pub(super) async fn start(&self) -> Process {
        self.start_after("").await
    }

    /// `hearth db check`: through the socket of a running server, or on the files.
    #[track_caller]
    pub(super) fn check(&self) {
        let checked = self
            .shell("exec \"$0\" --config \"$1\" db check")
            .output()
            .expect("the binary runs");
        assert!(
            checked.status.success(),
            "{}{}{}",
            String::from_utf8_lossy(&checked.stdout),
            String::from_utf8_lossy(&checked.stderr),
            self.log()
        );
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(script)
            .arg(env!("CARGO_BIN_EXE_hearth"))
            .arg(self.path("hearth.toml"))
            .env_remove("HEARTH_CONFIG")
            .stdin(Stdio::null())
            .current_dir(self.folder.path());
        command
    }

    /// What the server last said.
    pub(super) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// A running server. Dropping it kills it.
pub(super) struct Process {
    child: Child,
    pub(super) http: reqwest::Client,
}

impl Process {
    async fn answers(&self) -> bool {
        let request = self.http.get("http://hearth.test/_matrix/client/versions");
        request
            .send()
            .await
            .is_ok_and(|answer| answer.status() == 200)
    }

    /// Waits until the page of metrics has this line.
    pub(super) async fn has_metric(&self, line: &str) {
        let started = Instant::now();
        loop {
            let request = self.http.get("http://hearth.test/metrics");
            let page = request.send().await.expect("an answer").text().await;
            if page.expect("text").lines().any(|found| found == line) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "there is no `{line}`");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// No moment to finish anything.
    pub(super) fn kill(&mut self) {
        self.child
            .kill()
            .expect("the server runs until it is killed");
        let status = self.child.wait().expect("a child");
        assert_eq!(status.code(), None, "the server ended before it was killed");
    }

    /// Asks it to stop.
    pub(super) fn terminate(&self) {
        let status = Command::new("kill")
            .arg(self.child.id().to_string())
            .status()
            .expect("kill runs");
        assert!(status.success());
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "the server does not end");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _killed = self.child.kill().is_ok();
        let _ended = self.child.wait().is_ok();
    }
}
