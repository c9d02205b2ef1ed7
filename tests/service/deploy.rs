//! The container file and the compose file of `examples/deploy`, without a container engine: what they copy is there
//! and suffices, and the programs accept what they set and run.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use oddscache_testkit::{
    cluster::Cluster,
    programs::optional,
    service::{Ended, Service, command, ended, isolate},
};
use parse_dockerfile::{Command as Run, HealthcheckArguments, Instruction, Source};
use serde_json::Value;

const FOLDER: &str = "examples/deploy";

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn deployed(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// The words of a command in the exec form.
fn words(command: &Run<'_>) -> Vec<String> {
    let Run::Exec(words) = command else {
        panic!("{command:?} needs a shell");
    };
    let words = words.value.iter();
    words.map(|word| word.value.clone().into_owned()).collect()
}

/// The files and folders that the container file copies from the repository.
fn copied(instructions: &[Instruction<'_>]) -> BTreeSet<PathBuf> {
    let mut paths = BTreeSet::new();
    for instruction in instructions {
        let Instruction::Copy(copy) = instruction else {
            continue;
        };
        for source in &copy.src {
            let Source::Path(path) = source else {
                panic!("{source:?}")
            };
            match path.value.split_once("/*.") {
                None => {
                    assert!(Path::new(&*path.value).exists(), "{}", path.value);
                    paths.insert(PathBuf::from(&*path.value));
                }
                Some((folder, extension)) => {
                    let files = fs::read_dir(folder).expect(folder);
                    let files = files.map(|file| file.expect(folder).path());
                    paths.extend(files.filter(|file| file.extension() == Some(extension.as_ref())));
                }
            }
        }
    }
    paths
}

/// Copies files, and folders without what is no source.
fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name();
            if name != "node_modules" && name != "__pycache__" && name != "secrets" {
                copy(&from.join(&name), &to.join(&name));
            }
        }
    } else {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
}

/// The image lacked a member of the workspace once, and no build noticed.
#[test]
fn the_image_copies_all_that_its_build_reads() {
    let text = read(&deployed("Containerfile"));
    let file = parse_dockerfile::parse(&text).expect("a container file");
    let build = file.stage("build").expect("a stage");
    let copied = copied(build.instructions);

    // Cargo reads each manifest of the workspace, and wants the file of each target that one names.
    let context = tempfile::tempdir().unwrap();
    for path in &copied {
        copy(path, &context.path().join(path));
    }
    let script = build.instructions.iter().find_map(|found| match found {
        Instruction::Run(run) => match &run.arguments {
            Run::Shell(script) => Some(script.value),
            _ => None,
        },
        _ => None,
    });
    let script = script.expect("it builds");
    let build = script.strip_prefix("cargo build ").expect("by cargo");
    let (_, features) = build.split_once("--bin oddscache ").expect("the binary");
    let cargo = |arguments: &[&str]| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(arguments).args(["--locked", "--offline"]);
        ended(cargo.current_dir(context.path())).ok();
    };
    // The first knows the features, the second looks for the files of targets.
    cargo(
        &[
            &["tree", "--depth=0"],
            &*features.split(' ').collect::<Vec<_>>(),
        ]
        .concat(),
    );
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    cargo(&["fetch", "--target", &target]);

    // What the compiler read for the library and the program, with all features. Cargo needs two files besides.
    let program = std::env::current_exe().unwrap();
    let lists = fs::read_dir(program.parent().expect("a folder")).unwrap();
    let lists = lists.map(|file| file.unwrap().path()).filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("oddscache-") && name.ends_with(".d"))
    });
    let mut sources = BTreeSet::from(["Cargo.lock".to_owned(), "build.rs".to_owned()]);
    for list in lists {
        let text = read(&list);
        let files = text.lines().filter_map(|line| line.split_once(": "));
        sources.extend(files.flat_map(|(_, files)| files.split(' ').map(str::to_owned)));
    }
    assert!(sources.contains("src/main.rs"), "{sources:?}");
    // A list may be older than the sources. A path may have `..` in it.
    let root = fs::canonicalize(".").unwrap();
    let sources = sources
        .iter()
        .filter_map(|path| fs::canonicalize(path).ok());
    for path in sources.filter(|path| path.is_file()) {
        if let Ok(path) = path.strip_prefix(&root) {
            let is_there = path.ancestors().any(|folder| copied.contains(folder));
            assert!(is_there, "the image does not copy {}", path.display());
        }
    }

    // The second stage takes the binary from where the first has put it.
    let profile = build.split_once("--profile ").expect("a profile").1;
    let profile = profile.split(' ').next().expect("its name");
    let manifest = read(Path::new("Cargo.toml"));
    assert!(manifest.contains(&format!("\n[profile.{profile}]\n")));
    let from = format!("COPY --from=build /build/target/{profile}/oddscache /usr/local/bin/");
    assert!(text.contains(&from) && text.contains("WORKDIR /build\n"));
}

