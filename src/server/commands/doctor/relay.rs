//! Checks a relay: the NATS server, the streams and their settings, the publisher that leads, and the rights of the login.

use std::time::{Duration, Instant};

use oddscache::{
    Config, Error, OddsCache, Relay, RelayInspection, RelayLeader, RelayStream, RelayStreamFacts,
};
use tokio::time::{sleep, timeout};

use super::finding::{Finding, Level};

/// Consumers and direct gets work from this version on as the relay uses them.
const OLDEST: (u32, u32) = (2, 9);

/// A smaller limit leaves no room for a change beside a message's header.
const LEAST_PAYLOAD: usize = 32 * 1024;

/// A publisher makes no larger messages.
const FULL_PAYLOAD: usize = 512 * 1024;

/// The leader's view is proven current every second.
const OLD: Duration = Duration::from_secs(10);

/// The share of its limit from which on a stream is called full.
const FULL: f64 = 0.9;

/// The pause between two looks at the trial subscriber.
const PAUSE: Duration = Duration::from_millis(20);

const RIGHTS: &str = "give the login the permissions that src/relay/README.md lists";

/// Which side of the relay the login is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Publisher,
    Subscriber,
}

/// All checks of a relay. `bound` is the time for one query; a trial subscriber has more. `quick` leaves it out.
pub(super) async fn check(relay: &Relay, side: Side, bound: Duration, quick: bool) -> Vec<Finding> {
    let seen = match relay.inspect(side == Side::Publisher).await {
        Ok(seen) => seen,
        Err(error) => return vec![unreachable(&error)],
    };
    let reachable = format!("nats-server {} at {}", seen.server_version, relay.target());
    let mut findings = vec![
        Finding::ok("relay.reachable", reachable),
        version(&seen.server_version),
    ];
    if !seen.has_jetstream {
        findings.push(
            Finding::fail("relay.jetstream", "the server has no JetStream")
                .why("the relay keeps changes and states in streams of JetStream")
                .fix("in nats-server.conf: jetstream { store_dir: \"/var/lib/nats\" }"),
        );
        return findings;
    }
    findings.push(Finding::ok("relay.jetstream", "the server has JetStream"));
    findings.push(payload(seen.max_payload));
    let streams = &seen.streams;
    findings.extend(streams.iter().map(|found| stream(found, side)));
    findings.extend(streams.iter().filter_map(size));
    findings.extend(streams.iter().filter_map(|found| copies(found, &seen)));
    findings.push(leader(&seen, side));
    match side {
        Side::Publisher => findings.extend(rights(&seen.unwritable)),
        Side::Subscriber if quick => {
            findings.push(Finding::info("relay.follow", "left out by --quick"));
        }
        // Without a leader nothing can be followed, which is said already.
        Side::Subscriber if seen.leader.is_err() => {}
        Side::Subscriber => findings.push(follow(relay, bound * 12).await),
    }
    findings
}

fn unreachable(error: &Error) -> Finding {
    let fix = match error.to_string() {
        text if ["authorization", "nkey", "credentials"]
            .iter()
            .any(|word| text.contains(word)) =>
        {
            "check the login: --relay-user, ODDSCACHE_RELAY_TOKEN, ODDSCACHE_RELAY_NKEY or --relay-creds"
        }
        text if text.contains("tls") || text.contains("certificate") => {
            "check tls:// in the URL, and --relay-ca, --relay-cert and --relay-key"
        }
        _ => "check host and port, and that nats-server runs; a firewall may be in between",
    };
    Finding::fail("relay.reachable", error.to_string()).fix(fix)
}

fn version(text: &str) -> Finding {
    let mut numbers = text.split('.').map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        let what = format!("the version {text:?} is not understood");
        return Finding::warn("relay.version", what).fix("use nats-server 2.9 or newer");
    };
    match (major, minor) >= OLDEST {
        true => Finding::ok("relay.version", format!("{text} is 2.9 or newer")),
        false => Finding::fail("relay.version", format!("{text} is older than 2.9"))
            .why("the relay needs direct get and consumers as nats-server has them since 2.9")
            .fix("install nats-server 2.9 or newer"),
    }
}

fn payload(bytes: usize) -> Finding {
    let what = format!("a message may have {bytes} bytes");
    let fix = "in nats-server.conf: max_payload: 1MB (the default)";
    if bytes < LEAST_PAYLOAD {
        Finding::fail("relay.payload", what)
            .why("a change does not fit beside the header of its message")
            .fix(fix)
    } else if bytes < FULL_PAYLOAD {
        Finding::warn("relay.payload", what)
            .why("large changes and states are cut into many small messages, which takes longer")
            .fix(fix)
    } else {
        Finding::ok("relay.payload", what)
    }
}

