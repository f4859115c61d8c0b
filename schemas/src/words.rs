//! What a deserializer says, in the words of a person who writes YAML.

use crate::entry::nearest;

/// A message about the value called `name`, and what to write instead. Text of another origin
/// comes back as it is, without a hint.
pub fn plain(text: &str, name: &str) -> (String, String) {
    several_forms(text, name)
        .or_else(|| wrong_type(text, name))
        .or_else(|| unknown_word(text, name))
        .or_else(|| missing(text))
        .unwrap_or_else(|| (text.to_owned(), String::new()))
}

/// `takes this or that; write, for example, …`, as types of several forms say.
fn several_forms(text: &str, name: &str) -> Option<(String, String)> {
    let (takes, hint) = text.strip_prefix("takes ")?.split_once("; ")?;
    Some((format!("`{name}` has another form; it takes {takes}"), hint.to_owned()))
}

/// What a value at a dotted path is called: its key, or the key of its list.
pub fn name(path: &str) -> &str {
    let keys = path.rsplit('.').find(|key| key.parse::<usize>().is_err());
    keys.unwrap_or(path)
}

/// `invalid type: string "many", expected u64`.
fn wrong_type(text: &str, name: &str) -> Option<(String, String)> {
    let rest = ["invalid type: ", "invalid value: ", "invalid length "]
        .iter()
        .find_map(|start| text.strip_prefix(start))?;
    let (found, expected) = rest.split_once(", expected ")?;
    let (expected, example) = expectation(expected);
    let found = match found {
        "null" => "nothing".to_owned(),
        "map" => "a mapping".to_owned(),
        "sequence" => "a list".to_owned(),
        length if length.parse::<usize>().is_ok() => format!("a list of {length}"),
        other => literal(other),
    };
    let message = format!("`{name}` is {found}, expected {expected}");
    let hint = match example {
        "" => format!("write {expected}"),
        example => format!("write, for example, `{name}: {example}`"),
    };
    Some((message, hint))
}

/// The value in `string "many"` or ``integer `3` ``, in backticks.
fn literal(found: &str) -> String {
    let value = found.split_once(['"', '`']).map(|(_, rest)| rest.trim_end_matches(['"', '`']));
    value.map_or_else(|| found.to_owned(), |value| format!("`{value}`"))
}

/// What a Rust type is to people, and an example.
fn expectation(expected: &str) -> (String, &'static str) {
    let (words, example) = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => ("a whole number from 0", "8"),
        "i8" | "i16" | "i32" | "i64" | "isize" => ("a whole number", "8"),
        "f32" | "f64" => ("a number", "0.5"),
        "a string" | "string" | "str" => ("a word or text", "name"),
        "path string" => ("a path", "folder/file"),
        "a boolean" => ("`true` or `false`", "true"),
        "a sequence" => ("a list", "[first, second]"),
        "a map" => ("a mapping", ""),
        "an array of length 2" => ("a list of 2", "[0.9, 0.98]"),
        other if other.starts_with("struct ") => ("a mapping", ""),
        other => (other, ""),
    };
    (words.to_owned(), example)
}

/// ``unknown variant `adam`, expected `adamw` `` and the same of fields.
fn unknown_word(text: &str, name: &str) -> Option<(String, String)> {
    let variant = text.strip_prefix("unknown variant `");
    let field = text.strip_prefix("unknown field `");
    let (word, rest) = variant.or(field)?.split_once('`')?;
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let message = match variant {
        Some(_) if name == word => format!("unknown word `{word}`"),
        Some(_) => format!("`{name}` is `{word}`, which is not known"),
        None => format!("unknown key `{word}`"),
    };
    let all: Vec<String> = known.iter().map(|word| format!("`{word}`")).collect();
    let hint = match nearest(word, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if all.is_empty() => "leave it out; nothing is known here".to_owned(),
        None => format!("known are {}", all.join(", ")),
    };
    Some((message, hint))
}

/// ``missing field `lr` ``.
fn missing(text: &str) -> Option<(String, String)> {
    let key = text.strip_prefix("missing field `")?.strip_suffix('`')?;
    Some((format!("`{key}` is missing"), format!("write `{key}: …`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_value_and_what_to_write() {
        for (text, message, hint) in [
            (
                "invalid type: string \"many\", expected u64",
                "`steps` is `many`, expected a whole number from 0",
                "write, for example, `steps: 8`",
            ),
            (
                "invalid value: integer `-1`, expected usize",
                "`steps` is `-1`, expected a whole number from 0",
                "write, for example, `steps: 8`",
            ),
            (
                "unknown variant `adam`, expected `adamw`",
                "`steps` is `adam`, which is not known",
                "did you mean `adamw`?",
            ),
            (
                "unknown field `widht`, expected one of `patch`, `width`",
                "unknown key `widht`",
                "did you mean `width`?",
            ),
            ("missing field `lr`", "`lr` is missing", "write `lr: …`"),
            ("give it up", "give it up", ""),
        ] {
            assert_eq!(plain(text, "steps"), (message.to_owned(), hint.to_owned()));
        }
    }
}
