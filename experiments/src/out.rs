//! Lines for whoever reads the output.

use std::fmt;
use std::io::{self, ErrorKind, Write as _};

/// Prints a line. A reader that has gone, as `head` does, needs no more; another failure ends the program.
pub(crate) fn line(words: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    let written = out.write_fmt(words).and_then(|()| out.write_all(b"\n"));
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("error: cannot write the output: {error}");
            #[expect(clippy::disallowed_methods, reason = "what was asked for cannot be given")]
            std::process::exit(1);
        }
        _ => {}
    }
}

/// `println!` that survives a reader who leaves.
macro_rules! say {
    () => { $crate::out::line(format_args!("")) };
    ($($words:tt)*) => { $crate::out::line(format_args!($($words)*)) };
}
pub(crate) use say;
