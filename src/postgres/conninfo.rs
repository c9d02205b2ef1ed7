//! Parses connection strings as libpq does: a URL or `name=value` pairs.
//!
//! The driver has a parser too, but that one does not know `sslmode=verify-full`, `sslrootcert` or `passfile`. Its
//! errors also quote a parameter that it does not know, which may be a part of a password with a space in it. No error
//! of this module contains a value.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use tokio_postgres::config::{ChannelBinding, LoadBalanceHosts, SslNegotiation};

use crate::{
    error::Error,
    postgres::{
        hosts::Session,
        tls::{SslMode, Tls},
    },
};

/// The parameters that this module supports.
const KNOWN: [&str; 27] = [
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "gssencmode",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "options",
    "passfile",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// The parameters that only libpq supports. Errors may name these.
const REFUSED: [&str; 19] = [
    "gssdelegation",
    "gsslib",
    "krbsrvname",
    "max_protocol_version",
    "min_protocol_version",
    "replication",
    "require_auth",
    "requirepeer",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslpassword",
];

/// Parameter values under their libpq names.
#[derive(Default)]
pub(crate) struct Parameters(BTreeMap<&'static str, Vec<u8>>);

/// The settings that the parameters give.
pub(crate) struct Parsed {
    pub(crate) postgres: tokio_postgres::Config,
    pub(crate) tls: Tls,
    pub(crate) session: Session,
    pub(crate) passfile: Option<PathBuf>,
}

/// A connection string as it may be printed: `name=value` pairs, with `***` in place of the password. A string that
/// cannot be read is `***` as a whole, because any part of it may be a password.
///
/// `None` if there is no password in it. Locks nothing, blocks on nothing, allocates what it returns.
///
/// ```
/// let printed = oddscache::without_password("postgres://cache:secret@db/odds");
/// assert_eq!(printed.as_deref(), Some("dbname=odds host=db password=*** user=cache"));
/// assert_eq!(oddscache::without_password("postgres://cache@db/odds"), None);
/// assert_eq!(oddscache::without_password("secret").as_deref(), Some("***"));
/// ```
pub fn without_password(connection_string: &str) -> Option<String> {
    const HIDDEN: &str = "***";
    let parameters = Parameters::parse(connection_string);
    // A string that parses may still be refused, for example if a part of a password stands where a port is expected.
    let Some(parameters) = parameters.ok().filter(|found| found.build().is_ok()) else {
        return Some(HIDDEN.to_owned());
    };
    parameters.bytes("password")?;
    let pairs = parameters.0.iter().map(|(name, value)| match *name {
        "password" => format!("password={HIDDEN}"),
        name => format!("{name}={}", quoted(&String::from_utf8_lossy(value))),
    });
    Some(pairs.collect::<Vec<_>>().join(" "))
}

/// A value as it is written in a `name=value` pair.
fn quoted(value: &str) -> String {
    let is_plain = |character: char| !character.is_whitespace() && !"'\\".contains(character);
    if !value.is_empty() && value.chars().all(is_plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
}

fn wrong(what: &str) -> Error {
    Error::Config(format!("connection string: {what}"))
}

fn wrong_value(name: &str, expected: &str) -> Error {
    wrong(&format!("{name} must be {expected}"))
}

impl Parameters {
    /// Parses either form. An empty string gives no parameters.
    pub(crate) fn parse(text: &str) -> Result<Parameters, Error> {
        if text.contains('\0') {
            return Err(wrong("it contains a zero byte"));
        }
        let mut parameters = Parameters::default();
        let url = ["postgres://", "postgresql://"]
            .into_iter()
            .find_map(|prefix| text.strip_prefix(prefix));
        match url {
            Some(rest) => parameters.read_url(rest)?,
            None => parameters.read_pairs(text)?,
        }
        Ok(parameters)
    }

    /// Sets a parameter that is not set yet.
    pub(crate) fn fill_in(&mut self, name: &str, value: impl Into<Vec<u8>>) -> Result<(), Error> {
        let name = known(name)?;
        self.0.entry(name).or_insert_with(|| value.into());
        Ok(())
    }

    fn set(&mut self, name: &str, value: Vec<u8>) -> Result<(), Error> {
        self.0.insert(known(name)?, value);
        Ok(())
    }

    fn read_pairs(&mut self, text: &str) -> Result<(), Error> {
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let Some((name, value)) = rest.split_once('=') else {
                return Err(wrong(
                    "it is neither a URL (postgres://user@host/name) nor name=value pairs; put a value with spaces in \
                     single quotes",
                ));
            };
            let (value, after) = unquote(value.trim_start())?;
            self.set(name.trim_end(), value.into_bytes())?;
            rest = after.trim_start();
        }
        Ok(())
    }

    fn read_url(&mut self, text: &str) -> Result<(), Error> {
        // As in libpq: user and password end at the first @, if no / comes before it.
        let rest = match text.split_once('@') {
            Some((credentials, rest)) if !credentials.contains('/') => {
                let (user, password) = match credentials.split_once(':') {
                    Some((user, password)) => (user, Some(password)),
                    None => (credentials, None),
                };
                if !user.is_empty() {
                    self.set("user", decode(user)?)?;
                }
                if let Some(password) = password.filter(|password| !password.is_empty()) {
                    self.set("password", decode(password)?)?;
                }
                rest
            }
            _ => text,
        };
        let (before, query) = split_at_any(rest, &['?']);
        let (hosts, path) = split_at_any(before, &['/']);
        let name = path.strip_prefix('/').unwrap_or_default();
        if hosts.contains('@') || name.contains('@') {
            return Err(wrong(
                "write an @ or / in the user or password as %40 or %2F",
            ));
        }
        self.read_hosts(hosts)?;
        if !name.is_empty() {
            self.set("dbname", decode(name)?)?;
        }
        let query = query.strip_prefix('?').unwrap_or_default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let Some((name, value)) = pair.split_once('=') else {
                return Err(wrong(
                    "a parameter of the URL has no value; write a ? or & in a password as %3F or %26",
                ));
            };
            let name = decode(name)?;
            match (name.as_slice(), value) {
                // JDBC spells `sslmode=require` this way.
                (b"ssl", "true") => self.set("sslmode", b"require".to_vec())?,
                (name, value) => self.set(
                    std::str::from_utf8(name).unwrap_or_default(),
                    decode(value)?,
                )?,
            }
        }
        Ok(())
    }

    /// Reads `host:port,[address]:port,...`
    fn read_hosts(&mut self, hosts: &str) -> Result<(), Error> {
        // A URL pairs hosts and ports; the parameters `host` and `port` are two lists of equal length.
        let (mut names, mut ports) = (Vec::new(), Vec::new());
        for (number, host) in hosts.split(',').enumerate() {
            let (name, port) = match host.strip_prefix('[') {
                Some(rest) => {
                    let (address, port) = rest
                        .split_once(']')
                        .ok_or_else(|| wrong("an address begins with [ but has no ]"))?;
                    (address, port)
                }
                None => split_at_any(host, &[':']),
            };
            let port = match port.strip_prefix(':') {
                Some(port) => port,
                None if port.is_empty() => "",
                None => {
                    return Err(wrong(
                        "after the ] of an address, only a : and the port may follow",
                    ));
                }
            };
            if number > 0 {
                names.push(b',');
                ports.push(b',');
            }
            names.extend(decode(name)?);
            ports.extend(decode(port)?);
        }
        if !names.is_empty() {
            self.set("host", names)?;
        }
        if !ports.is_empty() {
            self.set("port", ports)?;
        }
        Ok(())
    }

    /// A parameter's value. An empty value counts as not set, as in libpq.
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0
            .get(name)
            .map(Vec::as_slice)
            .filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str) -> Result<Option<&str>, Error> {
        let utf8 = |value| std::str::from_utf8(value).map_err(|_| wrong_value(name, "UTF-8"));
        self.bytes(name).map(utf8).transpose()
    }

    fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, Error> {
        let number = |text: &str| {
            let number = text.trim().parse();
            number.map_err(|_| wrong_value(name, "a whole number within its range"))
        };
        self.text(name)?.map(number).transpose()
    }

    fn one_of<T: Clone>(&self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, Error> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let found = words.iter().find(|(word, _)| *word == text);
        let words = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>();
        found
            .map(|(_, value)| Some(value.clone()))
            .ok_or_else(|| wrong_value(name, &words().join(", ")))
    }

    /// A positive number of `unit`s. Zero and negative numbers count as not set.
    fn time(&self, name: &str, unit: Duration) -> Result<Option<Duration>, Error> {
        let number: Option<i32> = self.number(name)?;
        let units = number.and_then(|number| u32::try_from(number).ok());
        Ok(units
            .filter(|units| *units > 0)
            .map(|units| unit.saturating_mul(units)))
    }

    /// All settings: the driver's configuration, and the settings that the driver does not know.
    pub(crate) fn build(&self) -> Result<Parsed, Error> {
        let mut postgres = tokio_postgres::Config::new();
        self.set_hosts(&mut postgres)?;
        let application_name = match self.text("application_name")? {
            Some(name) => Some(name),
            None => self.text("fallback_application_name")?,
        };
        application_name.map(|name| postgres.application_name(name));
        self.text("user")?.map(|user| postgres.user(user));
        self.text("dbname")?.map(|name| postgres.dbname(name));
        self.text("options")?
            .map(|options| postgres.options(options));
        self.bytes("password")
            .map(|password| postgres.password(password));
        self.set_times(&mut postgres)?;
        let bindings = [
            ("disable", ChannelBinding::Disable),
            ("prefer", ChannelBinding::Prefer),
            ("require", ChannelBinding::Require),
        ];
        self.one_of("channel_binding", &bindings)?
            .map(|binding| postgres.channel_binding(binding));
        let negotiations = [
            ("postgres", SslNegotiation::Postgres),
            ("direct", SslNegotiation::Direct),
        ];
        self.one_of("sslnegotiation", &negotiations)?
            .map(|negotiation| postgres.ssl_negotiation(negotiation));
        let balances = [
            ("disable", LoadBalanceHosts::Disable),
            ("random", LoadBalanceHosts::Random),
        ];
        self.one_of("load_balance_hosts", &balances)?
            .map(|balance| postgres.load_balance_hosts(balance));
        // The driver always uses UTF-8 and never GSS. Accept these values so that strings written for libpq work.
        let encodings = [
            ("UTF8", ()),
            ("utf8", ()),
            ("UTF-8", ()),
            ("utf-8", ()),
            ("auto", ()),
        ];
        self.one_of("client_encoding", &encodings)?;
        self.one_of("gssencmode", &[("disable", ()), ("prefer", ())])?;
        Ok(Parsed {
            tls: self.tls()?,
            session: self
                .one_of("target_session_attrs", &Session::WORDS)?
                .unwrap_or_default(),
            passfile: self.text("passfile")?.map(PathBuf::from),
            postgres,
        })
    }

    fn set_hosts(&self, postgres: &mut tokio_postgres::Config) -> Result<(), Error> {
        for host in self
            .text("host")?
            .into_iter()
            .flat_map(|hosts| hosts.split(','))
        {
            // libpq takes this for an abstract socket, which the driver does not support.
            if host.starts_with('@') {
                return Err(wrong_value("host", "a name, an address or a directory"));
            }
            postgres.host(if host.is_empty() { "localhost" } else { host });
        }
        for address in self
            .text("hostaddr")?
            .into_iter()
            .flat_map(|list| list.split(','))
        {
            let address: Result<IpAddr, _> = address.parse();
            postgres.hostaddr(address.map_err(|_| {
                wrong_value(
                    "hostaddr",
                    "an IP address, or one for each host, separated by commas",
                )
            })?);
        }
        for port in self
            .text("port")?
            .into_iter()
            .flat_map(|ports| ports.split(','))
        {
            let port: Result<u16, _> = if port.is_empty() {
                Ok(5432)
            } else {
                port.trim().parse()
            };
            match port {
                Ok(port) if port > 0 => postgres.port(port),
                _ => return Err(wrong_value("port", "a number from 1 to 65535")),
            };
        }
        Ok(())
    }

    fn set_times(&self, postgres: &mut tokio_postgres::Config) -> Result<(), Error> {
        let (second, millisecond) = (Duration::from_secs(1), Duration::from_millis(1));
        self.time("connect_timeout", second)?
            .map(|time| postgres.connect_timeout(time));
        self.time("tcp_user_timeout", millisecond)?
            .map(|time| postgres.tcp_user_timeout(time));
        self.number::<i32>("keepalives")?
            .map(|keepalives| postgres.keepalives(keepalives != 0));
        self.time("keepalives_idle", second)?
            .map(|time| postgres.keepalives_idle(time));
        self.time("keepalives_interval", second)?
            .map(|time| postgres.keepalives_interval(time));
        // The driver calls it `keepalives_retries`, libpq `keepalives_count`.
        for name in ["keepalives_retries", "keepalives_count"] {
            self.number::<u32>(name)?
                .filter(|count| *count > 0)
                .map(|count| postgres.keepalives_retries(count));
        }
        Ok(())
    }

    fn tls(&self) -> Result<Tls, Error> {
        let roots = self.text("sslrootcert")?;
        let default = match roots {
            Some("system") => SslMode::VerifyFull,
            _ => SslMode::default(),
        };
        let mode = self.one_of("sslmode", &SslMode::WORDS)?.unwrap_or(default);
        let tls = Tls::new(mode);
        let tls = match roots {
            Some("system") => tls.system_roots(),
            Some(path) => tls.root_certificates_file(path),
            None => tls,
        };
        match (self.text("sslcert")?, self.text("sslkey")?) {
            (Some(certificate), Some(key)) => Ok(tls.client_certificate_files(certificate, key)),
            (None, None) => Ok(tls),
            _ => Err(wrong("set both sslcert and sslkey, or neither")),
        }
    }
}

