//! Templates against what Python's transformers 5 with Jinja 3.1 gave, and templates of strangers.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn dialogue(turns: &[(Role, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}

/// A folder with a WordPiece tokenizer whose words are enough for one test.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

const VOCABULARY: &[u8] = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nman\n##s\nrun\n";

#[test]
fn templates_give_what_python_gives() {
    let all: Value = serde_json::from_str(include_str!("templates/rendered.json")).unwrap();
    let mut wrong = Vec::new();
    for case in all["cases"].as_array().unwrap() {
        let dialogue = case["dialogue"].as_str().unwrap();
        let name = case["template"].as_str().unwrap();
        let (template, messages) = match case["source"].as_str() {
            Some(source) => {
                (ChatTemplate::new(dialogue, source).unwrap().dated(2026, 11, 21), "system")
            }
            None => (ChatTemplate::built_in(name).unwrap(), dialogue),
        };
        let messages = all["dialogues"][messages].clone();
        let messages: Vec<Message> = serde_json::from_value(messages).unwrap();
        let text = template.render(&messages, case["prompt"].as_bool().unwrap());
        if text.as_deref().ok() != case["text"].as_str() {
            wrong.push(format!("{name} {dialogue}: {text:?}, expected {}", case["text"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_dialogue_that_a_template_refuses_is_an_error_with_its_words() {
    let twice = dialogue(&[(Role::User, "a"), (Role::User, "b")]);
    for name in ["llama2", "mistral", "vicuna"] {
        let error = ChatTemplate::built_in(name).unwrap().render(&twice, false).unwrap_err();
        assert!(error.to_string().contains("must take turns"), "{error}");
    }
    let error = ChatTemplate::built_in("gpt").unwrap_err();
    assert!(error.to_string().contains("`vicuna`"), "{error}");
    let source = "{{ strftime_now('%Y') }}";
    let error = ChatTemplate::new("old", source).unwrap().render(&twice, false).unwrap_err();
    assert!(error.to_string().contains("give the template a date"), "{error}");
}

#[test]
fn templates_of_strangers_end_with_an_error() {
    let hostile = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}\
         {% endfor %}",
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}\
         {% endfor %}",
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}\
         {% set n.s = n.s|replace('x', n.s) %}{% endfor %}",
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}\
         {% set n.s = n.s.replace('x', n.s) %}{% endfor %}",
        "{% set n = namespace(s=['x']) %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}\
         {% endfor %}{{ n.s }}",
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}\
         {% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
        "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
        "{% set n = namespace() %}{% set n.n = [n] %}{{ '' ~ n }}",
        "{% macro f(s) %}{{ f(s ~ s) }}{% endmacro %}{{ f('xxxxxxxx') }}",
        "{% set s = 'x' * 99999999 %}",
        "{% set s = (['x' * 9999999] * 99999999)|join %}",
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{{ '%0999999999d'|format(1) }}{{ '{:0999999999d}'.format(1) }}",
        "{{ 'a'|indent(99999999999) }}{{ [1]|batch(99999999999, 1)|list }}",
        "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% include 'x' %}",
        "{% extends 'x' %}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{% set s = 9 * ('x' * 99999999) %}",
        "{% set s = ['x'] * 99999999 %}{{ s|length }}",
        "{{ 1 / 0 }}",
        "{{ 9 ** 99999999 }}",
    ];
    let messages = dialogue(&[(Role::User, "hello")]);
    for source in hostile {
        let result = ChatTemplate::new("hostile", source).and_then(|t| t.render(&messages, true));
        let error = result.expect_err(source).to_string();
        assert!(error.len() < 2000, "{error}");
    }
    let raw = format!("{{% for i in range(99999) %}}{}{{% endfor %}}", "x".repeat(99_999));
    let error = ChatTemplate::new("raw", &raw).unwrap().render(&messages, true).unwrap_err();
    assert!(error.to_string().contains("128 MiB"), "{error}");
    for broken in ["{% if %}", "{{", "{% generation %}", &"(".repeat(99_999), "{{ a.b.c"] {
        let broken = ChatTemplate::new("broken", broken).and_then(|t| t.render(&messages, true));
        assert!(broken.is_err() || !broken.unwrap().is_empty());
    }
}

#[test]
fn long_dialogues_have_room() {
    let turns: Vec<_> = (0..4000)
        .map(|at| if at % 2 == 0 { (Role::User, "How?") } else { (Role::Assistant, "So.") })
        .collect();
    for name in BUILT_IN {
        let text = ChatTemplate::built_in(name).unwrap().render(&dialogue(&turns), true).unwrap();
        assert!(text.len() > 4000 * 4, "{name}");
    }
}

#[test]
fn a_vocabulary_is_cased_when_it_has_capitals() {
    let uncased = folder(&[("vocab.txt", VOCABULARY)]);
    let tokenizer = Tokenizer::open(uncased.path()).unwrap();
    let encoded = tokenizer.encode("A mans RUN x", true).unwrap();
    assert_eq!(encoded.ids, [2, 5, 6, 7, 8, 1, 3]);
    assert_eq!(encoded.offsets[2..4], [(2, 5), (5, 6)]);
    let cased = folder(&[("vocab.txt", &[VOCABULARY, b"Man\n"].concat())]);
    let tokenizer = Tokenizer::open(cased.path().join("vocab.txt")).unwrap();
    assert_eq!(tokenizer.encode("A Man man", true).unwrap().ids, [2, 1, 9, 6, 3]);
    let config = br#"{ "do_lower_case": true, "cls_token": { "content": "[SEP]" } }"#;
    let told = folder(&[
        ("vocab.txt", &[VOCABULARY, b"Man\n"].concat()),
        ("tokenizer_config.json", config),
    ]);
    let tokenizer = Tokenizer::open(told.path()).unwrap();
    assert_eq!(tokenizer.encode("A Man", true).unwrap().ids, [3, 5, 6, 3]);
    assert_eq!(tokenizer.special(Special::Cls), Some(3));
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_name() {
    let long = "x".repeat(300);
    for (name, bytes, says) in [
        ("vocab.txt", &b""[..], "is empty"),
        ("vocab.txt", b"[UNK]\n[CLS]\n[UNK]\n", "lines 1 and 3 are both `[UNK]`"),
        ("vocab.txt", b"[UNK]\n\n[CLS]\n", "line 2 is empty"),
        ("vocab.txt", b"[UNK]\nab\xff\n", "line 2 is not UTF-8"),
        ("vocab.txt", b"one\ntwo\n", "has no `[UNK]`"),
        ("tokenizer.json", b"{ \"version\": \"1.0\", \"mod", "is no tokenizer"),
        ("tokenizer.json", b"{\"model\":{\"type\":\"WordPiece\"}}", "is no tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "is no tokenizer"),
        ("tokenizer.json", long.as_bytes(), "is no tokenizer"),
        ("tokenizer_config.json", b"[]", "neither tokenizer.json nor vocab.txt"),
    ] {
        let folder = folder(&[(name, bytes)]);
        let error = Tokenizer::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(says), "{name}: {error}");
        let named = if says.starts_with("neither") { "file `" } else { name };
        assert!(error.contains(named), "{error}");
    }
    let map = br#"{ "pad_token": "<none>" }"#;
    let folder = folder(&[("vocab.txt", VOCABULARY), ("special_tokens_map.json", map)]);
    let error = Tokenizer::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("`<none>`, which is not in the vocabulary"), "{error}");
    let error = Tokenizer::open(Path::new("nowhere")).unwrap_err().to_string();
    assert!(error.contains("no such folder; file `nowhere`"), "{error}");
}

#[test]
fn lengths_are_kept_or_refused_with_both_numbers() {
    let folder = folder(&[("vocab.txt", VOCABULARY)]);
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    let texts = ["a man", "a man runs a man"];
    let longest = tokenizer.batch(&texts, &Layout::default()).unwrap();
    assert_eq!(longest.shape, [2, 8]);
    assert_eq!(longest.mask[..8], [1, 1, 1, 1, 0, 0, 0, 0]);
    let left = Layout { padding: Side::Left, ..Layout::default() };
    assert_eq!(tokenizer.batch(&texts, &left).unwrap().ids[..8], [0, 0, 0, 0, 2, 5, 6, 3]);
    let context = Layout { context: Some(7), ..Layout::default() };
    let error = tokenizer.batch(&texts, &context).unwrap_err();
    assert_eq!(error, TextError::TooLong { text: 1, tokens: 8, limit: 7 });
    assert!(error.to_string().starts_with("text 1 has 8 tokens, the length is 7"));
    let cut = Layout { long: Long::Cut(Side::Left), ..context };
    assert_eq!(tokenizer.batch(&texts, &cut).unwrap().ids[7..], [2, 6, 8, 7, 5, 6, 3]);
    let error = tokenizer.batch(&texts, &Layout::fixed(1)).unwrap_err();
    assert_eq!(error, TextError::TooShort { limit: 1, special: 2 });
    assert_eq!(tokenizer.batch(&texts, &Layout::fixed(2)).unwrap().ids, [2, 3, 2, 3]);
    assert_eq!(tokenizer.batch::<&str>(&[], &left).unwrap().shape, [0, 0]);
}

#[test]
fn a_table_may_be_larger_than_the_vocabulary_not_smaller() {
    let folder = folder(&[("vocab.txt", VOCABULARY)]);
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(tokenizer.vocabulary_size(), 9);
    assert!(tokenizer.check_vocabulary(9).is_ok() && tokenizer.check_vocabulary(64).is_ok());
    let error = tokenizer.check_vocabulary(8).unwrap_err().to_string();
    assert!(error.contains("ids up to 8, the model has 8 embedding rows"), "{error}");
    assert_eq!(tokenizer.decode(&[5, 6, 60], true).unwrap(), "a man");
    assert!(tokenizer.decode(&[IGNORED], true).is_err());
    assert_eq!(tokenizer.need(Special::Bos), Err(TextError::NoSpecial { name: "bos" }));
}

#[test]
fn a_folder_gives_its_template_by_name() {
    let config = json!({
        "bos_token": "<s>",
        "chat_template": [
            { "name": "default", "template": "{{ bos_token }}{{ messages[0].content }}" },
            { "name": "tool_use", "template": "tools" },
        ],
    });
    let several = folder(&[("tokenizer_config.json", config.to_string().as_bytes())]);
    let messages = dialogue(&[(Role::User, "hi")]);
    let open = |name| ChatTemplate::open_named(several.path(), name);
    assert_eq!(open("default").unwrap().render(&messages, false).unwrap(), "<s>hi");
    assert_eq!(open("tool_use").unwrap().render(&messages, false).unwrap(), "tools");
    assert!(open("rag").unwrap_err().to_string().contains("`default`, `tool_use`"));
    let file = folder(&[("chat_template.jinja", b"file")]);
    assert_eq!(ChatTemplate::open(file.path()).unwrap().render(&[], true).unwrap(), "file");
    let none = folder(&[("tokenizer_config.json", b"{}")]);
    assert!(ChatTemplate::open(none.path()).is_err());
}
