//! Bounds on templates of strangers: steps, text, depth.
//!
//! The engine counts steps. What a single step may build is bounded here: every instruction that
//! builds a value is followed by a filter that measures the value, so a template that doubles a
//! string ends with an error before memory does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::machinery::{self, Instruction, Instructions, Token};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Bytes of text in one value, with all that it holds.
const VALUE: usize = 8 << 20;
/// What a value counts beside its text.
const NODE: usize = 16;
/// Bytes of text and numbers of values that a rendering may build in all.
const TOTAL: usize = 128 << 20;
/// Values in values.
const DEPTH: usize = 32;
/// Instructions of a rendering, and more for each message.
const STEPS: u64 = 100_000;
const STEPS_A_MESSAGE: u64 = 1_000;

const MEASURE: &str = "__measure";
const MEASURE_PLAIN: &str = "__measure_plain";
/// A variable that is 1.
const ONE: &str = "__one";
/// The engine looks a filter with this number up each time.
const NO_CACHE: u8 = !0;

/// Filters and functions that can build much of little and that no chat template needs.
const UNBOUNDED: [&str; 6] = ["batch", "format", "groupby", "pprint", "slice", "zip"];

fn too_much(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("the template builds {what}"))
}

/// What a rendering may still build.
#[derive(Debug, Clone)]
struct Budget(Arc<AtomicUsize>);

impl Budget {
    fn spend(&self, amount: usize) -> Result<(), Error> {
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(amount), Ordering::Relaxed);
        if amount > left {
            return Err(too_much(&format!("more than {} MiB in all", TOTAL >> 20)));
        }
        Ok(())
    }

    /// Refuses a value that is too large or too deep; `plain` refuses namespaces too, since one
    /// that held itself would have no end.
    fn measure(&self, value: &Value, plain: bool) -> Result<(), Error> {
        let mut text = 0;
        self.walk(value, plain, 0, &mut text)?;
        // Text in collections was paid for when it was made.
        self.spend(if value.as_str().is_some() { text } else { NODE })
    }

    fn walk(
        &self,
        value: &Value,
        plain: bool,
        depth: usize,
        text: &mut usize,
    ) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(too_much(&format!("values in more than {DEPTH} values")));
        }
        *text += NODE + value.as_str().map_or(0, str::len);
        if *text > VALUE {
            return Err(too_much(&format!("a value of more than {} MiB", VALUE >> 20)));
        }
        let kind = value.kind();
        if !matches!(kind, ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
            return Ok(());
        }
        let namespace =
            |object: &minijinja::value::DynObject| object.type_name().ends_with("::Namespace");
        if plain && value.as_object().is_some_and(namespace) {
            return Err(too_much("a namespace in a namespace"));
        }
        for item in value.try_iter()? {
            self.spend(NODE)?;
            if kind == ValueKind::Map {
                self.walk(&value.get_item(&item)?, plain, depth + 1, text)?;
            }
            self.walk(&item, plain, depth + 1, text)?;
        }
        Ok(())
    }
}

/// Bounds an environment for a dialogue of this many messages.
pub(super) fn limit(environment: &mut Environment<'_>, messages: usize) {
    environment.set_fuel(Some(STEPS + STEPS_A_MESSAGE * messages as u64));
    for name in UNBOUNDED {
        environment.remove_filter(name);
    }
    environment.remove_global("debug");
    environment.add_global(ONE, 1);
    let budget = Budget(Arc::new(AtomicUsize::new(TOTAL)));
    for (name, plain) in [(MEASURE, false), (MEASURE_PLAIN, true)] {
        let budget = budget.clone();
        environment
            .add_filter(name, move |value: Value| budget.measure(&value, plain).map(|()| value));
    }
    environment.add_filter("replace", |text: String, from: String, to: String| {
        check_replace(&text, &from, &to)?;
        Ok::<_, Error>(text.replace(&from, &to))
    });
    environment.add_filter("join", join);
    environment.add_filter("indent", indent);
    environment.set_formatter(move |out, state, value| {
        budget.measure(value, false)?;
        if let Some(text) = value.as_str() {
            return out.write_str(text).map_err(Error::from);
        }
        match value.kind() {
            ValueKind::None => out.write_str("None").map_err(Error::from),
            ValueKind::Bool => {
                let name = if value.is_true() { "True" } else { "False" };
                out.write_str(name).map_err(Error::from)
            }
            _ => minijinja::escape_formatter(out, state, value),
        }
    });
}

fn join(values: Value, between: Option<String>) -> Result<String, Error> {
    let between = between.unwrap_or_default();
    let mut text = String::new();
    for (index, value) in values.try_iter()?.enumerate() {
        if index > 0 {
            text.push_str(&between);
        }
        match value.as_str() {
            Some(part) => text.push_str(part),
            None => text.push_str(&value.to_string()),
        }
        if text.len() > VALUE {
            return Err(too_much(&format!("a value of more than {} MiB", VALUE >> 20)));
        }
    }
    Ok(text)
}

