//! Reads the part of psql's language that the scripts use.

use super::step::{ScriptError, Step, Variables};

/// A branch of `\if`.
struct Branch {
    /// Whether what is in it counts.
    active: bool,
    /// Whether this or an earlier branch was taken, so that a later one is not.
    taken: bool,
}

pub(super) struct Interpreter<'a> {
    rest: &'a str,
    line: usize,
    variables: Variables,
    branches: Vec<Branch>,
    /// The statement being read.
    buffer: String,
    parentheses: usize,
    steps: Vec<Step>,
}

impl<'a> Interpreter<'a> {
    pub(super) fn new(text: &'a str, variables: Variables) -> Self {
        Interpreter {
            rest: text,
            line: 1,
            variables,
            branches: Vec::new(),
            buffer: String::new(),
            parentheses: 0,
            steps: Vec::new(),
        }
    }

    pub(super) fn run(mut self) -> Result<Vec<Step>, ScriptError> {
        while let Some(next) = self.rest.chars().next() {
            if self.rest.starts_with("--") {
                let end = self.rest.find('\n').unwrap_or(self.rest.len());
                self.copy(end);
            } else if self.rest.starts_with("/*") {
                let end = self.block_comment()?;
                self.copy(end);
            } else if next == '\'' {
                let end = self.quoted('\'', self.escapes())?;
                self.copy(end);
            } else if next == '"' {
                let end = self.quoted('"', false)?;
                self.copy(end);
            } else if let Some(end) = self.dollar_quoted()? {
                self.copy(end);
            } else if next == '\\' {
                self.command()?;
            } else if next == ':' {
                self.colon();
            } else if next == ';' && self.parentheses == 0 {
                self.skip(1);
                let statement = self.take_statement();
                self.push(statement.map(Step::Statement));
            } else {
                match next {
                    '(' => self.parentheses += 1,
                    ')' => self.parentheses = self.parentheses.saturating_sub(1),
                    _ => {}
                }
                self.copy(next.len_utf8());
            }
        }
        if !self.branches.is_empty() {
            return Err(self.unbalanced("\\if without \\endif"));
        }
        // psql runs what is left without a semicolon.
        let statement = self.take_statement();
        self.push(statement.map(Step::Statement));
        Ok(self.steps)
    }

    fn active(&self) -> bool {
        self.branches.iter().all(|branch| branch.active)
    }

    fn push(&mut self, step: Option<Step>) {
        self.steps.extend(step);
    }

    fn unbalanced(&self, what: &'static str) -> ScriptError {
        ScriptError::Unbalanced {
            what,
            line: self.line,
        }
    }

