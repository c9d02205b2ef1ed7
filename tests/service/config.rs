//! Settings come from flag, environment, file or default, in this order. `oddscache config` says from which.

use std::{collections::BTreeMap, process::Command};

use oddscache_testkit::service::{Ended, Service, command, ended, run};

use super::with_odds;

const EXAMPLE: &str = "examples/deploy/oddscache.toml";

/// For each key the value, if it is set, and where it comes from.
type Printed = BTreeMap<String, (Option<String>, String)>;

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn printed(command: &mut Command) -> Printed {
    let mut printed = Printed::new();
    for line in ended(command).ok().out.lines().skip(1) {
        let (setting, from) = line.rsplit_once("  # ").expect("where it comes from");
        let (key, value) = setting.split_once('=').expect("a setting");
        let key = key.trim_start_matches('#').trim().to_owned();
        let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        let before = printed.insert(key, (value, from.trim().to_owned()));
        assert!(before.is_none(), "{line}");
    }
    printed
}

/// Of several values for a setting, the documented one counts, and `oddscache config` names its source.
#[test]
fn flag_environment_file_and_default_override_each_other_in_this_order() {
    let file = file("listen = \"127.0.0.1:1\"\npoll-interval = \"3s\"\nlookback = \"3h\"\n");
    let path = file.path().to_str().unwrap();
    let mut config = command(&["config", "--config", path, "--listen", "127.0.0.1:3"]);
    config
        .env("ODDSCACHE_LISTEN", "127.0.0.1:2")
        .env("ODDSCACHE_POLL_INTERVAL", "2s");
    let printed = printed(&mut config);
    let environment = "environment ODDSCACHE_POLL_INTERVAL";
    for (key, value, from) in [
        ("listen", "\"127.0.0.1:3\"", "flag"),
        ("poll-interval", "\"2s\"", environment),
        ("lookback", "\"3h\"", "file"),
        ("drain", "\"5s\"", "default"),
        ("most-streams", "256", "default"),
    ] {
        let expected = (Some(value.to_owned()), from.to_owned());
        assert_eq!(printed[key], expected, "{key}");
    }
    assert_eq!(printed["host"], (None, "not set".to_owned()));

    // The environment may name the file. A named file must exist.
    let named = ended(command(&["config"]).env("ODDSCACHE_CONFIG", path));
    named.with(0, &["lookback = \"3h\""]);
    let nowhere = ended(&mut command(&["config", "--config", "/nowhere.toml"]));
    nowhere.with(2, &["/nowhere.toml"]);
}

/// The example file is complete, and its defaults are those of the binary.
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
                let is_there = (from.as_str(), from_file.as_str()) == ("default", "file");
                assert!(is_there, "{EXAMPLE} lacks {key} = {value}");
            }
            None => {
                let line = format!("#{key} = ");
                let is_there = example.lines().any(|text| text.starts_with(&line));
                assert!(is_there, "{EXAMPLE} lacks a line {line}...");
            }
        }
    }
}

/// An operator can turn the output of `oddscache config` into a settings file. It contains no password.
#[test]
fn the_output_of_config_is_a_valid_file_without_secrets() {
    let secret = "hunter2-the-secret";
    let listen = format!("host=b password='{secret}' user=u");
    let mut config = command(&["config", "--options", "-c work_mem='1MB'"]);
    config
        .env("DATABASE_URL", format!("postgres://u:{secret}@h/d"))
        .env("ODDSCACHE_LISTEN_URL", listen)
        .env("ODDSCACHE_TOKEN", secret)
        .env("ODDSCACHE_RELAY_TO", format!("nats://u:{secret}@h"))
        .env("ODDSCACHE_RELAY_USER", "u")
        .env("ODDSCACHE_RELAY_PASSWORD", secret)
        .env("ODDSCACHE_RELAY_TOKEN", secret)
        .env("ODDSCACHE_RELAY_NKEY", secret)
        .env("PGPASSWORD", secret);
    let words = [
        "dbname=d host=h password=*** user=u",
        "host=b password=*** user=u",
        "environment PGPASSWORD",
        "ODDSCACHE_TOKEN",
    ];
    let printed = ended(&mut config).with(0, &words);
    assert!(!printed.out.contains(secret), "{printed:?}");
    let file = file(&printed.out);
    let again = ["config", "--config", file.path().to_str().unwrap()];
    ended(&mut command(&again)).with(0, &["options = \"-c work_mem='1MB'\""]);
}