/// The static name of a supported parameter. The error does not repeat an unknown name, which may be a part of a value.
fn known(name: &str) -> Result<&'static str, Error> {
    if let Some(name) = KNOWN.iter().find(|known| **known == name) {
        return Ok(name);
    }
    Err(match REFUSED.iter().find(|refused| **refused == name) {
        Some(name) => wrong(&format!("oddscache does not support the parameter {name}")),
        None => wrong(
            "an unknown parameter; put a value with spaces in single quotes, and write a & in the password of a URL as \
             %26",
        ),
    })
}

/// Splits before the first of these characters, or at the end of the text.
fn split_at_any<'a>(text: &'a str, characters: &[char]) -> (&'a str, &'a str) {
    text.split_at(text.find(characters).unwrap_or(text.len()))
}

/// Reads a value in quotes or up to white space. Returns it and what follows. The character after a backslash is taken
/// literally.
fn unquote(text: &str) -> Result<(String, &str), Error> {
    let (quoted, mut value) = (text.starts_with('\''), String::new());
    let mut characters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\'' if quoted => return Ok((value, text.get(at + 1..).unwrap_or_default())),
            '\\' => value.extend(characters.next().map(|(_, character)| character)),
            character if !quoted && character.is_whitespace() => {
                return Ok((value, text.get(at..).unwrap_or_default()));
            }
            character => value.push(character),
        }
    }
    if quoted {
        return Err(wrong("a quoted value has no closing quote"));
    }
    Ok((value, ""))
}

