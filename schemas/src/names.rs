//! What a node, a stage or a host may be called: names become parts of files and of keys.

use crate::diagnostic::{Code, Diagnostic, Report};
use crate::yaml::Located;

/// Reports a name that is none.
pub(crate) fn check_name(name: &str, path: &str, at: &Located, report: &mut Report) {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
        let message = format!("`{}` is not a name", name.escape_debug());
        report.add(
            Diagnostic::new(Code::Value, &at.place, path, message)
                .hint("use up to 64 letters, digits, `_` and `-`"),
        );
    }
}