fn stream(stream: &RelayStream, side: Side) -> Finding {
    const ID: &str = "relay.stream";
    let (name, holds) = (&stream.name, stream.holds);
    let finding = match (&stream.found, side) {
        (Ok(Some(facts)), _) if facts.faults.is_empty() && !facts.small_limits.is_empty() => {
            Finding::warn(ID, format!("{} ({holds})", facts.small_limits.join("; ")))
                .why("a subscriber that was away for longer reads the whole state")
                .fix(format!("nats stream edit {name} --max-age 10m --max-bytes 1GiB"))
        }
        (Ok(Some(facts)), _) if facts.faults.is_empty() => Finding::ok(
            ID,
            format!(
                "holds {holds}: {} messages, {}",
                facts.messages,
                size_of(facts.bytes)
            ),
        ),
        (Ok(Some(facts)), _) => {
            Finding::fail(ID, format!("{} ({holds})", facts.faults.join("; ")))
                .why("somebody else made or changed the stream; publishers leave it as it is")
                .fix(format!(
                    "nats stream rm {name}; the publisher that leads makes it again and fills it"
                ))
        }
        (Ok(None), Side::Publisher) => {
            Finding::info(ID, format!("is missing; it is for {holds}"))
                .why("the first publisher makes it")
        }
        (Ok(None), Side::Subscriber) => {
            Finding::fail(ID, format!("is missing; it is for {holds}"))
                .why("no publisher of this name has led yet, or somebody deleted it")
                .fix(
                    "start `oddscache serve --relay-to` beside the database, with the same --relay-name",
                )
        }
        // The documented permissions of a subscriber do not include these.
        (Err(error), Side::Subscriber) if holds != "the states" => {
            let what = format!("could not be seen ({error}); a subscriber need not");
            let mut finding = Finding::info(ID, what);
            finding.checked = false;
            finding
        }
        (Err(error), _) => Finding::fail(ID, format!("could not be seen: {error}"))
            .why("the login may lack the right, or its account has no JetStream")
            .fix(RIGHTS),
    };
    finding.object(name)
}

/// The facts of a stream that is there.
fn facts(stream: &RelayStream) -> Option<&RelayStreamFacts> {
    stream.found.as_ref().ok()?.as_ref()
}

/// A stream that is almost full.
fn size(stream: &RelayStream) -> Option<Finding> {
    let facts = facts(stream)?;
    let limit = facts.max_bytes.filter(|limit| *limit > 0)?;
    let share = facts.bytes as f64 / limit as f64;
    let what = format!("{} of {} are used", size_of(facts.bytes), size_of(limit));
    Some(match share < FULL {
        true => Finding::ok("relay.size", what).object(&stream.name),
        false => Finding::warn("relay.size", what)
            .object(&stream.name)
            .why(
                "the oldest messages go before their time; a subscriber that was away for longer reads the whole state",
            )
            .fix(format!("nats stream edit {} --max-bytes=4GB", stream.name)),
    })
}

/// A stream of a cluster that one server alone has.
fn copies(stream: &RelayStream, seen: &RelayInspection) -> Option<Finding> {
    let facts = facts(stream)?;
    (seen.is_in_cluster && facts.replicas < 2).then(|| {
        Finding::warn("relay.copies", "only one server of the cluster has it")
            .object(&stream.name)
            .why("the relay stands still while that server is away")
            .fix(format!("nats stream edit {} --replicas 3", stream.name))
    })
}

fn leader(seen: &RelayInspection, side: Side) -> Finding {
    const ID: &str = "relay.leader";
    match (&seen.leader, seen.has_leader) {
        (Ok(leader), _) => leading(leader),
        // The documented permissions of a publisher do not include the question. A lease ends after three seconds, so its
        // holder runs.
        (Err(error), Some(true)) if side == Side::Publisher => {
            let what = format!("a publisher leads; this login could not ask it ({error})");
            Finding::info(ID, what)
                .why("only its answer says how old its view is")
                .fix("oddscache doctor --relay-from, with a subscriber's login")
        }
        (Err(error), Some(true)) => Finding::fail(
            ID,
            format!("a publisher has the lease, but gives no answer: {error}"),
        )
        .why("it may be frozen, or may not subscribe to the questions; views grow old meanwhile")
        .fix(
            "run doctor again after some seconds; then look at the publisher's log and permissions",
        ),
        (Err(error), _) => {
            let level = match side {
                Side::Publisher => Level::Warn,
                Side::Subscriber => Level::Fail,
            };
            Finding {
                level,
                ..Finding::fail(ID, format!("nobody publishes: {error}"))
            }
            .why("subscribers show their last view, which grows old; new ones get none")
            .fix("start `oddscache serve --relay-to` beside the database, with the same --relay-name")
        }
    }
}

