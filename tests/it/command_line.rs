//! The binary as an operator uses it: exit codes, commands with and without a running server.

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A server of its own folder, and the command line that speaks to it.
struct Installation {
    folder: TempDir,
}

impl Installation {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        let config = format!(
            "listeners = [{{ bind = \"unix:{}\", resources = [\"client\", \"health\"] }}]\n[server]\nname = \"hearth.test\"\ndata_dir = \"{}\"\n",
            folder.path().join("public.sock").display(),
            data.display()
        );
        std::fs::write(folder.path().join("hearth.toml"), config).expect("a file");
        Self { folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
        command
            .arg("--config")
            .arg(self.folder.path().join("hearth.toml"))
            .args(arguments);
        command
            .env_remove("HEARTH_CONFIG")
            .current_dir(self.folder.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> (i32, String) {
        outcome(&self.command(arguments).output().expect("the binary runs"))
    }

    fn serve(&self) -> Server {
        let child = self
            .command(&["serve"])
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        wait_for(&self.folder.path().join("data/admin.sock"));
        Server(child)
    }
}

/// A running server, which is stopped when it goes.
struct Server(Child);

impl Server {
    fn stop(mut self) -> i32 {
        let status = Command::new("kill")
            .arg(self.0.id().to_string())
            .status()
            .expect("kill runs");
        assert!(status.success());
        self.0
            .wait()
            .expect("it ends")
            .code()
            .expect("no signal ended it")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _killed = self.0.kill().is_ok();
    }
}

fn wait_for(path: &Path) {
    let started = Instant::now();
    while !path.exists() {
        assert!(
            started.elapsed() < PATIENCE,
            "{} does not appear",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn outcome(output: &Output) -> (i32, String) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().expect("no signal ended it"), text)
}

#[test]
fn without_a_configuration_nothing_starts() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO_BIN_EXE_hearth"))
        .env_clear()
        .current_dir(folder.path())
        .output()
        .expect("the binary runs");
    let (code, text) = outcome(&output);
    assert_eq!(code, 78);
    assert!(text.contains("server.name"), "{text}");
}

#[test]
fn a_wrong_configuration_is_told_with_its_place() {
    let installation = Installation::new();
    let (code, text) = installation.run(&["-o", "log.formt=json", "config", "check"]);
    assert_eq!(code, 78);
    assert!(
        text.contains("log.formt: unknown key; did you mean `format`?"),
        "{text}"
    );
    assert_eq!(installation.run(&["config", "check"]).0, 0);
}

#[test]
fn a_key_is_explained_and_a_value_shown_with_its_source() {
    let installation = Installation::new();
    let (code, text) = installation.run(&["config", "explain", "limits.connections"]);
    assert_eq!(code, 0);
    assert!(text.contains("default: 20000"), "{text}");
    assert_eq!(
        installation
            .run(&["config", "explain", "limits.nonsense"])
            .0,
        3
    );
    let (_, text) = installation.run(&["-o", "log.filter=debug", "config", "show"]);
    assert!(text.contains("log.filter = \"debug\"  # -o"), "{text}");
    assert!(
        text.contains("limits.connections = 20000  # built-in"),
        "{text}"
    );
}

#[test]
fn accounts_are_managed_without_a_running_server() {
    let installation = Installation::new();
    let (code, text) = installation.run(&["user", "create", "--admin", "root"]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("user: @root:hearth.test") && text.contains("password: "),
        "{text}"
    );
    assert_eq!(
        installation.run(&["user", "create", "root"]).0,
        4,
        "the name is taken"
    );
    assert_eq!(installation.run(&["user", "show", "nobody"]).0, 3);
    let (code, text) = installation.run(&["user", "demote", "@root:hearth.test"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("admin: false"), "{text}");
    assert_eq!(installation.run(&["db", "check"]).0, 0);
}

#[test]
fn accounts_are_managed_through_a_running_server() {
    let installation = Installation::new();
    let server = installation.serve();
    let (code, text) = installation.run(&["user", "create", "alice"]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = installation.run(&[
        "token",
        "create",
        "welcome",
        "--uses",
        "3",
        "--expires",
        "7d",
    ]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(installation.run(&["token", "revoke", "unknown"]).0, 3);
    let (_, text) = installation.run(&["--json", "user", "list"]);
    assert!(text.contains("\"@alice:hearth.test\""), "{text}");
    assert_eq!(server.stop(), 0, "it stops in good order");
    let (_, text) = installation.run(&["user", "list"]);
    assert!(
        text.contains("@alice:hearth.test"),
        "it is there after a restart: {text}"
    );
}

#[test]
fn two_servers_cannot_share_a_database() {
    let installation = Installation::new();
    let server = installation.serve();
    let (code, text) = installation.run(&["serve"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("did not start"), "{text}");
    assert_eq!(server.stop(), 0);
}

#[test]
fn the_first_administrator_comes_from_the_environment() {
    let installation = Installation::new();
    let password = installation.folder.path().join("password");
    std::fs::write(&password, "correct horse battery staple\n").expect("a file");
    let child = installation
        .command(&["serve"])
        .env("HEARTH_ADMIN_USER", "root")
        .env("HEARTH_ADMIN_PASSWORD_FILE", &password)
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    wait_for(&installation.folder.path().join("data/admin.sock"));
    let server = Server(child);
    let (_, text) = installation.run(&["user", "show", "root"]);
    assert!(text.contains("admin: true"), "{text}");
    assert_eq!(server.stop(), 0);
}

#[test]
fn how_another_server_is_found_is_shown_and_a_denied_address_is_not_asked() {
    let installation = Installation::new();
    let (exit, text) = installation.run(&["federation", "show", "192.0.2.1:5"]);
    assert_eq!(exit, 0, "{text}");
    for line in [
        "found_by: address",
        "endpoints: 192.0.2.1:5",
        "certificate_for: 192.0.2.1",
        "allowed: true",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    let (exit, text) = installation.run(&["federation", "ping", "127.0.0.1:5"]);
    assert_eq!(exit, 6, "{text}");
    assert!(text.contains("net.denied_ranges"), "{text}");
    let (exit, text) = installation.run(&["federation", "ping", "hearth.test"]);
    assert_eq!(exit, 4, "it does not talk to itself: {text}");
    let (exit, text) = installation.run(&["federation", "show", "not a name"]);
    assert_eq!(exit, 4, "{text}");
}

#[test]
fn a_new_signing_key_is_used_from_the_next_start_on() {
    let installation = Installation::new();
    let keys = |command: &str| -> serde_json::Value {
        let output = installation.command(&["--json", "keys", command]).output();
        let output = output.expect("the binary runs");
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let first = keys("show");
    assert_eq!(first["next"], serde_json::Value::Null);
    // Each command is a start of its own where no server runs.
    let next = keys("rotate");
    let second = keys("show");
    assert_eq!(second["current"], next["next"]);
    assert_eq!(second["old"][0]["key_id"], first["current"]);
    assert_eq!(second["old"][0]["verify_key"], first["verify_key"]);
}