/// What the container file runs: the settings exist, the service starts with them, and the health check finds it.
#[tokio::test]
async fn the_image_starts_a_service_and_its_health_check_finds_it() {
    let text = read(&deployed("Containerfile"));
    let file = parse_dockerfile::parse(&text).expect("a container file");
    let last = file.stages().last().expect("a stage");
    let (mut entry, mut arguments, mut check, mut variables) = (None, None, None, Vec::new());
    for instruction in last.instructions {
        match instruction {
            Instruction::Entrypoint(found) => entry = Some(words(&found.arguments)),
            Instruction::Cmd(found) => arguments = Some(words(&found.arguments)),
            Instruction::Healthcheck(found) => match &found.arguments {
                HealthcheckArguments::Cmd { arguments, .. } => check = Some(words(arguments)),
                other => panic!("{other:?}"),
            },
            Instruction::Env(found) => variables.extend(
                found
                    .arguments
                    .value
                    .split_whitespace()
                    .filter_map(|pair| pair.split_once('='))
                    .map(|(name, value)| (name.to_owned(), value.to_owned())),
            ),
            _ => {}
        }
    }
    assert_eq!(entry.expect("an entry point"), ["oddscache"]);
    assert!(variables.len() > 2, "{variables:?}");
    assert_known(&variables);

    let arguments = arguments.expect("arguments");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut serve = command(&arguments);
    serve
        .envs(variables)
        // Tests run side by side, so each needs a port of its own.
        .env("ODDSCACHE_LISTEN", "127.0.0.1:0")
        .env("DATABASE_URL", "host=/nowhere user=u dbname=d");
    let service = Service::spawn(serve).await;
    let check = check.expect("a health check");
    let mut health = program(&check);
    health.env("ODDSCACHE_LISTEN", service.address().to_string());
    // The service is not warm, but it lives.
    ended(&mut health).ok();
}

/// The binary, if these are the words of a command that runs it.
fn program(words: &[String]) -> Command {
    assert_eq!(words[0], "oddscache");
    let words: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
    command(&words)
}

/// Fails the test unless each of these environment variables is a setting, with a value that the service accepts.
fn assert_known(variables: &[(String, String)]) {
    let printed = ended(command(&["config"]).envs(variables.iter().cloned())).ok();
    for (name, _) in variables {
        // The C library's own.
        if name != "MALLOC_MMAP_THRESHOLD_" {
            let line = format!("# environment {name}\n");
            assert!(printed.out.contains(&line), "no setting reads {name}");
        }
    }
}

/// The compose file, with its anchors and merges carried out.
struct Compose(Value);

impl Compose {
    fn read() -> Compose {
        let text = read(&deployed("compose.yml"));
        Compose(serde_saphyr::from_str(&text).expect("YAML"))
    }

    fn service(&self, name: &str) -> &Value {
        &self.0["services"][name]
    }

    fn services(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0["services"].as_object().expect("services").iter()
    }

