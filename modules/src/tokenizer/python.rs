//! What templates expect of Python and of the library that they were written for.

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, State, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

/// Year, month from 1, day from 1.
pub(super) type Date = (i32, u32, u32);

/// Gives an environment what templates expect. Without a date `strftime_now` is undefined, which
/// templates can ask for.
pub(super) fn extend(
    environment: &mut Environment<'_>,
    date: Option<Date>,
    marks: Option<[char; 2]>,
) {
    environment.set_unknown_method_callback(super::bounds::method);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("it refuses the dialogue: {reason}")))
    });
    if let Some(date) = date {
        environment.add_function("strftime_now", move |format: String| strftime(&format, date));
    }
    environment.add_function(GENERATION, move |state: &mut State<'_, '_>, options: Kwargs| {
        let caller: Value = options.get("caller")?;
        let text = caller.call(state, &[])?;
        Ok::<_, Error>(match marks {
            Some([begin, end]) => Value::from(format!("{begin}{text}{end}")),
            None => text,
        })
    });
}

/// The function behind generation blocks.
const GENERATION: &str = "__generation";

/// Turns `{% generation %}` blocks into calls of a function, whose blanks and scopes are the same;
/// says whether there were any.
pub(super) fn generation_blocks(source: &str) -> (String, bool) {
    let mut result = String::with_capacity(source.len());
    let (mut rest, mut found) = (source, false);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        result.push_str(before);
        let sign = usize::from(matches!(tag.as_bytes().get(2), Some(b'-' | b'+')));
        let (open, inside) = tag.split_at(2 + sign);
        result.push_str(open);
        let word = inside.trim_start();
        let name: &str =
            word.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("");
        let after = &word[name.len()..];
        let ends = ["%}", "-%}", "+%}"].iter().any(|end| after.trim_start().starts_with(end));
        let call = match name {
            "generation" if ends => format!(" call {GENERATION}() "),
            "endgeneration" if ends => " endcall ".to_owned(),
            _ => {
                rest = inside;
                continue;
            }
        };
        found = true;
        result.push_str(&call);
        rest = after.trim_start();
    }
    result.push_str(rest);
    (result, found)
}

/// JSON as Python's `json.dumps` writes it.
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let failed = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::BadSerialization, format!("tojson: {error}"))
    };
    let mut json = serde_json::to_value(&value).map_err(|error| failed(&error))?;
    if sorted == Some(true) {
        json.sort_all_objects();
    }
    let mut bytes = Vec::new();
    match indent {
        Some(width) => {
            let blanks = " ".repeat(width.min(16));
            let pretty = PrettyFormatter::with_indent(blanks.as_bytes());
            json.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, pretty))
        }
        None => json.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced)),
    }
    .map_err(|error| failed(&error))?;
    let text = String::from_utf8(bytes).map_err(|error| failed(&error))?;
    Ok(if ascii == Some(true) { escaped(&text) } else { text })
}

fn escaped(text: &str) -> String {
    let mut result = String::new();
    for letter in text.chars() {
        if letter.is_ascii() {
            result.push(letter);
        } else {
            let units = &mut [0; 2];
            for unit in letter.encode_utf16(units) {
                result.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    result
}

/// `, ` and `: ` between values.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W>(&mut self, writer: &mut W) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        writer.write_all(b": ")
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A date in Python's notation; the time of day is midnight.
fn strftime(format: &str, (year, month, day): Date) -> Result<String, Error> {
    let name = MONTHS[(month.clamp(1, 12) - 1) as usize];
    // Sakamoto's rule.
    let shift = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4][(month.clamp(1, 12) - 1) as usize];
    let y = year - i32::from(month < 3);
    let weekday = y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + shift + day as i32;
    let weekday = DAYS[weekday.rem_euclid(7) as usize];
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        match letters.next() {
            Some('Y') => text.push_str(&year.to_string()),
            Some('y') => text.push_str(&format!("{:02}", year.rem_euclid(100))),
            Some('m') => text.push_str(&format!("{month:02}")),
            Some('d') => text.push_str(&format!("{day:02}")),
            Some('B') => text.push_str(name),
            Some('b') => text.push_str(&name[..3]),
            Some('A') => text.push_str(weekday),
            Some('a') => text.push_str(&weekday[..3]),
            Some('H' | 'M' | 'S') => text.push_str("00"),
            Some('%') => text.push('%'),
            other => {
                let other = other.map_or_else(String::new, String::from);
                let reason = format!("strftime_now does not know `%{other}`");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_python_writes_them() {
        let written = |date| strftime("%A %a %d %b %B %Y %y-%m-%d %H:%M 100%%", date).unwrap();
        let expected = "Saturday Sat 29 Feb February 2020 20-02-29 00:00 100%";
        assert_eq!(written((2020, 2, 29)), expected);
        assert!(strftime("%d", (2026, 11, 21)).unwrap() == "21");
        assert!(strftime("%Q", (2026, 11, 21)).is_err());
    }

    #[test]
    fn generation_blocks_keep_their_blanks() {
        let (source, found) =
            generation_blocks("a {%- generation -%} x {% endgeneration +%} {% if %}");
        assert_eq!(source, "a {%- call __generation() -%} x {% endcall +%} {% if %}");
        assert!(found);
        assert!(!generation_blocks("{% set generation = 1 %}{{ generation }} {%").1);
    }
}
