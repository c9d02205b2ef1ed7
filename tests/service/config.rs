//! Settings: flag, environment, file, default; and what `oddscache config` says of them.

use std::{collections::BTreeMap, process::Command};

use super::{Served, command, text, with_odds};

const EXAMPLE: &str = "examples/deploy/oddscache.toml";

/// By key: the value, if it is set, and where it comes from.
type Printed = BTreeMap<String, (Option<String>, String)>;

fn printed(command: &mut Command) -> Printed {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut printed = Printed::new();
    for line in text(&output.stdout).lines().skip(1) {
        let (setting, from) = line.rsplit_once("  # ").expect("where it comes from");
        let (key, value) = setting.split_once('=').expect("a setting");
        let key = key.trim_start_matches('#').trim().to_owned();
        let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        let before = printed.insert(key, (value, from.trim().to_owned()));
        assert!(before.is_none(), "{line}");
    }
    printed
}

#[test]
fn a_flag_goes_before_the_environment_that_before_the_file_that_before_the_default() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let lines = "listen = \"127.0.0.1:1\"\npoll-interval = \"3s\"\nlookback = \"3h\"\n";
    std::fs::write(file.path(), lines).unwrap();
    let path = file.path().to_str().unwrap();
    let mut config = command(&["config", "--config", path, "--listen", "127.0.0.1:3"]);
    config
        .env("ODDSCACHE_LISTEN", "127.0.0.1:2")
        .env("ODDSCACHE_POLL_INTERVAL", "2s");
    let printed = printed(&mut config);
    for (key, value, from) in [
        ("listen", "\"127.0.0.1:3\"", "flag"),
        (
            "poll-interval",
            "\"2s\"",
            "environment ODDSCACHE_POLL_INTERVAL",
        ),
        ("lookback", "\"3h\"", "file"),
        ("drain", "\"5s\"", "default"),
        ("most-streams", "256", "default"),
    ] {
        assert_eq!(
            printed[key],
            (Some(value.to_owned()), from.to_owned()),
            "{key}"
        );
    }
    assert_eq!(printed["host"], (None, "not set".to_owned()));

    // The file may be named by the environment; one that is not there is no default.
    let output = command(&["config"])
        .env("ODDSCACHE_CONFIG", path)
        .output()
        .unwrap();
    assert!(text(&output.stdout).contains("lookback = \"3h\""));
    let output = command(&["config", "--config", "/nowhere.toml"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("/nowhere.toml"));
}

#[test]
fn the_example_has_every_setting_with_its_default() {
    let defaults = printed(&mut command(&["config"]));
    let with_file = printed(&mut command(&["config", "--config", EXAMPLE]));
    let example = std::fs::read_to_string(EXAMPLE).unwrap();
    for (key, (value, from)) in &defaults {
        let (in_file, from_file) = &with_file[key];
        assert_eq!(in_file, value, "{key} in {EXAMPLE} is not the default");
        match value {
            Some(value) => {
                assert_eq!(
                    (from.as_str(), from_file.as_str()),
                    ("default", "file"),
                    "{EXAMPLE} lacks {key} = {value}"
                );
            }
            None => {
                let line = format!("#{key} = ");
                assert!(
                    example.lines().any(|text| text.starts_with(&line)),
                    "{EXAMPLE} lacks a line {line}..."
                );
            }
        }
    }
}

#[test]
fn what_is_printed_is_a_file_and_tells_no_secret() {
    let secret = "hunter2-the-secret";
    let mut config = command(&["config", "--options", "-c work_mem='1MB'"]);
    config
        .env("DATABASE_URL", format!("postgres://u:{secret}@h/d"))
        .env(
            "ODDSCACHE_LISTEN_URL",
            format!("host=b password='{secret}' user=u"),
        )
        .env("ODDSCACHE_TOKEN", secret)
        .env("PGPASSWORD", secret);
    let output = config.output().unwrap();
    let printed = text(&output.stdout);
    assert!(!printed.contains(secret), "{printed}");
    for words in [
        "dbname=d host=h password=*** user=u",
        "host=b password=*** user=u",
        "environment PGPASSWORD",
        "ODDSCACHE_TOKEN",
    ] {
        assert!(printed.contains(words), "no {words:?} in {printed}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &output.stdout).unwrap();
    let output = command(&["config", "--config", file.path().to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("options = \"-c work_mem='1MB'\""));
}

#[tokio::test]
async fn the_service_obeys_its_file() {
    let database = with_odds();
    let file = tempfile::NamedTempFile::new().unwrap();
    let lines = format!(
        "database-url = \"{}\"\nlisten = \"127.0.0.1:0\"\nmost-streams = 1\nlog-format = \"json\"\n",
        database.dsn()
    );
    std::fs::write(file.path(), lines).unwrap();
    let path = file.path().to_str().unwrap();
    let mut service = tokio::process::Command::from(command(&["serve", "--config", path]));
    service
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    let served = Served::of(service).await;
    served.warm().await;
    let _stream = reqwest::get(format!("{}/v1/changes", served.base))
        .await
        .unwrap();
    assert_eq!(served.get("/v1/changes").await.0, 503);

    std::fs::write(file.path(), "most-strems = 1\n").unwrap();
    let output = command(&["serve", "--config", path]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let errors = text(&output.stderr);
    assert!(
        errors.contains("most-strems") && errors.contains("most-streams") && errors.contains(path),
        "{errors}"
    );
}

/// As `${NAME:-}` of a compose file makes them.
#[tokio::test]
async fn empty_variables_say_nothing() {
    let database = with_odds();
    let names = [
        "ODDSCACHE_CONFIG",
        "ODDSCACHE_TOKEN",
        "ODDSCACHE_TOKEN_FILE",
        "ODDSCACHE_TLS_CERT",
        "ODDSCACHE_TLS_KEY",
        "ODDSCACHE_CA",
    ];
    let empty = names.map(|name| (name, ""));
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--log-format", "json"];
    let served = Served::start_with(&database.dsn(), &arguments, &empty).await;
    served.warm().await;
    let address = served.address().to_string();
    for arguments in [
        &["health", "--listen", &address][..],
        &["ready", "--listen", &address],
        &["explain", "1", "--url", &served.base],
        &["config"],
    ] {
        let mut command = command(arguments);
        let command = command.env("DATABASE_URL", database.dsn()).envs(empty);
        let output = command.output().unwrap();
        let errors = text(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
    }
    // Nor do they hide what the file says.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "token-file = \"/nowhere/tokens\"\n").unwrap();
    let path = file.path().to_str().unwrap();
    let printed = printed(command(&["config", "--config", path]).env("ODDSCACHE_TOKEN_FILE", ""));
    let expected = (Some("\"/nowhere/tokens\"".to_owned()), "file".to_owned());
    assert_eq!(printed["token-file"], expected);
}