fn indent(text: String, width: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let width = width.or(options.get("width")?).unwrap_or(4);
    let (first, blank): (Option<bool>, Option<bool>) =
        (options.get("first")?, options.get("blank")?);
    options.assert_all_used()?;
    if width > 32 {
        return Err(too_much("an indent of more than 32 blanks"));
    }
    let mut lines = Vec::new();
    for (index, line) in text.split('\n').enumerate() {
        let moved =
            if index == 0 { first == Some(true) } else { !line.is_empty() || blank == Some(true) };
        lines.push(if moved { " ".repeat(width) + line } else { line.to_owned() });
    }
    Ok(lines.join("\n"))
}

/// Refuses a replacement that would give more than a value may hold.
fn check_replace(text: &str, from: &str, to: &str) -> Result<(), Error> {
    let grown = text.matches(from).count().saturating_mul(to.len());
    if text.len().saturating_add(grown) > VALUE {
        return Err(too_much(&format!("a value of more than {} MiB", VALUE >> 20)));
    }
    Ok(())
}

/// Methods of Python's values, those that could build much bounded.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    match (name, value.as_str(), arguments) {
        ("replace", Some(text), [from, to, ..]) => {
            check_replace(text, from.as_str().unwrap_or(""), to.as_str().unwrap_or(""))?;
        }
        ("join", Some(text), [values]) => {
            return join(values.clone(), Some(text.to_owned())).map(Value::from);
        }
        ("format", Some(_), _) => return Err(Error::from(ErrorKind::UnknownMethod)),
        _ => {}
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

/// The source with a factor of 1 in each product. The compiler multiplies constants by itself,
/// unmeasured; with a variable among them it does not.
pub(super) fn unfolded(source: &str, syntax: SyntaxConfig) -> String {
    let (mut result, mut done) = (String::with_capacity(source.len()), 0);
    let mut operand = false;
    for (token, span) in machinery::tokenize(source, false, syntax).map_while(Result::ok) {
        let end = span.end_offset as usize;
        // After an opening or a comma the sign spreads arguments.
        if operand && matches!(token, Token::Mul) && source[..end].ends_with('*') {
            result.push_str(&source[done..end]);
            result.push_str(ONE);
            result.push('*');
            done = end;
        }
        operand = !matches!(token, Token::ParenOpen | Token::BracketOpen | Token::Comma);
    }
    result.push_str(&source[done..]);
    result
}

/// The same instructions, with measures where values are built or written.
pub(super) fn measured<'s>(from: &Instructions<'s>) -> Instructions<'s> {
    let all = || (0..).map_while(|at| from.get(at).map(|instruction| (at, instruction)));
    let mut places = Vec::new();
    let mut next = 0;
    for (_, instruction) in all() {
        places.push(next);
        next += spread(instruction).len() as u32;
    }
    places.push(next);
    let place = |target: u32| places.get(target as usize).copied().unwrap_or(next);
    let mut to = Instructions::new(from.name(), from.source());
    for (at, instruction) in all() {
        for mut instruction in spread(instruction) {
            match &mut instruction {
                Instruction::Jump(target)
                | Instruction::JumpIfFalse(target)
                | Instruction::JumpIfFalseOrPop(target)
                | Instruction::JumpIfTrueOrPop(target)
                | Instruction::Iterate(target)
                | Instruction::BuildMacro(_, target, _) => *target = place(*target),
                _ => {}
            }
            match (from.get_span(at), from.get_line(at)) {
                (Some(span), _) => to.add_with_span(instruction, span),
                (None, Some(line)) => to.add_with_line(instruction, line.min(65_535) as u16),
                (None, None) => to.add(instruction),
            };
        }
    }
    to
}

/// An instruction with its measures.
fn spread<'s>(instruction: &Instruction<'s>) -> Vec<Instruction<'s>> {
    let measure = || Instruction::ApplyFilter(MEASURE, Some(1), NO_CACHE);
    match instruction {
        // Raw text goes the way of values, which is bounded.
        Instruction::EmitRaw(text) => {
            vec![Instruction::LoadConst(Value::from(*text)), Instruction::Emit]
        }
        Instruction::SetAttr(_) => {
            let plain = Instruction::ApplyFilter(MEASURE_PLAIN, Some(1), NO_CACHE);
            vec![Instruction::Swap, plain, Instruction::Swap, instruction.clone()]
        }
        Instruction::Add
        | Instruction::Mul
        | Instruction::StringConcat
        | Instruction::ApplyFilter(..)
        | Instruction::CallFunction(..)
        | Instruction::CallMethod(..)
        | Instruction::CallObject(..)
        | Instruction::EndCapture
        | Instruction::BuildList(_)
        | Instruction::BuildTuple(_)
        | Instruction::BuildMap(_) => vec![instruction.clone(), measure()],
        _ => vec![instruction.clone()],
    }
}