fn leading(leader: &RelayLeader) -> Finding {
    const ID: &str = "relay.leader";
    let since = leader.since.format("%Y-%m-%d %H:%M:%S UTC");
    let answered = leader.answered_within.as_secs_f64() * 1e3;
    let what = format!(
        "a publisher leads since {since}, and answers within {answered:.1} ms: version {}",
        leader.version
    );
    match leader.age {
        Some(age) if age <= OLD => {
            Finding::ok(ID, format!("{what}, {:.1} s old", age.as_secs_f64()))
        }
        age => {
            let age = age.map_or("of unknown age".to_owned(), |age| {
                format!("{:.0} s old", age.as_secs_f64())
            });
            Finding::warn(ID, format!("{what}, {age}"))
                .why("the publisher has lost its database, or is degraded; all subscribers are as old")
                .fix("run `oddscache doctor` beside the database, as the publisher's role")
        }
    }
}

fn rights(unwritable: &[(String, String)]) -> Vec<Finding> {
    const ID: &str = "relay.rights";
    if unwritable.is_empty() {
        let what =
            "the login may write to each stream that is there (tried, and nothing was written)";
        return vec![Finding::ok(ID, what)];
    }
    let lacking = |(subject, error): &(String, String)| {
        Finding::fail(ID, format!("cannot publish: {error}"))
            .object(subject)
            .why("a publisher with this login cannot lead")
            .fix(RIGHTS)
    };
    unwritable.iter().map(lacking).collect()
}

/// Follows the relay, as a subscriber that starts does. So it also tries each right that one needs.
async fn follow(relay: &Relay, bound: Duration) -> Finding {
    const ID: &str = "relay.follow";
    let began = Instant::now();
    let config = Config::relay(relay.clone()).retry_unreachable(false);
    let (cache, follower) = OddsCache::connect(config);
    let warm = async {
        cache.ready().await?;
        // Live means that the changes and the answers come.
        while cache.view_within(OLD).is_err() {
            sleep(PAUSE).await;
        }
        Ok::<_, Error>(cache.view())
    };
    let followed = async {
        tokio::select! {
            view = warm => view,
            ended = follower.run() => Err(ended.err().unwrap_or(Error::FollowerStopped)),
        }
    };
    match timeout(bound, followed).await {
        Ok(Ok(view)) => Finding::ok(
            ID,
            format!(
                "a subscriber would start within {:.1} s: {} events in {}, equal to the publisher's by their digest",
                began.elapsed().as_secs_f64(),
                view.len(),
                size_of(cache.counters().relay_bytes)
            ),
        ),
        Ok(Err(error)) => Finding::fail(ID, format!("a subscriber cannot start: {error}"))
            .why("the login may lack a right, or nobody publishes a state")
            .fix(RIGHTS),
        Err(_) => Finding::fail(
            ID,
            format!(
                "a subscriber did not start within {:.0} s; its status is {}",
                bound.as_secs_f64(),
                cache.status()
            ),
        )
        .why("the login may lack a right, or the publisher has lost its database")
        .fix(RIGHTS),
    }
}

fn size_of(bytes: u64) -> String {
    match bytes as f64 / 1024.0 {
        kib if kib < 1024.0 => format!("{kib:.1} KiB"),
        kib => format!("{:.1} MiB", kib / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for (text, level) in [
            ("2.9.10", Level::Ok),
            ("2.10.0-beta.1", Level::Ok),
            ("3.0.0", Level::Ok),
            ("2.8.4", Level::Fail),
            ("1.12.0", Level::Fail),
            ("dev", Level::Warn),
        ] {
            assert_eq!(version(text).level, level, "{text}");
        }
    }

    #[test]
    fn small_payloads_are_found() {
        for (bytes, level) in [
            (1 << 20, Level::Ok),
            (64 * 1024, Level::Warn),
            (4096, Level::Fail),
        ] {
            assert_eq!(payload(bytes).level, level, "{bytes}");
        }
    }
}
