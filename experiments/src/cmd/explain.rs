use std::process::ExitCode;

use schemas::entry::{Entry, find, nearest};
use schemas::port::{Grad, Port};
use serde_json::Value;

/// Explain a kind: what it is, its ports and its options
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the kind, as `playhouse list` shows it
    kind: String,
}

/// Prints the documentation of a kind.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Some(entry) = find(modules::REGISTRY, &args.kind) else {
        let names = modules::REGISTRY.iter().map(|(name, _, _)| *name);
        let hint = nearest(&args.kind, names).map(|n| format!("; did you mean `{n}`?"));
        anyhow::bail!("no kind is named `{}`{}", args.kind, hint.unwrap_or_default());
    };
    println!("{}\n", args.kind);
    for line in entry.about.lines().take_while(|line| line.starts_with("//!")) {
        println!("{}", line.trim_start_matches("//!").trim_start_matches(' '));
    }
    print_ports(entry);
    print_options(entry);
    Ok(ExitCode::SUCCESS)
}

fn print_ports(entry: &Entry) {
    let empty = Value::Object(serde_json::Map::new());
    let Ok(options) = (entry.resolve)(&empty) else { return };
    let ports = (entry.ports)(&options, &[]);
    println!("\nports with default options");
    let line = |way: &str, port: &Port| {
        let grad = match port.grad {
            Grad::Flows => "gradient flows",
            Grad::Stopped => "no gradient",
            Grad::Loss => "gradient begins",
        };
        let optional = if port.optional { ", optional" } else { "" };
        let class = port.elements.name();
        println!("  {way:<4} {:<16} {:<32} {class}, {grad}{optional}", port.name, port.dims);
    };
    ports.inputs.iter().for_each(|port| line("in", port));
    ports.outputs.iter().for_each(|port| line("out", port));
}

fn print_options(entry: &Entry) {
    let schema = (entry.schema)();
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    if properties.is_empty() {
        return;
    }
    println!("\noptions");
    for (name, property) in properties {
        let about = property.get("description").and_then(Value::as_str).unwrap_or_default();
        let default = property.get("default").filter(|d| !d.is_null());
        let default = default.map_or_else(String::new, |d| format!(" (default {d})"));
        println!("  {name:<20} {}{default}", about.replace('\n', " "));
    }
}
