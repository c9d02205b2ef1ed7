//! `oddscache completions` and `oddscache man` describe the command line as it is.

use std::process::Command;

use oddscache_testkit::service::{command, ended};

/// The commands that `--help` lists.
fn commands() -> Vec<String> {
    let help = ended(&mut command(&["--help"])).ok().out;
    let (_, rest) = help.split_once("Commands:\n").expect("commands");
    let (list, _) = rest.split_once("\n\n").expect("options");
    // Longer texts go on in lines that are indented further.
    let first = list.lines().filter_map(|line| line.strip_prefix("  "));
    let first = first.filter(|line| !line.starts_with(' '));
    let names = first.filter_map(|line| line.split_whitespace().next());
    let names = names.filter(|name| *name != "help").map(str::to_owned);
    names.collect()
}

/// A shell accepts the completions, and they name all commands and flags.
#[test]
fn completions_are_a_script_that_names_every_command() {
    let script = ended(&mut command(&["completions", "bash"])).ok().out;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("oddscache");
    std::fs::write(&file, &script).unwrap();
    // What bash offers after these words.
    let offered = |words: &str| {
        let script = format!(
            "source {}; COMP_WORDS=(oddscache {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _oddscache oddscache \"${{COMP_WORDS[-1]}}\" x; echo \"${{COMPREPLY[@]}}\"",
            file.display()
        );
        let output = Command::new("bash")
            .args(["-c", &script])
            .output()
            .expect("bash");
        String::from_utf8(output.stdout).unwrap()
    };
    let all = commands();
    assert!(all.len() > 8, "{all:?}");
    for name in &all {
        let found = offered(name);
        assert!(
            found.split_whitespace().any(|word| word == name),
            "{name}: {found}"
        );
    }
    assert!(offered("serve --admin").contains("--admin-listen"));
    for shell in ["zsh", "fish"] {
        ended(&mut command(&["completions", shell])).with(0, &["admin-listen"]);
    }
    ended(&mut command(&["completions", "cmd"])).with(2, &["bash"]);
}

/// There is a page for each command. Two runs write the same bytes.
#[test]
fn the_manual_has_a_page_for_each_command() {
    let write = || {
        let folder = tempfile::tempdir().unwrap();
        ended(&mut command(&["man", folder.path().to_str().unwrap()])).ok();
        folder
    };
    let (first, second) = (write(), write());
    let read = |folder: &tempfile::TempDir, name: &str| {
        let page = std::fs::read_to_string(folder.path().join(name));
        page.unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let mut pages: Vec<String> = commands()
        .iter()
        .map(|name| format!("oddscache-{name}.1"))
        .collect();
    pages.push("oddscache.1".to_owned());
    for name in &pages {
        let page = read(&first, name);
        assert!(page.contains(".TH oddscache"), "{name}: {page}");
        assert_eq!(page, read(&second, name), "{name}");
    }
    assert!(read(&first, "oddscache-serve.1").contains("ODDSCACHE_ADMIN_LISTEN"));
    ended(&mut command(&["man", "/nowhere"])).with(1, &["/nowhere", "must be a folder"]);
}