/// Decodes %XX in a part of a URL. The result need not be UTF-8.
fn decode(text: &str) -> Result<Vec<u8>, Error> {
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
    let (mut bytes, mut value) = (text.bytes(), Vec::with_capacity(text.len()));
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            value.push(byte);
            continue;
        }
        match (digit(bytes.next()), digit(bytes.next())) {
            // No parameter may contain a zero byte.
            (Some(high), Some(low)) if high + low > 0 => {
                value.push(u8::try_from(high * 16 + low).unwrap_or_default());
            }
            _ => {
                return Err(wrong(
                    "after a % must come two hexadecimal digits other than 00; write the % itself as %25",
                ));
            }
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};
    use tokio_postgres::config::Host;

    use super::*;
    use crate::postgres::hosts;

    fn parsed(text: &str) -> Parsed {
        let parameters = Parameters::parse(text).and_then(|parameters| parameters.build());
        parameters.unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn hosts(text: &str) -> (Vec<String>, Vec<u16>) {
        let config = parsed(text).postgres;
        let host = |host: &Host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        };
        let hosts = config.get_hosts().iter().map(host).collect();
        (hosts, config.get_ports().to_vec())
    }

    #[test]
    fn both_forms_mean_the_same() {
        let url = "postgresql://j%40ne:p%3Dw@h1:1,[::1],h3:3/o%20dds?sslmode=verify-full&sslrootcert=/r%20t&connect_timeout=7\
                   &target_session_attrs=prefer-standby&passfile=/p&keepalives_count=4&tcp_user_timeout=1500";
        let pairs = " host = h1,::1,h3 port='1,,3' user=j@ne password=p=w dbname='o dds' sslmode=verify-full sslrootcert=/r\\ t\n\
                     connect_timeout=7 target_session_attrs=prefer-standby passfile=/p keepalives_count=4 tcp_user_timeout=1500 ";
        for text in [url, pairs] {
            let Parsed {
                postgres,
                tls,
                session,
                passfile,
            } = parsed(text);
            assert_eq!(
                hosts(text),
                (
                    vec!["h1".into(), "::1".into(), "h3".into()],
                    vec![1, 5432, 3]
                ),
                "{text}"
            );
            assert_eq!(postgres.get_user(), Some("j@ne"));
            assert_eq!(postgres.get_password(), Some(b"p=w".as_slice()));
            assert_eq!(postgres.get_dbname(), Some("o dds"));
            assert_eq!(
                postgres.get_connect_timeout(),
                Some(&Duration::from_secs(7))
            );
            assert_eq!(
                postgres.get_tcp_user_timeout(),
                Some(&Duration::from_millis(1500))
            );
            assert_eq!(postgres.get_keepalives_retries(), Some(4));
            assert_eq!(
                (tls.mode, session),
                (SslMode::VerifyFull, Session::PreferStandby)
            );
            assert_eq!(passfile, Some("/p".into()));
            assert!(format!("{tls:?}").contains("/r t"), "{tls:?}");
        }
    }

    #[test]
    fn unusual_but_valid_forms_are_accepted() {
        assert_eq!(hosts(""), (vec![], vec![]));
        assert_eq!(hosts("postgres://"), (vec![], vec![]));
        assert_eq!(
            hosts("postgres:///odds?host=/tmp&port=5433"),
            (vec!["/tmp".into()], vec![5433])
        );
        assert_eq!(
            hosts("postgres://%2Ftmp/odds"),
            (vec!["/tmp".into()], vec![])
        );
        assert_eq!(hosts("postgres://u@h"), (vec!["h".into()], vec![]));
        assert_eq!(
            hosts("host=a,b port=6000"),
            (vec!["a".into(), "b".into()], vec![6000])
        );
        assert_eq!(parsed("postgres://h/?ssl=true").tls.mode, SslMode::Require);
        assert_eq!(parsed("sslrootcert=system").tls.mode, SslMode::VerifyFull);
        assert_eq!(
            parsed("password='it'").postgres.get_password(),
            Some(b"it".as_slice())
        );
        assert_eq!(
            parsed(r"password='it\'s'").postgres.get_password(),
            Some(b"it's".as_slice())
        );
        assert_eq!(
            parsed("postgres://u:pa?s&s=@h/d").postgres.get_password(),
            Some(b"pa?s&s=".as_slice())
        );
        assert_eq!(
            parsed("postgres://u:%FF@h/d").postgres.get_password(),
            Some(b"\xff".as_slice())
        );
        assert_eq!(
            parsed("client_encoding=UTF8 gssencmode=disable")
                .postgres
                .get_hosts(),
            []
        );
    }

    #[test]
    fn only_missing_parameters_are_filled_in() {
        let mut parameters = Parameters::parse("postgres://u@h/d?sslmode=require").unwrap();
        for (name, value) in [
            ("port", "5433"),
            ("user", "other"),
            ("sslmode", "disable"),
            ("password", "p"),
        ] {
            parameters.fill_in(name, value).unwrap();
        }
        let Parsed { postgres, tls, .. } = parameters.build().unwrap();
        assert_eq!(
            (postgres.get_ports(), postgres.get_user(), tls.mode),
            ([5433].as_slice(), Some("u"), SslMode::Require)
        );
        assert_eq!(postgres.get_password(), Some(b"p".as_slice()));
    }

    /// No error may repeat a part of the string: it may be a password without quotes.
    #[test]
    fn errors_contain_no_value() {
        for (text, expected) in [
            ("password=hunter2 hunter3 host=x", "single quotes"),
            ("password=hunter2 hunter3=x", "unknown parameter"),
            ("password='hunter2", "no closing quote"),
            ("mysql://u:hunter2@h/d", "neither a URL"),
            ("postgres://u:hunter2/x@h/d", "%40"),
            ("postgres://u:hunter2/x/@h/d", "%40"),
            ("postgres://u:hunter2@x@h/d", "%40"),
            ("postgres://u:hunter2%@h/d", "%25"),
            ("postgres://u:hunter2%zz@h/d", "%25"),
            ("postgres://u:hunter2%00@h/d", "%25"),
            ("postgres://u:hunter2", "port must be"),
            ("postgres://h/d?hunter2", "no value"),
            ("postgres://h/d?password=x&hunter2=y", "unknown parameter"),
            ("postgres://[hunter2", "["),
            ("postgres://[::1]hunter2", "]"),
            ("host=h port=hunter2", "port must be"),
            ("host=h port=0", "port must be"),
            ("host=h port=70000", "port must be"),
            ("hostaddr=hunter2", "hostaddr must be"),
            ("sslmode=hunter2", "sslmode must be disable, allow"),
            ("target_session_attrs=hunter2", "prefer-standby"),
            ("connect_timeout=hunter2", "connect_timeout must be"),
            ("sslcert=hunter2", "or neither"),
            ("sslpassword=hunter2", "support the parameter sslpassword"),
            ("host=@hunter2", "host must be"),
            ("host=\0hunter2", "zero byte"),
            ("client_encoding=hunter2", "client_encoding must be"),
        ] {
            let error = Parameters::parse(text).and_then(|parameters| parameters.build().map(drop));
            let error = error.expect_err(text).to_string();
            assert!(
                error.contains(expected) && !error.contains("hunter"),
                "{text}: {error}"
            );
            assert_eq!(without_password(text).as_deref(), Some("***"), "{text}");
        }
    }

    /// Everything that a connection string gives, including the servers to try.
    fn understood(text: &str) -> Result<(Parsed, Vec<String>), Error> {
        let parsed = Parameters::parse(text)?.build()?;
        let targets = hosts::targets(&parsed.postgres)?;
        Ok((parsed, targets.iter().map(hosts::Target::name).collect()))
    }

    /// A character that none of our messages contains.
    const SECRET: &str = "\u{1F511}";

    /// Checks that an error repeats no part of the text, and that a text accepted by this module and by the driver
    /// means the same to both. Returns whether both accepted it.
    fn agrees_with_the_driver(text: &str) -> bool {
        let (ours, theirs) = (understood(text), text.parse::<tokio_postgres::Config>());
        let secret = text.replace(|character: char| character.is_ascii_uppercase(), SECRET);
        if let Err(error) = understood(&secret) {
            assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
        }
        // In a URL, the driver takes every @ as the end of the password; libpq takes only one before the first /.
        let agree_on_the_password = match text.split_once("://") {
            Some((_, rest)) => rest
                .split_once('/')
                .is_none_or(|(_, path)| !path.contains('@')),
            None => true,
        };
        let (Ok((ours, _)), Ok(theirs), true) = (ours, theirs, agree_on_the_password) else {
            return false;
        };
        let texts_of = |config: &tokio_postgres::Config| {
            let set = |value: Option<&[u8]>| value.filter(|it| !it.is_empty()).map(<[u8]>::to_vec);
            [
                set(config.get_user().map(str::as_bytes)),
                set(config.get_password()),
                set(config.get_dbname().map(str::as_bytes)),
                set(config.get_options().map(str::as_bytes)),
            ]
        };
        assert_eq!(texts_of(&ours.postgres), texts_of(&theirs), "{text}");
        true
    }

    /// Checks that properly quoted values come back from either form.
    fn come_back([user, password, name]: [&str; 3]) {
        let escaped =
            |value: &str| -> String { value.bytes().map(|byte| format!("%{byte:02X}")).collect() };
        let pairs = format!(
            "user={} password = {} dbname={} host=h",
            quoted(user),
            quoted(password),
            quoted(name)
        );
        let url = format!(
            "postgres://{}:{}@h/{}",
            escaped(user),
            escaped(password),
            escaped(name)
        );
        for text in [pairs, url] {
            let (parsed, hosts) = understood(&text).expect("what is written well is read");
            let config = parsed.postgres;
            assert_eq!(config.get_user(), Some(user), "{text}");
            assert_eq!(config.get_password(), Some(password.as_bytes()), "{text}");
            assert_eq!(config.get_dbname(), Some(name), "{text}");
            assert_eq!(hosts, ["h:5432"], "{text}");
            assert_eq!(parsed.tls.mode, SslMode::Prefer, "{text}");
            // Printing changes nothing but the password.
            let printed = without_password(&text).expect("it holds a password");
            let (parsed, _) = understood(&printed).expect("what is printed is read");
            let config = parsed.postgres;
            assert_eq!(config.get_user(), Some(user), "{printed}");
            assert_eq!(config.get_password(), Some(b"***".as_slice()), "{printed}");
            assert_eq!(config.get_dbname(), Some(name), "{printed}");
        }
    }

    #[test]
    fn long_strings_mean_what_libpq_says() {
        // The driver knows neither verify-full nor sslcert.
        assert!(!agrees_with_the_driver(
            "postgresql://u:p%40@h1:1,[::1]:2,h3/d?sslmode=verify-full&sslrootcert=system&options=-c%20x&hostaddr=1.2.3.4"
        ));
        assert!(!agrees_with_the_driver(
            r"host=/tmp port='5,6' user = u password='it\'s' dbname=d sslcert=a sslkey=b target_session_attrs=prefer-standby channel_binding=require"
        ));
        assert!(agrees_with_the_driver(
            "postgresql://u:p%40@h1:1,[::1]:2,h3:3/d?sslmode=require&options=-c%20x"
        ));
        assert!(agrees_with_the_driver(
            r"host=/tmp port=5 user = u password='it\'s' dbname=d options='-c x' channel_binding=require"
        ));
        come_back(["user", "pass word", "name"]);
    }

    /// A value that often contains characters with a special meaning.
    fn any_value() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            4 => "[a-zA-Z0-9]{1,4}",
            4 => select(vec!["@", "/", ":", "?", "&", "=", "%", "%40", "%00", "%4", "%FF", "'", r"\", r"\'", " ", ",", "[", "]", "é"])
                .prop_map(str::to_owned),
            1 => "\\PC{0,2}",
        ];
        vec(piece, 0..4).prop_map(|pieces| pieces.concat())
    }

    fn any_text() -> impl Strategy<Value = String> {
        let name = || {
            prop_oneof![
                6 => select(vec!["user", "password", "dbname", "options", "host", "port"]).prop_map(str::to_owned),
                2 => select(KNOWN.to_vec()).prop_map(str::to_owned),
                1 => select(REFUSED.to_vec()).prop_map(str::to_owned),
                1 => any_value(),
            ]
        };
        let pair = (
            name(),
            select(vec!["=", "=", " = ", ""]),
            any_value(),
            any::<bool>(),
        )
            .prop_map(|(name, equals, value, quoted)| match quoted {
                true => format!("{name}{equals}'{value}'"),
                false => format!("{name}{equals}{value}"),
            });
        let pairs = vec(pair, 0..4).prop_map(|pairs| pairs.join(" "));
        let plain = || prop_oneof![2 => "[a-zA-Z]{0,4}", 1 => any_value()];
        let query = vec((name(), select(vec!["=", "=", "="]), plain()), 0..3).prop_map(|pairs| {
            let pairs: Vec<String> = pairs
                .into_iter()
                .map(|(name, equals, value)| name + equals + &value)
                .collect();
            pairs.join("&")
        });
        let host = prop_oneof![
            4 => select(vec!["", "h", "h:1", "[::1]", "[::1]:2", "h1:1,h2:2", "h1,h2"]).prop_map(str::to_owned),
            1 => any_value(),
        ];
        let url = (
            select(vec!["postgres://", "postgresql://"]),
            (
                plain(),
                select(vec!["", ":"]),
                plain(),
                select(vec!["", "@"]),
            ),
            host,
            (select(vec!["", "/"]), plain()),
            (select(vec!["", "?"]), query),
        )
            .prop_map(
                |(scheme, (user, colon, password, at), host, (slash, name), (mark, query))| {
                    format!("{scheme}{user}{colon}{password}{at}{host}{slash}{name}{mark}{query}")
                },
            );
        prop_oneof![4 => pairs, 4 => url, 1 => ".{0,20}"]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_string_means_what_libpq_says(text in any_text()) {
            agrees_with_the_driver(&text);
        }

        #[test]
        fn any_quoted_values_come_back(values in prop::array::uniform3(prop_oneof!["[a-z '\\\\@:/%]{1,8}", "[^\\x00]{1,8}"])) {
            come_back([&values[0], &values[1], &values[2]]);
        }
    }
}
