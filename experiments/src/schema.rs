//! The JSON Schema of experiment files: the types of `schemas`, and the options of every kind.
//!
//! An editor that reads it completes keys, kinds, and the options of the kind that is written.

use schemas::experiment::{Experiment, NODE_KEYS};
use serde_json::{Map, Value, json};

/// The schema as it is committed.
pub fn text() -> String {
    let mut text = serde_json::to_string_pretty(&experiment()).expect("a schema is plain data");
    text.push('\n');
    text
}

/// The schema of an experiment file.
pub fn experiment() -> Value {
    let mut schema =
        serde_json::to_value(schemars::schema_for!(Experiment)).expect("a schema is plain data");
    let mut definitions = match schema["$defs"].take() {
        Value::Object(definitions) => definitions,
        _ => Map::new(),
    };
    let common = definitions.remove("NodeConfig").unwrap_or_default();
    let mut nodes = Vec::new();
    for (kind, about, entry) in modules::REGISTRY {
        let name = format!("node {kind}");
        let node = node(kind, about, &common, (entry.schema)(), &mut definitions);
        nodes.push(json!({ "$ref": format!("#/$defs/{}", pointer(&name)) }));
        definitions.insert(name, node);
    }
    definitions.insert("NodeConfig".to_owned(), json!({ "anyOf": nodes }));
    name_observers(&mut definitions);
    definitions.sort_keys();
    schema["$defs"] = Value::Object(definitions);
    schema["title"] = json!("Playhouse experiment");
    // An overlay may leave out what the experiment under it has.
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("required");
    }
    schema
}

/// A node of one kind: the keys of every node, and the options.
fn node(
    kind: &str,
    about: &str,
    common: &Value,
    mut options: Value,
    definitions: &mut Map<String, Value>,
) -> Value {
    let prefix = format!("{kind} ");
    prefix_references(&mut options, &prefix);
    if let Value::Object(inner) = options["$defs"].take() {
        definitions
            .extend(inner.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value)));
    }
    let mut properties = Map::new();
    for key in NODE_KEYS {
        properties.insert(key.to_owned(), common["properties"][key].clone());
    }
    properties.insert("kind".to_owned(), json!({ "const": kind, "description": about }));
    if let Value::Object(own) = options["properties"].take() {
        properties.extend(own);
    }
    let mut required = vec![json!("kind")];
    required.extend(options["required"].as_array().into_iter().flatten().cloned());
    json!({
        "type": "object",
        "description": about,
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

/// Definitions of a kind get names of their own among those of all kinds.
fn prefix_references(schema: &mut Value, prefix: &str) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "$ref" => {
                        *text =
                            text.replacen("#/$defs/", &format!("#/$defs/{}", pointer(prefix)), 1);
                    }
                    _ => prefix_references(value, prefix),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| prefix_references(item, prefix)),
        _ => {}
    }
}

/// A name inside a JSON pointer inside a URI fragment.
fn pointer(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1").replace(' ', "%20")
}

/// Observers that exist, wherever their name is written.
fn name_observers(definitions: &mut Map<String, Value>) {
    let names = crate::read::surroundings(std::path::Path::new("")).observers;
    let Some(Value::Array(forms)) =
        definitions.get_mut("ObserverConfig").map(|o| o["anyOf"].take())
    else {
        return;
    };
    let mut forms = forms;
    for form in &mut forms {
        if form["type"] == "string" {
            form["enum"] = json!(names);
        } else {
            form["properties"]["kind"]["enum"] = json!(names);
        }
    }
    definitions["ObserverConfig"]["anyOf"] = Value::Array(forms);
}