    fn skip(&mut self, bytes: usize) -> &'a str {
        let (passed, rest) = self.rest.split_at(bytes);
        self.line += passed.matches('\n').count();
        self.rest = rest;
        passed
    }

    /// Moves what is passed to the statement, unless a branch that is not taken hides it.
    fn copy(&mut self, bytes: usize) {
        let passed = self.skip(bytes);
        if self.active() {
            self.buffer.push_str(passed);
        }
    }

    /// The statement read so far without the comments before it; `None` when nothing is left.
    fn take_statement(&mut self) -> Option<String> {
        let buffer = std::mem::take(&mut self.buffer);
        self.parentheses = 0;
        let mut text = buffer.trim();
        while text.starts_with("--") {
            text = text
                .split_once('\n')
                .map_or("", |(_, rest)| rest)
                .trim_start();
        }
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// Whether the quote ahead belongs to `E'...'`, in which a backslash escapes.
    fn escapes(&self) -> bool {
        let mut before = self.buffer.chars().rev();
        matches!(before.next(), Some('e' | 'E')) && !before.next().is_some_and(is_word)
    }

    /// Length of the quoted text ahead. A doubled quote reads as two texts side by side, which is the same.
    fn quoted(&self, quote: char, escapes: bool) -> Result<usize, ScriptError> {
        let mut escaped = false;
        for (at, c) in self.rest.char_indices().skip(1) {
            if escaped {
                escaped = false;
            } else if escapes && c == '\\' {
                escaped = true;
            } else if c == quote {
                return Ok(at + 1);
            }
        }
        Err(self.unbalanced("a quote is never closed"))
    }

    fn block_comment(&self) -> Result<usize, ScriptError> {
        let mut depth = 0;
        let mut at = 0;
        while at < self.rest.len() {
            let ahead = &self.rest.as_bytes()[at..];
            if ahead.starts_with(b"/*") {
                depth += 1;
                at += 2;
            } else if ahead.starts_with(b"*/") {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return Ok(at);
                }
            } else {
                at += 1;
            }
        }
        Err(self.unbalanced("a comment is never closed"))
    }

    /// Length of the dollar-quoted text ahead, if there is one.
    fn dollar_quoted(&self) -> Result<Option<usize>, ScriptError> {
        // A dollar within a name, or before a digit (a parameter), quotes nothing.
        if !self.rest.starts_with('$') || self.buffer.chars().next_back().is_some_and(is_word) {
            return Ok(None);
        }
        let Some(end) = self.rest[1..].find('$') else {
            return Ok(None);
        };
        let tag = &self.rest[..end + 2];
        let name = &tag[1..end + 1];
        if !name.chars().all(is_word) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(None);
        }
        match self.rest[tag.len()..].find(tag) {
            Some(at) => Ok(Some(at + 2 * tag.len())),
            None => Err(self.unbalanced("a dollar quote is never closed")),
        }
    }

    /// `:name`, `:'name'`, `:"name"`; anything else after a colon is SQL.
    fn colon(&mut self) {
        if self.rest.starts_with("::") {
            return self.copy(2);
        }
        let mut after = self.rest[1..].chars();
        let quote = after.next().filter(|c| matches!(c, '\'' | '"'));
        let start = 1 + quote.map_or(0, char::len_utf8);
        let name = &self.rest[start..];
        let name = &name[..name.find(|c| !is_word(c)).unwrap_or(name.len())];
        let end = start + name.len();
        let closed = quote.is_none_or(|quote| self.rest[end..].starts_with(quote));
        let Some(value) = self.variables.get(name).filter(|_| closed) else {
            return self.copy(1);
        };
        let text = match quote {
            Some('\'') => quote_literal(value),
            Some(_) => format!("\"{}\"", value.replace('"', "\"\"")),
            None => value.clone(),
        };
        self.skip(end + quote.map_or(0, char::len_utf8));
        if self.active() {
            self.buffer.push_str(&text);
        }
    }

    /// A backslash command: to the end of its line.
    fn command(&mut self) -> Result<(), ScriptError> {
        let line = self.line;
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        let command = self.skip(end).trim();
        let (verb, argument) = command
            .split_once(char::is_whitespace)
            .map_or((command, ""), |(verb, argument)| (verb, argument.trim()));
        match verb {
            "\\if" => {
                let taken = self.active() && self.truth(argument, line)?;
                self.branches.push(Branch {
                    active: taken,
                    taken,
                });
            }
            "\\elif" | "\\else" => {
                let Some(branch) = self.branches.pop() else {
                    return Err(self.unbalanced("\\elif or \\else without \\if"));
                };
                let open = self.active() && !branch.taken;
                let active = open && (verb == "\\else" || self.truth(argument, line)?);
                self.branches.push(Branch {
                    active,
                    taken: branch.taken || active,
                });
            }
            "\\endif" => {
                if self.branches.pop().is_none() {
                    return Err(self.unbalanced("\\endif without \\if"));
                }
            }
            _ if !self.active() => {}
            "\\set" => {
                let (name, value) = argument
                    .split_once(char::is_whitespace)
                    .unwrap_or((argument, ""));
                let value = self.argument(value.trim(), command, line)?;
                self.variables.insert(name.to_owned(), value);
            }
            "\\echo" => {
                let text = self.argument(argument, command, line)?;
                self.push(Some(Step::Echo(text)));
            }
            "\\gexec" if argument.is_empty() => {
                let statement = self.take_statement();
                self.push(statement.map(Step::ForEach));
            }
            _ => {
                return Err(ScriptError::UnknownCommand {
                    command: command.to_owned(),
                    line,
                });
            }
        }
        Ok(())
    }

    /// One argument: a bare text, or one in single quotes.
    fn argument(&self, text: &str, command: &str, line: usize) -> Result<String, ScriptError> {
        let unknown = || ScriptError::UnknownCommand {
            command: command.to_owned(),
            line,
        };
        let Some(quoted) = text.strip_prefix('\'') else {
            return match text.contains(['\'', '"', '\\', ':', '`']) {
                true => Err(unknown()),
                false => Ok(text.to_owned()),
            };
        };
        let mut value = String::new();
        let mut chars = quoted.chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some('n') => value.push('\n'),
                    Some(c @ ('\\' | '\'')) => value.push(c),
                    _ => return Err(unknown()),
                },
                '\'' => match chars.next() {
                    Some('\'') => value.push('\''),
                    None => return Ok(value),
                    Some(_) => return Err(unknown()),
                },
                c => value.push(c),
            }
        }
        Err(unknown())
    }

    fn truth(&self, expression: &str, line: usize) -> Result<bool, ScriptError> {
        let name = expression
            .strip_prefix(":{?")
            .and_then(|name| name.strip_suffix('}'));
        if let Some(name) = name {
            return Ok(self.variables.contains_key(name));
        }
        let value = expression
            .strip_prefix(':')
            .and_then(|name| self.variables.get(name))
            .map_or(expression, String::as_str);
        match value.to_ascii_lowercase().as_str() {
            "on" | "true" | "yes" | "1" => Ok(true),
            "off" | "false" | "no" | "0" => Ok(false),
            _ => Err(ScriptError::NotBoolean {
                value: value.to_owned(),
                line,
            }),
        }
    }
}

