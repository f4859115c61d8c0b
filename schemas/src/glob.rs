//! Patterns of names.

/// Whether a text fits a pattern in which `*` stands for any characters.
pub fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, text, fit) in [
            ("head.*", "head.weight", true),
            ("head.*", "overhead.weight", false),
            ("*.lora_?", "a.lora_?", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "a.c.b.c", true),
            ("a*a", "a", false),
            ("a", "ab", false),
            ("*", "", true),
            ("blocks.*.gate", "blocks.3.x.gate", true),
            ("blocks.*.gate", "blocks.3.gate.bias", false),
        ] {
            assert_eq!(fits(pattern, text), fit, "{pattern} {text}");
        }
    }
}
