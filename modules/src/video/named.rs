//! File names as messages show them.

use std::fmt::Write as _;
use std::path::Path;

/// A path for one line of a message: what would break or turn the line around is escaped, since
/// names of files come from strangers.
pub(crate) fn named(path: impl AsRef<Path>) -> String {
    one_line(&path.as_ref().to_string_lossy())
}

/// A text for one line of a message.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.chars() {
        let turns = matches!(letter, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if letter.is_control() || turns {
            let _ = write!(line, "{}", letter.escape_debug());
        } else {
            line.push(letter);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_on_its_line_and_is_else_unchanged() {
        assert_eq!(
            named("a\nwarning: \u{1b}[2J\u{202e}.mp4"),
            "a\\nwarning: \\u{1b}[2J\\u{202e}.mp4"
        );
        assert_eq!(named("d/\u{e9} \"q\" \u{65e5}.mp4"), "d/\u{e9} \"q\" \u{65e5}.mp4");
    }
}
