//! What is read, what wins, and what is said about mistakes.

use std::collections::BTreeMap;

use super::*;

fn load(file: &str, environment: &[(&str, &str)], overrides: &[&str]) -> Result<Loaded, Problems> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("hearth.toml");
    std::fs::write(&path, file).expect("a file");
    let environment: BTreeMap<String, String> = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Sources {
        files: vec![path],
        environment,
        overrides: overrides.iter().map(|text| (*text).to_owned()).collect(),
    }
    .load()
}

fn problems(file: &str) -> Vec<String> {
    match load(file, &[], &[]) {
        Ok(_) => Vec::new(),
        Err(problems) => problems
            .0
            .iter()
            .map(|problem| {
                let text = problem.to_string();
                text.split_once("hearth.toml:")
                    .map_or(text.clone(), |(_, rest)| rest.to_owned())
            })
            .collect(),
    }
}

#[test]
fn a_name_is_all_that_is_needed() {
    let loaded =
        load("[server]\nname = \"example.org\"\n", &[], &[]).expect("a good configuration");
    assert_eq!(loaded.config.server_name(), "example.org");
    assert_eq!(loaded.config.base_url(), "https://example.org");
}

#[test]
fn flags_win_over_the_environment_and_that_over_files() {
    let file = "[server]\nname = \"file.example\"\nbase_url = \"https://file.example\"\ndata_dir = \"/file\"\n";
    let environment = [
        ("HEARTH__SERVER__NAME", "env.example"),
        ("HEARTH__SERVER__BASE_URL", "https://env.example"),
    ];
    let loaded =
        load(file, &environment, &["server.name=flag.example"]).expect("a good configuration");
    assert_eq!(loaded.config.server_name(), "flag.example");
    assert_eq!(loaded.config.base_url(), "https://env.example");
    assert_eq!(loaded.config.server.data_dir, PathBuf::from("/file"));
}

#[test]
fn lists_and_tables_come_from_the_environment_as_toml() {
    let environment = [
        ("HEARTH__SERVER__NAME", "example.org"),
        (
            "HEARTH__LISTENERS",
            "[{ bind = \"127.0.0.1:0\", resources = [\"client\"] }]",
        ),
        (
            "HEARTH__RATE_LIMITS__LOGIN",
            "{ rate = \"1/s\", burst = 3 }",
        ),
        ("HEARTH__RATE_LIMITS__MESSAGE", "\"off\""),
    ];
    let loaded = load("", &environment, &[]).expect("a good configuration");
    assert_eq!(loaded.config.listeners.len(), 1);
    assert_eq!(loaded.config.rate_limits.message, rate_limits::Limit::Off);
}

#[test]
fn all_problems_are_told_at_once_with_their_places() {
    let file = "[server]\nnam = \"example.org\"\n\n[log]\nslow_request = 5\nformat = \"xml\"\n\n[rate_limits]\nlogin = \"often\"\n";
    assert_eq!(
        problems(file),
        [
            "6:1: log.format: \"xml\" is not right: expected one of \"auto\", \"pretty\", \"json\"",
            "5:1: log.slow_request: 5 is not right: expected a period such as \"30s\", \"5m\", \"2h\" or \"7d\"",
            "9:1: rate_limits.login: \"often\" is not right: expected \"off\" or { rate = \"100/min\", burst = 50 }",
            "2:1: server.nam: unknown key; did you mean `name`?",
            "built-in: server.name: is required: the part of user IDs after the colon",
        ]
    );
}

#[test]
fn text_that_is_not_toml_is_told_with_its_place() {
    let found = problems("[server]\nname = \n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found
            .iter()
            .all(|text| text.starts_with("2:") && text.contains("not TOML")),
        "{found:?}"
    );
}

#[test]
fn keys_that_contradict_each_other_are_told() {
    let file = "[server]\nname = \"not a name\"\nbase_url = \"http://example.org\"\n[[listeners]]\nbind = \"127.0.0.1:0\"\ntls = true\nresources = [\"client\"]\n";
    let found = problems(file);
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn an_unknown_key_can_be_passed_over() {
    let file =
        "[server]\nname = \"example.org\"\nnonsense = 1\n[config]\nunknown_keys = \"warn\"\n";
    let loaded = load(file, &[], &[]).expect("a usable configuration");
    assert_eq!(loaded.warnings.0.len(), 1);
}

#[test]
fn a_preset_changes_only_what_is_not_set() {
    let file = "[server]\nname = \"example.org\"\npreset = \"community\"\n";
    let loaded = load(file, &[], &[]).expect("a good configuration");
    let rate_limits::Limit::Rate { burst, .. } = loaded.config.rate_limits.message else {
        panic!("limited")
    };
    assert_eq!(burst.get(), 30);
    let loaded = load(file, &[], &["rate_limits.message=\"off\""]).expect("a good configuration");
    assert_eq!(loaded.config.rate_limits.message, rate_limits::Limit::Off);
}

#[test]
fn the_example_file_is_fresh_and_every_key_is_explained() {
    let example = example();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml");
    let known = std::fs::read_to_string(path).unwrap_or_default();
    if known != example {
        std::fs::write(path, &example).expect("the example file can be written");
    }
    assert!(
        known == example,
        "config.example.toml was stale; it has been written anew"
    );
    assert!(
        load(&example, &[], &["server.name=example.org"]).is_ok(),
        "the example file can be read"
    );
    let root = schema();
    let schema = Schema::new(&root);
    for section in SECTIONS {
        assert!(
            !schema
                .get(&[section])
                .expect("a section")
                .description()
                .is_empty(),
            "{section} has no text"
        );
    }
}

#[test]
fn the_example_file_has_every_section() {
    let config = serde_json::to_value(Config::default()).expect("it can be written");
    let fields: Vec<&String> = config.as_object().expect("an object").keys().collect();
    assert_eq!(
        fields.len(),
        SECTIONS.len(),
        "{fields:?} and SECTIONS differ"
    );
}

#[test]
fn a_secret_in_a_file_that_others_can_read_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("hearth.toml");
    let file = "[server]\nname = \"example.org\"\n[registration]\nshared_secret = \"hunter2\"\n";
    std::fs::write(&path, file).expect("a file");
    let with_mode = |mode: u32, overrides: &[&str]| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&path, permissions).expect("a mode");
        let overrides = overrides.iter().map(|text| (*text).to_owned()).collect();
        Sources {
            files: vec![path.clone()],
            overrides,
            ..Sources::default()
        }
        .load()
    };
    let warnings = with_mode(0o644, &[])
        .expect("only a warning")
        .warnings
        .to_string();
    assert!(
        warnings.contains("registration.shared_secret: others can read"),
        "{warnings}"
    );
    assert!(!warnings.contains("hunter2"));
    assert!(with_mode(0o644, &["config.strict_permissions=true"]).is_err());
    assert!(with_mode(0o600, &["config.strict_permissions=true"]).is_ok());
}

#[test]
fn a_secret_may_come_from_a_file_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("secret");
    std::fs::write(&path, "hunter2\n").expect("a file");
    let name = "server.name=example.org";
    let from_file = format!("registration.shared_secret_file={}", path.display());
    let loaded = load("", &[], &[name, &from_file]).expect("a good configuration");
    let secret = loaded.config.registration.shared_secret.expect("a secret");
    assert_eq!(secret.expose(), "hunter2");
    let both = load(
        "",
        &[],
        &[name, &from_file, "registration.shared_secret=other"],
    );
    assert!(both.is_err(), "one of the two must go");
}
