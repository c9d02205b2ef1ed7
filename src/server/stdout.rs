//! Standard output of the commands that print and end.

use std::io::{self, Write};

/// Standard output. If its reader has gone, as `head` does early, the rest is discarded. That is no error: the command
/// still does its work and ends with its own exit code. Any other failure is an error, such as a full disk.
///
/// Blocks while its reader does not read.
#[derive(Debug)]
pub(crate) struct Stdout {
    out: io::Stdout,
    is_closed: bool,
}

pub(crate) fn stdout() -> Stdout {
    Stdout {
        out: io::stdout(),
        is_closed: false,
    }
}

impl Stdout {
    /// `result`, or `otherwise` if it says that the reader has gone.
    fn unless_closed<T>(&mut self, result: io::Result<T>, otherwise: T) -> io::Result<T> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(otherwise)
            }
            result => result,
        }
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_closed {
            return Ok(bytes.len());
        }
        let written = self.out.write(bytes);
        self.unless_closed(written, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.is_closed {
            return Ok(());
        }
        let flushed = self.out.flush();
        self.unless_closed(flushed, ())
    }
}

/// Prints a line that may get lost. Unlike `println!`, it does not panic if the output cannot be written.
macro_rules! print_line {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}
pub(crate) use print_line;
