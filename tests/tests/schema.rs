//! The committed JSON Schema of experiment files is the one of this program, and accepts what the
//! program accepts.

use std::fs;

use serde_json::Value;
use tests::command::root;

const FILE: &str = "schemas/json/experiment.schema.json";

fn committed() -> String {
    fs::read_to_string(root().join(FILE)).unwrap_or_default()
}

#[test]
fn the_committed_schema_is_the_one_of_this_program() {
    let same = committed() == experiments::schema::text();
    assert!(same, "{FILE} is out of date; run `cargo run -p experiments -- schema > {FILE}`");
}

#[test]
fn every_reference_of_the_schema_resolves() {
    fn visit(schema: &Value, whole: &Value) {
        match schema {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    let path = reference.trim_start_matches('#').replace("%20", " ");
                    assert!(whole.pointer(&path).is_some(), "{reference}");
                }
                map.values().for_each(|value| visit(value, whole));
            }
            Value::Array(items) => items.iter().for_each(|item| visit(item, whole)),
            _ => {}
        }
    }
    let schema: Value = serde_json::from_str(&committed()).unwrap();
    visit(&schema, &schema);
}

#[test]
fn the_schema_knows_every_kind_with_its_options() {
    let schema: Value = serde_json::from_str(&committed()).unwrap();
    for (kind, _, entry) in modules::REGISTRY {
        let node = &schema["$defs"][format!("node {kind}")]["properties"];
        assert_eq!(node["kind"]["const"], *kind);
        let options = (entry.schema)();
        for name in options["properties"].as_object().into_iter().flatten().map(|(name, _)| name) {
            assert!(node.get(name).is_some(), "`{kind}` has an option `{name}`");
        }
    }
}
