//! What a reader of the code may rely on, where the compiler does not see to it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Lines of a file, tests not counted.
const MAX_LINES: usize = 800;

/// Files that may be longer, each with the reason.
const LONGER: &[(&str, &str)] = &[(
    "src/storage/engine_suite.rs",
    "the cases of all engines, in one place",
)];

#[test]
fn every_file_opens_with_what_it_is() {
    let wrong: Vec<String> = sources()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "no `//!` at the top: {wrong:#?}");
}

#[test]
fn no_file_is_longer_than_a_reader_can_bear() {
    let too_long = |path: &str, text: &str| {
        let lines = text
            .split("\n#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default()
            .lines()
            .count();
        lines > MAX_LINES
            && !path.ends_with("tests.rs")
            && !LONGER.iter().any(|(longer, _)| *longer == path)
    };
    let wrong: Vec<String> = sources()
        .filter(|(path, text)| too_long(path, text))
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "more than {MAX_LINES} lines: {wrong:#?}");
}

#[test]
fn modules_are_named_from_the_top() {
    let marker = ["super", "super"].join("::");
    let wrong: Vec<String> = sources()
        .filter(|(_, text)| text.contains(&marker))
        .map(|(path, _)| path)
        .collect();
    assert!(
        wrong.is_empty(),
        "{marker} hides an edge between modules: {wrong:#?}"
    );
}

#[test]
fn what_is_left_to_do_has_a_number() {
    let markers = [["TO", "DO"].concat(), ["FIX", "ME"].concat()];
    let is_wrong = |line: &str| {
        markers.iter().any(|marker| {
            line.split(marker.as_str())
                .nth(1)
                .is_some_and(|rest| !rest.starts_with("(#"))
        })
    };
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        wrong.extend(
            text.lines()
                .filter(|line| is_wrong(line))
                .map(|line| format!("{path}: {}", line.trim())),
        );
    }
    assert!(wrong.is_empty(), "write it as MARKER(#12): {wrong:#?}");
}

#[test]
fn every_file_is_part_of_the_library() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut reached = BTreeSet::from([root.join("lib.rs"), root.join("main.rs")]);
    let mut waiting = vec![root.join("lib.rs")];
    while let Some(path) = waiting.pop() {
        let text = fs::read_to_string(&path).expect("a source file");
        let folder = if path.ends_with("lib.rs") {
            root.clone()
        } else {
            path.with_extension("")
        };
        for name in text.lines().filter_map(declared_module) {
            let child = folder.join(format!("{name}.rs"));
            if child.exists() && reached.insert(child.clone()) {
                waiting.push(child);
            }
        }
    }
    let lost: Vec<PathBuf> = rust_files(&root)
        .into_iter()
        .filter(|path| !reached.contains(path))
        .collect();
    assert!(lost.is_empty(), "no `mod` leads to {lost:#?}");
}

#[test]
fn folders_stand_beside_their_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let wrong: Vec<PathBuf> = rust_files(&root)
        .into_iter()
        .filter(|path| path.ends_with("mod.rs"))
        .collect();
    assert!(wrong.is_empty(), "write x.rs beside x/: {wrong:#?}");
}

/// `pub(crate) mod name;` → `name`.
fn declared_module(line: &str) -> Option<&str> {
    let declaration = line.trim().strip_suffix(';')?;
    let (visibility, name) = declaration.split_once("mod ")?;
    let is_declaration = visibility.is_empty() || visibility.starts_with("pub");
    is_declaration.then_some(name.trim())
}

/// All code of the repository, by path.
fn sources() -> impl Iterator<Item = (String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["src", "tests/it", "benches", "fuzz"].map(|folder| root.join(folder));
    folders
        .into_iter()
        .flat_map(|folder| rust_files(&folder))
        .map(move |path| {
            let text = fs::read_to_string(&path).expect("a source file");
            (
                path.strip_prefix(root)
                    .expect("it is inside")
                    .to_string_lossy()
                    .into_owned(),
                text,
            )
        })
}

/// Every Rust file below `folder`; none if there is no such folder.
pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() && !path.ends_with("target") {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}
