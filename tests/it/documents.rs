//! What the documents refer to exists: files, headings, tests and settings.

use std::fs;
use std::path::{Path, PathBuf};

use highwater::config::table;

use crate::support::tree::{files, root};

/// Those of the root directory, and of `docs`.
fn documents() -> Vec<PathBuf> {
    let mut found = files(&["docs"], ".md");
    let beside = fs::read_dir(root()).expect("the root can be listed").flatten();
    found.extend(
        beside
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "md")),
    );
    assert!(found.len() > 15, "the documents were not found: {found:?}");
    found
}

/// A document's text without its blocks of code.
fn prose(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a document can be read");
    text.split("\n```").step_by(2).collect::<Vec<_>>().join("\n")
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading
        .trim()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Why a link of this document leads nowhere.
fn broken(document: &Path, link: &str) -> Option<String> {
    let (path, heading) = link.split_once('#').unwrap_or((link, ""));
    let target = match path {
        "" => document.to_owned(),
        path => document.parent().expect("a directory").join(path),
    };
    if !target.exists() {
        return Some(format!("{}: there is no {link}", document.display()));
    }
    let is_there = || {
        prose(&target)
            .lines()
            .any(|line| line.starts_with('#') && anchor(line.trim_start_matches('#')) == heading)
    };
    (!heading.is_empty() && !is_there()).then(|| format!("{}: no heading for {link}", document.display()))
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut wrong = Vec::new();
    let mut links = 0;
    for document in documents() {
        for rest in prose(&document).split("](").skip(1) {
            let link = rest.split(')').next().unwrap_or_default();
            if !link.contains("://") {
                links += 1;
                wrong.extend(broken(&document, link));
            }
        }
    }
    assert!(links > 80, "only {links} links were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[test]
fn the_tests_that_guarantees_name_exist() {
    let sources = files(&["src", "tests/it"], ".rs");
    let sources: Vec<String> = sources
        .iter()
        .map(|path| fs::read_to_string(path).expect("a source can be read"))
        .collect();
    let text = fs::read_to_string(root().join("docs/guarantees.md")).expect("guarantees.md can be read");
    let mut missing = Vec::new();
    let mut tests = 0;
    // Each paragraph or item ends at an empty line or at the next item.
    for named in text.split("Tested by").skip(1) {
        let named = named.split("\n\n").next().unwrap_or_default();
        let named = named.split("\n- ").next().unwrap_or_default();
        for name in named
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|name| name.chars().all(is_of_a_name))
        {
            tests += 1;
            if !sources.iter().any(|source| source.contains(&format!("fn {name}("))) {
                missing.push(name);
            }
        }
    }
    assert!(tests > 100, "only {tests} tests were found");
    assert!(
        missing.is_empty(),
        "guarantees.md names tests that do not exist: {missing:?}"
    );
}

#[test]
fn the_settings_of_the_example_in_the_readme_exist() {
    let text = fs::read_to_string(root().join("README.md")).expect("README.md can be read");
    let (_, example) = text.split_once("```\nport ").expect("the example begins with the port");
    let (example, _) = example.split_once("\n```").expect("the example ends");
    for line in format!("port {example}")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let name = line.split(' ').next().unwrap_or_default();
        assert!(
            table::place(name).is_some(),
            "README.md sets {name}, which is no setting"
        );
    }
}