    fn variables(&self, service: &str) -> Vec<(String, String)> {
        let variables = self.service(service)["environment"].as_object();
        let variables = variables.expect("variables").iter();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        variables
            .map(|(name, value)| (name.clone(), text(value)))
            .collect()
    }
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    list.map(text).collect()
}

/// Each container is as little as it can be, and what the file names exists.
#[test]
fn the_compose_file_names_what_is_there_and_locks_its_containers() {
    let compose = Compose::read();
    let readme = read(&deployed("README.md"));
    let (mut secrets, mut volumes) = (BTreeSet::new(), BTreeSet::new());
    for (name, service) in compose.services() {
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(texts(&service["cap_drop"]), ["ALL"], "{name}");
        let options = texts(&service["security_opt"]);
        assert_eq!(options, ["no-new-privileges:true"], "{name}");
        let image = service["image"].as_str().expect("an image");
        let (_, tag) = image.rsplit_once(':').expect("a tag");
        assert!(tag.contains('.'), "{name}: {image} may change");
        for port in texts(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
        }
        secrets.extend(texts(&service["secrets"]));
        for mount in texts(&service["volumes"]) {
            let source = mount.split(':').next().expect("a source").to_owned();
            if source.starts_with('.') {
                assert!(mount.ends_with(":ro"), "{name}: {mount}");
                assert!(deployed(&source).is_file(), "{name}: {mount}");
            } else {
                volumes.insert(source);
            }
        }
        if let Some(build) = service["build"].as_object() {
            let context = deployed(build["context"].as_str().expect("a folder"));
            let file = build["dockerfile"].as_str().expect("a file");
            assert!(context.join(file).is_file(), "{name}");
            let ours = format!("oddscache:{}", env!("CARGO_PKG_VERSION"));
            assert_eq!(image, ours, "{name}");
        }
        for variable in service["environment"].as_object().into_iter().flatten() {
            let secret = variable
                .1
                .as_str()
                .and_then(|value| value.strip_prefix("/run/secrets/"));
            if let Some(secret) = secret {
                assert!(
                    texts(&service["secrets"]).contains(&secret.to_owned()),
                    "{variable:?}"
                );
            }
        }
    }
    let declared = compose.0["secrets"].as_object().expect("secrets");
    assert_eq!(declared.keys().cloned().collect::<BTreeSet<_>>(), secrets);
    for (name, secret) in declared {
        assert_eq!(secret["file"], format!("./secrets/{name}"));
        assert!(readme.contains(name.as_str()), "README.md makes no {name}");
    }
    let declared = compose.0["volumes"].as_object().expect("volumes");
    assert_eq!(declared.keys().cloned().collect::<BTreeSet<_>>(), volumes);
}