/// A letter of a name, as psql's lexer sees it.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii()
}

/// As libpq's `PQescapeLiteral`.
fn quote_literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    match quoted.contains('\\') {
        true => format!(" E'{}'", quoted.replace('\\', r"\\")),
        false => format!("'{quoted}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn steps(text: &str, pairs: &[(&str, &str)]) -> Result<Vec<Step>, ScriptError> {
        Interpreter::new(text, variables(pairs)).run()
    }

    fn statements(text: &str, pairs: &[(&str, &str)]) -> Vec<String> {
        steps(text, pairs)
            .unwrap()
            .into_iter()
            .map(|step| match step {
                Step::Statement(text) => text,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn splits_at_top_level_semicolons_only() {
        let text = "select 1; select ';', \"a;b\", E'\\';', $$;$$, $x$ $$;$$ $x$ -- ;\n, /* ; /* ; */ ; */ 2;\n\
                    create rule r as on insert to t do (select 1; select 2); -- last\nselect $1, a$b;$2";
        assert_eq!(
            statements(text, &[]),
            [
                "select 1",
                "select ';', \"a;b\", E'\\';', $$;$$, $x$ $$;$$ $x$ -- ;\n, /* ; /* ; */ ; */ 2",
                "create rule r as on insert to t do (select 1; select 2)",
                "select $1, a$b",
                "$2",
            ]
        );
    }

    #[test]
    fn substitutes_as_psql_does() {
        let text = "select :'a', :\"a\", :n, x::n, ':n', \":n\", $$:n$$, :none, :'none', a[1:2] -- :n\n, :=n;";
        assert_eq!(
            statements(text, &[("a", "i'm \"so\""), ("n", "7")]),
            [
                "select 'i''m \"so\"', \"i'm \"\"so\"\"\", 7, x::n, ':n', \":n\", $$:n$$, :none, :'none', \
              a[1:2] -- :n\n, :=n"
            ]
        );
        assert_eq!(
            statements("select :'b'", &[("b", r"a\b")]),
            [r"select  E'a\\b'"]
        );
    }

    #[test]
    fn takes_one_branch() {
        let text = "\\if :{?a}\nselect 'set';\n\\else\n\\set a 'it''s \\\\ \\'x\\''\n\\endif\n\
                    \\if :b\nselect 1;\n\\elif on\n\\if off\n\\bogus\nselect 2;\n\\else\nselect :'a';\n\\endif\n\
                    \\else\nselect 4;\n\\endif";
        assert_eq!(
            statements(text, &[("a", "x"), ("b", "yes")]),
            ["select 'set'", "select 1"]
        );
        assert_eq!(
            statements(text, &[("b", "0")]),
            [r"select  E'it''s \\ ''x'''"]
        );
        assert_eq!(
            steps(text, &[]).unwrap_err(),
            ScriptError::NotBoolean {
                value: ":b".into(),
                line: 6
            }
        );
    }

    #[test]
    fn knows_gexec_and_echo_and_nothing_else() {
        assert_eq!(
            steps(
                "\\echo hello there\nselect 'select 1' \\gexec\nselect 2",
                &[]
            )
            .unwrap(),
            [
                Step::Echo("hello there".into()),
                Step::ForEach("select 'select 1'".into()),
                Step::Statement("select 2".into())
            ]
        );
        assert_eq!(
            steps("select 1;\n\\i other.sql\n", &[]).unwrap_err(),
            ScriptError::UnknownCommand {
                command: "\\i other.sql".into(),
                line: 2
            }
        );
        for open in [
            "\\if on\n",
            "\\endif",
            "\\else",
            "select '",
            "select $$",
            "/* ",
        ] {
            assert!(
                matches!(steps(open, &[]), Err(ScriptError::Unbalanced { .. })),
                "{open}"
            );
        }
    }
}
