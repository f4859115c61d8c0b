use std::process::ExitCode;

use schemas::entry::{Entry, find, nearest};
use schemas::lora::LoraConfig;
use schemas::port::{Grad, Port};
use serde_json::{Map, Value, json};

use crate::out::say;

/// Explain a kind: what it is, its ports and its options
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the kind, as `playhouse list` shows it, or `lora`
    #[arg(required_unless_present = "all")]
    kind: Option<String>,
    /// All kinds, as a page of the book
    #[arg(long, conflicts_with = "kind")]
    all: bool,
}

/// Prints the documentation of a kind.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Some(kind) = &args.kind else {
        print_all();
        return Ok(ExitCode::SUCCESS);
    };
    let mut observers = actors::OBSERVERS.iter();
    let observer = observers.find(|(name, _, _)| *kind == format!("observers/{name}"));
    if let Some((name, about, _)) = observer {
        say!("observers/{name}\n\n{about}\n\nwrite it as `{name}` under `observers`");
        return Ok(ExitCode::SUCCESS);
    }
    if kind == "lora" {
        let schema = serde_json::to_value(schemars::schema_for!(LoraConfig))?;
        let about = schema["description"].as_str().unwrap_or_default();
        say!("lora, a key of any node\n\n{about}");
        print_options(&schema);
        return Ok(ExitCode::SUCCESS);
    }
    let Some(entry) = find(modules::REGISTRY, kind) else {
        let names = modules::REGISTRY.iter().map(|(name, _, _)| *name);
        let hint = match nearest(kind, names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`playhouse list` shows all kinds".to_owned(),
        };
        anyhow::bail!("no kind is named `{kind}`; {hint}");
    };
    say!("{kind}\n");
    print(entry);
    Ok(ExitCode::SUCCESS)
}

/// The page of the book that lists every kind with its ports and options.
fn print_all() {
    say!("# Reference of kinds\n");
    say!("Written by `playhouse explain --all`; a test holds it to the program.");
    for (kind, _, entry) in modules::REGISTRY {
        say!("\n## {kind}\n\n```text");
        print(entry);
        say!("```");
    }
}

fn print(entry: &Entry) {
    for line in entry.about.lines().take_while(|line| line.starts_with("//!")) {
        say!("{}", line.trim_start_matches("//!").trim_start_matches(' '));
    }
    let schema = (entry.schema)();
    print_ports(entry, &schema);
    print_options(&schema);
}

/// Options that must be given, with a value each.
fn examples(schema: &Value) -> Map<String, Value> {
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let example = |name: &str| match schema["properties"][name]["type"].as_str() {
        Some("integer") => json!(8),
        Some("number") => json!(0.5),
        _ => json!("name"),
    };
    required.map(|name| (name.to_owned(), example(name))).collect()
}

fn print_ports(entry: &Entry, schema: &Value) {
    let examples = examples(schema);
    let given: Vec<String> =
        examples.iter().map(|(name, value)| format!("`{name}: {value}`")).collect();
    let Ok(options) = (entry.resolve)(&Value::Object(examples)) else { return };
    let ports = (entry.ports)(&options, &[]);
    match given.as_slice() {
        [] => say!("\nports with default options"),
        given => say!("\nports with {}", given.join(", ")),
    }
    let line = |way: &str, port: &Port| {
        let grad = match (port.grad, way) {
            (Grad::Loss, _) => "gradient begins",
            (Grad::Flows, _) => "gradient flows",
            (Grad::Stopped, "in") => "gradient ends",
            (Grad::Stopped, _) => "no gradient",
        };
        let optional = if port.optional { ", optional" } else { "" };
        let class = port.elements.name();
        say!("  {way:<4} {:<16} {:<32} {class}, {grad}{optional}", port.name, port.dims);
    };
    ports.inputs.iter().for_each(|port| line("in", port));
    ports.outputs.iter().for_each(|port| line("out", port));
}

fn print_options(schema: &Value) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    if properties.is_empty() {
        return;
    }
    say!("\noptions");
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, property) in properties {
        let about = property.get("description").and_then(Value::as_str).unwrap_or_default();
        let default = property.get("default").filter(|d| !d.is_null());
        let default = match default {
            Some(default) => format!(" (default {default})"),
            None if required.contains(&name.as_str()) => " (must be given)".to_owned(),
            None => String::new(),
        };
        say!("  {name:<20} {}{default}", about.replace('\n', " "));
        let words = words(property, schema);
        if !words.is_empty() {
            say!("  {:<20} one of {}", "", words.join(", "));
        }
    }
}

/// The words that an option takes, if it takes only some.
fn words(property: &Value, schema: &Value) -> Vec<String> {
    let reference = property["$ref"].as_str().or_else(|| property["allOf"][0]["$ref"].as_str());
    let resolved = reference.and_then(|path| schema.pointer(path.trim_start_matches('#')));
    let of = resolved.unwrap_or(property);
    let listed = of["enum"].as_array().into_iter().flatten();
    let named = of["oneOf"].as_array().into_iter().flatten();
    let named = named.flat_map(|form| match (&form["const"], form["enum"].as_array()) {
        (Value::Null, Some(words)) => words.iter().collect(),
        (Value::Null, None) => Vec::new(),
        (word, _) => vec![word],
    });
    listed.chain(named).filter_map(Value::as_str).map(|word| format!("`{word}`")).collect()
}
