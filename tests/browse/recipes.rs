//! The recipes of docs/recipes.md do what they say: the blocks of the text itself are run, on real QEMUs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use harness::*;

/// A block to run, and what it should print.
struct Recipe {
    heading: String,
    script: String,
    expected: Option<String>,
}

fn recipes(text: &str) -> Vec<Recipe> {
    let mut recipes: Vec<Recipe> = Vec::new();
    let mut heading = String::from("the machine");
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let mut block = || -> String {
            let inside = lines.by_ref().take_while(|line| *line != "```");
            inside.map(|line| format!("{line}\n")).collect()
        };
        match line {
            "```sh" => recipes.push(Recipe {
                heading: heading.clone(),
                script: block(),
                expected: None,
            }),
            "```text" => {
                let recipe = recipes.last_mut().expect("a block to run comes first");
                assert!(recipe.expected.is_none(), "two outputs of one block: {heading}");
                recipe.expected = Some(block());
            }
            line if line.starts_with("```") => panic!("a block of an unknown kind: {line}"),
            line => {
                if let Some(title) = line.strip_prefix("## ") {
                    heading = title.to_owned();
                }
            }
        }
    }
    recipes
}

/// Whether lines are as expected, where `…` stands for any number of lines.
fn fits(lines: &[&str], expected: &[&str]) -> bool {
    match expected.split_first() {
        None => lines.is_empty(),
        Some((&"…", rest)) => (0..=lines.len()).any(|skipped| fits(&lines[skipped..], rest)),
        Some((first, rest)) => lines.first() == Some(first) && fits(&lines[1..], rest),
    }
}

#[test]
fn lines_fit() {
    assert!(fits(&["a", "b", "c"], &["a", "…", "c"]));
    assert!(fits(&["a"], &["…", "a", "…"]));
    assert!(!fits(&["a", "b"], &["a"]));
    assert!(!fits(&["b"], &["…", "a", "…"]));
}

#[track_caller]
fn run(which: Which) {
    const MARK: &str = "=== end of block";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes.md");
    let recipes = recipes(&fs::read_to_string(file).expect("read the recipes"));
    assert!(recipes.len() > 8, "only {} blocks", recipes.len());
    let session = Session::new();
    let place = tempfile::tempdir().expect("a folder for a program");
    symlink(which.binary(), place.path().join("qemu-system-x86_64")).expect("name QEMU as it is called");
    // In an empty folder of its own: what a reader has.
    let mut script = format!("PATH={}:$PATH; mkdir empty; cd empty\n", place.path().display());
    for recipe in &recipes {
        script.push_str(&recipe.script);
        script.push_str(&format!("echo '{MARK}' $?\n"));
    }
    let running = session.start(&script);
    let out = running.finish(Duration::from_secs(300));
    session.wait_ended(Duration::from_secs(10));
    let text = String::from_utf8(out.stdout.clone()).expect("UTF-8");
    let mut blocks = text
        .split_inclusive('\n')
        .fold(vec![Vec::new()], |mut blocks, line| {
            let line = line.trim_end_matches('\n');
            match line.strip_prefix(MARK) {
                Some(status) => {
                    blocks.last_mut().expect("a block").push(status);
                    blocks.push(Vec::new());
                }
                None => blocks.last_mut().expect("a block").push(line),
            }
            blocks
        });
    blocks.pop();
    assert_eq!(blocks.len(), recipes.len(), "{out}");
    for (recipe, printed) in recipes.iter().zip(&blocks) {
        let (status, lines) = printed.split_last().expect("at least the status");
        let expected = recipe.expected.clone().unwrap_or_default();
        assert!(
            fits(lines, &expected.lines().collect::<Vec<_>>()),
            "{}: printed {lines:#?}, and not\n{expected}\n{}",
            recipe.heading,
            out.stderr
        );
        // diff and grep say by their status what they found; nothing may say that there was no such thing.
        assert!(
            [" 0", " 1"].contains(status),
            "{}: {status}: {}",
            recipe.heading,
            out.stderr
        );
        assert!(
            !lines.is_empty() || !expected.contains('…'),
            "{}: nothing printed",
            recipe.heading
        );
    }
    for word in [
        "not found",
        "No such file",
        "syntax error",
        "Transport endpoint",
        "panicked",
    ] {
        assert!(!out.stderr.contains(word), "{}", out.stderr);
    }
}

each_qemu!(they_work, run);