/// A misspelt setting ends the service with an error.
#[tokio::test]
async fn the_service_uses_the_settings_of_its_file() {
    let database = with_odds();
    let file = file(&format!(
        "database-url = \"{}\"\nlisten = \"127.0.0.1:0\"\nmost-streams = 1\nlog-format = \"json\"\n",
        database.dsn()
    ));
    let path = file.path().to_str().unwrap();
    let served = Service::spawn(command(&["serve", "--config", path])).await;
    served.ready().await;
    let _stream = served.ask("/v1/changes", &[]).await;
    assert_eq!(served.get("/v1/changes").await.0, 503);

    std::fs::write(file.path(), "most-strems = 1\n").unwrap();
    let misspelt = ended(&mut command(&["serve", "--config", path]));
    misspelt.with(2, &["most-strems", "most-streams", path]);
}

/// `--token ''` and `--token $TOKEN` with a variable that was not set once served everything to everybody. Only a
/// setting that is absent has its default.
#[test]
fn an_empty_value_is_refused() {
    let nowhere = "host=/nowhere user=u dbname=d";
    let refused = |arguments: &[&str], variable: Option<&str>, name: &str| {
        let mut command = command(arguments);
        command.env("DATABASE_URL", nowhere);
        command.envs(variable.map(|name| (name, "")));
        let Ended { code, errors, .. } = ended(&mut command);
        assert_eq!(code, Some(2), "{arguments:?} {variable:?}: {errors}");
        assert!(
            errors.contains(name),
            "{arguments:?} {variable:?}: {errors}"
        );
    };
    for flag in [
        "--token",
        "--token-file",
        "--tls-cert",
        "--tls-key",
        "--listen",
        "--listen-url",
        "--inline-markets",
        "--config",
        "--log",
        "--app-schema",
        "--sslmode",
        "--sslrootcert",
        "--database-url",
    ] {
        refused(&["serve", flag, ""], None, flag);
        refused(&["serve", &format!("{flag}=")], None, flag);
        // The flag may come before the command, if it is a flag of all commands.
        if matches!(flag, "--config" | "--log") {
            refused(&[flag, "", "serve"], None, flag);
        }
    }
    for (variable, name) in [
        ("ODDSCACHE_TOKEN", "ODDSCACHE_TOKEN is given and empty"),
        ("ODDSCACHE_TOKEN_FILE", "--token-file"),
        ("ODDSCACHE_TLS_CERT", "--tls-cert"),
        ("ODDSCACHE_TLS_KEY", "--tls-key"),
        ("ODDSCACHE_CONFIG", "--config"),
        (
            "ODDSCACHE_LISTEN_URL",
            "ODDSCACHE_LISTEN_URL is given and empty",
        ),
        // libpq refuses this one, too.
        ("PGSSLMODE", "PGSSLMODE is given and empty"),
    ] {
        refused(&["serve"], Some(variable), name);
        refused(&["config"], Some(variable), name);
    }
    for (text, name) in [
        ("token = \"\"", "token is empty"),
        ("token-file = \"\"", "token-file is empty"),
        ("inline-markets = []", "inline-markets is empty"),
    ] {
        let file = file(text);
        refused(
            &["serve", "--config", file.path().to_str().unwrap()],
            None,
            name,
        );
    }
    for command in [
        &["explain", "1", "--token", ""][..],
        &["sql", "install", "--cache-schema", ""],
    ] {
        refused(command, None, command[command.len() - 2]);
    }

    // A token file without a token is an error, too.
    for text in ["", "\n", "# none\n\n"] {
        let file = file(text);
        let path = file.path().to_str().unwrap();
        run(&["serve", "--token-file", path], nowhere)
            .with(1, &["--token-file", "there is no token in it"]);
    }
}