/// What the containers do, in their order, with the secrets of README.md: the database, the change feed, the service,
/// its health check, and a scrape with the token.
#[tokio::test(flavor = "multi_thread")]
async fn the_containers_of_the_compose_file_work_together() {
    let compose = Compose::read();
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let secret = |name: &str, text: &str| {
        fs::write(at(name), format!("{text}\n")).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o600)).unwrap();
    };
    let token = "b".repeat(32);
    for role in ["owner", "oddscache"] {
        secret(role, &format!("database:5432:odds:{role}:{role}-secret"));
    }
    secret("tokens", &token);

    // The image of PostgreSQL makes the database, and runs the script as its superuser.
    let cluster = Cluster::start(&["fsync = off"]).expect("a private cluster");
    assert_eq!(
        compose.variables("database")[0],
        ("POSTGRES_DB".into(), "odds".into())
    );
    cluster.psql_ok("postgres", &["-qc", "create database odds"]);
    let script = read(&deployed("database.sql"))
        .replace("/run/secrets/", &format!("{}/", place.path().display()))
        .replace("/tables.sql", "src/demo/schema.sql");
    fs::write(at("database.sql"), script).unwrap();
    cluster.psql_ok("odds", &["-qf", at("database.sql").to_str().unwrap()]);

    // `database` is another address here, and so is a password file's line for it.
    let variables = |service: &str| -> Vec<(String, String)> {
        let mut found = compose.variables(service);
        assert_known(&found);
        for (name, value) in &mut found {
            if let Some(secret) = value.strip_prefix("/run/secrets/") {
                *value = at(secret).to_str().unwrap().to_owned();
            }
            if name == "DATABASE_URL" {
                assert!(value.contains("@database/odds"), "{value}");
                *value = format!("{value}?hostaddr=127.0.0.1&port={}", cluster.port());
            }
        }
        found
    };
    for role in ["owner", "oddscache"] {
        let line = read(&at(role)).replace(":5432:", &format!(":{}:", cluster.port()));
        fs::write(at(role), line).unwrap();
    }

    let sql = compose.service("sql");
    let entry = texts(&sql["entrypoint"]);
    assert_eq!(entry, ["sh", "-ec"]);
    let mut install = Command::new("sh");
    let binary = PathBuf::from(command(&[]).get_program());
    let path = std::env::var("PATH").unwrap();
    install.args(&entry[1..]).args(texts(&sql["command"]));
    isolate(&mut install);
    install
        .env(
            "PATH",
            format!("{}:{path}", binary.parent().unwrap().display()),
        )
        .envs(variables("sql"));
    ended(&mut install).with(0, &["oddscache.prune", "CREATE INDEX"]);

    let mut serve = command(&["serve", "--listen", "127.0.0.1:0", "--log-format", "json"]);
    serve.envs(variables("oddscache"));
    let service = Service::spawn(serve).await;
    let check = texts(&compose.service("oddscache")["healthcheck"]["test"]);
    assert_eq!(check[0], "CMD");
    let mut health = program(&check[1..]);
    health.env("ODDSCACHE_LISTEN", service.address().to_string());
    ended(&mut health).ok();
    let client = reqwest::Client::new();
    oddscache_testkit::eventually("it is warm", async || {
        let answer = client.get(format!("{}/readyz", service.base)).send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    for (sent, status) in [(None, 401), (Some(&token), 200)] {
        let mut asked = client.get(format!("{}/metrics", service.base));
        if let Some(token) = sent {
            asked = asked.bearer_auth(token);
        }
        assert_eq!(asked.send().await.unwrap().status(), status);
    }
    // The service prunes, so its role may.
    let doctor = ended(command(&["doctor", "--quick"]).envs(variables("oddscache")));
    doctor.with(0, &["0 fail", "log.prune", "works"]);
}

/// Prometheus scrapes the service of the compose file as it does one that runs on the same machine.
#[test]
fn prometheus_of_the_compose_file_differs_in_target_and_token_only() {
    let name = "prometheus.compose.yml";
    let parsed =
        |name: &str| -> Value { serde_saphyr::from_str(&read(&deployed(name))).expect("YAML") };
    let (mut plain, mut composed) = (parsed("prometheus.yml"), parsed(name));
    let job = &mut composed["scrape_configs"][0];
    assert_eq!(
        job["authorization"]["credentials_file"],
        "/run/secrets/tokens"
    );
    assert_eq!(job["static_configs"][0]["targets"][0], "oddscache:7979");
    job.as_object_mut().unwrap().remove("authorization");
    job["static_configs"][0] = plain["scrape_configs"][0]["static_configs"][0].take();
    plain["scrape_configs"][0]["static_configs"][0] = job["static_configs"][0].clone();
    assert_eq!(composed, plain);

    let Some(promtool) = optional(&["promtool"], "prometheus") else {
        return;
    };
    // It wants the token's file to exist.
    let check = ["check", "config", "--syntax-only"];
    let output = Command::new(promtool)
        .args(check)
        .arg(deployed(name))
        .output();
    Ended::of(&output.unwrap()).ok();
    let compose = Compose::read();
    let service = compose.service("prometheus");
    let mounts = texts(&service["volumes"]);
    assert!(mounts.contains(&format!("./{name}:/etc/prometheus/prometheus.yml:ro")));
    assert!(mounts.contains(&"./alerts.yml:/etc/prometheus/alerts.yml:ro".to_owned()));
}
